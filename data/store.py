"""Writing and reading saliency maps as HDF5: whole files or none, and a clear refusal of anything else."""

from __future__ import annotations

import dataclasses
import io
import os
import stat
from pathlib import Path

import h5py
import numpy as np

from ..errors import GradlightError, nearest
from .checks import is_ours, problems, summary, view_problems
from .compression import options
from .files import PathLike, replace_file, shown
from .reader import MapsFile
from .schema import (
    MAP_DTYPES,
    Failure,
    ImageRow,
    LayerRow,
    StoredMaps,
    TargetRow,
    halved,
    stored_array,
    stored_key,
)
from .seal import refuse_broken_seal, seal
from .writing import as_columns, create_maps, create_scale, fill_header, fill_tables, new_file

__all__ = ["Failure", "ImageRow", "LayerRow", "StoredMaps", "TargetRow", "destination", "encode", "read", "write"]

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
            f"{shown(path)}: cannot be written ({error}). Check the folder's permissions and the free space."
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
            f"{shown(file.path)}: its {size:,} bytes stand for {needed:,} bytes of maps. Read them a few rows at a "
            "time, with MapsFile."
        )


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


def _fill_maps(file: h5py.File, stored: StoredMaps, compression: str | None, dtype: np.dtype) -> None:
    file.create_group("maps", track_order=True)
    for key, values in stored.maps.items():
        dataset = create_maps(file, stored.layers[key], key, values.shape, dtype, compression)
        if dtype == np.float16:
            dataset[:], create_scale(file, key, len(values))[:] = halved(values)
        else:
            dataset[:] = values
