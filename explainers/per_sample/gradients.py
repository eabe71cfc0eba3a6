"""The meta step of a whole batch at once, exact for each image: every image runs with its own θ'.

One batched pass collects the gradient of every image's own loss; in the next, every call that takes a weight meets each
image's version of it. The weights themselves are never touched.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ...models.objective import Objective, Targets
from ..meta import Meta, meta_step
from .function_mode import BatchLayouts
from .probe import learn
from .step import Collected, chosen, collected, running, weights_of
from .weights import NotCoveredError

__all__ = ["NotCoveredError", "per_sample_meta_step"]


class _Learnt:
    """What is known of one network with pixels of one kind; layouts is None if it cannot be followed."""

    def __init__(self, weights: list[nn.Parameter], layouts: BatchLayouts | None) -> None:
        self.weights, self.layouts = weights, layouts

    def holds(self, weights: list[nn.Parameter]) -> bool:
        """Tell whether the network still has the same weights' tensors."""
        return len(weights) == len(self.weights) and all(map(operator.is_, weights, self.weights))


_learnt: WeakKeyDictionary[nn.Module, dict[Any, _Learnt]] = WeakKeyDictionary()
"""What each network's calls look like, so that it is looked at only the first time."""


@contextmanager
def per_sample_meta_step(
    objective: Objective, pixels: Tensor, targets: Targets | None, meta: Meta
) -> Iterator[Targets]:
    """Let every image of a batch [B,3,H,W] run with its own θ', inside `preserved`, and give the targets.

    targets: fixed ones; None lets the objective choose from the very pass that collects the gradients. The step is for
    the first target of each image. While entered, runs of the objective on as many images in the same order are at
    θ', differentiable in everything but the weights. Raises NotCoveredError, on entering or inside, for a network that
    has no batched form; `meta_step` serves those image by image.
    """
    if len(pixels) == 1:
        targets = chosen(objective, pixels) if targets is None else targets
        with meta_step(objective, pixels, targets[0][0], meta):
            yield targets
        return
    layouts, batch = _collected(objective, pixels, targets)
    for weight in batch.weights:
        weight.settle(meta.rate)
    with running(batch.weights, layouts, len(pixels), settled=True):
        yield batch.targets


def _kind(objective: Objective, pixels: Tensor) -> Any:
    return type(objective), pixels.device, pixels.dtype, tuple(pixels.shape[1:])


def _collected(objective: Objective, pixels: Tensor, targets: Targets | None) -> tuple[BatchLayouts, Collected]:
    """Collect the gradients; a network that makes a new call, for a longer caption perhaps, is looked at again."""
    known, kind, weights = _learnt.setdefault(objective.network, {}), _kind(objective, pixels), weights_of(objective)
    learnt = known.get(kind)
    if learnt is not None and learnt.holds(weights):
        if learnt.layouts is None:
            raise NotCoveredError("the network was found to have no batched form")
        try:
            return learnt.layouts, collected(objective, pixels, targets, learnt.layouts)
        except NotCoveredError:
            pass
    known[kind] = _Learnt(weights, None)
    targets = chosen(objective, pixels) if targets is None else targets
    layouts = learn(objective, pixels, targets)
    batch = collected(objective, pixels, targets, layouts)
    known[kind] = _Learnt(weights, layouts)
    return layouts, batch
