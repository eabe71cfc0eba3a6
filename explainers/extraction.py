"""Phase 1, extract: from a tap to what each location contributes to a weight's gradient (paper, table 1).

The virtual identity layers (section 3.1.2) take activation and gradient at the same location; `real` and `real_bias`
(section 3.1.1, `real_layers`) take the layer's own weight or bias, with its own input, kernel, stride, padding,
dilation and groups.
"""

from __future__ import annotations

from collections.abc import Callable

from ..errors import GradlightError
from .capture import Tap
from .contributions import Contribution, Dense, Outer, Patches, Weighted
from .real_layers import real, real_bias

__all__ = ["EXTRACTS", "Extract", "averaged_scaling", "class_weights"]

Extract = Callable[[Tap], Contribution]
"""From a tap to the contribution of each of its locations."""


def bias(tap: Tap) -> Contribution:
    """Virtual bias: g at each location (a vector of C)."""
    return tap.gradient_field


def scaling(tap: Tap) -> Contribution:
    """Virtual scaling: g ⊙ x at each location (a vector of C)."""
    return tap.product_field


def conv1x1(tap: Tap) -> Contribution:
    """Virtual 1×1 convolution: g xᵀ at each location (a C×C matrix).

    Example:
        >>> import torch
        >>> from gradlight.models.base import Layer
        >>> x, g = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[0.0]], [[2.0]]]])
        >>> conv1x1(Tap(Layer("conv", 1, 2, (1, 1)), None, x, g, None)).norm  # ‖g‖·‖x‖
        tensor([[[[10.]]]])
    """
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

    Args:
        tap: At a layer whose spatial mean that linear layer reads; there g is w_c divided by the number of locations.

    Returns:
        The contribution.

    Raises:
        GradlightError: The method is not defined at this layer.
    """
    if not tap.layer.pooled:
        raise GradlightError(
            f"cam was asked at {tap.layer.name!r}, but it is defined only at the layer that a network averages over"
            " space before its one linear layer, and this is another layer. Ask for grad_cam, its generalisation."
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
"""Name in "EXTRACT+AGGREGATE" → function."""
