from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradlight.errors import GradlightError
from gradlight.models.class_objective import Class, Rank, check_row_count, parse, resolve

LABELS = [
    "cat",
    "dog",
    "golden retriever",
    "crane",
    "Siamese cat, Siamese",
    "crane",
    "Tiger",
    "tiger shark",
    "tiger cat, striped cat",
    "top",
    "school bus",
    "goldfish, Carassius auratus",
]


def meaning(target: Any) -> Any:
    return resolve(parse(target), LABELS)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        (None, Rank(0)),
        ("top", Rank(0)),  # the keyword, not class 9
        ("top1", Rank(0)),
        ("min", Rank(-1)),
        (7, Class(7)),
        (np.int64(7), Class(7)),
        (np.array(7), Class(7)),
        (torch.tensor(7), Class(7)),
        ("7", Class(7)),
        ("cat", Class(0)),
        ("CAT", Class(0)),
        (" cat ", Class(0)),
        ("tiger", Class(6)),
        ("Tiger", Class(6)),
        ("striped cat", Class(8)),
        ("carassius AURATUS", Class(11)),
        ("siamese", Class(4)),
        ("golden", Class(2)),
        ("goldf", Class(11)),
        ("school", Class(10)),
        ("top hat", None),
    ],
)
def test_one_target_for_all_images(target: Any, wanted: Any) -> None:
    if wanted is None:
        with pytest.raises(GradlightError, match="No class is called 'top hat'"):
            meaning(target)
    else:
        assert meaning(target) == [[wanted]]


def test_topn_is_n_targets() -> None:
    assert meaning("top3") == [[Rank(0), Rank(1), Rank(2)]]
    assert meaning([["top2", "min"]]) == [[Rank(0), Rank(1), Rank(-1)]]
    with pytest.raises(GradlightError, match="'top13' asks for 13 classes; the network has 12"):
        meaning("top13")


@pytest.mark.parametrize(
    "target", [["cat", 1], ("cat", "dog"), [["cat"], "dog"], np.array([0, 1]), torch.tensor([0, 1])]
)
def test_a_list_has_one_entry_per_image(target: Any) -> None:
    assert meaning(target) == [[Class(0)], [Class(1)]]


@pytest.mark.parametrize(
    "target", [[["cat", "dog"]], [[0, 1]], [(0, "dog")], np.array([[0, 1]]), torch.tensor([[0, 1]]), [np.array([0, 1])]]
)
def test_a_nested_list_has_several_targets_per_image(target: Any) -> None:
    assert meaning(target) == [[Class(0), Class(1)]]


def test_images_may_have_different_numbers_of_targets() -> None:
    assert meaning([["cat", "dog"], "top2"]) == [[Class(0), Class(1)], [Rank(0), Rank(1)]]
    assert meaning(["cat", ["dog", "cat"]]) == [[Class(0)], [Class(1), Class(0)]]


@pytest.mark.parametrize("count", [1, 3])
def test_the_count_must_fit_the_images(count: int) -> None:
    check_row_count([1], count)
    check_row_count([1] * count, count)
    with pytest.raises(GradlightError, match=rf"2 targets for {count} images.*\[\[\"cat\", \"dog\"\]\]"):
        check_row_count([1, 2], count)


@pytest.mark.parametrize("index", [-1, 12, 10**30, "-1", "99"])
def test_an_index_out_of_range_names_the_range(index: Any) -> None:
    with pytest.raises(GradlightError, match="12 classes, from 0 to 11"):
        meaning(index)


def test_a_duplicate_label_names_both_indices() -> None:
    with pytest.raises(GradlightError, match=r"could mean 3 \(crane\), 5 \(crane\)"):
        meaning("crane")


def test_an_ambiguous_beginning_lists_the_candidates() -> None:
    with pytest.raises(GradlightError, match=r"7 \(tiger shark\), 8 \(tiger cat, striped cat\)"):
        resolve(parse("tiger"), [label.replace("Tiger", "lion") for label in LABELS])
    with pytest.raises(GradlightError, match="and 12 more"):
        resolve(parse("class"), [f"class_{i}" for i in range(20)])


def test_a_word_within_a_label_stops_a_wrong_guess_by_beginning() -> None:
    with pytest.raises(GradlightError, match=r"0 \(catamaran\), 1 \(tabby cat\)"):
        resolve(parse("cat"), ["catamaran", "tabby cat"])


def test_a_word_within_a_label_is_offered_and_not_taken() -> None:
    with pytest.raises(GradlightError, match=r"'bus' could mean 10 \(school bus\)"):
        meaning("bus")


def test_an_unknown_label_gets_the_nearest() -> None:
    with pytest.raises(GradlightError, match=r"No class is called 'goldn retreiver'.*'golden retriever'"):
        meaning("goldn retreiver")


def test_a_label_of_digits_wins_over_the_index() -> None:
    digits = [str(9 - i) for i in range(10)]
    assert resolve(parse("7"), digits) == [[Class(2)]]
    assert resolve(parse(7), digits) == [[Class(7)]]


@pytest.mark.parametrize(
    "target",
    [
        True,
        [True],
        torch.tensor([True]),
        np.bool_(False),
        1.0,
        torch.tensor([1.5]),
        "",
        " ",
        {"cat"},
        b"a",
        [[["cat"]]],
    ],
)
def test_what_is_not_a_target_is_refused(target: Any) -> None:
    with pytest.raises(GradlightError, match="is not a target"):
        meaning(target)


@pytest.mark.parametrize("target", [[], (), [[]], np.zeros(0, int), torch.zeros(1, 0, dtype=torch.long)])
def test_empty_lists_are_refused(target: Any) -> None:
    with pytest.raises(GradlightError, match="empty"):
        meaning(target)


@given(st.lists(st.text(min_size=1, max_size=4), min_size=1, max_size=8), st.data())
def test_an_exact_unique_label_is_always_found(labels: list[str], data: st.DataObject) -> None:
    index = data.draw(st.integers(0, len(labels) - 1))
    label = labels[index]
    if not label.strip() or label in ("top", "min") or labels.count(label) > 1:
        return
    assert resolve(parse(label), labels) == [[Class(index)]]
