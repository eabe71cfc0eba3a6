"""The sentences of the generated scenes: taken apart, and held against what a scene shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations

from .generator import COLOURS, KINDS, Scene, SceneObject, relation

__all__ = ["WORDS", "Named", "Statement", "is_true", "objects_of", "parse"]

_SIZES = ("small", "large")
_NUMBERS = ("two", "three", "four")
_RELATIONS = {"above": ("above",), "below": ("below",), "left of": ("left", "of"), "right of": ("right", "of")}
_OPENINGS = (("there", "is"), ("a", "picture", "of"))

WORDS = sorted(
    {*KINDS, *COLOURS, *_SIZES, *_NUMBERS, *(word for words in _RELATIONS.values() for word in words)}
    | {"a", "an", "and", "there", "is", "are", "of", "picture", "alone", "objects"}
)
"""Every word that a sentence about a scene can have."""


@dataclass(frozen=True)
class Named:
    """An object as a sentence names it; start is the position of its article, and its words follow."""

    size: str
    colour: str
    kind: str
    start: int

    @property
    def positions(self) -> dict[str, int]:
        """The positions of its colour and its shape in the sentence."""
        first = self.start + (2 if self.size else 1)
        return {self.colour: first, self.kind: first + 1}

    def fits(self, thing: SceneObject) -> bool:
        """Tell whether an object is such a one; a size that is not said may be any."""
        return (self.colour, self.kind) == (thing.colour, thing.kind) and self.size in ("", thing.scale)


@dataclass(frozen=True)
class Statement:
    """What a sentence says: the objects it names, how the first lies to the second, and how many there are."""

    named: tuple[Named, ...] = ()
    relation: str = ""
    count: int | None = None


def parse(words: Sequence[str]) -> Statement | None:
    """Take a sentence of the scenes' grammar apart; None for any other sequence of words."""
    words = tuple(words)
    if len(words) == 4 and words[:2] == ("there", "are") and words[2] in _NUMBERS and words[3] == "objects":
        return Statement(count=_NUMBERS.index(words[2]) + 2)
    at = next((len(opening) for opening in _OPENINGS if words[: len(opening)] == opening), 0)
    first = _read_named(words, at)
    if first is None:
        return None
    named, end = [first[0]], first[1]
    if words[end:] == ("alone",):
        return Statement(tuple(named), count=1)
    for name, link in _RELATIONS.items():
        second = _read_named(words, end + len(link)) if words[end : end + len(link)] == link else None
        if second is not None and second[1] == len(words):
            return Statement((first[0], second[0]), name)
    while words[end : end + 1] == ("and",):
        following = _read_named(words, end + 1)
        if following is None:
            return None
        named.append(following[0])
        end = following[1]
    return Statement(tuple(named)) if end == len(words) else None


def is_true(scene: Scene, words: Sequence[str]) -> bool:
    """Tell whether a sentence is of the grammar and all of it true: objects, colours, sizes, relation, number."""
    said = parse(words)
    if said is None or said.count not in (None, len(scene.objects)):
        return False
    return any(True for _ in _assignments(scene, said)) if said.named else True


def objects_of(scene: Scene, words: Sequence[str]) -> dict[int, SceneObject]:
    """Give the object that the word at each position of a true sentence is about: its colour's and its shape's."""
    said = parse(words)
    things = next(_assignments(scene, said), ()) if said is not None else ()
    pairs = zip(said.named if said is not None else (), things, strict=False)
    return {position: thing for named, thing in pairs for position in named.positions.values()}


def _assignments(scene: Scene, said: Statement) -> Iterator[tuple[SceneObject, ...]]:
    for things in permutations(scene.objects, len(said.named)):
        fitting = all(named.fits(thing) for named, thing in zip(said.named, things, strict=True))
        if fitting and (not said.relation or relation(things[0], things[1]) == said.relation):
            yield things


def _read_named(words: tuple[str, ...], at: int) -> tuple[Named, int] | None:
    """Read "a small red star" at a position: what it names, and where the next word is."""
    size = words[at + 1] if words[at + 1 : at + 2] and words[at + 1] in _SIZES else ""
    colour_at = at + (2 if size else 1)
    article, rest = words[at : at + 1], words[colour_at : colour_at + 2]
    if len(rest) < 2 or rest[0] not in COLOURS or rest[1] not in KINDS:
        return None
    if article != ("an" if (size or rest[0]) == "orange" else "a",):
        return None
    return Named(size, rest[0], rest[1], at), colour_at + 2
