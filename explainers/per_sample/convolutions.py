"""Per-sample rules of convolutions.

Where an image has few locations, its step is applied as factors: the new patches times the old patches, times the old
gradients. Elsewhere every image has its own kernel. Depthwise and grouped convolutions run as one convolution, with the
images' channels beside each other.
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

from .function_mode import GradientHook, PerSampleCall
from .weights import NotCoveredError, PerSampleWeight, factors_are_cheaper, reshape_without_view

__all__ = ["CONVOLUTIONS"]

_WEIGHT_GRADIENTS: dict[Any, Callable[..., Tensor]] = {
    F.conv1d: grad.conv1d_weight,
    F.conv2d: grad.conv2d_weight,
    F.conv3d: grad.conv3d_weight,
}

_MAX_PATCH_ENTRIES = 2**27
"""How many entries of patches may be unfolded at once."""


@dataclass(frozen=True)
class _ConvolutionSettings:
    """The settings of one convolution, with one number per axis."""

    function: Any
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def is_pointwise(self) -> bool:
        """Whether every location is multiplied by one matrix."""
        return math.prod(self.kernel) * math.prod(self.stride) * self.groups == 1 and not any(self.padding)

    @property
    def patches_overlap(self) -> bool:
        """Whether neighbouring patches share most entries, so that products of locations come before those of patches.

        See `patch_products`.
        """
        return not self.is_pointwise and math.prod(self.stride) == 1

    def convolve(self, input: Tensor, weight: Tensor, bias: Tensor | None, copies: int = 1) -> Tensor:
        """Convolve; copies: number of kernels that lie beside each other, each for channels of its own."""
        groups = self.groups * copies
        result: Tensor = self.function(input, weight, bias, self.stride, self.padding, self.dilation, groups)
        return result

    def weight_gradient(self, input: Tensor, gradient: Tensor, weight: Tensor, copies: int = 1) -> Tensor:
        """Return the gradient of the kernel, or of `copies` kernels beside each other."""
        shape = (copies * weight.shape[0], *weight.shape[1:])
        return _WEIGHT_GRADIENTS[self.function](
            input, shape, gradient, self.stride, self.padding, self.dilation, self.groups * copies
        )

    def patches(self, input: Tensor, count: int) -> Tensor:
        """Return the patches that the kernel covers in each of `count` images, [B,P,K]."""
        if self.is_pointwise:
            field = input.flatten(2)
        else:
            field = F.unfold(input, self.kernel, self.dilation, self.padding, self.stride)
        return _rows_per_image(field, count)

    def patch_products(self, old: Tensor, new: Tensor) -> Tensor:
        """Return the scalar products of all old patches with all new ones, [B,P,P'].

        Where patches overlap, the products of all pairs of locations are taken once, and summed over the kernel.
        """
        if not self.patches_overlap:
            return self.patches(old, len(old)) @ self.patches(new, len(new)).mT
        (height, width), (down, right) = new.shape[2:], self.padding
        products = (old.flatten(2).mT @ new.flatten(2)).view(-1, height, width, height, width)
        products = F.pad(products, (right, right, down, down) * 2)
        for axis, size, step in zip((1, 2), self.kernel, self.dilation, strict=True):
            span = products.shape[axis] - step * (size - 1)
            # Both patches at the same entry of the kernel; along one axis, then along the other.
            views = [products.narrow(axis, n * step, span).narrow(axis + 2, n * step, span) for n in range(size)]
            products = reduce(torch.add, views)
        return products.flatten(1, 2).flatten(2)

    def factors_are_cheaper(self, input: Tensor, result: Tensor) -> bool:
        """Return whether the locations are so few that a step costs less as factors than as one kernel per image."""
        if self.groups > 1 or not (self.is_pointwise or self.function is F.conv2d):
            return False
        locations, rows, channels = math.prod(result.shape[2:]), result.shape[1], input.shape[1]
        columns = channels * math.prod(self.kernel)
        if not self.patches_overlap:
            return factors_are_cheaper(locations, rows, columns)
        products = math.prod(input.shape[2:]) ** 2 * channels + locations**2 * rows
        return 3 * products <= locations * rows * columns

    def uses_matrix_product(self, input: Tensor) -> bool:
        """Return whether one matrix product for all images is the fastest way: a GPU waits for each kernel launch."""
        return self.is_pointwise or (input.is_cuda and self.groups == 1 and self.function is F.conv2d)

    def portions(self, count: int, *batches: Tensor) -> list[tuple[Any, ...]]:
        """Split the input (the first tensor) and others by images, so that the patches of a portion fit in memory.

        Each portion is (number of images, *its part of every tensor).
        """
        entries = math.prod(self.kernel) * batches[0].numel() // count
        size = count if self.is_pointwise else min(count, max(1, _MAX_PATCH_ENTRIES // entries))
        if size == count:
            return [(count, *batches)]
        splits = zip(*(batch.split(size * len(batch) // count) for batch in batches), strict=True)
        return [(min(size, count - number * size), *split) for number, split in enumerate(splits)]

    def output_size(self, input: Tensor) -> list[int]:
        """Return the spatial size of the result."""
        settings = zip(input.shape[2:], self.kernel, self.stride, self.padding, self.dilation, strict=True)
        return [(size + 2 * pad - step * (n - 1) - 1) // stride + 1 for size, n, stride, pad, step in settings]


# --- The rule


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
    """Convolve and collect the gradient, or convolve with each image's own kernel."""
    if not call.is_plain(input, weight, bias) or input.ndim != weight.ndim:
        return NotImplemented
    axes = weight.ndim - 2
    kernel, stride, dilation = tuple(weight.shape[2:]), _per_axis(stride, axes), _per_axis(dilation, axes)
    if padding == "same":
        input, padding = _padded_to_same(input, kernel, dilation)
    padding = _per_axis(0 if padding == "valid" else padding, axes)
    settings = _ConvolutionSettings(call.function, kernel, stride, padding, dilation, groups)
    own_weight, own_bias = call.weight_of(weight), call.weight_of(bias)
    if not call.stepped:
        hook = _gradient_hook(call, settings, input, own_weight, own_bias)
        return call.collect(settings.convolve(input, weight, bias), hook)
    offsets = call.copies(bias, call.count)
    if own_weight is not None and own_weight.stepped is not None:
        return _with_own_kernels(settings, input, own_weight.stepped, offsets)
    result = settings.convolve(input, weight, None)
    if own_weight is not None and own_weight.step_field is not None:
        left, field = own_weight.step_field
        products = settings.patch_products(field.to(input.dtype), input)
        result = reshape_without_view(torch.baddbmm(result.flatten(2), left.mT, products), result.shape)
    return result if offsets is None else _with_offsets(result, offsets)


def _per_axis(setting: Any, axes: int) -> tuple[int, ...]:
    values = (setting,) if isinstance(setting, int) else tuple(setting)
    return values * axes if len(values) == 1 else values


def _padded_to_same(input: Tensor, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[Tensor, Any]:
    """Turn padding="same" into numbers; where the two sides differ, pad the input itself."""
    totals = [step * (size - 1) for size, step in zip(kernel, dilation, strict=True)]
    if not any(total % 2 for total in totals):
        return input, tuple(total // 2 for total in totals)
    sides = [side for total in reversed(totals) for side in (total // 2, total - total // 2)]
    return F.pad(input, sides), 0


# --- Before the step: collect the gradients


def _gradient_hook(
    call: PerSampleCall,
    settings: _ConvolutionSettings,
    input: Tensor,
    weight: PerSampleWeight | None,
    bias: PerSampleWeight | None,
) -> GradientHook:
    kept_input, version, count = input.detach(), input._version, call.count

    def hook(gradient: Tensor) -> None:
        if bias is not None:
            bias.add(gradient.reshape(count, len(gradient) // count, gradient.shape[1], -1).sum((1, 3)))
        if weight is None:
            return
        if kept_input._version != version:
            raise NotCoveredError("the input of a convolution is overwritten after it")
        source = kept_input.to(gradient.dtype)
        if len(source) == count and settings.factors_are_cheaper(source, gradient):
            left = _rows_per_image(gradient.flatten(2), count)
            weight.add_field(left, source, lambda field: settings.patches(field, len(field)))
        else:
            _collect_kernel_gradients(settings, source, gradient, weight)

    return hook


def _collect_kernel_gradients(
    settings: _ConvolutionSettings, input: Tensor, gradient: Tensor, weight: PerSampleWeight
) -> None:
    """Collect the gradient of every image's own kernel."""
    count, shape = weight.count, weight.tensor.shape
    if settings.groups > 1 and len(input) == count:
        gradients = settings.weight_gradient(_beside(input), _beside(gradient), weight.tensor, count)
        weight.add(gradients.view(count, *shape))
    elif settings.uses_matrix_product(input):
        products = [
            _rows_per_image(g.flatten(2), size).mT @ settings.patches(x, size)
            for size, x, g in settings.portions(count, input, gradient)
        ]
        weight.add(_concatenated(products).view(count, *shape))
    else:
        pairs = zip(input.chunk(count), gradient.chunk(count), strict=True)
        weight.add_separate([settings.weight_gradient(x, g, weight.tensor) for x, g in pairs])


# --- After the step: run with the values of each image


def _with_own_kernels(settings: _ConvolutionSettings, input: Tensor, weights: Tensor, offsets: Tensor | None) -> Tensor:
    """Convolve every image with its own kernel."""
    count = len(weights)
    if settings.groups > 1 and len(input) == count:
        biases = None if offsets is None else offsets.flatten()
        beside = settings.convolve(_beside(input), weights.flatten(0, 1), biases, count)
        return reshape_without_view(beside, (count, beside.shape[1] // count, *beside.shape[2:]))
    if settings.uses_matrix_product(input) and len(input) == count:
        portions = settings.portions(count, input, weights.flatten(2))
        result = _concatenated([matrices @ settings.patches(x, size).mT for size, x, matrices in portions])
        result = result if offsets is None else result + offsets.unsqueeze(2)
        return reshape_without_view(result, (*result.shape[:2], *settings.output_size(input)))
    own_biases: Any = [None] * count if offsets is None else offsets
    images = zip(input.chunk(count), weights, own_biases, strict=True)
    return torch.cat([settings.convolve(x, weight, bias) for x, weight, bias in images])


def _with_offsets(result: Tensor, offsets: Tensor) -> Tensor:
    rows = offsets.repeat_interleave(len(result) // len(offsets), 0)
    return result + rows.view(*rows.shape, *(1,) * (result.ndim - 2))


def _rows_per_image(field: Tensor, count: int) -> Tensor:
    """Bring [B·k,C,locations] to [B,P,C]."""
    return field.mT.reshape(count, -1, field.shape[1])


def _beside(batch: Tensor) -> Tensor:
    """Put the images' channels beside each other: [1,B·C,…]."""
    return batch.reshape(1, -1, *batch.shape[2:])


def _concatenated(tensors: list[Tensor]) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


CONVOLUTIONS: dict[Any, Any] = dict.fromkeys(_WEIGHT_GRADIENTS, _convolution)
"""The rule of each convolution, by torch function."""
