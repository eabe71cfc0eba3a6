"""Combine the maps of several layers into one (paper, section 4.2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GradlightError, GradlightWarning, nearest
from .layer_weights_store import KINDS, find, published

__all__ = [
    "LayerWeights",
    "are_flat",
    "check_how",
    "check_weights",
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
_UNKNOWN_MODEL: Mapping[str, Any] = MappingProxyType({})


def upsample(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring maps [B,K,h,w] to [B,K,H,W]: bilinear, half-pixel centres (align_corners=False)."""
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalised(maps: Tensor) -> Tensor:
    """Bring each map of [...,h,w] to 0…1 by its own least and largest value; a flat one to zeros, with a warning."""
    low, high, noise = _range(maps)
    flat = _flat(low, high)
    if bool(flat.any()):
        warnings.warn(
            f"{int(flat.sum())} of {flat.numel()} maps are flat (the same value everywhere) and become zeros.",
            GradlightWarning,
            stacklevel=2,
        )
    above = torch.where(maps - low <= noise, 0.0, maps - low)
    return torch.where(flat, 0.0, above / torch.where(flat, 1.0, high - low))


def are_flat(maps: Tensor) -> Tensor:
    """Tell which maps of [...,h,w] have the same value everywhere, up to rounding: [...]."""
    low, high, _ = _range(maps)
    return _flat(low, high)[..., 0, 0]


def _flat(low: Tensor, high: Tensor) -> Tensor:
    # A sum over channels that nearly cancel, such as that of a gradient before a mean over the image, rounds otherwise
    # at every place: by up to 80 eps of its value in a network that is in use, where real maps differ by far more.
    return high - low <= 256 * torch.finfo(high.dtype).eps * torch.maximum(low.abs(), high.abs())


def _range(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give the least and the largest value of each map, and how far apart rounding alone may bring them [...,1,1]."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    # Interpolating a constant leaves rounding noise. It is not a map, and a small power of it would be large.
    return low, high, 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())


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


def check_weights(weights: LayerWeights) -> None:
    """Refuse a name of layer weights that means nothing; whether measured ones are at hand is another question."""
    if isinstance(weights, str) and weights not in _KNOWN + KINDS:
        raise GradlightError(
            f"No layer weights are called {weights!r}.{nearest(weights, _KNOWN + KINDS)}"
            " Known: uniform, linear, spread, accuracy, or a mapping of layer to weight."
        )


def layer_weights(
    weights: LayerWeights,
    layers: Sequence[str],
    model: Mapping[str, Any] = _UNKNOWN_MODEL,
    weights_sha256: str = "",
) -> list[float]:
    """Give each layer, shallowest first, its weight, divided by their sum.

    weights: "uniform" (1/J), "linear" (j/J for j = 1…J), {layer: weight}; or "spread" or "accuracy", those measured on
    the network with this checksum, else those published for it. model: as `Explainable.describe` tells it. Raises
    GradlightError for an unknown name, for measured weights that are not at hand, and for weights that do not fit the
    layers.
    """
    check_weights(weights)
    if not isinstance(weights, str):
        raw = _given(weights, layers)
    elif weights in KINDS:
        raw = _given(_known(weights, layers, model, weights_sha256), layers)
    else:
        raw = [1.0 if weights == "uniform" else float(j) for j in range(1, len(layers) + 1)]
    return [weight / sum(raw) for weight in raw]


def _known(kind: str, layers: Sequence[str], model: Mapping[str, Any], weights_sha256: str) -> dict[str, float]:
    """Find the weights of layers that were measured or published."""
    measured = find(weights_sha256)
    found = {} if measured is None else measured.weights(kind)
    missing = [layer for layer in layers if layer not in found]
    if not missing:
        return {layer: found[layer] for layer in layers}
    name = str(model.get("name", "M"))
    command = f"`gradlight evaluate layer_weights --model {name} --data D --layers {','.join(layers)}`"
    paper = published(kind, model, layers)
    if paper is not None:
        if not paper.same_network:
            warnings.warn(
                f"weights={kind!r} are those published for ImageNet's {paper.architecture}, which had other weights"
                f" than {name}. Measure its own: {command}.",
                GradlightWarning,
                stacklevel=4,
            )
        return dict(paper.layers)
    at_hand = f"were, but not at {', '.join(missing)}" if found else "none are at hand"
    raise GradlightError(
        f"weights={kind!r} must be measured on a data set for this network, and {at_hand}. Measure them with {command},"
        " give a mapping of layer to weight, or use 'linear' or 'uniform'."
    )


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
