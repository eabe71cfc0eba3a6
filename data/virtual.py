"""One file of many shards: an index with virtual datasets over them, or a plain file with everything copied."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from ..errors import GradlightError
from .compression import options
from .files import PathLike, replace_file, shown
from .joining import Joined, Key, joined
from .reader import MapsFile
from .schema import location
from .seal import INDEX, seal
from .shards import Shard, ShardList, escaped
from .spill import Spill, spilling
from .store import destination
from .writing import (
    create_maps,
    create_scale,
    describe_maps,
    fill_header,
    fill_tables,
    map_chunk,
    new_file,
    parent_group,
)

__all__ = ["copy_into", "write_index"]

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
        raise GradlightError(f"{shown(path)}: is one of the files to be copied. Choose another name.")
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
            f"{shown(path)}: cannot be written ({error}). Check the folder's permissions and the free space."
        ) from error


def _folder(path: PathLike, target: Path, shards: Sequence[PathLike]) -> str:
    places = [Path(os.path.abspath(os.fsdecode(shard))) for shard in shards]
    folders = {place.parent for place in places}
    folder = folders.pop() if len(folders) == 1 else None
    if folder is not None and os.path.realpath(folder.parent) == str(target.parent):
        found = ShardList(folder.name, tuple(Shard(place.name, 0, 0, 0) for place in places))
        if found.is_plain():
            return folder.name
    found_in = _few(sorted({str(place.parent) for place in places}))
    raise GradlightError(
        f"{shown(path)}: the shards of an index are files NAME.h5, each once, in one folder beside it that is named "
        f"in UTF-8 like {target.stem}.shards; got {len(shards)} files in {found_in}"
        ". Move them there, or copy them into one file."
    )


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
