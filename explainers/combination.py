"""Combine the maps of several layers into one (paper, section 4.2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GradlightError, GradlightWarning, nearest

__all__ = [
    "LayerWeights",
    "check_how",
    "combination_name",
    "combine",
    "is_combination",
    "layer_weights",
    "normalised",
    "upsample",
]

LayerWeights = str | Mapping[str, float]

_HOW = ("product", "sum")
_KNOWN = ("uniform", "linear")
_MEASURED = ("spread", "accuracy")


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps [B,K,h,w] to [B,K,H,W]: bilinear, half-pixel centres (align_corners=False)."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalised(maps: Tensor) -> Tensor:
    """Bring each map of [...,h,w] to 0…1 by its own least and largest value; a flat one to zeros, with a warning."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    # Interpolating a constant leaves rounding noise. It is not a map, and a small power of it would be large.
    noise = 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())
    flat = high - low <= noise
    if bool(flat.any()):
        warnings.warn(
            f"{int(flat.sum())} of {flat.numel()} maps are flat (the same value everywhere) and become zeros.",
            GradlightWarning,
            stacklevel=2,
        )
    above = torch.where(maps - low <= noise, 0.0, maps - low)
    return torch.where(flat, 0.0, above / torch.where(flat, 1.0, high - low))


def check_how(how: str) -> None:
    """Refuse a way to combine that is neither "product" nor "sum"."""
    if how not in _HOW:
        raise GradlightError(f"Layers are combined by 'product' or 'sum', not {how!r}.{nearest(str(how), _HOW)}")


def combination_name(how: str, weights: LayerWeights) -> str:
    """Name the layer that a combination makes: "product(linear)", or "product(given)" for a mapping."""
    return f"{how}({weights if isinstance(weights, str) else 'given'})"


def is_combination(layer: str) -> bool:
    """Tell by its name whether a layer is a combination of others, which is never combined again."""
    return layer.startswith(tuple(f"{how}(" for how in _HOW))


def layer_weights(weights: LayerWeights, layers: Sequence[str]) -> list[float]:
    """Give each layer, shallowest first, its weight, divided by their sum.

    weights: "uniform" (1/J), "linear" (j/J for j = 1…J), or {layer: weight}. Raises GradlightError for an unknown
    name, for measured weights that are not at hand, and for a mapping that does not fit the layers.
    """
    count = len(layers)
    if isinstance(weights, str):
        if weights in _MEASURED:
            raise GradlightError(
                f"weights={weights!r} must be measured on a data set for this network, and none are at hand. Give them"
                " as a mapping of layer to weight, or use 'linear' or 'uniform'."
            )
        if weights not in _KNOWN:
            raise GradlightError(
                f"No layer weights are called {weights!r}.{nearest(weights, _KNOWN + _MEASURED)}"
                " Known: uniform, linear, spread, accuracy, or a mapping of layer to weight."
            )
        raw = [1.0 if weights == "uniform" else float(j) for j in range(1, count + 1)]
    else:
        raw = _given(weights, layers)
    return [weight / sum(raw) for weight in raw]


def _given(weights: Mapping[str, float], layers: Sequence[str]) -> list[float]:
    missing = [layer for layer in layers if layer not in weights]
    extra = [layer for layer in weights if layer not in layers]
    if missing or extra:
        raise GradlightError(
            f"The weights do not fit the layers {', '.join(layers)}:"
            + (f" without a weight: {', '.join(missing)};" if missing else "")
            + (f" not among the layers: {', '.join(map(str, extra))};" if extra else "")
            + " give one weight for each."
        )
    values = [float(weights[layer]) for layer in layers]
    if not all(0 <= value < float("inf") for value in values) or sum(values) == 0:
        raise GradlightError(f"Layer weights must be finite, zero or more, and not all zero; found {values}.")
    return values


def combine(maps: Sequence[Tensor], weights: Sequence[float], how: str) -> Tensor:
    """Join maps [B,K,H,W], one per layer, into one: Σ γ_j m_j ("sum") or Π m_j^γ_j ("product"), m_j in 0…1.

    Raises GradlightError for another `how`.
    """
    check_how(how)
    terms = [normalised(layer) for layer in maps]
    if how == "sum":
        return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)
    return torch.stack([term**weight for weight, term in zip(weights, terms, strict=True)]).prod(0)
