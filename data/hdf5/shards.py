"""One file of many shards: an index with virtual datasets over them, or a plain file with everything copied.

What a file over several others holds: one header, their tables one after the other, and where they differ.
"""

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
from ...files import INDEX, PathLike, Spill, format_path, replace_file, seal, spilling
from .reader import MapsFile
from .safety import ShardList, StoredShard, escaped
from .schema import COLUMN_DTYPES, TABLES, Header, LayerRow, format_key, location, options
from .writer import (
    create_maps,
    create_scale,
    describe_maps,
    destination,
    fill_header,
    fill_tables,
    map_chunk,
    new_file,
    parent_group,
)

__all__ = ["Joined", "Key", "copy_into", "differences", "joined", "part_of", "write_index"]

Key = tuple[str, str]
Kind = tuple[tuple[int, ...], np.dtype]
_AGREEING = ("model", "weights_sha256", "objective", "meta", "pixels")
_SHORT = 60


class Joined(NamedTuple):
    """What several files hold together, but for the maps themselves; kinds has shapes (M,h,w) over all rows."""

    header: Header
    layers: dict[Key, LayerRow]
    kinds: dict[Key, Kind]
    columns: dict[str, dict[str, np.ndarray]]
    shards: tuple[StoredShard, ...]
    indexes: tuple[str, ...]  # the names of those that are indexes themselves


def joined(paths: Sequence[PathLike]) -> Joined:
    """Put the headers and tables of files together, in this order; a target's image is shifted to its new row.

    The result is complete where every file is. Raises GradlightError for files that cannot be read, and for files
    that differ in anything but their rows.
    """
    if not paths:
        raise GradlightError("no files of maps were given to be put together: give at least one")
    parts: list[Joined] = []
    first: tuple[PathLike, Joined] | None = None  # the first that has maps: a file of failures alone has none
    for path in paths:
        with MapsFile(path) as file:
            part = part_of(file)
        if parts and (found := list(differences(first[1] if first else parts[0], part))):
            other = format_path(first[0] if first else paths[0])
            raise GradlightError(f"{format_path(path)} and {other} do not belong together: {'; '.join(found)}.")
        if first is None and part.shards[0].targets:
            first = path, part
        parts.append(part)
    model = first[1] if first else parts[0]
    total = sum(part.shards[0].targets for part in parts)
    header = dataclasses.replace(
        model.header,
        gradlight_version=", ".join(dict.fromkeys(part.header.gradlight_version for part in parts)),
        complete=all(part.header.complete for part in parts),
    )
    files = tuple(part.shards[0] for part in parts)
    indexes = tuple(name for part in parts for name in part.indexes)
    kinds = {key: ((total, *shape[1:]), dtype) for key, (shape, dtype) in model.kinds.items()}
    return Joined(header, model.layers, kinds, _columns(parts), files, indexes)


def differences(one: Joined, other: Joined) -> Iterator[str]:
    """Say where two files differ in what must agree; without a map, a file may have any layers."""
    for name in _AGREEING:
        if (a := getattr(one.header, name)) != (b := getattr(other.header, name)):
            yield f"they differ in {name}{_both(a, b)}"
    if not (one.shards[0].targets and other.shards[0].targets):
        return
    for key in one.layers.keys() ^ other.layers.keys():
        yield f"only one has maps of {format_key(key)}"
    for key in one.layers.keys() & other.layers.keys():
        for name in ("depth", "stride"):
            if (a := getattr(one.layers[key], name)) != (b := getattr(other.layers[key], name)):
                yield f"they differ in the {name} of {format_key(key)}{_both(a, b)}"
        (shape, dtype), (other_shape, other_dtype) = one.kinds[key], other.kinds[key]
        if shape[1:] != other_shape[1:]:
            yield f"they differ in the grid of {format_key(key)}{_both(shape[1:], other_shape[1:])}"
        if dtype != other_dtype:
            yield f"they differ in the dtype of {format_key(key)}{_both(str(dtype), str(other_dtype))}"


def _both(one: object, other: object) -> str:
    texts = repr(one), repr(other)
    return f": {texts[1]} and {texts[0]}" if max(map(len, texts)) <= _SHORT else ""


def part_of(file: MapsFile) -> Joined:
    """Give what one file holds, as if it were put together of itself alone."""
    counts = StoredShard(file.path.name, len(file.images), len(file.targets), len(file.failures))
    kinds = {key: (file.shape(key), file.dtype(key)) for key in file.layers}
    indexes = (format_path(file.path),) if file.shards else ()
    return Joined(file.header, file.layers, kinds, file.columns(), (counts,), indexes)


def _columns(parts: Sequence[Joined]) -> dict[str, dict[str, np.ndarray]]:
    starts = np.cumsum([0, *(part.shards[0].images for part in parts)])
    found = {
        table: {
            name: np.concatenate([part.columns[table][name] for part in parts]).astype(COLUMN_DTYPES[kind])
            for name, kind in kinds.items()
        }
        for table, kinds in TABLES.items()
    }
    shift = np.repeat(starts[:-1], [part.shards[0].targets for part in parts])
    found["targets"]["image"] = found["targets"]["image"] + shift
    return found


_BLOCK_BYTES = 2**24
_CHUNK_COST = 128  # bytes, at most, around each chunk and in the index of chunks
_ROW_COST = 64  # bytes, at most, of a number, or around a text
_BASE_COST = 2**22


class _Datasets(NamedTuple):
    maps: h5py.Dataset
    scale: h5py.Dataset | None


def write_index(path: PathLike, shards: Sequence[PathLike], *, overwrite: bool = False, complete: bool = True) -> None:
    """Write an index over shards: their tables one after the other, and virtual datasets over their maps.

    The shards are plain files in one folder beside the index, named like maps.shards; index and folder may be moved
    together. The index says that it is complete where complete is set and every shard is. It is written whole or not
    at all, as by `store.write`.

    Raises GradlightError for shards that lie elsewhere, are themselves an index, cannot be read, or differ in
    anything but their rows, and as `store.write` for a place that cannot be written.
    """
    target = destination(path, overwrite=overwrite)
    folder = _folder(path, target, shards)
    whole = joined(shards)
    if whole.indexes:
        raise GradlightError(f"{whole.indexes[0]}: is itself an index. Put its shards together, or copy it.")
    content = io.BytesIO()
    with new_file(content) as file:
        _fill(file, whole, whole.header.complete and complete)
        file.attrs["shards"] = json.dumps({"folder": folder, "files": whole.shards})
        for key, (shape, _) in whole.kinds.items():
            if shape[0]:
                _link_maps(file, key, ShardList(folder, whole.shards), whole)
            else:  # a virtual dataset needs a source
                _create(file, key, whole, None)
    seal(content, INDEX)
    _write(path, lambda: replace_file(target, content.getbuffer()))


def copy_into(
    path: PathLike, shards: Sequence[PathLike], *, compression: str | None = "gzip", overwrite: bool = False
) -> None:
    """Copy shards, or other files of maps that belong together, into one plain file, a few megabytes at a time.

    The numbers are copied as they are stored. The file is written whole or not at all, once its folder has room for
    all its maps unpacked. compression as for `store.encode`.

    Raises GradlightError for files that cannot be read or differ in anything but their rows, and as `store.write` for
    a place that cannot be written.
    """
    options(compression)
    target = destination(path, overwrite=overwrite)
    if target in (Path(os.path.realpath(os.fsdecode(shard))) for shard in shards):
        raise GradlightError(f"{format_path(path)}: is one of the files to be copied. Choose another name.")
    whole = joined(shards)

    def fill() -> None:
        with spilling(target, _most_bytes(whole)) as stream:
            with new_file(stream) as file:
                _fill(file, whole, whole.header.complete)
                datasets = {key: _create(file, key, whole, compression) for key in whole.kinds}
                start = 0
                for shard in shards:
                    start += _copy(shard, datasets, start, stream)
            seal(stream)

    _write(path, fill)


def _write(path: PathLike, work: Callable[[], None]) -> None:
    try:
        work()
    except OSError as error:
        raise GradlightError(
            f"{format_path(path)}: cannot be written ({error}). Check the folder's permissions and the free space."
        ) from error


def _folder(path: PathLike, target: Path, shards: Sequence[PathLike]) -> str:
    places = [Path(os.path.abspath(os.fsdecode(shard))) for shard in shards]
    folders = {place.parent for place in places}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is not None and os.path.realpath(folder.parent) == str(target.parent):
        found = ShardList(folder.name, tuple(StoredShard(place.name, 0, 0, 0) for place in places))
        if found.is_plain():
            return folder.name
    found_in = _few(sorted({str(place.parent) for place in places}))
    raise GradlightError(
        f"{format_path(path)}: the shards of an index are files NAME.h5, each once, in one folder beside it that is named "
        f"in UTF-8 like {target.stem}.shards; got {len(shards)} files in {found_in}"
        ". Move them there, or copy them into one file."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(format_path, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _fill(file: h5py.File, whole: Joined, complete: bool) -> None:
    fill_header(file, dataclasses.replace(whole.header, complete=complete))
    fill_tables(file, whole.columns)
    file.create_group("maps", track_order=True)


def _create(file: h5py.File, key: Key, whole: Joined, compression: str | None) -> _Datasets:
    shape, dtype = whole.kinds[key]
    maps = create_maps(file, whole.layers[key], key, shape, dtype, compression)
    return _Datasets(maps, create_scale(file, key, shape[0]) if dtype == np.float16 else None)


def _link_maps(file: h5py.File, key: Key, shards: ShardList, whole: Joined) -> None:
    shape, dtype = whole.kinds[key]
    describe_maps(_link(file, "maps", key, shards, shape, dtype), whole.layers[key], key)
    if dtype == np.float16:
        _link(file, "scale", key, shards, shape[:1], np.dtype(np.float32))


def _link(
    file: h5py.File, top: str, key: Key, shards: ShardList, shape: tuple[int, ...], dtype: np.dtype
) -> h5py.Dataset:
    layout = h5py.VirtualLayout(shape, dtype)
    for name, start, stop in shards.spans():
        source = escaped(f"{shards.folder}/{name}"), escaped(location(top, key))
        layout[start:stop] = h5py.VirtualSource(*source, shape=(stop - start, *shape[1:]), dtype=dtype)
    # Where a shard is missing, another program reads NaN instead of plausible zeros.
    return parent_group(file, top, key).create_virtual_dataset(key[1], layout, fillvalue=np.nan)


def _most_bytes(whole: Joined) -> int:
    total = _BASE_COST
    for shape, dtype in whole.kinds.values():
        chunk = map_chunk(shape, dtype)
        total += -(-shape[0] // chunk[0]) * (math.prod(chunk) * dtype.itemsize + _CHUNK_COST) + 2 * 4 * shape[0]
    for columns in whole.columns.values():
        for column in columns.values():
            texts = sum(map(len, column)) if column.dtype.kind in "OS" else 0
            total += texts + _ROW_COST * len(column)
    return total + sum(len(str(text)) for text in whole.header.attributes().values())


def _copy(shard: PathLike, datasets: Mapping[Key, _Datasets], start: int, stream: Spill) -> int:
    with MapsFile(shard) as file:
        for key in file.layers if len(file.targets) else ():
            count, height, width = file.shape(key)
            step = max(1, _BLOCK_BYTES // (height * width * 4))
            for first in range(0, count, step):
                values, scale = file.stored(key, np.s_[first : first + step])
                place = np.s_[start + first : start + first + len(values)]
                datasets[key].maps[place] = values
                if (scales := datasets[key].scale) is not None:
                    scales[place] = scale
                if stream.failure:
                    raise stream.failure
        return len(file.targets)
