"""SaliencyMaps: the result of `explain`, raw maps by method and layer with everything that says what they are."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import GradlightError, nearest
from ..models.base import Photo
from ..models.objective import Targets
from .combination import LayerWeights, check_how, combination_name, combine, is_combination, layer_weights, upsample
from .lazy import Picked, Rows, Stretches, as_rows
from .methods import MethodLike, method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MapLayer", "Origin", "SaliencyMaps"]

Sample = dict[str, Any]
MapsAt = Mapping[tuple[str, str], Tensor | Rows]


@dataclass(frozen=True)
class MapLayer:
    """Where a map lies: depth in the order of execution, and pixels per location (vertical, horizontal)."""

    depth: int
    stride: tuple[float, float]


@dataclass(frozen=True)
class Origin:
    """What made the maps, in JSON types: the model and its weights' checksum, the objective, the meta step if any."""

    model: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    objective: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] | None = None


class SaliencyMaps(Dataset[Sample]):
    """Maps [B,K,h,w] of B images and K targets each, by method and layer: `maps["normgrad", "layer3"]`.

    Raw: never normalised, never resized. methods, layers: the names, layers from shallow to deep. targets: per image
    a list of K Target (kind, index, label, score). images: per image a Photo (path, sha256, width, height, view).
    size: height and width of the network's pixels. origin: what made the maps.

    Read from a file, the maps stay there until they are asked for: `maps[10:20]["normgrad", "layer3"]` reads ten
    images' worth. `maps[3]` is all of one image, as `torch.utils.data.DataLoader` wants it. Images may have different
    numbers of targets (the words of their captions): then there is no [B,K,h,w] of all, but of each, and `rows`.
    """

    def __init__(
        self,
        maps: MapsAt,
        layers: Mapping[str, MapLayer],
        images: Sequence[Photo],
        targets: Targets,
        size: tuple[int, int],
        origin: Origin,
        close: Callable[[], None] | None = None,
    ) -> None:
        self._maps = {key: as_rows(values) for key, values in maps.items()}
        self.about = dict(sorted(layers.items(), key=lambda item: item[1].depth))
        self.images, self.targets = images, targets
        self.size, self.origin = size, origin
        self._close = close
        self._stretches = Stretches(targets)

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

    def __iter__(self) -> Iterator[Sample]:
        return (self[image] for image in range(len(self)))

    @overload
    def __getitem__(self, key: tuple[MethodLike, str]) -> Tensor: ...
    @overload
    def __getitem__(self, key: int) -> Sample: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int]) -> SaliencyMaps: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 2:
            return self._even(self.rows(*key))
        if isinstance(key, slice):
            return self._part(range(len(self))[key])
        if isinstance(key, (list, np.ndarray)):
            return self._part([self._stretches.image(each) for each in key])
        try:
            return self._sample(operator.index(key))
        except TypeError:
            raise GradlightError(
                f"Maps are found by method and layer, as maps[{self.methods[0]!r}, {self.layers[-1]!r}]; images by"
                f" number, as maps[0] or maps[:10]; not by {key!r}."
            ) from None

    def rows(self, method: MethodLike, layer: str, image: int | None = None) -> Tensor:
        """Give the maps as rows: those of all images [M,h,w], one for each target, or of one image [K,h,w]."""
        values = self._maps[self._key(method, layer)]
        if image is not None:
            values = values.part(self._stretches.of(self._stretches.image(image)))
        return values.tensor()

    def _even(self, rows: Tensor) -> Tensor:
        low, high = self._stretches.span
        if low != high:
            raise GradlightError(
                f"The images have {low} to {high} targets each, so their maps form no [images, targets, h, w]. Take"
                " one image, as maps[3:4][METHOD, LAYER], or maps.rows(METHOD, LAYER), a row for each target."
            )
        return rows.reshape(len(self), low, *rows.shape[1:])

    def _key(self, asked: MethodLike, layer: str) -> tuple[str, str]:
        layer = "input" if layer == "" else str(layer).removesuffix(":0")
        name = self._method_name(asked)
        if (name, layer) not in self._maps:
            raise GradlightError(
                f"There are no maps at layer {layer!r}.{nearest(layer, self.layers)} Layers: {', '.join(self.layers)}."
            )
        return name, layer

    def _method_name(self, asked: MethodLike) -> str:
        if isinstance(asked, str) and asked in self.methods:
            return asked
        name = method(asked).name
        if name not in self.methods:
            raise GradlightError(f"There are no maps of method {name!r}. Methods: {', '.join(self.methods)}.")
        return name

    def _sample(self, number: int) -> Sample:
        image = self._stretches.image(number)
        targets = self.targets[image]
        return {
            "path": self.images[image].path,
            "labels": [target.label for target in targets],
            "index": torch.tensor([target.index for target in targets]),
            "score": torch.tensor([target.score for target in targets]),
            "maps": {"/".join(key): self.rows(*key, image=image) for key in self.pairs},
        }

    def _part(self, images: Sequence[int]) -> SaliencyMaps:
        rows = self._stretches.of_all(images)
        maps = {key: values.part(rows) for key, values in self._maps.items()}
        targets = [self.targets[image] for image in images]
        part = Picked(self.images, images)
        return SaliencyMaps(maps, self.about, part, targets, self.size, self.origin, self._close)

    def __enter__(self) -> SaliencyMaps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file that the maps are read from, if there is one."""
        if self._close is not None:
            self._close()

    def __repr__(self) -> str:
        low, high = self._stretches.span
        count = f"{low}" if low == high else f"{low} to {high}"
        return (
            f"SaliencyMaps({len(self)} image{'s'[: len(self) != 1]} × {count} target{'s'[: count != '1']};"
            f" methods: {', '.join(self.methods)}; layers: {', '.join(self.layers)})"
        )

    def upsampled(self, method: MethodLike, layer: str, size: tuple[int, int] | None = None) -> Tensor:
        """Bring maps to [B,K,H,W], the pixels' size unless given: bilinear, align_corners=False."""
        return upsample(self[method, layer], size or self.size)

    def resized(self, size: tuple[int, int]) -> SaliencyMaps:
        """Bring every map to a size (height, width): bilinear, align_corners=False."""
        made = {key: _upsampled(values, size) for key, values in self._maps.items()}
        return self._with(made, {name: MapLayer(at.depth, _stride(self.size, size)) for name, at in self.about.items()})

    def combine(self, weights: LayerWeights = "linear", how: str = "product") -> SaliencyMaps:
        """Combine all layers of each method into the one layer "HOW(WEIGHTS)", maps [B,K,H,W] (paper, section 4.2).

        Each layer's maps are upsampled to the pixels' size and brought to 0…1 per image; a flat one becomes zeros,
        with a warning. weights: "uniform", "linear" (j/J from shallow to deep), "spread" or "accuracy" (as measured by
        `gradlight evaluate layer_weights` on the network, or published for it), or {layer: weight}; divided by their
        sum. how: "product" (Π m_j^γ_j) or "sum" (Σ γ_j m_j). A method with maps at one layer only, beside others with
        several, is left out.
        """
        check_how(how)
        name = combination_name(how, weights)
        made = {}
        for asked, layers in self._combined().items():
            shares = layer_weights(weights, layers, self.origin.model, self.origin.weights_sha256)
            maps = [_upsampled(self._maps[asked, layer], self.size) for layer in layers]
            made[asked, name] = combine(maps, shares, how)
        depth = max(layer.depth for layer in self.about.values()) + 1
        return self._with(made, {name: MapLayer(depth, (1.0, 1.0))})

    def _combined(self) -> dict[str, list[str]]:
        """List the methods that have layers to combine, with these layers."""
        own = {
            asked: [layer for method, layer in self.pairs if method == asked and not is_combination(layer)]
            for asked in self.methods
        }
        most = max(map(len, own.values()), default=0)
        return {asked: layers for asked, layers in own.items() if len(layers) > 1 or len(layers) == most > 0}

    def joined(self, other: SaliencyMaps) -> SaliencyMaps:
        """Put the maps of another result beside these.

        Raises GradlightError unless images, targets, weights and meta step are the same, and for maps of a method and
        layer that both have.
        """
        if self._identity() != other._identity():
            raise GradlightError(
                "Only maps of the same images and targets, in the same order, made with the same weights and meta step,"
                " can be joined."
            )
        both = [f"{method} at {layer}" for method, layer in self.pairs if (method, layer) in other._maps]
        if both:
            raise GradlightError(f"Both results have maps of {', '.join(both)}; joining them would lose one of each.")
        return self._with({**self._maps, **other._maps}, {**self.about, **other.about})

    def _identity(self) -> tuple[Any, ...]:
        """What these are maps of: images, targets, and the weights that made them."""
        targets = [[(target.kind, target.index, target.label) for target in row] for row in self.targets]
        return [photo.sha256 for photo in self.images], targets, self.origin.weights_sha256, self.origin.meta

    def to(self, device: torch.device | str) -> SaliencyMaps:
        """Bring every map to a device."""
        return self._with({key: maps.to(device) for key, maps in self._maps.items()}, self.about)

    def _with(self, maps: MapsAt, layers: Mapping[str, MapLayer]) -> SaliencyMaps:
        return SaliencyMaps(maps, layers, self.images, self.targets, self.size, self.origin, self._close)

    def plot(
        self,
        images: Sequence[int] | None = None,
        *,
        methods: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        opacity: float = 0.65,
    ) -> Figure:
        """Draw maps over their photos as a matplotlib figure: a row for each image, target and method.

        images (by number), methods, layers: which to draw, all unless given. opacity: of the strongest place of a map,
        0…1. Raises GradlightError for more panels than a page can hold.
        """
        from .plotting import figure

        numbers = range(len(self)) if images is None else images
        return figure(self, numbers, methods or self.methods, layers or self.layers, opacity)

    def _repr_png_(self) -> bytes | None:
        """Show a glimpse in a notebook: the first images and methods, layers of all depths; None if it is too much."""
        step = -(-len(self.layers) // 8)
        try:
            drawing = self.plot(range(min(len(self), 4)), methods=self.methods[:4], layers=self.layers[::-step][::-1])
        except GradlightError:
            return None
        stream = io.BytesIO()
        drawing.savefig(stream, format="png", dpi=80)
        return stream.getvalue()

    def save(self, path: str | Path) -> None:
        """Write the maps to an HDF5 file, whole or not at all; `gradlight.load` reads it back."""
        from .archive import save

        save(self, path)


def _upsampled(values: Rows, size: tuple[int, int]) -> Tensor:
    """Bring rows to [M,H,W]."""
    return upsample(values.tensor().unsqueeze(1), size).squeeze(1)


def _stride(pixels: tuple[int, int], size: tuple[int, int]) -> tuple[float, float]:
    return pixels[0] / size[0], pixels[1] / size[1]
