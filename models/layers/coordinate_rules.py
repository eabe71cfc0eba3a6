"""What each operation of a network does to the places of its inputs (`fields`)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .coordinate_fields import LOST, between, centres, kept, mean, spread_evenly, tensors, thin, varies

__all__ = ["RULES", "Bound"]

Bound = dict[str, Any]


def _move(func: Any, bound: Bound, fields: Bound, output: Any) -> Any:
    return func(**fields)


def _reshape(func: Any, bound: Bound, fields: Bound, output: Any) -> Tensor:
    shaped: Tensor = fields["self"].reshape(output.shape)
    return shaped


def _pad(func: Any, bound: Bound, fields: Bound, output: Any) -> Any:
    return func(**{**fields, "value": LOST})


def _move_parts(func: Any, bound: Bound, fields: Bound, output: Any) -> Tensor:
    """Move rows and columns apart, by operations that know no complex numbers."""
    field = fields["self"]
    return torch.complex(func(**{**fields, "self": field.real}), func(**{**fields, "self": field.imag}))


def _shuffle(func: Any, bound: Bound, fields: Bound, output: Tensor) -> Tensor:
    """Spread channels over space: those that lay apart go back there, those of one place get parts of it."""
    apart = thin(fields["self"]).shape[1] > 1
    return _move_parts(func, bound, fields, output) if apart else _resize(func, bound, fields, output)


def _fold(func: Any, bound: Bound, fields: Bound, output: Any) -> Tensor:
    """Average the places of all that is added up at one location."""
    field = fields["self"]
    lost = field.isnan()
    parts = [torch.where(lost, torch.zeros_like(field.real), part) for part in (field.real, field.imag)]
    count = func(**{**fields, "self": (~lost).float()})
    row, column = (func(**{**fields, "self": part}) / count for part in parts)
    return kept(torch.complex(row, column))


def _reduce(func: Any, bound: Bound, fields: Bound, output: Any) -> list[Tensor]:
    field = fields["self"]
    dims = bound.get("dim")
    dims = list(range(field.ndim)) if dims is None else [dims] if isinstance(dims, int) else list(dims)
    middle = mean(field, [dim % field.ndim - field.ndim for dim in dims or range(field.ndim)])
    return [middle.reshape(tensor.shape) for tensor in tensors([output])]


def _product(func: Any, bound: Bound, fields: Bound, output: Tensor) -> Tensor:
    """Keep the places of the rows, or of the columns if the rows have none; what is summed over is averaged.

    So queries times keys lie where the queries do, and attention times values too, also where it is transposed.
    """
    left, right = [fields[name] for name in ("self", "mat1", "batch1", "mat2", "batch2") if name in fields][-2:]
    rows, columns = mean(left, [-1]), mean(right, [-2])
    by_columns = not varies(rows, -2) and (varies(columns, -1) or bool(rows.isnan().all()))
    return (columns if by_columns else rows).expand(output.shape)


def _attend(func: Any, bound: Bound, fields: Bound, output: Any) -> Tensor:
    made = tensors([output])[0]
    return mean(fields["query"], [-1]).expand(made.shape)


def _window(func: Any, bound: Bound, fields: Bound, output: Any) -> Tensor:
    """Put each output at the centre of its window."""
    made = tensors([output])[0]
    field = fields["input"] if "input" in fields else fields["self"]
    spatial = made.ndim - 2
    field = mean(field, [1 - field.ndim])
    for dim, (own, side) in enumerate(zip(field.shape[2:], made.shape[2:], strict=True)):
        field = between(field, dim + 2, centres(bound, dim, spatial, own, side))
    return kept(thin(field)).expand(made.shape)


def _resize(func: Any, bound: Bound, fields: Bound, output: Any) -> Tensor:
    made = tensors([output])[0]
    field = mean(fields["self"], [1 - made.ndim])
    for dim in range(2, made.ndim):
        field = between(field, dim, spread_evenly(field.shape[dim], made.shape[dim]))
    return kept(thin(field)).expand(made.shape)


Rule = Callable[[Any, Bound, Bound, Any], Any]

_NAMES: dict[Rule, str] = {
    _move: "permute transpose t unsqueeze squeeze expand select slice split split_with_sizes unbind unfold roll flip"
    " index index_select gather cat stack repeat diagonal",
    _reshape: "view _unsafe_view _reshape_alias reshape",
    _pad: "constant_pad_nd",
    _shuffle: "pixel_shuffle",
    _move_parts: "im2col pixel_unshuffle reflection_pad2d replication_pad2d",
    _fold: "col2im",
    _reduce: "mean sum amax amin max min logsumexp linalg_vector_norm var var_mean prod",
    _product: "mm addmm bmm baddbmm",
    _attend: "_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention"
    " _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"
    " _scaled_dot_product_fused_attention_overrideable",
    _window: "convolution max_pool2d_with_indices avg_pool2d max_pool2d",
    _resize: "_adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d upsample_bicubic2d"
    " _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact2d",
}

RULES: dict[str, Rule] = {name: rule for rule, names in _NAMES.items() for name in names.split()}
"""Operation of ATen → what becomes of places: (operation, its arguments, the places of these, its output) → places.

Any other operation is taken to work number by number, where its output has the shape of an input.
"""
