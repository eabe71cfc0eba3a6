"""Follow where in the image every number of a network lies, while the network runs.

Beside each tensor goes a field of the places in the image that its numbers stand for. What moves numbers (reshape,
permute, roll, index) moves the field likewise; a convolution's output lies at the centre of its window; a product of
matrices keeps the places that the rows, or else the columns, have of their own. So a grid is recognised in whatever
order a network lays it: channels last, tokens behind a class token, windows, mask units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .coordinate_fields import laid, nowhere, of_pixels, richer, tensors
from .coordinate_rules import RULES, Bound

__all__ = ["CoordinateTracker"]


class CoordinateTracker(TorchDispatchMode):
    """While this is entered, know the places of every tensor that comes of the pixels [B,C,H,W]."""

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known: Any = WeakTensorKeyDictionary()
        self._known[pixels] = of_pixels(pixels)

    def of(self, tensor: Tensor) -> Tensor | None:
        """Give the places of a tensor, or None if they are not known: those of a weight, or after a rare operation."""
        found: Tensor | None = self._known.get(tensor)
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and do to the places of its inputs what it does to them."""
        known = [t for t in tensors([args, list((kwargs or {}).values())]) if self.of(t) is not None]
        output = func(*args, **(kwargs or {}))
        if known:
            bound = _bound(func, args, kwargs or {})
            for made, field in zip(tensors([output]), self._fields(func, bound, output), strict=False):
                if field is not None and field.shape == made.shape:
                    self._known[made] = field
                else:
                    self._known.pop(made, None)
        return output

    def _fields(self, func: Any, bound: Bound, output: Any) -> Sequence[Tensor | None]:
        name = func.overloadpacket.__name__
        made = tensors([output])
        rule = RULES.get(name)
        try:
            if rule is not None:
                return tensors([rule(func, bound, self._swapped(bound), output)])
            return [self._elementwise(bound, tensor.shape) for tensor in made]
        except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
            return [None] * len(made)  # an unforeseen use of the operation: what it makes lies nobody knows where

    def _swapped(self, bound: Bound) -> Bound:
        """Put every tensor's places in its place; those of a weight are nowhere."""

        def swap(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                field = self.of(value)
                return nowhere(value) if field is None else field
            return type(value)(map(swap, value)) if isinstance(value, (list, tuple)) else value

        return {name: swap(value) for name, value in bound.items()}

    def _elementwise(self, bound: Bound, shape: torch.Size) -> Tensor | None:
        """Take the places of the input that has most of them, among those which lie like the output."""
        fields = [self.of(tensor) for tensor in tensors(bound.values())]
        best: Tensor | None = None
        for field in fields:
            if field is not None and (found := laid(field, shape)) is not None:
                best = found if best is None else richer(best, found)
        return best


def _bound(func: Any, args: Sequence[Any], kwargs: Bound) -> Bound:
    names = [argument.name for argument in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
