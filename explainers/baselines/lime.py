"""LIME, by Captum: a linear model of how the score depends on which parts of the photo are shown."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .scoring import captum_for, scoring, seeded

__all__ = ["lime"]


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
