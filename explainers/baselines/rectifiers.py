"""Guided backpropagation and the deconvolutional network: the gradient with another rule at every ReLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import GradlightError
from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import RECTIFIERS, BackwardRules, OperationRule, out_of_place, replace_backward, tap_under_rules

__all__ = ["deconvnet", "guided_backprop"]


def guided_backprop(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Compute max_k |g_k| at a layer, where each ReLU passes back only positive gradients, and only where it is active.

    Only ReLUs (and ReLU6) are changed, as modules or functions, in place or not; GELU, SiLU and the gates of an LSTM
    keep their own gradient. One forward and one backward pass. (Springenberg et al. 2015, "Striving for simplicity";
    the channels' largest magnitude as in TorchRay.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: The layer of the map.

    Returns:
        [1,h,w], unsigned.

    Raises:
        GradlightError: For a network without a ReLU, where the map would be that of the plain gradient.
    """
    return _largest_magnitude("guided_backprop", _guided, objective, pixels, target, layer)


def deconvnet(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Compute max_k |g_k| at a layer, where each ReLU passes back only positive gradients, active or not.

    ReLUs only, arguments, cost and errors as for `guided_backprop`. (Zeiler and Fergus 2014, "Visualizing and
    understanding convolutional networks"; as backpropagation by Simonyan et al. 2014; channels as in TorchRay.)

    Returns:
        [1,h,w], unsigned.
    """
    return _largest_magnitude("deconvnet", _rectified, objective, pixels, target, layer)


def _largest_magnitude(
    name: str, rule: OperationRule, objective: Objective, pixels: Tensor, target: Target, layer: Layer
) -> Tensor:
    rules = BackwardRules(name, dict.fromkeys(RECTIFIERS, rule))
    tap = tap_under_rules(rules, objective, pixels, target, layer, from_pixels=False)
    if not rules.operations_met:
        raise GradlightError(
            f"{name} changes how the gradient passes ReLUs, and this network runs none; its map would be the plain"
            " gradient's. Use 'gradient'."
        )
    return tap.gradient.abs().amax(1)


def _guided(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    run = out_of_place(func, args, kwargs)
    # A ReLU6 is not active above 6 either, where its output differs from its input.
    return replace_backward(run, lambda signal, x: (signal.clamp(min=0) * ((x > 0) & (run(x) == x)),), x)


def _rectified(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return replace_backward(out_of_place(func, args, kwargs), lambda signal, x: (signal.clamp(min=0),), x)
