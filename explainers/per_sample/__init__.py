"""Installed as `gradlight.explainers.per_sample`: a batch in which every image has its own version of the weights."""

from __future__ import annotations

from .gradients import per_sample_meta_step
from .weights import NotCoveredError

__all__ = ["NotCoveredError", "per_sample_meta_step"]
