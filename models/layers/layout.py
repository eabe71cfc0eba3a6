"""How a tensor's memory is a map [B,C,h,w]: by the places of its numbers, or by its shape where these are not known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import GradlightError

__all__ = ["AS_IS", "Layout", "by_places", "by_shape"]


@dataclass(frozen=True)
class Layout:
    """Bring a network's own tensor [B,…], with its channels at a dimension, to [B,C,h,w].

    size: the grid of tokens in a row, None where the tensor has two spatial dimensions of its own. start: how many
    tokens come before those of the image, of `count` in all. order: which token lies at each location, None where
    they lie row by row. Raises GradlightError for a tensor of another number of tokens.
    """

    channel: int = 1
    size: tuple[int, int] | None = None
    start: int = 0
    count: int = 0
    order: Tensor | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Give a view of the tensor, or a copy where its order is not that of rows."""
        moved = tensor if self.channel == 1 else tensor.movedim(self.channel, 1)
        if self.size is None:
            return moved
        flat, (rows, columns) = moved.flatten(2), self.size
        if flat.shape[2] != self.count:
            raise GradlightError(
                f"A grid of {rows} × {columns} was expected among {self.count} tokens, but there are {flat.shape[2]}."
            )
        end = self.start + rows * columns
        tokens = flat[:, :, self.start : end] if self.order is None else flat[:, :, self.order.to(flat.device)]
        laid: Tensor = tokens.unflatten(2, self.size)
        return laid


AS_IS = Layout()


def by_places(field: Tensor) -> Layout | None:
    """Find the layout of a tensor of one image from the places of its numbers (`positions`), None if it has no grid.

    A grid has more than one location, and every pair of a row and a column of it once. Numbers that lie nowhere
    (tokens of no place) are left out.
    """
    if field.shape[0] != 1 or field.ndim < 3:
        return None
    for channel in dict.fromkeys((1, field.ndim - 1, *range(1, field.ndim))):
        found = _with_channels_at(channel, field)
        if found is not None:
            return found
    return None


def _with_channels_at(channel: int, field: Tensor) -> Layout | None:
    moved = field[0].movedim(channel - 1, 0)
    places = moved[0] if moved.stride(0) == 0 else _middle(moved)
    flat = places.flatten()
    at = (~flat.isnan()).nonzero().flatten()
    row, rows, tall = _ranked(flat[at].real)
    column, columns, wide = _ranked(flat[at].imag)
    if not 1 < len(at) == rows * columns:
        return None
    cell = row * columns + column
    if len(torch.unique(cell)) < len(at) or _astray(moved, places, tall, wide):
        return None
    order = at[cell.argsort()]
    start = int(order[0])
    in_rows = torch.equal(order, torch.arange(start, start + len(order), device=order.device))
    if in_rows and field.ndim == 4 and places.shape == (rows, columns):
        return Layout(channel)
    return Layout(channel, (rows, columns), start if in_rows else 0, flat.numel(), None if in_rows else order)


def _middle(moved: Tensor) -> Tensor:
    lost = moved.isnan()
    total = torch.where(lost, torch.zeros_like(moved), moved).sum(0)
    return total / (~lost).sum(0)


def _ranked(values: Tensor) -> tuple[Tensor, int, float]:
    """Number values from the least to the greatest, those closer than a hundredth of a pixel alike; their least gap."""
    if not len(values):
        return values.long(), 0, 0.0
    ordered, back = values.sort()
    gaps = ordered.diff()
    steps = gaps > 1e-2
    ranks = torch.cat([steps.new_zeros(1, dtype=torch.long), steps.long().cumsum(0)])
    least = float(gaps[steps].min()) if steps.any() else float("inf")
    return torch.empty_like(ranks).scatter(0, back, ranks), int(ranks[-1]) + 1, least


def _astray(moved: Tensor, places: Tensor, tall: float, wide: float) -> bool:
    """Tell whether a channel lies further from its location than half the way to the next: then it mixes locations."""
    if moved.stride(0) == 0:
        return False
    away = torch.view_as_real(moved - places).abs().nan_to_num(0.0).flatten(0, -2).amax(0)
    return bool(float(away[0]) > tall / 2 or float(away[1]) > wide / 2)


_LAST = (nn.Linear.forward, nn.LayerNorm.forward)


def by_shape(module: nn.Module, tensor: Tensor, height: int, width: int) -> Layout | None:
    """Guess the layout of a module's output from its shape and the pixels': None if that has no grid like theirs."""
    aspect = height / width
    if tensor.ndim == 4:
        last = isinstance(module, (nn.Linear, nn.LayerNorm)) and type(module).forward in _LAST
        if not last and _like(tensor.shape[2:], aspect):
            return AS_IS
        if last or _like(tensor.shape[1:3], aspect):
            return Layout(3) if tensor.shape[1] * tensor.shape[2] > 1 else None
        return AS_IS if tensor.shape[2] * tensor.shape[3] > 1 else None
    if tensor.ndim == 3:
        for start in range(9):
            if grid := _grid(tensor.shape[1] - start, aspect):
                return Layout(2, grid, start, tensor.shape[1])
    return None


def _like(grid: tuple[int, ...] | torch.Size, aspect: float) -> bool:
    """Tell whether a grid has more than one location and the pixels' proportions, up to rounding."""
    rows, columns = grid
    return rows * columns > 1 and abs(rows - columns * aspect) <= max(1.0, aspect)


def _grid(count: int, aspect: float) -> tuple[int, int] | None:
    """Lay `count` tokens out as rows × columns of the pixels' proportions, or None."""
    if count < 4:
        return None
    rows = round((count * aspect) ** 0.5)
    if rows < 1 or count % rows or abs(rows - (count // rows) * aspect) > 1e-6 * rows:
        return None
    return rows, count // rows
