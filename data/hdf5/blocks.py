"""Reading rows of map datasets, after the guards: from one plain file, or from the shards of an index."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from itertools import product
from pathlib import Path
from typing import NamedTuple, Protocol

import h5py
import numpy as np

from ...errors import GradlightError
from ...files import PathLike, format_path
from .safety import (
    damage_as_error,
    find_chunk_danger,
    find_map_dangers,
    find_path_danger,
    list_filters,
    open_maps_file,
    unsafe_file_error,
)
from .schema import ShardList, find_missing_filter

__all__ = ["Blocks", "PlainBlocks", "ShardBlocks", "to_row_numbers"]

_OPEN_SHARDS = 32  # the largest number of shards that are open at the same time


class Blocks(Protocol):
    """Reads rows of map datasets."""

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read rows of one dataset as they are stored.

        Args:
            name: The path of the dataset in the file.
            rows: The numbers of the rows, increasing.

        Returns:
            The rows, in the dtype of the dataset.

        Raises:
            GradlightError: The dataset is damaged or must not be read.
        """

    def close(self) -> None:
        """Close the files."""


def to_row_numbers(rows: slice | np.ndarray, count: int) -> np.ndarray:
    """Convert a selection of rows to numbers from 0.

    Args:
        rows: A slice, or whole numbers of which negative ones count from the end.
        count: The number of rows that exist.

    Returns:
        int64 [n].

    Raises:
        GradlightError: The selection is of another kind, or a row does not exist.

    Example:
        >>> to_row_numbers(np.array([0, -1]), 5).tolist(), to_row_numbers(slice(3, None), 5).tolist()
        ([0, 4], [3, 4])
    """
    if isinstance(rows, slice):
        return np.arange(count)[rows]
    numbers = np.asarray(rows)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise GradlightError(
            f"rows are a slice or whole numbers in one dimension, got {numbers.dtype} {[*numbers.shape]}"
        )
    if (outside := (numbers < -count) | (numbers >= count)).any():
        raise GradlightError(f"there are {count} rows of maps, and row {numbers[outside][0]} was asked for")
    return np.where(numbers < 0, numbers + count, numbers).astype(np.int64)


class _CheckedDataset(NamedTuple):
    """A dataset that has passed the guards, and how it is stored."""

    data: h5py.Dataset
    chunk: tuple[int, ...] | None
    chunk_bytes: int
    filters: list[int]


class PlainBlocks:
    """Reads rows of one plain file.

    Args:
        path: The file, for messages.
        file: The open file.
    """

    def __init__(self, path: PathLike, file: h5py.File) -> None:
        self._path = path
        self._file = file
        self._datasets: dict[str, _CheckedDataset] = {}

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read increasing rows of one dataset as they are stored; raises GradlightError for what must not be read."""
        with damage_as_error(self._path):
            dataset = self.dataset(name)
            self._check_chunks(name, dataset, rows)
            out = np.empty((len(rows), *dataset.data.shape[1:]), dataset.data.dtype)
            breaks = np.flatnonzero(np.diff(rows) != 1) + 1
            for first, end in zip([0, *breaks], [*breaks, len(rows)], strict=True):
                if first < end:
                    dataset.data.read_direct(out, np.s_[rows[first] : rows[end - 1] + 1], np.s_[first:end])
            return out

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def dataset(self, name: str) -> _CheckedDataset:
        """Open a dataset, after the guards; raises GradlightError where it must not be read."""
        if (dataset := self._datasets.get(name)) is None:
            if reason := find_path_danger(self._file, name):
                raise unsafe_file_error(self._path, reason)
            data = self._file[name]
            if reason := next(find_map_dangers(data, name, None), None):
                raise unsafe_file_error(self._path, reason)
            filters = list_filters(data.id.get_create_plist())
            if missing := find_missing_filter(filters):
                raise GradlightError(f"{format_path(self._path)}: {missing}")
            chunk_bytes = math.prod(data.chunks or ()) * data.dtype.itemsize
            dataset = self._datasets[name] = _CheckedDataset(data, data.chunks, chunk_bytes, filters)
        return dataset

    def _check_chunks(self, name: str, dataset: _CheckedDataset, rows: np.ndarray) -> None:
        """Raise GradlightError where a chunk of these rows must not be decompressed."""
        data, chunk = dataset.data, dataset.chunk
        if chunk is None:
            return
        starts = [np.unique(rows // chunk[0]) * chunk[0]]
        starts += [np.arange(0, extent, side) for extent, side in zip(data.shape[1:], chunk[1:], strict=True)]
        for offset in product(*(axis.tolist() for axis in starts)):
            if reason := find_chunk_danger(data, dataset.filters, dataset.chunk_bytes, offset):
                raise unsafe_file_error(self._path, f"{name} {reason}")


class ShardBlocks:
    """Reads rows of an index from its shards, of which a few stay open.

    Args:
        path: The index.
        file: The open index.
        shards: Its shards.
    """

    def __init__(self, path: Path, file: h5py.File, shards: ShardList) -> None:
        self._folder = path.parent / shards.folder
        self._file = file
        self._spans = shards.spans()
        self._stops = np.array([stop for _, _, stop in self._spans])
        self._open: OrderedDict[str, PlainBlocks] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Read increasing rows of one dataset as they are stored; raises GradlightError for what must not be read."""
        virtual = self._file[name]
        out = np.empty((len(rows), *virtual.shape[1:]), virtual.dtype)
        owners = np.searchsorted(self._stops, rows, side="right")
        for owner in np.unique(owners):
            shard, start, stop = self._spans[owner]
            first, end = np.searchsorted(owners, [owner, owner + 1])
            blocks = self._blocks(shard)
            with damage_as_error(self._folder / shard):
                data = blocks.dataset(name).data
                if (data.shape, data.dtype) != ((stop - start, *virtual.shape[1:]), virtual.dtype):
                    raise GradlightError(
                        f"{format_path(self._folder / shard)}: {name} holds {data.dtype} {[*data.shape]}, and its index"
                        f" expects {virtual.dtype} {[stop - start, *virtual.shape[1:]]}. Make the index again."
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
        """Open a shard, or give it where it is open."""
        with self._lock:
            if (blocks := self._open.get(shard)) is None:
                path = self._folder / shard
                with damage_as_error(path):
                    blocks = self._open[shard] = PlainBlocks(path, open_maps_file(path))
                # Only dropped, not closed: another thread may still read from it.
                while len(self._open) > _OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return blocks
