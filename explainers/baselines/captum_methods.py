"""SmoothGrad and integrated gradients, by Captum: gradients averaged over many versions of the photo.

Occlusion, by Captum: how much the score falls when a square of the photo is hidden.

LIME, by Captum: a linear model of how the score depends on which parts of the photo are shown.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .captum_adapter import captum_for, scoring, seeded

__all__ = ["integrated_gradients", "lime", "occlusion", "smoothgrad"]


def smoothgrad(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    batch: int = 16,
) -> Tensor:
    """Give max_k |mean gradient_k| [1,H,W] over noisy copies of the pixels.

    samples: how many copies, each one forward and one backward pass. noise: standard deviation as a share of the
    pixels' range. Unsigned, as `gradient`. The noise is the same every time. Raises GradlightError without Captum.
    (Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise": 50 samples, noise of 10 to 20 %; Captum's
    NoiseTunnel over Saliency.)
    """
    attr = captum_for("smoothgrad")
    method = attr.NoiseTunnel(attr.Saliency(scoring(objective, target)))
    spread = noise * float(pixels.max() - pixels.min())
    with seeded(seed, pixels.device):
        found: Tensor = method.attribute(
            pixels.detach().clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=min(batch, samples),
            stdevs=spread,
            abs=False,
        )
    return found.detach().abs().amax(1)


def integrated_gradients(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    steps: int = 50,
    reference: float = 0.0,
    rule: str = "gausslegendre",
    batch: int = 16,
) -> Tensor:
    """Give (x − x₀) times the mean gradient on the way from x₀ to x, summed over channels [1,H,W]; signed.

    The whole map sums to score(x) − score(x₀), up to the error of `steps` points (each one forward and one backward
    pass). reference: the value of every pixel of x₀; 0 is the mean colour of most preprocessings. rule: Captum's name
    of the quadrature. Raises GradlightError without Captum. (Sundararajan et al. 2017, "Axiomatic attribution for deep
    networks"; Captum's IntegratedGradients and its defaults.)
    """
    method = captum_for("integrated_gradients").IntegratedGradients(scoring(objective, target))
    found: Tensor = method.attribute(
        pixels.detach().clone().requires_grad_(),
        baselines=reference,
        n_steps=steps,
        method=rule,
        internal_batch_size=min(batch, steps),
    )
    return found.detach().sum(1)


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


def lime(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    samples: int = 1000,
    cells: int = 8,
    width: float = 0.25,
    ridge: float = 1.0,
    fill: float = 0.0,
    seed: int = 0,
    batch: int = 16,
) -> Tensor:
    """Give the weight of each part of the photo in a linear model of the score [1,H,W]; signed, constant on a part.

    The parts are a grid of cells × cells. samples: copies with each part shown or not at random, one forward pass
    each. width: of the kernel exp(−d²/width²) that weighs a copy, d the cosine distance of what it shows from all.
    ridge: penalty of the weights. fill: the value of hidden pixels. The copies are the same every time. Raises
    GradlightError without Captum. (Ribeiro et al. 2016, "Why should I trust you?"; kernel, penalty and samples of its
    authors' image explainer, which has superpixels for the grid; Captum's Lime.)
    """
    method = captum_for("lime").Lime(
        scoring(objective, target),
        interpretable_model=_Ridge(ridge),
        similarity_func=partial(_nearness, width=width),
    )
    parts = _grid(pixels, cells)
    with seeded(seed, pixels.device), torch.no_grad():
        found: Tensor = method.attribute(
            pixels.detach().clone(),
            baselines=fill,
            feature_mask=parts,
            n_samples=samples,
            perturbations_per_eval=batch,
        )
    return found[:, 0].to(pixels)


def _grid(pixels: Tensor, cells: int) -> Tensor:
    """Number the part [1,1,H,W] that each pixel belongs to; the numbers are without gaps."""
    rows, columns = (torch.arange(side, device=pixels.device) * cells // side for side in pixels.shape[2:])
    numbers = rows.view(-1, 1) * cells + columns
    dense: Tensor = torch.unique(numbers, return_inverse=True)[1]
    return dense.view(1, 1, *pixels.shape[2:])


def _nearness(original: Any, copy: Any, shown: Tensor, width: float, **others: Any) -> float:
    """Weigh a copy by how much it shows, [1,parts] of 0 and 1: its cosine distance from all parts, in a kernel."""
    share = float(shown.double().mean())  # the squared cosine between the copy's ones and all ones
    return float(torch.tensor(-((1 - share**0.5) ** 2) / width**2).exp())


class _Ridge:
    """Weighted ridge regression in closed form, as the model that Captum fits."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self.weights = torch.empty(0)

    def fit(self, train_data: Any, **others: Any) -> dict[str, float]:
        """Solve for the weights of what the loader gives: rows [N,F], values [N], how much each counts [N]."""
        rows, values, counts = (torch.cat(part).double() for part in zip(*train_data, strict=True))
        counts = counts.flatten().unsqueeze(1)
        values = values.reshape(-1, 1)
        rows, values = (part - (counts * part).sum(0) / counts.sum() for part in (rows, values))  # the intercept
        gram = rows.T @ (counts * rows) + self.penalty * torch.eye(rows.shape[1]).to(rows)
        self.weights = torch.linalg.solve(gram, rows.T @ (counts * values)).T
        return {}

    def representation(self) -> Tensor:
        """Give the weights [1,F]."""
        return self.weights

    def __call__(self, rows: Tensor) -> Tensor:
        """Give the model's part of the score without its intercept [N,1]."""
        return rows.to(self.weights) @ self.weights.T
