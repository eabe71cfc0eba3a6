"""Extremal perturbations: the smooth mask of a given area that keeps the score highest, found by gradient ascent."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.base import Layer
from ...models.objective import Objective, Target
from .captum_adapter import scoring

__all__ = ["SmoothMask", "area_penalty", "blur_pyramid", "blurred", "extremal_perturbation", "perturbed"]


def extremal_perturbation(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    areas: Sequence[float] = (0.025, 0.05, 0.1, 0.2),
    steps: int = 800,
    cells: int = 32,
    sigma: float = 3.0,
    blur: float = 20 / 224,
    levels: int = 8,
    rate: float = 0.01,
    momentum: float = 0.9,
    weight: float = 300.0,
    growth: float = 1.0035,
    smooth: float = 0.09,
) -> Tensor:
    """Give the sum of the masks that keep the score highest while the rest is blurred, one for each area [1,H,W].

    A mask is the smooth maximum of a grid (`SmoothMask`), and is held to its area by `area_penalty`. areas: shares of
    the photo. steps: of gradient ascent, each one forward and one backward pass of a copy per area, 800 × 4 in all.
    cells, sigma: of the grid along the shorter side, and the mask's smoothness in cells (7 and 21 pixels of 224 in the
    paper). blur, levels: the strongest blur, as a share of the shorter side, and how many there are on the way to it.
    rate, momentum: of the ascent. weight, growth: of the penalty, and its factor from step to step. smooth: Gaussian
    over the summed masks, as a share of the shorter side (its pointing game's 9 %). Nothing is random. (Fong, Patrick
    and Vedaldi 2019, "Understanding deep networks via extremal perturbations and smooth masks".)
    """
    score = scoring(objective, target)
    shorter = min(pixels.shape[2:])
    with torch.no_grad():
        pyramid = blur_pyramid(pixels, blur * shorter, levels)
    shape = SmoothMask((pixels.shape[2], pixels.shape[3]), cells, sigma)
    grids = torch.ones(len(areas), 1, *shape.grid, dtype=pixels.dtype, device=pixels.device)
    velocity = torch.zeros_like(grids)
    for _ in range(steps):
        grids.requires_grad_()
        kept = shape(grids)
        gain = score(perturbed(pyramid, shape.enlarged(kept))) - weight * area_penalty(kept, areas)
        (gradient,) = torch.autograd.grad(gain.sum(), grids)
        with torch.no_grad():
            velocity = momentum * velocity + (1 - momentum) * gradient
            grids = (grids + rate * velocity).clamp(0, 1)
        weight *= growth
    with torch.no_grad():
        total = shape.enlarged(shape(grids)).sum(0, keepdim=True)
        return blurred(total, smooth * shorter)[:, 0]


class SmoothMask:
    """Masks that are smooth by construction: the smooth maximum of a grid, each of its values under a bump.

    size: height and width of the photo. The bump is flat to half of sigma (in cells) and then falls off as a Gaussian.
    """

    def __init__(self, size: tuple[int, int], cells: int, sigma: float, sharpness: float = 20.0) -> None:
        self.size, self.sharpness = size, sharpness
        side = min(size) / cells
        self.grid = (max(1, round(size[0] / side)), max(1, round(size[1] / side)))
        self.reach = max(1, math.ceil(1.5 * sigma))
        steps = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64)
        distance = torch.hypot(steps.view(-1, 1), steps)
        self.bump = torch.exp(-0.5 * (2 * distance / sigma - 1).clamp(min=0).square())

    def __call__(self, grids: Tensor) -> Tensor:
        """Take the smooth maximum Σ v·exp(T v) / Σ exp(T v) of v = bump × value around each cell: [A,1,h,w]."""
        around = F.pad(grids, [self.reach] * 4, mode="replicate")
        patches = F.unfold(around, self.bump.shape[0]).unflatten(2, self.grid)
        values = patches * self.bump.to(grids).view(1, -1, 1, 1)
        smooth: Tensor = (values * (self.sharpness * values).softmax(1)).sum(1, keepdim=True)
        return smooth

    def enlarged(self, masks: Tensor) -> Tensor:
        """Bring masks [A,1,h,w] to the photo's size."""
        return F.interpolate(masks, self.size, mode="bilinear", align_corners=False)


def area_penalty(masks: Tensor, areas: Sequence[float]) -> Tensor:
    """Tell how far masks [A,1,h,w] are from showing exactly their areas [A].

    It is the mean squared difference between a mask's values in order and those of a mask that is 1 on its share of
    the places and 0 elsewhere: zero only for a mask of this area whose values are all 0 or 1.
    """
    ordered = masks.flatten(1).sort(1).values
    count = ordered.shape[1]
    shown = torch.tensor(areas, dtype=masks.dtype, device=masks.device).view(-1, 1)
    wanted = (torch.arange(count, device=masks.device) >= (1 - shown) * count).to(masks)
    return (ordered - wanted).square().mean(1)


def blur_pyramid(pixels: Tensor, strongest: float, levels: int) -> Tensor:
    """Blur pixels [1,3,H,W] by 0 … strongest pixels: [levels,3,H,W]."""
    return torch.cat([blurred(pixels, strongest * level / (levels - 1)) for level in range(levels)])


def perturbed(pyramid: Tensor, masks: Tensor) -> Tensor:
    """Show each pixel as sharply as masks [A,1,H,W] say, 1 as it is and 0 most blurred: [A,3,H,W]."""
    level = torch.arange(len(pyramid)).to(pyramid).view(1, -1, 1, 1)
    shares = (1 - ((1 - masks) * (len(pyramid) - 1) - level).abs()).clamp(min=0)
    return torch.einsum("alhw,lchw->achw", shares, pyramid)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Convolve [B,C,H,W] with a Gaussian of a standard deviation in pixels; the border is repeated outwards."""
    if sigma <= 0:
        return pixels
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma).square())
    kernel = (kernel / kernel.sum()).to(pixels).view(1, 1, -1, 1)
    flat = F.pad(pixels.flatten(0, 1).unsqueeze(1), [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, kernel), kernel.mT).view_as(pixels)
