"""The shards of an index: their names, their rows, and the virtual datasets over them."""

from __future__ import annotations

import json
import math
import re
from typing import NamedTuple

import h5py

__all__ = ["Shard", "ShardList", "escaped", "shard_list", "source_danger"]

_FOLDER = re.compile(r"[^/\\\0]*\.shards")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.h5")


class Shard(NamedTuple):
    """Name a shard and the numbers of its rows."""

    name: str
    images: int
    targets: int
    failures: int


class ShardList(NamedTuple):
    """Name the folder beside an index, and its files in the order of the rows."""

    folder: str
    files: tuple[Shard, ...]

    def is_plain(self) -> bool:
        """Tell whether the names are plain ones that lead nowhere else, each once, and the counts are counts."""
        counts = [count for shard in self.files for count in shard[1:]]
        return (
            bool(_FOLDER.fullmatch(self.folder))
            and not any(0xD800 <= ord(letter) < 0xE000 for letter in self.folder)  # HDF5 would not find it again
            and all(_FILE.fullmatch(shard.name) for shard in self.files)
            and len({shard.name for shard in self.files}) == len(self.files)
            and all(type(count) is int and 0 <= count < 2**40 for count in counts)
        )

    def spans(self) -> list[tuple[str, int, int]]:
        """Give name, first row and end row of the maps of each shard that has any."""
        spans, start = [], 0
        for shard in self.files:
            if shard.targets:
                spans.append((shard.name, start, start + shard.targets))
            start += shard.targets
        return spans


def shard_list(text: object) -> ShardList | None:
    """Give the shards that the attribute 'shards' of an index names, or None for what is not a list of them."""
    if not isinstance(text, str):
        return None
    try:
        found = json.loads(text)
        shards = ShardList(found["folder"], tuple(Shard(*shard) for shard in found["files"]))
        return shards if shards.is_plain() else None
    except (TypeError, ValueError, KeyError, RecursionError):
        return None


def source_danger(properties: h5py.h5p.PropDCID, name: str, shards: ShardList | None) -> str | None:
    """Say why the sources of a virtual dataset of this name are not just the rows of its shards, or None."""
    if shards is None:
        return "is a virtual dataset, kept in other files, without the attribute 'shards'"
    spans = shards.spans()
    if properties.get_external_count() or properties.get_virtual_count() != len(spans):
        return f"has {properties.get_virtual_count()} sources, and its file names {len(spans)} shards with maps"
    for number, (file, start, stop) in enumerate(spans):
        source = (properties.get_virtual_filename(number), properties.get_virtual_dsetname(number))
        if source != (escaped(f"{shards.folder}/{file}"), escaped(name)):
            return f"has the source {source[1]!r} of {source[0]!r}, not {name!r} of {file!r}"
        if not _takes_rows(properties, number, start, stop):
            return f"does not take rows {start} to {stop} from {file!r}"
    return None


def _takes_rows(properties: h5py.h5p.PropDCID, number: int, start: int, stop: int) -> bool:
    space, source = properties.get_virtual_vspace(number), properties.get_virtual_srcspace(number)
    whole = space.get_simple_extent_dims()
    if source.get_select_type() != h5py.h5s.SEL_ALL or stop > whole[0]:
        return False
    first, last = space.get_select_bounds()
    expected = (stop - start) * math.prod(whole[1:])
    sides = (start, *(0 for _ in whole[1:])), (stop - 1, *(side - 1 for side in whole[1:]))
    return (first, last) == sides and space.get_select_npoints() == expected


def escaped(name: str) -> str:
    """Write a name as the name of a source, where % would start a pattern."""
    return name.replace("%", "%%")
