"""Phase 1: tap → contribution (paper, section 3.1.1 and 3.1.2; table 1).

The virtual identity layers take activation and gradient at the same place; `real` and `real_bias`
(`real_layers`) take the layer's own weight or bias, with its own input, kernel, stride, padding, dilation and groups.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import GradlightError
from .capture import Tap
from .contributions import Contribution, Dense, Outer, Patches, Weighted
from .real_layers import real, real_bias

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


EXTRACTS: dict[str, Extract] = {
    "bias": bias,
    "scaling": scaling,
    "conv1x1": conv1x1,
    "conv3x3": conv3x3,
    "conv3x3_depthwise": conv3x3_depthwise,
    "real": real,
    "real_bias": real_bias,
}
