"""DeepLIFT: differences from a reference, handed back through each non-linearity in proportion (the rescale rule).

The photo and its reference run as one batch of two; every rule below works on the first row's signal.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import AVERAGES, STRUCTURAL, Rules, constant, copying, steered
from .captum_adapter import scoring

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


def deep_lift(
    objective: Objective, pixels: Tensor, target: Target, layer: Layer, *, reference: Tensor | float = 0.0
) -> Tensor:
    """Give the contribution of each pixel to the score's difference from a reference's, summed over channels [1,H,W].

    Signed; the whole map sums to score(pixels) − score(reference) (completeness). reference: [1,3,H,W], or one value;
    0 is the mean colour of most preprocessings. One forward pass of two images and one backward pass. Raises
    GradlightError for a network that multiplies its own values (attention, gates, layer norms, a captioner's LSTM): the
    rescale rule has no answer there. (Shrikumar et al. 2017, "Learning important features through propagating
    activation differences"; its max-pooling as in Captum, whose DeepLift takes no module that runs twice.)
    """
    pair = torch.cat([pixels.detach(), torch.zeros_like(pixels) + reference]).requires_grad_()
    with Rules(_NAME, _table(), STRUCTURAL | _LINEAR):
        score = scoring(objective, target)(pair.clone())[0]
    (multipliers,) = torch.autograd.grad(score, pair)
    return ((pair[:1] - pair[1:]).detach() * multipliers[:1]).sum(1)


def _table() -> dict[str, Any]:
    return {
        **dict.fromkeys(_NONLINEAR, _rescaled),
        **dict.fromkeys(_PRODUCTS, partial(constant, _NAME)),
        "max_pool1d": partial(_pooled, F.max_pool1d),
        "max_pool2d": partial(_pooled, F.max_pool2d),
    }


def _rescaled(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Hand back the quotient of the differences after and before, and the derivative where there is none before."""
    run = copying(func, args, kwargs)

    def back(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            out = run(leaf)
        (derived,) = torch.autograd.grad(out, leaf, signal)
        before, after = x[:1] - x[1:], (out[:1] - out[1:]).detach()
        apart = before.abs() > _NEAR
        quotient = signal[:1] * after / torch.where(apart, before, 1)
        return (torch.cat([torch.where(apart, quotient, derived[:1]), derived[1:]]),)

    return steered(run, back, x)


_NEAR = 1e-10


def _pooled(pool: Any, func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Hand back what the photo's winner gains over both maxima, and what the reference's winner loses.

    With M the larger of the two maxima y and y₀, M − y₀ goes to the place of y and y − M to the place of y₀; each is
    divided by its own difference before the pooling.
    """
    run = copying(func, args, kwargs)

    def back(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        out, places = pool(x, *args, **{**kwargs, "return_indices": True})
        larger = torch.maximum(out[:1], out[1:])
        gains = torch.cat([signal[:1] * (larger - out[1:]), signal[:1] * (out[:1] - larger)])
        laid = _laid(gains, places, x)
        before = x[:1] - x[1:]
        apart = before.abs() > _NEAR
        found = torch.where(apart, laid.sum(0, keepdim=True) / torch.where(apart, before, 1), 0)
        return (torch.cat([found, torch.zeros_like(found)]),)

    return steered(run, back, x)


def _laid(values: Tensor, places: Tensor, like: Tensor) -> Tensor:
    """Add pooled values up at the places that they came from; overlapping windows may share one."""
    spatial = like.ndim - 2
    empty = torch.zeros_like(like).flatten(2)
    return empty.scatter_add(2, places.flatten(-spatial), values.flatten(-spatial)).view_as(like)
