"""Phase 1: tap → contribution (paper, section 3.1.1 and 3.1.2; table 1).

The virtual identity layers take activation and gradient at the same place; `real` and `real_bias` take the layer's
own weight or bias, with its own input, kernel, stride, padding, dilation and groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import nn

from ..errors import GradlightError
from .capture import Tap
from .contributions import Contribution, Dense, Outer, Patches, Weighted

__all__ = ["EXTRACTS", "Extract", "averaged_scaling", "class_weights"]

Extract = Callable[[Tap], Contribution]


def bias(tap: Tap) -> Contribution:
    """Virtual bias: g at each location (a vector of C)."""
    return tap.gradient_field


def scaling(tap: Tap) -> Contribution:
    """Virtual scaling: g ⊙ x at each location (a vector of C)."""
    return tap.product_field


def conv1x1(tap: Tap) -> Contribution:
    """Virtual 1×1 convolution: g xᵀ at each location (a C×C matrix)."""
    return Outer(tap.gradient_field, tap.activation_field)


def conv3x3(tap: Tap) -> Contribution:
    """Virtual 3×3 convolution, zero padding 1: g times the 3×3 patch of x (a C×9C matrix)."""
    return Outer(tap.gradient_field, Patches(tap.activation_field, (3, 3), padding=(1, 1, 1, 1)))


def conv3x3_depthwise(tap: Tap) -> Contribution:
    """Virtual depthwise 3×3 convolution: each channel's g times its own 3×3 patch (C×9)."""
    channels = tap.activation.shape[1]
    patches = Patches(Dense(tap.activation, channels), (3, 3), padding=(1, 1, 1, 1))
    return Outer(Dense(tap.gradient, channels), patches)


def averaged_scaling(tap: Tap) -> Contribution:
    """Scaling with the gradient first averaged over space: Grad-CAM's ḡ ⊙ x (paper, section 3.1.3)."""
    return Weighted(tap.gradient.mean((2, 3), keepdim=True), tap.activation)


def class_weights(tap: Tap) -> Contribution:
    """Scaling with the weights of the network's one linear layer: CAM's w_c ⊙ x.

    Defined only where that layer reads the spatial mean; there g is w_c divided by the number of locations.
    Raises GradlightError elsewhere.
    """
    if not tap.layer.pooled:
        raise GradlightError(
            f"cam was asked at {tap.layer.name!r}, but it is defined only where a network averages over space and ends"
            " in one linear layer, and this is not such a place. Ask for grad_cam, its generalisation."
        )
    locations = tap.gradient.shape[2] * tap.gradient.shape[3]
    return Dense(tap.gradient * locations * tap.activation)


def real(tap: Tap) -> Contribution:
    """The layer's own weight: convolution, linear on tokens, or the scale of a norm.

    Raises GradlightError where the layer has no spatially shared weight.
    """
    if tap.module is not None and _is_layer_scale(tap.module):
        return Dense(tap.gradient * tap.source)
    return _shared(tap, "weight")(tap, tap.module)


def real_bias(tap: Tap) -> Contribution:
    """The layer's own bias: g at each location. Raises GradlightError where the layer has no shared bias."""
    _shared(tap, "bias")
    return tap.gradient_field


def _shared(tap: Tap, parameter: str) -> Callable[[Tap, Any], Contribution]:
    """Find how a layer's own parameter enters, or raise GradlightError where it has none that is shared over space."""
    module = tap.module
    each_place_its_own = isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1
    for kind, extract in _REAL.items():
        known = getattr(type(module), "forward", None) is kind.forward
        if known and getattr(module, parameter) is not None and not each_place_its_own:
            return extract
    raise _no_weight(tap, parameter)


def _convolution(tap: Tap, module: Any) -> Contribution:
    patches = Patches(
        Dense(tap.source, module.groups),
        module.kernel_size,
        module.stride,
        _pads(module),
        module.dilation,
        "constant" if module.padding_mode == "zeros" else module.padding_mode,
    )
    return Outer(Dense(tap.gradient, module.groups), patches)


def _pads(module: nn.Conv2d) -> tuple[int, int, int, int]:
    """Give a convolution's padding as left, right, top, bottom; "same" puts the odd one at the end."""
    if module.padding == "valid":
        return (0, 0, 0, 0)
    if module.padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True))
        return (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    rows, columns = (int(p) for p in module.padding)
    return (columns, columns, rows, rows)


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


def _is_layer_scale(module: nn.Module) -> bool:
    """Recognise a layer whose only parameter scales the channels (timm's and torchvision's LayerScale)."""
    parameters = list(module.named_parameters())
    return "LayerScale" in type(module).__name__ and len(parameters) == 1


def _no_weight(tap: Tap, parameter: str) -> GradlightError:
    found = "the pixels themselves" if tap.module is None else f"a {type(tap.module).__name__}"
    return GradlightError(
        f"real contributions were asked at {tap.layer.name!r}, but this is {found}, without a {parameter} that is"
        " shared over space and used as torch uses it. Ask at one of torch's own"
        f" {', '.join(kind.__name__ for kind in _REAL)}; or use a virtual identity method such as normgrad, which works"
        " anywhere."
    )


_REAL: dict[type[nn.Module], Callable[[Tap, Any], Contribution]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _linear,
    nn.BatchNorm2d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}

EXTRACTS: dict[str, Extract] = {
    "bias": bias,
    "scaling": scaling,
    "conv1x1": conv1x1,
    "conv3x3": conv3x3,
    "conv3x3_depthwise": conv3x3_depthwise,
    "real": real,
    "real_bias": real_bias,
}
