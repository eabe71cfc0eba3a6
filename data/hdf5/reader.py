"""Reading a file of maps piece by piece: tables as columns, rows of maps only when they are asked for."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar, overload

import h5py
import numpy as np

from ...errors import GradlightError, nearest
from ...files import INDEX, PathLike, format_path, refuse_broken_seal
from .blocks import Blocks, PlainBlocks, ShardBlocks, damage_explained, open_ours, positions, refusal, signature
from .safety import ShardList, attribute, danger, map_datasets, shard_list
from .schema import TABLES, Failure, Header, ImageRow, LayerRow, TargetRow, format_key, location
from .validation import problems, summary, view_problems

__all__ = ["MapsFile", "StoredRows", "open_maps"]

_SMALL = 2**26  # bytes that are read in a moment

Row = TypeVar("Row", covariant=True)
Key = tuple[str, str]


class StoredRows(Sequence[Row]):
    """The rows of a table, each made when it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Row]) -> None:
        self._count = count
        self._make = make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._make(row) for row in range(self._count)[index]]
        return self._make(range(self._count)[index])


class MapsFile:
    """One open file of maps, or an index with its shards.

    Only the header and the counts are read at once; a column, a view or a row of maps when it is asked for. It may
    be used from several threads, in forked processes, and after pickling, which opens the file again by its absolute
    path. Use it as a context manager, or call `close`.

    layers: (method, layer) -> LayerRow, in the order of the file. images, targets, failures: sequences of rows.
    shards: the names and counts of an index's shards, None for a plain file. The other attributes are the header's.

    Raises GradlightError for a file that is missing, is not HDF5, belongs to another program, could do harm, is
    damaged, does not agree with itself, or has a format_version newer than this gradlight.
    """

    def __init__(self, path: PathLike) -> None:
        format_path(path)  # refuses what is no path
        self.path = Path(os.fsdecode(path))
        self._where = Path(os.path.abspath(self.path))
        self._columns: dict[tuple[str, str], np.ndarray] = {}
        self._closed = False
        with damage_explained(self.path):
            refuse_broken_seal(self.path, (INDEX,))
            file = open_ours(self.path)
            try:
                self._signature = signature(self._where)
                self._learn(file)
            except BaseException:
                file.close()
                raise
        # A handle of the HDF5 library cannot be shared with a forked process: each has its own.
        self._processes: dict[int, tuple[h5py.File, Blocks]] = {os.getpid(): (file, self._blocks(file))}

    def _learn(self, file: h5py.File) -> None:
        if reason := danger(file):
            raise refusal(self.path, reason)
        if wrong := problems(file):
            raise GradlightError(
                f"{format_path(self.path)}: not a sound gradlight file: {summary(wrong)}. Save it again."
            )
        self.header = _header(file)
        self.model, self.objective, self.meta = self.header.model, self.header.objective, self.header.meta
        self.weights_sha256, self.gradlight_version = self.header.weights_sha256, self.header.gradlight_version
        self.pixels, self.complete = self.header.pixels, self.header.complete
        self.shards: ShardList | None = shard_list(attribute(file, "shards"))
        datasets = dict(map_datasets(file, "maps"))
        self.layers: dict[Key, LayerRow] = {key: _layer_row(data) for key, data in datasets.items()}
        self._kinds = {key: (tuple(map(int, data.shape)), data.dtype) for key, data in datasets.items()}
        counts = {table: len(file[table][column]) for table, (column, *_) in TABLES.items()}
        self.images: Sequence[ImageRow] = StoredRows(counts["images"], self._image)
        self.targets: Sequence[TargetRow] = StoredRows(counts["targets"], self._target)
        self.failures: Sequence[Failure] = StoredRows(counts["failures"], self._failure)

    @property
    def target_images(self) -> np.ndarray:
        """Give the column /targets/image: the row of its image for each map, int64 [M]."""
        return self.column("targets", "image").astype(np.int64, copy=False)

    def shape(self, key: Key) -> tuple[int, ...]:
        """Give the shape (M,h,w) of the maps of a method at a layer; raises GradlightError where there are none."""
        return self._kind(key)[0]

    def dtype(self, key: Key) -> np.dtype:
        """Give how these maps are stored, float32 or float16; raises GradlightError where there are none."""
        return self._kind(key)[1]

    def column(self, table: str, column: str) -> np.ndarray:
        """Give a column as it is stored; texts are bytes."""
        if (known := self._columns.get((table, column))) is None:
            with damage_explained(self.path):
                known = self._columns[table, column] = self._opened()[0][table][column][:]
        return known

    def columns(self) -> dict[str, dict[str, np.ndarray]]:
        """Give all columns of all tables as they are stored."""
        return {table: {name: self.column(table, name) for name in kinds} for table, kinds in TABLES.items()}

    def stored(self, key: Key, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Give rows of maps as they are stored, and their scales [n], which are None for float32."""
        (count, *_), dtype = self._kind(key)
        asked = positions(rows, count)
        ordered = bool(np.all(np.diff(asked) > 0))
        wanted, back = (asked, np.s_[:]) if ordered else np.unique(asked, return_inverse=True)
        try:
            blocks = self._opened()[1]
            values = blocks.read(location("maps", key), wanted)[back]
            scale = blocks.read(location("scale", key), wanted)[back] if dtype == np.float16 else None
        except GradlightError:
            self._refuse_closed()  # by another thread, meanwhile
            raise
        return values, scale

    def read(self, key: Key, rows: slice | np.ndarray) -> np.ndarray:
        """Read the maps of these rows, float32 [n,h,w], in the order asked for.

        rows: a slice, or whole numbers in any order, also repeated; negative ones count from the end. Only these rows
        come from the disk. Raises GradlightError for unknown keys and rows, for damage, and after `close`.
        """
        values, scale = self.stored(key, rows)
        return values if scale is None else values.astype(np.float32) * scale[:, None, None]

    def stored_bytes(self) -> int:
        """Give the size of the file, with all its shards."""
        folder = self._where.parent
        names = [f"{self.shards.folder}/{shard.name}" for shard in self.shards.files] if self.shards else []
        with damage_explained(self.path):
            return sum(signature(path)[0] for path in (self._where, *(folder / name for name in names)))

    def close(self) -> None:
        """Close the file in this process; reading it afterwards raises GradlightError."""
        self._closed = True
        if opened := self._processes.pop(os.getpid(), None):
            opened[1].close()

    def __enter__(self) -> MapsFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., MapsFile], tuple[Path, tuple[int, int]]]:
        self._refuse_closed()
        return _again, (self._where, self._signature)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.images)} images, {len(self.targets)} maps per layer"
        return f"MapsFile({str(self.path)!r}: {state})"

    def _opened(self) -> tuple[h5py.File, Blocks]:
        self._refuse_closed()
        if (opened := self._processes.get(os.getpid())) is None:
            self.refuse_change(self._signature)
            file = open_ours(self._where)
            opened = self._processes.setdefault(os.getpid(), (file, self._blocks(file)))
            if opened[0] is not file:  # another thread was faster
                file.close()
        return opened

    def _blocks(self, file: h5py.File) -> Blocks:
        return ShardBlocks(self._where, file, self.shards) if self.shards else PlainBlocks(self._where, file)

    def refuse_change(self, expected: tuple[int, int]) -> None:
        """Raise GradlightError where the file is not the one of this size and time of change."""
        if signature(self._where) != expected:
            raise GradlightError(f"{format_path(self.path)}: changed since it was opened. Open it again.")

    def _refuse_closed(self) -> None:
        if self._closed:
            raise GradlightError(f"{format_path(self.path)}: was closed. Open it again to read from it.")

    def _kind(self, key: Key) -> tuple[tuple[int, ...], np.dtype]:
        if found := self._kinds.get(key):
            return found
        near = nearest("/".join(map(str, key)), ["/".join(known) for known in self._kinds])
        raise GradlightError(f"{format_path(self.path)}: no maps of {format_key(key)}.{near}")

    def _image(self, row: int) -> ImageRow:
        path, sha256, width, height, view = (self.column("images", name)[row] for name in TABLES["images"])
        if wrong := next(view_problems([view], row), None):
            raise GradlightError(f"{format_path(self.path)}: not a sound gradlight file: {wrong}. Save it again.")
        return ImageRow(_text(path), _text(sha256), int(width), int(height), json.loads(_text(view)))

    def _target(self, row: int) -> TargetRow:
        image, kind, index, label, score = (self.column("targets", name)[row] for name in TABLES["targets"])
        return TargetRow(int(image), _text(kind), int(index), _text(label), float(score))

    def _failure(self, row: int) -> Failure:
        return Failure(*(_text(self.column("failures", name)[row]) for name in TABLES["failures"]))


def open_maps(path: PathLike) -> MapsFile:
    """Open a file of maps; a small one is read through first, so that damage is told before the HDF5 library meets it.

    Raises GradlightError as `MapsFile` does.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):  # MapsFile says what is wrong with the path
        if os.stat(os.fsdecode(path)).st_size <= _SMALL:
            refuse_broken_seal(path)
    return MapsFile(path)


def _again(path: Path, expected: tuple[int, int]) -> MapsFile:
    found = MapsFile(path)
    found.refuse_change(expected)
    return found


def _header(file: h5py.File) -> Header:
    height, width = (int(side) for side in attribute(file, "pixels"))
    return Header(
        **{name: json.loads(attribute(file, name)) for name in ("model", "objective", "meta")},
        weights_sha256=attribute(file, "weights_sha256"),
        pixels=(height, width),
        gradlight_version=attribute(file, "gradlight_version"),
        complete=bool(attribute(file, "complete")),
    )


def _layer_row(dataset: h5py.Dataset) -> LayerRow:
    vertical, horizontal = (float(side) for side in attribute(dataset, "stride"))
    names = attribute(dataset, "method"), attribute(dataset, "layer")
    return LayerRow(*names, int(attribute(dataset, "depth")), (vertical, horizontal))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")
