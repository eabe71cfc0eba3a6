"""Phase 2: contribution → one number per location (paper, section 3.1.3). Each function returns [B,h,w]."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .contributions import Contribution, Dense

__all__ = ["AGGREGATES", "filter_norm", "largest", "largest_magnitude", "norm", "positive_total", "total"]


def total(contribution: Contribution) -> Tensor:
    """Sum the entries: voting, as in linear approximation."""
    return _joined(torch.sum, contribution.total)


def positive_total(contribution: Contribution) -> Tensor:
    """Sum the entries, then keep what is positive: Grad-CAM's last step."""
    return total(contribution).clamp(min=0)


def largest(contribution: Contribution) -> Tensor:
    """Take the largest entry with its sign."""
    return _joined(torch.amax, contribution.highest)


def largest_magnitude(contribution: Contribution) -> Tensor:
    """Take the largest absolute value: max_k |g_k| for the gradient (table 2, row 1)."""
    return torch.maximum(largest(contribution), -_joined(torch.amin, contribution.lowest))


def norm(contribution: Contribution) -> Tensor:
    """Take the Frobenius norm of the entries: NormGrad."""
    return _joined(_root_sum, contribution.norm)


def filter_norm(contribution: Contribution) -> Tensor:
    """Drop the negative entries, then take the Frobenius norm: selective NormGrad."""
    return _joined(_root_sum, contribution.positive_norm)


def _joined(join: Callable[..., Tensor], statistic: Tensor) -> Tensor:
    """Join a statistic [B,G,h,w] of the groups to [B,h,w]; mostly there is only one."""
    return statistic[:, 0] if statistic.shape[1] == 1 else join(statistic, 1)


def _root_sum(norms: Tensor, groups: int) -> Tensor:
    """Join norms, which may be too small or too large for their squares, along the dimension of the groups."""
    return Dense(norms).norm.squeeze(groups)


AGGREGATES: dict[str, Callable[[Contribution], Tensor]] = {
    "sum": total,
    "max": largest,
    "maxabs": largest_magnitude,
    "norm": norm,
    "filter_norm": filter_norm,
}
