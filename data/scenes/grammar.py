"""The grammar of the captions of generated scenes: parsing a sentence, and checking it against a scene."""

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
"""All words of the grammar."""


@dataclass(frozen=True)
class Named:
    """An object as a sentence names it.

    Attributes:
        size: "small", "large", or "" where the sentence does not say it.
        colour: The colour.
        kind: The shape.
        start: The position of its article in the sentence; its other words follow.

    Example:
        >>> Named("small", "red", "star", start=0).positions
        {'red': 2, 'star': 3}
    """

    size: str
    colour: str
    kind: str
    start: int

    @property
    def positions(self) -> dict[str, int]:
        """The positions of the words for its colour and its shape in the sentence."""
        first = self.start + (2 if self.size else 1)
        return {self.colour: first, self.kind: first + 1}

    def fits(self, thing: SceneObject) -> bool:
        """Tell whether an object has this colour and shape, and this size where the sentence says one."""
        return (self.colour, self.kind) == (thing.colour, thing.kind) and self.size in ("", thing.scale)


@dataclass(frozen=True)
class Statement:
    """The meaning of a sentence.

    Attributes:
        named: The objects that it names.
        relation: "above", "below", "left of" or "right of", of the first object to the second; "" without one.
        count: The number of objects in the scene, None where the sentence does not say it.

    Example:
        >>> parse("there are two objects".split())
        Statement(named=(), relation='', count=2)
    """

    named: tuple[Named, ...] = ()
    relation: str = ""
    count: int | None = None


def parse(words: Sequence[str]) -> Statement | None:
    """Parse a sentence.

    Args:
        words: The words of the sentence.

    Returns:
        The meaning, or None where the words are not a sentence of the grammar.

    Example:
        >>> statement = parse("a red star above an orange ring".split())
        >>> statement.relation, [named.kind for named in statement.named]
        ('above', ['star', 'ring'])
        >>> parse("star red a".split()) is None
        True
    """
    words = tuple(words)
    if len(words) == 4 and words[:2] == ("there", "are") and words[2] in _NUMBERS and words[3] == "objects":
        return Statement(count=_NUMBERS.index(words[2]) + 2)
    start = next((len(opening) for opening in _OPENINGS if words[: len(opening)] == opening), 0)
    first = _read_named(words, start)
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
    """Tell whether a sentence belongs to the grammar and is true in all it says.

    Args:
        scene: The scene that the sentence describes.
        words: The words of the sentence.

    Returns:
        True where the objects, colours, sizes, relation and number are all those of the scene.

    Example:
        >>> from gradlight.data.scenes import draw
        >>> scene = draw(0)
        >>> is_true(scene, scene.captions[0].split()), is_true(scene, "a red ring".split())
        (True, False)
    """
    statement = parse(words)
    if statement is None or statement.count not in (None, len(scene.objects)):
        return False
    return any(True for _ in _assignments(scene, statement)) if statement.named else True


def objects_of(scene: Scene, words: Sequence[str]) -> dict[int, SceneObject]:
    """Find the object that each colour word and shape word of a true sentence refers to.

    Args:
        scene: The scene that the sentence describes.
        words: The words of the sentence.

    Returns:
        Position of the word → object; empty where the sentence is not true.

    Example:
        >>> from gradlight.data.scenes import draw
        >>> sorted(objects_of(draw(0), "a white heart and a purple circle".split()))
        [1, 2, 5, 6]
    """
    statement = parse(words)
    things = next(_assignments(scene, statement), ()) if statement is not None else ()
    pairs = zip(statement.named if statement is not None else (), things, strict=False)
    return {position: thing for named, thing in pairs for position in named.positions.values()}


def _assignments(scene: Scene, statement: Statement) -> Iterator[tuple[SceneObject, ...]]:
    """Give every way to choose objects of the scene for those that a sentence names, so that it is true."""
    for things in permutations(scene.objects, len(statement.named)):
        fitting = all(named.fits(thing) for named, thing in zip(statement.named, things, strict=True))
        if fitting and (not statement.relation or relation(things[0], things[1]) == statement.relation):
            yield things


def _read_named(words: tuple[str, ...], at: int) -> tuple[Named, int] | None:
    """Parse "a small red star" from a position on: the object, and the position of the next word."""
    size = words[at + 1] if words[at + 1 : at + 2] and words[at + 1] in _SIZES else ""
    colour_at = at + (2 if size else 1)
    article, rest = words[at : at + 1], words[colour_at : colour_at + 2]
    if len(rest) < 2 or rest[0] not in COLOURS or rest[1] not in KINDS:
        return None
    if article != ("an" if (size or rest[0]) == "orange" else "a",):
        return None
    return Named(size, rest[0], rest[1], at), colour_at + 2
