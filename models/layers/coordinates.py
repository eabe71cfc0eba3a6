"""Track the coordinates of every number of a network, in the pixels, while the network runs.

Each tensor gets a coordinate field beside it. An operation that moves numbers (reshape, permute, roll, index) moves the
field in the same way; a convolution's output lies at the centre of its receptive window; a matrix product has the
coordinates of its rows, or else of its columns. So a grid is recognised in any memory order: channels last, tokens
behind a class token, windows, mask units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from .coordinate_fields import (
    broadcast_field,
    more_detailed,
    no_coordinates,
    number_tensors,
    pixel_coordinates,
    without_repeats,
)
from .coordinate_rules import MIXING, REORDERING, RULES, VIEWS, Arguments

__all__ = ["CoordinateTracker"]


class CoordinateTracker(TorchDispatchMode):
    """A context in which every tensor that depends on the pixels has a coordinate field.

    Args:
        pixels: [B,C,H,W].

    Attributes:
        may_vary: Whether an operation ran that depends on chance, or may move numbers by their values; another run may
            then have other coordinates.

    Example:
        >>> import torch
        >>> from gradlight.models.layers.coordinates import CoordinateTracker
        >>> pixels = torch.zeros(1, 3, 4, 4)
        >>> with CoordinateTracker(pixels) as tracker:
        ...     pooled = torch.nn.functional.avg_pool2d(pixels, 2)
        >>> tracker.field_of(pooled)[0, 0].tolist()
        [[(0.5+0.5j), (0.5+2.5j)], [(2.5+0.5j), (2.5+2.5j)]]
    """

    def __init__(self, pixels: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._field_by_tensor: Any = WeakTensorKeyDictionary()
        self._field_by_tensor[pixels] = pixel_coordinates(pixels)
        self._reason_by_tensor: Any = WeakTensorKeyDictionary()
        self._origin_by_view: Any = WeakTensorKeyDictionary()
        self.may_vary = False

    def field_of(self, tensor: Tensor) -> Tensor | None:
        """Give the coordinate field of a tensor; None if it is unknown: for weights, and after a rare operation."""
        field: Tensor | None = self._field_by_tensor.get(tensor)
        return field

    def reason_of(self, tensor: Tensor) -> str | None:
        """Say why a tensor has no coordinates: which operation lost them; None if none is known."""
        reason: str | None = self._reason_by_tensor.get(tensor)
        return reason

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and apply its coordinate rule to the fields of its inputs."""
        inputs = number_tensors([args, list((kwargs or {}).values())])
        tracked = any(self.field_of(tensor) is not None for tensor in inputs)
        output = func(*args, **(kwargs or {}))
        operation = func.overloadpacket.__name__
        self.may_vary |= torch.Tag.nondeterministic_seeded in func.tags or operation == "_local_scalar_dense"
        self.may_vary |= tracked and operation in REORDERING
        if operation in VIEWS:
            arguments = _arguments(func, args, kwargs or {})
            self._origin_by_view[output] = func, {**arguments, "self": None}, arguments["self"]
        if tracked:
            reason = MIXING.get(operation) or next(filter(None, map(self._reason_by_tensor.get, inputs)), None)
            arguments = _arguments(func, args, kwargs or {})
            fields = self._output_fields(func, arguments, output)
            for tensor, field in zip(number_tensors([output]), fields, strict=False):
                if reason is not None and (field is None or bool(without_repeats(field).isnan().all())):
                    field, self._reason_by_tensor[tensor] = no_coordinates(tensor), reason
                if field is not None and field.shape == tensor.shape:
                    self._field_by_tensor[tensor] = field
                else:
                    self._field_by_tensor.pop(tensor, None)
            if operation == "copy_" and self._root_of(args[0]) is self._root_of(args[1]):
                # A part repeated within its own tensor, as circular padding does: it continues the grid.
                self._field_by_tensor[args[0]] = no_coordinates(args[0])
            if operation.endswith("_") and isinstance(args[0], Tensor):
                self._write_through(args[0])
        return output

    def _root_of(self, tensor: Tensor) -> Tensor:
        """Follow views to the tensor that they are views of."""
        while tensor in self._origin_by_view:
            tensor = self._origin_by_view[tensor][2]
        return tensor

    def _write_through(self, tensor: Tensor) -> None:
        """Write the coordinates of a part, which an operation has overwritten, into the tensor that it is a view of."""
        field = self.field_of(tensor)
        if field is None or tensor not in self._origin_by_view:
            return
        operation, arguments, whole = self._origin_by_view[tensor]
        known = self.field_of(whole)
        written = (no_coordinates(whole) if known is None else known).clone(memory_format=torch.contiguous_format)
        operation(**{**arguments, "self": written}).copy_(field)
        self._field_by_tensor[whole] = written
        self._write_through(whole)

    def _output_fields(self, func: Any, arguments: Arguments, output: Any) -> Sequence[Tensor | None]:
        outputs = number_tensors([output])
        rule = RULES.get(func.overloadpacket.__name__)
        try:
            if rule is not None:
                return number_tensors([rule(func, arguments, self._with_fields(arguments), output)])
            return [self._elementwise(arguments, tensor.shape) for tensor in outputs]
        except (RuntimeError, IndexError, TypeError, ValueError, NotImplementedError):
            # An unforeseen use of the operation: the coordinates of its output are unknown from here on.
            return [None] * len(outputs)

    def _with_fields(self, arguments: Arguments) -> Arguments:
        """Replace every tensor of numbers by its field; a weight's has no coordinates."""

        def replace(value: Any) -> Any:
            if isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex()):
                field = self.field_of(value)
                return no_coordinates(value) if field is None else field
            return type(value)(map(replace, value)) if isinstance(value, (list, tuple)) else value

        return {name: replace(value) for name, value in arguments.items()}

    def _elementwise(self, arguments: Arguments, shape: torch.Size) -> Tensor | None:
        """Take the most detailed field among the inputs that broadcast to the output."""
        best: Tensor | None = None
        for tensor in number_tensors(arguments.values()):
            field = self.field_of(tensor)
            if field is not None and (candidate := broadcast_field(field, shape)) is not None:
                best = candidate if best is None else more_detailed(best, candidate)
        return best


def _arguments(func: Any, args: Sequence[Any], kwargs: Arguments) -> Arguments:
    """Name all arguments of a call, defaults included."""
    names = [argument.name for argument in func._schema.arguments]
    defaults = {a.name: a.default_value for a in func._schema.arguments if a.has_default_value()}
    return {**defaults, **dict(zip(names, args, strict=False)), **kwargs}
