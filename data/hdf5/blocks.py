"""Rows of map datasets from disk, behind the guards: of one plain file, or of the shards of an index."""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import NamedTuple, Protocol

import h5py
import numpy as np

from ...errors import GradlightError
from ...files import PathLike, format_path, open_regular
from .safety import ShardList, map_danger, path_danger
from .schema import chunk_danger, filters_missing, pipeline
from .validation import foreign

__all__ = ["Blocks", "PlainBlocks", "ShardBlocks", "damage_explained", "open_ours", "positions", "refusal", "signature"]

_OPEN_SHARDS = 32


class Blocks(Protocol):
    """Read rows of map datasets."""

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read increasing rows of one dataset as they are stored; raises GradlightError for what must not be read."""

    def close(self) -> None:
        """Close the files."""


def open_ours(path: PathLike) -> h5py.File:
    """Open a file of this format for reading; raises GradlightError for anything else."""
    open_regular(path).close()
    if not h5py.is_hdf5(os.fsdecode(path)):
        raise GradlightError(f"{format_path(path)}: not an HDF5 file. Give a file that gradlight has saved.")
    file = h5py.File(os.fsdecode(path), "r")
    try:
        if reason := foreign(file):
            raise GradlightError(f"{format_path(path)}: {reason}.")
    except BaseException:
        file.close()
        raise
    return file


@contextlib.contextmanager
def damage_explained(path: PathLike) -> Iterator[None]:
    """Turn what the HDF5 library says about damage into GradlightError."""
    try:
        yield
    except (GradlightError, MemoryError):
        raise
    # Damage shows anywhere in the HDF5 library: as OSError, RuntimeError, KeyError, ValueError …
    except Exception as error:
        raise GradlightError(
            f"{format_path(path)}: damaged or truncated, or being written by another program ({error}). Get a whole copy."
        ) from error


def refusal(path: PathLike, reason: str) -> GradlightError:
    """Make the error for a file that could do harm."""
    advice = "gradlight writes no such file: get it again, from a source you trust"
    return GradlightError(f"{format_path(path)}: refused, because {reason}; {advice}.")


def signature(path: Path) -> tuple[int, int]:
    """Give the size and the time of change, by which a file is known again."""
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def positions(rows: slice | np.ndarray, count: int) -> np.ndarray:
    """Give the rows of so many that are asked for, as numbers from 0; raises GradlightError for others."""
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    given = np.asarray(rows)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise GradlightError(f"rows are a slice or whole numbers in one dimension, got {given.dtype} {[*given.shape]}")
    if (outside := (given < -count) | (given >= count)).any():
        raise GradlightError(f"there are {count} rows of maps, and row {given[outside][0]} was asked for")
    return np.where(given < 0, given + count, given).astype(np.int64)


class _Dataset(NamedTuple):
    data: h5py.Dataset
    chunk: tuple[int, ...] | None
    chunk_bytes: int
    filters: list[int]


class PlainBlocks:
    """Rows of one plain file."""

    def __init__(self, path: PathLike, file: h5py.File) -> None:
        self._path = path
        self._file = file
        self._datasets: dict[str, _Dataset] = {}

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read increasing rows of one dataset as they are stored; raises GradlightError for what must not be read."""
        with damage_explained(self._path):
            found = self.dataset(name)
            self._check_chunks(name, found, rows)
            out = np.empty((len(rows), *found.data.shape[1:]), found.data.dtype)
            breaks = np.flatnonzero(np.diff(rows) != 1) + 1
            for first, end in zip([0, *breaks], [*breaks, len(rows)], strict=True):
                if first < end:
                    found.data.read_direct(out, np.s_[rows[first] : rows[end - 1] + 1], np.s_[first:end])
            return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def dataset(self, name: str) -> _Dataset:
        """Find a dataset, once it is known to be harmless."""
        if (known := self._datasets.get(name)) is None:
            if reason := path_danger(self._file, name):
                raise refusal(self._path, reason)
            data = self._file[name]
            if reason := next(map_danger(data, name, None), None):
                raise refusal(self._path, reason)
            filters = pipeline(data.id.get_create_plist())
            if missing := filters_missing(filters):
                raise GradlightError(f"{format_path(self._path)}: {missing}")
            known = _Dataset(data, data.chunks, math.prod(data.chunks or ()) * data.dtype.itemsize, filters)
            self._datasets[name] = known
        return known

    def _check_chunks(self, name: str, found: _Dataset, rows: np.ndarray) -> None:
        if found.chunk is None:
            return
        starts = [np.unique(rows // found.chunk[0]) * found.chunk[0]]
        starts += [np.arange(0, whole, side) for whole, side in zip(found.data.shape[1:], found.chunk[1:], strict=True)]
        for place in product(*(side.tolist() for side in starts)):
            if reason := chunk_danger(found.data, found.filters, found.chunk_bytes, place):
                raise refusal(self._path, f"{name} {reason}")


class ShardBlocks:
    """Rows of an index, taken from its shards; a few of them stay open."""

    def __init__(self, path: Path, file: h5py.File, shards: ShardList) -> None:
        self._folder = path.parent / shards.folder
        self._file = file
        self._spans = shards.spans()
        self._stops = np.array([stop for _, _, stop in self._spans])
        self._open: OrderedDict[str, PlainBlocks] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read increasing rows of one dataset as they are stored; raises GradlightError for what must not be read."""
        whole = self._file[name]
        out = np.empty((len(rows), *whole.shape[1:]), whole.dtype)
        owners = np.searchsorted(self._stops, rows, side="right")
        for owner in np.unique(owners):
            shard, start, stop = self._spans[owner]
            first, end = np.searchsorted(owners, [owner, owner + 1])
            blocks = self._blocks(shard)
            with damage_explained(self._folder / shard):
                data = blocks.dataset(name).data
                if (data.shape, data.dtype) != ((stop - start, *whole.shape[1:]), whole.dtype):
                    raise GradlightError(
                        f"{format_path(self._folder / shard)}: {name} holds {data.dtype} {[*data.shape]}, and its index "
                        f"expects {whole.dtype} {[stop - start, *whole.shape[1:]]}. Make the index again."
                    )
            out[first:end] = blocks.read(name, rows[first:end] - start)
        return out

    def close(self) -> None:
        """Close the index and the shards that are open."""
        with self._lock:
            for blocks in self._open.values():
                blocks.close()
            self._open.clear()
        self._file.close()

    def _blocks(self, shard: str) -> PlainBlocks:
        with self._lock:
            if (blocks := self._open.get(shard)) is None:
                path = self._folder / shard
                with damage_explained(path):
                    blocks = self._open[shard] = PlainBlocks(path, open_ours(path))
                # Not closed but let go: another thread may still read from it.
                while len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return blocks
