"""Layer-wise relevance propagation: the score, handed down layer by layer to what made it up.

The rules of zennit's composite EpsilonPlus, with batch norms merged into the convolutions before them; on the
operations of the pass instead of on modules, so that no weight is changed and a skip connection of any network splits.
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
from .backward_rules import AVERAGES, RECTIFIERS, Rules, copying, steered
from .captum_adapter import scoring
from .proportional import ADDITIONS, KNOWN, SCALINGS, Quotient, added, passed, scaled, shared

__all__ = ["lrp"]

_NAME = "lrp"


def lrp(objective: Objective, pixels: Tensor, target: Target, layer: Layer, *, epsilon: float = 1e-6) -> Tensor:
    """Give the relevance of each pixel for the score, summed over channels [1,H,W]; signed.

    Convolutions hand it on by the z⁺ rule, linear layers by the ε rule, average pooling and skip connections in
    proportion, ReLUs as it is, max pooling to the winner; it starts as the score itself, and biases keep their part.
    epsilon: keeps the denominators from zero. One forward and one backward pass. Raises GradlightError for a network
    with other operations (gates, attention, a captioner's LSTM). (Bach et al. 2015, "On pixel-wise explanations …";
    Montavon et al. 2017 for z⁺; the composite of Montavon et al. 2019, as zennit's EpsilonPlus.)
    """
    leaf = pixels.detach().clone().requires_grad_()
    with Rules(_NAME, _table(epsilon), KNOWN):
        score = scoring(objective, target)(leaf.clone())
    (found,) = torch.autograd.grad(score, leaf, score.detach())
    return found.sum(1)


def _table(epsilon: float) -> dict[str, Any]:
    quotient = partial(_stabilised, epsilon=epsilon)
    return {
        **dict.fromkeys(("conv1d", "conv2d", "conv3d"), partial(_weighted, _plus, quotient)),
        "linear": partial(_weighted, _all, quotient),
        "batch_norm": _normed,
        **dict.fromkeys(RECTIFIERS, passed),
        **dict.fromkeys(AVERAGES, partial(_averaged, quotient)),
        **dict.fromkeys(ADDITIONS, partial(added, quotient)),
        **dict.fromkeys(SCALINGS, partial(scaled, _NAME)),
    }


@dataclass
class _RelevanceCall:
    """One run of a weighted layer, and the norm that came right after it: its factor and shift per channel."""

    factor: Tensor | None = None
    shift: Tensor | None = None

    def merged(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Give the weight and bias of the layer and its norm together."""
        if self.factor is None or self.shift is None:
            return weight, bias
        scaled = weight * self.factor.view(-1, *[1] * (weight.ndim - 1))
        return scaled, self.shift if bias is None else bias * self.factor + self.shift


Linear = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _weighted(
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

    def back(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        return (rule(run, x, *call.merged(weight, bias), quotient, signal),)

    return steered(lambda x: run(x, weight, bias), back, x, call=call)


def _all(run: Linear, x: Tensor, weight: Tensor, bias: Tensor | None, quotient: Quotient, signal: Tensor) -> Tensor:
    """Apply the ε rule: in proportion to x·w."""
    return shared(quotient, lambda x: run(x, weight, bias), x, signal)


def _plus(run: Linear, x: Tensor, weight: Tensor, bias: Tensor | None, quotient: Quotient, signal: Tensor) -> Tensor:
    """Apply the z⁺ rule: in proportion to what is positive of x·w, whether both are positive or both negative."""
    raised = None if bias is None else bias.clamp(min=0)

    def positive(x: Tensor) -> Tensor:
        return run(x.clamp(min=0), weight.clamp(min=0), raised) + run(x.clamp(max=0), weight.clamp(max=0), None)

    return shared(quotient, positive, x, signal)


def _normed(func: Any, x: Tensor, mean: Tensor, var: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Hand it on as it is; right after a weighted layer, tell that layer to take this norm into its weights."""
    call = getattr(x.grad_fn, "call", None)
    if isinstance(call, _RelevanceCall):
        zero, one = (torch.full_like(mean, value).unsqueeze(0) for value in (0.0, 1.0))
        shift: Tensor = func(zero, mean, var, *args, **kwargs)
        call.shift = shift[0]
        call.factor = (func(one, mean, var, *args, **kwargs) - shift)[0]
    return passed(func, x, mean, var, *args, **kwargs)


def _averaged(quotient: Quotient, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    run = copying(func, args, kwargs)
    return steered(run, lambda signal, x: (shared(quotient, run, x, signal),), x)


def _stabilised(signal: Tensor, total: Tensor, epsilon: float) -> Tensor:
    return signal / torch.where(total < 0, total - epsilon, total + epsilon)
