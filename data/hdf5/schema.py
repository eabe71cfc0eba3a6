"""The rules of the HDF5 format for saliency maps, version 1: names, columns, attributes, and what must agree.

    /            attrs: format, format_version, gradlight_version, model, weights_sha256, objective, meta, pixels,
                 complete; an index also has shards
    /images/     path, sha256, width, height, view            one row per image
    /targets/    image (a row of /images), kind, index, label, score     one row per map
    /maps/METHOD/LAYER   [M,h,w] float32 or float16, attrs: method, layer, depth, stride
    /scale/METHOD/LAYER  [M] float32, beside float16 only: a map is its stored numbers times its scale
    /failures/   path, reason

model, objective and meta are JSON texts, and so is every row of view. pixels is the height and width of what the
network saw. Texts are UTF-8; bytes of a path that are not come back as Python's surrogate escapes. Columns are
contiguous. Behind the end of the file may stand its seal (see `seal`), which HDF5 does not mind.

An index holds the tables of all its shards, and as /maps (and /scale) virtual datasets over theirs, row after row.
shards is the JSON of {"folder": "maps.shards", "files": [["shard-00000.h5", images, targets, failures], ...]}, with
the numbers of rows; the folder lies beside the index. Every shard is itself a whole file of this format.

How maps are packed in HDF5: the known compressions, and what packed bytes may not do when they are unpacked.
"""

from __future__ import annotations

import importlib
import json
import operator
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np

from ...errors import GradlightError, nearest

__all__ = [
    "COLUMN_DTYPES",
    "FORMAT",
    "INPUT",
    "LARGEST_MAP",
    "MAP_DTYPES",
    "TABLES",
    "VERSION",
    "Columns",
    "Failure",
    "Header",
    "ImageRow",
    "LayerRow",
    "StoredMaps",
    "TargetRow",
    "as_cell",
    "as_json",
    "chunk_danger",
    "filters_missing",
    "format_key",
    "halved",
    "largest_chunk",
    "location",
    "options",
    "pipeline",
    "pipeline_danger",
    "stored_array",
    "stored_key",
]

FORMAT = "gradlight-maps"
VERSION = 1
INPUT = "input"  # the stored name of the layer '', the pixels themselves
MAP_DTYPES = (np.dtype("float32"), np.dtype("float16"))  # how the numbers of a map may be stored
LARGEST_MAP = 2**26  # bytes of one map, 4096 x 4096 in float32

Columns = Mapping[str, Mapping[str, np.ndarray]]  # table -> column -> its rows; texts as bytes

TABLES = {
    "images": {"path": "text", "sha256": "text", "width": "integer", "height": "integer", "view": "json"},
    "targets": {"image": "integer", "kind": "text", "index": "integer", "label": "text", "score": "number"},
    "failures": {"path": "text", "reason": "text"},
}

COLUMN_DTYPES = {
    "text": h5py.string_dtype(),
    "json": h5py.string_dtype(),
    "integer": np.dtype(np.int64),
    "number": np.dtype(np.float64),
}


@dataclass(frozen=True)
class ImageRow:
    """Describe one image: its file, the file's SHA-256, its upright size, and its view as plain data."""

    path: str
    sha256: str
    width: int
    height: int
    view: dict[str, Any]


@dataclass(frozen=True)
class TargetRow:
    """Describe what one map asks about: the row of its image, the target, and the score it got."""

    image: int
    kind: str
    index: int
    label: str
    score: float


@dataclass(frozen=True)
class LayerRow:
    """Describe where the maps of one dataset come from; stride is (vertical, horizontal), in pixels."""

    method: str
    layer: str
    depth: int
    stride: tuple[float, float]


class Failure(NamedTuple):
    """Name a file that gave no map, and say why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Header:
    """Hold what a file says about all its maps: the model, the objective, the meta step, and how it was made."""

    model: dict[str, Any]
    weights_sha256: str
    objective: dict[str, Any]
    meta: dict[str, Any] | None
    pixels: tuple[int, int]
    gradlight_version: str
    complete: bool

    def attributes(self) -> dict[str, Any]:
        """Give the attributes of the file's root as they are stored; raises GradlightError for what cannot be."""
        return {
            "gradlight_version": self.gradlight_version,
            "weights_sha256": self.weights_sha256,
            **{name: as_json(name, getattr(self, name)) for name in ("model", "objective", "meta")},
            "pixels": np.array([as_cell("integer", "pixels", side) for side in self.pixels]),
            "complete": bool(self.complete),
        }


@dataclass
class StoredMaps:
    """Hold what one file holds.

    maps: (method, layer) -> [M,h,w], one map per row of targets, not normalised; layers has the same keys.
    pixels is (height, width) of what the network saw; model, objective, meta and every view are plain JSON data.
    """

    model: dict[str, Any]
    weights_sha256: str
    objective: dict[str, Any]
    meta: dict[str, Any] | None
    images: list[ImageRow]
    targets: list[TargetRow]
    maps: dict[tuple[str, str], np.ndarray]
    layers: dict[tuple[str, str], LayerRow]
    failures: list[tuple[str, str]]
    complete: bool
    gradlight_version: str
    pixels: tuple[int, int]

    @property
    def header(self) -> Header:
        """Give what is said about all the maps."""
        about = (self.model, self.weights_sha256, self.objective, self.meta)
        return Header(*about, self.pixels, self.gradlight_version, self.complete)


def stored_key(key: tuple[str, str]) -> tuple[str, str]:
    """Give the (method, layer) names under which maps are stored; raises GradlightError for names HDF5 cannot hold."""
    method, layer = key[0], key[1] or INPUT
    for kind, name in (("method", method), ("layer", layer)):
        if not name or name == "." or "/" in name or not name.isprintable():
            raise GradlightError(f"the {kind} name {name!r} cannot be stored: it must be printable, without '/'")
    return method, layer


def stored_array(key: tuple[str, str], array: np.ndarray) -> np.ndarray:
    """Give maps as float32 [M,h,w]; raises GradlightError for another shape, for NaN, and for maps of absurd size."""
    where = f"the maps of {format_key(key)}"
    given = np.asarray(array)
    if given.ndim != 3 or 0 in given.shape[1:] or given.dtype.kind not in "fiu":
        raise GradlightError(f"{where} must be real numbers [M,h,w], got {given.dtype} {[*given.shape]}")
    if given.shape[1] * given.shape[2] * 4 > LARGEST_MAP:
        raise GradlightError(f"{where} are {given.shape[1]}x{given.shape[2]}, larger than 4096x4096: make them smaller")
    with np.errstate(over="ignore"):
        values = given.astype(np.float32, copy=False)
    broken = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
    if broken.size:
        raise GradlightError(
            f"{where} are not finite in float32 (NaN or infinite) in {broken.size} of {len(values)} rows, "
            f"the first is row {broken[0]}: leave that image out and name it in failures"
        )
    return values


def halved(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split float32 maps [M,h,w] into float16 ones of the largest magnitude 1 and their scales, float32 [M].

    The scale of a map of zeros is 1. Numbers return within 2^-12 of their map's largest magnitude.
    """
    scale = np.abs(values).max(axis=(1, 2), initial=0).astype(np.float32)
    scale[scale == 0] = 1
    return (values / scale[:, None, None]).astype(np.float16), scale


def location(top: str, key: tuple[str, str]) -> str:
    """Give the place of a dataset in the file; top is "maps" or "scale"."""
    return f"/{top}/{key[0]}/{key[1]}"


def format_key(key: tuple[str, str]) -> str:
    """Name a method and a layer in a message."""
    return f"method {key[0]!r} at layer {key[1]!r}"


def as_cell(kind: str, where: str, value: Any) -> bytes | int | float:
    """Give one value as a column of this kind stores it; raises GradlightError, naming the place."""
    try:
        if kind == "integer":
            return int(np.int64(operator.index(value)))
        if kind == "number":
            return float(value)
        text = as_json(where, value) if kind == "json" else value
        if "\0" in text:
            raise ValueError("a text with a zero character")
        return bytes(text.encode("utf-8", "surrogateescape"))
    except GradlightError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise GradlightError(f"{where} cannot be stored as {kind}: {value!r} ({error})") from error


def as_json(where: str, value: Any) -> str:
    """Give plain data as JSON, in ASCII; raises GradlightError, naming the place, for what JSON cannot hold."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GradlightError(f"{where} cannot be stored as JSON: {error}") from error


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
