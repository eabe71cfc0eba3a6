"""Averages of figures that may be missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable

__all__ = ["Share", "mean"]

Share = float | None
"""A figure, or None where there is none."""


def mean(values: Iterable[Share]) -> Share:
    """Give the mean of the figures there are, or None."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None
