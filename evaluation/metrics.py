"""The rule of the pointing game: where a map points, whether that hits, and how hits become an accuracy.

To the letter of TorchRay's benchmark (Fong, Patrick and Vedaldi, 2019), after Zhang et al. (2016).

Averages of figures that may be missing.

Spearman's rank correlation: do two maps put the same places first?

How much of a map lies on the object that it is asked about.

The layers of a network as one player: every published way to join their maps (paper, section 4.2).
"""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GradlightError, GradlightWarning
from ..explainers.combination import are_flat, combination_name, upsample
from ..explainers.maps import SaliencyMaps
from ..models.view import View
from .samples import Mask, Sample

__all__ = [
    "COMBINATIONS",
    "COMBINED",
    "TOLERANCE",
    "Score",
    "Share",
    "average_ranks",
    "distance",
    "focus",
    "focuses",
    "hits",
    "laid",
    "largest",
    "map_correlation",
    "mean",
    "smoothed",
    "spearman",
    "with_combinations",
]

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


Share = float | None
"""A figure, or None where there is none."""


def mean(values: Iterable[Share]) -> Share:
    """Give the mean of the figures there are, or None."""
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


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


def focus(values: Tensor, mask: Mask) -> float:
    """Give the share of a map's positive sum that lies on a mask [H,W], over the mask's share of the photo.

    1: as much as by chance. values [H,W]; −∞ where the network does not look. NaN for a map that is nowhere positive
    and for an empty mask.
    """
    on = torch.from_numpy(mask).to(values.device)
    positive = values.clamp(min=0).double()
    total, area = float(positive.sum()), float(on.double().mean())
    return float(positive[on].sum()) / total / area if total > 0 and area > 0 else math.nan


def focuses(maps: SaliencyMaps, method: str, layer: str, samples: Sequence[Sample]) -> list[float]:
    """Give the focus of each sample's map on what its one target names; NaN where the sample does not show that."""
    found = []
    for number, sample in enumerate(samples):
        label = maps.targets[number][0].label
        masks = [truth.mask for truth in sample.truths if truth.label == label]
        values = laid(maps.rows(method, layer, image=number), maps.images[number].view)[0]
        found.append(focus(values, masks[0]) if masks else math.nan)
    return found


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
