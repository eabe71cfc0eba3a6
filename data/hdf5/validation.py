"""Checking an open HDF5 file against the format: whose it is, which version, and whether its parts agree."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator

import h5py
import numpy as np

from .safety import attribute, map_datasets, shard_list
from .schema import FORMAT, MAP_DTYPES, TABLES, VERSION, location

__all__ = ["foreign", "is_ours", "problems", "summary", "view_problems"]

_JSON_ATTRIBUTES = {"model": (dict,), "objective": (dict,), "meta": (dict, type(None))}
_TEXT_ATTRIBUTES = ("gradlight_version", "weights_sha256")
_MOST = 100  # sentences about the rows of one column


def is_ours(file: h5py.File) -> bool:
    """Tell whether an open HDF5 file holds gradlight's maps, of any version."""
    found = attribute(file, "format")
    return isinstance(found, str) and found == FORMAT


def foreign(file: h5py.File) -> str | None:
    """Say why an open HDF5 file is not one that this version reads, or None where it is."""
    if not is_ours(file):
        return f"an HDF5 file of another program (its attribute 'format' is not {FORMAT!r})"
    version = attribute(file, "format_version")
    if not _is_integer(version) or version < 1:
        return f"its format_version is {version!r}, not a whole number from 1: the file is damaged"
    if version > VERSION:
        return f"its format_version is {version}, and this gradlight reads up to {VERSION}: upgrade gradlight"
    return None


def problems(file: h5py.File) -> list[str]:
    """List what is wrong in an open file of this format, one sentence each; an empty list means it is sound.

    Looks at names, kinds, counts and references, not at the views nor at the values of the maps. A file that others
    may have made must have passed `guards.danger` before.
    """
    found = [*_attribute_problems(file)]
    for name in TABLES:
        found += _table_problems(file, name)
    if not isinstance(file.get("maps"), h5py.Group):
        found.append("the group /maps is missing")
    # What follows compares the parts with one another, so they must be there.
    return found or [*_row_problems(file), *_map_problems(file), *_scale_problems(file)]


def view_problems(views: Iterable[bytes], first: int = 0) -> Iterator[str]:
    """Say which rows of /images/view, from the row first, are not the JSON of an object."""
    for row, view in enumerate(views, first):
        if not _is_json(view.decode("utf-8", "surrogateescape"), (dict,)):
            yield f"/images/view of row {row} is not the JSON of an object"


def summary(wrong: list[str]) -> str:
    """Put problems into one line."""
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more


def _attribute_problems(file: h5py.File) -> Iterator[str]:
    for name in _TEXT_ATTRIBUTES:
        if not isinstance(attribute(file, name), str):
            yield f"the attribute '{name}' is missing or not a text"
    for name, kinds in _JSON_ATTRIBUTES.items():
        if not _is_json(attribute(file, name), kinds):
            yield f"the attribute '{name}' is missing or not the JSON of an object"
    if not isinstance(attribute(file, "complete"), bool | np.bool_):
        yield "the attribute 'complete' is missing or not a truth value"
    pixels = np.asarray(attribute(file, "pixels"))
    if pixels.shape != (2,) or pixels.dtype.kind not in "iu" or pixels.min() < 1:
        yield "the attribute 'pixels' is missing or not a height and a width"


def _table_problems(file: h5py.File, name: str) -> Iterator[str]:
    table = file.get(name)
    if not isinstance(table, h5py.Group):
        yield f"the group /{name} is missing"
        return
    lengths = set()
    for column, kind in TABLES[name].items():
        dataset = table.get(column)
        if not isinstance(dataset, h5py.Dataset) or dataset.shape is None or len(dataset.shape) != 1:
            yield f"the column /{name}/{column} is missing or not one-dimensional"
        elif not _is_kind(dataset.dtype, kind):
            yield f"the column /{name}/{column} holds {dataset.dtype}, not {kind}"
        else:
            lengths.add(len(dataset))
    if len(lengths) > 1:
        yield f"the columns of /{name} differ in length: {sorted(lengths)}"


def _row_problems(file: h5py.File) -> Iterator[str]:
    images, targets = file["images"], file["targets"]
    count = len(images["path"])
    for name in ("width", "height"):
        sides = images[name][:]
        for row in np.flatnonzero(sides < 1)[:_MOST]:
            yield f"/images/{name} of row {row} is {sides[row]}, less than 1"
    indexes = targets["image"][:]
    for row in np.flatnonzero((indexes < 0) | (indexes >= count))[:_MOST]:
        yield f"/targets/image of row {row} is {indexes[row]}, but there are {count} images"
    if shards := shard_list(attribute(file, "shards")):
        for position, table in enumerate(TABLES, 1):
            named = sum(int(shard[position]) for shard in shards.files)
            if named != (found := len(next(iter(file[table].values())))):
                yield f"/{table} has {found} rows, but its shards have {named}"


def _map_problems(file: h5py.File) -> Iterator[str]:
    rows = len(file["targets"]["image"])
    for method, group in file["maps"].items():
        if not isinstance(group, h5py.Group):
            yield f"/maps/{method} is not a group"
            continue
        for layer, dataset in group.items():
            where = f"/maps/{method}/{layer}"
            if not isinstance(dataset, h5py.Dataset):
                yield f"{where} is not a dataset"
                continue
            if dataset.dtype not in MAP_DTYPES:
                yield f"{where} holds {dataset.dtype}, not {' or '.join(map(str, MAP_DTYPES))}"
            if dataset.shape is None or len(dataset.shape) != 3 or dataset.shape[0] != rows or 0 in dataset.shape[1:]:
                yield f"{where} has the shape {dataset.shape}, not [{rows},h,w] for {rows} targets"
            yield from _layer_problems(where, (method, layer), dataset)


def _layer_problems(where: str, names: tuple[str, str], dataset: h5py.Dataset) -> Iterator[str]:
    for key, name in zip(("method", "layer"), names, strict=True):
        if (found := attribute(dataset, key)) is None or not isinstance(found, str) or found != name:
            yield f"the attribute '{key}' of {where} is {found!r}, not {name!r}"
    if not _is_integer(attribute(dataset, "depth")):
        yield f"the attribute 'depth' of {where} is missing or not a whole number"
    stride = np.asarray(attribute(dataset, "stride"))
    if stride.shape != (2,) or stride.dtype.kind not in "iuf" or not all(0 < side < math.inf for side in stride):
        yield f"the attribute 'stride' of {where} is missing or not two positive numbers"


def _scale_problems(file: h5py.File) -> Iterator[str]:
    rows = len(file["targets"]["image"])
    scales = dict(map_datasets(file, "scale"))
    for key, dataset in map_datasets(file, "maps"):
        scale, where = scales.pop(key, None), location("scale", key)
        if dataset.dtype != np.float16:
            if scale is not None:
                yield f"{where} is there, although the maps are not float16"
        elif scale is None or scale.dtype != np.float32 or scale.shape != (rows,):
            yield f"{where} is missing or not one float32 for each of {rows} maps of float16"
    for key in scales:
        yield f"{location('scale', key)} has no maps"


def _is_integer(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_json(text: object, kinds: tuple[type, ...]) -> bool:
    try:
        return isinstance(text, str) and isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False


def _is_kind(dtype: np.dtype, kind: str) -> bool:
    if kind in ("text", "json"):
        return h5py.check_string_dtype(dtype) is not None
    return dtype.kind in {"integer": "iu", "number": "f"}[kind]
