"""A classifier made fully convolutional: a grid of class scores over a photo of any proportions.

Global average pooling and a linear layer become a sliding average and a 1×1 convolution; a flattening and linear
layers become convolutions, the first with a kernel as large as what it flattened. The user's network stays as it is:
the new one is another tree of modules around the same weights, under the same names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.preserve import preserved

__all__ = ["fully_convolutional"]

_STRETCH = 1.5
# Convolutions on a GPU round more than linear layers do; another head would be wrong by far more.
_NEAR = 1e-2


def fully_convolutional(network: nn.Module, pixels: Tensor) -> nn.Module | None:
    """Make the fully convolutional form of a network: pixels [B,3,H,W] to scores [B,K,h,w].

    pixels [1,3,S,S]: noise of the size that the network was made for, where the grid has one place and the same scores.
    None for a network whose head is of another kind, which is found out by trying.
    """
    with preserved(network), torch.no_grad():
        try:
            answer = network(pixels.clone())
            converted = _converted(network, _watched(network, pixels))
            if converted is None or not isinstance(answer, Tensor):
                return None
            with preserved(converted):
                grid, wide = converted(pixels.clone()), converted(_wider(pixels))
        # Whatever somebody's network does with a grid where it expects a vector, it may refuse it in its own way.
        except Exception:
            return None
    same = grid.shape == (*answer.shape, 1, 1) and _close(grid.flatten(1), answer)
    return converted if same and wide.ndim == 4 and wide.shape[3] > 1 else None


def _wider(pixels: Tensor) -> Tensor:
    return F.interpolate(pixels, size=(pixels.shape[2], round(_STRETCH * pixels.shape[3])), mode="nearest")


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _NEAR * b.abs().max())


class _Places:
    """The grid that the pooled features lie on, from where it is made to where a flattening has hidden it."""

    size = (1, 1)


class GridPool(nn.Module):
    """Average over a sliding window (height, width) of features [B,C,H,W]; (1, 1) leaves them as they are."""

    def __init__(self, window: tuple[int, int], places: _Places) -> None:
        super().__init__()
        self.window, self.places = window, places

    def forward(self, features: Tensor) -> Tensor:
        """Give the averages [B,C,h,w]."""
        pooled = F.avg_pool2d(features, self.window, stride=1)
        self.places.size = (pooled.shape[2], pooled.shape[3])
        return pooled


class GridLinear(nn.Module):
    """A linear layer at every place of a grid, with that layer's own weights; kernel: of the places it reads at once.

    It takes [B,C,h,w], also flattened to [B,C·h·w], and gives [B,K,h',w'].
    """

    def __init__(self, linear: nn.Linear, kernel: tuple[int, int], places: _Places) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.kernel, self.places = kernel, places

    def forward(self, features: Tensor) -> Tensor:
        """Give the layer's answer at every place."""
        if features.ndim == 2:
            features = features.unflatten(1, (-1, *self.places.size))
        return F.conv2d(features, self.weight.unflatten(1, (-1, *self.kernel)), self.bias)


@dataclass(frozen=True)
class _Run:
    """What one run of one module did, in the order in which they end; plane: height and width of what went in."""

    name: str
    module: nn.Module
    plane: tuple[int, int]
    averaged: bool
    handed_on: bool
    plain: bool


def _watched(network: nn.Module, pixels: Tensor) -> list[_Run]:
    runs: list[_Run] = []

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            runs.append(_looked_at(name, module, args[0], output))

    with ExitStack() as undo:
        for name, module in network.named_modules():
            if name:
                undo.callback(module.register_forward_hook(partial(note, name)).remove)
        network(pixels.clone())
    return runs


def _looked_at(name: str, module: nn.Module, taken: Tensor, given: Tensor) -> _Run:
    plane = (taken.shape[2], taken.shape[3]) if taken.ndim == 4 else (0, 0)
    handed_on = isinstance(module, nn.AdaptiveAvgPool2d) and torch.equal(taken, given)
    return _Run(name, module, plane, _averages(module, taken, given), handed_on, _is_plain(module, taken, given))


def _averages(module: nn.Module, taken: Tensor, given: Tensor) -> bool:
    """Tell whether a module gave the spatial mean of features [B,C,H,W]."""
    if taken.ndim != 4 or given.numel() != taken.shape[0] * taken.shape[1]:
        return False
    return not isinstance(module, (nn.Flatten, nn.Identity)) and _close(given.flatten(1), taken.mean((2, 3)))


def _is_plain(module: nn.Module, taken: Tensor, given: Tensor) -> bool:
    """Tell whether a linear layer did what its weight and bias say, and the weight is a parameter of its own."""
    if not isinstance(module, nn.Linear) or "weight" not in module._parameters:
        return False
    return _close(F.linear(taken, module.weight, module.bias), given)


def _converted(network: nn.Module, runs: list[_Run]) -> nn.Module | None:
    """Find pooling and linear layers of the head, and put others in their place; None where there are none."""
    pooling = _pooling(runs)
    if pooling is None:
        return None
    number, window, kernel = pooling
    places = _Places()
    replaced: dict[str, nn.Module] = {runs[number].name: GridPool(window, places)}
    for run in runs[number + 1 :]:
        if run.plain and isinstance(run.module, nn.Linear):
            replaced[run.name] = GridLinear(run.module, kernel if len(replaced) == 1 else (1, 1), places)
    return _with(network, replaced) if len(replaced) > 1 else None


def _pooling(runs: list[_Run]) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
    """Find the last pooling: the number of its run, the window to slide, the kernel of the linear layer behind it."""
    averaging = [number for number, run in enumerate(runs) if run.averaged]
    large = [number for number in averaging if runs[number].plane != (1, 1)]
    last = max(large or averaging, default=-1)
    for number, run in reversed(list(enumerate(runs))[last + 1 :]):
        if run.handed_on:
            return number, (1, 1), run.plane
    return (last, runs[last].plane, (1, 1)) if last >= 0 else None


def _with(module: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """Copy a tree of modules along the ways to those that are replaced, by name; everything else is shared."""
    clone = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # the registries of children, parameters, buffers and hooks
            vars(clone)[name] = value.copy()
    for child, inner in module._modules.items():
        below = {name[len(child) + 1 :]: new for name, new in replaced.items() if name.startswith(f"{child}.")}
        if child in replaced:
            clone._modules[child] = replaced[child]
        elif inner is not None and below:
            clone._modules[child] = _with(inner, below)
    return clone
