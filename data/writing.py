"""The parts of a file of this format, written into an open HDF5 file: its header, its tables, its map datasets."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import h5py
import numpy as np

from ..errors import GradlightError
from .compression import largest_chunk, options
from .schema import COLUMN_DTYPES, FORMAT, TABLES, VERSION, Columns, Header, LayerRow, as_cell, shown_key

__all__ = [
    "as_columns",
    "create_maps",
    "create_scale",
    "describe_maps",
    "fill_header",
    "fill_tables",
    "map_chunk",
    "new_file",
    "parent_group",
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
            f"the maps of {shown_key(key)} have {size:,} bytes each, and compression={compression!r} takes up to "
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
