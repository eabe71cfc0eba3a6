"""The engine of a cluster: Ray Data hands the images of each shard to actors that hold the model."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import GradlightError
from ..models.base import Explainable
from .lists import Item
from .plan import Shard
from .progress import BatchReport, Reporter
from .worker import ShardTask, ShardWorker

__all__ = ["Ray"]

_STOP = "stop"  # a file in the folder of the shards that tells actors on any machine to stop


@dataclass(frozen=True)
class Ray:
    """A Ray cluster that is there already (address), or one of this machine's processes.

    workers: actors, each with a model. gpus: of each actor. The folder of the output must be reached under the same
    path from every machine. The shard of an actor that dies is given to another.
    """

    workers: int = 1
    address: str | None = None
    gpus: float = 0.0

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Hand out the shards and hear of each that is made, until all are or the work is stopped."""
        ray = _ray()
        marker = task.output.with_suffix(".shards").absolute() / _STOP
        marker.unlink(missing_ok=True)
        whole = True
        with _cluster(ray, self):
            rows = [{"shard": _to_text(shard)} for shard in shards]
            made = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
                _Maker,
                fn_constructor_args=(task, str(marker), os.getcwd()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, max(1, len(rows)))),
                num_gpus=self.gpus or None,
                max_restarts=-1,
                max_task_retries=-1,
            )
            try:
                for row in made.iter_rows():
                    failures = [(path, why) for path, why in json.loads(row["failures"])]
                    reporter.batch(BatchReport(int(row["images"]), failures))
                    whole = whole and bool(row["whole"])
                    if stop():
                        marker.touch()
            except ray.exceptions.RayError as error:
                raise GradlightError(f"An actor of the Ray cluster failed: {_last_line(error)}.") from error
        marker.unlink(missing_ok=True)
        return whole


class _Maker:
    """An actor: a worker that makes the shard of each row."""

    def __init__(self, task: ShardTask, marker: str, folder: str) -> None:
        os.chdir(folder)  # so that relative paths mean the same as where they were typed
        self._worker = ShardWorker(task)
        self._marker = Path(marker)

    def __call__(self, rows: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        shard = _from_text(str(rows["shard"][0]))
        told: list[BatchReport] = []
        whole = self._worker.do(shard, self._marker.exists, told.append)
        failures = json.dumps([failure for batch in told for failure in batch.failures])
        images = sum(batch.images for batch in told)
        return {"images": np.array([images]), "failures": np.array([failures]), "whole": np.array([whole])}


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip().rstrip(".") if str(error).strip() else type(error).__name__


def _to_text(shard: Shard) -> str:
    batches = [[(item.path, item.targets) for item in batch] for batch in shard.batches]
    return json.dumps([shard.number, batches, shard.failures])


def _from_text(text: str) -> Shard:
    number, batches, failures = json.loads(text)
    items = tuple(
        tuple(Item(path, None if targets is None else tuple(targets)) for path, targets in batch) for batch in batches
    )
    return Shard(number, items, tuple((path, why) for path, why in failures))


def _ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise GradlightError('The engine ray needs Ray: pip install "gradlight[ray]".') from error
    # The export's own bar tells how far it is.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextmanager
def _cluster(ray: Any, asked: Ray) -> Iterator[None]:
    """Join the cluster, or start one here with a core for each worker; it ends with the work."""
    if ray.is_initialized():
        yield
        return
    own = {} if asked.address else {"num_cpus": asked.workers + 1, "include_dashboard": False}
    try:
        _reach(asked.address)
        with _signals_kept():
            ray.init(address=asked.address, log_to_driver=False, logging_level="error", **own)
    except (OSError, ValueError, RuntimeError) as error:
        raise GradlightError(f"No Ray cluster is reached at {asked.address!r}: {error}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Knock at HOST:PORT, for which Ray itself would wait many minutes; raises OSError."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "//" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Put back the handler of SIGTERM, which Ray replaces when it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
