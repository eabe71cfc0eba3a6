"""Layer-wise relevance propagation: the score, distributed layer by layer over the values that made it up.

The rules of zennit's composite EpsilonPlus, with batch norms merged into the convolutions before them. They replace the
backward pass of operations instead of modules, so that no weight is changed and any skip connection is split.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import (
    ADDITIONS,
    ALLOWED,
    AVERAGES,
    RECTIFIERS,
    SCALINGS,
    BackwardRules,
    Quotient,
    distribute,
    out_of_place,
    pass_constant_factor,
    pass_unchanged,
    replace_backward,
    split_addition,
)
from .baseline import score_function

__all__ = ["lrp"]

_NAME = "lrp"


def lrp(objective: Objective, pixels: Tensor, target: Target, layer: Layer, *, epsilon: float = 1e-6) -> Tensor:
    """Compute the relevance of each pixel for the score, summed over channels.

    Convolutions propagate it by the z⁺ rule, linear layers by the ε rule, average pooling and skip connections in
    proportion, ReLUs unchanged, max pooling to the winner. It starts as the score itself, and biases keep their share.
    One forward and one backward pass. (Bach et al. 2015, "On pixel-wise explanations …"; Montavon et al. 2017 for z⁺;
    the composite of Montavon et al. 2019, as zennit's EpsilonPlus.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        epsilon: Keeps the denominators from zero.

    Returns:
        [1,H,W], signed.

    Raises:
        GradlightError: For a network with other operations (gates, attention, a captioner's LSTM).
    """
    leaf = pixels.detach().clone().requires_grad_()
    with BackwardRules(_NAME, _rules(epsilon), ALLOWED):
        score = score_function(objective, target)(leaf.clone())
    (relevance,) = torch.autograd.grad(score, leaf, score.detach())
    return relevance.sum(1)


def _rules(epsilon: float) -> dict[str, Any]:
    quotient = partial(_stabilised_quotient, epsilon=epsilon)
    return {
        **dict.fromkeys(("conv1d", "conv2d", "conv3d"), partial(_weighted_layer, _z_plus, quotient)),
        "linear": partial(_weighted_layer, _epsilon_rule, quotient),
        "batch_norm": _batch_norm,
        **dict.fromkeys(RECTIFIERS, pass_unchanged),
        **dict.fromkeys(AVERAGES, partial(_average_pool, quotient)),
        **dict.fromkeys(ADDITIONS, partial(split_addition, quotient)),
        **dict.fromkeys(SCALINGS, partial(pass_constant_factor, _NAME)),
    }


@dataclass
class _RelevanceCall:
    """One run of a weighted layer, and the factor and shift per channel of the norm that came right after it."""

    factor: Tensor | None = None
    shift: Tensor | None = None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return the weight and bias of the layer and its norm together."""
        if self.factor is None or self.shift is None:
            return weight, bias
        scaled = weight * self.factor.view(-1, *[1] * (weight.ndim - 1))
        return scaled, self.shift if bias is None else bias * self.factor + self.shift


LinearLayer = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""From an input, a weight and a bias to the layer's output."""


def _weighted_layer(
    rule: Callable[..., Tensor],
    quotient: Quotient,
    func: Any,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *args: Any,
    **kwargs: Any,
) -> Tensor:
    call = _RelevanceCall()

    def run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = func(x, weight, bias, *args, **kwargs)
        return result

    def backward(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        return (rule(run, x, *call.merged(weight, bias), quotient, signal),)

    return replace_backward(lambda x: run(x, weight, bias), backward, x, call=call)


def _epsilon_rule(
    run: LinearLayer, x: Tensor, weight: Tensor, bias: Tensor | None, quotient: Quotient, signal: Tensor
) -> Tensor:
    """Apply the ε rule: in proportion to x·w."""
    return distribute(quotient, lambda x: run(x, weight, bias), x, signal)


def _z_plus(
    run: LinearLayer, x: Tensor, weight: Tensor, bias: Tensor | None, quotient: Quotient, signal: Tensor
) -> Tensor:
    """Apply the z⁺ rule: in proportion to the positive products x·w, whether both are positive or both negative."""
    positive_bias = None if bias is None else bias.clamp(min=0)

    def positive(x: Tensor) -> Tensor:
        return run(x.clamp(min=0), weight.clamp(min=0), positive_bias) + run(x.clamp(max=0), weight.clamp(max=0), None)

    return distribute(quotient, positive, x, signal)


def _batch_norm(func: Any, x: Tensor, mean: Tensor, var: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Propagate unchanged; a weighted layer right before it merges this norm into its weights."""
    call = getattr(x.grad_fn, "call", None)
    if isinstance(call, _RelevanceCall):
        zeros, ones = (torch.full_like(mean, value).unsqueeze(0) for value in (0.0, 1.0))
        shift: Tensor = func(zeros, mean, var, *args, **kwargs)
        call.shift = shift[0]
        call.factor = (func(ones, mean, var, *args, **kwargs) - shift)[0]
    return pass_unchanged(func, x, mean, var, *args, **kwargs)


def _average_pool(quotient: Quotient, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    run = out_of_place(func, args, kwargs)
    return replace_backward(run, lambda signal, x: (distribute(quotient, run, x, signal),), x)


def _stabilised_quotient(signal: Tensor, total: Tensor, epsilon: float) -> Tensor:
    return signal / torch.where(total < 0, total - epsilon, total + epsilon)
