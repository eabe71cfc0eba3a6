"""One batched pass that gives the gradient of every image's own loss for every weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.objective import Objective, Targets
from .function_mode import BatchLayouts, PerImage
from .rules import RULES
from .weights import Weight

__all__ = ["Collected", "chosen", "collected", "running", "weights_of"]


def weights_of(objective: Objective) -> list[torch.nn.Parameter]:
    """Give the weights that a step moves."""
    return [parameter for parameter in objective.network.parameters() if parameter.is_floating_point()]


def running(weights: list[Weight], layouts: BatchLayouts, count: int, *, settled: bool) -> PerImage:
    """Give the context in which `count` images meet their own versions of the weights."""
    return PerImage(weights, layouts, RULES, count, settled=settled)


def chosen(objective: Objective, pixels: Tensor) -> Targets:
    """Fix the targets of pixels [B,3,H,W] as the network answers before the step."""
    with torch.no_grad():
        return objective.choose(objective.outputs(pixels.detach().clone()))


@dataclass(frozen=True)
class Collected:
    """The weights with their gradients, and the targets; the losses are of the first of each image."""

    weights: list[Weight]
    targets: Targets


def collected(objective: Objective, pixels: Tensor, targets: Targets | None, layouts: BatchLayouts) -> Collected:
    """Collect the gradients of the losses of images [B,3,H,W], inside `preserved`; None: the targets are chosen."""
    count = len(pixels)
    weights = [Weight(parameter, count, number) for number, parameter in enumerate(weights_of(objective))]
    run = running(weights, layouts, count, settled=False)
    with run:
        outputs = objective.outputs(pixels.detach().clone())
    # Outside, at the weights as they are, for a captioner says its own caption here.
    targets = objective.choose(outputs) if targets is None else targets
    with run:
        loss = objective.losses(outputs, [row[:1] for row in targets]).sum()
    if loss.requires_grad:
        _go_back(loss, [weight for weight in weights if weight.leaf is not None], run.starts)
    return Collected(weights, targets)


def _go_back(loss: Tensor, used: list[Weight], starts: list[Tensor]) -> None:
    leaves = [weight.leaf for weight in used if weight.leaf is not None]
    gradients = torch.autograd.grad(loss, [*leaves, *starts], allow_unused=True)
    for weight, gradient in zip(used, gradients, strict=False):
        if gradient is not None:
            weight.add(gradient)
