"""Writing saliency maps as HDF5: a complete file, atomically, and the parts of a file in an open HDF5 file."""

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
from ...files import PathLike, format_path, replace_file, seal
from .safety import is_maps_file, is_open_elsewhere
from .schema import (
    COLUMN_DTYPES,
    FORMAT,
    MAP_DTYPES,
    TABLES,
    VERSION,
    Columns,
    Failure,
    Header,
    LayerRow,
    StoredMaps,
    encode_cell,
    format_key,
    max_chunk_bytes,
    options,
    to_float16,
    to_stored_array,
    to_stored_key,
)
from .validation import find_problems, find_view_problems, format_problems

__all__ = [
    "chunk_shape",
    "create_maps",
    "create_scale",
    "destination",
    "encode",
    "encode_columns",
    "new_file",
    "parent_group",
    "write",
    "write_header",
    "write_map_attributes",
    "write_tables",
]


# --- Writing a complete file


def write(
    path: PathLike,
    stored: StoredMaps,
    *,
    compression: str | None = "gzip",
    dtype: str = "float32",
    overwrite: bool = False,
) -> None:
    """Write maps to an HDF5 file, atomically.

    The file appears under its name only when it is complete and on the disk; until then an older file of that name
    is unchanged. The layer '' is stored as 'input'.

    Args:
        path: The file.
        stored: The maps, and what describes them.
        compression: As for `encode`.
        dtype: As for `encode`.
        overwrite: Whether to replace an existing file that is not one of gradlight's; those are always replaced.

    Raises:
        GradlightError: The maps are not finite or not consistent with the tables, the file cannot be written, or an
            existing file must not be replaced.
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
    """Encode maps as the bytes of a complete file; the same maps always give the same bytes.

    Args:
        stored: The maps, and what describes them.
        compression: "gzip", "lzf", "none" or None, or "blosc", which needs the extra gradlight[blosc] to write and to
            read.
        dtype: "float32", or "float16" with a scale per map, which keeps every number within 1e-3 of the largest
            magnitude of its map.

    Returns:
        The bytes of the file.

    Raises:
        GradlightError: The maps are not finite or not consistent with the tables, or an option is unknown.
    """
    options(compression)
    if dtype not in (names := [str(map_dtype) for map_dtype in MAP_DTYPES]):
        raise GradlightError(f"dtype is {' or '.join(map(repr, names))}, got {dtype!r}.{nearest(str(dtype), names)}")
    stored = _prepare(stored)
    # Built in memory, because the HDF5 library crashes the process, later, when a disk is full.
    content = io.BytesIO()
    try:
        with new_file(content) as file:
            columns = encode_columns(
                {
                    "images": stored.images,
                    "targets": stored.targets,
                    "failures": [Failure(*failure) for failure in stored.failures],
                }
            )
            write_header(file, stored.header)
            write_tables(file, columns)
            _write_maps(file, stored, compression, np.dtype(dtype))
            problem = format_problems([*find_problems(file), *find_view_problems(columns["images"]["view"])])
    except GradlightError:
        raise
    except (TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
        problem = str(error)
    if problem:
        raise GradlightError(f"these maps cannot be stored: {problem}.")
    seal(content)
    return content.getbuffer()


def destination(path: PathLike, *, overwrite: bool = False) -> Path:
    """Check before any work whether `write` can write a file.

    Args:
        path: The file.
        overwrite: As for `write`.

    Returns:
        The path that will be written, with links resolved.

    Raises:
        GradlightError: The folder is missing, or an existing file must not be replaced.

    Example:
        >>> destination("maps.h5").name
        'maps.h5'
    """
    name = format_path(path)
    try:
        target = Path(os.path.realpath(os.fsdecode(path)))  # a link is kept, and the file that it leads to is replaced
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
    if not overwrite and not _is_maps_path(target):
        raise GradlightError(
            f"{name}: exists and is not a gradlight file. Choose another name, or pass overwrite=True to replace it."
        )
    return target


def _is_maps_path(path: Path) -> bool:
    """Tell whether a path is that of a file of gradlight's maps."""
    try:
        with h5py.File(path, "r") as file:
            return is_maps_file(file)
    except (OSError, RuntimeError, KeyError) as error:
        if is_open_elsewhere(error):
            raise GradlightError(
                f"{format_path(path)}: exists and is open for writing elsewhere, in another program or in this one."
                " Close it there, or choose another name."
            ) from error
        return False


def _prepare(stored: StoredMaps) -> StoredMaps:
    """Convert keys and maps to those that are stored; raises GradlightError where they cannot be."""
    maps = {to_stored_key(key): to_stored_array(key, array) for key, array in stored.maps.items()}
    layers = {to_stored_key(key): row for key, row in stored.layers.items()}
    if maps.keys() != layers.keys() or len(maps) != len(stored.maps):
        raise GradlightError(
            "maps and layers must have the same (method, layer) keys, each once ('' is the same as 'input'), "
            f"got {[*stored.maps]} and {[*stored.layers]}"
        )
    return dataclasses.replace(stored, maps=maps, layers=layers)


def _write_maps(file: h5py.File, stored: StoredMaps, compression: str | None, dtype: np.dtype) -> None:
    """Write all maps, and the scales of float16."""
    file.create_group("maps", track_order=True)
    for key, values in stored.maps.items():
        dataset = create_maps(file, stored.layers[key], key, values.shape, dtype, compression)
        if dtype == np.float16:
            dataset[:], create_scale(file, key, len(values))[:] = to_float16(values)
        else:
            dataset[:] = values


# --- The parts of a file

_CHUNK_BYTES = 65536  # the size of a chunk of several maps, before compression
_SCALE_ROWS = 16384  # the scales in a chunk


def new_file(stream: BinaryIO | io.RawIOBase) -> h5py.File:
    """Create an HDF5 file in a stream."""
    # The layout of HDF5 1.10 (2016) has checksums of nearly all its structures, so damage gives an exception; in the
    # older layout it may crash the reader.
    return h5py.File(stream, "w", libver=("v110", "v110"))


def encode_columns(tables: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, np.ndarray]]:
    """Convert the rows of tables to columns as they are stored.

    Args:
        tables: Table → its rows, objects with the columns as attributes.

    Returns:
        Table → column → its rows.

    Raises:
        GradlightError: A value cannot be stored. The message names the table, the column and the row.

    Example:
        >>> encode_columns({"failures": [Failure("a.jpg", "damaged")]})["failures"]["path"].tolist()
        [b'a.jpg']
    """
    return {
        table: {
            column: np.array(
                [encode_cell(kind, f"{table}/{column} of row {i}", getattr(row, column)) for i, row in enumerate(rows)],
                dtype=COLUMN_DTYPES[kind],
            )
            for column, kind in TABLES[table].items()
        }
        for table, rows in tables.items()
    }


def write_header(file: h5py.File, header: Header) -> None:
    """Write the attributes of the root."""
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = VERSION
    for name, value in header.attributes().items():
        file.attrs[name] = value


def write_tables(file: h5py.File, columns: Columns) -> None:
    """Write the tables."""
    for table, kinds in TABLES.items():
        group = file.create_group(table)
        for column, kind in kinds.items():
            group.create_dataset(column, data=columns[table][column], dtype=COLUMN_DTYPES[kind])


def chunk_shape(shape: tuple[int, ...], dtype: np.dtype) -> tuple[int, ...]:
    """Give the shape of a chunk of maps [M,h,w]: complete maps, together about 64 kB.

    Example:
        >>> chunk_shape((1000, 14, 14), np.dtype("float32"))
        (83, 14, 14)
    """
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
    """Create the empty dataset of the maps of one method at one layer.

    Args:
        file: The open file.
        row: The origin of the maps.
        key: (method, layer) as stored.
        shape: (M, h, w).
        dtype: float32 or float16.
        compression: As for `schema.options`.

    Returns:
        The dataset, with its attributes.

    Raises:
        GradlightError: A map is too large for the compression.
    """
    if (size := shape[1] * shape[2] * dtype.itemsize) > (max_bytes := max_chunk_bytes(compression)):
        raise GradlightError(
            f"the maps of {format_key(key)} have {size:,} bytes each, and compression={compression!r} takes up to "
            f"{max_bytes:,}: use compression='gzip'"
        )
    dataset = parent_group(file, "maps", key).create_dataset(
        key[1],
        shape,
        dtype,
        chunks=chunk_shape(shape, dtype),
        maxshape=(None, *shape[1:]),
        **options(compression),
    )
    write_map_attributes(dataset, row, key)
    return dataset


def write_map_attributes(dataset: h5py.Dataset, row: LayerRow, key: tuple[str, str]) -> None:
    """Write the attributes of a dataset of maps."""
    dataset.attrs["method"] = row.method
    dataset.attrs["layer"] = row.layer or key[1]
    dataset.attrs["depth"] = encode_cell("integer", f"the depth of layer {key[1]!r}", row.depth)
    where = f"the stride of layer {key[1]!r}"
    dataset.attrs["stride"] = np.array([encode_cell("number", where, side) for side in row.stride])
    if row.extent is not None:
        where = f"the extent of layer {key[1]!r}"
        dataset.attrs["extent"] = np.array([encode_cell("number", where, edge) for edge in row.extent])


def create_scale(file: h5py.File, key: tuple[str, str], rows: int) -> h5py.Dataset:
    """Create the empty dataset of the scales [M] of maps of float16."""
    chunk = max(1, min(rows, _SCALE_ROWS))
    return parent_group(file, "scale", key).create_dataset(
        key[1], (rows,), np.float32, chunks=(chunk,), maxshape=(None,), fletcher32=True
    )


def parent_group(file: h5py.File, top: str, key: tuple[str, str]) -> h5py.Group:
    """Give the group of a method, which keeps the order of its layers; it is created where it does not exist."""
    for name in (f"/{top}", f"/{top}/{key[0]}"):
        if name not in file:
            file.create_group(name, track_order=True)
    return file[f"/{top}/{key[0]}"]
