"""The layers that a network's time goes into, with a version of their weights for every image.

A rule takes the arguments of the torch function that it stands for. On the way to the step it computes the plain result
and has its gradient noted; afterwards it computes with the versions. It answers NotImplemented where it does not apply.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .convolutions import CONVOLUTIONS
from .function_mode import Note, PerSampleCall, Rule
from .weights import NotCoveredError, Weight, shaped

__all__ = ["RULES"]


def _linear(call: PerSampleCall, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Any:
    if not call.direct(input, weight, bias) or input.ndim < 2:
        return NotImplemented
    about, shift = call.weight(weight), call.weight(bias)
    if not call.settled:
        return call.track(F.linear(input, weight, bias), _note(call, input, about, shift))
    rows = input.reshape(call.count, -1, input.shape[-1])
    offsets = call.copies(bias, call.count)
    shape = (*input.shape[:-1], weight.shape[0])
    if about is not None and about.moved is not None:
        # One product for all images, with the offsets where there are some.
        turned = about.moved.mT
        result = rows @ turned if offsets is None else torch.baddbmm(offsets.unsqueeze(1), rows, turned)
        return shaped(result, shape)
    result = F.linear(rows, weight)
    if offsets is not None:
        result = result + offsets.unsqueeze(1)
    if about is not None and about.product is not None:
        left, right = about.product
        result = torch.baddbmm(result, rows @ right.mT.to(rows.dtype), left)
    return shaped(result, shape)


def _note(call: PerSampleCall, input: Tensor, weight: Weight | None, bias: Weight | None) -> Note:
    seen, version, count = input.detach(), input._version, call.count

    def note(gradient: Tensor) -> None:
        rows = gradient.reshape(count, -1, gradient.shape[-1])
        if bias is not None:
            bias.add(rows.sum(1))
        if weight is not None:
            if seen._version != version:
                raise NotCoveredError("the input of a linear layer is overwritten after it")
            weight.add_product(rows, seen.reshape(count, -1, seen.shape[-1]))

    return note


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
    about = call.weight(weight)
    if about is None or not call.direct(input, weight) or scale_grad_by_freq or sparse:
        return NotImplemented
    if max_norm is not None:
        raise NotCoveredError("an embedding renorms its weight while it runs")
    index = input.reshape(call.count, -1)
    plain = F.embedding(input, weight)
    if not call.settled:
        return call.track(plain, _note_rows(index, about, padding_idx))
    if about.moved is not None:
        return shaped(F.embedding(_numbered(index, len(weight)), about.moved.flatten(0, 1)), plain.shape)
    if about.rows is None:
        return plain
    steps, values = about.rows
    same = (index.unsqueeze(2) == steps.unsqueeze(1)).to(values.dtype)
    return shaped(torch.baddbmm(plain.view(call.count, -1, plain.shape[-1]), same, values), plain.shape)


def _note_rows(index: Tensor, weight: Weight, padding: int | None) -> Note:
    def note(gradient: Tensor) -> None:
        values = gradient.reshape(*index.shape, -1)
        if padding is not None:
            # Counted from the end where it is negative; this row takes no part in learning.
            values = values * (index != padding % len(weight.tensor)).unsqueeze(2)
        weight.add_rows(index, values.clone())

    return note


def _numbered(index: Tensor, rows: int) -> Tensor:
    """Number the rows of the images' tables, one table behind the other."""
    return index + rows * torch.arange(len(index), device=index.device).unsqueeze(1)


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
    # Statistics of the input itself, such as a standardised weight's, are an image's own: one by one they are.
    if training or running_mean is None or running_var is None or not call.direct(input, weight, bias):
        return NotImplemented
    rows = len(input)
    scales, shifts = call.copies(weight, rows), call.copies(bias, rows)
    if input.is_contiguous():
        # Images beside each other as if they were channels: the same kernel as for one set of weights.
        folded = input.view(1, rows * input.shape[1], *input.shape[2:])
        means, variances = running_mean.repeat(rows), running_var.repeat(rows)
        result = F.batch_norm(folded, means, variances, _flat(scales), _flat(shifts), False, momentum, eps)
        return shaped(result, input.shape)
    normed = F.batch_norm(input, running_mean, running_var, None, None, False, momentum, eps)
    return _scaled(normed, scales, shifts, 1)


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
    if not call.direct(input, weight, bias) or input.ndim <= len(normalized_shape):
        return NotImplemented
    rows, start = len(input), input.ndim - len(normalized_shape)
    normed = F.layer_norm(input, normalized_shape, None, None, eps)
    return _scaled(normed, call.copies(weight, rows), call.copies(bias, rows), start)


def _group_norm(
    call: PerSampleCall,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    if not call.direct(input, weight, bias):
        return NotImplemented
    normed = F.group_norm(input, num_groups, None, None, eps)
    return _scaled(normed, call.copies(weight, len(input)), call.copies(bias, len(input)), 1)


def _scaled(normed: Tensor, scales: Tensor | None, shifts: Tensor | None, start: int) -> Tensor:
    """Multiply and add a vector for each row, whose own axes begin at axis `start` of the field."""
    placed = [None if t is None else _placed(t, normed.ndim, start) for t in (scales, shifts)]
    if placed[0] is None:
        return normed if placed[1] is None else normed + placed[1]
    return normed * placed[0] if placed[1] is None else torch.addcmul(placed[1], normed, placed[0])


def _placed(rows: Tensor, ndim: int, start: int) -> Tensor:
    before, after = start - 1, ndim - start - (rows.ndim - 1)
    return rows.view(len(rows), *(1,) * before, *rows.shape[1:], *(1,) * after)


def _elementwise(call: PerSampleCall, one: Any, other: Any, **kwargs: Any) -> Any:
    """Broadcast a weight over the batch: a position's vector that is added, a layer scale."""
    batched, weight = (one, other) if call.version(one) is None else (other, one)
    if not isinstance(batched, Tensor) or not isinstance(weight, Tensor) or not call.leads(batched):
        return NotImplemented
    spare = batched.ndim - weight.ndim
    if call.version(batched) is not None or spare < 0 or (spare == 0 and weight.shape[0] != 1):
        return NotImplemented
    copies = call.copies(weight, len(batched))
    assert copies is not None
    copies = copies.squeeze(1) if spare == 0 else copies
    copies = copies.view(len(batched), *(1,) * (batched.ndim - copies.ndim), *copies.shape[1:])
    return call.function(*((batched, copies) if batched is one else (copies, batched)), **kwargs)


_OPERATORS = [torch.add, torch.mul, torch.sub, torch.div] + [
    getattr(Tensor, name)
    for operator in ("add", "mul", "sub", "div", "truediv")
    for name in (operator, f"{operator}_", f"__{operator}__", f"__r{operator}__", f"__i{operator}__")
    if hasattr(Tensor, name)
]


RULES: dict[Any, Rule] = {
    **CONVOLUTIONS,
    F.linear: _linear,
    F.embedding: _embedding,
    F.batch_norm: _batch_norm,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    **dict.fromkeys(_OPERATORS, _elementwise),
}
"""The rules, by the function that they stand for."""
