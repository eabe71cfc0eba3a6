"""DeepLIFT: differences from a reference, propagated through each non-linearity in proportion (the rescale rule).

The image and its reference run as one batch of two; every rule below uses the first row's signal.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import AVERAGES, STRUCTURAL, BackwardRules, multiply_by_constant, out_of_place, replace_backward
from .baseline import score_function

__all__ = ["deep_lift"]

_NAME = "deep_lift"
_NONLINEAR = (
    *("relu", "relu6", "hardtanh", "threshold", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish"),
    *("softplus", "softsign", "sigmoid", "logsigmoid", "tanh", "hardsigmoid", "hardswish", "hardshrink"),
    *("softshrink", "clamp", "clamp_min", "abs", "square", "exp", "log", "sqrt", "rsqrt"),
)
_PRODUCTS = ("mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv", "matmul", "rmatmul", "mm", "bmm")
_LINEAR = frozenset(AVERAGES).union(
    ("linear", "conv1d", "conv2d", "conv3d", "batch_norm", "upsample", "interpolate"),
    ("sum", "add", "iadd", "radd", "sub", "isub", "rsub", "neg"),
)
_SMALLEST_DIFFERENCE = 1e-10
"""Below this difference of the inputs no quotient of differences is taken."""


def deep_lift(
    objective: Objective, pixels: Tensor, target: Target, layer: Layer, *, reference: Tensor | float = 0.0
) -> Tensor:
    """Compute the contribution of each pixel to the score's difference from that of a reference, summed over channels.

    The map sums to score(pixels) − score(reference) (completeness). One forward pass of two images and one backward
    pass. (Shrikumar et al. 2017, "Learning important features through propagating activation differences"; its
    max-pooling as in Captum, whose DeepLift takes no module that runs twice.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        reference: [1,3,H,W], or one value; 0 is the mean colour of most preprocessings.

    Returns:
        [1,H,W], signed.

    Raises:
        GradlightError: For a network that multiplies its own values (attention, gates, layer norms, a captioner's
            LSTM), for which the rescale rule is not defined.
    """
    pair = torch.cat([pixels.detach(), torch.zeros_like(pixels) + reference]).requires_grad_()
    with BackwardRules(_NAME, _rules(), STRUCTURAL | _LINEAR):
        score = score_function(objective, target)(pair.clone())[0]
    (multipliers,) = torch.autograd.grad(score, pair)
    return ((pair[:1] - pair[1:]).detach() * multipliers[:1]).sum(1)


def _rules() -> dict[str, Any]:
    return {
        **dict.fromkeys(_NONLINEAR, _rescale),
        **dict.fromkeys(_PRODUCTS, partial(multiply_by_constant, _NAME)),
        "max_pool1d": partial(_max_pool, F.max_pool1d),
        "max_pool2d": partial(_max_pool, F.max_pool2d),
    }


def _rescale(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Propagate the quotient of the differences after and before, or the derivative where there is none before."""
    run = out_of_place(func, args, kwargs)

    def backward(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            result = run(leaf)
        (derivative,) = torch.autograd.grad(result, leaf, signal)
        before, after = x[:1] - x[1:], (result[:1] - result[1:]).detach()
        differs = before.abs() > _SMALLEST_DIFFERENCE
        quotient = signal[:1] * after / torch.where(differs, before, 1)
        return (torch.cat([torch.where(differs, quotient, derivative[:1]), derivative[1:]]),)

    return replace_backward(run, backward, x)


def _max_pool(pool: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Propagate what the image's winner gains over both maxima, and what the reference's winner loses.

    With M the larger of the two maxima y and y₀, M − y₀ goes to the location of y and y − M to that of y₀; each is
    divided by its own difference before the pooling.
    """
    run = out_of_place(func, args, kwargs)

    def backward(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        pooled, indices = pool(x, *args, **{**kwargs, "return_indices": True})
        larger = torch.maximum(pooled[:1], pooled[1:])
        gains = torch.cat([signal[:1] * (larger - pooled[1:]), signal[:1] * (pooled[:1] - larger)])
        unpooled = _unpool(gains, indices, x)
        before = x[:1] - x[1:]
        differs = before.abs() > _SMALLEST_DIFFERENCE
        multiplier = torch.where(differs, unpooled.sum(0, keepdim=True) / torch.where(differs, before, 1), 0)
        return (torch.cat([multiplier, torch.zeros_like(multiplier)]),)

    return replace_backward(run, backward, x)


def _unpool(values: Tensor, indices: Tensor, like: Tensor) -> Tensor:
    """Add pooled values at the locations they came from; overlapping windows may share one."""
    spatial = like.ndim - 2
    empty = torch.zeros_like(like).flatten(2)
    return empty.scatter_add(2, indices.flatten(-spatial), values.flatten(-spatial)).view_as(like)
