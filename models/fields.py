"""Fields of places: for each number of a tensor the row and the column of the pixels that it stands for.

A field is complex, row + i·column, and NaN where a number stands for no place (a class token, padding, an average over
the image). Fields are expanded views wherever they repeat, so that one of many channels costs no more than one channel.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["LOST", "kept", "laid", "mean", "nowhere", "of_pixels", "richer", "tensors", "thin", "varies"]

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
