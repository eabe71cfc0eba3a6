"""Background work of a viewer: one thread that runs the last request and can be cancelled between two maps."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GradlightError
from ..explainers.capture import Tap
from ..explainers.maps import SaliencyMaps
from ..explainers.methods import AnyMethod, Method

__all__ = ["CancelToken", "Cancelled", "Refusals", "Worker", "make_cancellable", "without_refused"]


class Cancelled(Exception):  # noqa: N818  # not an error: the user asked for it
    """The work was cancelled."""


class CancelToken:
    """Passed to background work, which calls `step` to report its progress and to learn of a cancellation.

    Args:
        report: Called with the progress, 0 to 1, at each step.

    Example:
        >>> token = CancelToken(print)
        >>> token.step(0.5)
        0.5
        >>> token.stop()
        >>> token.step(0.6)
        Traceback (most recent call last):
        gradlight.widgets.worker.Cancelled
    """

    def __init__(self, report: Callable[[float], None] = lambda _: None) -> None:
        self._report = report
        self._stop = threading.Event()

    def stop(self) -> None:
        """Cancel the work; it ends at its next step."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether the work was cancelled."""
        return self._stop.is_set()

    def step(self, progress: float) -> None:
        """Report the progress of the work.

        Args:
            progress: The finished share of the work, 0 to 1.

        Raises:
            Cancelled: The work was cancelled.
        """
        if self.stopped:
            raise Cancelled
        self._report(progress)


Work = Callable[[CancelToken], None]


class Worker:
    """Runs the last submitted work in a thread that exists only while there is work.

    Args:
        report_progress: Called with the progress of the running work, 0 to 1.
        report_error: Called with an error of the work, which nobody else would see.

    Example:
        >>> worker = Worker(report_progress=lambda progress: None, report_error=print)
        >>> worker.submit(lambda token: print("done"))
        >>> worker.wait(timeout=5)
        done
        True
    """

    def __init__(self, report_progress: Callable[[float], None], report_error: Callable[[Exception], None]) -> None:
        self._report_progress, self._report_error = report_progress, report_error
        self._condition = threading.Condition()
        self._next: tuple[Work, CancelToken] | None = None
        self._token: CancelToken | None = None
        self._running = False

    def submit(self, work: Work) -> None:
        """Run this work next; running work is cancelled, and waiting work is dropped.

        Args:
            work: Called with the token that it must step.
        """
        with self._condition:
            self._drop()
            self._next = (work, CancelToken(self._report_progress))
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="gradlight-viewer", daemon=True).start()

    def cancel(self) -> None:
        """Cancel the running work, and drop the waiting work."""
        with self._condition:
            self._drop()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no work is left.

        Args:
            timeout: Seconds to wait at most; None waits without a limit.

        Returns:
            Whether no work is left.
        """
        with self._condition:
            return self._condition.wait_for(lambda: not self._running, timeout)

    def _drop(self) -> None:
        self._next = None
        if self._token is not None:
            self._token.stop()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            work, token = taken
            try:
                work(token)
            except Cancelled:
                pass
            except Exception as error:
                if not token.stopped:
                    self._report_error(error)

    def _take(self) -> tuple[Work, CancelToken] | None:
        with self._condition:
            taken, self._next = self._next, None
            self._token = taken[1] if taken else None
            self._running = taken is not None
            self._condition.notify_all()
            return taken


# --- Methods that can be cancelled


@dataclass(frozen=True)
class _CancellableMethod(Method):
    """A method that steps a token before each map, and where it is undefined gives zeros and records the refusal."""

    before: Callable[[], None] = lambda: None
    refuse: Callable[[str, GradlightError], None] = lambda layer, error: None

    def __call__(self, tap: Tap) -> Tensor:
        self.before()
        try:
            return super().__call__(tap)
        except GradlightError as error:
            self.refuse(tap.layer.name, error)
            return torch.zeros_like(tap.gradient[:, 0])


Refusals = dict[tuple[str, str], GradlightError]
"""Errors by method and layer: some methods are defined at some layers only."""


def make_cancellable(
    methods: Sequence[AnyMethod], layer_count: int, token: CancelToken
) -> tuple[list[AnyMethod], Refusals]:
    """Wrap methods such that they step a token before each map, which can end the work.

    Args:
        methods: The methods; those of another class than `Method` are left as they are.
        layer_count: Number of layers at which each method is evaluated.
        token: Steps from 0 to 1 over all maps.

    Returns:
        The wrapped methods, and the refusals, which are filled in while the methods run.
    """
    total, done = len(methods) * layer_count, 0
    refusals: Refusals = {}

    def before() -> None:
        nonlocal done
        token.step(min(done / total, 1.0))
        done += 1

    def wrap(method: Method) -> Method:
        def refuse(layer: str, error: GradlightError) -> None:
            refusals[method.name, layer] = error

        return _CancellableMethod(method.extract, method.aggregate, method.name, before, refuse)

    return [wrap(method) if type(method) is Method else method for method in methods], refusals


def without_refused(maps: SaliencyMaps, refusals: Refusals) -> SaliencyMaps:
    """Leave out the maps that were refused.

    Args:
        maps: Maps with zeros where a method is not defined.
        refusals: The errors of those, by method and layer.

    Returns:
        The other maps.

    Raises:
        GradlightError: The refusal of a method that has no other map.
    """
    pairs = [pair for pair in maps.pairs if pair not in refusals]
    for (method, _), error in refusals.items():
        if method not in {name for name, _ in pairs}:
            raise error
    rows = {pair: maps.rows(*pair) for pair in pairs}
    return SaliencyMaps(rows, maps.layer_info, maps.images, maps.targets, maps.size, maps.origin)
