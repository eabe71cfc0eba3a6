"""The algebra of contributions: what each location adds to a weight's gradient, never materialised (paper, table 1).

A contribution is a field: at every location a vector or a matrix. Six statistics of its entries are enough for every
aggregation, and they compose, so that a convolution's K' × N²K matrices cost no more than the channels of its factors:

    conv 1×1, g = (0, 2), x = (3, −4):  Outer(Dense(g), Dense(x)) is [[0, 0], [6, −8]]
    total = Σg·Σx = 2·(−1) = −2;  norm = ‖g‖·‖x‖ = 2·5 = 10;  highest = max of {0, 2}·{3, −4} = 6

Entries may fall into groups (grouped and depthwise convolutions); each statistic is [B,G,h,w], computed on first use.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Contribution", "Dense", "Outer", "Patches", "Product", "Weighted", "scratch_like"]

Pair = tuple[int, int]

_SAFE = 2.0**-70  # squares of numbers between this and its inverse are far from both ends of float32
_SMALL = 32


class Contribution(ABC):
    """A field of vectors or matrices over locations, known by six statistics of its entries, each [B,G,h,w]."""

    @cached_property
    @abstractmethod
    def total(self) -> Tensor:
        """Sum of the entries."""

    @cached_property
    @abstractmethod
    def norm(self) -> Tensor:
        """Square root of the sum of the squared entries (Frobenius norm)."""

    @cached_property
    @abstractmethod
    def positive_norm(self) -> Tensor:
        """Frobenius norm of the positive entries."""

    @cached_property
    @abstractmethod
    def negative_norm(self) -> Tensor:
        """Frobenius norm of the negative entries."""

    @cached_property
    @abstractmethod
    def highest(self) -> Tensor:
        """Largest entry, signed."""

    @cached_property
    @abstractmethod
    def lowest(self) -> Tensor:
        """Smallest entry, signed."""


class Dense(Contribution):
    """A field of vectors that are in memory.

    Args:
        values: [B,C,h,w].
        groups: G, into which the channels are split evenly.

    Example:
        >>> Dense(torch.tensor([[[[3.0]], [[-4.0]]]])).norm
        tensor([[[[5.]]]])
    """

    def __init__(self, values: Tensor, groups: int = 1) -> None:
        self.values: Tensor = values.unflatten(1, (groups, values.shape[1] // groups))

    @cached_property
    def total(self) -> Tensor:
        return self.values.sum(2)

    @cached_property
    def highest(self) -> Tensor:
        return _over_channels(torch.amax, self.values)

    @cached_property
    def lowest(self) -> Tensor:
        return _over_channels(torch.amin, self.values)

    @cached_property
    def _scale(self) -> Tensor:
        """Power of two near each image's largest entry: in float32 squares of 1e-22 vanish, those of 1e22 overflow."""
        largest = torch.maximum(self.highest, -self.lowest).amax((1, 2, 3), keepdim=True).unsqueeze(1)
        exponent = torch.frexp(largest).exponent.clamp(-126, 126)
        return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), 1.0)

    def _positive(self) -> Tensor:
        """Write the positive part of the values to scratch memory."""
        return torch.clamp(self.values, min=0, out=scratch_like(self.values))

    def _negative(self) -> Tensor:
        return torch.clamp(self.values, max=0, out=scratch_like(self.values))

    def _all(self) -> Tensor:
        return scratch_like(self.values).copy_(self.values)

    def _root(self, entries: Callable[[], Tensor], power: Tensor) -> Tensor:
        """Take the root of `power`, the summed squares of entries; of scaled squares where float32 is short."""
        largest = power.flatten(1).amax(1).tolist()
        # Far from both ends of float32 an entry whose square vanishes is too small beside the largest to change the
        # sum, so the scale would change no digit; it costs three passes over the values.
        if all(_SAFE < value < 1 / _SAFE for value in largest):
            return power.sqrt_()
        return entries().div_(self._scale).square_().sum(2).sqrt_() * self._scale.squeeze(1)

    @cached_property
    def norm(self) -> Tensor:
        return self._root(self._all, torch.mul(self.values, self.values, out=scratch_like(self.values)).sum(2))

    @cached_property
    def positive_norm(self) -> Tensor:
        return self._root(self._positive, self._positive().square_().sum(2))

    @cached_property
    def negative_norm(self) -> Tensor:
        return self._root(self._negative, self._negative().square_().sum(2))


def _over_channels(join: Callable[..., Tensor], values: Tensor) -> Tensor:
    """Reduce [B,G,C,h,w] to [B,G,h,w]; in two steps where the maps are small, which torch does far faster."""
    if values.shape[2] % _SMALL == 0 and values.shape[3] * values.shape[4] < _SMALL**2:
        return join(join(values.unflatten(2, (_SMALL, -1)), 2), 2)
    return join(values, 2)


class Product(Dense):
    """A field of vectors left ⊙ right, multiplied again for each statistic, which costs less than to keep the product.

    Args:
        left: [B,C,h,w], such as a gradient.
        right: [B,C,h,w], such as an activation.

    Example:
        >>> Product(torch.full((1, 2, 1, 1), 2.0), torch.full((1, 2, 1, 1), 3.0)).total
        tensor([[[[12.]]]])
    """

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.left, self.right = left, right

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        return (self.left * self.right).unsqueeze(1)

    def _all(self) -> Tensor:
        return torch.mul(self.left, self.right, out=scratch_like(self.left)).unsqueeze(1)

    def _positive(self) -> Tensor:
        return self._all().clamp_(min=0)

    def _negative(self) -> Tensor:
        return self._all().clamp_(max=0)

    @cached_property
    def total(self) -> Tensor:
        return self._all().sum(2)


class Weighted(Dense):
    """A field of vectors times a weight for each channel, multiplied out only where a statistic needs it.

    Args:
        weights: [B,C,1,1].
        field: [B,C,h,w].

    Example:
        >>> Weighted(torch.full((1, 2, 1, 1), 2.0), torch.full((1, 2, 1, 1), 3.0)).total
        tensor([[[[12.]]]])
    """

    def __init__(self, weights: Tensor, field: Tensor) -> None:
        self.weights, self.field = weights, field

    @cached_property
    def values(self) -> Tensor:  # type: ignore[override]
        return (self.weights * self.field).unsqueeze(1)

    @cached_property
    def total(self) -> Tensor:
        summed = torch.matmul(self.weights.flatten(1).unsqueeze(1), self.field.flatten(2))
        return summed.view(len(summed), 1, *self.field.shape[2:])


class Outer(Contribution):
    """The outer product, group by group, of two fields over the same locations.

    Args:
        left: A field of vectors, such as the gradients.
        right: A field of vectors, such as the activations or their patches.

    Example:
        >>> g, x = torch.tensor([[[[0.0]], [[2.0]]]]), torch.tensor([[[[3.0]], [[-4.0]]]])
        >>> outer = Outer(Dense(g), Dense(x))
        >>> float(outer.total), float(outer.norm), float(outer.highest), float(outer.lowest)
        (-2.0, 10.0, 6.0, -8.0)
    """

    def __init__(self, left: Contribution, right: Contribution) -> None:
        self.left, self.right = left, right

    @cached_property
    def total(self) -> Tensor:
        return self.left.total * self.right.total

    @cached_property
    def norm(self) -> Tensor:
        return self.left.norm * self.right.norm

    @cached_property
    def positive_norm(self) -> Tensor:
        a, b = self.left, self.right
        return torch.hypot(a.positive_norm * b.positive_norm, a.negative_norm * b.negative_norm)

    @cached_property
    def negative_norm(self) -> Tensor:
        a, b = self.left, self.right
        return torch.hypot(a.positive_norm * b.negative_norm, a.negative_norm * b.positive_norm)

    @cached_property
    def _corners(self) -> list[Tensor]:
        """The products of the extremes; a bilinear function on a rectangle is extreme at a corner."""
        a, b = self.left, self.right
        return [x * y for x in (a.highest, a.lowest) for y in (b.highest, b.lowest)]

    @cached_property
    def highest(self) -> Tensor:
        return reduce(torch.maximum, self._corners)

    @cached_property
    def lowest(self) -> Tensor:
        return reduce(torch.minimum, self._corners)


class Patches(Contribution):
    """The patch of a field around each location, as a convolution sees it (x_{u,N×N} of equation 1).

    Args:
        field: The field that is cut into patches.
        kernel: Height and width of a patch.
        stride: Vertical and horizontal.
        padding: Left, right, top, bottom.
        dilation: Vertical and horizontal.
        padding_mode: As in torch.nn.functional.pad; "constant" pads with zeros, which are entries of the patch.

    Example:
        >>> Patches(Dense(torch.ones(1, 1, 3, 3)), (3, 3), padding=(1, 1, 1, 1)).total
        tensor([[[[4., 6., 4.],
                  [6., 9., 6.],
                  [4., 6., 4.]]]])
    """

    def __init__(
        self,
        field: Contribution,
        kernel: Pair,
        stride: Pair = (1, 1),
        padding: tuple[int, int, int, int] = (0, 0, 0, 0),
        dilation: Pair = (1, 1),
        padding_mode: str = "constant",
    ) -> None:
        self.field, self.kernel, self.stride, self.dilation = field, kernel, stride, dilation
        self.padding, self.padding_mode = padding, padding_mode

    def _pool(self, statistic: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Join a statistic over every patch, first down the columns, then along the rows."""
        if any(self.padding):
            statistic = F.pad(statistic, self.padding, mode=self.padding_mode)
        for dim, size, stride, dilation in zip((2, 3), self.kernel, self.stride, self.dilation, strict=True):
            span = statistic.shape[dim] - dilation * (size - 1)
            shifts = torch.arange(0, span, stride, device=statistic.device)
            views = [statistic.narrow(dim, k * dilation, span) for k in range(size)]
            statistic = reduce(join, (v if stride == 1 else v.index_select(dim, shifts) for v in views))
        return statistic

    @cached_property
    def total(self) -> Tensor:
        return self._pool(self.field.total, torch.add)

    @cached_property
    def norm(self) -> Tensor:
        return self._pool(self.field.norm, torch.hypot)

    @cached_property
    def positive_norm(self) -> Tensor:
        return self._pool(self.field.positive_norm, torch.hypot)

    @cached_property
    def negative_norm(self) -> Tensor:
        return self._pool(self.field.negative_norm, torch.hypot)

    @cached_property
    def highest(self) -> Tensor:
        return self._pool(self.field.highest, torch.maximum)

    @cached_property
    def lowest(self) -> Tensor:
        return self._pool(self.field.lowest, torch.minimum)


# --- memory that is used over and over: a large tensor that is freed goes back to the system, page by page

_SCRATCH_BYTES = 2**24
_scratch = threading.local()


def scratch_like(tensor: Tensor) -> Tensor:
    """Return memory for values like a tensor's, laid out as it is; the next call in the same thread returns the same.

    On the CPU it is one block for each dtype, of 16 MB at most, which the thread keeps; memory for a tensor that is
    larger, on another device or not dense is allocated.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size > _SCRATCH_BYTES or not _is_dense(tensor):
        return torch.empty_like(tensor)
    blocks: dict[torch.dtype, Tensor] = _scratch.__dict__.setdefault("blocks", {})
    block = blocks.get(tensor.dtype)
    if block is None or block.numel() < tensor.numel():
        block = blocks[tensor.dtype] = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
    return block[: tensor.numel()].as_strided(tensor.shape, tensor.stride())


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor fills its memory without gaps, in whatever order of its dimensions."""
    filled = 1
    steps = [step for step in zip(tensor.stride(), tensor.shape, strict=True) if step[1] > 1]
    for stride, size in sorted(steps):
        if stride != filled:
            return False
        filled *= size
    return True
