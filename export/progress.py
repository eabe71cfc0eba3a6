"""Progress of an export: a bar on a terminal, or one JSON object per line; and signals that stop it between batches."""

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

_MAX_SHOWN_FAILURES = 10


@dataclass(frozen=True)
class BatchReport:
    """A finished batch.

    Args:
        images: Its images, failed ones too.
        failures: Paths of those that failed, each with the reason.
    """

    images: int
    failures: Sequence[tuple[str, str]] = ()


class Reporter(Protocol):
    """Receives the progress of an export."""

    def begin(self, total: int, done: int) -> None:
        """Take the number of images, and how many of them were finished before."""

    def batch(self, batch: BatchReport) -> None:
        """Take a finished batch."""

    def note(self, message: str) -> None:
        """Take a message for the user."""

    def end(self) -> None:
        """Take the end of the work, finished or stopped."""


class Bar:
    """A progress bar with images per second and the time left; failures and notes on standard error.

    Args:
        shown: Whether the bar is shown.
    """

    def __init__(self, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._failures = 0

    def begin(self, total: int, done: int) -> None:
        """Draw the bar."""
        self._bar = tqdm(total=total, initial=done, unit="image", disable=not self._shown, smoothing=0.1)

    def batch(self, batch: BatchReport) -> None:
        """Move the bar, and write the first failures."""
        self._bar.update(batch.images)
        for _, reason in batch.failures:
            self._failures += 1
            if self._failures <= _MAX_SHOWN_FAILURES:
                self.note(f"left out: {reason}")
            if self._failures == _MAX_SHOWN_FAILURES + 1:
                self.note("more images are left out; /failures of the file has them all.")

    def note(self, message: str) -> None:
        """Write a line without breaking the bar."""
        tqdm.write(f"gradlight: {' '.join(message.split())}", file=sys.stderr)

    def end(self) -> None:
        """Leave the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class JsonLines:
    r"""One JSON object per line: begin, batch, failure, note, end; times in seconds.

    Args:
        stream: Where to write; standard error unless given.

    Example:
        >>> import io
        >>> stream = io.StringIO()
        >>> JsonLines(stream).begin(total=8, done=2)
        >>> stream.getvalue()
        '{"event": "begin", "total": 8, "done": 2}\n'
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._start_time, self._total, self._done, self._done_before = time.monotonic(), 0, 0, 0

    def begin(self, total: int, done: int) -> None:
        """Write the number of images."""
        self._start_time, self._total, self._done, self._done_before = time.monotonic(), total, done, done
        self._write("begin", total=total, done=done)

    def batch(self, batch: BatchReport) -> None:
        """Write the images that are done, their rate, and the time left."""
        self._done += batch.images
        for path, reason in batch.failures:
            self._write("failure", path=path, reason=reason)
        rate = (self._done - self._done_before) / max(time.monotonic() - self._start_time, 1e-9)
        left = (self._total - self._done) / rate if rate else None
        self._write("batch", done=self._done, total=self._total, images_per_s=rate, left_s=left)

    def note(self, message: str) -> None:
        """Write a message for the user."""
        self._write("note", message=message)

    def end(self) -> None:
        """Write the end of the work."""
        self._write("end", done=self._done, total=self._total, seconds=time.monotonic() - self._start_time)

    def _write(self, event: str, **fields: Any) -> None:
        print(json.dumps({"event": event, **fields}), file=self._stream, flush=True)


@contextmanager
def stop_signals(signals: tuple[signal.Signals, ...]) -> Iterator[Callable[[], bool]]:
    """Handle signals by a flag, which the work reads between batches; a second Ctrl-C acts as usual.

    A second SIGTERM does nothing: what stops a group of processes often reaches one of them twice. Only the main thread
    of a process can handle signals; in others the flag is always False.

    Args:
        signals: The signals.

    Yields:
        A function that tells whether one of the signals was received.

    Example:
        >>> with stop_signals((signal.SIGTERM,)) as is_stopped:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     is_stopped()
        True
    """
    received: list[int] = []
    handlers: dict[int, Any] = {}

    def handle(number: int, _frame: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGINT:
            signal.signal(number, handlers[number])

    with ExitStack() as stack:
        for number in signals:
            try:
                handlers[number] = signal.signal(number, handle)
            except ValueError:
                break
            stack.callback(signal.signal, number, handlers[number])
        yield lambda: bool(received)
