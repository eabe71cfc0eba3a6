"""What a hostile HDF5 file may not do: lead out of itself, or declare more than it stores.

Every test looks at the structures only: no data is read, and no other file is opened.

The shards of an index: their names, their rows, and the virtual datasets over them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import h5py
import numpy as np

from .schema import LARGEST_MAP, TABLES, location, pipeline, pipeline_danger

__all__ = [
    "ShardList",
    "StoredShard",
    "attribute",
    "danger",
    "escaped",
    "map_danger",
    "map_datasets",
    "path_danger",
    "shard_list",
    "source_danger",
]

_FOLDER = re.compile(r"[^/\\\0]*\.shards")
_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.h5")


class StoredShard(NamedTuple):
    """Name a shard and the numbers of its rows."""

    name: str
    images: int
    targets: int
    failures: int


class ShardList(NamedTuple):
    """Name the folder beside an index, and its files in the order of the rows."""

    folder: str
    files: tuple[StoredShard, ...]

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
        shards = ShardList(found["folder"], tuple(StoredShard(*shard) for shard in found["files"]))
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


_LONGEST_TEXT = 2**24  # of the text of an attribute: the labels of 20,000 classes have less than 2**20
_ATTRIBUTE_KINDS = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
# How a text of a column stands in the file: its length and where it lies.
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])


def attribute(owner: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Read an attribute that is a number, a truth value, a text, or a pair of them; anything else counts as None."""
    if name not in owner.attrs:
        return None
    found = owner.attrs.get_id(name)
    if found.get_type().get_class() not in _ATTRIBUTE_KINDS or found.get_space().get_simple_extent_npoints() > 2:
        return None
    value = owner.attrs[name]
    return None if isinstance(value, str) and len(value) > _LONGEST_TEXT else value


def danger(file: h5py.File) -> str | None:
    """Say the first thing for which an open file must not be read any further, or None.

    Only afterwards may its parts be looked at by their names.
    """
    return next(_dangers(file), None)


def map_datasets(file: h5py.File, top: str) -> Iterator[tuple[tuple[str, str], h5py.Dataset]]:
    """Give the datasets below /maps or /scale by method and layer, in the order of the file."""
    root = file.get(top)
    for method, group in root.items() if isinstance(root, h5py.Group) else ():
        for layer, dataset in group.items() if isinstance(group, h5py.Group) else ():
            if isinstance(dataset, h5py.Dataset):
                yield (method, layer), dataset


def map_danger(dataset: h5py.Dataset, name: str, shards: ShardList | None) -> Iterator[str]:
    """Say why a dataset of maps or scales must not be read; shards are those that its file, an index, names."""
    properties = dataset.id.get_create_plist()
    # Even to ask a virtual dataset for its shape can open other files: its sources come first.
    if virtual := properties.get_layout() == h5py.h5d.VIRTUAL:
        if reason := source_danger(properties, name, shards):
            yield f"{name} {reason}"
            return
    elif shards and shards.spans():
        yield f"{name} is not virtual, as it must be beside the attribute 'shards'"
    shape = dataset.shape or ()
    if math.prod(shape[1:]) * dataset.dtype.itemsize > LARGEST_MAP:
        yield f"{name} declares maps of {math.prod(shape[1:]):,} numbers each"
    if not virtual:
        yield from (f"{name} {reason}" for reason in _storage_dangers(dataset, properties))


def path_danger(file: h5py.File, name: str) -> str | None:
    """Say why the way to a dataset must not be gone, or None: every step must lie in this file."""
    group = file
    for step in name.strip("/").split("/"):
        if reason := next(_link_dangers(group), None):
            return reason
        if not isinstance(group := group.get(step), h5py.Group):
            break
    return None if isinstance(group, h5py.Dataset) else f"{name} is not there"


def _dangers(file: h5py.File) -> Iterator[str]:
    # What follows counts on the ordinary sizes of addresses, and on addresses from the first byte.
    if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
        yield "its addresses are not the usual ones"
    yield from _link_dangers(file)
    for table, kinds in TABLES.items():
        group = file.get(table)
        if isinstance(group, h5py.Group):
            yield from _link_dangers(group)
            for column in kinds:
                if isinstance(dataset := group.get(column), h5py.Dataset):
                    yield from (f"/{table}/{column} {reason}" for reason in _column_dangers(dataset))
    for top in ("maps", "scale"):
        root = file.get(top)
        if isinstance(root, h5py.Group):
            yield from _link_dangers(root)
            for group in root.values():
                yield from _link_dangers(group) if isinstance(group, h5py.Group) else ()
    yield from _maps_dangers(file)


def _maps_dangers(file: h5py.File) -> Iterator[str]:
    shards = shard_list(attribute(file, "shards"))
    if shards is None and "shards" in file.attrs:
        yield "its attribute 'shards' does not name plain files in one folder beside it"
    stored = 0
    for top in ("maps", "scale"):
        for key, dataset in map_datasets(file, top):
            yield from map_danger(dataset, location(top, key), shards)
            stored += 0 if dataset.is_virtual else dataset.id.get_storage_size()
    if stored > file.id.get_filesize():
        yield f"its maps share their bytes: {stored:,} in a file of {file.id.get_filesize():,}"


def _link_dangers(group: h5py.Group) -> Iterator[str]:
    def leads_away(name: bytes, link: Any) -> str | None:
        return (
            None if link.type == h5py.h5l.TYPE_HARD else f"{group.name.rstrip('/')}/{name.decode('utf-8', 'replace')}"
        )

    inside, _ = group.id.links.iterate(leads_away, info=True)
    if inside:
        yield f"{inside!r} is a soft or external link, which can lead anywhere"


def _column_dangers(column: h5py.Dataset) -> Iterator[str]:
    properties = column.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        yield "is a virtual dataset, kept in other files"
    elif properties.get_layout() != h5py.h5d.CONTIGUOUS:
        yield "is not stored as one piece"
    yield from _storage_dangers(column, properties)
    size = column.file.id.get_filesize()
    if _holds_references(column) and column.size:
        where = column.id.get_offset()
        references = np.fromfile(column.file.filename, _REFERENCE, column.size, offset=where)
        if (total := int(references["length"].sum(dtype=np.uint64))) > size:
            yield f"holds texts of {total:,} bytes together, more than the file"


def _holds_references(dataset: h5py.Dataset) -> bool:
    kind = dataset.id.get_type()
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


def _storage_dangers(dataset: h5py.Dataset, properties: h5py.h5p.PropDCID) -> Iterator[str]:
    if properties.get_external_count():
        yield "is kept in another file"
    if dataset.shape is None:
        return
    size, stored = dataset.file.id.get_filesize(), dataset.id.get_storage_size()
    item = _REFERENCE.itemsize if _holds_references(dataset) else dataset.id.get_type().get_size()
    declared = math.prod(map(int, dataset.shape)) * item
    if properties.get_layout() != h5py.h5d.CHUNKED:
        if not declared <= stored <= size:
            yield f"declares {declared:,} bytes, and the file stores {min(stored, size):,}"
        return
    chunk = properties.get_chunk()
    chunk_bytes = math.prod(chunk) * dataset.dtype.itemsize
    if any(side > max(1, whole) for side, whole in zip(chunk, dataset.shape, strict=True)):
        yield f"has chunks of {[*chunk]}, larger than itself, {[*dataset.shape]}"
    if reason := pipeline_danger(pipeline(properties), chunk_bytes):
        yield reason
    count = math.prod(-(-int(whole) // side) for whole, side in zip(dataset.shape, chunk, strict=True))
    # Counting goes over all that is declared, so that must first be a number of chunks that the file can hold.
    if count > size or stored > size or dataset.id.get_num_chunks() != count:
        yield f"declares {count:,} chunks, and the file does not store them all"
