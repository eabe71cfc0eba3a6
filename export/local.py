"""The engines of one machine: the work in this process, or in several."""

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

__all__ = ["Engine", "Here", "Processes"]

_MOST_DEATHS = 3


class Engine(Protocol):
    """Somebody who makes shards; where and with how many hands is its own affair."""

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Make the shards; False if it was stopped before the last. model: that of this process."""


class Here:
    """One process, this one."""

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Make the shards one after the other."""
        with closing(ShardWorker(task, model)) as worker:
            return all(worker.do(shard, stop, reporter.batch) for shard in shards)


@dataclass
class _Hand:
    """A process at work, the line to it, and the shard that it has in hand."""

    process: SpawnProcess
    line: Connection[Any, Any]
    shard: Shard | None = None


class Processes:
    """Several processes, each with a model of its own; the shard of one that dies is given to another."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._hands: list[_Hand] = []
        self._waiting: list[Shard] = []
        self._stopped, self._deaths = False, 0

    def run(
        self, task: ShardTask, model: Explainable, shards: Sequence[Shard], stop: Callable[[], bool], reporter: Reporter
    ) -> bool:
        """Hand out the shards, in their order, until all are made or the work is stopped."""
        self._waiting, self._stopped, self._deaths = list(reversed(shards)), False, 0
        self._hands = [self._hire(task) for _ in range(min(self.count, len(self._waiting)))]
        try:
            while self._hands:
                if stop() and not self._stopped:
                    self._stop()
                for hand in self._heard():
                    self._listen(hand, task, reporter)
        finally:
            self._dismiss()
        return not self._stopped

    def _stop(self) -> None:
        self._stopped = True
        self._waiting.clear()
        self._tell_to_stop()

    def _hire(self, task: ShardTask) -> _Hand:
        here, there = multiprocessing.Pipe()
        threads = max(1, torch.get_num_threads() // self.count)
        process = multiprocessing.get_context("spawn").Process(target=_work, args=(task, there, threads, os.getpid()))
        process.start()
        there.close()
        return _Hand(process, here)

    def _heard(self) -> list[_Hand]:
        ready = wait([hand.line for hand in self._hands], timeout=0.2)
        return [hand for hand in self._hands if hand.line in ready]

    def _listen(self, hand: _Hand, task: ShardTask, reporter: Reporter) -> None:
        """Take one message of a process, or notice that it has ended."""
        try:
            kind, content = hand.line.recv()
        except (EOFError, OSError):
            self._hands.remove(hand)
            if hand.shard is not None and not self._stopped:
                self._replace(hand.shard, task, reporter)
            return
        if kind == "batch":
            reporter.batch(content)
        elif kind == "error":
            raise content
        else:
            if kind == "stopped" and not self._stopped:
                self._stop()
            hand.shard = self._waiting.pop() if self._waiting else None
            hand.line.send(hand.shard)

    def _replace(self, shard: Shard, task: ShardTask, reporter: Reporter) -> None:
        self._deaths += 1
        if self._deaths > _MOST_DEATHS:
            raise GradlightError(
                f"{self._deaths} processes of the export ended unexpectedly (killed for want of memory?). Use fewer"
                " --workers or a smaller --batch-size."
            )
        reporter.note("a process of the export ended unexpectedly; its shard begins anew.")
        self._waiting.append(shard)
        self._hands.append(self._hire(task))

    def _tell_to_stop(self) -> None:
        for hand in self._hands:
            if hand.process.is_alive() and hand.process.pid is not None:
                os.kill(hand.process.pid, signal.SIGTERM)

    def _dismiss(self) -> None:
        self._tell_to_stop()
        for hand in self._hands:
            hand.line.close()
        for hand in self._hands:
            hand.process.join(timeout=30)
            hand.process.kill()
        self._hands = []


def _work(task: ShardTask, line: Connection[Any, Any], threads: int, parent: int) -> None:
    """Make the shards that come along the line until none comes, the work is stopped, or the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    with stop_signals((signal.SIGTERM,)) as told:

        def stop() -> bool:
            return told() or os.getppid() != parent

        def report(batch: BatchReport) -> None:
            line.send(("batch", batch))

        try:
            with closing(ShardWorker(task)) as worker:
                line.send(("ready", None))
                while (shard := line.recv()) is not None:
                    whole = worker.do(shard, stop, report)
                    line.send(("ready" if whole else "stopped", None))
        except (EOFError, BrokenPipeError):
            return
        except Exception as error:
            line.send(("error", error if isinstance(error, GradlightError) else _plain(error)))


def _plain(error: Exception) -> GradlightError:
    """Bring any error to one that travels between processes."""
    return GradlightError(f"{type(error).__name__}: {error}")
