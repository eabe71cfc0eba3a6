"""How much of a map lies on the object that it is asked about."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..explainers.maps import SaliencyMaps
from .pointing_rule import laid
from .samples import Mask, Sample

__all__ = ["focus", "focuses"]


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
