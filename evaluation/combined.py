"""The layers of a network as one player: every published way to join their maps (paper, section 4.2)."""

from __future__ import annotations

import warnings

from ..errors import GradlightWarning
from ..explainers.combination import combination_name
from ..explainers.maps import SaliencyMaps

__all__ = ["COMBINATIONS", "COMBINED", "with_combinations"]

COMBINATIONS = (("uniform", "sum"), ("uniform", "product"), ("linear", "sum"), ("linear", "product"))
"""Weights that need no measuring, and how the maps are joined."""

COMBINED = tuple(combination_name(how, weights) for weights, how in COMBINATIONS)
"""The names of the layers that they make."""


def with_combinations(maps: SaliencyMaps) -> SaliencyMaps:
    """Put the combinations of the layers beside maps of several layers; of one layer there is nothing to combine."""
    if len(maps.layers) < 2:
        return maps
    joined = maps
    with warnings.catch_warnings():
        # Grad-CAM has flat maps (nothing speaks for the target), and so they play: as zeros.
        warnings.simplefilter("ignore", GradlightWarning)
        for weights, how in COMBINATIONS:
            joined = joined.joined(maps.combine(weights=weights, how=how))
    return joined
