"""The engines of one machine: they make shards in this process, or in several worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol

import torch

from ..errors import GradlightError
from ..models.base import Explainable
from .plan import Shard
from .progress import BatchReport, Reporter, stop_signals
from .worker import ShardTask, ShardWorker

__all__ = ["Engine", "InProcess", "WorkerProcesses"]

_MAX_DEATHS = 3


class Engine(Protocol):
    """Makes shards, in any number of processes."""

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Make shards.

        Args:
            task: What the shards are made of.
            model: The model of this process.
            shards: The shards.
            stop: Tells whether the work is to stop.
            reporter: Receives the progress.

        Returns:
            True if all shards are finished, False if the work was stopped.
        """


class InProcess:
    """Makes the shards in this process."""

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Make the shards one after the other."""
        with closing(ShardWorker(task, model)) as worker:
            return all(worker.make_shard(shard, stop, reporter.batch) for shard in shards)


@dataclass
class _WorkerProcess:
    """A process, the connection to it, and the shard that it works on."""

    process: SpawnProcess
    connection: Connection[Any, Any]
    shard: Shard | None = None


class WorkerProcesses:
    """Makes the shards in several processes, each with a model of its own.

    The shard of a process that ends unexpectedly is given to another. A worker sends ("ready", None) when it can take a
    shard, ("batch", BatchReport) after each batch, ("stopped", None) if it was stopped, and ("error", exception).

    Args:
        count: The number of processes.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._workers: list[_WorkerProcess] = []
        self._waiting: list[Shard] = []
        self._stopped, self._deaths = False, 0

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Send out the shards, in their order, until all are finished or the work is stopped."""
        self._waiting, self._stopped, self._deaths = list(reversed(shards)), False, 0
        self._workers = [self._start(task) for _ in range(min(self.count, len(self._waiting)))]
        try:
            while self._workers:
                if stop() and not self._stopped:
                    self._stop()
                for worker in self._ready_workers():
                    self._receive(worker, task, reporter)
        finally:
            self._end_workers()
        return not self._stopped

    def _start(self, task: ShardTask) -> _WorkerProcess:
        own_end, worker_end = multiprocessing.Pipe()
        threads = max(1, torch.get_num_threads() // self.count)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=_run_worker, args=(task, worker_end, threads, os.getpid()))
        process.start()
        worker_end.close()
        return _WorkerProcess(process, own_end)

    def _ready_workers(self) -> list[_WorkerProcess]:
        """Wait shortly for messages, and give the workers that have sent one."""
        ready = wait([worker.connection for worker in self._workers], timeout=0.2)
        return [worker for worker in self._workers if worker.connection in ready]

    def _receive(self, worker: _WorkerProcess, task: ShardTask, reporter: Reporter) -> None:
        """Handle one message of a worker, or its end."""
        try:
            kind, content = worker.connection.recv()
        except (EOFError, OSError):
            self._workers.remove(worker)
            if worker.shard is not None and not self._stopped:
                self._replace(worker.shard, task, reporter)
            return
        if kind == "batch":
            reporter.batch(content)
        elif kind == "error":
            raise content
        else:
            if kind == "stopped" and not self._stopped:
                self._stop()
            worker.shard = self._waiting.pop() if self._waiting else None
            worker.connection.send(worker.shard)

    def _replace(self, shard: Shard, task: ShardTask, reporter: Reporter) -> None:
        """Start a worker in place of one that ended unexpectedly with a shard."""
        self._deaths += 1
        if self._deaths > _MAX_DEATHS:
            raise GradlightError(
                f"{self._deaths} processes of the export ended unexpectedly (killed for lack of memory?). Use fewer"
                " --workers or a smaller --batch-size."
            )
        reporter.note("a process of the export ended unexpectedly; its shard begins again.")
        self._waiting.append(shard)
        self._workers.append(self._start(task))

    def _stop(self) -> None:
        self._stopped = True
        self._waiting.clear()
        self._send_stop_signal()

    def _send_stop_signal(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive() and worker.process.pid is not None:
                os.kill(worker.process.pid, signal.SIGTERM)

    def _end_workers(self) -> None:
        self._send_stop_signal()
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.process.join(timeout=30)
            worker.process.kill()
        self._workers = []


def _run_worker(task: ShardTask, connection: Connection[Any, Any], threads: int, parent: int) -> None:
    """Make the shards that are received, until None is, the work is stopped, or the parent process has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with stop_signals((signal.SIGTERM,)) as is_signalled:

        def stop() -> bool:
            return is_signalled() or os.getppid() != parent

        def report(batch: BatchReport) -> None:
            connection.send(("batch", batch))

        try:
            with closing(ShardWorker(task)) as worker:
                connection.send(("ready", None))
                while (shard := connection.recv()) is not None:
                    finished = worker.make_shard(shard, stop, report)
                    connection.send(("ready" if finished else "stopped", None))
        except (EOFError, BrokenPipeError):
            return
        except Exception as error:
            connection.send(("error", error if isinstance(error, GradlightError) else _picklable_error(error)))


def _picklable_error(error: Exception) -> GradlightError:
    """Convert any exception to one that can be sent between processes."""
    return GradlightError(f"{type(error).__name__}: {error}")
