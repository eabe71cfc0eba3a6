"""The slow way: contributions entry by entry, and what the aggregations are defined to be."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.capture import Recording, Tap, record
from gradlight.explainers.contributions import Contribution, Dense, Outer, Patches
from gradlight.explainers.layer_selection import choose_layers
from gradlight.models.base import Explainable, Layer
from gradlight.models.preserve import preserved

AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda entries: entries.sum(1),
    "max": lambda entries: entries.amax(1),
    "maxabs": lambda entries: entries.abs().amax(1),
    "norm": lambda entries: entries.square().sum(1).sqrt(),
    "filter_norm": lambda entries: entries.clamp(min=0).square().sum(1).sqrt(),
}
"""Entries [B,E,h,w] → map [B,h,w], as section 3.1.3 of the paper writes them."""

STATISTICS: dict[str, Callable[[Tensor], Tensor]] = {
    "total": lambda entries: entries.sum(2),
    "norm": lambda entries: entries.square().sum(2).sqrt(),
    "positive_norm": lambda entries: entries.clamp(min=0).square().sum(2).sqrt(),
    "negative_norm": lambda entries: entries.clamp(max=0).square().sum(2).sqrt(),
    "highest": lambda entries: entries.amax(2),
    "lowest": lambda entries: entries.amin(2),
}
"""Entries [B,G,E,h,w] → statistic [B,G,h,w]."""


def entries(contribution: Contribution) -> Tensor:
    """Materialise a contribution from its factors: [B,G,E,h,w]."""
    if isinstance(contribution, Dense):
        return contribution.values
    if isinstance(contribution, Outer):
        left, right = entries(contribution.left), entries(contribution.right)
        return torch.einsum("bgohw,bgihw->bgoihw", left, right).flatten(2, 3)
    assert isinstance(contribution, Patches)
    values = entries(contribution.field)
    padded = F.pad(values.flatten(1, 2), contribution.padding, mode=contribution.padding_mode)
    patches = F.unfold(padded, contribution.kernel, contribution.dilation, stride=contribution.stride)
    reach = [d * (k - 1) for d, k in zip(contribution.dilation, contribution.kernel, strict=True)]
    rows = (padded.shape[2] - reach[0] - 1) // contribution.stride[0] + 1
    return patches.unflatten(2, (rows, -1)).unflatten(1, (values.shape[1], -1))


def summed(contribution: Contribution) -> Tensor:
    """Sum a contribution's entries over images and locations, flat: what must be the weight's gradient."""
    if isinstance(contribution, Outer):
        left, right = entries(contribution.left), entries(contribution.right)
        return torch.einsum("bgohw,bgihw->goi", left, right).flatten()
    return entries(contribution).sum((0, 3, 4)).flatten()


def relative(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a part of the largest wanted value (of 1 where all are zero)."""
    assert found.shape == wanted.shape, (found.shape, wanted.shape)
    largest = float(wanted.abs().max()) or 1.0
    return float((found - wanted).abs().max()) / largest


def record_of(model: Explainable, pixels: Tensor, layers: str | Iterable[str], target: Any = 0) -> Recording:
    """Record one forward pass, as `explain` does inside `preserved`."""
    places = choose_layers(model, layers, (pixels.shape[2], pixels.shape[3]))
    return record(model.objective(target), pixels, places)


def taps_of(model: Explainable, pixels: Tensor, layers: str | Iterable[str], target: Any = 0) -> dict[str, Tap]:
    """Tap a model at layers for its first target."""
    with preserved(model.network):
        return record_of(model, pixels, layers, target).taps(0)


def tap_at(module: nn.Module, source: Tensor, gradient: Tensor) -> Tap:
    """Make the tap of a stand-alone layer that keeps channels first."""
    output = module(source).detach()
    layer = Layer("layer", 1, output.shape[1], (output.shape[2], output.shape[3]))
    return Tap(layer, module, output, gradient, source)


def every_map(maps: gl.SaliencyMaps) -> dict[tuple[str, str], Tensor]:
    """Give all maps of a result by method and layer."""
    return {(method, layer): maps[method, layer] for method in maps.methods for layer in maps.layers}
