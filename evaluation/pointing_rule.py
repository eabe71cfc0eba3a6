"""The rule of the pointing game: where a map points, whether that hits, and how hits become an accuracy.

To the letter of TorchRay's benchmark (Fong, Patrick and Vedaldi, 2019), after Zhang et al. (2016).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..models.view import View
from .samples import Mask

__all__ = ["TOLERANCE", "Score", "distance", "hits", "laid", "largest", "smoothed"]

TOLERANCE = 15.0
"""Pixels of the original photo."""

_SMOOTH = 0.02
_REACH = 4  # standard deviations of a Gaussian that are kept on each side


def laid(maps: Tensor, view: View) -> Tensor:
    """Lay maps [K,h,w] over the photo: [K,height,width], bilinear, align_corners=False; −∞ where no pixels lie."""
    width, height = view.photo
    if view.box == (0.0, 0.0, float(width), float(height)):
        return F.interpolate(maps.unsqueeze(0), size=(height, width), mode="bilinear", align_corners=False)[0]
    return view.lay(maps).nan_to_num(nan=-math.inf)


def smoothed(maps: Tensor) -> Tensor:
    """Smooth maps [K,H,W] by a Gaussian whose deviation is 2 % of the larger side; borders are repeated outwards."""
    deviation = _SMOOTH * max(maps.shape[1:])
    reach = math.ceil(_REACH * deviation)
    steps = torch.arange(-reach, reach + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-0.5 * (steps / deviation) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(maps.unsqueeze(1), (reach, reach, reach, reach), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).squeeze(1)


def largest(maps: Tensor) -> Tensor:
    """Give (row, column) of the largest value of maps [...,H,W]: [...,2]; the first of equals, row by row."""
    places = maps.flatten(-2).argmax(-1)
    return torch.stack([places // maps.shape[-1], places % maps.shape[-1]], -1)


def distance(mask: Mask, row: float, column: float) -> float:
    """Give the distance of a place from the nearest pixel of a mask, in pixels; 0 on the mask, ∞ from an empty one."""
    rows, columns = np.nonzero(mask)
    return float(np.sqrt(((rows - float(row)) ** 2 + (columns - float(column)) ** 2).min(initial=np.inf)))


def hits(mask: Mask, row: float, column: float, tolerance: float = TOLERANCE) -> bool:
    """Tell whether a pixel of a mask [H,W] lies nearer to a place than the tolerance, which itself is too far."""
    top, left = (max(math.floor(place - tolerance), 0) for place in (row, column))
    bottom, right = (max(math.ceil(place + tolerance) + 1, 0) for place in (row, column))
    rows, columns = np.nonzero(mask[top:bottom, left:right])
    return bool((((rows + top - row) ** 2 + (columns + left - column) ** 2) < tolerance**2).any())


@dataclass
class Score:
    """How often a player hit and missed each class."""

    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, hit: bool) -> None:
        """Count one photo of a class."""
        counts = self.hits if hit else self.misses
        counts[label] = counts.get(label, 0) + 1

    @property
    def asked(self) -> int:
        """The number of pairs of photo and class."""
        return sum(self.hits.values()) + sum(self.misses.values())

    def accuracies(self, labels: Iterable[str]) -> dict[str, float]:
        """Give hits / (hits + misses) of those of some classes that were asked for."""
        counts = {label: (self.hits.get(label, 0), self.misses.get(label, 0)) for label in labels}
        return {label: hit / (hit + missed) for label, (hit, missed) in counts.items() if hit + missed}

    def mean(self, labels: Sequence[str]) -> float | None:
        """Average the accuracies of the classes that were asked for; None where none was."""
        found = self.accuracies(labels).values()
        return sum(found) / len(found) if found else None

    def torchray_mean(self, labels: Sequence[str]) -> float:
        """Average the accuracies over all classes as TorchRay does: one that was never asked for counts as 0."""
        return sum(self.accuracies(labels).values()) / len(labels)
