"""Occlusion, by Captum: how much the score falls when a square of the photo is hidden."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .scoring import captum_for, scoring

__all__ = ["occlusion"]


def occlusion(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    window: float = 0.2,
    stride: float = 0.05,
    fill: float = 0.0,
    batch: int = 16,
) -> Tensor:
    """Give score(x) − score(x with a square hidden), averaged over the squares that hide a pixel [1,H,W]; signed.

    window, stride: side and step of the square as shares of the photo's shorter side, one pixel at least. fill: the
    value of hidden pixels; 0 is the mean colour of most preprocessings. One forward pass for each place of the square,
    about ((1 − window) / stride + 1)², 289 for a square photo. Raises GradlightError without Captum. (Zeiler and Fergus
    2014, "Visualizing and understanding convolutional networks", section 4.2; Captum's Occlusion.)
    """
    shorter = min(pixels.shape[2:])
    side, step = (max(1, round(share * shorter)) for share in (window, stride))
    method = captum_for("occlusion").Occlusion(scoring(objective, target))
    channels = pixels.shape[1]
    with torch.no_grad():
        found: Tensor = method.attribute(
            pixels.detach().clone(),
            sliding_window_shapes=(channels, side, side),
            strides=(channels, min(step, side), min(step, side)),
            baselines=fill,
            perturbations_per_eval=batch,
        )
    return found[:, 0].to(pixels)  # the channels are hidden together, so each has the same map
