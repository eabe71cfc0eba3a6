"""What a person asks a classifier about: indices, names, "top", "top5", "min", for all images or for each."""

from __future__ import annotations

import operator
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ..errors import GradlightError, nearest

__all__ = ["Asked", "Class", "Rank", "parse", "resolve", "rows_for"]


@dataclass(frozen=True)
class Class:
    """A class by its index."""

    index: int


@dataclass(frozen=True)
class Rank:
    """The class at a position of the network's own ranking: 0 is the most likely, -1 the least."""

    position: int


Asked = int | str
"""One target as a person wrote it: an index, a label or a keyword."""

_LISTED = 8


def parse(target: Any) -> list[list[Asked]]:
    """Bring a target to rows: one row per image, or one for all; every row holds one entry per target.

    None is "top". One value is for all images. A list has one entry for each image, or exactly one for all; an
    entry that is itself a list holds several targets of its image. Integer tensors and arrays are read as lists.
    Raises GradlightError for anything else; names and ranges are looked at by `resolve`.
    """
    if isinstance(target, (Tensor, np.ndarray)):
        target = target.tolist()
    if not isinstance(target, (list, tuple)):
        return [_atoms(target)]
    if not target:
        raise GradlightError('The list of targets is empty. Give one per image, or one for all: "top" or a label.')
    return [_entry(entry) for entry in target]


def rows_for(rows: Sequence[Any], count: int) -> None:
    """Refuse rows that are neither one for all nor one for each of `count` images."""
    if len(rows) not in (1, count):
        raise GradlightError(
            f"There are {len(rows)} targets for {count} images. A list holds one entry for each image, or exactly one"
            ' for all. To ask several targets of every image, nest it: [["cat", "dog"]].'
        )


def resolve(rows: Sequence[Sequence[Asked]], labels: Sequence[str]) -> list[list[Class | Rank]]:
    """Find what each asked target means among the labels; raises GradlightError for what is unknown or ambiguous.

    The keywords "top", "top5" (any number) and "min" win over labels of the same name, which can be asked by index.
    """
    known: dict[Asked, list[Class | Rank]] = {}
    for asked in (asked for row in rows for asked in row):
        if asked not in known:
            known[asked] = _meanings(asked, labels)
    return [[meaning for asked in row for meaning in known[asked]] for row in rows]


def _entry(entry: Any) -> list[Asked]:
    if isinstance(entry, (Tensor, np.ndarray)):
        entry = entry.tolist()
    if not isinstance(entry, (list, tuple)):
        return _atoms(entry)
    if not entry:
        raise GradlightError("One image's list of targets is empty. Give at least one for each image.")
    return [asked for part in entry for asked in _atoms(part)]


def _atoms(value: Any) -> list[Asked]:
    """Check one target; a list only to refuse deeper nesting with the same sentence."""
    if value is None:
        return ["top"]
    if isinstance(value, str) and value.strip():
        return [value]
    if not isinstance(value, (bool, np.bool_, str)):
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
            return _atoms(value.tolist())
        try:
            return [operator.index(value)]
        except TypeError:
            pass
    raise GradlightError(
        f'{value!r} is not a target. Ask for a class by its index or label, or for "top", "top5" or "min"; for several'
        ' targets of every image: [["cat", "dog"]].'
    )


def _meanings(asked: Asked, labels: Sequence[str]) -> list[Class | Rank]:
    if isinstance(asked, int):
        return [Class(_in_range(asked, labels))]
    if asked == "min":
        return [Rank(-1)]
    keyword = re.fullmatch(r"top([1-9][0-9]*)?", asked)
    if keyword is None:
        return [Class(_find(asked, labels))]
    count = int(keyword[1] or 1)
    if count > len(labels):
        raise GradlightError(f"{asked!r} asks for {count} classes; the network has {len(labels)}.")
    return [Rank(position) for position in range(count)]


def _in_range(index: int, labels: Sequence[str]) -> int:
    if not 0 <= index < len(labels):
        raise GradlightError(
            f"There is no class {index}: the network has {len(labels)} classes, from 0 to {len(labels) - 1}."
            + (' For the least likely class, ask for "min".' if index < 0 else "")
        )
    return index


def _find(asked: str, labels: Sequence[str]) -> int:
    """Find a label: exact, then without case, then as one of its synonyms, then by its beginning."""
    wanted = asked.strip().casefold()
    folded = [label.casefold() for label in labels]
    stages = (
        [index for index, label in enumerate(labels) if label == asked],
        [index for index, label in enumerate(folded) if label == wanted],
        # ImageNet's labels in timm are lists of synonyms: "tiger cat" is one of them, and only the start of others.
        [index for index, label in enumerate(folded) if wanted in re.split(r"\s*,\s*", label)],
        [int(asked)] if re.fullmatch(r"\s*-?[0-9]+\s*", asked) else [],
    )
    found = next((stage for stage in stages if stage), [])
    if len(found) == 1:
        return _in_range(found[0], labels)
    # A beginning counts where no other label has it as a word: "cat" is neither the catamaran nor one of the cats.
    word = re.compile(rf"(^|\W){re.escape(wanted)}(\W|$)|^{re.escape(wanted)}")
    found = found or [index for index, label in enumerate(folded) if word.search(label)]
    if len(found) == 1 and folded[found[0]].startswith(wanted):
        return found[0]
    if not found:
        raise GradlightError(f"No class is called {asked!r}.{nearest(asked, labels)}")
    listed = ", ".join(f"{index} ({labels[index]})" for index in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise GradlightError(f"{asked!r} could mean {listed}{more}. Ask for one by its index or its whole label.")
