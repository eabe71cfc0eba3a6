"""`Baseline`: a published attribution method, and the layers at which it makes maps."""

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
    """A published attribution method, applied to the same objective as the methods of this library.

    Another setting of a method is another Baseline.

    Args:
        name: The name by which `explain` finds its maps.
        attribute: Makes the raw map, inside `preserved`; it leaves the network untouched, also after an error.
        places: Which layers it makes maps at, of those requested: `at_layers` or `at_pixels`.
        formula: The map in one line of plain text.
        reference: Authors, year and title of the source.

    Example:
        >>> from functools import partial
        >>> from gradlight.explainers.baselines.rise import rise
        >>> Baseline("rise_500", partial(rise, masks=500), at_pixels).name
        'rise_500'
    """

    name: str
    attribute: Attribute
    places: Callable[[Sequence[Layer]], Sequence[Layer]]
    formula: str = ""
    reference: str = ""


def at_layers(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Make a map at each requested layer."""
    return layers


def at_pixels(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Make one map, of the pixels, whatever layers are requested; the first of them gives the size of the pixels."""
    first = layers[0]
    height, width = (round(side * stride) for side, stride in zip(first.size, first.stride, strict=True))
    return [next((layer for layer in layers if layer.name == "input"), Layer("input", 0, 3, (height, width)))]
