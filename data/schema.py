"""The rules of the HDF5 format for saliency maps, version 1: names, columns, attributes, and what must agree.

    /            attrs: format, format_version, gradlight_version, model, weights_sha256, objective, meta, pixels,
                 complete
    /images/     path, sha256, width, height, view            one row per image
    /targets/    image (a row of /images), kind, index, label, score     one row per map
    /maps/METHOD/LAYER   [M,h,w] float32, attrs: method, layer, depth, stride
    /failures/   path, reason

model, objective and meta are JSON texts, and so is every row of view. pixels is the height and width of what the
network saw. Texts are UTF-8; bytes of a path that are not come back as Python's surrogate escapes.
"""

from __future__ import annotations

import json
import operator
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np

from ..errors import GradlightError

__all__ = [
    "COLUMN_DTYPES",
    "FORMAT",
    "INPUT",
    "MAP_DTYPES",
    "TABLES",
    "VERSION",
    "Failure",
    "ImageRow",
    "LayerRow",
    "StoredMaps",
    "TargetRow",
    "as_cell",
    "as_json",
    "stored_array",
    "stored_key",
    "texts",
]

FORMAT = "gradlight-maps"
VERSION = 1
INPUT = "input"  # the stored name of the layer '', the pixels themselves
MAP_DTYPES = (np.dtype("float32"),)  # how the numbers of a map may be stored

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


def stored_key(key: tuple[str, str]) -> tuple[str, str]:
    """Give the (method, layer) names under which maps are stored; raises GradlightError for names HDF5 cannot hold."""
    method, layer = key[0], key[1] or INPUT
    for kind, name in (("method", method), ("layer", layer)):
        if not name or name == "." or "/" in name or not name.isprintable():
            raise GradlightError(f"the {kind} name {name!r} cannot be stored: it must be printable, without '/'")
    return method, layer


def stored_array(key: tuple[str, str], array: np.ndarray) -> np.ndarray:
    """Give maps as they are stored, float32 [M,h,w]; raises GradlightError for another shape and for NaN."""
    method, layer = key
    where = f"the maps of method {method!r} at layer {layer!r}"
    given = np.asarray(array)
    if given.ndim != 3 or 0 in given.shape[1:] or given.dtype.kind not in "fiu":
        raise GradlightError(f"{where} must be real numbers [M,h,w], got {given.dtype} {[*given.shape]}")
    with np.errstate(over="ignore"):
        values = given.astype(np.float32, copy=False)
    broken = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2)))
    if broken.size:
        raise GradlightError(
            f"{where} are not finite in float32 (NaN or infinite) in {broken.size} of {len(values)} rows, "
            f"the first is row {broken[0]}: leave that image out and name it in failures"
        )
    return values


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


def texts(column: h5py.Dataset) -> list[str]:
    """Read a text column; bytes that are not UTF-8 become surrogate escapes."""
    return [str(text) for text in column.asstr(errors="surrogateescape")[:]]
