"""What a baseline is: a map of its own making, and the layers that it can make it at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target

__all__ = ["Attribute", "Baseline", "at_layers", "at_pixels"]

Attribute = Callable[[Objective, Tensor, Target, Layer], Tensor]
"""From an objective, the pixels [1,3,H,W] of one image, one fixed target and a layer to the map [1,h,w]."""


@dataclass(frozen=True)
class Baseline:
    """A method of somebody else's, on the same objective.

    attribute: makes the raw map, inside `preserved`; it leaves the network untouched, also after an error.
    places: which layers it makes maps at, of those that were asked for. Another setting of a method is another
    Baseline: `Baseline("rise_500", partial(rise, masks=500), at_pixels)`.
    """

    name: str
    attribute: Attribute
    places: Callable[[Sequence[Layer]], Sequence[Layer]]


def at_layers(asked: Sequence[Layer]) -> Sequence[Layer]:
    """Make a map at each layer that is asked for."""
    return asked


def at_pixels(asked: Sequence[Layer]) -> Sequence[Layer]:
    """Make one map, of the pixels, whatever layers are asked for (at least one, which tells how many pixels)."""
    first = asked[0]
    height, width = (round(side * stride) for side, stride in zip(first.size, first.stride, strict=True))
    return [next((layer for layer in asked if layer.name == "input"), Layer("input", 0, 3, (height, width)))]
