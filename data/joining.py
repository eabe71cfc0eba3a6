"""What a file over several others holds: one header, their tables one after the other, and where they differ."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..errors import GradlightError
from .files import PathLike, shown
from .reader import MapsFile
from .schema import COLUMN_DTYPES, TABLES, Header, LayerRow, shown_key
from .shards import Shard

__all__ = ["Joined", "Key", "differences", "joined", "part_of"]

Key = tuple[str, str]
Kind = tuple[tuple[int, ...], np.dtype]
_AGREEING = ("model", "weights_sha256", "objective", "meta", "pixels")
_SHORT = 60


class Joined(NamedTuple):
    """What several files hold together, but for the maps themselves; kinds has shapes (M,h,w) over all rows."""

    header: Header
    layers: dict[Key, LayerRow]
    kinds: dict[Key, Kind]
    columns: dict[str, dict[str, np.ndarray]]
    shards: tuple[Shard, ...]
    indexes: tuple[str, ...]  # the names of those that are indexes themselves


def joined(paths: Sequence[PathLike]) -> Joined:
    """Put the headers and tables of files together, in this order; a target's image is shifted to its new row.

    The result is complete where every file is. Raises GradlightError for files that cannot be read, and for files
    that differ in anything but their rows.
    """
    if not paths:
        raise GradlightError("no files of maps were given to be put together: give at least one")
    parts: list[Joined] = []
    first: tuple[PathLike, Joined] | None = None  # the first that has maps: a file of failures alone has none
    for path in paths:
        with MapsFile(path) as file:
            part = part_of(file)
        if parts and (found := list(differences(first[1] if first else parts[0], part))):
            other = shown(first[0] if first else paths[0])
            raise GradlightError(f"{shown(path)} and {other} do not belong together: {'; '.join(found)}.")
        if first is None and part.shards[0].targets:
            first = path, part
        parts.append(part)
    model = first[1] if first else parts[0]
    total = sum(part.shards[0].targets for part in parts)
    header = dataclasses.replace(
        model.header,
        gradlight_version=", ".join(dict.fromkeys(part.header.gradlight_version for part in parts)),
        complete=all(part.header.complete for part in parts),
    )
    files = tuple(part.shards[0] for part in parts)
    indexes = tuple(name for part in parts for name in part.indexes)
    kinds = {key: ((total, *shape[1:]), dtype) for key, (shape, dtype) in model.kinds.items()}
    return Joined(header, model.layers, kinds, _columns(parts), files, indexes)


def differences(one: Joined, other: Joined) -> Iterator[str]:
    """Say where two files differ in what must agree; without a map, a file may have any layers."""
    for name in _AGREEING:
        if (a := getattr(one.header, name)) != (b := getattr(other.header, name)):
            yield f"they differ in {name}{_both(a, b)}"
    if not (one.shards[0].targets and other.shards[0].targets):
        return
    for key in one.layers.keys() ^ other.layers.keys():
        yield f"only one has maps of {shown_key(key)}"
    for key in one.layers.keys() & other.layers.keys():
        for name in ("depth", "stride"):
            if (a := getattr(one.layers[key], name)) != (b := getattr(other.layers[key], name)):
                yield f"they differ in the {name} of {shown_key(key)}{_both(a, b)}"
        (shape, dtype), (other_shape, other_dtype) = one.kinds[key], other.kinds[key]
        if shape[1:] != other_shape[1:]:
            yield f"they differ in the grid of {shown_key(key)}{_both(shape[1:], other_shape[1:])}"
        if dtype != other_dtype:
            yield f"they differ in the dtype of {shown_key(key)}{_both(str(dtype), str(other_dtype))}"


def _both(one: object, other: object) -> str:
    texts = repr(one), repr(other)
    return f": {texts[1]} and {texts[0]}" if max(map(len, texts)) <= _SHORT else ""


def part_of(file: MapsFile) -> Joined:
    """Give what one file holds, as if it were put together of itself alone."""
    counts = Shard(file.path.name, len(file.images), len(file.targets), len(file.failures))
    kinds = {key: (file.shape(key), file.dtype(key)) for key in file.layers}
    indexes = (shown(file.path),) if file.shards else ()
    return Joined(file.header, file.layers, kinds, file.columns(), (counts,), indexes)


def _columns(parts: Sequence[Joined]) -> dict[str, dict[str, np.ndarray]]:
    starts = np.cumsum([0, *(part.shards[0].images for part in parts)])
    found = {
        table: {
            name: np.concatenate([part.columns[table][name] for part in parts]).astype(COLUMN_DTYPES[kind])
            for name, kind in kinds.items()
        }
        for table, kinds in TABLES.items()
    }
    shift = np.repeat(starts[:-1], [part.shards[0].targets for part in parts])
    found["targets"]["image"] = found["targets"]["image"] + shift
    return found
