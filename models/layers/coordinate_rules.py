"""Coordinate rules: what each operation of a network does to the coordinates of its inputs.

An image of 4 × 4 pixels that becomes tokens behind a class token, with the rule of each operation and the coordinates
(row, column) of the numbers that it makes:

    pixels                        [1,3,4,4]   each number has its own row and column
    convolution 2 × 2   _window   [1,8,2,2]   (0.5, 0.5) (0.5, 2.5) (2.5, 0.5) (2.5, 2.5), for every channel
    flatten             _reshape  [1,8,4]     the same four
    transpose           _move     [1,4,8]     the same four, one for each token
    cat                 _move     [1,5,8]     NaN for the class token, then the four
    mean over tokens    _reduce   [1,8]       NaN: the mean of the whole image lies nowhere in it
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .coordinate_fields import (
    NO_COORDINATE,
    drop_if_constant,
    even_centres,
    interpolate_along,
    mean_over,
    no_coordinates,
    number_tensors,
    varies_along,
    window_centres,
    without_repeats,
)

__all__ = ["MIXING", "REORDERING", "RULES", "VIEWS", "Arguments"]

Arguments = dict[str, Any]
"""The arguments of an operation, by name."""

CoordinateRule = Callable[[Any, Arguments, Arguments, Any], Any]
"""(operation, its arguments, these with the field of each tensor in its stead, its output) → the output's fields."""


def _move(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Any:
    """Do the same to the field: the operation only moves numbers."""
    return operation(**fields)


def _reshape(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Tensor:
    shaped: Tensor = fields["self"].reshape(output.shape)
    return shaped


def _pad(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Any:
    return operation(**{**fields, "value": NO_COORDINATE})


def _frame(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Any:
    """Let repeated numbers beyond the border have no coordinates, as padding by a constant: they continue the grid."""
    return torch.ops.aten.constant_pad_nd(fields["self"], arguments["padding"], NO_COORDINATE)


def _move_real(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Tensor:
    """Move rows and columns separately, for operations without complex numbers."""
    field = fields["self"]
    real, imag = (operation(**{**fields, "self": axis}) for axis in (field.real, field.imag))
    return torch.complex(real, imag)


def _shuffle(operation: Any, arguments: Arguments, fields: Arguments, output: Tensor) -> Tensor:
    """Move channels into space: those with different coordinates are moved, those with one share its surroundings."""
    differ = without_repeats(fields["self"]).shape[1] > 1
    return (_move_real if differ else _resize)(operation, arguments, fields, output)


def _fold(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Tensor:
    """Average the coordinates of all numbers that are added up at one location."""
    field = fields["self"]
    missing = field.isnan()
    axes = [torch.where(missing, torch.zeros_like(field.real), axis) for axis in (field.real, field.imag)]
    count = operation(**{**fields, "self": (~missing).float()})
    row, column = (operation(**{**fields, "self": axis}) / count for axis in axes)
    return drop_if_constant(torch.complex(row, column))


def _reduce(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> list[Tensor]:
    """Average the coordinates over the dimensions that the operation reduces."""
    field = fields["self"]
    dims = arguments.get("dim")
    dims = list(range(field.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    middle = mean_over(field, [dim % field.ndim - field.ndim for dim in dims or range(field.ndim)])
    return [middle.reshape(tensor.shape) for tensor in number_tensors([output])]


def _product(operation: Any, arguments: Arguments, fields: Arguments, output: Tensor) -> Tensor:
    """Give a matrix product the coordinates of its rows, or of its columns if the rows have none.

    The dimension that is summed over is averaged. So queries times keys lie where the queries do, and attention times
    values too, also where it is transposed.
    """
    left, right = [fields[name] for name in ("self", "mat1", "batch1", "mat2", "batch2") if name in fields][-2:]
    rows, columns = mean_over(left, [-1]), mean_over(right, [-2])
    by_columns = not varies_along(rows, -2) and (varies_along(columns, -1) or bool(rows.isnan().all()))
    return (columns if by_columns else rows).expand(output.shape)


def _attend(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Tensor:
    """Give attention the coordinates of its queries."""
    attended = number_tensors([output])[0]
    return mean_over(fields["query"], [-1]).expand(attended.shape)


def _window(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Tensor:
    """Put each output at the centre of its receptive window."""
    result = number_tensors([output])[0]
    field = fields["input"] if "input" in fields else fields["self"]
    field = mean_over(field, [1 - field.ndim])
    for dim, side in enumerate(result.shape[2:]):
        field = interpolate_along(field, dim + 2, window_centres(arguments, dim, side))
    return drop_if_constant(without_repeats(field)).expand(result.shape)


def _resize(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Tensor:
    """Spread the output evenly over the input."""
    result = number_tensors([output])[0]
    field = mean_over(fields["self"], [1 - result.ndim])
    for dim in range(2, result.ndim):
        field = interpolate_along(field, dim, even_centres(field.shape[dim], result.shape[dim]))
    return drop_if_constant(without_repeats(field)).expand(result.shape)


def _put(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> Any:
    """Do the same to copies of the fields, for operations that write numbers into a tensor, in place or not."""
    functional = getattr(torch.ops.aten, operation.overloadpacket.__name__.rstrip("_"))
    value = {"value": NO_COORDINATE} if "value" in fields else {}
    return getattr(functional, operation._overloadname)(**{**fields, **value})


def _sample(operation: Any, arguments: Arguments, fields: Arguments, output: Tensor) -> Tensor:
    """Read the coordinates where the network reads its numbers, beyond the border those of the border."""
    field = mean_over(fields["input"], [1 - output.ndim])
    calls = [{**arguments, "input": axis.contiguous(), "padding_mode": 1} for axis in (field.real, field.imag)]
    row, column = (operation(**{**call, "grid": call["grid"].float()}) for call in calls)
    return torch.complex(row, column).expand(output.shape)


def _lose(operation: Any, arguments: Arguments, fields: Arguments, output: Any) -> list[Tensor]:
    return [no_coordinates(tensor) for tensor in number_tensors([output])]


_OPERATIONS: dict[CoordinateRule, str] = {
    _move: "permute transpose t unsqueeze squeeze expand select slice split split_with_sizes unbind unfold roll flip"
    " index index_select gather cat stack repeat diagonal",
    _reshape: "view _unsafe_view _reshape_alias reshape",
    _pad: "constant_pad_nd",
    _shuffle: "pixel_shuffle",
    _frame: "reflection_pad2d replication_pad2d",
    _move_real: "im2col pixel_unshuffle",
    _fold: "col2im",
    _put: "masked_scatter masked_scatter_ index_put index_put_ scatter scatter_ index_copy index_copy_",
    _sample: "grid_sampler_2d",
    _lose: "_fft_r2c _fft_c2r _fft_c2c sort topk",
    _reduce: "mean sum amax amin max min logsumexp linalg_vector_norm var var_mean prod",
    _product: "mm addmm bmm baddbmm",
    _attend: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
    " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
    " _scaled_dot_product_fused_attention_overrideable",
    _window: "convolution max_pool2d_with_indices avg_pool2d max_pool2d",
    _resize: "_adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d",
}

RULES: dict[str, CoordinateRule] = {name: rule for rule, names in _OPERATIONS.items() for name in names.split()}
"""Name of an ATen operation → its rule.

Any other operation is taken to work number by number, where its output has the shape of an input.
"""

VIEWS = frozenset({"slice", "select", "view", "transpose", "permute", "unsqueeze", "squeeze"})
"""Operations whose output shares its memory with the input."""

MIXING: dict[str, str] = {
    **dict.fromkeys(("_fft_r2c", "_fft_c2r", "_fft_c2c"), "a Fourier transform mixes all locations"),
    **dict.fromkeys(("sort", "topk"), "its numbers are sorted by their values"),
}
"""Name of an operation whose output has no coordinates → the reason."""

_REORDERING = (
    "gather index index_select index_put index_put_ scatter scatter_ masked_scatter masked_scatter_ masked_select take"
    " index_copy index_copy_ nonzero grid_sampler_2d"
)
REORDERING = frozenset(_REORDERING.split())
"""Operations that may put numbers in an order which depends on the image."""
