"""How maps are packed in HDF5: the known compressions, and what packed bytes may not do when they are unpacked."""

from __future__ import annotations

import importlib
import zlib
from typing import Any

import h5py

from ..errors import GradlightError, nearest

__all__ = ["chunk_danger", "filters_missing", "largest_chunk", "options", "pipeline", "pipeline_danger"]

_GZIP, _SHUFFLE, _FLETCHER, _LZF, _BLOSC = 1, 2, 3, 32000, 32001
_COMPRESSORS = (_GZIP, _LZF, _BLOSC)

# Checksums (fletcher32) are part of every HDF5 library, so plain h5py reads the file and notices damage.
_OPTIONS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    # four numbers that the filter fills in; level 3, bytes shuffled, zstd
    "blosc": {"compression": _BLOSC, "compression_opts": (0, 0, 0, 0, 3, 1, 5), "fletcher32": True},
    "none": {"fletcher32": True},
}

_LARGEST_CHUNK = 2**26
_LARGEST_LZF = 2**22  # lzf is unpacked into as much memory as its bytes ask for: at most 88 times as much
_SMALL_CHUNK = 2**18  # gzip's bytes may ask for 1032 times as much: more than small chunks are looked through first
_OVERHEAD = 64  # bytes by which packing may lengthen a chunk


def options(compression: str | None) -> dict[str, Any]:
    """Give h5py's options for a compression: "gzip", "lzf", "blosc", "none" or None.

    Raises GradlightError for any other name, and for blosc where its package is not installed.
    """
    name = compression or "none"
    if name not in _OPTIONS:
        near = nearest(str(compression), _OPTIONS)
        raise GradlightError(f"compression is 'gzip', 'lzf', 'blosc', 'none' or None, got {compression!r}.{near}")
    found = _OPTIONS[name]
    if missing := filters_missing([found.get("compression", 0)]):
        raise GradlightError(missing)
    return dict(found)


def largest_chunk(compression: str | None) -> int:
    """Give the bytes that one chunk, and so one map, may have before it is packed."""
    return _LARGEST_LZF if compression == "lzf" else _LARGEST_CHUNK


def filters_missing(filters: list[int]) -> str | None:
    """Make HDF5 know these filters, or say what to install."""
    if _BLOSC in filters and not h5py.h5z.filter_avail(_BLOSC):
        try:
            importlib.import_module("hdf5plugin")  # which registers it
        except ImportError:
            return 'blosc needs the package hdf5plugin, which is not installed: pip install "gradlight[blosc]"'
    return None


def pipeline(properties: h5py.h5p.PropDCID) -> list[int]:
    """Give the numbers of the filters of a dataset, in the order in which they pack."""
    return [properties.get_filter(number)[0] for number in range(properties.get_nfilters())]


def pipeline_danger(filters: list[int], chunk_bytes: int) -> str | None:
    """Say why chunks that are packed so must not be unpacked, or None."""
    expected = [_SHUFFLE, *(number for number in _COMPRESSORS if number in filters), _FLETCHER]
    # Any other order could hide from chunk_danger what is unpacked.
    if filters != [number for number in expected if number in filters] or len(expected) > 3:
        return f"is packed by the HDF5 filters {filters}, which gradlight does not use so"
    largest = _LARGEST_LZF if _LZF in filters else _LARGEST_CHUNK
    if chunk_bytes > largest:
        return f"has chunks of {chunk_bytes:,} bytes, more than {largest:,}"
    return None


def chunk_danger(dataset: h5py.Dataset, filters: list[int], chunk_bytes: int, place: tuple[int, ...]) -> str | None:
    """Say why the chunk at this place must not be unpacked, or None.

    HDF5 unpacks whatever the bytes ask for, without a limit, and only then compares it with the chunk's size.
    """
    found = dataset.id.get_chunk_info_by_coord(place)
    if found.byte_offset is None:
        return f"lacks its chunk at {place}"
    if found.size > chunk_bytes + _OVERHEAD:
        return f"keeps {found.size:,} bytes for its chunk at {place} of {chunk_bytes:,} bytes"
    longer = False
    if _BLOSC in filters and not _skipped(found.filter_mask, filters, _BLOSC):
        packed = dataset.id.read_direct_chunk(place)[1]
        longer = int.from_bytes(packed[4:8], "little") != chunk_bytes  # as its header says
    elif _GZIP in filters and chunk_bytes > _SMALL_CHUNK and not _skipped(found.filter_mask, filters, _GZIP):
        longer = _inflates_beyond(dataset.id.read_direct_chunk(place)[1], chunk_bytes)
    return f"has a chunk at {place} that unpacks to other than its {chunk_bytes:,} bytes" if longer else None


def _skipped(mask: int, filters: list[int], number: int) -> bool:
    # What packing would lengthen is stored as it is.
    return bool(mask >> filters.index(number) & 1)


def _inflates_beyond(packed: bytes, limit: int) -> bool:
    stream, total = zlib.decompressobj(), 0
    try:
        while packed and not stream.eof and total <= limit:
            total += len(stream.decompress(packed, _SMALL_CHUNK))
            packed = stream.unconsumed_tail
    except zlib.error:
        return False  # damage, which HDF5 tells from the checksum
    return total > limit
