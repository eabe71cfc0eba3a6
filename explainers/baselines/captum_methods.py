"""The baselines that run in Captum: SmoothGrad, integrated gradients, occlusion, LIME."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .baseline import default_device, import_captum, score_function, seeded

__all__ = ["integrated_gradients", "lime", "occlusion", "smoothgrad"]

# --- Averaged gradients


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
    """Compute max_k |mean gradient_k| over noisy copies of the pixels.

    The noise is the same every time. (Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise": 50 samples,
    noise of 10 to 20 %; Captum's NoiseTunnel over Saliency.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        samples: Number of copies, each one forward and one backward pass.
        noise: Standard deviation as a share of the pixels' range.
        seed: Of the noise.
        batch: Copies per pass.

    Returns:
        [1,H,W], unsigned, as `gradient`.

    Raises:
        GradlightError: If Captum is not installed.
    """
    attr = import_captum("smoothgrad")
    method = attr.NoiseTunnel(attr.Saliency(score_function(objective, target)))
    deviation = noise * float(pixels.max() - pixels.min())
    with seeded(seed, pixels.device), default_device(pixels.device):
        attribution: Tensor = method.attribute(
            pixels.detach().clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=min(batch, samples),
            stdevs=deviation,
            abs=False,
        )
    return attribution.detach().abs().amax(1)


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
    """Compute (x − x₀) times the mean gradient between x₀ and x, summed over channels.

    The map sums to score(x) − score(x₀), up to the error of the quadrature. (Sundararajan et al. 2017, "Axiomatic
    attribution for deep networks"; Captum's IntegratedGradients and its defaults.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        steps: Number of points of the quadrature, each one forward and one backward pass.
        reference: Value of every pixel of x₀; 0 is the mean colour of most preprocessings.
        rule: Captum's name of the quadrature.
        batch: Points per pass.

    Returns:
        [1,H,W], signed.

    Raises:
        GradlightError: If Captum is not installed.
    """
    method = import_captum("integrated_gradients").IntegratedGradients(score_function(objective, target))
    with default_device(pixels.device):
        attribution: Tensor = method.attribute(
            pixels.detach().clone().requires_grad_(),
            baselines=reference,
            n_steps=steps,
            method=rule,
            internal_batch_size=min(batch, steps),
        )
    return attribution.detach().sum(1)


# --- Perturbations


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
    """Compute score(x) − score(x with a square hidden), averaged over the squares that hide a pixel.

    One forward pass per position of the square, about ((1 − window) / stride + 1)², 289 for a square image. (Zeiler and
    Fergus 2014, "Visualizing and understanding convolutional networks", section 4.2; Captum's Occlusion.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        window: Side of the square as a share of the image's shorter side, one pixel at least.
        stride: Step of the square, likewise.
        fill: Value of hidden pixels; 0 is the mean colour of most preprocessings.
        batch: Positions per forward pass.

    Returns:
        [1,H,W], signed.

    Raises:
        GradlightError: If Captum is not installed.
    """
    shorter = min(pixels.shape[2:])
    side, step = (max(1, round(share * shorter)) for share in (window, stride))
    method = import_captum("occlusion").Occlusion(score_function(objective, target))
    channels = pixels.shape[1]
    with default_device(pixels.device), torch.no_grad():
        attribution: Tensor = method.attribute(
            pixels.detach().clone(),
            sliding_window_shapes=(channels, side, side),
            strides=(channels, min(step, side), min(step, side)),
            baselines=fill,
            perturbations_per_eval=batch,
        )
    return attribution[:, 0].to(pixels)  # the channels are hidden together, so each has the same map


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
    """Compute the weight of each cell of the image in a linear model of the score.

    The cells are a regular grid. The copies are the same every time. (Ribeiro et al. 2016, "Why should I trust you?";
    kernel, penalty and samples of its authors' image explainer, which has superpixels for the grid; Captum's Lime.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        samples: Number of copies with each cell shown or not at random, one forward pass each.
        cells: Cells along each side.
        width: Of the kernel exp(−d²/width²) that weighs a copy; d: the cosine distance of its shown cells from all.
        ridge: Penalty of the weights.
        fill: Value of hidden pixels.
        seed: Of the copies.
        batch: Copies per forward pass.

    Returns:
        [1,H,W], signed, constant on a cell.

    Raises:
        GradlightError: If Captum is not installed.
    """
    method = import_captum("lime").Lime(
        score_function(objective, target),
        interpretable_model=_Ridge(ridge),
        similarity_func=partial(_similarity, width=width),
    )
    cell_numbers = _grid(pixels, cells)
    with seeded(seed, pixels.device), default_device(pixels.device), torch.no_grad():
        attribution: Tensor = method.attribute(
            pixels.detach().clone(),
            baselines=fill,
            feature_mask=cell_numbers,
            n_samples=samples,
            perturbations_per_eval=batch,
        )
    return attribution[:, 0].to(pixels)


def _grid(pixels: Tensor, cells: int) -> Tensor:
    """Number the cell [1,1,H,W] that each pixel belongs to, without gaps in the numbers."""
    rows, columns = (torch.arange(side, device=pixels.device) * cells // side for side in pixels.shape[2:])
    numbers = rows.view(-1, 1) * cells + columns
    dense: Tensor = torch.unique(numbers, return_inverse=True)[1]
    return dense.view(1, 1, *pixels.shape[2:])


def _similarity(original: Any, copy: Any, shown: Tensor, width: float, **others: Any) -> float:
    """Weigh a copy by the cells it shows, [1,cells] of 0 and 1: the kernel of its cosine distance from all cells."""
    share = float(shown.double().mean())  # the squared cosine between the copy's ones and all ones
    return float(torch.tensor(-((1 - share**0.5) ** 2) / width**2, device="cpu").exp())


class _Ridge:
    """Weighted ridge regression in closed form, as the model that Captum fits."""

    def __init__(self, penalty: float) -> None:
        self.penalty = penalty
        self.weights = torch.empty(0, device="cpu")

    def fit(self, train_data: Any, **others: Any) -> dict[str, float]:
        """Solve for the weights from the loader's batches: rows [N,F], values [N], weights of the samples [N]."""
        rows, values, sample_weights = (torch.cat(column).double() for column in zip(*train_data, strict=True))
        sample_weights = sample_weights.flatten().unsqueeze(1)
        values = values.reshape(-1, 1)
        # Centred, which stands for the intercept.
        rows, values = (t - (sample_weights * t).sum(0) / sample_weights.sum() for t in (rows, values))
        gram = rows.T @ (sample_weights * rows) + self.penalty * torch.eye(rows.shape[1], device=rows.device).to(rows)
        self.weights = torch.linalg.solve(gram, rows.T @ (sample_weights * values)).T
        return {}

    def representation(self) -> Tensor:
        """Return the weights [1,F]."""
        return self.weights

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the model's part of the score without its intercept [N,1]."""
        return rows.to(self.weights) @ self.weights.T
