"""Installed as `gradlight.explainers.per_image`: a batch in which every image has its own version of the weights."""

from __future__ import annotations

from .stepped import stepped
from .weights import NotCoveredError

__all__ = ["NotCoveredError", "stepped"]
