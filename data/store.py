"""Writing and reading saliency maps as HDF5: whole files or none, and a clear refusal of anything else."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import GradlightError, nearest
from .checks import foreign, is_ours, problems
from .files import PathLike, open_regular, replace_file, shown
from .schema import (
    COLUMN_DTYPES,
    FORMAT,
    INPUT,
    TABLES,
    VERSION,
    Failure,
    ImageRow,
    LayerRow,
    StoredMaps,
    TargetRow,
    as_cell,
    as_json,
    stored_array,
    stored_key,
    texts,
)

__all__ = ["Failure", "ImageRow", "LayerRow", "StoredMaps", "TargetRow", "destination", "read", "write"]

# Checksums (fletcher32) are part of every HDF5 library, so plain h5py reads the file and notices damage.
_FILTERS: dict[str | None, dict[str, Any]] = {
    "gzip": {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True},
    "lzf": {"compression": "lzf", "shuffle": True, "fletcher32": True},
    None: {"fletcher32": True},
}
_CHUNK_BYTES = 65536


def write(path: PathLike, stored: StoredMaps, *, compression: str | None = "gzip", overwrite: bool = False) -> None:
    """Write maps to an HDF5 file, whole or not at all.

    The file appears under its name only when it is complete and on the disk; until then an older file of that name
    stays as it was. Maps are stored as float32, and the layer '' as 'input'. compression: "gzip", "lzf" or None.

    Raises GradlightError for maps that are not finite or do not agree with the rest, for a place that cannot be
    written, and for an existing file that is not gradlight's own unless overwrite is set.
    """
    if compression not in _FILTERS:
        near = nearest(str(compression), ["gzip", "lzf"])
        raise GradlightError(f"compression is 'gzip', 'lzf' or None, got {compression!r}.{near}")
    target = destination(path, overwrite=overwrite)
    content = _content(path, _storable(stored), _FILTERS[compression])
    try:
        replace_file(target, content)
    except OSError as error:
        raise GradlightError(
            f"{shown(path)}: cannot be written ({error}). Check the folder's permissions and the free space."
        ) from error


def read(path: PathLike) -> StoredMaps:
    """Read a file that `write` wrote.

    Raises GradlightError for a file that is missing, is not HDF5, belongs to another program, is damaged, does not
    agree with itself, or has a format_version newer than this gradlight.
    """
    open_regular(path).close()
    if not h5py.is_hdf5(os.fsdecode(path)):
        raise GradlightError(f"{shown(path)}: not an HDF5 file. Give a file that gradlight has saved.")
    try:
        with h5py.File(os.fsdecode(path), "r") as file:
            if reason := foreign(file):
                raise GradlightError(f"{shown(path)}: {reason}.")
            if wrong := problems(file):
                raise GradlightError(f"{shown(path)}: not a sound gradlight file: {_summary(wrong)}. Save it again.")
            return _stored(file)
    except GradlightError:
        raise
    # Damage shows anywhere in the HDF5 library: as OSError, RuntimeError, KeyError, ValueError …
    except Exception as error:
        raise GradlightError(
            f"{shown(path)}: damaged or truncated, or being written by another program ({error}). Get a whole copy."
        ) from error


def destination(path: PathLike, *, overwrite: bool = False) -> Path:
    """Find where `write` would write, and refuse it as `write` does, before any work is done for it.

    Raises GradlightError for a missing folder and for what must not be replaced.
    """
    name = shown(path)
    try:
        target = Path(os.path.realpath(os.fsdecode(path)))  # a link stays a link, and its file is replaced
        if not target.parent.is_dir():
            raise GradlightError(f"{name}: the folder {shown(target.parent)} does not exist. Create it first.")
        mode = target.stat().st_mode
    except FileNotFoundError:
        return target
    except GradlightError:
        raise
    except (OSError, ValueError) as error:
        raise GradlightError(f"{name}: cannot be written: {error}. Choose another name.") from error
    if not stat.S_ISREG(mode):
        raise GradlightError(f"{name}: exists and is not a regular file. Choose another name.")
    if not mode & 0o222 or not os.access(target, os.W_OK):
        raise GradlightError(f"{name}: exists and is read-only. Choose another name or change its permissions.")
    if not overwrite and not _is_ours(target):
        raise GradlightError(
            f"{name}: exists and is not a gradlight file. Choose another name, or pass overwrite=True to replace it."
        )
    return target


def _is_ours(path: Path) -> bool:
    try:
        with h5py.File(path, "r") as file:
            return is_ours(file)
    except (OSError, RuntimeError, KeyError):
        return False


def _storable(stored: StoredMaps) -> StoredMaps:
    maps = {stored_key(key): stored_array(key, array) for key, array in stored.maps.items()}
    layers = {stored_key(key): row for key, row in stored.layers.items()}
    if maps.keys() != layers.keys() or len(maps) != len(stored.maps):
        raise GradlightError(
            "maps and layers must have the same (method, layer) keys, each once ('' is the same as 'input'), "
            f"got {[*stored.maps]} and {[*stored.layers]}"
        )
    return dataclasses.replace(stored, maps=maps, layers=layers)


def _content(path: PathLike, stored: StoredMaps, filters: dict[str, Any]) -> memoryview:
    # Built in memory, because the HDF5 library crashes the whole process, later, when a disk is full.
    content = io.BytesIO()
    try:
        # The layout of HDF5 1.10 (2016) has checksums of nearly all its structures: damage is an error that can be
        # caught, where in the older layout it may crash the reader.
        with h5py.File(content, "w", libver=("v110", "v110")) as file:
            _fill(file, stored)
            _fill_maps(file.create_group("maps", track_order=True), stored, filters)
            wrong = _summary(problems(file))
    except GradlightError:
        raise
    except (TypeError, ValueError, OSError, RuntimeError) as error:
        wrong = str(error)
    if wrong:
        raise GradlightError(f"{shown(path)}: these maps cannot be stored: {wrong}.")
    return content.getbuffer()


def _fill(file: h5py.File, stored: StoredMaps) -> None:
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = VERSION
    file.attrs["gradlight_version"] = stored.gradlight_version
    file.attrs["weights_sha256"] = stored.weights_sha256
    for name in ("model", "objective", "meta"):
        file.attrs[name] = as_json(name, getattr(stored, name))
    file.attrs["pixels"] = np.array([as_cell("integer", "pixels", side) for side in stored.pixels])
    file.attrs["complete"] = bool(stored.complete)
    tables: dict[str, Sequence[Any]] = {
        "images": stored.images,
        "targets": stored.targets,
        "failures": [Failure(*failure) for failure in stored.failures],
    }
    for table, rows in tables.items():
        group = file.create_group(table)
        for column, kind in TABLES[table].items():
            values = [as_cell(kind, f"{table}/{column} of row {i}", getattr(row, column)) for i, row in enumerate(rows)]
            group.create_dataset(column, data=np.array(values, dtype=COLUMN_DTYPES[kind]))


def _fill_maps(root: h5py.Group, stored: StoredMaps, filters: dict[str, Any]) -> None:
    for (method, layer), values in stored.maps.items():
        group = root[method] if method in root else root.create_group(method, track_order=True)
        rows, height, width = values.shape
        chunk = max(1, min(rows, _CHUNK_BYTES // (height * width * values.itemsize)))
        dataset = group.create_dataset(
            layer, data=values, chunks=(chunk, height, width), maxshape=(None, height, width), **filters
        )
        row = stored.layers[method, layer]
        dataset.attrs["method"] = row.method
        dataset.attrs["layer"] = row.layer or INPUT
        dataset.attrs["depth"] = as_cell("integer", f"the depth of layer {layer!r}", row.depth)
        where = f"the stride of layer {layer!r}"
        dataset.attrs["stride"] = np.array([as_cell("number", where, side) for side in row.stride])


def _stored(file: h5py.File) -> StoredMaps:
    columns = {table: [_column(file[table][name], kind) for name, kind in TABLES[table].items()] for table in TABLES}
    datasets = {(method, layer): data for method, group in file["maps"].items() for layer, data in group.items()}
    height, width = (int(side) for side in file.attrs["pixels"])
    return StoredMaps(
        **{name: json.loads(file.attrs[name]) for name in ("model", "objective", "meta")},
        weights_sha256=file.attrs["weights_sha256"],
        images=[ImageRow(*row) for row in zip(*columns["images"], strict=True)],
        targets=[TargetRow(*row) for row in zip(*columns["targets"], strict=True)],
        maps={key: data[:] for key, data in datasets.items()},
        layers={key: _layer_row(data.attrs) for key, data in datasets.items()},
        failures=[Failure(*row) for row in zip(*columns["failures"], strict=True)],
        complete=bool(file.attrs["complete"]),
        gradlight_version=file.attrs["gradlight_version"],
        pixels=(height, width),
    )


def _column(dataset: h5py.Dataset, kind: str) -> list[Any]:
    if kind == "json":
        return [json.loads(text) for text in texts(dataset)]
    return texts(dataset) if kind == "text" else dataset[:].tolist()


def _layer_row(attributes: h5py.AttributeManager) -> LayerRow:
    vertical, horizontal = (float(side) for side in attributes["stride"])
    return LayerRow(attributes["method"], attributes["layer"], int(attributes["depth"]), (vertical, horizontal))


def _summary(wrong: list[str]) -> str:
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return "; ".join(wrong[:3]) + more
