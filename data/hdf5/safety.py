"""Opening HDF5 files of maps, and guards against hostile ones: links, external data, false sizes, bombs.

A hostile file must not make the reader open another file, or allocate more memory than the file stores. All guards
look at structures only: they read no map and open no other file. A function `find_…_danger` returns the reason for
which something must not be read, or None.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ...errors import GradlightError
from ...files import PathLike, format_path, open_regular
from .schema import (
    BLOSC,
    FORMAT,
    MAX_MAP_BYTES,
    TABLES,
    VERSION,
    Key,
    ShardList,
    dataset_path,
    escape_source,
    max_chunk_bytes,
    parse_shard_list,
)

__all__ = [
    "damage_as_error",
    "file_signature",
    "find_chunk_danger",
    "find_danger",
    "find_map_dangers",
    "find_path_danger",
    "is_integer",
    "is_maps_file",
    "is_open_elsewhere",
    "list_filters",
    "map_datasets",
    "open_maps_file",
    "read_attribute",
    "unsafe_file_error",
]


# --- Opening


def open_maps_file(path: PathLike) -> h5py.File:
    """Open a file of this format for reading.

    Args:
        path: The file.

    Returns:
        The open file, of which only the format and its version are checked.

    Raises:
        GradlightError: The file cannot be opened, is not HDF5, belongs to another program or has a newer version.
    """
    open_regular(path).close()
    if not h5py.is_hdf5(os.fsdecode(path)):
        raise GradlightError(f"{format_path(path)}: not an HDF5 file. Give a file that gradlight has saved.")
    file = h5py.File(os.fsdecode(path), "r")
    try:
        if reason := _find_foreign_format(file):
            raise GradlightError(f"{format_path(path)}: {reason}.")
    except BaseException:
        file.close()
        raise
    return file


def is_maps_file(file: h5py.File) -> bool:
    """Tell whether an open HDF5 file holds gradlight's maps, of any version."""
    name = read_attribute(file, "format")
    return isinstance(name, str) and name == FORMAT


def _find_foreign_format(file: h5py.File) -> str | None:
    """Give the reason for which this version cannot read an open HDF5 file, or None."""
    if not is_maps_file(file):
        return f"an HDF5 file of another program (its attribute 'format' is not {FORMAT!r})"
    version = read_attribute(file, "format_version")
    if not is_integer(version) or version < 1:
        return f"its format_version is {version!r}, not a whole number from 1: the file is damaged"
    if version > VERSION:
        return f"its format_version is {version}, and this gradlight reads up to {VERSION}: upgrade gradlight"
    return None


def is_integer(value: object) -> bool:
    """Tell whether a value is a whole number and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def is_open_elsewhere(error: Exception) -> bool:
    """Tell whether the HDF5 library refused a file because it is locked, or open in another mode in this process."""
    text = str(error)
    return isinstance(error, OSError) and any(
        phrase in text
        for phrase in ("unable to lock file", "already open for", "is already open", "flag values don't match")
    )


@contextlib.contextmanager
def damage_as_error(path: PathLike) -> Iterator[None]:
    """Convert the exceptions by which the HDF5 library reports damage to GradlightError."""
    try:
        yield
    except (GradlightError, MemoryError):
        raise
    # Damage is found anywhere in the HDF5 library: as OSError, RuntimeError, KeyError, ValueError …
    except Exception as error:
        if is_open_elsewhere(error):
            raise GradlightError(
                f"{format_path(path)}: open for writing elsewhere, in another program or in this one. Close it there,"
                " then read it again."
            ) from error
        raise GradlightError(
            f"{format_path(path)}: damaged or truncated, or being written by another program ({error}). Get a whole"
            " copy."
        ) from error


def unsafe_file_error(path: PathLike, reason: str) -> GradlightError:
    """Create the error for a file that must not be read for this reason."""
    advice = "gradlight writes no such file: get it again, from a source you trust"
    return GradlightError(f"{format_path(path)}: refused, because {reason}; {advice}.")


def file_signature(path: Path) -> tuple[int, int]:
    """Give the size and the modification time of a file, which tell whether it has changed."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


# --- Reading structures

_MAX_TEXT_LENGTH = 2**24  # of an attribute: the labels of 20,000 classes have less than 2**20
_ATTRIBUTE_TYPES = (h5py.h5t.INTEGER, h5py.h5t.FLOAT, h5py.h5t.STRING, h5py.h5t.ENUM)
# How a text of a column is stored: its length and its address.
_REFERENCE = np.dtype([("length", "<u4"), ("address", "<u8"), ("number", "<u4")])


def read_attribute(owner: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Read an attribute that is a number, a truth value, a text, or up to four of them; anything else gives None."""
    if name not in owner.attrs:
        return None
    identifier = owner.attrs.get_id(name)
    if identifier.get_type().get_class() not in _ATTRIBUTE_TYPES:
        return None
    if identifier.get_space().get_simple_extent_npoints() > 4:
        return None
    value = owner.attrs[name]
    return None if isinstance(value, str) and len(value) > _MAX_TEXT_LENGTH else value


def map_datasets(file: h5py.File, top: str) -> Iterator[tuple[Key, h5py.Dataset]]:
    """Give the datasets below /maps or /scale by method and layer, in the order of the file."""
    root = file.get(top)
    for method, group in root.items() if isinstance(root, h5py.Group) else ():
        for layer, dataset in group.items() if isinstance(group, h5py.Group) else ():
            if isinstance(dataset, h5py.Dataset):
                yield (method, layer), dataset


def list_filters(properties: h5py.h5p.PropDCID) -> list[int]:
    """List the numbers of the filters of a dataset, in the order of compression."""
    return [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]


# --- Guards of the whole file


def find_danger(file: h5py.File) -> str | None:
    """Find a reason for which an open file must not be read any further.

    Only after this check may the parts of the file be accessed by their names.
    """
    return next(_find_dangers(file), None)


def _find_dangers(file: h5py.File) -> Iterator[str]:
    """Give every reason; a caller that continues after the first one may already open another file."""
    # The guards below rely on addresses of the usual size that count from the first byte.
    if file.userblock_size or file.id.get_create_plist().get_sizes() != (8, 8):
        yield "its addresses are not the usual ones"
    yield from _find_link_dangers(file)
    for table, kinds in TABLES.items():
        group = file.get(table)
        if isinstance(group, h5py.Group):
            yield from _find_link_dangers(group)
            for column in kinds:
                if isinstance(dataset := group.get(column), h5py.Dataset):
                    yield from (f"/{table}/{column} {reason}" for reason in _find_column_dangers(dataset))
    for top in ("maps", "scale"):
        root = file.get(top)
        if isinstance(root, h5py.Group):
            yield from _find_link_dangers(root)
            for group in root.values():
                yield from _find_link_dangers(group) if isinstance(group, h5py.Group) else ()
    yield from _find_all_map_dangers(file)


def _find_link_dangers(group: h5py.Group) -> Iterator[str]:
    """Give the first soft or external link in a group, without following it."""

    def name_if_not_hard(name: bytes, link: Any) -> str | None:
        if link.type == h5py.h5l.TYPE_HARD:
            return None
        return f"{group.name.rstrip('/')}/{name.decode('utf-8', 'replace')}"

    link_name, _ = group.id.links.iterate(name_if_not_hard, info=True)
    if link_name:
        yield f"{link_name!r} is a soft or external link, which can lead anywhere"


def _find_column_dangers(column: h5py.Dataset) -> Iterator[str]:
    """Give the reasons for which a column of a table must not be read."""
    properties = column.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.VIRTUAL:
        yield "is a virtual dataset, kept in other files"
    elif properties.get_layout() != h5py.h5d.CONTIGUOUS:
        yield "is not stored contiguously"
    yield from _find_storage_dangers(column, properties)
    size = column.file.id.get_filesize()
    if _holds_references(column) and column.size:
        offset = column.id.get_offset()
        references = np.fromfile(column.file.filename, _REFERENCE, column.size, offset=offset)
        if (total := int(references["length"].sum(dtype=np.uint64))) > size:
            yield f"holds texts of {total:,} bytes together, more than the file"


def _find_all_map_dangers(file: h5py.File) -> Iterator[str]:
    """Give the reasons for which the maps and scales of a file must not be read."""
    shards = parse_shard_list(read_attribute(file, "shards"))
    if shards is None and "shards" in file.attrs:
        yield "its attribute 'shards' does not name plain files in one folder beside it"
    stored = 0
    for top in ("maps", "scale"):
        for key, dataset in map_datasets(file, top):
            yield from find_map_dangers(dataset, dataset_path(top, key), shards)
            stored += 0 if dataset.is_virtual else dataset.id.get_storage_size()
    if stored > file.id.get_filesize():
        yield f"its maps share their bytes: {stored:,} in a file of {file.id.get_filesize():,}"


# --- Guards of one dataset


def find_path_danger(file: h5py.File, name: str) -> str | None:
    """Find a reason for which the path of a dataset must not be followed: all of it must lie in this file."""
    group = file
    for step in name.strip("/").split("/"):
        if reason := next(_find_link_dangers(group), None):
            return reason
        if not isinstance(group := group.get(step), h5py.Group):
            break
    return None if isinstance(group, h5py.Dataset) else f"{name} is not there"


def find_map_dangers(dataset: h5py.Dataset, name: str, shards: ShardList | None) -> Iterator[str]:
    """Give the reasons for which a dataset of maps or scales must not be read.

    Args:
        dataset: The dataset.
        name: Its path in the file.
        shards: The shards that its file names, None for a plain file.

    Yields:
        One sentence each, which begins with the name.
    """
    properties = dataset.id.get_create_plist()
    # Even the shape of a virtual dataset can open other files, so its sources are checked first.
    if virtual := properties.get_layout() == h5py.h5d.VIRTUAL:
        if reason := _find_source_danger(properties, name, shards):
            yield f"{name} {reason}"
            return
    elif shards and shards.spans():
        yield f"{name} is not virtual, as it must be beside the attribute 'shards'"
    shape = dataset.shape or ()
    if math.prod(shape[1:]) * dataset.dtype.itemsize > MAX_MAP_BYTES:
        yield f"{name} declares maps of {math.prod(shape[1:]):,} numbers each"
    if not virtual:
        yield from (f"{name} {reason}" for reason in _find_storage_dangers(dataset, properties))


def _find_source_danger(properties: h5py.h5p.PropDCID, name: str, shards: ShardList | None) -> str | None:
    """Find a reason for which the sources of a virtual dataset are not exactly the rows of its shards."""
    if shards is None:
        return "is a virtual dataset, kept in other files, without the attribute 'shards'"
    spans = shards.spans()
    if properties.get_external_count() or properties.get_virtual_count() != len(spans):
        return f"has {properties.get_virtual_count()} sources, and its file names {len(spans)} shards with maps"
    for number, (file, start, stop) in enumerate(spans):
        source = (properties.get_virtual_filename(number), properties.get_virtual_dsetname(number))
        if source != (escape_source(f"{shards.folder}/{file}"), escape_source(name)):
            return f"has the source {source[1]!r} of {source[0]!r}, not {name!r} of {file!r}"
        if not _maps_rows(properties, number, start, stop):
            return f"does not take rows {start} to {stop} from {file!r}"
    return None


def _maps_rows(properties: h5py.h5p.PropDCID, number: int, start: int, stop: int) -> bool:
    """Tell whether a source of a virtual dataset, all of it, becomes these rows."""
    target, source = properties.get_virtual_vspace(number), properties.get_virtual_srcspace(number)
    shape = target.get_simple_extent_dims()
    if source.get_select_type() != h5py.h5s.SEL_ALL or stop > shape[0]:
        return False
    first, last = target.get_select_bounds()
    expected = (stop - start) * math.prod(shape[1:])
    bounds = (start, *(0 for _ in shape[1:])), (stop - 1, *(side - 1 for side in shape[1:]))
    return (first, last) == bounds and target.get_select_npoints() == expected


def _holds_references(dataset: h5py.Dataset) -> bool:
    """Tell whether a dataset holds texts of variable length, which are stored elsewhere in the file."""
    kind = dataset.id.get_type()
    return isinstance(kind, h5py.h5t.TypeStringID) and bool(kind.is_variable_str())


def _find_storage_dangers(dataset: h5py.Dataset, properties: h5py.h5p.PropDCID) -> Iterator[str]:
    """Give the reasons for which a dataset is not stored in its file as it declares."""
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
    if any(side > max(1, extent) for side, extent in zip(chunk, dataset.shape, strict=True)):
        yield f"has chunks of {[*chunk]}, larger than itself, {[*dataset.shape]}"
    if reason := _find_filter_danger(list_filters(properties), chunk_bytes):
        yield reason
    count = math.prod(-(-int(extent) // side) for extent, side in zip(dataset.shape, chunk, strict=True))
    # get_num_chunks iterates over all that is declared, so that must first be a number that the file can hold.
    if count > size or stored > size or dataset.id.get_num_chunks() != count:
        yield f"declares {count:,} chunks, and the file does not store them all"


# --- Guards of compressed chunks

_GZIP, _SHUFFLE, _FLETCHER, _LZF = 1, 2, 3, 32000  # the numbers of the HDF5 filters
_COMPRESSORS = (_GZIP, _LZF, BLOSC)
_SMALL_CHUNK_BYTES = 2**18  # gzip can expand bytes 1032 times: larger chunks are first decompressed in steps
_MAX_OVERHEAD = 64  # bytes by which compression may lengthen a chunk


def _find_filter_danger(filters: list[int], chunk_bytes: int) -> str | None:
    """Find a reason for which chunks with these filters must not be decompressed."""
    expected = [_SHUFFLE, *(number for number in _COMPRESSORS if number in filters), _FLETCHER]
    # Any other order could hide from find_chunk_danger what is decompressed.
    if filters != [number for number in expected if number in filters] or len(expected) > 3:
        return f"is packed by the HDF5 filters {filters}, which gradlight does not use so"
    max_bytes = max_chunk_bytes("lzf" if _LZF in filters else None)
    if chunk_bytes > max_bytes:
        return f"has chunks of {chunk_bytes:,} bytes, more than {max_bytes:,}"
    return None


def find_chunk_danger(
    dataset: h5py.Dataset, filters: list[int], chunk_bytes: int, offset: tuple[int, ...]
) -> str | None:
    """Find a reason for which a chunk must not be decompressed.

    HDF5 decompresses as many bytes as the data asks for, without a limit, and only then compares their number with
    the size of the chunk.

    Args:
        dataset: The dataset.
        filters: The numbers of its filters.
        chunk_bytes: The size of a chunk when it is decompressed.
        offset: The indices of the chunk's first element.

    Returns:
        The reason, or None.
    """
    chunk = dataset.id.get_chunk_info_by_coord(offset)
    if chunk.byte_offset is None:
        return f"lacks its chunk at {offset}"
    if chunk.size > chunk_bytes + _MAX_OVERHEAD:
        return f"keeps {chunk.size:,} bytes for its chunk at {offset} of {chunk_bytes:,} bytes"
    wrong_size = False
    if BLOSC in filters and not _is_skipped(chunk.filter_mask, filters, BLOSC):
        packed = dataset.id.read_direct_chunk(offset)[1]
        wrong_size = int.from_bytes(packed[4:8], "little") != chunk_bytes  # the size in blosc's header
    elif _GZIP in filters and chunk_bytes > _SMALL_CHUNK_BYTES and not _is_skipped(chunk.filter_mask, filters, _GZIP):
        wrong_size = _inflates_beyond(dataset.id.read_direct_chunk(offset)[1], chunk_bytes)
    return f"has a chunk at {offset} that unpacks to other than its {chunk_bytes:,} bytes" if wrong_size else None


def _is_skipped(mask: int, filters: list[int], number: int) -> bool:
    """Tell whether a filter is skipped for a chunk, as for one that compression would lengthen."""
    return bool(mask >> filters.index(number) & 1)


def _inflates_beyond(packed: bytes, limit: int) -> bool:
    """Tell whether gzip's bytes decompress to more than a limit, in little memory."""
    stream, total = zlib.decompressobj(), 0
    try:
        while packed and not stream.eof and total <= limit:
            total += len(stream.decompress(packed, _SMALL_CHUNK_BYTES))
            packed = stream.unconsumed_tail
    except zlib.error:
        return False  # damage, which HDF5 detects by the checksum
    return total > limit
