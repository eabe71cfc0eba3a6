"""The meta step of a whole batch at once, exact for each image: every image runs with its own θ'.

One batched pass collects the gradient of every image's own loss. In the next pass, every call that takes a weight uses
each image's own value of it. The network's parameters are never written to.
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
from .probe import probe_layouts
from .step import CollectedGradients, choose_targets, collect_gradients, float_parameters, per_sample_mode
from .weights import NotCoveredError

__all__ = ["NotCoveredError", "per_sample_meta_step"]


@contextmanager
def per_sample_meta_step(
    objective: Objective, pixels: Tensor, targets: Targets | None, meta: Meta
) -> Iterator[Targets]:
    """Let every image of a batch run with its own θ', inside `preserved`.

    The step is taken for the first target of each image. While the context is entered, runs of the objective on as many
    images in the same order use θ', and are differentiable in everything but the weights.

    Args:
        objective: The objective whose loss makes the step.
        pixels: [B,3,H,W].
        targets: Fixed targets, one row per image; None lets the objective choose them from the pass that collects the
            gradients.
        meta: Rate and direction of the step.

    Yields:
        The targets.

    Raises:
        NotCoveredError: On entering or inside, for a network without a batched form; `meta_step` then serves its images
            one by one.

    Example:
        >>> import torch
        >>> from gradlight.models.preserve import preserved
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 2))
        >>> objective, pixels = gl.classifier(network).objective("top"), torch.rand(5, 3, 8, 8)
        >>> with preserved(network), per_sample_meta_step(objective, pixels, None, gl.Meta(0.1)) as targets:
        ...     scores = objective.scores(objective.outputs(pixels), targets)
        >>> list(scores.shape)
        [5, 1]
    """
    if len(pixels) == 1:
        targets = choose_targets(objective, pixels) if targets is None else targets
        with meta_step(objective, pixels, targets[0][0], meta):
            yield targets
        return
    layouts, collected = _collect_with_layouts(objective, pixels, targets)
    for weight in collected.weights:
        weight.take_step(meta.rate)
    with per_sample_mode(collected.weights, layouts, len(pixels), stepped=True):
        yield collected.targets


class _ProbeResult:
    """The layouts of one network with pixels of one kind; None if it has no batched form."""

    def __init__(self, parameters: list[nn.Parameter], layouts: BatchLayouts | None) -> None:
        self.parameters, self.layouts = parameters, layouts

    def is_valid_for(self, parameters: list[nn.Parameter]) -> bool:
        """Return whether the network still has the same parameter tensors."""
        return len(parameters) == len(self.parameters) and all(map(operator.is_, parameters, self.parameters))


_probe_results: WeakKeyDictionary[nn.Module, dict[Any, _ProbeResult]] = WeakKeyDictionary()
"""The probe's result for each network and kind of pixels, so that a network is probed only the first time."""


def _pixel_kind(objective: Objective, pixels: Tensor) -> Any:
    return type(objective), pixels.device, pixels.dtype, tuple(pixels.shape[1:])


def _collect_with_layouts(
    objective: Objective, pixels: Tensor, targets: Targets | None
) -> tuple[BatchLayouts, CollectedGradients]:
    """Collect the gradients; a network that makes a new call, such as for a longer caption, is probed again."""
    results, kind = _probe_results.setdefault(objective.network, {}), _pixel_kind(objective, pixels)
    parameters = float_parameters(objective)
    previous = results.get(kind)
    if previous is not None and previous.is_valid_for(parameters):
        if previous.layouts is None:
            raise NotCoveredError("an earlier probe of the network found no batched form")
        try:
            return previous.layouts, collect_gradients(objective, pixels, targets, previous.layouts)
        except NotCoveredError:
            pass
    results.pop(kind, None)
    targets = choose_targets(objective, pixels) if targets is None else targets
    try:
        layouts = probe_layouts(objective, pixels, targets)
        collected = collect_gradients(objective, pixels, targets, layouts)
    except NotCoveredError:  # not Ctrl-C, which says nothing about the network
        results[kind] = _ProbeResult(parameters, None)
        raise
    results[kind] = _ProbeResult(parameters, layouts)
    return layouts, collected
