"""Spearman's rank correlation: do two maps put the same places first?"""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import GradlightError
from ..explainers.combination import are_flat, upsample

__all__ = ["average_ranks", "map_correlation", "spearman"]


def average_ranks(values: Tensor) -> Tensor:
    """Rank values [...,N] within each row, 0 for the least; equal values share the mean of their ranks (float64)."""
    ordered, order = values.sort(-1)
    places = torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = torch.ones_like(starts)
    ends[..., :-1] = starts[..., 1:]
    first = torch.where(starts, places, 0).cummax(-1).values
    last = torch.where(ends, places, values.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    shared = (first + last).double() / 2
    return torch.empty_like(shared).scatter_(-1, order, shared)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Give Spearman's ρ of each pair of rows of [...,N]: the correlation of their average ranks (float64, [...]).

    NaN where a row is constant or holds a NaN: such a pair has no ρ. Equals scipy.stats.spearmanr. Raises
    GradlightError for shapes that differ or rows without values.
    """
    if a.shape != b.shape or a.ndim == 0 or a.shape[-1] == 0:
        raise GradlightError(
            f"Ranks are compared of rows of one shape [...,N], not {list(a.shape)} and {list(b.shape)}."
        )
    x, y = (_centred(average_ranks(each)) for each in (a, b))
    rho = (x * y).sum(-1) / ((x * x).sum(-1).sqrt() * (y * y).sum(-1).sqrt())
    known = ~(a.isnan() | b.isnan()).any(-1)
    return torch.where(known, rho.clamp(-1, 1), torch.nan)


def map_correlation(a: Tensor, b: Tensor, size: tuple[int, int]) -> Tensor:
    """Give Spearman's ρ [B,K] of maps [B,K,h,w], both brought to a size (height, width) first; bilinear, in float64.

    NaN where a map is constant, which is judged before it is brought to the size: rounding makes ranks of nothing.
    """
    rho = spearman(*(upsample(maps.double(), size).flatten(2) for maps in (a, b)))
    return torch.where(are_flat(a) | are_flat(b), torch.nan, rho)


def _centred(ranks: Tensor) -> Tensor:
    # The mean of all ranks is known exactly, so a constant row becomes exact zeros, and 0/0 its NaN.
    return ranks - (ranks.shape[-1] - 1) / 2
