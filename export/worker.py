"""The work of one process: shard after shard with one model, stopped only between batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.hdf5.schema import StoredMaps
from ..models.base import Explainable
from ..models.preserve import preserved
from .explaining import BatchExplainer, concatenate
from .folder import ShardFolder
from .loading import LoadedPhoto, PhotoLoader
from .plan import ExportSettings, Shard
from .progress import BatchReport

__all__ = ["ShardTask", "ShardWorker"]


@dataclass(frozen=True)
class ShardTask:
    """Everything that a process needs to make shards; it can be sent to other processes and hosts.

    Args:
        make: Makes the model; must be picklable for other processes.
        settings: How images are explained.
        output: The output, which names the folder of the shards.
        readers: Processes that read photos ahead of the network.
    """

    make: Callable[[], Explainable]
    settings: ExportSettings
    output: Path
    readers: int


class ShardWorker:
    """Makes the shards of a task with one model.

    Args:
        task: The task.
        model: The model; made by the task unless given.
    """

    def __init__(self, task: ShardTask, model: Explainable | None = None) -> None:
        self.task = task
        self.model = task.make() if model is None else model
        self.folder = ShardFolder(task.output)
        self._explain = BatchExplainer(self.model, task.settings)
        self._loader = PhotoLoader(self.model.preprocess, task.readers)

    def make_shard(self, shard: Shard, stop: Callable[[], bool], report: Callable[[BatchReport], None]) -> bool:
        """Make a shard, from where an earlier run stopped.

        Finished batches are kept, also those before an error, which is raised again.

        Args:
            shard: The shard.
            stop: Called before each batch; True stops.
            report: Called with each finished batch.

        Returns:
            True if the shard is finished, False if it was stopped.
        """
        batches = shard.batches
        finished, part = self.folder.read_part(shard.number)
        contents = [self._first_content(shard) if part is None else part]
        if finished:
            report(BatchReport(sum(map(len, batches[:finished])), tuple(contents[0].failures)))
        finished_before, complete = finished, False
        try:
            loaded = self._loader.batches(batches[finished:])
            with preserved(self.model.network):
                while finished < len(batches) and (batch := _next_batch(loaded, stop)) is not None:
                    contents.append(self._explain(batch))
                    finished += 1
                    report(BatchReport(len(batches[finished - 1]), tuple(contents[-1].failures)))
            complete = finished == len(batches)
        finally:
            if finished > finished_before and not complete:
                content = _content_of_shard(contents, complete=False)
                self.folder.write_part(shard.number, finished, content, **self._write_options)
        if not complete:
            return False
        self.folder.write_shard(shard.number, _content_of_shard(contents, complete=True), **self._write_options)
        return True

    def close(self) -> None:
        """End the processes that read ahead."""
        self._loader.close()

    def _first_content(self, shard: Shard) -> StoredMaps:
        """Give the content of a shard before its first batch: its earlier failures."""
        empty = self._explain.empty()
        empty.failures = list(shard.failures)
        return empty

    @property
    def _write_options(self) -> dict[str, Any]:
        settings = self.task.settings
        return {"compression": settings.compression, "dtype": settings.dtype}


def _content_of_shard(contents: list[StoredMaps], *, complete: bool) -> StoredMaps:
    content = concatenate(contents)
    content.complete = complete
    return content


def _next_batch(loaded: Iterator[list[LoadedPhoto]], stop: Callable[[], bool]) -> list[LoadedPhoto] | None:
    """Take the next batch; None to stop, when a signal to the process group may have ended the readers already."""
    if stop():
        return None
    try:
        return next(loaded)
    except RuntimeError:
        if stop():
            return None
        raise
