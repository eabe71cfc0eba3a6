"""Coordinate fields: for each number of a tensor, the row and the column of the pixels that it stands for.

A field is a complex tensor, row + column·i. For an image of 4 × 4 pixels, then a convolution of kernel 2 and stride 2:

    0+0i 0+1i 0+2i 0+3i
    1+0i 1+1i 1+2i 1+3i      kernel 2, stride 2      0.5+0.5i  0.5+2.5i
    2+0i 2+1i 2+2i 2+3i      ──────────────────►     2.5+0.5i  2.5+2.5i
    3+0i 3+1i 3+2i 3+3i

So the output's number at [0, 1] lies at row 0.5, column 2.5: the centre of its receptive window. A number without a
coordinate (a class token, padding, an average over the whole image) is NaN. Where a field repeats, as along channels,
it is an expanded view, so that many channels cost no more than one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "NO_COORDINATE",
    "broadcast_field",
    "drop_if_constant",
    "even_centres",
    "interpolate_along",
    "mean_over",
    "more_detailed",
    "no_coordinates",
    "number_tensors",
    "pixel_coordinates",
    "varies_along",
    "window_centres",
    "without_repeats",
]

NO_COORDINATE = complex("nan+nanj")

# Coordinates closer than a hundredth of a pixel are the same.
_TOLERANCE = 1e-2


# --- making fields ---


def pixel_coordinates(pixels: Tensor) -> Tensor:
    """Give the field of pixels: their own rows and columns.

    Args:
        pixels: [B,C,H,W].

    Returns:
        The field [B,C,H,W], complex64.

    Example:
        >>> import torch
        >>> from gradlight.models.layers.coordinate_fields import pixel_coordinates
        >>> pixel_coordinates(torch.zeros(1, 1, 2, 2)).tolist()
        [[[[0j, 1j], [(1+0j), (1+1j)]]]]
    """
    rows, columns = (torch.arange(side, dtype=torch.float32, device=pixels.device) for side in pixels.shape[2:])
    return torch.complex(*torch.meshgrid(rows, columns, indexing="ij")).expand(pixels.shape)


def no_coordinates(like: Tensor) -> Tensor:
    """Give the field of a tensor that does not depend on the pixels.

    Args:
        like: The tensor.

    Returns:
        A field of its shape, NaN everywhere.
    """
    return torch.full((), NO_COORDINATE, dtype=torch.complex64, device=like.device).expand(like.shape)


def number_tensors(values: Any) -> list[Tensor]:
    """List the floating-point and complex tensors in a nest of lists and tuples.

    Args:
        values: The values to search.

    Returns:
        The tensors in their order.
    """

    def search(value: Any) -> Iterator[Tensor]:
        if isinstance(value, Tensor):
            if value.is_floating_point() or value.is_complex():
                yield value
        elif isinstance(value, (list, tuple)):
            for entry in value:
                yield from search(entry)

    return [tensor for value in values for tensor in search(value)]


# --- shapes, means and comparisons ---


def without_repeats(field: Tensor) -> Tensor:
    """Keep one entry along each dimension that expand() has repeated.

    Args:
        field: A field.

    Returns:
        A view of it.
    """
    for dim, (side, step) in enumerate(zip(field.shape, field.stride(), strict=True)):
        if side > 1 and step == 0:
            field = field.narrow(dim, 0, 1)
    return field


def broadcast_field(field: Tensor, shape: torch.Size) -> Tensor | None:
    """Broadcast a field to a shape.

    Args:
        field: A field.
        shape: The shape of the tensor that it is for.

    Returns:
        The field in this shape. Where one side differs (a gated unit, a recurrent layer), its mean along that side;
        None where the shapes have nothing to do with each other.
    """
    if len(field.shape) > len(shape):
        return None
    pairs = list(zip(field.shape[::-1], shape[::-1], strict=False))
    if all(own in (1, side) for own, side in pairs):
        return field.expand(shape)
    differing = [dim for dim, (own, side) in enumerate(pairs, start=1) if own != side]
    if len(differing) > 1 or len(field.shape) != len(shape):
        return None
    return mean_over(field, [-differing[0]]).expand(shape)


def mean_over(field: Tensor, dims: Sequence[int]) -> Tensor:
    """Average coordinates over dimensions, leaving out the NaN ones.

    Args:
        field: A field.
        dims: Dimensions, counted from the end.

    Returns:
        The field with one entry along each of these; all NaN where it is one mean for the whole tensor.

    Example:
        >>> import torch
        >>> from gradlight.models.layers.coordinate_fields import mean_over, pixel_coordinates
        >>> mean_over(pixel_coordinates(torch.zeros(1, 1, 3, 4)), [-1])[0, 0, :, 0].tolist()
        [1.5j, (1+1.5j), (2+1.5j)]
    """
    small = without_repeats(field)
    missing = small.isnan()
    count = (~missing).sum(list(dims), keepdim=True)
    middle = torch.where(missing, torch.zeros_like(small), small).sum(list(dims), keepdim=True) / count
    if small.shape != middle.shape or small.numel() == 1:
        middle = drop_if_constant(middle)
    return middle.expand([1 if dim - field.ndim in dims else side for dim, side in enumerate(field.shape)])


def drop_if_constant(field: Tensor) -> Tensor:
    """Replace coordinates that are all the same by NaN: a number that depends on the whole image has none.

    Args:
        field: A field.

    Returns:
        The field, or one of NaN.
    """
    coordinates = torch.view_as_real(field[~field.isnan()])
    if coordinates.numel() and float((coordinates.amax(0) - coordinates.amin(0)).max()) > _TOLERANCE:
        return field
    return torch.full_like(field, NO_COORDINATE)


def varies_along(field: Tensor, dim: int) -> bool:
    """Tell whether coordinates differ along a dimension.

    Args:
        field: A field.
        dim: The dimension, counted from the end.

    Returns:
        Whether any two differ by more than a hundredth of a pixel.
    """
    small = torch.view_as_real(without_repeats(field)).movedim(dim - 1, 0)
    missing = small.isnan()
    spread = small.masked_fill(missing, -torch.inf).amax(0) - small.masked_fill(missing, torch.inf).amin(0)
    return bool((spread > _TOLERANCE).any())


def more_detailed(first: Tensor, second: Tensor) -> Tensor:
    """Choose the field with more different coordinates.

    For x · gate, where the gate is one number for the whole image, this is the field of x.

    Args:
        first: A field.
        second: A field of the same shape.

    Returns:
        One of the two, the first where they are equally detailed.
    """
    if first is second:
        return first
    small_first, small_second = without_repeats(first), without_repeats(second)
    same_shape = small_first.shape == small_second.shape
    if same_shape and torch.equal(torch.nan_to_num(small_first), torch.nan_to_num(small_second)):
        return first
    return second if _distinct_count(small_second) > _distinct_count(small_first) else first


def _distinct_count(field: Tensor) -> int:
    """Count the different coordinates, in steps of 1/64 of a pixel."""
    steps = torch.view_as_real(field[~field.isnan()]).mul(64).round().long()
    return len(torch.unique(steps[:, 0] * (1 << 31) + steps[:, 1]))


# --- receptive windows and resampling ---


def window_centres(arguments: Mapping[str, Any], dim: int, side: int) -> Tensor:
    """Give the centre of each receptive window along one spatial dimension, in entries of the input.

    Args:
        arguments: The arguments of a convolution or pooling, by name. A transposed convolution spreads entries out.
        dim: The spatial dimension, from 0.
        side: The number of windows.

    Returns:
        The centres [side].

    Example:
        >>> from gradlight.models.layers.coordinate_fields import window_centres
        >>> window_centres({"kernel_size": [3], "stride": [2], "padding": [1]}, dim=0, side=4).tolist()
        [0.0, 2.0, 4.0, 6.0]
    """
    kernel = arguments["weight"].shape[2 + dim] if "weight" in arguments else _at(arguments["kernel_size"], dim, 1)
    stride = _at(arguments.get("stride"), dim, kernel)
    padding, dilation = _at(arguments.get("padding"), dim, 0), _at(arguments.get("dilation"), dim, 1)
    middle = dilation * (kernel - 1) / 2 - padding
    windows = torch.arange(side, dtype=torch.float32, device="cpu")
    return (windows - middle) / stride if arguments.get("transposed") else windows * stride + middle


def _at(value: Any, dim: int, default: int) -> int:
    """Read an argument that is one number for all dimensions, or a list; an empty list is the default."""
    if isinstance(value, int):
        return value
    return int(value[min(dim, len(value) - 1)]) if value else default


def even_centres(own: int, side: int) -> Tensor:
    """Give the centres of equal parts, as adaptive pooling and interpolation have them.

    Args:
        own: The number of entries.
        side: The number of parts.

    Returns:
        The centres [side], in entries.

    Example:
        >>> from gradlight.models.layers.coordinate_fields import even_centres
        >>> even_centres(4, 2).tolist()
        [0.5, 2.5]
    """
    return (torch.arange(side, dtype=torch.float32, device="cpu") + 0.5) * (own / side) - 0.5


def interpolate_along(field: Tensor, dim: int, positions: Tensor) -> Tensor:
    """Read a field between its entries along a dimension, and beyond the outer ones by its slope.

    NaN entries (padding) first get coordinates from the straight line through the others.

    Args:
        field: A field [B,1,…].
        dim: The dimension.
        positions: Where to read it [N], in entries.

    Returns:
        The field with N entries along the dimension.
    """
    own = field.shape[dim]
    moved = _fill_missing(field.movedim(dim, -1))
    if own == 1:
        return moved.expand(*moved.shape[:-1], len(positions)).movedim(-1, dim)
    positions = positions.to(field.device)
    low = positions.floor().clamp(0, own - 2).long()
    below, above = moved[..., low], moved[..., low + 1]
    return (below + (above - below) * (positions - low)).movedim(-1, dim)


def _fill_missing(field: Tensor) -> Tensor:
    """Replace NaN along the last dimension by the least-squares line through the other entries."""
    missing = field.isnan()
    if not missing.any() or missing.all():
        return field
    weight = (~missing).float()
    count = weight.sum(-1, keepdim=True)
    index = torch.arange(field.shape[-1], dtype=torch.float32, device=field.device)
    values = torch.where(missing, torch.zeros_like(field), field)
    middle = (weight * index).sum(-1, keepdim=True) / count
    level = values.sum(-1, keepdim=True) / count
    offset = weight * (index - middle)
    slope = (offset * values).sum(-1, keepdim=True) / (offset * offset).sum(-1, keepdim=True)
    return torch.where(missing, level + slope * (index - middle), field)
