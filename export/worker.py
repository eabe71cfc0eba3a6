"""One process's work: shard after shard with one model, stopped only between batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.hdf5.schema import StoredMaps
from ..models.base import Explainable
from ..models.preserve import preserved
from .explaining import BatchExplainer, joined
from .folder import ShardFolder
from .loading import Loaded, PhotoLoading
from .plan import ExportSettings, Shard
from .progress import BatchReport

__all__ = ["ShardTask", "ShardWorker"]


@dataclass(frozen=True)
class ShardTask:
    """Everything that a process needs to make shards, here or on another machine.

    make: gives the model; it must travel to other processes. readers: processes that read photos ahead of the network.
    """

    make: Callable[[], Explainable]
    settings: ExportSettings
    output: Path
    readers: int


class ShardWorker:
    """A model at work on the shards of a task."""

    def __init__(self, task: ShardTask, model: Explainable | None = None) -> None:
        self.task = task
        self.model = task.make() if model is None else model
        self.folder = ShardFolder(task.output)
        self._explain = BatchExplainer(self.model, task.settings)
        self._reading = PhotoLoading(self.model.preprocess, task.readers)

    def do(self, shard: Shard, stop: Callable[[], bool], report: Callable[[BatchReport], None]) -> bool:
        """Make a shard, from where it was left; give False if it was stopped, with its whole batches kept.

        Also kept are the whole batches before an error, which is raised again.
        """
        batches = shard.batches
        done, before = self.folder.part(shard.number)
        pieces = [self._first(shard) if before is None else before]
        if done:
            report(BatchReport(sum(map(len, batches[:done])), tuple(pieces[0].failures)))
        begun, whole = done, False
        try:
            loaded = self._reading.batches(batches[done:])
            with preserved(self.model.network):
                while done < len(batches) and (batch := _next(loaded, stop)) is not None:
                    pieces.append(self._explain(batch))
                    done += 1
                    report(BatchReport(len(batches[done - 1]), tuple(pieces[-1].failures)))
            whole = done == len(batches)
        finally:
            if done > begun and not whole:
                self.folder.write_part(shard.number, done, self._whole(pieces, complete=False), **self._how)
        if not whole:
            return False
        self.folder.write_shard(shard.number, self._whole(pieces, complete=True), **self._how)
        return True

    def close(self) -> None:
        """End what reads ahead."""
        self._reading.close()

    def _first(self, shard: Shard) -> StoredMaps:
        """Begin a shard with what is known of it before."""
        empty = self._explain.empty()
        empty.failures = list(shard.failures)
        return empty

    def _whole(self, pieces: list[StoredMaps], *, complete: bool) -> StoredMaps:
        content = joined(pieces)
        content.complete = complete
        return content

    @property
    def _how(self) -> dict[str, Any]:
        settings = self.task.settings
        return {"compression": settings.compression, "dtype": settings.dtype}


def _next(loaded: Iterator[list[Loaded]], stop: Callable[[], bool]) -> list[Loaded] | None:
    """Take the next batch; None where the work is to stop, for which the readers of a group may have ended already."""
    if stop():
        return None
    try:
        return next(loaded)
    except RuntimeError:
        if stop():
            return None
        raise
