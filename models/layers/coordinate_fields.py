"""Fields of places: for each number of a tensor the row and the column of the pixels that it stands for.

A field is complex, row + i·column, and NaN where a number stands for no place (a class token, padding, an average over
the image). Fields are expanded views wherever they repeat, so that one of many channels costs no more than one channel.

Where the windows of convolutions and poolings lie on the grid that they slide over.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "LOST",
    "between",
    "centres",
    "kept",
    "laid",
    "mean",
    "nowhere",
    "of_pixels",
    "richer",
    "spread_evenly",
    "tensors",
    "thin",
    "varies",
]

LOST = complex("nan+nanj")


def of_pixels(pixels: Tensor) -> Tensor:
    """Give the places of pixels [B,C,H,W]: their own rows and columns."""
    rows, columns = (torch.arange(side, dtype=torch.float32, device=pixels.device) for side in pixels.shape[2:])
    return torch.complex(*torch.meshgrid(rows, columns, indexing="ij")).expand(pixels.shape)


def thin(field: Tensor) -> Tensor:
    """Leave one of every repetition that expand() has made."""
    for dim, (side, step) in enumerate(zip(field.shape, field.stride(), strict=True)):
        if side > 1 and step == 0:
            field = field.narrow(dim, 0, 1)
    return field


def tensors(values: Any) -> list[Tensor]:
    """List the tensors of numbers in a nest of lists and tuples."""

    def search(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            if value.is_floating_point() or value.is_complex():
                yield value
        elif isinstance(value, (list, tuple)):
            for part in value:
                yield from search(part)

    return [tensor for value in values for tensor in search(value)]


def nowhere(like: Tensor) -> Tensor:
    """Give the places of a tensor that comes of no pixel."""
    return torch.full((), LOST, dtype=torch.complex64, device=like.device).expand(like.shape)


def laid(field: Tensor, shape: torch.Size) -> Tensor | None:
    """Broadcast places to a shape; where one side differs (a gated unit, a recurrent layer) their mean along it."""
    if len(field.shape) > len(shape):
        return None
    pairs = list(zip(field.shape[::-1], shape[::-1], strict=False))
    if all(own in (1, side) for own, side in pairs):
        return field.expand(shape)
    others = [dim for dim, (own, side) in enumerate(pairs, start=1) if own != side]
    if len(others) > 1 or len(field.shape) != len(shape):
        return None
    return mean(field, [-others[0]]).expand(shape)


def richer(first: Tensor, second: Tensor) -> Tensor:
    """Choose the places of which there are more: a gate of one number for all the image says nothing of where."""
    if first is second:
        return first
    one, other = thin(first), thin(second)
    if one.shape == other.shape and torch.equal(torch.nan_to_num(one), torch.nan_to_num(other)):
        return first
    return second if _count(other) > _count(one) else first


def _count(field: Tensor) -> int:
    found = torch.view_as_real(field[~field.isnan()]).mul(64).round().long()
    return len(torch.unique(found[:, 0] * (1 << 31) + found[:, 1]))


def mean(field: Tensor, dims: Sequence[int]) -> Tensor:
    """Average places over dims (counted from the end), each of which stays with one entry.

    What lies nowhere is left out, and one mean for everything is nowhere.
    """
    small = thin(field)
    lost = small.isnan()
    count = (~lost).sum(list(dims), keepdim=True)
    middle = torch.where(lost, torch.zeros_like(small), small).sum(list(dims), keepdim=True) / count
    if small.shape != middle.shape or small.numel() == 1:
        middle = kept(middle)
    return middle.expand([1 if dim - field.ndim in dims else side for dim, side in enumerate(field.shape)])


def kept(field: Tensor) -> Tensor:
    """Lose places that are all one: what has seen the whole image lies nowhere in it."""
    found = torch.view_as_real(field[~field.isnan()])
    if found.numel() and float((found.amax(0) - found.amin(0)).max()) > 1e-2:
        return field
    return torch.full_like(field, LOST)


def varies(field: Tensor, dim: int) -> bool:
    """Tell whether places differ along a dimension."""
    small = torch.view_as_real(thin(field)).movedim(dim - 1, 0)
    lost = small.isnan()
    spread = small.masked_fill(lost, -torch.inf).amax(0) - small.masked_fill(lost, torch.inf).amin(0)
    return bool((spread > 1e-2).any())


def centres(bound: Mapping[str, Any], dim: int, dims: int, own: int, side: int) -> Tensor:
    """Give the centre [side] of each window along a dimension of `own` entries, counted in these.

    bound: the arguments of a convolution or pooling, by name. A transposed convolution spreads its entries out.
    """
    kernel = bound["weight"].shape[2 + dim] if "weight" in bound else _at(bound["kernel_size"], dim, 1)
    stride = _at(bound.get("stride"), dim, kernel)
    pad, dilation = _at(bound.get("padding"), dim, 0), _at(bound.get("dilation"), dim, 1)
    middle = dilation * (kernel - 1) / 2 - pad
    at = torch.arange(side, dtype=torch.float32)
    return (at - middle) / stride if bound.get("transposed") else at * stride + middle


def _at(value: Any, dim: int, default: int) -> int:
    if isinstance(value, int):
        return value
    return int(value[min(dim, len(value) - 1)]) if value else default


def spread_evenly(own: int, side: int) -> Tensor:
    """Give the centres of `side` equal parts of `own` entries."""
    return (torch.arange(side, dtype=torch.float32) + 0.5) * (own / side) - 0.5


def between(field: Tensor, dim: int, at: Tensor) -> Tensor:
    """Read a field [B,1,…] between its entries along a dimension, and beyond them by its slope.

    Entries that are nowhere (padding) first get their places from the straight line through the others.
    """
    own = field.shape[dim]
    moved = _completed(field.movedim(dim, -1))
    if own == 1:
        return moved.expand(*moved.shape[:-1], len(at)).movedim(-1, dim)
    at = at.to(field.device)
    low = at.floor().clamp(0, own - 2).long()
    below, above = moved[..., low], moved[..., low + 1]
    return (below + (above - below) * (at - low)).movedim(-1, dim)


def _completed(field: Tensor) -> Tensor:
    lost = field.isnan()
    if not lost.any() or lost.all():
        return field
    weight = (~lost).float()
    count = weight.sum(-1, keepdim=True)
    at = torch.arange(field.shape[-1], dtype=torch.float32, device=field.device)
    known = torch.where(lost, torch.zeros_like(field), field)
    mean = (weight * at).sum(-1, keepdim=True) / count
    level = known.sum(-1, keepdim=True) / count
    away = weight * (at - mean)
    slope = (away * known).sum(-1, keepdim=True) / (away * away).sum(-1, keepdim=True)
    return torch.where(lost, level + slope * (at - mean), field)
