"""Sentences about scenes: true ones are true, false ones are not, and every word finds its object."""

from __future__ import annotations

from functools import lru_cache

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradlight.data.scenes.generator import COLOURS, KINDS, Scene, SceneObject, draw, relation
from gradlight.data.scenes.grammar import WORDS, Named, Statement, is_true, objects_of, parse

RELATIONS = {"above": "below", "below": "above", "left of": "right of", "right of": "left of"}
NUMBERS = ("two", "three", "four")

scene_of = lru_cache(maxsize=None)(draw)
seeds = st.integers(0, 80)


def sentences_of(scene: Scene) -> list[list[str]]:
    return [caption.split() for caption in scene.captions]


def swapped(words: list[str], at: int, word: str) -> list[str]:
    """Put a word in another's place, with the article that goes with it."""
    changed = [*words[:at], word, *words[at + 1 :]]
    if at and changed[at - 1] in ("a", "an"):
        changed[at - 1] = "an" if word == "orange" else "a"
    return changed


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_every_caption_of_a_scene_is_true_of_it(seed: int) -> None:
    scene = scene_of(seed)
    for words in sentences_of(scene):
        said = parse(words)
        assert said is not None
        assert is_true(scene, words), words
        assert set(words) <= set(WORDS)
        assert {named.colour for named in said.named} <= {thing.colour for thing in scene.objects}


@settings(max_examples=60, deadline=None)
@given(seeds, seeds)
def test_a_caption_is_true_of_another_scene_only_if_its_objects_are_there(seed: int, other: int) -> None:
    scene = scene_of(other)
    names = {(thing.colour, thing.kind) for thing in scene.objects}
    for words in sentences_of(scene_of(seed)):
        said = parse(words)
        assert said is not None
        if not {(named.colour, named.kind) for named in said.named} <= names:
            assert not is_true(scene, words)
            assert objects_of(scene, words) == {}


@settings(max_examples=60, deadline=None)
@given(seeds, st.data())
def test_another_colour_or_shape_makes_it_false(seed: int, data: st.DataObject) -> None:
    scene = scene_of(seed)
    words = data.draw(st.sampled_from([words for words in sentences_of(scene) if objects_of(scene, words)]))
    at = data.draw(st.sampled_from(sorted(objects_of(scene, words))))
    known = COLOURS if words[at] in COLOURS else KINDS
    absent = sorted(name for name in known if name not in scene.classes)
    changed = swapped(words, at, data.draw(st.sampled_from(absent)))
    assert parse(changed) is not None
    assert not is_true(scene, changed)
    assert objects_of(scene, changed) == {}


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(["small", "large"]), st.data())
def test_another_size_makes_it_false_and_none_leaves_it_true(seed: int, size: str, data: st.DataObject) -> None:
    scene = scene_of(seed)
    thing = data.draw(st.sampled_from(scene.objects))
    plain = f"{'an' if thing.colour == 'orange' else 'a'} {thing.colour} {thing.kind}"
    assert is_true(scene, plain.split())
    assert is_true(scene, f"there is a {size} {thing.colour} {thing.kind}".split()) == (thing.scale == size)


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_the_relation_turned_round_is_false(seed: int) -> None:
    scene = scene_of(seed)
    for words in sentences_of(scene):
        said = parse(words)
        assert said is not None
        text = " ".join(words)
        for other in RELATIONS if said.relation else ():
            changed = text.replace(f" {said.relation} ", f" {other} ").split()
            assert parse(changed) == Statement(_shifted(said, changed), other)
            assert is_true(scene, changed) == (other == said.relation)


def _shifted(said: Statement, words: list[str]) -> tuple[Named, ...]:
    """Move the second object to where its words are in a sentence with a longer or shorter relation."""
    first, second = said.named
    return first, Named(second.size, second.colour, second.kind, len(words) - (4 if second.size else 3))


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_the_number_must_be_right(seed: int) -> None:
    scene = scene_of(seed)
    for count, number in enumerate(NUMBERS, start=2):
        assert is_true(scene, ["there", "are", number, "objects"]) == (count == len(scene.objects))
    for thing in scene.objects:
        assert is_true(scene, [*thing.name.split(), "alone"]) == (len(scene.objects) == 1)
        assert not is_true(scene, [*thing.name.split(), "and", *thing.name.split()]), "there is one of them"


@settings(max_examples=60, deadline=None)
@given(seeds, st.data())
def test_what_is_no_sentence_is_not_true(seed: int, data: st.DataObject) -> None:
    scene = scene_of(seed)
    words = data.draw(st.sampled_from(sentences_of(scene)))
    at = data.draw(st.integers(0, len(words) - 1))
    for changed in ([*words[:at], *words[at + 1 :]], [*words, "and"], [*words, words[-1]], words[::-1]):
        # Without its "small" or its first word, what is left may be a sentence too.
        assume(changed != words)
        if parse(changed) is None:
            assert not is_true(scene, changed)
            assert objects_of(scene, changed) == {}
    assert parse([*words, "and"]) is None
    assert parse([*words, words[-1]]) is None
    assert parse(words[:-1]) is None or words[-1] == "alone"


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_every_word_finds_its_object(seed: int) -> None:
    scene = scene_of(seed)
    for words in sentences_of(scene):
        found = objects_of(scene, words)
        naming = [at for at, word in enumerate(words) if word in COLOURS or word in KINDS]
        assert sorted(found) == naming
        for at, thing in found.items():
            assert words[at] in (thing.colour, thing.kind)
        pairs: list[tuple[SceneObject, SceneObject]] = [(found[at], found[at + 1]) for at in naming[::2]]
        assert all(one is other for one, other in pairs), "a colour and its shape are of one object"
        assert len({id(one) for one, _ in pairs}) == len(pairs)
        said = parse(words)
        assert said is not None
        if said.relation:
            assert relation(pairs[0][0], pairs[1][0]) == said.relation


@pytest.mark.parametrize(
    ("text", "named", "link", "count"),
    [
        ("a red star", [("", "red", "star", 0)], "", None),
        ("a small orange star alone", [("small", "orange", "star", 0)], "", 1),
        ("there is an orange star", [("", "orange", "star", 2)], "", None),
        (
            "a picture of a red star and a large blue circle",
            [("", "red", "star", 3), ("large", "blue", "circle", 7)],
            "",
            None,
        ),
        ("a red star left of an orange circle", [("", "red", "star", 0), ("", "orange", "circle", 5)], "left of", None),
        ("a red star above a small blue star", [("", "red", "star", 0), ("small", "blue", "star", 4)], "above", None),
        ("there are three objects", [], "", 3),
    ],
)
def test_a_sentence_is_taken_apart(
    text: str, named: list[tuple[str, str, str, int]], link: str, count: int | None
) -> None:
    wanted = Statement(tuple(Named(*fields) for fields in named), link, count)
    assert parse(text.split()) == wanted
    assert parse(tuple(text.split())) == wanted
    for thing in wanted.named:
        assert [text.split()[at] for at in thing.positions.values()] == [thing.colour, thing.kind]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "and",
        "alone",
        "there is",
        "there are",
        "a picture of",
        "a red",
        "red star",
        "an red star",
        "a orange star",
        "an small orange star",
        "a small small red star",
        "a red small star",
        "a star red",
        "a medium red star",
        "a red star above",
        "a red star left a blue star",
        "a red star left of of a blue star",
        "a red star above a blue star above a green star",
        "a red star above a blue star and a green star",
        "a red star and a blue star above a green star",
        "a red star and",
        "a red star alone alone",
        "a red star and a blue star alone",
        "there are one objects",
        "there are five objects",
        "there are two objects objects",
        "there is two objects",
        "there is there is a red star",
        "a red star a blue star",
    ],
)
def test_other_words_are_no_sentence(text: str) -> None:
    assert parse(text.split()) is None
    assert not is_true(scene_of(0), text.split())


def test_the_words_are_all_there_are() -> None:
    assert len(set(WORDS)) == len(WORDS) < 60
    assert sorted(WORDS) == WORDS
    said = {word for seed in range(81) for words in sentences_of(scene_of(seed)) for word in words}
    assert said == set(WORDS), "every word is said of some scene"
