"""Phase 2: contribution → one number per location (paper, section 3.1.3). Each function returns [B,h,w]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .contributions import Contribution, Dense

__all__ = ["AGGREGATES", "filter_norm", "largest", "largest_magnitude", "norm", "positive_total", "total"]


def total(contribution: Contribution) -> Tensor:
    """Sum the entries: voting, as in linear approximation."""
    return contribution.total.sum(1)


def positive_total(contribution: Contribution) -> Tensor:
    """Sum the entries, then keep what is positive: Grad-CAM's last step."""
    return total(contribution).clamp(min=0)


def largest(contribution: Contribution) -> Tensor:
    """Take the largest entry with its sign."""
    return contribution.highest.amax(1)


def largest_magnitude(contribution: Contribution) -> Tensor:
    """Take the largest absolute value: max_k |g_k| for the gradient (table 2, row 1)."""
    return torch.maximum(contribution.highest.amax(1), -contribution.lowest.amin(1))


def _over_groups(norms: Tensor) -> Tensor:
    """Join the norms of the groups, which may be too small or too large for their squares."""
    return norms.squeeze(1) if norms.shape[1] == 1 else Dense(norms).norm.squeeze(1)


def norm(contribution: Contribution) -> Tensor:
    """Take the Frobenius norm of the entries: NormGrad."""
    return _over_groups(contribution.norm)


def filter_norm(contribution: Contribution) -> Tensor:
    """Drop the negative entries, then take the Frobenius norm: selective NormGrad."""
    return _over_groups(contribution.positive_norm)


AGGREGATES: dict[str, Callable[[Contribution], Tensor]] = {
    "sum": total,
    "max": largest,
    "maxabs": largest_magnitude,
    "norm": norm,
    "filter_norm": filter_norm,
}
