"""How a tensor holds a map [B,C,h,w]: found from the coordinates of its numbers, or else guessed from its shape."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...errors import GradlightError

__all__ = [
    "AS_IS",
    "Axes",
    "Extent",
    "Layout",
    "grid_extent",
    "layout_from_coordinates",
    "layout_from_shape",
    "read_axes",
    "scaled_extent",
]

Axes = tuple[Tensor, Tensor]
"""The coordinate of each row and of each column of a grid, in pixels."""

Extent = tuple[float, float, float, float]
"""(top, left, bottom, right) of a grid in the pixels, where 0, 0 is the outer corner of the first pixel."""

# Two coordinates are different from a hundredth of a pixel on.
_TOLERANCE = 1e-2
_MAX_OTHER_TOKENS = 8


@dataclass(frozen=True)
class Layout:
    """Bring a network's own tensor to [B,C,h,w].

    Args:
        channel: The dimension of the channels.
        size: The grid (h, w) of tokens that lie in one dimension; None where the tensor has two spatial dimensions.
        start: How many tokens come before those of the image.
        count: How many tokens there are in all.
        order: Which token lies at each location; None where they lie row by row.

    Example:
        >>> import torch
        >>> from gradlight.models.layers.layout import Layout
        >>> behind_class_token = Layout(channel=2, size=(14, 14), start=1, count=197)
        >>> behind_class_token(torch.zeros(8, 197, 768)).shape
        torch.Size([8, 768, 14, 14])
    """

    channel: int = 1
    size: tuple[int, int] | None = None
    start: int = 0
    count: int = 0
    order: Tensor | None = None

    def __call__(self, tensor: Tensor) -> Tensor:
        """Bring a tensor to [B,C,h,w].

        Args:
            tensor: The output of the layer, or its gradient.

        Returns:
            A view of the tensor, or a copy where its locations do not lie row by row.

        Raises:
            GradlightError: If the tensor has another number of tokens.
        """
        moved = tensor if self.channel == 1 else tensor.movedim(self.channel, 1)
        if self.size is None:
            return moved
        flat, (rows, columns) = moved.flatten(2), self.size
        if flat.shape[2] != self.count:
            raise GradlightError(
                f"A grid of {rows} × {columns} was expected among {self.count} tokens, but there are {flat.shape[2]}."
            )
        stop = self.start + rows * columns
        tokens = flat[:, :, self.start : stop] if self.order is None else flat[:, :, self.order.to(flat.device)]
        grid: Tensor = tokens.unflatten(2, self.size)
        return grid


AS_IS = Layout()


# --- from coordinates ---


def layout_from_coordinates(field: Tensor) -> Layout | None:
    """Find the layout of a tensor from the coordinates of its numbers.

    A grid has more than one location, and every pair of one of its rows and one of its columns once. Tokens without
    coordinates are left out.

    Args:
        field: The coordinate field of a tensor of one image.

    Returns:
        The layout; None if the coordinates form no grid.
    """
    if field.shape[0] != 1 or field.ndim < 3:
        return None
    for channel in dict.fromkeys((1, field.ndim - 1, *range(1, field.ndim))):
        layout = _layout_with_channels(channel, field)
        if layout is not None:
            return layout
    return None


def _layout_with_channels(channel: int, field: Tensor) -> Layout | None:
    """Find the layout if the channels are this dimension."""
    moved = field[0].movedim(channel - 1, 0)
    coordinates = moved[0] if moved.stride(0) == 0 else _channel_mean(moved)
    flat = coordinates.flatten()
    tokens = (~flat.isnan()).nonzero().flatten()
    row, rows, row_gap = _ranked(flat[tokens].real)
    column, columns, column_gap = _ranked(flat[tokens].imag)
    if not 1 < len(tokens) == rows * columns:
        return None
    location = row * columns + column
    if len(torch.unique(location)) < len(tokens) or _mixes_locations(moved, coordinates, row_gap, column_gap):
        return None
    order = tokens[location.argsort()]
    start = int(order[0])
    in_rows = torch.equal(order, torch.arange(start, start + len(order), device=order.device))
    if in_rows and field.ndim == 4 and coordinates.shape == (rows, columns):
        return Layout(channel)
    return Layout(channel, (rows, columns), start if in_rows else 0, flat.numel(), None if in_rows else order)


def _channel_mean(moved: Tensor) -> Tensor:
    missing = moved.isnan()
    total = torch.where(missing, torch.zeros_like(moved), moved).sum(0)
    return total / (~missing).sum(0)


def _ranked(values: Tensor) -> tuple[Tensor, int, float]:
    """Rank values from the least to the greatest, nearly equal ones alike; give ranks, their number, the least gap."""
    if not len(values):
        return values.long(), 0, 0.0
    ordered, order = values.sort()
    gaps = ordered.diff()
    steps = gaps > _TOLERANCE
    ranks = torch.cat([steps.new_zeros(1, dtype=torch.long), steps.long().cumsum(0)])
    least_gap = float(gaps[steps].min()) if steps.any() else float("inf")
    return torch.empty_like(ranks).scatter(0, order, ranks), int(ranks[-1]) + 1, least_gap


def _mixes_locations(moved: Tensor, coordinates: Tensor, row_gap: float, column_gap: float) -> bool:
    """Tell whether a channel lies further from its location than half the distance to the next one."""
    if moved.stride(0) == 0:
        return False
    distance = torch.view_as_real(moved - coordinates).abs().nan_to_num(0.0).flatten(0, -2).amax(0)
    return bool(float(distance[0]) > row_gap / 2 or float(distance[1]) > column_gap / 2)


# --- where a grid lies in the pixels ---


def read_axes(field: Tensor, layout: Layout) -> Axes:
    """Read the coordinate of each row and of each column of a grid.

    Args:
        field: The coordinate field of a tensor of one image.
        layout: The layout that it has.

    Returns:
        Rows [h] and columns [w].
    """
    small = field.narrow(layout.channel, 0, 1) if field.stride(layout.channel) == 0 else field
    grid = layout(small)[0]
    return grid.real.nanmean((0, 2)), grid.imag.nanmean((0, 1))


def grid_extent(axes: Axes, pixels: tuple[int, int]) -> tuple[Extent | None, tuple[float, float]] | None:
    """Find where a grid lies in the pixels, and its step.

    By convention a grid covers the whole image, with cells of equal size: so padded convolutions are understood, whose
    outermost cells reach beyond it. The coordinates decide where they contradict this by more than half a cell (and
    half a pixel): behind a crop, behind padding on one side, behind a stride that leaves much of the image out.

    Args:
        axes: The coordinates of its rows and columns.
        pixels: Height and width of the pixels.

    Returns:
        The extent, None where the grid covers the whole image, and the pixels per location; None instead of both where
        the rows or columns lie so unevenly that no grid of equal cells describes them.

    Example:
        >>> import torch
        >>> from gradlight.models.layers.layout import grid_extent
        >>> middle, whole = torch.tensor([9.5, 13.5, 17.5, 21.5]), torch.tensor([0.0, 8.0, 16.0, 24.0])
        >>> grid_extent((middle, whole), (32, 32))
        ((8.0, 0.0, 24.0, 32.0), (4.0, 8.0))
    """
    spans = [_span(axis.double(), side) for axis, side in zip(axes, pixels, strict=True)]
    if spans[0] is None or spans[1] is None:
        return None
    (top, bottom, vertical), (left, right, horizontal) = spans[0], spans[1]
    covers_image = (top, left, bottom, right) == (0.0, 0.0, *map(float, pixels))
    return None if covers_image else (top, left, bottom, right), (vertical, horizontal)


def scaled_extent(extent: Extent | None, pixels: tuple[int, int], size: tuple[int, int]) -> Extent | None:
    """Bring an extent in the pixels to an image of another size.

    Args:
        extent: The extent; None for the whole image, which stays None.
        pixels: Height and width of the pixels.
        size: Height and width of the other image.

    Returns:
        The extent in its pixels.
    """
    if extent is None:
        return None
    vertical, horizontal = size[0] / pixels[0], size[1] / pixels[1]
    return extent[0] * vertical, extent[1] * horizontal, extent[2] * vertical, extent[3] * horizontal


def _span(axis: Tensor, side: int) -> tuple[float, float, float] | None:
    """Give the outer edges of an axis and its step; None if it is uneven."""
    count, cell = len(axis), side / len(axis)
    first, last = float(axis[0]), float(axis[-1])
    step = (last - first) / (count - 1) if count > 1 else cell
    steady = first + step * torch.arange(count, dtype=axis.dtype, device=axis.device)
    if float((axis - steady).abs().max()) > step:
        return None
    error = max(abs(first - (cell - 1) / 2), abs(last - (side - (cell + 1) / 2)))
    if count == 1 or error <= max(cell, step) / 2 + 0.5:
        return 0.0, float(side), cell
    return first + 0.5 - step / 2, last + 0.5 + step / 2, step


# --- from shapes, where the coordinates are unknown ---

_CHANNELS_LAST = (nn.Linear.forward, nn.LayerNorm.forward)


def layout_from_shape(module: nn.Module, tensor: Tensor, height: int, width: int) -> Layout | None:
    """Guess the layout of a module's output from its shape.

    Args:
        module: The module.
        tensor: Its output.
        height: Height of the pixels.
        width: Width of the pixels.

    Returns:
        The layout; None if the output has no grid of the pixels' proportions.
    """
    aspect = height / width
    if tensor.ndim == 4:
        last = isinstance(module, (nn.Linear, nn.LayerNorm)) and type(module).forward in _CHANNELS_LAST
        if not last and _has_proportions(tensor.shape[2:], aspect):
            return AS_IS
        if last or _has_proportions(tensor.shape[1:3], aspect):
            return Layout(3) if tensor.shape[1] * tensor.shape[2] > 1 else None
        return AS_IS if tensor.shape[2] * tensor.shape[3] > 1 else None
    if tensor.ndim == 3:
        for start in range(_MAX_OTHER_TOKENS + 1):
            if grid := _token_grid(tensor.shape[1] - start, aspect):
                return Layout(2, grid, start, tensor.shape[1])
    return None


def _has_proportions(grid: tuple[int, ...] | torch.Size, aspect: float) -> bool:
    """Tell whether a grid has more than one location and the pixels' proportions, up to rounding."""
    rows, columns = grid
    return rows * columns > 1 and abs(rows - columns * aspect) <= max(1.0, aspect)


def _token_grid(count: int, aspect: float) -> tuple[int, int] | None:
    """Arrange `count` tokens as rows × columns of the pixels' proportions; None if that is impossible."""
    if count < 4:
        return None
    rows = round((count * aspect) ** 0.5)
    if rows < 1 or count % rows or abs(rows - (count // rows) * aspect) > 1e-6 * rows:
        return None
    return rows, count // rows
