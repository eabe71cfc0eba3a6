"""Convolutions with a version of their weights for every image.

Where an image has few places, its step is applied as factors: the new patches times the old patches, times the old
gradients. Elsewhere every image has its own kernel. Depthwise and grouped convolutions run as one, with the images'
channels beside each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import grad

from .function_mode import Note, PerSampleCall
from .weights import NotCoveredError, Weight, few, shaped

__all__ = ["CONVOLUTIONS"]

_GRADIENTS: dict[Any, Callable[..., Tensor]] = {
    F.conv1d: grad.conv1d_weight,
    F.conv2d: grad.conv2d_weight,
    F.conv3d: grad.conv3d_weight,
}

_ROOM = 2**27
"""How many entries patches may have that are spread out at once."""


@dataclass(frozen=True)
class _Sliding:
    """How a kernel slides, the settings spelt out for every axis."""

    function: Any
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def pointwise(self) -> bool:
        """Tell whether every place is multiplied by one matrix."""
        return math.prod(self.kernel) * math.prod(self.stride) * self.groups == 1 and not any(self.padding)

    def __call__(self, input: Tensor, weight: Tensor, bias: Tensor | None, copies: int = 1) -> Tensor:
        """Convolve; copies: that many kernels beside each other, each for channels of its own."""
        groups = self.groups * copies
        result: Tensor = self.function(input, weight, bias, self.stride, self.padding, self.dilation, groups)
        return result

    def gradient(self, input: Tensor, gradient: Tensor, weight: Tensor, copies: int = 1) -> Tensor:
        """Give the gradient of the kernel."""
        shape = (copies * weight.shape[0], *weight.shape[1:])
        return _GRADIENTS[self.function](
            input, shape, gradient, self.stride, self.padding, self.dilation, self.groups * copies
        )

    def patches(self, input: Tensor, count: int) -> Tensor:
        """Give what the kernel sees of each image, [B,P,K]."""
        if self.pointwise:
            field = input.flatten(2)
        else:
            field = F.unfold(input, self.kernel, self.dilation, self.padding, self.stride)
        return _places(field, count)

    @property
    def overlaps(self) -> bool:
        """Tell whether neighbouring patches share so much that the likeness of places comes before that of patches."""
        return not self.pointwise and math.prod(self.stride) == 1

    def few(self, input: Tensor, result: Tensor) -> bool:
        """Tell whether the places are so few that a step costs less as factors than as a kernel for each image."""
        if self.groups > 1 or not (self.pointwise or self.function is F.conv2d):
            return False
        places, rows, channels = math.prod(result.shape[2:]), result.shape[1], input.shape[1]
        if not self.overlaps:
            return few(places, rows, channels * math.prod(self.kernel))
        once = math.prod(input.shape[2:]) ** 2 * channels + places**2 * rows
        return 3 * once <= places * rows * channels * math.prod(self.kernel)

    def likeness(self, old: Tensor, new: Tensor) -> Tensor:
        """Give the products of all old patches with all new ones, [B,P,P']."""
        if not self.overlaps:
            return self.patches(old, len(old)) @ self.patches(new, len(new)).mT
        (height, width), (down, right) = new.shape[2:], self.padding
        field = (old.flatten(2).mT @ new.flatten(2)).view(-1, height, width, height, width)
        field = F.pad(field, (right, right, down, down) * 2)
        for axis, size, step in zip((1, 2), self.kernel, self.dilation, strict=True):
            span = field.shape[axis] - step * (size - 1)
            # What both patches see at the same place of the kernel; along one axis, then along the other.
            views = [field.narrow(axis, n * step, span).narrow(axis + 2, n * step, span) for n in range(size)]
            field = reduce(torch.add, views)
        return field.flatten(1, 2).flatten(2)

    def multiplies(self, input: Tensor) -> bool:
        """Tell whether one product of matrices for all images is the fastest way; a GPU waits for its next kernel."""
        return self.pointwise or (input.is_cuda and self.groups == 1 and self.function is F.conv2d)

    def portions(self, count: int, *batches: Tensor) -> list[tuple[Any, ...]]:
        """Divide the first tensor, the input, and others by images, so many at once that their patches find room."""
        entries = math.prod(self.kernel) * batches[0].numel() // count
        many = count if self.pointwise else min(count, max(1, _ROOM // entries))
        if many == count:
            return [(count, *batches)]
        parts = zip(*(batch.split(many * len(batch) // count) for batch in batches), strict=True)
        return [(min(many, count - number * many), *part) for number, part in enumerate(parts)]

    def places(self, input: Tensor) -> list[int]:
        """Give the size of the result."""
        settings = zip(input.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(size + 2 * pad - step * (n - 1) - 1) // stride + 1 for size, n, stride, pad, step in settings]


def _places(field: Tensor, count: int) -> Tensor:
    """Bring [B·k,C,places] to [B,P,C]."""
    return field.mT.reshape(count, -1, field.shape[1])


def _convolution(
    call: PerSampleCall,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    if not call.direct(input, weight, bias) or input.ndim != weight.ndim:
        return NotImplemented
    axes = weight.ndim - 2
    kernel, stride, dilation = tuple(weight.shape[2:]), _spelt(stride, axes), _spelt(dilation, axes)
    if padding == "same":
        input, padding = _padded(input, kernel, dilation)
    sliding = _Sliding(
        call.function, kernel, stride, _spelt(0 if padding == "valid" else padding, axes), dilation, groups
    )
    about, shift = call.weight(weight), call.weight(bias)
    if not call.settled:
        return call.track(sliding(input, weight, bias), _note(call, sliding, input, about, shift))
    offsets = call.copies(bias, call.count)
    if about is not None and about.moved is not None:
        return _apart(sliding, input, about.moved, offsets)
    result = sliding(input, weight, None)
    if about is not None and about.field is not None:
        left, field = about.field
        likeness = sliding.likeness(field.to(input.dtype), input)
        result = shaped(torch.baddbmm(result.flatten(2), left.mT, likeness), result.shape)
    return result if offsets is None else _shifted(result, offsets)


def _spelt(setting: Any, axes: int) -> tuple[int, ...]:
    found = (setting,) if isinstance(setting, int) else tuple(setting)
    return found * axes if len(found) == 1 else found


def _padded(input: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Tensor, Any]:
    """Pad as "same" does: where the two sides differ, by hand."""
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    if not any(total % 2 for total in totals):
        return input, tuple(total // 2 for total in totals)
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(input, sides), 0


def _note(call: PerSampleCall, sliding: _Sliding, input: Tensor, weight: Weight | None, bias: Weight | None) -> Note:
    seen, version, count = input.detach(), input._version, call.count

    def note(gradient: Tensor) -> None:
        if bias is not None:
            bias.add(gradient.reshape(count, len(gradient) // count, gradient.shape[1], -1).sum((1, 3)))
        if weight is None:
            return
        if seen._version != version:
            raise NotCoveredError("the input of a convolution is overwritten after it")
        source = seen.to(gradient.dtype)
        if len(seen) == count and sliding.few(source, gradient):
            weight.add_field(
                _places(gradient.flatten(2), count), source, lambda field: sliding.patches(field, len(field))
            )
        else:
            _collect(sliding, source, gradient, weight)

    return note


def _collect(sliding: _Sliding, input: Tensor, gradient: Tensor, weight: Weight) -> None:
    """Collect the gradient of every image's own kernel."""
    count, shape = weight.count, weight.tensor.shape
    if sliding.groups > 1 and len(input) == count:
        beside = sliding.gradient(_beside(input), _beside(gradient), weight.tensor, count)
        weight.add(beside.view(count, *shape))
    elif sliding.multiplies(input):
        parts = [
            _places(g.flatten(2), many).mT @ sliding.patches(x, many)
            for many, x, g in sliding.portions(count, input, gradient)
        ]
        weight.add(_whole(parts).view(count, *shape))
    else:
        pairs = zip(input.chunk(count), gradient.chunk(count), strict=True)
        weight.add_apart([sliding.gradient(x, g, weight.tensor) for x, g in pairs])


def _apart(sliding: _Sliding, input: Tensor, weights: Tensor, offsets: Tensor | None) -> Tensor:
    """Convolve every image with its own kernel."""
    count = len(weights)
    if sliding.groups > 1 and len(input) == count:
        flat = None if offsets is None else offsets.flatten()
        beside = sliding(_beside(input), weights.flatten(0, 1), flat, count)
        return shaped(beside, (count, beside.shape[1] // count, *beside.shape[2:]))
    if sliding.multiplies(input) and len(input) == count:
        portions = sliding.portions(count, input, weights.flatten(2))
        result = _whole([matrices @ sliding.patches(x, many).mT for many, x, matrices in portions])
        result = result if offsets is None else result + offsets.unsqueeze(2)
        return shaped(result, (*result.shape[:2], *sliding.places(input)))
    own: Any = [None] * count if offsets is None else offsets
    parts = zip(input.chunk(count), weights, own, strict=True)
    return torch.cat([sliding(x, weight, offset) for x, weight, offset in parts])


def _whole(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _beside(batch: Tensor) -> Tensor:
    """Put the images' channels beside each other: [1,B·C,…]."""
    return batch.reshape(1, -1, *batch.shape[2:])


def _shifted(result: Tensor, offsets: Tensor) -> Tensor:
    rows = offsets.repeat_interleave(len(result) // len(offsets), 0)
    return result + rows.view(*rows.shape, *(1,) * (result.ndim - 2))


CONVOLUTIONS: dict[Any, Any] = dict.fromkeys(_GRADIENTS, _convolution)
