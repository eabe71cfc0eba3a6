"""Writing and reading saliency maps as HDF5: whole files or none, and a clear refusal of anything else.

The parts of a file of this format, written into an open HDF5 file: its header, its tables, its map datasets.
"""

from __future__ import annotations

import dataclasses
import io
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from ...errors import GradlightError, nearest
from ...files import PathLike, format_path, refuse_broken_seal, replace_file, seal
from .reader import MapsFile
from .schema import (
    COLUMN_DTYPES,
    FORMAT,
    MAP_DTYPES,
    TABLES,
    VERSION,
    Columns,
    Failure,
    Header,
    ImageRow,
    LayerRow,
    StoredMaps,
    TargetRow,
    as_cell,
    format_key,
    halved,
    largest_chunk,
    options,
    stored_array,
    stored_key,
)
from .validation import is_ours, problems, summary, view_problems

__all__ = [
    "Failure",
    "ImageRow",
    "LayerRow",
    "StoredMaps",
    "TargetRow",
    "as_columns",
    "create_maps",
    "create_scale",
    "describe_maps",
    "destination",
    "encode",
    "fill_header",
    "fill_tables",
    "map_chunk",
    "new_file",
    "parent_group",
    "read",
    "write",
]

_CHUNK_BYTES = 65536
_SCALE_CHUNK = 16384


def new_file(stream: BinaryIO | io.RawIOBase) -> h5py.File:
    """Start an HDF5 file in a stream."""
    # The layout of HDF5 1.10 (2016) has checksums of nearly all its structures: damage is an error that can be
    # caught, where in the older layout it may crash the reader.
    return h5py.File(stream, "w", libver=("v110", "v110"))


def as_columns(tables: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Turn rows into columns as they are stored; raises GradlightError, naming the place, for what cannot be."""
    return {
        table: {
            column: np.array(
                [as_cell(kind, f"{table}/{column} of row {i}", getattr(row, column)) for i, row in enumerate(rows)],
                dtype=COLUMN_DTYPES[kind],
            )
            for column, kind in TABLES[table].items()
        }
        for table, rows in tables.items()
    }


def fill_header(file: h5py.File, header: Header) -> None:
    """Write the attributes of the root."""
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = VERSION
    for name, value in header.attributes().items():
        file.attrs[name] = value


def fill_tables(file: h5py.File, columns: Columns) -> None:
    """Write the tables."""
    for table, kinds in TABLES.items():
        group = file.create_group(table)
        for column, kind in kinds.items():
            group.create_dataset(column, data=columns[table][column], dtype=COLUMN_DTYPES[kind])


def map_chunk(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Give the shape of a chunk of maps [M,h,w]: whole maps, of about 64 kB together."""
    rows, height, width = shape
    return (max(1, min(rows, _CHUNK_BYTES // (height * width * dtype.itemsize))), height, width)


def create_maps(
    file: h5py.File,
    row: LayerRow,
    key: tuple[str, str],
    shape: tuple[int, ...],
    dtype: np.dtype,
    compression: str | None,
) -> h5py.Dataset:
    """Create the empty dataset of the maps [M,h,w] of one method at one layer."""
    if (size := shape[1] * shape[2] * dtype.itemsize) > (most := largest_chunk(compression)):
        raise GradlightError(
            f"the maps of {format_key(key)} have {size:,} bytes each, and compression={compression!r} takes up to "
            f"{most:,}: use compression='gzip'"
        )
    dataset = parent_group(file, "maps", key).create_dataset(
        key[1],
        shape,
        dtype,
        chunks=map_chunk(shape, dtype),
        maxshape=(None, *shape[1:]),
        **options(compression),
    )
    describe_maps(dataset, row, key)
    return dataset


def describe_maps(dataset: h5py.Dataset, row: LayerRow, key: tuple[str, str]) -> None:
    """Write the attributes of a dataset of maps."""
    dataset.attrs["method"] = row.method
    dataset.attrs["layer"] = row.layer or key[1]
    dataset.attrs["depth"] = as_cell("integer", f"the depth of layer {key[1]!r}", row.depth)
    where = f"the stride of layer {key[1]!r}"
    dataset.attrs["stride"] = np.array([as_cell("number", where, side) for side in row.stride])


def create_scale(file: h5py.File, key: tuple[str, str], rows: int) -> h5py.Dataset:
    """Create the empty dataset of the scales [M] that belong to maps of float16."""
    chunk = max(1, min(rows, _SCALE_CHUNK))
    return parent_group(file, "scale", key).create_dataset(
        key[1], (rows,), np.float32, chunks=(chunk,), maxshape=(None,), fletcher32=True
    )


def parent_group(file: h5py.File, top: str, key: tuple[str, str]) -> h5py.Group:
    """Give the group of a method, made where it is not there yet, which keeps the order of its layers."""
    for name in (f"/{top}", f"/{top}/{key[0]}"):
        if name not in file:
            file.create_group(name, track_order=True)
    return file[f"/{top}/{key[0]}"]


_MANY_BYTES = 2**30
_MANY_TIMES = 100


def write(
    path: PathLike,
    stored: StoredMaps,
    *,
    compression: str | None = "gzip",
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Write maps to an HDF5 file, whole or not at all.

    The file appears under its name only when it is complete and on the disk; until then an older file of that name
    stays as it was. compression and dtype are those of `encode`, and the layer '' is stored as 'input'.

    Raises GradlightError for maps that are not finite or do not agree with the rest, for a place that cannot be
    written, and for an existing file that is not gradlight's own unless overwrite is set.
    """
    target = destination(path, overwrite=overwrite)
    content = encode(stored, compression=compression, dtype=dtype)
    try:
        replace_file(target, content)
    except OSError as error:
        raise GradlightError(
            f"{format_path(path)}: cannot be written ({error}). Check the folder's permissions and the free space."
        ) from error


def encode(stored: StoredMaps, *, compression: str | None = "gzip", dtype: str = "float32") -> memoryview:
    """Give the bytes of the whole file that holds these maps; the same maps always give the same bytes.

    compression: "gzip", "lzf", "none" or None, or "blosc", which needs the extra gradlight[blosc] to write and to
    read. dtype: "float32", or "float16" with a scale per map, which keeps every number to 1e-3 of its map's largest.

    Raises GradlightError for maps that are not finite or do not agree with the rest.
    """
    options(compression)
    if dtype not in (names := [str(known) for known in MAP_DTYPES]):
        raise GradlightError(f"dtype is {' or '.join(map(repr, names))}, got {dtype!r}.{nearest(str(dtype), names)}")
    stored = _storable(stored)
    # Built in memory, because the HDF5 library crashes the whole process, later, when a disk is full.
    content = io.BytesIO()
    try:
        with new_file(content) as file:
            columns = as_columns(
                {
                    "images": stored.images,
                    "targets": stored.targets,
                    "failures": [Failure(*failure) for failure in stored.failures],
                }
            )
            fill_header(file, stored.header)
            fill_tables(file, columns)
            _fill_maps(file, stored, compression, np.dtype(dtype))
            wrong = summary([*problems(file), *view_problems(columns["images"]["view"])])
    except GradlightError:
        raise
    except (TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
        wrong = str(error)
    if wrong:
        raise GradlightError(f"these maps cannot be stored: {wrong}.")
    seal(content)
    return content.getbuffer()


def read(path: PathLike) -> StoredMaps:
    """Read a whole file into memory, of an index all its shards.

    Raises GradlightError for a file that `MapsFile` refuses, for one whose maps are damaged, and for one whose few
    bytes stand for gigabytes.
    """
    refuse_broken_seal(path)
    with MapsFile(path) as file:
        _refuse_bomb(file)
        about = {field.name: getattr(file.header, field.name) for field in dataclasses.fields(file.header)}
        return StoredMaps(
            **about,
            images=list(file.images),
            targets=list(file.targets),
            failures=list(file.failures),
            maps={key: file.read(key, np.s_[:]) for key in file.layers},
            layers=dict(file.layers),
        )


def _refuse_bomb(file: MapsFile) -> None:
    needed = sum(4 * int(np.prod(file.shape(key), dtype=np.int64)) for key in file.layers)
    if needed > _MANY_BYTES and needed > _MANY_TIMES * (size := file.stored_bytes()):
        raise GradlightError(
            f"{format_path(file.path)}: its {size:,} bytes stand for {needed:,} bytes of maps. Read them a few rows at a "
            "time, with MapsFile."
        )


def destination(path: PathLike, *, overwrite: bool = False) -> Path:
    """Find where `write` would write, and refuse it as `write` does, before any work is done for it.

    Raises GradlightError for a missing folder and for what must not be replaced.
    """
    name = format_path(path)
    try:
        target = Path(os.path.realpath(os.fsdecode(path)))  # a link stays a link, and its file is replaced
        if not target.parent.is_dir():
            raise GradlightError(f"{name}: the folder {format_path(target.parent)} does not exist. Create it first.")
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


def _fill_maps(file: h5py.File, stored: StoredMaps, compression: str | None, dtype: np.dtype) -> None:
    file.create_group("maps", track_order=True)
    for key, values in stored.maps.items():
        dataset = create_maps(file, stored.layers[key], key, values.shape, dtype, compression)
        if dtype == np.float16:
            dataset[:], create_scale(file, key, len(values))[:] = halved(values)
        else:
            dataset[:] = values
