"""Combining shards to one file: an index with virtual datasets over them, or a plain file with copies of their maps."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ...errors import GradlightError
from ...files import INDEX_MARK, FaultTolerantFile, PathLike, format_path, replace_file, replacing_large, seal
from .reader import MapsFile
from .schema import (
    COLUMN_DTYPES,
    TABLES,
    Header,
    Key,
    LayerRow,
    ShardList,
    StoredShard,
    dataset_path,
    escape_source,
    format_key,
    options,
)
from .writer import (
    chunk_shape,
    create_maps,
    create_scale,
    destination,
    new_file,
    parent_group,
    write_header,
    write_map_attributes,
    write_tables,
)

__all__ = ["ShardContents", "combine", "copy_into", "find_differences", "read_contents", "write_index"]

ArraySpec = tuple[tuple[int, ...], np.dtype]
"""(shape, dtype)."""

_BLOCK_BYTES = 2**24  # of maps that are copied at once
_CHUNK_OVERHEAD = 128  # bytes, at most, around each chunk and in the index of chunks
_ROW_OVERHEAD = 64  # bytes, at most, of a number, or around a text
_BASE_OVERHEAD = 2**22  # bytes, at most, of everything else
_SHARED_FIELDS = ("model", "weights_sha256", "objective", "meta", "pixels")
_MAX_VALUE_LENGTH = 60  # of a value in a message


# --- One file over several


def write_index(path: PathLike, shards: Sequence[PathLike], *, overwrite: bool = False, complete: bool = True) -> None:
    """Write an index over shards: their tables one after the other, and virtual datasets over their maps.

    The index and the folder of the shards may be moved together. The index is written atomically.

    Args:
        path: The index, such as maps.h5.
        shards: Plain files in one folder beside the index, named like maps.shards.
        overwrite: As for `writer.write`.
        complete: Whether the run is complete; the index is complete where every shard is, too.

    Raises:
        GradlightError: A shard is in another folder, is itself an index, cannot be read, or differs from the others
            in more than its rows; or the index cannot be written.
    """
    target = destination(path, overwrite=overwrite)
    folder = _check_folder(path, target, shards)
    contents = combine(shards)
    if contents.indexes:
        raise GradlightError(f"{contents.indexes[0]}: is itself an index. Put its shards together, or copy it.")
    stream = io.BytesIO()
    with new_file(stream) as file:
        _write_all_but_maps(file, contents, contents.header.complete and complete)
        file.attrs["shards"] = json.dumps({"folder": folder, "files": contents.shards})
        for key, (shape, _) in contents.arrays.items():
            if shape[0]:
                _link_maps(file, key, ShardList(folder, contents.shards), contents)
            else:  # a virtual dataset needs a source
                _create(file, key, contents, None)
    seal(stream, INDEX_MARK)
    _run_writing(path, lambda: replace_file(target, stream.getbuffer()))


def copy_into(
    path: PathLike, shards: Sequence[PathLike], *, compression: str | None = "gzip", overwrite: bool = False
) -> None:
    """Copy shards, or other files of maps that belong together, into one plain file, a few megabytes at a time.

    The numbers are copied as they are stored. The file is written atomically; the disk must have room for all maps
    without compression.

    Args:
        path: The file to write.
        shards: The files to copy; an index is copied with all its shards.
        compression: As for `writer.encode`.
        overwrite: As for `writer.write`.

    Raises:
        GradlightError: A file cannot be read, or differs from the others in more than its rows; or the new file
            cannot be written.
    """
    options(compression)
    target = destination(path, overwrite=overwrite)
    if target in (Path(os.path.realpath(os.fsdecode(shard))) for shard in shards):
        raise GradlightError(f"{format_path(path)}: is one of the files to be copied. Choose another name.")
    contents = combine(shards)

    def write_copy() -> None:
        with replacing_large(target, _max_file_bytes(contents)) as stream:
            with new_file(stream) as file:
                _write_all_but_maps(file, contents, contents.header.complete)
                datasets = {key: _create(file, key, contents, compression) for key in contents.arrays}
                start = 0
                for shard in shards:
                    start += _copy_maps(shard, datasets, start, stream)
            seal(stream)

    _run_writing(path, write_copy)


def _run_writing(path: PathLike, work: Callable[[], None]) -> None:
    """Run a function that writes a file, and convert OSError to GradlightError."""
    try:
        work()
    except OSError as error:
        raise GradlightError(
            f"{format_path(path)}: cannot be written ({error}). Check the folder's permissions and the free space."
        ) from error


def _check_folder(path: PathLike, target: Path, shards: Sequence[PathLike]) -> str:
    """Give the name of the folder of the shards; raises GradlightError where they are not in one folder beside it."""
    paths = [Path(os.path.abspath(os.fsdecode(shard))) for shard in shards]
    folders = {shard.parent for shard in paths}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is not None and os.path.realpath(folder.parent) == str(target.parent):
        shard_list = ShardList(folder.name, tuple(StoredShard(shard.name, 0, 0, 0) for shard in paths))
        if shard_list.is_plain():
            return folder.name
    folder_names = _format_paths(sorted({str(shard.parent) for shard in paths}))
    raise GradlightError(
        f"{format_path(path)}: the shards of an index are files NAME.h5, each once, in one folder beside it that is"
        f" named in UTF-8 like {target.stem}.shards; got {len(shards)} files in {folder_names}. Move them there, or"
        " copy them into one file."
    )


def _format_paths(names: Sequence[str]) -> str:
    """Format the first three paths."""
    return ", ".join(map(format_path, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _write_all_but_maps(file: h5py.File, contents: ShardContents, complete: bool) -> None:
    """Write the header, the tables and the empty group of maps."""
    write_header(file, dataclasses.replace(contents.header, complete=complete))
    write_tables(file, contents.columns)
    file.create_group("maps", track_order=True)


class _MapDatasets(NamedTuple):
    """The dataset of maps, and for float16 that of their scales."""

    maps: h5py.Dataset
    scale: h5py.Dataset | None


def _create(file: h5py.File, key: Key, contents: ShardContents, compression: str | None) -> _MapDatasets:
    """Create the empty datasets for the maps of one method at one layer."""
    shape, dtype = contents.arrays[key]
    maps = create_maps(file, contents.layers[key], key, shape, dtype, compression)
    return _MapDatasets(maps, create_scale(file, key, shape[0]) if dtype == np.float16 else None)


def _link_maps(file: h5py.File, key: Key, shards: ShardList, contents: ShardContents) -> None:
    """Create the virtual datasets for the maps of one method at one layer."""
    shape, dtype = contents.arrays[key]
    write_map_attributes(_link(file, "maps", key, shards, shape, dtype), contents.layers[key], key)
    if dtype == np.float16:
        _link(file, "scale", key, shards, shape[:1], np.dtype(np.float32))


def _link(
    file: h5py.File, top: str, key: Key, shards: ShardList, shape: tuple[int, ...], dtype: np.dtype
) -> h5py.Dataset:
    """Create one virtual dataset over those of the shards."""
    layout = h5py.VirtualLayout(shape, dtype)
    for name, start, stop in shards.spans():
        source = escape_source(f"{shards.folder}/{name}"), escape_source(dataset_path(top, key))
        layout[start:stop] = h5py.VirtualSource(*source, shape=(stop - start, *shape[1:]), dtype=dtype)
    # Where a shard is missing, other programs read NaN instead of plausible zeros.
    return parent_group(file, top, key).create_virtual_dataset(key[1], layout, fillvalue=np.nan)


def _max_file_bytes(contents: ShardContents) -> int:
    """Give an upper bound of the size of a plain file, for maps that are not compressible."""
    total = _BASE_OVERHEAD
    for shape, dtype in contents.arrays.values():
        chunk = chunk_shape(shape, dtype)
        total += -(-shape[0] // chunk[0]) * (math.prod(chunk) * dtype.itemsize + _CHUNK_OVERHEAD) + 2 * 4 * shape[0]
    for columns in contents.columns.values():
        for column in columns.values():
            texts = sum(map(len, column)) if column.dtype.kind in "OS" else 0
            total += texts + _ROW_OVERHEAD * len(column)
    return total + sum(len(str(text)) for text in contents.header.attributes().values())


def _copy_maps(shard: PathLike, datasets: Mapping[Key, _MapDatasets], start: int, stream: FaultTolerantFile) -> int:
    """Copy the maps of a shard to the rows from start on; returns their number."""
    with MapsFile(shard) as file:
        for key in file.layers if len(file.targets) else ():
            count, height, width = file.shape(key)
            step = max(1, _BLOCK_BYTES // (height * width * 4))
            for first in range(0, count, step):
                values, scale = file.stored(key, np.s_[first : first + step])
                rows = np.s_[start + first : start + first + len(values)]
                datasets[key].maps[rows] = values
                if (scales := datasets[key].scale) is not None:
                    scales[rows] = scale
                if stream.failure:
                    raise stream.failure
        return len(file.targets)


# --- Combining headers and tables


class ShardContents(NamedTuple):
    """The content of one or several files, without the maps themselves.

    Attributes:
        header: The properties of all maps.
        layers: The origins of the maps.
        arrays: The shapes (M, h, w) and dtypes of the maps, over the rows of all files.
        columns: Table → column → its rows, over all files.
        shards: The names of the files and the numbers of their rows.
        indexes: The paths of those files that are indexes, formatted for messages.
    """

    header: Header
    layers: dict[Key, LayerRow]
    arrays: dict[Key, ArraySpec]
    columns: dict[str, dict[str, np.ndarray]]
    shards: tuple[StoredShard, ...]
    indexes: tuple[str, ...]


def combine(paths: Sequence[PathLike]) -> ShardContents:
    """Combine the headers and tables of files, in their order; a target's image is shifted to its new row.

    Args:
        paths: The files.

    Returns:
        Their content, which is complete where every file is.

    Raises:
        GradlightError: A file cannot be read, or differs from the others in more than its rows.
    """
    if not paths:
        raise GradlightError("no files of maps were given to be put together: give at least one")
    files: list[ShardContents] = []
    reference: tuple[PathLike, ShardContents] | None = None  # the first with maps: a file of failures alone has none
    for path in paths:
        with MapsFile(path) as file:
            contents = read_contents(file)
        if files and (differences := list(find_differences(reference[1] if reference else files[0], contents))):
            reference_name = format_path(reference[0] if reference else paths[0])
            raise GradlightError(
                f"{format_path(path)} and {reference_name} do not belong together: {'; '.join(differences)}."
            )
        if reference is None and contents.shards[0].targets:
            reference = path, contents
        files.append(contents)
    model = reference[1] if reference else files[0]
    total = sum(contents.shards[0].targets for contents in files)
    header = dataclasses.replace(
        model.header,
        gradlight_version=", ".join(dict.fromkeys(contents.header.gradlight_version for contents in files)),
        complete=all(contents.header.complete for contents in files),
    )
    shards = tuple(contents.shards[0] for contents in files)
    indexes = tuple(name for contents in files for name in contents.indexes)
    arrays = {key: ((total, *shape[1:]), dtype) for key, (shape, dtype) in model.arrays.items()}
    return ShardContents(header, model.layers, arrays, _combine_columns(files), shards, indexes)


def find_differences(first: ShardContents, second: ShardContents) -> Iterator[str]:
    """Find where two files differ in what must be equal; a file without maps may have any layers.

    Args:
        first: The content of the file of reference.
        second: The content of the other one.

    Yields:
        One sentence per difference, with the value of the second file first.
    """
    for name in _SHARED_FIELDS:
        if (a := getattr(first.header, name)) != (b := getattr(second.header, name)):
            yield f"they differ in {name}{_format_both(a, b)}"
    if not (first.shards[0].targets and second.shards[0].targets):
        return
    for key in first.layers.keys() ^ second.layers.keys():
        yield f"only one has maps of {format_key(key)}"
    for key in first.layers.keys() & second.layers.keys():
        for name in ("depth", "stride", "extent"):
            if (a := getattr(first.layers[key], name)) != (b := getattr(second.layers[key], name)):
                yield f"they differ in the {name} of {format_key(key)}{_format_both(a, b)}"
        (first_shape, first_dtype), (second_shape, second_dtype) = first.arrays[key], second.arrays[key]
        if first_shape[1:] != second_shape[1:]:
            yield f"they differ in the grid of {format_key(key)}{_format_both(first_shape[1:], second_shape[1:])}"
        if first_dtype != second_dtype:
            yield f"they differ in the dtype of {format_key(key)}{_format_both(str(first_dtype), str(second_dtype))}"


def _format_both(first: object, second: object) -> str:
    """Format two values that differ, the second one first; nothing where they are long."""
    texts = repr(first), repr(second)
    return f": {texts[1]} and {texts[0]}" if max(map(len, texts)) <= _MAX_VALUE_LENGTH else ""


def read_contents(file: MapsFile) -> ShardContents:
    """Read the content of one file without its maps."""
    counts = StoredShard(file.path.name, len(file.images), len(file.targets), len(file.failures))
    arrays = {key: (file.shape(key), file.dtype(key)) for key in file.layers}
    indexes = (format_path(file.path),) if file.shards else ()
    return ShardContents(file.header, file.layers, arrays, file.columns(), (counts,), indexes)


def _combine_columns(files: Sequence[ShardContents]) -> dict[str, dict[str, np.ndarray]]:
    """Concatenate the tables of files, and shift the images of their targets."""
    starts = np.cumsum([0, *(contents.shards[0].images for contents in files)])
    columns = {
        table: {
            name: np.concatenate([contents.columns[table][name] for contents in files]).astype(COLUMN_DTYPES[kind])
            for name, kind in kinds.items()
        }
        for table, kinds in TABLES.items()
    }
    shift = np.repeat(starts[:-1], [contents.shards[0].targets for contents in files])
    columns["targets"]["image"] = columns["targets"]["image"] + shift
    return columns
