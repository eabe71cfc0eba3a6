"""Verification of a complete file of maps: the checks of opening it, and every text, chunk and number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...errors import GradlightError
from ...files import PathLike, check_seal, format_path
from .reader import MapsFile
from .schema import TABLES, ShardList, StoredShard, dataset_path
from .shards import ShardContents, find_differences, read_contents
from .validation import find_view_problems

__all__ = ["verify"]

_BLOCK_BYTES = 2**24  # of maps that are read at once


def verify(path: PathLike) -> list[str]:
    """Find what is wrong with a file of maps.

    Every byte, row and chunk is read, a few megabytes at a time; the checksums of chunks detect damage. Of an index,
    every shard is verified too, and whether it still matches the index.

    Args:
        path: The file.

    Returns:
        One sentence per problem; none where the file is valid. A file that cannot be opened has that one problem.

    Example:
        >>> verify("missing.h5")
        ['missing.h5: cannot be opened: No such file or directory. Check the path and its permissions.']
    """
    try:
        check_seal(path)
        with MapsFile(path) as file:
            problems = [*_table_problems(file)]
            if file.shards is None:
                return [*problems, *_map_problems(file)]
            return [*problems, *_index_problems(file, file.shards)]
    except GradlightError as error:
        return [str(error)]


def _table_problems(file: MapsFile) -> Iterator[str]:
    """Check the views of all images."""
    views = file.columns()["images"]["view"]
    yield from (f"{format_path(file.path)}: {problem}" for problem in find_view_problems(views))


def _map_problems(file: MapsFile) -> Iterator[str]:
    """Read all maps and scales, and check their numbers."""
    for key in file.layers:
        count, height, width = file.shape(key)
        step = max(1, _BLOCK_BYTES // (height * width * 4))
        for start in range(0, count, step):
            where = (
                f"{format_path(file.path)}: {dataset_path('maps', key)}, rows {start} to {min(start + step, count) - 1}"
            )
            try:
                values, scale = file.stored(key, np.s_[start : start + step])
            except GradlightError as error:
                yield f"{where}: {error}"
                continue
            finite = np.isfinite(values).all(axis=(1, 2))
            if not finite.all():
                yield f"{where}: {(~finite).sum()} maps are not finite, the first is row {start + int(finite.argmin())}"
            if scale is not None and not (np.isfinite(scale) & (scale > 0)).all():
                yield f"{where}: a scale is not a positive number"


def _index_problems(file: MapsFile, shards: ShardList) -> Iterator[str]:
    """Verify all shards of an index, and compare them with it."""
    index = read_contents(file)
    starts = dict.fromkeys(TABLES, 0)
    for shard in shards.files:
        path = file.path.parent / shards.folder / shard.name
        try:
            check_seal(path)
            with MapsFile(path) as shard_file:
                if shard_file.shards is None:
                    yield from _table_problems(shard_file)
                    yield from _map_problems(shard_file)
                    mismatches = _find_mismatches(index, read_contents(shard_file), shard, starts)
                    yield from (f"{format_path(path)}: {mismatch}" for mismatch in mismatches)
                else:
                    yield f"{format_path(path)}: is itself an index, and not a shard"
        except GradlightError as error:
            yield str(error)
        starts = {table: start + count for (table, start), count in zip(starts.items(), shard[1:], strict=True)}


def _find_mismatches(
    index: ShardContents, shard: ShardContents, listed: StoredShard, starts: dict[str, int]
) -> Iterator[str]:
    """Compare a shard with the index that lists it; starts has the first row of the shard in each table."""
    yield from (f"its index disagrees: {difference}" for difference in find_differences(index, shard))
    if index.header.complete and not shard.header.complete:
        yield "is not complete, and its index says that everything is"
    for table, count, expected in zip(TABLES, shard.shards[0][1:], listed[1:], strict=True):
        if count != expected:
            yield f"has {count} rows of /{table}, and its index says {expected}"
    for table, columns in shard.columns.items():
        for name, rows in columns.items():
            index_rows = index.columns[table][name][starts[table] : starts[table] + len(rows)]
            shift = starts["images"] if (table, name) == ("targets", "image") else None
            if not _are_equal(index_rows, rows if shift is None else rows + shift):
                yield f"its index has other rows of /{table}/{name}"


def _are_equal(first: np.ndarray, second: np.ndarray) -> bool:
    """Compare columns; two scores that are NaN are equal."""
    if first.dtype.kind == "f":
        return bool(np.array_equal(first, second, equal_nan=True))
    return bool(np.array_equal(first, second))
