"""The HDF5 format of saliency maps, version 1: its names, columns, attributes, encodings and compressions.

    /            attrs: format, format_version, gradlight_version, model, weights_sha256, objective, meta, pixels,
                 complete; an index also has shards
    /images/     path, sha256, width, height, view            one row per image
    /targets/    image (a row of /images), kind, index, label, score     one row per map
    /maps/METHOD/LAYER   [M,h,w] float32 or float16, attrs: method, layer, depth, stride; extent where the
                         grid covers only a part of the pixels, or more: (top, left, bottom, right)
    /scale/METHOD/LAYER  [M] float32, beside float16 only: a map is its stored numbers times its scale
    /failures/   path, reason

model, objective and meta are JSON texts, and so is every row of view. pixels is the height and width of the network's
input. Texts are UTF-8; bytes of a path that are not valid UTF-8 are read as Python's surrogate escapes. Columns are
contiguous. The end of the file may be followed by a seal (see `gradlight.files`), which HDF5 ignores.

An index contains the tables of all its shards, and as /maps (and /scale) virtual datasets over theirs, row after row.
shards is the JSON of {"folder": "maps.shards", "files": [["shard-00000.h5", images, targets, failures], ...]}, with
the numbers of rows; the folder is beside the index. Every shard is itself a complete file of this format.
"""

from __future__ import annotations

import importlib
import json
import operator
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np

from ...errors import GradlightError, nearest

__all__ = [
    "BLOSC",
    "COLUMN_DTYPES",
    "FORMAT",
    "INPUT",
    "MAP_DTYPES",
    "MAX_MAP_BYTES",
    "TABLES",
    "VERSION",
    "Columns",
    "Failure",
    "Header",
    "ImageRow",
    "Key",
    "LayerRow",
    "ShardList",
    "StoredMaps",
    "StoredShard",
    "TargetRow",
    "dataset_path",
    "encode_cell",
    "encode_json",
    "escape_source",
    "find_missing_filter",
    "format_key",
    "max_chunk_bytes",
    "options",
    "parse_shard_list",
    "to_float16",
    "to_stored_array",
    "to_stored_key",
]

FORMAT = "gradlight-maps"
VERSION = 1
INPUT = "input"  # the stored name of the layer '', the pixels themselves
MAP_DTYPES = (np.dtype("float32"), np.dtype("float16"))  # the dtypes in which maps may be stored
MAX_MAP_BYTES = 2**26  # of one map, 4096 x 4096 in float32

Key = tuple[str, str]
"""(method, layer)."""
Columns = Mapping[str, Mapping[str, np.ndarray]]
"""Table → column → its rows; texts as bytes."""

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


# --- Rows and header


@dataclass(frozen=True)
class ImageRow:
    """One image.

    Attributes:
        path: The image file.
        sha256: The SHA-256 of the file.
        width: The width of the upright image.
        height: The height of the upright image.
        view: Which pixels of the image the network's input shows, as plain data.
    """

    path: str
    sha256: str
    width: int
    height: int
    view: dict[str, Any]


@dataclass(frozen=True)
class TargetRow:
    """The target of one map.

    Attributes:
        image: The row of its image.
        kind: The kind of target, such as "class".
        index: The index of the class or word.
        label: The name of the target.
        score: The score that the network gave it.
    """

    image: int
    kind: str
    index: int
    label: str
    score: float


@dataclass(frozen=True)
class LayerRow:
    """The origin of the maps of one dataset.

    Attributes:
        method: The name of the method.
        layer: The name of the layer.
        depth: The position of the layer in the network.
        stride: (vertical, horizontal), in pixels of the network's input.
        extent: (top, left, bottom, right) of the grid in these pixels; None where it covers them all.
    """

    method: str
    layer: str
    depth: int
    stride: tuple[float, float]
    extent: tuple[float, float, float, float] | None = None


class Failure(NamedTuple):
    """An image file without maps, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Header:
    """The properties of all maps of a file: model, objective, meta step, and how they were computed."""

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
            **{name: encode_json(name, getattr(self, name)) for name in ("model", "objective", "meta")},
            "pixels": np.array([encode_cell("integer", "pixels", side) for side in self.pixels]),
            "complete": bool(self.complete),
        }


@dataclass
class StoredMaps:
    """The complete content of a file of maps.

    Attributes:
        model: The model, as plain JSON data.
        weights_sha256: The SHA-256 of its weights.
        objective: The objective, as plain JSON data.
        meta: The meta step, as plain JSON data, or None.
        images: One row per image.
        targets: One row per map.
        maps: (method, layer) → [M,h,w], one map per row of targets, not normalised.
        layers: (method, layer) → the origin of its maps; the same keys as in maps.
        failures: (path, reason) of every image without maps.
        complete: Whether every image of the run is in the file, among images or failures.
        gradlight_version: The version that computed the maps.
        pixels: (height, width) of the network's input.
    """

    model: dict[str, Any]
    weights_sha256: str
    objective: dict[str, Any]
    meta: dict[str, Any] | None
    images: list[ImageRow]
    targets: list[TargetRow]
    maps: dict[Key, np.ndarray]
    layers: dict[Key, LayerRow]
    failures: list[tuple[str, str]]
    complete: bool
    gradlight_version: str
    pixels: tuple[int, int]

    @property
    def header(self) -> Header:
        """The properties of all maps."""
        origin = (self.model, self.weights_sha256, self.objective, self.meta)
        return Header(*origin, self.pixels, self.gradlight_version, self.complete)


# --- Encoding


def to_stored_key(key: Key) -> Key:
    """Convert a key to the names under which its maps are stored.

    Raises:
        GradlightError: HDF5 cannot store a name.

    Example:
        >>> to_stored_key(("normgrad", ""))
        ('normgrad', 'input')
    """
    method, layer = key[0], key[1] or INPUT
    for kind, name in (("method", method), ("layer", layer)):
        if not name or name == "." or "/" in name or not name.isprintable():
            raise GradlightError(f"the {kind} name {name!r} cannot be stored: it must be printable, without '/'")
    return method, layer


def to_stored_array(key: Key, array: np.ndarray) -> np.ndarray:
    """Convert maps to float32 [M,h,w].

    Raises:
        GradlightError: The maps have another shape, are larger than 4096 x 4096, or are not finite.

    Example:
        >>> to_stored_array(("normgrad", "layer4"), np.zeros((2, 7, 7))).dtype
        dtype('float32')
    """
    where = f"the maps of {format_key(key)}"
    numbers = np.asarray(array)
    if numbers.ndim != 3 or 0 in numbers.shape[1:] or numbers.dtype.kind not in "fiu":
        raise GradlightError(f"{where} must be real numbers [M,h,w], got {numbers.dtype} {[*numbers.shape]}")
    if numbers.shape[1] * numbers.shape[2] * 4 > MAX_MAP_BYTES:
        raise GradlightError(
            f"{where} are {numbers.shape[1]}x{numbers.shape[2]}, larger than 4096x4096: make them smaller"
        )
    with np.errstate(over="ignore"):
        values = numbers.astype(np.float32, copy=False)
    broken = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
    if broken.size:
        raise GradlightError(
            f"{where} are not finite in float32 (NaN or infinite) in {broken.size} of {len(values)} rows, "
            f"the first is row {broken[0]}: leave that image out and name it in failures"
        )
    return values


def to_float16(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split float32 maps [M,h,w] into float16 maps, whose largest magnitude is 1, and their scales, float32 [M].

    The scale of a map of zeros is 1. Numbers are restored within 2^-12 of their map's largest magnitude.

    Example:
        >>> halves, scale = to_float16(np.array([[[1.0, -4.0]]], np.float32))
        >>> halves.tolist(), scale.tolist()
        ([[[0.25, -1.0]]], [4.0])
    """
    scale = np.abs(values).max(axis=(1, 2), initial=0).astype(np.float32)
    scale[scale == 0] = 1
    return (values / scale[:, None, None]).astype(np.float16), scale


def encode_cell(kind: str, where: str, value: Any) -> bytes | int | float:
    """Encode one value of a column or attribute.

    Args:
        kind: A key of COLUMN_DTYPES.
        where: The name of the column or attribute, for the error message.
        value: The value.

    Raises:
        GradlightError: The value cannot be stored.

    Example:
        >>> encode_cell("text", "images/path", "cat.jpg"), encode_cell("json", "images/view", {"a": 1})
        (b'cat.jpg', b'{"a": 1}')
    """
    try:
        if kind == "integer":
            return int(np.int64(operator.index(value)))
        if kind == "number":
            return float(value)
        text = encode_json(where, value) if kind == "json" else value
        if "\0" in text:
            raise ValueError("a text with a zero character")
        return bytes(text.encode("utf-8", "surrogateescape"))
    except GradlightError:
        raise
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise GradlightError(f"{where} cannot be stored as {kind}: {value!r} ({error})") from error


def encode_json(where: str, value: Any) -> str:
    """Encode plain data as JSON in ASCII; raises GradlightError, naming where, for what JSON cannot hold."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise GradlightError(f"{where} cannot be stored as JSON: {error}") from error


def dataset_path(top: str, key: Key) -> str:
    """Give the path of a dataset in the file; top is "maps" or "scale"."""
    return f"/{top}/{key[0]}/{key[1]}"


def format_key(key: Key) -> str:
    """Format a method and a layer for a message."""
    return f"method {key[0]!r} at layer {key[1]!r}"


# --- Compression

BLOSC = 32001  # the number of the HDF5 filter
_MAX_CHUNK_BYTES = 2**26
_MAX_LZF_CHUNK_BYTES = 2**22  # lzf allocates as much memory as its bytes ask for: at most 88 times their number

# Checksums (fletcher32) are part of every HDF5 library, so plain h5py reads the file and detects damage.
_OPTIONS: dict[str, dict[str, Any]] = {
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    # Four numbers that the filter fills in; then level 3, bytes shuffled, zstd.
    "blosc": {"compression": BLOSC, "compression_opts": (0, 0, 0, 0, 3, 1, 5), "fletcher32": True},
    "none": {"fletcher32": True},
}


def options(compression: str | None) -> dict[str, Any]:
    """Give h5py's options for a compression.

    Args:
        compression: "gzip", "lzf", "blosc", "none" or None.

    Returns:
        Keywords of h5py's `create_dataset`.

    Raises:
        GradlightError: The name is unknown, or the package of blosc is not installed.

    Example:
        >>> options(None)
        {'fletcher32': True}
    """
    name = compression or "none"
    if name not in _OPTIONS:
        near = nearest(str(compression), _OPTIONS)
        raise GradlightError(f"compression is 'gzip', 'lzf', 'blosc', 'none' or None, got {compression!r}.{near}")
    keywords = _OPTIONS[name]
    if missing := find_missing_filter([keywords.get("compression", 0)]):
        raise GradlightError(missing)
    return dict(keywords)


def max_chunk_bytes(compression: str | None) -> int:
    """Give the largest size of a chunk, and so of a map, before compression."""
    return _MAX_LZF_CHUNK_BYTES if compression == "lzf" else _MAX_CHUNK_BYTES


def find_missing_filter(filters: list[int]) -> str | None:
    """Load the plugins of these filters; returns what to install where one is missing, or None."""
    if BLOSC in filters and not h5py.h5z.filter_avail(BLOSC):
        try:
            importlib.import_module("hdf5plugin")  # which registers it
        except ImportError:
            return 'blosc needs the package hdf5plugin, which is not installed: pip install "gradlight[blosc]"'
    return None


# --- Shards of an index

_FOLDER_NAME = re.compile(r"[^/\\\0]*\.shards")
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.h5")


class StoredShard(NamedTuple):
    """A shard: its file name and the numbers of its rows."""

    name: str
    images: int
    targets: int
    failures: int


class ShardList(NamedTuple):
    """The shards of an index: the folder beside it, and the files in the order of their rows."""

    folder: str
    files: tuple[StoredShard, ...]

    def is_plain(self) -> bool:
        """Tell whether all names are unique plain names, which lead to no other folder, and all counts are valid."""
        counts = [count for shard in self.files for count in shard[1:]]
        return (
            bool(_FOLDER_NAME.fullmatch(self.folder))
            and not any(0xD800 <= ord(letter) < 0xE000 for letter in self.folder)  # HDF5 would not find it again
            and all(_FILE_NAME.fullmatch(shard.name) for shard in self.files)
            and len({shard.name for shard in self.files}) == len(self.files)
            and all(type(count) is int and 0 <= count < 2**40 for count in counts)
        )

    def spans(self) -> list[tuple[str, int, int]]:
        """Give (name, first row, end row) of the maps of each shard that has any."""
        spans, start = [], 0
        for shard in self.files:
            if shard.targets:
                spans.append((shard.name, start, start + shard.targets))
            start += shard.targets
        return spans


def parse_shard_list(text: object) -> ShardList | None:
    """Parse the attribute 'shards' of an index; returns None for anything but a valid list of shards."""
    if not isinstance(text, str):
        return None
    try:
        document = json.loads(text)
        shards = ShardList(document["folder"], tuple(StoredShard(*shard) for shard in document["files"]))
        return shards if shards.is_plain() else None
    except (TypeError, ValueError, KeyError, RecursionError):
        return None


def escape_source(name: str) -> str:
    """Escape a name for the source of a virtual dataset, where % would begin a pattern."""
    return name.replace("%", "%%")
