"""Ctrl-C and SIGTERM become a question that the work asks between batches."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

__all__ = ["stop_signals"]


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
