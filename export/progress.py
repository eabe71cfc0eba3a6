"""What an export tells while it works: a bar on a terminal, or one JSON object a line.

Ctrl-C and SIGTERM become a question that the work asks between batches.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol, TextIO

from tqdm import tqdm

__all__ = ["Bar", "BatchReport", "JsonLines", "Reporter", "stop_signals"]

_FAILURES_TOLD = 10


@dataclass(frozen=True)
class BatchReport:
    """A batch is done: how many images it asked for, and those of them that failed, with the reason."""

    images: int
    failures: Sequence[tuple[str, str]] = ()


class Reporter(Protocol):
    """Somebody who is told how an export goes on."""

    def begin(self, total: int, done: int) -> None:
        """Hear how many images there are, and how many of them were done before."""

    def batch(self, batch: BatchReport) -> None:
        """Hear of a batch that is done."""

    def note(self, message: str) -> None:
        """Hear something worth knowing."""

    def end(self) -> None:
        """Hear that no more work is done."""


class Bar:
    """A progress bar with images per second and the time left, where `shown`; failures and notes on standard error."""

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._failures = 0

    def begin(self, total: int, done: int) -> None:
        """Draw the bar."""
        self._bar = tqdm(total=total, initial=done, unit="image", disable=not self._shown, smoothing=0.1)

    def batch(self, batch: BatchReport) -> None:
        """Move the bar, and tell of the first failures."""
        self._bar.update(batch.images)
        for _, reason in batch.failures:
            self._failures += 1
            if self._failures <= _FAILURES_TOLD:
                self.note(f"left out: {reason}")
            if self._failures == _FAILURES_TOLD + 1:
                self.note("more images are left out; /failures of the file has them all.")

    def note(self, message: str) -> None:
        """Write a line without breaking the bar."""
        tqdm.write(f"gradlight: {' '.join(message.split())}", file=sys.stderr)

    def end(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


class JsonLines:
    """One JSON object a line: begin, batch, failure, note, end; times in seconds."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._begun, self._total, self._done, self._before = time.monotonic(), 0, 0, 0

    def begin(self, total: int, done: int) -> None:
        """Tell the size of the work."""
        self._begun, self._total, self._done, self._before = time.monotonic(), total, done, done
        self._write("begin", total=total, done=done)

    def batch(self, batch: BatchReport) -> None:
        """Tell how far the work is, how fast it is, and how long it will take."""
        self._done += batch.images
        for path, reason in batch.failures:
            self._write("failure", path=path, reason=reason)
        rate = (self._done - self._before) / max(time.monotonic() - self._begun, 1e-9)
        left = (self._total - self._done) / rate if rate else None
        self._write("batch", done=self._done, total=self._total, images_per_s=rate, left_s=left)

    def note(self, message: str) -> None:
        """Tell something worth knowing."""
        self._write("note", message=message)

    def end(self) -> None:
        """Tell that no more work is done."""
        self._write("end", done=self._done, total=self._total, seconds=time.monotonic() - self._begun)

    def _write(self, event: str, **facts: Any) -> None:
        print(json.dumps({"event": event, **facts}), file=self._stream, flush=True)


@contextmanager
def stop_signals(signals: tuple[signal.Signals, ...]) -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether one of the signals has come; a second Ctrl-C acts as it always does.

    A second SIGTERM does nothing: what stops a group of processes often reaches one of them twice. Only the main thread
    of a process can listen to signals; elsewhere the function is always False.
    """
    came: list[int] = []
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if number == signal.SIGINT:
            signal.signal(number, before[number])

    with ExitStack() as undo:
        for number in signals:
            try:
                before[number] = signal.signal(number, note)
            except ValueError:
                break
            undo.callback(signal.signal, number, before[number])
        yield lambda: bool(came)
