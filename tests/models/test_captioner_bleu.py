from __future__ import annotations

from math import exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradlight import GradlightError
from gradlight.models.captioner.bleu import bleu

NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4"]
WORDS = st.lists(st.sampled_from("abcd"), max_size=7)
CORPORA = st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=3), WORDS), min_size=1, max_size=5)


def score(*pairs: tuple[str, list[str]]) -> list[float]:
    """Score hypotheses with their references, all as texts."""
    scores = bleu([[text.split() for text in written] for _, written in pairs], [said.split() for said, _ in pairs])
    assert list(scores) == NAMES
    return list(scores.values())


def test_the_same_words_score_one():
    assert score(("a dog runs home", ["a dog runs home"])) == pytest.approx([1, 1, 1, 1])


def test_one_word_differs():
    # Of 5 words 4 are shared, of 4 pairs 3 (a b, b c, c d), of 3 triples 2, of 2 quadruples 1; equal lengths.
    expected = [4 / 5, (4 / 5 * 3 / 4) ** (1 / 2), (4 / 5 * 3 / 4 * 2 / 3) ** (1 / 3), (1 / 5) ** (1 / 4)]
    assert score(("a b c d x", ["a b c d e"])) == pytest.approx(expected)


def test_a_repeated_word_counts_as_often_as_one_reference_has_it():
    # Papineni's example: "the" occurs 7 times, at most 2 times in one reference; "the the" nowhere.
    pair = ("the the the the the the the", ["the cat is on the mat", "there is a cat on the mat"])
    assert score(pair) == pytest.approx([2 / 7, 0, 0, 0])


def test_short_captions_are_penalised():
    # 3 words of 3, 2 pairs of 2, 1 triple of 1; the nearest reference has 6 words: exp(1 − 6/3).
    assert score(("a b c", ["a b c d e f", "a b c d e f g h"]))[:3] == pytest.approx([exp(-1)] * 3)


def test_the_nearest_reference_decides_the_length():
    # Lengths 3 and 6 for a hypothesis of 4: the nearer one is shorter, so there is no penalty.
    assert score(("a b c d", ["a b c", "a b c d e f"])) == pytest.approx([1, 1, 1, 1])


def test_counts_are_summed_over_the_corpus():
    # Words: 4/4 and 1/4; pairs: 3/3 and 0/3; triples: 2/2 and 0/2; quadruples: 1/1 and 0/1; no penalty.
    precisions = [5 / 8, 3 / 6, 2 / 4, 1 / 2]
    found = score(("a b c d", ["a b c d"]), ("a x y z", ["a q r s"]))
    for order in (1, 2, 3, 4):
        assert found[order - 1] == pytest.approx(exp(sum(map(log, precisions[:order])) / order))


def test_orders_without_overlap_are_zero_and_warn_of_nothing():
    assert score(("a b x c d", ["a b y c d"])) == pytest.approx([4 / 5, (4 / 5 * 2 / 4) ** (1 / 2), 0, 0])
    assert score(("a b", ["b a"])) == pytest.approx([1, 0, 0, 0])
    assert score(("x y", ["a b"])) == [0, 0, 0, 0]
    assert score(("", ["a b"])) == [0, 0, 0, 0]
    assert score(("a b", [""])) == [0, 0, 0, 0]


def test_a_caption_too_short_for_a_run_counts_as_one_missed():
    # Quadruples: 1 of 1, and nltk's 0 of 1 for the three words.
    assert score(("a b c d", ["a b c d"]), ("e f g", ["e f g"]))[3] == pytest.approx((1 / 2) ** (1 / 4))


@settings(max_examples=60, deadline=None)
@given(CORPORA)
def test_scores_lie_in_order_between_zero_and_one(corpus: list[tuple[list[list[str]], list[str]]]):
    references, hypotheses = [written for written, _ in corpus], [said for _, said in corpus]
    scores = list(bleu(references, hypotheses).values())
    assert all(0 <= value <= 1 + 1e-12 for value in scores)
    assert all(type(value) is float for value in scores)
    # Once a length of runs is shared nowhere, no longer one is.
    zeros = [value == 0 for value in scores]
    assert zeros == sorted(zeros)


@settings(max_examples=60, deadline=None)
@given(CORPORA)
def test_a_caption_among_its_own_references_never_scores_less(corpus: list[tuple[list[list[str]], list[str]]]):
    references, hypotheses = [written for written, _ in corpus], [said for _, said in corpus]
    own = bleu([[*written, said] for written, said in corpus], hypotheses)
    if all(hypotheses):
        assert own["BLEU-1"] == pytest.approx(1)
    assert all(own[name] >= value - 1e-12 for name, value in bleu(references, hypotheses).items())


@pytest.mark.parametrize(
    ("references", "hypotheses", "message"),
    [
        ([[["a"]]], [], "There are 0 hypotheses for 1 sets of references; give one per image"),
        ([], [], "BLEU of no captions is undefined"),
        ([[["a"]], []], [["a"], ["b"]], "Image 1 has no reference"),
        ([[["a"]]], ["a dog"], "Image 0 has a text, 'a dog', not a list of words"),
        ([["a dog"]], [["a"]], "Image 0 has a text, 'a dog', not a list of words"),
        ([[["a"]]], [""], "Image 0 has a text, '', not a list of words"),
    ],
)
def test_what_has_no_score(references: list[list[list[str]]], hypotheses: list[list[str]], message: str):
    with pytest.raises(GradlightError, match=message):
        bleu(references, hypotheses)
