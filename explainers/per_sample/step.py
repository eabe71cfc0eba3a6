"""One batched pass that gives the gradient of every image's own loss for every weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.objective import Objective, Targets
from .function_mode import BatchLayouts, PerSampleMode
from .rules import RULES
from .weights import PerSampleWeight

__all__ = ["CollectedGradients", "choose_targets", "collect_gradients", "float_parameters", "per_sample_mode"]


def float_parameters(objective: Objective) -> list[torch.nn.Parameter]:
    """List the parameters that a step changes."""
    return [parameter for parameter in objective.network.parameters() if parameter.is_floating_point()]


def per_sample_mode(
    weights: list[PerSampleWeight], layouts: BatchLayouts, count: int, *, stepped: bool
) -> PerSampleMode:
    """Make the context in which `count` images run with their own values of the weights."""
    return PerSampleMode(weights, layouts, RULES, count, stepped=stepped)


def choose_targets(objective: Objective, pixels: Tensor) -> Targets:
    """Fix the targets of pixels [B,3,H,W] by the network's output before the step."""
    with torch.no_grad():
        return objective.choose(objective.outputs(pixels.detach().clone()))


@dataclass(frozen=True)
class CollectedGradients:
    """The weights with each image's gradient, and the targets; the loss is that of an image's first target."""

    weights: list[PerSampleWeight]
    targets: Targets


def collect_gradients(
    objective: Objective, pixels: Tensor, targets: Targets | None, layouts: BatchLayouts
) -> CollectedGradients:
    """Collect the gradient of every image's own loss in one forward and one backward pass, inside `preserved`.

    Args:
        objective: The objective.
        pixels: [B,3,H,W].
        targets: Fixed targets; None lets the objective choose them from the same forward pass.
        layouts: The batch axes of the network's calls.

    Returns:
        The weights with their gradients, and the targets.
    """
    count = len(pixels)
    weights = [
        PerSampleWeight(parameter, count, number) for number, parameter in enumerate(float_parameters(objective))
    ]
    mode = per_sample_mode(weights, layouts, count, stepped=False)
    with mode:
        outputs = objective.outputs(pixels.detach().clone())
    # Outside the mode, because a captioner generates its own caption here, with the shared weights.
    targets = objective.choose(outputs) if targets is None else targets
    with mode:
        loss = objective.losses(outputs, [row[:1] for row in targets]).sum()
    if loss.requires_grad:
        _backward(loss, [weight for weight in weights if weight.leaf is not None], mode.graph_starts)
    return CollectedGradients(weights, targets)


def _backward(loss: Tensor, weights_with_leaf: list[PerSampleWeight], graph_starts: list[Tensor]) -> None:
    """Run the backward pass: hooks collect the gradients of the rules, and leaves those of all other calls."""
    leaves = [weight.leaf for weight in weights_with_leaf if weight.leaf is not None]
    gradients = torch.autograd.grad(loss, [*leaves, *graph_starts], allow_unused=True)
    for weight, gradient in zip(weights_with_leaf, gradients, strict=False):
        if gradient is not None:
            weight.add(gradient)
