"""Upsample and normalise maps, and combine those of several layers into one (paper, section 4.2)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import GradlightError, GradlightWarning, nearest
from ..models.layers.layout import Extent
from ..models.view import View
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
_COMPUTED_WEIGHTS = ("uniform", "linear")
_UNKNOWN_MODEL: Mapping[str, Any] = MappingProxyType({})

# --- One map at a time


def upsample(maps: Tensor, size: tuple[int, int], extent: Extent | None = None) -> Tensor:
    """Upsample maps bilinearly, with half-pixel centres (align_corners=False).

    Args:
        maps: [B,K,h,w].
        size: Height H and width W.
        extent: Where the grid lies in this size, (top, left, bottom, right), with zeros around it; None if it covers
            all of it.

    Returns:
        [B,K,H,W].

    Example:
        >>> upsample(torch.tensor([[[[0.0, 1.0]]]]), (1, 4)).tolist()
        [[[[0.0, 0.25, 0.75, 1.0]]]]
    """
    if extent is not None:
        top, left, bottom, right = extent
        view = View((size[1], size[0]), (left, top, right, bottom), size)
        return view.lay(maps).masked_fill(view.lay(maps.new_ones(1, 1)).isnan(), 0.0)
    return maps if maps.shape[-2:] == size else F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def normalised(maps: Tensor) -> Tensor:
    """Bring each map to 0…1 by its own smallest and largest value; a flat one to zeros, with a warning.

    Args:
        maps: [...,h,w].

    Returns:
        [...,h,w].

    Example:
        >>> normalised(torch.tensor([[-1.0, 0.0], [1.0, 3.0]])).tolist()
        [[0.0, 0.25], [0.5, 1.0]]
    """
    low, high, rounding = _range(maps)
    flat = _is_flat(low, high)
    if bool(flat.any()):
        warnings.warn(
            f"{int(flat.sum())} of {flat.numel()} maps are flat (the same value everywhere) and become zeros.",
            GradlightWarning,
            stacklevel=2,
        )
    above_low = torch.where(maps - low <= rounding, 0.0, maps - low)
    return torch.where(flat, 0.0, above_low / torch.where(flat, 1.0, high - low))


def are_flat(maps: Tensor) -> Tensor:
    """Tell which maps have the same value everywhere, up to rounding.

    Args:
        maps: [...,h,w].

    Returns:
        Booleans [...].

    Example:
        >>> are_flat(torch.tensor([[[2.0, 2.0]], [[2.0, 3.0]]])).tolist()
        [True, False]
    """
    low, high, _ = _range(maps)
    return _is_flat(low, high)[..., 0, 0]


def _is_flat(low: Tensor, high: Tensor) -> Tensor:
    # A sum over channels that nearly cancel, such as that of a gradient before a mean over the image, is rounded
    # differently at every location: by up to 80 eps of its value in trained networks, where real maps vary far more.
    return high - low <= 256 * torch.finfo(high.dtype).eps * torch.maximum(low.abs(), high.abs())


def _range(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the smallest and the largest value of each map, and the difference that rounding can make [...,1,1]."""
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    # Interpolating a constant leaves rounding noise, and a small power of that noise would be large.
    return low, high, 8 * torch.finfo(maps.dtype).eps * torch.maximum(low.abs(), high.abs())


# --- Several layers into one


def combine(maps: Sequence[Tensor], weights: Sequence[float], how: str) -> Tensor:
    """Combine the maps of several layers into one, each brought to 0…1: Σ γ_j m_j or Π m_j^γ_j.

    Args:
        maps: [B,K,H,W] of each layer.
        weights: γ_j of each layer.
        how: "sum" or "product".

    Returns:
        [B,K,H,W].

    Raises:
        GradlightError: For another `how`.

    Example:
        >>> shallow, deep = torch.tensor([[[[0.0, 1.0]]]]), torch.tensor([[[[4.0, 0.0]]]])
        >>> combine([shallow, deep], [0.25, 0.75], "sum").tolist()
        [[[[0.75, 0.25]]]]
    """
    check_how(how)
    terms = [normalised(layer) for layer in maps]
    if how == "sum":
        return torch.stack([weight * term for weight, term in zip(weights, terms, strict=True)]).sum(0)
    return torch.stack([term**weight for weight, term in zip(weights, terms, strict=True)]).prod(0)


def check_how(how: str) -> None:
    """Raise GradlightError for a `how` that is neither "product" nor "sum"."""
    if how not in _HOW:
        raise GradlightError(f"Layers are combined by 'product' or 'sum', not {how!r}.{nearest(str(how), _HOW)}")


def combination_name(how: str, weights: LayerWeights) -> str:
    """Name the layer that a combination makes.

    Example:
        >>> combination_name("product", "linear"), combination_name("sum", {"layer3": 1.0})
        ('product(linear)', 'sum(given)')
    """
    return f"{how}({weights if isinstance(weights, str) else 'given'})"


def is_combination(layer: str) -> bool:
    """Tell by its name whether a layer is a combination of others, which is never combined again.

    Example:
        >>> is_combination("product(linear)"), is_combination("layer3")
        (True, False)
    """
    return layer.startswith(tuple(f"{how}(" for how in _HOW))


# --- The weight of each layer


def layer_weights(
    weights: LayerWeights,
    layers: Sequence[str],
    model: Mapping[str, Any] = _UNKNOWN_MODEL,
    weights_sha256: str = "",
) -> list[float]:
    """Return the weight of each layer, divided by their sum.

    Args:
        weights: "uniform" (1/J), "linear" (j/J for j = 1…J), {layer: weight}; or "spread" or "accuracy", those measured
            on the network with this checksum, else those published for it.
        layers: Names of the layers, shallowest first.
        model: The model, as `Explainable.describe` describes it.
        weights_sha256: Checksum of the network's weights.

    Returns:
        One weight per layer.

    Raises:
        GradlightError: For an unknown name, for measured weights that are missing, and for weights that do not fit the
            layers.

    Example:
        >>> layer_weights("linear", ["layer1", "layer2", "layer3"])
        [0.16666666666666666, 0.3333333333333333, 0.5]
        >>> layer_weights({"layer1": 1, "layer2": 3}, ["layer1", "layer2"])
        [0.25, 0.75]
    """
    check_weights(weights)
    if not isinstance(weights, str):
        raw = _checked_values(weights, layers)
    elif weights in KINDS:
        raw = _checked_values(_measured_or_published(weights, layers, model, weights_sha256), layers)
    else:
        raw = [1.0 if weights == "uniform" else float(j) for j in range(1, len(layers) + 1)]
    return [weight / sum(raw) for weight in raw]


def check_weights(weights: LayerWeights) -> None:
    """Raise GradlightError for an unknown name of layer weights; whether they were measured is not checked here."""
    names = _COMPUTED_WEIGHTS + KINDS
    if isinstance(weights, str) and weights not in names:
        raise GradlightError(
            f"The layer weights {weights!r} are unknown.{nearest(weights, names)}"
            " Known: uniform, linear, spread, accuracy, or a mapping of layer to weight."
        )


def _measured_or_published(
    kind: str, layers: Sequence[str], model: Mapping[str, Any], weights_sha256: str
) -> dict[str, float]:
    """Find the weights of layers that were measured or published."""
    measured = find(weights_sha256)
    measured_weights = {} if measured is None else measured.weights(kind)
    missing = [layer for layer in layers if layer not in measured_weights]
    if not missing:
        return {layer: measured_weights[layer] for layer in layers}
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
    state = f"they were measured, but not at {', '.join(missing)}" if measured_weights else "none were measured so far"
    raise GradlightError(
        f"weights={kind!r} must be measured on a data set for this network; {state}. Measure them with {command},"
        " pass a mapping of layer to weight, or use 'linear' or 'uniform'."
    )


def _checked_values(weights: Mapping[str, float], layers: Sequence[str]) -> list[float]:
    """Return the weights in the order of the layers; both must have the same names."""
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
        raise GradlightError(f"Layer weights must be finite, zero or more, and not all zero; these are {values}.")
    return values
