"""RISE: which pixels a high score needs, from the scores of many randomly masked copies of the image."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from ...models.base import Layer
from ...models.objective import Objective, Target
from .baseline import score_function, score_without_graph

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
