"""Contributions to a layer's own weight and bias: torch's own layers by formula, all others by replaying them.

Where a weight is computed before it is used (standardised, parametrised, normalised), the contribution is to the weight
that the operation uses, which is the one that is shared over space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from ..errors import GradlightError
from .capture import Tap
from .contributions import Contribution, Dense, Outer
from .replay import NoSharedWeightError, convolution_contribution, replay

__all__ = ["real", "real_bias"]

LayerFormula = Callable[[Tap, Any], Contribution]
"""From a tap and its module to the contribution to the module's weight."""


def real(tap: Tap) -> Contribution:
    """Compute the contribution to the layer's own weight, at each location.

    Args:
        tap: Of a convolution, a linear layer on tokens, a norm, a layer scale, or another layer with a shared weight.

    Returns:
        The contribution.

    Raises:
        GradlightError: If the layer has no spatially shared weight.
    """
    formula = _formula_of(tap, "weight")
    return formula(tap, tap.module) if formula else _replayed(tap, "weight")


def real_bias(tap: Tap) -> Contribution:
    """Compute the contribution to the layer's own bias: g at each location.

    Args:
        tap: Of a layer with a bias that is shared over space.

    Returns:
        The contribution.

    Raises:
        GradlightError: If the layer has no spatially shared bias.
    """
    return tap.gradient_field if _formula_of(tap, "bias") else _replayed(tap, "bias")


def _formula_of(tap: Tap, parameter: str) -> LayerFormula | None:
    """Find the formula of one of torch's own layers; None for another layer, or one without this parameter."""
    module = tap.module
    normalises_space = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
    for kind, formula in _FORMULAS.items():
        has_own_forward = getattr(type(module), "forward", None) is not kind.forward or "forward" in vars(module)
        if not has_own_forward and getattr(module, parameter) is not None and not normalises_space:
            return formula
    return None


def _replayed(tap: Tap, parameter: str) -> Contribution:
    try:
        return replay(tap, parameter)
    except NoSharedWeightError as reason:
        raise _no_shared_weight(tap, parameter, str(reason)) from None


def _no_shared_weight(tap: Tap, parameter: str, reason: str) -> GradlightError:
    """Make the error of a layer without a shared parameter; it names submodules that have one."""
    description = "the pixels themselves" if tap.module is None else f"a {type(tap.module).__name__}"
    submodules = [] if tap.module is None else _submodules_with(tap.module, parameter)
    names = [f"{tap.layer.name.partition(':')[0]}.{name}" for name in submodules[:3]]
    layers = (
        ", ".join(map(repr, names)) if names else "a convolution, a linear layer on tokens, a norm or a layer scale"
    )
    return GradlightError(
        f"real contributions were asked at {tap.layer.name!r}, but this is {description}, without a {parameter}"
        f" that is shared over space{reason}. Ask at {layers}; or use a virtual identity method such as normgrad, which"
        " works anywhere."
    )


def _submodules_with(module: nn.Module, parameter: str) -> list[str]:
    """Name the submodules of a layer that have such a parameter of their own."""
    return [
        name for name, submodule in module.named_modules() if name and submodule._parameters.get(parameter) is not None
    ]


# --- Formulas of torch's own layers


def _convolution(tap: Tap, module: Any) -> Contribution:
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return convolution_contribution(
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
    channels_last = tap.source.movedim(1, -1)
    return Dense(tap.gradient * F.layer_norm(channels_last, module.normalized_shape, eps=module.eps).movedim(-1, 1))


def _group_norm(tap: Tap, module: Any) -> Contribution:
    return Dense(tap.gradient * F.group_norm(tap.source, module.num_groups, eps=module.eps))


_FORMULAS: dict[type[nn.Module], LayerFormula] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}
