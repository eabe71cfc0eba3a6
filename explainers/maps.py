"""SaliencyMaps: the result of `explain`, raw maps by method and layer with everything that says what they are."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import GradlightError, nearest
from ..models.base import Photo
from ..models.objective import Targets
from .combination import LayerWeights, combine, layer_weights, upsample
from .methods import MethodLike, method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MapLayer", "Origin", "SaliencyMaps"]


@dataclass(frozen=True)
class MapLayer:
    """Where a map lies in the network: depth in the order of execution, and pixels per location (vertical, horizontal).

    combined: made of other layers' maps, and so never combined again.
    """

    depth: int
    stride: tuple[float, float]
    combined: bool = False


@dataclass(frozen=True)
class Origin:
    """What made the maps, in JSON types: the model and its weights' checksum, the objective, the meta step if any."""

    model: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    objective: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] | None = None


class SaliencyMaps:
    """Maps [B,K,h,w] of B images and K targets each, by method and layer: `maps["normgrad", "layer3"]`.

    Raw: never normalised, never resized. methods, layers: the names, layers from shallow to deep. targets: per image
    a list of K Target (kind, index, label, score). images: per image a Photo (path, sha256, width, height, view).
    size: height and width of the network's pixels. origin: what made the maps.
    """

    def __init__(
        self,
        maps: Mapping[tuple[str, str], Tensor],
        layers: Mapping[str, MapLayer],
        images: Sequence[Photo],
        targets: Targets,
        size: tuple[int, int],
        origin: Origin,
    ) -> None:
        self._maps = dict(maps)
        self.about = dict(sorted(layers.items(), key=lambda item: item[1].depth))
        self.images, self.targets = list(images), [list(row) for row in targets]
        self.size, self.origin = size, origin

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order asked."""
        return list(dict.fromkeys(method for method, _ in self._maps))

    @property
    def layers(self) -> list[str]:
        """Names of the layers, from shallow to deep."""
        return list(self.about)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """List every (method, layer) that has maps."""
        return [(method, layer) for method in self.methods for layer in self.layers if (method, layer) in self._maps]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: tuple[MethodLike, str]) -> Tensor:
        if not (isinstance(key, tuple) and len(key) == 2):
            raise GradlightError(
                f"Maps are found by method and layer, as maps[{self.methods[0]!r}, {self.layers[-1]!r}]."
            )
        asked, layer = key
        layer = "input" if layer == "" else str(layer).removesuffix(":0")
        name = self._method_name(asked)
        if (name, layer) not in self._maps:
            raise GradlightError(
                f"There are no maps at layer {layer!r}.{nearest(layer, self.layers)} Layers: {', '.join(self.layers)}."
            )
        return self._maps[name, layer]

    def _method_name(self, asked: MethodLike) -> str:
        if isinstance(asked, str) and asked in self.methods:
            return asked
        name = method(asked).name
        if name not in self.methods:
            raise GradlightError(f"There are no maps of method {name!r}. Methods: {', '.join(self.methods)}.")
        return name

    def __repr__(self) -> str:
        count = len(self.targets[0])
        return (
            f"SaliencyMaps({len(self)} image{'s'[: len(self) != 1]} × {count} target{'s'[: count != 1]};"
            f" methods: {', '.join(self.methods)}; layers: {', '.join(self.layers)})"
        )

    def upsampled(self, method: MethodLike, layer: str, size: tuple[int, int] | None = None) -> Tensor:
        """Bring maps to [B,K,H,W], the pixels' size unless given: bilinear, align_corners=False."""
        return upsample(self[method, layer], size or self.size)

    def combine(self, weights: LayerWeights = "linear", how: str = "product") -> SaliencyMaps:
        """Combine all layers of each method into the one layer "HOW(WEIGHTS)", maps [B,K,H,W] (paper, section 4.2).

        Each layer's maps are upsampled to the pixels' size and brought to 0…1 per image; a flat one becomes zeros,
        with a warning. weights: "uniform", "linear" (j/J from shallow to deep), or {layer: weight}; divided by their
        sum. how: "product" (Π m_j^γ_j) or "sum" (Σ γ_j m_j).
        """
        layers = [name for name, layer in self.about.items() if not layer.combined]
        shares = layer_weights(weights, layers)
        name = f"{how}({weights if isinstance(weights, str) else 'given'})"
        made = {
            (asked, name): combine([self.upsampled(asked, layer) for layer in layers], shares, how)
            for asked in self.methods
        }
        depth = max(layer.depth for layer in self.about.values()) + 1
        return self._with(made, {name: MapLayer(depth, (1.0, 1.0), combined=True)})

    def joined(self, other: SaliencyMaps) -> SaliencyMaps:
        """Put the maps of another result beside these; images and targets must be the same."""
        rows = [[(t.kind, t.index, t.label) for row in maps.targets for t in row] for maps in (self, other)]
        if [p.sha256 for p in self.images] != [p.sha256 for p in other.images] or rows[0] != rows[1]:
            raise GradlightError("Only maps of the same images and targets, in the same order, can be joined.")
        return self._with({**self._maps, **other._maps}, {**self.about, **other.about})

    def to(self, device: torch.device | str) -> SaliencyMaps:
        """Bring every map to a device."""
        return self._with({key: maps.to(device) for key, maps in self._maps.items()}, self.about)

    def _with(self, maps: Mapping[tuple[str, str], Tensor], layers: Mapping[str, MapLayer]) -> SaliencyMaps:
        return SaliencyMaps(maps, layers, self.images, self.targets, self.size, self.origin)

    def plot(self, images: Sequence[int] | None = None, opacity: float = 0.65) -> Figure:
        """Draw every map over its photo, a row for each image and target, as a matplotlib figure.

        images: which rows' images to draw, all unless given. opacity: of the strongest place of a map, 0…1.
        """
        from .plotting import figure

        return figure(self, range(len(self)) if images is None else images, opacity)

    def _repr_png_(self) -> bytes:
        """Show the first images in a notebook."""
        stream = io.BytesIO()
        self.plot(range(min(len(self), 4))).savefig(stream, format="png", dpi=80)
        return stream.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the maps to an HDF5 file, whole or not at all; `gradlight.load` reads it back."""
        from .archive import save

        save(self, path)
