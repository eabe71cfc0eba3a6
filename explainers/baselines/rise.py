"""RISE: which pixels a high score needs, from the scores of many randomly masked copies of the photo."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.base import Layer
from ...models.objective import Objective, Target
from .captum_adapter import scores_of, scoring

__all__ = ["random_masks", "rise"]


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
    """Give the mean score of the copies that show a pixel, Σ f(x ⊙ M) M / Σ M over random masks [1,H,W].

    It is equation 4 of the paper, the expected score given that the pixel is shown; dividing by the masks' own sum,
    not by its expectation, takes out the noise of a score far from zero (a caption's log-probability). masks: forward
    passes; the paper takes 4000 for VGG16 and 8000 for ResNet50. cells: a mask is a random grid of cells × cells, each
    shown with probability keep, enlarged smoothly and shifted at random. What is masked is 0, the mean colour of most
    preprocessings. The masks are the same every time. (Petsiuk et al. 2018, "RISE: randomized input sampling for
    explanation of black-box models".)
    """
    score = scoring(objective, target)
    size = (pixels.shape[2], pixels.shape[3])
    weighted, shown = (torch.zeros(size, dtype=pixels.dtype, device=pixels.device) for _ in range(2))
    for some in random_masks(masks, size, cells=cells, keep=keep, seed=seed, batch=batch):
        mask = some.to(pixels)
        scores = scores_of(score, pixels * mask)
        weighted += torch.einsum("b,bhw->hw", scores.to(mask), mask[:, 0])
        shown += mask[:, 0].sum(0)
    # No mask shows this pixel: nothing is known of it.
    return torch.where(shown > 0, weighted / shown.clamp(min=torch.finfo(shown.dtype).tiny), 0).unsqueeze(0)


def random_masks(
    masks: int, size: tuple[int, int], *, cells: int = 7, keep: float = 0.5, seed: int = 0, batch: int = 16
) -> Iterator[Tensor]:
    """Make masks [b,1,H,W] in 0…1, `masks` of them in parts of at most `batch`; the parts' size changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    cell = [math.ceil(side / cells) for side in size]
    large = [(cells + 1) * side for side in cell]
    for start in range(0, masks, batch):
        made = [_mask(generator, cells, keep, cell) for _ in range(min(batch, masks - start))]
        enlarged = F.interpolate(
            torch.stack([grid for grid, _, _ in made]), large, mode="bilinear", align_corners=False
        )
        yield torch.stack(
            [
                mask[:, row : row + size[0], column : column + size[1]]
                for mask, (_, row, column) in zip(enlarged, made, strict=True)
            ]
        )


def _mask(generator: torch.Generator, cells: int, keep: float, cell: list[int]) -> tuple[Tensor, int, int]:
    """Draw one grid [1,cells,cells] and its shift."""
    grid = (torch.rand(1, cells, cells, generator=generator) < keep).float()
    row, column = (int(torch.randint(side, (), generator=generator)) for side in cell)
    return grid, row, column
