"""Reading a file of maps: all of it, or lazily by columns of tables and rows of maps."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar, overload

import h5py
import numpy as np

from ...errors import GradlightError, nearest
from ...files import INDEX_MARK, PathLike, check_seal, format_path
from .blocks import Blocks, PlainBlocks, ShardBlocks, to_row_numbers
from .safety import (
    damage_as_error,
    file_signature,
    find_danger,
    map_datasets,
    open_maps_file,
    read_attribute,
    unsafe_file_error,
)
from .schema import (
    TABLES,
    Failure,
    Header,
    ImageRow,
    Key,
    LayerRow,
    ShardList,
    StoredMaps,
    TargetRow,
    dataset_path,
    format_key,
    parse_shard_list,
)
from .validation import find_problems, find_view_problems, format_problems

__all__ = ["MapsFile", "StoredRows", "open_maps", "read"]

_SMALL_FILE_BYTES = 2**26  # of a file that is read in a moment
_BOMB_BYTES = 2**30  # maps that are larger, and so many times larger than their file, are not read at once
_BOMB_RATIO = 100

Row = TypeVar("Row", covariant=True)


class StoredRows(Sequence[Row]):
    """The rows of a table, each of which is created on access.

    Args:
        count: The number of rows.
        make_row: Creates a row from its number.

    Example:
        >>> rows = StoredRows(3, lambda number: number * 10)
        >>> rows[-1], rows[:2]
        (20, [0, 10])
    """

    def __init__(self, count: int, make_row: Callable[[int], Row]) -> None:
        self._count = count
        self._make_row = make_row

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self._make_row(row) for row in range(self._count)[index]]
        return self._make_row(range(self._count)[index])


class MapsFile:
    """An open file of maps, or an index with its shards.

    Only the header and the counts are read at once; columns, views and rows of maps are read on access. The object
    can be used by several threads, in forked processes, and after pickling, which opens the file again by its
    absolute path. Use it as a context manager, or call `close`.

    Attributes:
        path: The file.
        header: The properties of all maps; its fields are attributes of this object too.
        layers: (method, layer) → the origin of its maps, in the order of the file.
        images: The sequence of `ImageRow`.
        targets: The sequence of `TargetRow`, one per map.
        failures: The sequence of `Failure`.
        shards: The shards of an index, None for a plain file.

    Args:
        path: The file.

    Raises:
        GradlightError: The file is missing, is not HDF5, belongs to another program, is unsafe, damaged or
            inconsistent, or has a format_version newer than this gradlight.
    """

    def __init__(self, path: PathLike) -> None:
        format_path(path)  # raises GradlightError where the argument is not a path
        self.path = Path(os.fsdecode(path))
        self._absolute_path = Path(os.path.abspath(self.path))
        self._columns: dict[tuple[str, str], np.ndarray] = {}
        self._closed = False
        with damage_as_error(self.path):
            check_seal(self.path, (INDEX_MARK,))
            file = open_maps_file(self.path)
            try:
                self._signature = file_signature(self._absolute_path)
                self._read_structure(file)
            except BaseException:
                file.close()
                raise
        # A handle of the HDF5 library cannot be shared with a forked process, so each process opens its own.
        self._processes: dict[int, tuple[h5py.File, Blocks]] = {os.getpid(): (file, self._blocks(file))}

    def _read_structure(self, file: h5py.File) -> None:
        """Check the file, and read its header, its layers and the counts of its rows."""
        if reason := find_danger(file):
            raise unsafe_file_error(self.path, reason)
        if problems := find_problems(file):
            raise GradlightError(
                f"{format_path(self.path)}: not a sound gradlight file: {format_problems(problems)}. Save it again."
            )
        self.header = _read_header(file)
        self.model, self.objective, self.meta = self.header.model, self.header.objective, self.header.meta
        self.weights_sha256, self.gradlight_version = self.header.weights_sha256, self.header.gradlight_version
        self.pixels, self.complete = self.header.pixels, self.header.complete
        self.shards: ShardList | None = parse_shard_list(read_attribute(file, "shards"))
        datasets = dict(map_datasets(file, "maps"))
        self.layers: dict[Key, LayerRow] = {key: _read_layer_row(data) for key, data in datasets.items()}
        self._arrays = {key: (tuple(map(int, data.shape)), data.dtype) for key, data in datasets.items()}
        counts = {table: len(file[table][column]) for table, (column, *_) in TABLES.items()}
        self.images: Sequence[ImageRow] = StoredRows(counts["images"], self._image)
        self.targets: Sequence[TargetRow] = StoredRows(counts["targets"], self._target)
        self.failures: Sequence[Failure] = StoredRows(counts["failures"], self._failure)

    @property
    def target_images(self) -> np.ndarray:
        """The column /targets/image: the row of the image of each map, int64 [M]."""
        return self.column("targets", "image").astype(np.int64, copy=False)

    def shape(self, key: Key) -> tuple[int, ...]:
        """Give the shape (M, h, w) of the maps of a method at a layer; raises GradlightError where there are none."""
        return self._array(key)[0]

    def dtype(self, key: Key) -> np.dtype:
        """Give the stored dtype of these maps, float32 or float16; raises GradlightError where there are none."""
        return self._array(key)[1]

    def column(self, table: str, column: str) -> np.ndarray:
        """Read a column of a table as it is stored; texts are bytes."""
        if (values := self._columns.get((table, column))) is None:
            with damage_as_error(self.path):
                values = self._columns[table, column] = self._opened()[0][table][column][:]
        return values

    def columns(self) -> dict[str, dict[str, np.ndarray]]:
        """Read all columns of all tables as they are stored."""
        return {table: {name: self.column(table, name) for name in kinds} for table, kinds in TABLES.items()}

    def stored(self, key: Key, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Read maps as they are stored.

        Args:
            key: (method, layer).
            rows: As for `read`.

        Returns:
            The maps [n,h,w], float32 or float16, and the scales [n] of float16, None for float32.

        Raises:
            GradlightError: As for `read`.
        """
        (count, *_), dtype = self._array(key)
        numbers = to_row_numbers(rows, count)
        # Rows are read in the order of the file, each once, and then put into the order of the request.
        increasing = bool(np.all(np.diff(numbers) > 0))
        unique, inverse = (numbers, np.s_[:]) if increasing else np.unique(numbers, return_inverse=True)
        try:
            blocks = self._opened()[1]
            values = blocks.read(dataset_path("maps", key), unique)[inverse]
            scale = blocks.read(dataset_path("scale", key), unique)[inverse] if dtype == np.float16 else None
        except GradlightError:
            self._check_not_closed()  # another thread may have closed it meanwhile
            raise
        return values, scale

    def read(self, key: Key, rows: slice | np.ndarray) -> np.ndarray:
        """Read maps; only their rows are read from the disk.

        Args:
            key: (method, layer).
            rows: A slice, or whole numbers in any order, also repeated; negative ones count from the end.

        Returns:
            The maps, float32 [n,h,w], in the order of rows.

        Raises:
            GradlightError: The key or a row does not exist, the file is damaged, or it is closed.
        """
        values, scale = self.stored(key, rows)
        return values if scale is None else values.astype(np.float32) * scale[:, None, None]

    def stored_bytes(self) -> int:
        """Give the size of the file and all its shards in bytes."""
        folder = self._absolute_path.parent
        names = [f"{self.shards.folder}/{shard.name}" for shard in self.shards.files] if self.shards else []
        with damage_as_error(self.path):
            return sum(file_signature(path)[0] for path in (self._absolute_path, *(folder / name for name in names)))

    def close(self) -> None:
        """Close the file in this process; reading it afterwards raises GradlightError."""
        self._closed = True
        if opened := self._processes.pop(os.getpid(), None):
            opened[1].close()

    def __enter__(self) -> MapsFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., MapsFile], tuple[Path, tuple[int, int]]]:
        self._check_not_closed()
        return _reopen, (self._absolute_path, self._signature)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.images)} images, {len(self.targets)} maps per layer"
        return f"MapsFile({str(self.path)!r}: {state})"

    def _opened(self) -> tuple[h5py.File, Blocks]:
        """Give the file as it is open in this process, where it is opened if necessary."""
        self._check_not_closed()
        if (opened := self._processes.get(os.getpid())) is None:
            self.check_unchanged(self._signature)
            file = open_maps_file(self._absolute_path)
            opened = self._processes.setdefault(os.getpid(), (file, self._blocks(file)))
            if opened[0] is not file:  # another thread was faster
                file.close()
        return opened

    def _blocks(self, file: h5py.File) -> Blocks:
        """Create the reader of rows."""
        return (
            ShardBlocks(self._absolute_path, file, self.shards)
            if self.shards
            else PlainBlocks(self._absolute_path, file)
        )

    def check_unchanged(self, expected: tuple[int, int]) -> None:
        """Raise GradlightError where the file has another size or modification time."""
        if file_signature(self._absolute_path) != expected:
            raise GradlightError(f"{format_path(self.path)}: changed since it was opened. Open it again.")

    def _check_not_closed(self) -> None:
        """Raise GradlightError where the file is closed."""
        if self._closed:
            raise GradlightError(f"{format_path(self.path)}: was closed. Open it again to read from it.")

    def _array(self, key: Key) -> tuple[tuple[int, ...], np.dtype]:
        """Give the shape and the dtype of maps; raises GradlightError where there are none."""
        if array := self._arrays.get(key):
            return array
        near = nearest("/".join(map(str, key)), ["/".join(existing) for existing in self._arrays])
        raise GradlightError(f"{format_path(self.path)}: no maps of {format_key(key)}.{near}")

    def _image(self, row: int) -> ImageRow:
        """Create a row of /images."""
        path, sha256, width, height, view = (self.column("images", name)[row] for name in TABLES["images"])
        if problem := next(find_view_problems([view], row), None):
            raise GradlightError(f"{format_path(self.path)}: not a sound gradlight file: {problem}. Save it again.")
        return ImageRow(_text(path), _text(sha256), int(width), int(height), json.loads(_text(view)))

    def _target(self, row: int) -> TargetRow:
        """Create a row of /targets."""
        image, kind, index, label, score = (self.column("targets", name)[row] for name in TABLES["targets"])
        return TargetRow(int(image), _text(kind), int(index), _text(label), float(score))

    def _failure(self, row: int) -> Failure:
        """Create a row of /failures."""
        return Failure(*(_text(self.column("failures", name)[row]) for name in TABLES["failures"]))


def open_maps(path: PathLike) -> MapsFile:
    """Open a file of maps; the seal of a small file is checked first, before the HDF5 library meets any damage.

    Args:
        path: The file.

    Returns:
        The open file.

    Raises:
        GradlightError: As for `MapsFile`.
    """
    with contextlib.suppress(OSError, ValueError, TypeError):  # MapsFile raises the error for an invalid path
        if os.stat(os.fsdecode(path)).st_size <= _SMALL_FILE_BYTES:
            check_seal(path)
    return MapsFile(path)


def read(path: PathLike) -> StoredMaps:
    """Read a complete file into memory, of an index all its shards.

    Args:
        path: The file.

    Returns:
        Its content.

    Raises:
        GradlightError: As for `MapsFile`; or the maps are damaged, or larger than 1 GiB and than 100 times the file.
    """
    check_seal(path)
    with MapsFile(path) as file:
        _check_no_bomb(file)
        header = {field.name: getattr(file.header, field.name) for field in dataclasses.fields(file.header)}
        return StoredMaps(
            **header,
            images=list(file.images),
            targets=list(file.targets),
            failures=list(file.failures),
            maps={key: file.read(key, np.s_[:]) for key in file.layers},
            layers=dict(file.layers),
        )


def _check_no_bomb(file: MapsFile) -> None:
    """Raise GradlightError for a small file whose maps need much memory."""
    needed = sum(4 * int(np.prod(file.shape(key), dtype=np.int64)) for key in file.layers)
    if needed > _BOMB_BYTES and needed > _BOMB_RATIO * (size := file.stored_bytes()):
        raise GradlightError(
            f"{format_path(file.path)}: its {size:,} bytes stand for {needed:,} bytes of maps. Read them a few rows at"
            " a time, with MapsFile."
        )


def _reopen(path: Path, expected: tuple[int, int]) -> MapsFile:
    """Open a file after pickling; raises GradlightError where it has changed."""
    file = MapsFile(path)
    file.check_unchanged(expected)
    return file


def _read_header(file: h5py.File) -> Header:
    """Read the attributes of the root."""
    height, width = (int(side) for side in read_attribute(file, "pixels"))
    return Header(
        **{name: json.loads(read_attribute(file, name)) for name in ("model", "objective", "meta")},
        weights_sha256=read_attribute(file, "weights_sha256"),
        pixels=(height, width),
        gradlight_version=read_attribute(file, "gradlight_version"),
        complete=bool(read_attribute(file, "complete")),
    )


def _read_layer_row(dataset: h5py.Dataset) -> LayerRow:
    """Read the attributes of a dataset of maps."""
    vertical, horizontal = (float(side) for side in read_attribute(dataset, "stride"))
    names = read_attribute(dataset, "method"), read_attribute(dataset, "layer")
    edges = read_attribute(dataset, "extent")
    top, left, bottom, right = (0.0,) * 4 if edges is None else map(float, edges)
    extent = None if edges is None else (top, left, bottom, right)
    return LayerRow(*names, int(read_attribute(dataset, "depth")), (vertical, horizontal), extent)


def _text(value: bytes) -> str:
    """Decode a text; bytes of a path that are not UTF-8 become surrogate escapes."""
    return value.decode("utf-8", "surrogateescape")
