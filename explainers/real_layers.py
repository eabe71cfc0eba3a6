"""The layer's own weight and bias: torch's own layers as they are written, all others by watching them.

Where a weight is computed before it is used (standardised, parametrized, normalised), the contribution is to the
weight that the operation uses, which is the one that is shared over space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from ..errors import GradlightError
from .capture import Tap
from .contributions import Contribution, Dense, Outer
from .replay import RefusedError, convolution, replayed

__all__ = ["real", "real_bias"]


def real(tap: Tap) -> Contribution:
    """The layer's own weight: convolution, linear on tokens, or the scale of a norm or of the layer itself.

    Raises GradlightError where the layer has no spatially shared weight.
    """
    known = _known(tap, "weight")
    return known(tap, tap.module) if known else _watched(tap, "weight")


def real_bias(tap: Tap) -> Contribution:
    """The layer's own bias: g at each location. Raises GradlightError where the layer has no shared bias."""
    return tap.gradient_field if _known(tap, "bias") else _watched(tap, "bias")


def _known(tap: Tap, parameter: str) -> Callable[[Tap, Any], Contribution] | None:
    """Find how the parameter of one of torch's own layers enters."""
    module = tap.module
    each_place_its_own = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
    for kind, extract in _REAL.items():
        known = getattr(type(module), "forward", None) is kind.forward and "forward" not in vars(module)
        if known and getattr(module, parameter) is not None and not each_place_its_own:
            return extract
    return None


def _watched(tap: Tap, parameter: str) -> Contribution:
    try:
        return replayed(tap, parameter)
    except RefusedError as reason:
        raise _no_weight(tap, parameter, str(reason)) from None


def _convolution(tap: Tap, module: Any) -> Contribution:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return convolution(
        tap.gradient,
        tap.source,
        module.kernel_size,
        module.stride,
        module.padding,
        module.dilation,
        module.groups,
        mode,
    )


def _linear(tap: Tap, module: Any) -> Contribution:
    return Outer(tap.gradient_field, Dense(tap.source))


def _batch_norm(tap: Tap, module: Any) -> Contribution:
    if module.running_mean is None:
        raise GradlightError(
            f"{tap.layer.name!r} keeps no running statistics, so it mixes the images of a batch and has no"
            " contribution of one image alone. Use a virtual identity method such as normgrad there."
        )
    source = tap.source
    mean, variance = module.running_mean.to(source.dtype), module.running_var.to(source.dtype)
    return Dense(tap.gradient * F.batch_norm(source, mean, variance, eps=module.eps))


def _layer_norm(tap: Tap, module: Any) -> Contribution:
    last = tap.source.movedim(1, -1)
    return Dense(tap.gradient * F.layer_norm(last, module.normalized_shape, eps=module.eps).movedim(-1, 1))


def _group_norm(tap: Tap, module: Any) -> Contribution:
    return Dense(tap.gradient * F.group_norm(tap.source, module.num_groups, eps=module.eps))


def _no_weight(tap: Tap, parameter: str, reason: str) -> GradlightError:
    found = "the pixels themselves" if tap.module is None else f"a {type(tap.module).__name__}"
    parts = [] if tap.module is None else _parts(tap.module, parameter)
    inside = [f"{tap.layer.name.partition(':')[0]}.{name}" for name in parts[:3]]
    ask = ", ".join(map(repr, inside)) if inside else "a convolution, a linear layer on tokens, a norm or a layer scale"
    return GradlightError(
        f"real contributions were asked at {tap.layer.name!r}, but this is {found}, without a {parameter} that is"
        f" shared over space{reason}. Ask at {ask}; or use a virtual identity method such as normgrad, which works"
        " anywhere."
    )


def _parts(module: nn.Module, parameter: str) -> list[str]:
    """Name the parts of a layer that have such a parameter of their own."""
    return [name for name, part in module.named_modules() if name and part._parameters.get(parameter) is not None]


_REAL: dict[type[nn.Module], Callable[[Tap, Any], Contribution]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
