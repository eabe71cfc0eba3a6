"""Where the windows of convolutions and poolings lie on the grid that they slide over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["between", "centres", "spread_evenly"]


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
