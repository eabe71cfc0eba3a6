"""Metrics of saliency maps: rank correlation, pointing rule, focus on an object, and the standard layer combinations.

The pointing rule follows TorchRay's benchmark (Fong, Patrick and Vedaldi, 2019), after Zhang et al. (2016).
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
from ..models.layers.layout import Extent
from ..models.view import View
from .samples import Mask, Sample

__all__ = [
    "COMBINATIONS",
    "COMBINED",
    "TOLERANCE",
    "HitCounts",
    "OptionalFloat",
    "argmax_location",
    "average_ranks",
    "distance",
    "focus",
    "focus_of_samples",
    "is_hit",
    "lay_over_photo",
    "map_correlation",
    "mean",
    "smooth",
    "spearman",
    "with_combinations",
]

# ---------------------------------------------------------------------------------------------------------------------
# Means and rank correlations

OptionalFloat = float | None
"""A figure; None if it was not measured or is undefined."""


def mean(values: Iterable[OptionalFloat]) -> OptionalFloat:
    """Average the values that are not None.

    Args:
        values: Figures; None marks a missing one.

    Returns:
        The mean, or None if every value is missing.

    Example:
        >>> mean([1.0, None, 3.0])
        2.0
    """
    present = [value for value in values if value is not None]
    return statistics.fmean(present) if present else None


def average_ranks(values: Tensor) -> Tensor:
    """Rank the values of each row, 0 for the smallest; equal values share the mean of their ranks.

    Args:
        values: [...,N].

    Returns:
        Ranks [...,N], float64.

    Example:
        >>> average_ranks(torch.tensor([3.0, 1.0, 3.0])).tolist()
        [1.5, 0.0, 1.5]
    """
    ordered, order = values.sort(-1)
    positions = torch.arange(values.shape[-1], device=values.device).expand(values.shape)
    starts = torch.ones_like(ordered, dtype=torch.bool)
    starts[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    ends = torch.ones_like(starts)
    ends[..., :-1] = starts[..., 1:]
    first = torch.where(starts, positions, 0).cummax(-1).values
    last = torch.where(ends, positions, values.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    shared = (first + last).double() / 2
    return torch.empty_like(shared).scatter_(-1, order, shared)


def spearman(a: Tensor, b: Tensor) -> Tensor:
    """Compute Spearman's ρ of each pair of rows: the correlation of their average ranks, as scipy.stats.spearmanr.

    Args:
        a: [...,N].
        b: [...,N], the same shape.

    Returns:
        ρ [...], float64; NaN where a row is constant or contains a NaN.

    Raises:
        GradlightError: The shapes differ, or the rows are empty.

    Example:
        >>> round(float(spearman(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([10.0, 20.0, 15.0]))), 6)
        0.5
    """
    if a.shape != b.shape or a.ndim == 0 or a.shape[-1] == 0:
        raise GradlightError(f"Rank correlation needs rows of one shape [...,N], not {[*a.shape]} and {[*b.shape]}.")
    x, y = (_centred(average_ranks(values)) for values in (a, b))
    rho = (x * y).sum(-1) / ((x * x).sum(-1).sqrt() * (y * y).sum(-1).sqrt())
    has_ranks = ~(a.isnan() | b.isnan()).any(-1)
    return torch.where(has_ranks, rho.clamp(-1, 1), torch.nan)


def map_correlation(a: Tensor, b: Tensor, size: tuple[int, int]) -> Tensor:
    """Compute Spearman's ρ of maps after bilinear upsampling to one size, in float64.

    Args:
        a: Maps [B,K,h,w].
        b: Maps [B,K,h',w'].
        size: Height and width to upsample to.

    Returns:
        ρ [B,K]; NaN where a map is constant. Constancy is tested before the upsampling, whose rounding errors would
        otherwise be ranked.

    Example:
        >>> a = torch.arange(4.0).view(1, 1, 2, 2)
        >>> round(float(map_correlation(a, -a, (4, 4))), 6)
        -1.0
    """
    rho = spearman(*(upsample(maps.double(), size).flatten(2) for maps in (a, b)))
    return torch.where(are_flat(a) | are_flat(b), torch.nan, rho)


def _centred(ranks: Tensor) -> Tensor:
    # The mean of all ranks is known exactly, so a constant row becomes exact zeros, and its 0/0 becomes NaN.
    return ranks - (ranks.shape[-1] - 1) / 2


# ---------------------------------------------------------------------------------------------------------------------
# The pointing rule

TOLERANCE = 15.0
"""The tolerance of the pointing game, in pixels of the original photo."""

_SMOOTHING = 0.02  # standard deviation of the Gaussian, as a fraction of the larger side
_KERNEL_DEVIATIONS = 4  # standard deviations of the Gaussian that are kept on each side


def lay_over_photo(maps: Tensor, view: View, extent: Extent | None = None) -> Tensor:
    """Upsample maps to the original photo, bilinear, align_corners=False.

    Args:
        maps: [K,h,w].
        view: Where the pixels lie in the photo.
        extent: Where the grid lies in the pixels; None if it covers them all.

    Returns:
        [K,height,width] of the photo; −∞ outside the pixels that the network gets.
    """
    width, height = view.photo
    if extent is not None:
        maps = upsample(maps.unsqueeze(0), view.size, extent)[0]
    if view.box == (0.0, 0.0, float(width), float(height)):
        return F.interpolate(maps.unsqueeze(0), size=(height, width), mode="bilinear", align_corners=False)[0]
    return view.lay(maps).nan_to_num(nan=-math.inf)


def smooth(maps: Tensor) -> Tensor:
    """Smooth maps with a Gaussian whose deviation is 2 % of the larger side; borders are replicated.

    Args:
        maps: [K,H,W].

    Returns:
        [K,H,W].
    """
    deviation = _SMOOTHING * max(maps.shape[1:])
    radius = math.ceil(_KERNEL_DEVIATIONS * deviation)
    steps = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    weights = torch.exp(-0.5 * (steps / deviation) ** 2)
    weights = weights / weights.sum()
    padded = F.pad(maps.unsqueeze(1), (radius, radius, radius, radius), mode="replicate")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).squeeze(1)


def argmax_location(maps: Tensor) -> Tensor:
    """Find the location of the largest value of each map; the first of equal values, row by row.

    Args:
        maps: [...,H,W].

    Returns:
        (row, column) [...,2].

    Example:
        >>> argmax_location(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])).tolist()
        [0, 1]
    """
    flat_index = maps.flatten(-2).argmax(-1)
    return torch.stack([flat_index // maps.shape[-1], flat_index % maps.shape[-1]], -1)


def distance(mask: Mask, row: float, column: float) -> float:
    """Compute the distance of a location from the nearest pixel of a mask.

    Args:
        mask: [H,W].
        row: The location's row.
        column: The location's column.

    Returns:
        The distance in pixels; 0 on the mask, ∞ if the mask is empty.

    Example:
        >>> import numpy as np
        >>> distance(np.array([[True, False, False]]), 0, 2)
        2.0
    """
    rows, columns = np.nonzero(mask)
    return float(np.sqrt(((rows - float(row)) ** 2 + (columns - float(column)) ** 2).min(initial=np.inf)))


def is_hit(mask: Mask, row: float, column: float, tolerance: float = TOLERANCE) -> bool:
    """Tell whether a pixel of a mask is nearer to a location than the tolerance; a distance equal to it is a miss.

    Args:
        mask: [H,W].
        row: The location's row.
        column: The location's column.
        tolerance: In pixels.

    Returns:
        Whether the location hits the mask.

    Example:
        >>> import numpy as np
        >>> mask = np.array([[True, False, False]])
        >>> is_hit(mask, 0, 2, tolerance=2), is_hit(mask, 0, 2, tolerance=2.1)
        (False, True)
    """
    top, left = (max(math.floor(coordinate - tolerance), 0) for coordinate in (row, column))
    bottom, right = (max(math.ceil(coordinate + tolerance) + 1, 0) for coordinate in (row, column))
    rows, columns = np.nonzero(mask[top:bottom, left:right])
    return bool((((rows + top - row) ** 2 + (columns + left - column) ** 2) < tolerance**2).any())


@dataclass
class HitCounts:
    """Count hits and misses of each class.

    Example:
        >>> counts = HitCounts()
        >>> counts.add("dog", True)
        >>> counts.add("dog", False)
        >>> counts.mean(["dog", "cat"]), counts.torchray_mean(["dog", "cat"])
        (0.5, 0.25)
    """

    hits: dict[str, int] = field(default_factory=dict)
    misses: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, hit: bool) -> None:
        """Count one photo of a class."""
        counts = self.hits if hit else self.misses
        counts[label] = counts.get(label, 0) + 1

    @property
    def total(self) -> int:
        """The number of pairs of photo and class."""
        return sum(self.hits.values()) + sum(self.misses.values())

    def accuracies(self, labels: Iterable[str]) -> dict[str, float]:
        """Compute hits / (hits + misses) of each class that was counted."""
        counts = {label: (self.hits.get(label, 0), self.misses.get(label, 0)) for label in labels}
        return {label: hit / (hit + missed) for label, (hit, missed) in counts.items() if hit + missed}

    def mean(self, labels: Sequence[str]) -> OptionalFloat:
        """Average the accuracies of the classes that were counted; None if there are none."""
        values = self.accuracies(labels).values()
        return sum(values) / len(values) if values else None

    def torchray_mean(self, labels: Sequence[str]) -> float:
        """Average the accuracies over all classes as TorchRay does: a class that was never counted has accuracy 0."""
        return sum(self.accuracies(labels).values()) / len(labels)


# ---------------------------------------------------------------------------------------------------------------------
# Focus on an object


def focus(values: Tensor, mask: Mask) -> float:
    """Divide the share of a map's positive sum that lies on a mask by the mask's share of the photo.

    Args:
        values: A map [H,W]; −∞ outside the pixels that the network gets.
        mask: [H,W].

    Returns:
        1 for a map that ignores the mask, more for one that is focused on it; NaN if the map is nowhere positive or
        the mask is empty.

    Example:
        >>> import numpy as np
        >>> focus(torch.tensor([[3.0, 1.0]]), np.array([[True, False]]))
        1.5
    """
    inside = torch.from_numpy(mask).to(values.device)
    positive = values.clamp(min=0).double()
    total, area = float(positive.sum()), float(inside.double().mean())
    return float(positive[inside].sum()) / total / area if total > 0 and area > 0 else math.nan


def focus_of_samples(maps: SaliencyMaps, method: str, layer: str, samples: Sequence[Sample]) -> list[float]:
    """Compute the focus of each sample's map on the objects of its target.

    Args:
        maps: Maps of the samples, one target for each.
        method: The method's name.
        layer: The layer's name.
        samples: The samples, in the order of the maps.

    Returns:
        One focus for each sample; NaN where the sample does not show its target.
    """
    focuses = []
    for number, sample in enumerate(samples):
        label = maps.targets[number][0].label
        masks = [truth.mask for truth in sample.truths if truth.label == label]
        rows, extent = maps.rows(method, layer, image=number), maps.layer_info[layer].extent
        values = lay_over_photo(rows, maps.images[number].view, extent)[0]
        focuses.append(focus(values, masks[0]) if masks else math.nan)
    return focuses


# ---------------------------------------------------------------------------------------------------------------------
# Combinations of layers (paper, section 4.2)

COMBINATIONS = (("uniform", "sum"), ("uniform", "product"), ("linear", "sum"), ("linear", "product"))
"""Weights that need no measurement, and how the maps are combined."""

COMBINED = tuple(combination_name(how, weights) for weights, how in COMBINATIONS)
"""The names of the combined layers."""


def with_combinations(maps: SaliencyMaps) -> SaliencyMaps:
    """Add every combination of COMBINATIONS to maps of several layers.

    Args:
        maps: Maps of any number of layers.

    Returns:
        The maps with the layers of COMBINED added; the same maps if they have only one layer.
    """
    if len(maps.layers) < 2:
        return maps
    combined = maps
    with warnings.catch_warnings():
        # Grad-CAM has flat maps (no evidence for the target); they count as zeros.
        warnings.simplefilter("ignore", GradlightWarning)
        for weights, how in COMBINATIONS:
            combined = combined.joined(maps.combine(weights=weights, how=how))
    return combined
