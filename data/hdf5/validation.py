"""Validation of an open HDF5 file against the format: whether its parts are complete and consistent."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from .safety import is_integer, map_datasets, read_attribute
from .schema import MAP_DTYPES, TABLES, dataset_path, parse_shard_list

__all__ = ["find_problems", "find_view_problems", "format_problems"]

_JSON_ATTRIBUTES = {"model": (dict,), "objective": (dict,), "meta": (dict, type(None))}
_TEXT_ATTRIBUTES = ("gradlight_version", "weights_sha256")
_MAX_ROWS = 100  # of one column that are reported


def find_problems(file: h5py.File) -> list[str]:
    """Find what is wrong in an open file of this format.

    Names, dtypes, counts and references are checked, but neither the views nor the values of the maps. A file from
    elsewhere must have passed `safety.find_danger` before.

    Args:
        file: The open file.

    Returns:
        One sentence per problem; none where the file is valid.
    """
    problems = [*_attribute_problems(file)]
    for name in TABLES:
        problems += _table_problems(file, name)
    if not isinstance(file.get("maps"), h5py.Group):
        problems.append("the group /maps is missing")
    # The checks that follow compare the parts with one another, so all parts must exist.
    return problems or [*_row_problems(file), *_map_problems(file), *_scale_problems(file)]


def find_view_problems(views: Iterable[bytes], first: int = 0) -> Iterator[str]:
    """Find the rows of /images/view that are not the JSON of an object.

    Args:
        views: The rows.
        first: The number of the first one.

    Yields:
        One sentence per row that is not.

    Example:
        >>> list(find_view_problems([b"{}", b"[]"]))
        ['/images/view of row 1 is not the JSON of an object']
    """
    for row, view in enumerate(views, first):
        if not _is_json(view.decode("utf-8", "surrogateescape"), (dict,)):
            yield f"/images/view of row {row} is not the JSON of an object"


def format_problems(problems: list[str]) -> str:
    """Format problems in one line.

    Example:
        >>> format_problems(["a", "b", "c", "d", "e"])
        'a; b; c; and 2 more'
    """
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def _attribute_problems(file: h5py.File) -> Iterator[str]:
    """Check the attributes of the root."""
    for name in _TEXT_ATTRIBUTES:
        if not isinstance(read_attribute(file, name), str):
            yield f"the attribute '{name}' is missing or not a text"
    for name, kinds in _JSON_ATTRIBUTES.items():
        if not _is_json(read_attribute(file, name), kinds):
            yield f"the attribute '{name}' is missing or not the JSON of an object"
    if not isinstance(read_attribute(file, "complete"), bool | np.bool_):
        yield "the attribute 'complete' is missing or not a truth value"
    pixels = np.asarray(read_attribute(file, "pixels"))
    if pixels.shape != (2,) or pixels.dtype.kind not in "iu" or pixels.min() < 1:
        yield "the attribute 'pixels' is missing or not a height and a width"


def _table_problems(file: h5py.File, name: str) -> Iterator[str]:
    """Check that a table has all columns, of the right dtypes and the same length."""
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
    """Check the sizes of images, the references of targets to images, and the counts of shards."""
    images, targets = file["images"], file["targets"]
    count = len(images["path"])
    for name in ("width", "height"):
        sides = images[name][:]
        for row in np.flatnonzero(sides < 1)[:_MAX_ROWS]:
            yield f"/images/{name} of row {row} is {sides[row]}, less than 1"
    indexes = targets["image"][:]
    for row in np.flatnonzero((indexes < 0) | (indexes >= count))[:_MAX_ROWS]:
        yield f"/targets/image of row {row} is {indexes[row]}, but there are {count} images"
    if shards := parse_shard_list(read_attribute(file, "shards")):
        for position, table in enumerate(TABLES, 1):
            expected = sum(int(shard[position]) for shard in shards.files)
            if expected != (count := len(next(iter(file[table].values())))):
                yield f"/{table} has {count} rows, but its shards have {expected}"


def _map_problems(file: h5py.File) -> Iterator[str]:
    """Check the dtypes, shapes and attributes of all maps."""
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
    """Check the attributes of a dataset of maps."""
    for key, name in zip(("method", "layer"), names, strict=True):
        if not isinstance(value := read_attribute(dataset, key), str) or value != name:
            yield f"the attribute '{key}' of {where} is {value!r}, not {name!r}"
    if not is_integer(read_attribute(dataset, "depth")):
        yield f"the attribute 'depth' of {where} is missing or not a whole number"
    stride = np.asarray(read_attribute(dataset, "stride"))
    if stride.shape != (2,) or stride.dtype.kind not in "iuf" or not all(0 < side < math.inf for side in stride):
        yield f"the attribute 'stride' of {where} is missing or not two positive numbers"
    if "extent" in dataset.attrs and not _is_extent(np.asarray(read_attribute(dataset, "extent"))):
        yield f"the attribute 'extent' of {where} is not four numbers (top, left, bottom, right)"


def _is_extent(edges: npt.NDArray[Any]) -> bool:
    """Tell whether numbers are the edges of a region."""
    return (
        edges.shape == (4,)
        and edges.dtype.kind in "iuf"
        and bool(np.isfinite(edges).all())
        and bool(edges[0] < edges[2] and edges[1] < edges[3])
    )


def _scale_problems(file: h5py.File) -> Iterator[str]:
    """Check that maps of float16 have scales, and no others."""
    rows = len(file["targets"]["image"])
    scales = dict(map_datasets(file, "scale"))
    for key, dataset in map_datasets(file, "maps"):
        scale, where = scales.pop(key, None), dataset_path("scale", key)
        if dataset.dtype != np.float16:
            if scale is not None:
                yield f"{where} is there, although the maps are not float16"
        elif scale is None or scale.dtype != np.float32 or scale.shape != (rows,):
            yield f"{where} is missing or not one float32 for each of {rows} maps of float16"
    for key in scales:
        yield f"{dataset_path('scale', key)} has no maps"


def _is_json(text: object, kinds: tuple[type, ...]) -> bool:
    """Tell whether a text is the JSON of one of these types."""
    try:
        return isinstance(text, str) and isinstance(json.loads(text), kinds)
    except (ValueError, RecursionError):
        return False


def _is_kind(dtype: np.dtype, kind: str) -> bool:
    """Tell whether a dtype can hold a kind of column."""
    if kind in ("text", "json"):
        return h5py.check_string_dtype(dtype) is not None
    return dtype.kind in {"integer": "iu", "number": "f"}[kind]
