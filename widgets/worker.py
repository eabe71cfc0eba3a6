"""Work beside the kernel's own: one thread, which does the last thing asked and can be called off."""

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

__all__ = ["CancelToken", "Cancelled", "Refusals", "Worker", "allowed", "watched"]


class Cancelled(Exception):  # noqa: N818  # no error: somebody wanted it
    """The work was called off."""


class CancelToken:
    """What a piece of work asks (may it go on?) and tells (how far it is, 0…1)."""

    def __init__(self, tell: Callable[[float], None] = lambda _: None) -> None:
        self._tell = tell
        self._stop = threading.Event()

    def stop(self) -> None:
        """Call the work off; it ends when it asks next."""
        self._stop.set()

    @property
    def stopped(self) -> bool:
        """Whether the work was called off."""
        return self._stop.is_set()

    def step(self, part: float) -> None:
        """Tell how far the work is; raises Cancelled where it was called off."""
        if self.stopped:
            raise Cancelled
        self._tell(part)


Work = Callable[[CancelToken], None]


class Worker:
    """Does the last work asked for, in a thread that lives only as long as there is any.

    tell: is told how far it is. fail: is told of an error, as nobody else would see it.
    """

    def __init__(self, tell: Callable[[float], None], fail: Callable[[Exception], None]) -> None:
        self._tell, self._fail = tell, fail
        self._gate = threading.Condition()
        self._next: tuple[Work, CancelToken] | None = None
        self._watch: CancelToken | None = None
        self._running = False

    def ask(self, work: Work) -> None:
        """Do this now; what is going on is called off, and what has not begun never will."""
        with self._gate:
            self._call_off()
            self._next = (work, CancelToken(self._tell))
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="gradlight-viewer", daemon=True).start()

    def cancel(self) -> None:
        """Call off what is going on and what has not begun."""
        with self._gate:
            self._call_off()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until there is nothing left to do; tell whether that came about in time (seconds)."""
        with self._gate:
            return self._gate.wait_for(lambda: not self._running, timeout)

    def _call_off(self) -> None:
        self._next = None
        if self._watch is not None:
            self._watch.stop()

    def _run(self) -> None:
        while (taken := self._take()) is not None:
            work, watch = taken
            try:
                work(watch)
            except Cancelled:
                pass
            except Exception as error:
                if not watch.stopped:
                    self._fail(error)

    def _take(self) -> tuple[Work, CancelToken] | None:
        with self._gate:
            taken, self._next = self._next, None
            self._watch = taken[1] if taken else None
            self._running = taken is not None
            self._gate.notify_all()
            return taken


@dataclass(frozen=True)
class _CancellableMethod(Method):
    """A method that tells before each of its maps, and where it is not defined makes zeros and a note."""

    before: Callable[[], None] = lambda: None
    refused: Callable[[str, GradlightError], None] = lambda layer, error: None

    def __call__(self, tap: Tap) -> Tensor:
        self.before()
        try:
            return super().__call__(tap)
        except GradlightError as error:
            self.refused(tap.layer.name, error)
            return torch.zeros_like(tap.gradient[:, 0])


Refusals = dict[tuple[str, str], GradlightError]


def watched(asked: Sequence[AnyMethod], layers: int, watch: CancelToken) -> tuple[list[AnyMethod], Refusals]:
    """Give the methods such that the watch is told of every map, at `layers` layers each, and can end the work.

    Also the refusals, by method and layer, as they come up: some methods are defined at some layers only. Methods of
    another kind than extract and aggregate are left as they are.
    """
    total, done = len(asked) * layers, 0
    refusals: Refusals = {}

    def before() -> None:
        nonlocal done
        watch.step(min(done / total, 1.0))
        done += 1

    def watching(method: Method) -> Method:
        def refused(layer: str, error: GradlightError) -> None:
            refusals[method.name, layer] = error

        return _CancellableMethod(method.extract, method.aggregate, method.name, before, refused)

    return [watching(method) if type(method) is Method else method for method in asked], refusals


def allowed(maps: SaliencyMaps, refusals: Refusals) -> SaliencyMaps:
    """Leave out the maps that were refused; raises the refusal of a method that has no others."""
    pairs = [pair for pair in maps.pairs if pair not in refusals]
    for (method, _), error in refusals.items():
        if method not in {name for name, _ in pairs}:
            raise error
    found = {pair: maps.rows(*pair) for pair in pairs}
    return SaliencyMaps(found, maps.about, maps.images, maps.targets, maps.size, maps.origin)
