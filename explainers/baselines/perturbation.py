"""Extremal perturbations: the smooth mask of a given area that keeps the score highest, found by gradient ascent.

RISE: which pixels a high score needs, from the scores of many randomly masked copies of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.base import Layer
from ...models.objective import Objective, Target
from .baseline import score_function, score_without_graph

__all__ = [
    "SmoothMask",
    "area_penalty",
    "blur_pyramid",
    "blurred",
    "extremal_perturbation",
    "perturbed",
    "random_masks",
    "rise",
]


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
    """Compute the sum of the masks that keep the score highest while the rest is blurred, one for each area.

    A mask is the smooth maximum of a grid (`SmoothMask`), and is held to its area by `area_penalty`. Nothing is random.
    (Fong, Patrick and Vedaldi 2019, "Understanding deep networks via extremal perturbations and smooth masks".)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        areas: Shares of the image.
        steps: Of gradient ascent, each one forward and one backward pass of a copy per area, 800 × 4 in all.
        cells: Cells of the grid along the shorter side (a cell is 7 pixels of 224 in the paper).
        sigma: The mask's smoothness in cells (21 pixels in the paper).
        blur: The strongest blur, as a share of the shorter side.
        levels: Number of blurs from none to the strongest.
        rate: Of the ascent.
        momentum: Of the ascent.
        weight: Of the penalty at the first step.
        growth: Factor of the penalty's weight from step to step.
        smooth: Gaussian over the summed masks, as a share of the shorter side (the 9 % of its pointing game).

    Returns:
        [1,H,W].
    """
    score = score_function(objective, target)
    shorter = min(pixels.shape[2:])
    with torch.no_grad():
        pyramid = blur_pyramid(pixels, blur * shorter, levels)
    smooth_mask = SmoothMask((pixels.shape[2], pixels.shape[3]), cells, sigma)
    grids = torch.ones(len(areas), 1, *smooth_mask.grid, dtype=pixels.dtype, device=pixels.device)
    velocity = torch.zeros_like(grids)
    for _ in range(steps):
        grids.requires_grad_()
        masks = smooth_mask(grids)
        gain = score(perturbed(pyramid, smooth_mask.enlarged(masks))) - weight * area_penalty(masks, areas)
        (gradient,) = torch.autograd.grad(gain.sum(), grids)
        with torch.no_grad():
            velocity = momentum * velocity + (1 - momentum) * gradient
            grids = (grids + rate * velocity).clamp(0, 1)
        weight *= growth
    with torch.no_grad():
        total = smooth_mask.enlarged(smooth_mask(grids)).sum(0, keepdim=True)
        return blurred(total, smooth * shorter)[:, 0]


class SmoothMask:
    """Masks that are smooth by construction: the smooth maximum of a grid whose values each lie under a bump.

    The bump is flat to half of sigma and then falls off as a Gaussian.

    Args:
        size: Height and width of the image.
        cells: Cells of the grid along the shorter side.
        sigma: Width of the bump in cells.
        sharpness: T of the smooth maximum.

    Example:
        >>> import torch
        >>> smooth_mask = SmoothMask((224, 112), cells=4, sigma=1.0)
        >>> smooth_mask.grid, smooth_mask(torch.ones(2, 1, 8, 4)).shape
        ((8, 4), torch.Size([2, 1, 8, 4]))
    """

    def __init__(self, size: tuple[int, int], cells: int, sigma: float, sharpness: float = 20.0) -> None:
        self.size, self.sharpness = size, sharpness
        side = min(size) / cells
        self.grid = (max(1, round(size[0] / side)), max(1, round(size[1] / side)))
        self.reach = max(1, math.ceil(1.5 * sigma))
        offsets = torch.arange(-self.reach, self.reach + 1, dtype=torch.float64, device="cpu")
        distance = torch.hypot(offsets.view(-1, 1), offsets)
        self.bump = torch.exp(-0.5 * (2 * distance / sigma - 1).clamp(min=0).square())

    def __call__(self, grids: Tensor) -> Tensor:
        """Take the smooth maximum Σ v·exp(T v) / Σ exp(T v) of v = bump × value around each cell: [A,1,h,w]."""
        padded = F.pad(grids, [self.reach] * 4, mode="replicate")
        patches = F.unfold(padded, self.bump.shape[0]).unflatten(2, self.grid)
        values = patches * self.bump.to(grids).view(1, -1, 1, 1)
        smooth: Tensor = (values * (self.sharpness * values).softmax(1)).sum(1, keepdim=True)
        return smooth

    def enlarged(self, masks: Tensor) -> Tensor:
        """Upsample masks [A,1,h,w] to the image's size."""
        return F.interpolate(masks, self.size, mode="bilinear", align_corners=False)


def area_penalty(masks: Tensor, areas: Sequence[float]) -> Tensor:
    """Measure how far masks are from showing exactly their areas.

    It is the mean squared difference between a mask's sorted values and those of a mask that is 1 on its share of the
    locations and 0 elsewhere: zero only for a mask of this area whose values are all 0 or 1.

    Args:
        masks: [A,1,h,w].
        areas: The A shares.

    Returns:
        [A].

    Example:
        >>> import torch
        >>> area_penalty(torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]]), [0.25]).tolist()
        [0.0]
    """
    ordered = masks.flatten(1).sort(1).values
    count = ordered.shape[1]
    shares = torch.tensor(areas, dtype=masks.dtype, device=masks.device).view(-1, 1)
    ideal = (torch.arange(count, device=masks.device) >= (1 - shares) * count).to(masks)
    return (ordered - ideal).square().mean(1)


def blur_pyramid(pixels: Tensor, strongest: float, levels: int) -> Tensor:
    """Blur pixels [1,3,H,W] by 0 … strongest pixels: [levels,3,H,W]."""
    return torch.cat([blurred(pixels, strongest * level / (levels - 1)) for level in range(levels)])


def perturbed(pyramid: Tensor, masks: Tensor) -> Tensor:
    """Blur an image pixel by pixel: where masks [A,1,H,W] are 1 not at all, where they are 0 most: [A,3,H,W]."""
    level = torch.arange(len(pyramid), device="cpu").to(pyramid).view(1, -1, 1, 1)
    shares = (1 - ((1 - masks) * (len(pyramid) - 1) - level).abs()).clamp(min=0)
    return torch.einsum("alhw,lchw->achw", shares, pyramid)


def blurred(pixels: Tensor, sigma: float) -> Tensor:
    """Convolve [B,C,H,W] with a Gaussian of a standard deviation in pixels; the border is replicated outwards."""
    if sigma <= 0:
        return pixels
    reach = math.ceil(3 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64, device="cpu") / sigma).square())
    kernel = (kernel / kernel.sum()).to(pixels).view(1, 1, -1, 1)
    channels = F.pad(pixels.flatten(0, 1).unsqueeze(1), [reach] * 4, mode="replicate")
    return F.conv2d(F.conv2d(channels, kernel), kernel.mT).view_as(pixels)


def rise(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    masks: int = 4000,
    cells: int = 7,
    keep: float = 0.5,
    seed: int = 0,
    batch: int = 16,
) -> Tensor:
    """Compute the mean score of the copies that show a pixel, Σ f(x ⊙ M) M / Σ M over random masks.

    It is equation 4 of the paper, the expected score given that the pixel is shown. Dividing by the masks' own sum, not
    by its expectation, removes the noise of a score far from zero (a caption's log-probability). A masked pixel is 0,
    the mean colour of most preprocessings. The masks are the same every time. (Petsiuk et al. 2018, "RISE: randomized
    input sampling for explanation of black-box models".)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: Not used; the map is that of the pixels.
        masks: Number of masks, one forward pass each; the paper takes 4000 for VGG16 and 8000 for ResNet50.
        cells: A mask is a random grid of cells × cells, enlarged smoothly and shifted at random.
        keep: Probability that a cell is shown.
        seed: Of the masks.
        batch: Copies per forward pass.

    Returns:
        [1,H,W].
    """
    score = score_function(objective, target)
    size = (pixels.shape[2], pixels.shape[3])
    weighted, shown = (torch.zeros(size, dtype=pixels.dtype, device=pixels.device) for _ in range(2))
    for mask_batch in random_masks(masks, size, cells=cells, keep=keep, seed=seed, batch=batch):
        mask = mask_batch.to(pixels)
        scores = score_without_graph(score, pixels * mask)
        weighted += torch.einsum("b,bhw->hw", scores.to(mask), mask[:, 0])
        shown += mask[:, 0].sum(0)
    # A pixel that no mask shows has no mean score; its map is 0.
    return torch.where(shown > 0, weighted / shown.clamp(min=torch.finfo(shown.dtype).tiny), 0).unsqueeze(0)


def random_masks(
    masks: int, size: tuple[int, int], *, cells: int = 7, keep: float = 0.5, seed: int = 0, batch: int = 16
) -> Iterator[Tensor]:
    """Draw random masks with values in 0…1; the batch size does not change them.

    Args:
        masks: Number of masks.
        size: Height and width of a mask.
        cells: Cells of the random grid along each side.
        keep: Probability that a cell is shown.
        seed: Of the masks.
        batch: Largest number of masks at once.

    Yields:
        [b,1,H,W].

    Example:
        >>> [tuple(mask.shape) for mask in random_masks(5, (28, 14), batch=4)]
        [(4, 1, 28, 14), (1, 1, 28, 14)]
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    cell_size = [math.ceil(side / cells) for side in size]
    enlarged_size = [(cells + 1) * side for side in cell_size]
    for start in range(0, masks, batch):
        drawn = [_draw_grid(generator, cells, keep, cell_size) for _ in range(min(batch, masks - start))]
        grids = torch.stack([grid for grid, _, _ in drawn])
        enlarged = F.interpolate(grids, enlarged_size, mode="bilinear", align_corners=False)
        yield torch.stack(
            [
                mask[:, row : row + size[0], column : column + size[1]]
                for mask, (_, row, column) in zip(enlarged, drawn, strict=True)
            ]
        )


def _draw_grid(generator: torch.Generator, cells: int, keep: float, cell_size: list[int]) -> tuple[Tensor, int, int]:
    """Draw one grid [1,cells,cells] and its shift in pixels."""
    grid = (torch.rand(1, cells, cells, generator=generator, device="cpu") < keep).float()
    row, column = (int(torch.randint(side, (), generator=generator, device="cpu")) for side in cell_size)
    return grid, row, column
