"""Activation and gradient at a layer, with the statistics that all methods and all targets share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Layer
from .contributions import Dense, Product

__all__ = ["Tap", "precise"]


def precise(tensor: Tensor) -> Tensor:
    """Compute statistics in float32 at least: squares of float16 overflow, sums of bfloat16 lose half their digits."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class Tap:
    """Activation x and gradient g at a layer, [B,C,h,w] in the network's precision but at least float32.

    module: the layer's module, None at the input. raw_source: that module's own first input as it lay in memory, None
    if it was no tensor. The three fields are shared by every method, so that a statistic is computed once.
    """

    layer: Layer
    module: nn.Module | None
    activation: Tensor
    gradient: Tensor
    raw_source: Tensor | None

    @property
    def source(self) -> Tensor:
        """The module's own input as a map [B,C',h',w']. Raises GradlightError if it had none."""
        if self.raw_source is None:
            raise GradlightError(f"{self.layer.name!r} takes no tensor as its first input; real methods need one.")
        return precise(self.layer.layout(self.raw_source))

    @cached_property
    def activation_field(self) -> Dense:
        """The activation, as vectors."""
        return Dense(self.activation)

    @cached_property
    def gradient_field(self) -> Dense:
        """The gradient, as vectors."""
        return Dense(self.gradient)

    @cached_property
    def product_field(self) -> Product:
        """Gradient times activation, as vectors."""
        return Product(self.gradient, self.activation)

    def toward(self, gradient: Tensor) -> Tap:
        """Give the tap of another target: another gradient at the same activation, whose statistics are kept."""
        other = Tap(self.layer, self.module, self.activation, gradient, self.raw_source)
        other.__dict__["activation_field"] = self.activation_field
        return other

    def parts(self, size: int) -> Iterator[Tap]:
        """Cut the tap into those of at most `size` images each."""
        for at in range(0, len(self.activation), size):
            these = slice(at, at + size)
            x, g = self.activation[these], self.gradient[these]
            yield _PartOfTap(self.layer, self.module, x, g, self.raw_source, self, these)


@dataclass(frozen=True)
class _PartOfTap(Tap):
    """The tap of some images of a batch; in memory, its module's input may be cut otherwise than by images."""

    whole: Tap
    these: slice

    @property
    def source(self) -> Tensor:
        return self.whole.source[self.these]
