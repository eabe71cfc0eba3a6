"""Phase 2, aggregate: from a contribution to one number per location, [B,h,w] (paper, section 3.1.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .contributions import Contribution, Dense

__all__ = ["AGGREGATES", "filter_norm", "largest", "largest_magnitude", "norm", "positive_total", "total"]


def total(contribution: Contribution) -> Tensor:
    """Sum the entries: voting, as in linear approximation.

    Example:
        >>> total(Dense(torch.tensor([[[[1.0]], [[-3.0]]]])))
        tensor([[[-2.]]])
    """
    return _over_groups(torch.sum, contribution.total)


def positive_total(contribution: Contribution) -> Tensor:
    """Sum the entries, then take the positive part: Grad-CAM's last step."""
    return total(contribution).clamp(min=0)


def largest(contribution: Contribution) -> Tensor:
    """Take the largest entry with its sign."""
    return _over_groups(torch.amax, contribution.highest)


def largest_magnitude(contribution: Contribution) -> Tensor:
    """Take the largest absolute value: max_k |g_k| for the gradient (table 2, row 1)."""
    return torch.maximum(largest(contribution), -_over_groups(torch.amin, contribution.lowest))


def norm(contribution: Contribution) -> Tensor:
    """Take the Frobenius norm of the entries: NormGrad.

    Example:
        >>> norm(Dense(torch.tensor([[[[3.0]], [[-4.0]]]])))
        tensor([[[5.]]])
    """
    return _over_groups(_root_sum, contribution.norm)


def filter_norm(contribution: Contribution) -> Tensor:
    """Take the Frobenius norm of the positive entries: selective NormGrad.

    Example:
        >>> filter_norm(Dense(torch.tensor([[[[3.0]], [[-4.0]]]])))
        tensor([[[3.]]])
    """
    return _over_groups(_root_sum, contribution.positive_norm)


def _over_groups(reduce: Callable[..., Tensor], statistic: Tensor) -> Tensor:
    """Reduce a statistic [B,G,h,w] of the groups to [B,h,w]; mostly there is only one group."""
    return statistic[:, 0] if statistic.shape[1] == 1 else reduce(statistic, 1)


def _root_sum(norms: Tensor, groups: int) -> Tensor:
    """Take the norm of norms, which may be too small or too large to be squared, along the dimension of the groups."""
    return Dense(norms).norm.squeeze(groups)


AGGREGATES: dict[str, Callable[[Contribution], Tensor]] = {
    "sum": total,
    "max": largest,
    "maxabs": largest_magnitude,
    "norm": norm,
    "filter_norm": filter_norm,
}
"""Name in "EXTRACT+AGGREGATE" → function."""
