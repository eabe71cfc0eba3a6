"""Looking through a whole file of maps: what opening it checks, and every text, chunk and number besides."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ...errors import GradlightError
from ...files import PathLike, format_path, refuse_broken_seal
from .reader import MapsFile
from .safety import ShardList, StoredShard
from .schema import TABLES, location
from .shards import Joined, differences, part_of
from .validation import view_problems

__all__ = ["verify"]

_BLOCK_BYTES = 2**24


def verify(path: PathLike) -> list[str]:
    """List what is wrong with a file of maps, one sentence each; an empty list means it is sound.

    Reads every byte, row and chunk, whose checksums tell damage, a few megabytes at a time. Of an index also every
    shard, and whether the index still agrees with it. A file that cannot be opened at all has that one problem.
    """
    try:
        refuse_broken_seal(path)
        with MapsFile(path) as file:
            problems = [*_table_problems(file)]
            if file.shards is None:
                return [*problems, *_map_problems(file)]
            return [*problems, *_index_problems(file, file.shards)]
    except GradlightError as error:
        return [str(error)]


def _table_problems(file: MapsFile) -> Iterator[str]:
    views = file.columns()["images"]["view"]
    yield from (f"{format_path(file.path)}: {wrong}" for wrong in view_problems(views))


def _map_problems(file: MapsFile) -> Iterator[str]:
    for key in file.layers:
        count, height, width = file.shape(key)
        step = max(1, _BLOCK_BYTES // (height * width * 4))
        for start in range(0, count, step):
            where = f"{format_path(file.path)}: {location('maps', key)}, rows {start} to {min(start + step, count) - 1}"
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
    whole = part_of(file)
    starts = dict.fromkeys(TABLES, 0)
    for shard in shards.files:
        path = file.path.parent / shards.folder / shard.name
        try:
            refuse_broken_seal(path)
            with MapsFile(path) as part:
                if part.shards is None:
                    yield from _table_problems(part)
                    yield from _map_problems(part)
                    yield from (
                        f"{format_path(path)}: {wrong}" for wrong in _disagreements(whole, part_of(part), shard, starts)
                    )
                else:
                    yield f"{format_path(path)}: is itself an index, and not a shard"
        except GradlightError as error:
            yield str(error)
        starts = {table: start + count for (table, start), count in zip(starts.items(), shard[1:], strict=True)}


def _disagreements(whole: Joined, part: Joined, named: StoredShard, starts: dict[str, int]) -> Iterator[str]:
    yield from (f"its index disagrees: {wrong}" for wrong in differences(whole, part))
    if whole.header.complete and not part.header.complete:
        yield "is not complete, and its index says that everything is"
    for table, found, expected in zip(TABLES, part.shards[0][1:], named[1:], strict=True):
        if found != expected:
            yield f"has {found} rows of /{table}, and its index says {expected}"
    for table, columns in part.columns.items():
        for name, rows in columns.items():
            inside = whole.columns[table][name][starts[table] : starts[table] + len(rows)]
            shift = starts["images"] if (table, name) == ("targets", "image") else None
            if not _same(inside, rows if shift is None else rows + shift):
                yield f"its index has other rows of /{table}/{name}"


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind == "f":  # a score may be NaN
        return bool(np.array_equal(one, other, equal_nan=True))
    return bool(np.array_equal(one, other))
