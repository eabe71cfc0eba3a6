"""Per-sample rules: batched forms of the layers that take most of a network's time.

A rule takes the arguments of its torch function. A linear layer y = x·Wᵀ with P locations per image, g at its output:

    before the step   y = x·Wᵀ is computed as usual; a hook on y collects, image by image,
                      ∇W = gᵀ·x, kept as its two factors g [P,O] and x [P,K] while P is small
    after the step    W' = W + rate·gᵀ·x, hence for a new input x' [P',K]
                      y = x'·W'ᵀ = x'·Wᵀ + rate·(x'·xᵀ)·g: one shared product and two small ones
                      (or, if P is large, one batched product with the images' own W' [B,O,K])

It returns NotImplemented where it does not apply; the call is then made image by image.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolutions import CONVOLUTIONS
from .function_mode import GradientHook, PerSampleCall, PerSampleRule
from .weights import NotCoveredError, PerSampleWeight, reshape_without_view

__all__ = ["RULES"]

# --- Linear layers


def _linear(call: PerSampleCall, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    """Rule of F.linear; the worked example above."""
    if not call.is_plain(input, weight, bias) or input.ndim < 2:
        return NotImplemented
    own_weight, own_bias = call.weight_of(weight), call.weight_of(bias)
    if not call.stepped:
        return call.collect(F.linear(input, weight, bias), _linear_hook(call, input, own_weight, own_bias))
    rows = input.reshape(call.count, -1, input.shape[-1])
    offsets = call.copies(bias, call.count)
    shape = (*input.shape[:-1], weight.shape[0])
    if own_weight is not None and own_weight.stepped is not None:
        # One product for all images, with the offsets where there are some.
        transposed = own_weight.stepped.mT
        result = rows @ transposed if offsets is None else torch.baddbmm(offsets.unsqueeze(1), rows, transposed)
        return reshape_without_view(result, shape)
    result = F.linear(rows, weight)
    if offsets is not None:
        result = result + offsets.unsqueeze(1)
    if own_weight is not None and own_weight.step_factors is not None:
        left, right = own_weight.step_factors
        result = torch.baddbmm(result, rows @ right.mT.to(rows.dtype), left)
    return reshape_without_view(result, shape)


def _linear_hook(
    call: PerSampleCall, input: Tensor, weight: PerSampleWeight | None, bias: PerSampleWeight | None
) -> GradientHook:
    kept_input, version, count = input.detach(), input._version, call.count

    def hook(gradient: Tensor) -> None:
        rows = gradient.reshape(count, -1, gradient.shape[-1])
        if bias is not None:
            bias.add(rows.sum(1))
        if weight is not None:
            if kept_input._version != version:
                raise NotCoveredError("the input of a linear layer is overwritten after it")
            weight.add_factors(rows, kept_input.reshape(count, -1, kept_input.shape[-1]))

    return hook


# --- Embeddings


def _embedding(
    call: PerSampleCall,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rule of F.embedding; the step changes only the rows that the image looked up."""
    own_weight = call.weight_of(weight)
    if own_weight is None or not call.is_plain(input, weight) or scale_grad_by_freq or sparse:
        return NotImplemented
    if max_norm is not None:
        raise NotCoveredError("an embedding renormalises its weight while it runs")
    index = input.reshape(call.count, -1)
    plain = F.embedding(input, weight)
    if not call.stepped:
        return call.collect(plain, _embedding_hook(index, own_weight, padding_idx))
    if own_weight.stepped is not None:
        # The images' tables lie one behind the other.
        row_numbers = index + len(weight) * torch.arange(len(index), device=index.device).unsqueeze(1)
        return reshape_without_view(F.embedding(row_numbers, own_weight.stepped.flatten(0, 1)), plain.shape)
    if own_weight.step_rows is None:
        return plain
    step_index, step_values = own_weight.step_rows
    same_row = (index.unsqueeze(2) == step_index.unsqueeze(1)).to(step_values.dtype)
    result = torch.baddbmm(plain.view(call.count, -1, plain.shape[-1]), same_row, step_values)
    return reshape_without_view(result, plain.shape)


def _embedding_hook(index: Tensor, weight: PerSampleWeight, padding: int | None) -> GradientHook:
    def hook(gradient: Tensor) -> None:
        values = gradient.reshape(*index.shape, -1)
        if padding is not None:
            # A negative index counts from the end. The padding row gets no gradient.
            values = values * (index != padding % len(weight.tensor)).unsqueeze(2)
        weight.add_rows(index, values.clone())

    return hook


# --- Normalisation layers


def _batch_norm(
    call: PerSampleCall,
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """Rule of F.batch_norm with running statistics."""
    # Statistics of the input itself, such as those of a standardised weight, differ by image: image by image they do.
    if training or running_mean is None or running_var is None or not call.is_plain(input, weight, bias):
        return NotImplemented
    rows = len(input)
    scales, shifts = call.copies(weight, rows), call.copies(bias, rows)
    if input.is_contiguous():
        # Images beside each other as if they were channels: the same kernel as for one set of weights.
        folded = input.view(1, rows * input.shape[1], *input.shape[2:])
        means, variances = running_mean.repeat(rows), running_var.repeat(rows)
        result = F.batch_norm(folded, means, variances, _flat(scales), _flat(shifts), False, momentum, eps)
        return reshape_without_view(result, input.shape)
    normalised = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
    return _scaled_and_shifted(normalised, scales, shifts, 1)


def _flat(rows: Tensor | None) -> Tensor | None:
    return None if rows is None else rows.reshape(-1)


def _layer_norm(
    call: PerSampleCall,
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Rule of F.layer_norm."""
    if not call.is_plain(input, weight, bias) or input.ndim <= len(normalized_shape):
        return NotImplemented
    rows, first_axis = len(input), input.ndim - len(normalized_shape)
    normalised = F.layer_norm(input, normalized_shape, None, None, eps)
    return _scaled_and_shifted(normalised, call.copies(weight, rows), call.copies(bias, rows), first_axis)


def _group_norm(
    call: PerSampleCall,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """Rule of F.group_norm."""
    if not call.is_plain(input, weight, bias):
        return NotImplemented
    normalised = F.group_norm(input, num_groups, None, None, eps)
    return _scaled_and_shifted(normalised, call.copies(weight, len(input)), call.copies(bias, len(input)), 1)


def _scaled_and_shifted(normalised: Tensor, scales: Tensor | None, shifts: Tensor | None, first_axis: int) -> Tensor:
    """Multiply and add per row of the batch; the axes of a scale are those of the field from `first_axis` on."""
    ndim = normalised.ndim
    scale, shift = (None if t is None else _aligned(t, ndim, first_axis) for t in (scales, shifts))
    if scale is None:
        return normalised if shift is None else normalised + shift
    return normalised * scale if shift is None else torch.addcmul(shift, normalised, scale)


def _aligned(rows: Tensor, ndim: int, first_axis: int) -> Tensor:
    """Insert axes of size one, so that the rows' own axes begin at `first_axis` of a field."""
    before, after = first_axis - 1, ndim - first_axis - (rows.ndim - 1)
    return rows.view(len(rows), *(1,) * before, *rows.shape[1:], *(1,) * after)


# --- Elementwise operators


def _elementwise(call: PerSampleCall, left: Any, right: Any, **kwargs: Any) -> Any:
    """Broadcast a weight over the batch: a position embedding that is added, a layer scale."""
    batched, weight = (left, right) if call.version_of(left) is None else (right, left)
    if not isinstance(batched, Tensor) or not isinstance(weight, Tensor) or not call.batch_is_first(batched):
        return NotImplemented
    missing_axes = batched.ndim - weight.ndim
    if call.version_of(batched) is not None or missing_axes < 0 or (missing_axes == 0 and weight.shape[0] != 1):
        return NotImplemented
    copies = call.copies(weight, len(batched))
    assert copies is not None
    copies = copies.squeeze(1) if missing_axes == 0 else copies
    copies = copies.view(len(batched), *(1,) * (batched.ndim - copies.ndim), *copies.shape[1:])
    return call.function(*((batched, copies) if batched is left else (copies, batched)), **kwargs)


_OPERATORS = [torch.add, torch.mul, torch.sub, torch.div] + [
    getattr(Tensor, name)
    for operator in ("add", "mul", "sub", "div", "truediv")
    for name in (operator, f"{operator}_", f"__{operator}__", f"__r{operator}__", f"__i{operator}__")
    if hasattr(Tensor, name)
]

# --- All rules

RULES: dict[Any, PerSampleRule] = {
    **CONVOLUTIONS,
    F.linear: _linear,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    **dict.fromkeys(_OPERATORS, _elementwise),
}
"""The rules, by torch function."""
