"""The engine of a cluster: Ray Data gives the images of each shard to actors that have the model."""

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

_STOP = "stop"  # a file in the folder of the shards; where it exists, actors on every host stop


@dataclass(frozen=True)
class Ray:
    """Makes the shards with the actors of a Ray cluster; the shard of an actor that dies is given to another.

    The folder of the output must have the same path on every host.

    Args:
        workers: Actors, each with a model.
        address: Of a cluster that runs already; None starts one on this machine.
        gpus: GPUs of each actor.
    """

    workers: int = 1
    address: str | None = None
    gpus: float = 0.0

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Send out the shards and report each one that is made, until all are finished or the work is stopped."""
        ray = _import_ray()
        marker = task.output.with_suffix(".shards").absolute() / _STOP
        marker.unlink(missing_ok=True)
        finished = True
        with _cluster(ray, self):
            rows = [{"shard": _to_text(shard)} for shard in shards]
            results = ray.data.from_items(rows, override_num_blocks=max(1, len(rows))).map_batches(
                _ShardActor,
                fn_constructor_args=(task, str(marker), os.getcwd()),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=min(self.workers, max(1, len(rows)))),
                num_gpus=self.gpus or None,
                max_restarts=-1,
                max_task_retries=-1,
            )
            try:
                for row in results.iter_rows():
                    failures = [(path, reason) for path, reason in json.loads(row["failures"])]
                    reporter.batch(BatchReport(int(row["images"]), failures))
                    finished = finished and bool(row["finished"])
                    if stop():
                        marker.touch()
            except ray.exceptions.RayError as error:
                raise GradlightError(f"An actor of the Ray cluster failed: {_last_line(error)}.") from error
        marker.unlink(missing_ok=True)
        return finished


class _ShardActor:
    """An actor: it makes the shard of each row."""

    def __init__(self, task: ShardTask, marker: str, folder: str) -> None:
        os.chdir(folder)  # so that relative paths mean the same as where they were typed
        self._worker = ShardWorker(task)
        self._marker = Path(marker)

    def __call__(self, rows: dict[str, np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
        shard = _from_text(str(rows["shard"][0]))
        reports: list[BatchReport] = []
        finished = self._worker.make_shard(shard, self._marker.exists, reports.append)
        failures = json.dumps([failure for batch in reports for failure in batch.failures])
        images = sum(batch.images for batch in reports)
        return {"images": np.array([images]), "failures": np.array([failures]), "finished": np.array([finished])}


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
    return Shard(number, items, tuple((path, reason) for path, reason in failures))


def _import_ray() -> Any:
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise GradlightError('The engine ray needs Ray: pip install "gradlight[ray]".') from error
    # The export has its own progress bar.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    return ray


@contextmanager
def _cluster(ray: Any, engine: Ray) -> Iterator[None]:
    """Connect to the cluster, or start one on this machine with a core for each worker; it ends with the work."""
    if ray.is_initialized():
        yield
        return
    resources = {} if engine.address else {"num_cpus": engine.workers + 1, "include_dashboard": False}
    try:
        _check_address(engine.address)
        with _kept_signal_handler():
            ray.init(address=engine.address, log_to_driver=False, logging_level="error", **resources)
    except (OSError, ValueError, RuntimeError) as error:
        raise GradlightError(f"No Ray cluster is reached at {engine.address!r}: {error}.") from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_address(address: str | None) -> None:
    """Connect to HOST:PORT once, for which Ray itself would wait many minutes; raises OSError."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdecimal() and "//" not in host:
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _kept_signal_handler() -> Iterator[None]:
    """Restore the handler of SIGTERM, which Ray replaces when it starts."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
