"""`SaliencyMaps`: the result of `explain`, raw maps by method and layer, with what they were made from."""

from __future__ import annotations

import io
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import GradlightError, nearest
from ..models.base import Photo
from ..models.layers.layout import Extent, scaled_extent
from ..models.objective import Targets
from .combination import LayerWeights, check_how, combination_name, combine, is_combination, layer_weights, upsample
from .lazy import MapRows, RowRanges, SelectedSequence, as_rows
from .methods import MethodLike, method

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["MapLayer", "Origin", "SaliencyMaps"]

Sample = dict[str, Any]
MapsByKey = Mapping[tuple[str, str], Tensor | MapRows]


@dataclass(frozen=True)
class MapLayer:
    """The layer of a map: its depth in the order of execution, pixels per location, and extent (None: the image)."""

    depth: int
    stride: tuple[float, float]
    extent: Extent | None = None


@dataclass(frozen=True)
class Origin:
    """What made the maps, in JSON types: the model and its weights' checksum, the objective, the meta step if any."""

    model: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    objective: dict[str, Any] = field(default_factory=dict)
    meta: dict[str, Any] | None = None


class SaliencyMaps(Dataset[Sample]):
    """Maps [B,K,h,w] of B images and K targets each, by method and layer, raw: never normalised, never resized.

    `maps["normgrad", "layer3"]` is a tensor [B,K,h,w]; `maps[3]` is everything of one image, as
    `torch.utils.data.DataLoader` wants it; `maps[10:20]` and `maps[[3, 1]]` are the maps of some images. Images may
    have different numbers of targets (the words of their captions): then `maps["normgrad", "layer3"]` is an error, and
    `rows` gives one map per image and target. The maps of a file are read when they are needed.

    Args:
        maps: (method, layer) → tensor [B,K,h,w], or rows [M,h,w] in the order of images and targets.
        layers: Layer → its depth and stride; the attribute `layer_info` has them from shallow to deep.
        images: One Photo (path, sha256, width, height, view) per image; kept as an attribute, as the next three are.
        targets: One list of Target (kind, index, label, score) per image.
        size: Height and width of the network's pixels.
        origin: What made the maps.
        close: Closes the file that the maps are read from.

    Example:
        >>> import torch
        >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
        >>> maps = gl.explain(model, torch.rand(3, 3, 4, 4), [[0, 1]], methods="normgrad", layers="0")
        >>> maps
        SaliencyMaps(3 images × 2 targets; methods: normgrad; layers: 0)
        >>> list(maps["normgrad", "0"].shape), list(maps[1:]["normgrad", "0"].shape), sorted(maps[0])
        ([3, 2, 4, 4], [2, 2, 4, 4], ['index', 'labels', 'maps', 'path', 'score'])
    """

    def __init__(
        self,
        maps: MapsByKey,
        layers: Mapping[str, MapLayer],
        images: Sequence[Photo],
        targets: Targets,
        size: tuple[int, int],
        origin: Origin,
        close: Callable[[], None] | None = None,
    ) -> None:
        self._maps = {key: as_rows(values) for key, values in maps.items()}
        self.layer_info = dict(sorted(layers.items(), key=lambda item: item[1].depth))
        self.images, self.targets = images, targets
        self.size, self.origin = size, origin
        self._close = close
        self._ranges = RowRanges(targets)

    # --- What there is

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in the order requested."""
        return list(dict.fromkeys(method for method, _ in self._maps))

    @property
    def layers(self) -> list[str]:
        """Names of the layers, from shallow to deep."""
        return list(self.layer_info)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (method, layer) that has maps."""
        return [(method, layer) for method in self.methods for layer in self.layers if (method, layer) in self._maps]

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        low, high = self._ranges.target_counts
        count = f"{low}" if low == high else f"{low} to {high}"
        return (
            f"SaliencyMaps({len(self)} image{'s'[: len(self) != 1]} × {count} target{'s'[: count != '1']};"
            f" methods: {', '.join(self.methods)}; layers: {', '.join(self.layers)})"
        )

    # --- Maps and images

    @overload
    def __getitem__(self, key: tuple[MethodLike, str]) -> Tensor: ...
    @overload
    def __getitem__(self, key: int) -> Sample: ...
    @overload
    def __getitem__(self, key: slice | Sequence[int]) -> SaliencyMaps: ...
    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, tuple) and len(key) == 2:
            return self._by_image(self.rows(*key))
        if isinstance(key, slice):
            return self._of_images(range(len(self))[key])
        if isinstance(key, (list, np.ndarray)):
            return self._of_images([self._ranges.image_number(number) for number in key])
        try:
            return self._sample(operator.index(key))
        except TypeError:
            raise GradlightError(
                f"Maps are indexed by method and layer, as maps[{self.methods[0]!r}, {self.layers[-1]!r}]; images by"
                f" number, as maps[0] or maps[:10]; {key!r} is neither."
            ) from None

    def __iter__(self) -> Iterator[Sample]:
        return (self[image] for image in range(len(self)))

    def rows(self, method: MethodLike, layer: str, image: int | None = None) -> Tensor:
        """Return the maps of one method and layer as rows, one per image and target.

        Args:
            method: Name of the method, or the method itself.
            layer: Name of the layer.
            image: Number of one image; all images by default.

        Returns:
            [M,h,w] of all images, or [K,h,w] of one.

        Raises:
            GradlightError: If there are no such maps, or there is no such image.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(2, 3, 4, 4), [[0], [0, 1]], methods="normgrad", layers="0")
            >>> list(maps.rows("normgrad", "0").shape), list(maps.rows("normgrad", "0", image=1).shape)
            ([3, 4, 4], [2, 4, 4])
        """
        values = self._maps[self._key(method, layer)]
        if image is not None:
            values = values.select(self._ranges.of_image(self._ranges.image_number(image)))
        return values.tensor()

    def _by_image(self, rows: Tensor) -> Tensor:
        low, high = self._ranges.target_counts
        if low != high:
            raise GradlightError(
                f"The images have {low} to {high} targets each, so their maps form no [images, targets, h, w]. Take"
                " one image, as maps[3:4][METHOD, LAYER], or maps.rows(METHOD, LAYER), one row per image and target."
            )
        return rows.reshape(len(self), low, *rows.shape[1:])

    def _key(self, method_like: MethodLike, layer: str) -> tuple[str, str]:
        layer = "input" if layer == "" else str(layer).removesuffix(":0")
        name = self._method_name(method_like)
        if (name, layer) not in self._maps:
            raise GradlightError(
                f"There are no maps at layer {layer!r}.{nearest(layer, self.layers)} Layers: {', '.join(self.layers)}."
            )
        return name, layer

    def _method_name(self, method_like: MethodLike) -> str:
        if isinstance(method_like, str) and method_like in self.methods:
            return method_like
        name = method(method_like).name
        if name not in self.methods:
            raise GradlightError(f"There are no maps of method {name!r}. Methods: {', '.join(self.methods)}.")
        return name

    def _sample(self, number: int) -> Sample:
        """Return everything of one image, in types that a DataLoader can collate."""
        image = self._ranges.image_number(number)
        targets = self.targets[image]
        return {
            "path": self.images[image].path,
            "labels": [target.label for target in targets],
            "index": torch.tensor([target.index for target in targets], device="cpu"),
            "score": torch.tensor([target.score for target in targets], device="cpu"),
            "maps": {"/".join(key): self.rows(*key, image=image) for key in self.pairs},
        }

    def _of_images(self, numbers: Sequence[int]) -> SaliencyMaps:
        rows = self._ranges.of_images(numbers)
        maps = {key: values.select(rows) for key, values in self._maps.items()}
        targets = [self.targets[image] for image in numbers]
        images = SelectedSequence(self.images, numbers)
        return SaliencyMaps(maps, self.layer_info, images, targets, self.size, self.origin, self._close)

    # --- Making other maps of them

    def upsampled(self, method: MethodLike, layer: str, size: tuple[int, int] | None = None) -> Tensor:
        """Upsample the maps of one method and layer: bilinear, align_corners=False.

        Args:
            method: Name of the method, or the method itself.
            layer: Name of the layer.
            size: Height and width; those of the pixels by default.

        Returns:
            [B,K,H,W], zero where the grid does not reach (the network crops its pixels).

        Raises:
            GradlightError: If there are no such maps, or the images have different numbers of targets.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 2, stride=2), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers="0")
            >>> list(maps["normgrad", "0"].shape), list(maps.upsampled("normgrad", "0").shape)
            ([3, 1, 2, 2], [3, 1, 4, 4])
        """
        size = size or self.size
        return upsample(self[method, layer], size, scaled_extent(self.layer_info[layer].extent, self.size, size))

    def resized(self, size: tuple[int, int]) -> SaliencyMaps:
        """Bring the maps of every method and layer to one size: bilinear, align_corners=False.

        Args:
            size: Height and width.

        Returns:
            The resized maps.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers="0")
            >>> list(maps.resized((8, 6))["normgrad", "0"].shape)
            [3, 1, 8, 6]
        """
        resized = {key: self._laid(key, size) for key in self._maps}
        stride = (self.size[0] / size[0], self.size[1] / size[1])
        return self._with(resized, {name: MapLayer(layer.depth, stride) for name, layer in self.layer_info.items()})

    def combine(self, weights: LayerWeights = "linear", how: str = "product") -> SaliencyMaps:
        """Combine all layers of each method into the one layer "HOW(WEIGHTS)" (paper, section 4.2).

        Each layer's maps are upsampled to the pixels' size and brought to 0…1 per image; a flat map becomes zeros, with
        a warning. A method with maps at one layer only, beside others with several, is left out.

        Args:
            weights: "uniform", "linear" (j/J from shallow to deep), "spread" or "accuracy" (as measured by `gradlight
                evaluate layer_weights` on the network, or published for it), or {layer: weight}; divided by their sum.
            how: "product" (Π m_j^γ_j) or "sum" (Σ γ_j m_j).

        Returns:
            Maps [B,K,H,W] at one layer.

        Raises:
            GradlightError: For an unknown `how` or `weights`, and for weights that do not fit the layers.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers=["input", "0"])
            >>> maps.combine("uniform", how="sum")
            SaliencyMaps(3 images × 1 target; methods: normgrad; layers: sum(uniform))
        """
        check_how(how)
        name = combination_name(how, weights)
        combined = {}
        for method_name, layers in self._layers_to_combine().items():
            shares = layer_weights(weights, layers, self.origin.model, self.origin.weights_sha256)
            maps = [self._laid((method_name, layer), self.size) for layer in layers]
            combined[method_name, name] = combine(maps, shares, how)
        depth = max(layer.depth for layer in self.layer_info.values()) + 1
        return self._with(combined, {name: MapLayer(depth, (1.0, 1.0))})

    def _laid(self, key: tuple[str, str], size: tuple[int, int]) -> Tensor:
        """Upsample the rows of a method and layer to [M,H,W]."""
        extent = scaled_extent(self.layer_info[key[1]].extent, self.size, size)
        return upsample(self._maps[key].tensor().unsqueeze(1), size, extent).squeeze(1)

    def _layers_to_combine(self) -> dict[str, list[str]]:
        """List the layers that each method has maps at, without the methods that have too few."""
        layers_of = {
            name: [layer for method, layer in self.pairs if method == name and not is_combination(layer)]
            for name in self.methods
        }
        most = max(map(len, layers_of.values()), default=0)
        return {name: layers for name, layers in layers_of.items() if len(layers) > 1 or len(layers) == most > 0}

    def joined(self, other: SaliencyMaps) -> SaliencyMaps:
        """Join the maps of another result, of other methods or layers, to these.

        Args:
            other: Maps of the same images and targets, made with the same weights and meta step.

        Returns:
            The maps of both.

        Raises:
            GradlightError: If images, targets, weights or meta step differ, and for maps of a method and layer that
                both have.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> pixels = torch.rand(3, 3, 4, 4)
            >>> maps = gl.explain(model, pixels, 0, methods="normgrad", layers="0")
            >>> maps.joined(gl.explain(model, pixels, 0, methods="gradient", layers="0")).methods
            ['normgrad', 'gradient']
        """
        if self._identity() != other._identity():
            raise GradlightError(
                "Only maps of the same images and targets, in the same order, made with the same weights and meta step,"
                " can be joined."
            )
        both = [f"{method} at {layer}" for method, layer in self.pairs if (method, layer) in other._maps]
        if both:
            raise GradlightError(f"Both results have maps of {', '.join(both)}; joining them would lose one of each.")
        return self._with({**self._maps, **other._maps}, {**self.layer_info, **other.layer_info})

    def _identity(self) -> tuple[Any, ...]:
        """Return what these are maps of: images, targets, weights and meta step."""
        targets = [[(target.kind, target.index, target.label) for target in row] for row in self.targets]
        return [photo.sha256 for photo in self.images], targets, self.origin.weights_sha256, self.origin.meta

    def to(self, device: torch.device | str) -> SaliencyMaps:
        """Move every map to a device.

        Args:
            device: The device.

        Returns:
            The maps on the device.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers="0")
            >>> maps.to("cpu")["normgrad", "0"].device
            device(type='cpu')
        """
        return self._with({key: maps.to(device) for key, maps in self._maps.items()}, self.layer_info)

    def _with(self, maps: MapsByKey, layers: Mapping[str, MapLayer]) -> SaliencyMaps:
        return SaliencyMaps(maps, layers, self.images, self.targets, self.size, self.origin, self._close)

    # --- Figures

    def plot(
        self,
        images: Sequence[int] | None = None,
        *,
        methods: Sequence[str] | None = None,
        layers: Sequence[str] | None = None,
        opacity: float = 0.65,
    ) -> Figure:
        """Draw maps over their images as a matplotlib figure: one row per image, target and method.

        Args:
            images: Numbers of the images to draw; all by default.
            methods: Names of the methods; all by default.
            layers: Names of the layers; all by default.
            opacity: Of the strongest location of a map, 0…1.

        Returns:
            The figure.

        Raises:
            GradlightError: For no panels, or more than a figure can hold.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(1, 3, 4, 4), 0, methods="normgrad", layers="0")
            >>> figure = maps.plot()
            >>> figure.savefig("maps.png")
        """
        from .plotting import figure

        numbers = range(len(self)) if images is None else images
        return figure(self, numbers, methods or self.methods, layers or self.layers, opacity)

    def _repr_png_(self) -> bytes | None:
        """Draw a preview for a notebook: the first images and methods, layers of all depths; None if it is too much."""
        step = -(-len(self.layers) // 8)
        try:
            preview = self.plot(range(min(len(self), 4)), methods=self.methods[:4], layers=self.layers[::-step][::-1])
        except GradlightError:
            return None
        stream = io.BytesIO()
        preview.savefig(stream, format="png", dpi=80)
        return stream.getvalue()

    # --- Files

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the maps to an HDF5 file in one atomic replacement; `gradlight.load` reads it.

        Args:
            path: The file.
            overwrite: Whether to replace also a file that is not one of gradlight's.

        Raises:
            GradlightError: For maps that are not finite, and for a path that cannot be written or holds another
                program's file.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> maps = gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers="0")
            >>> maps.save("maps.h5")
        """
        from .archive import save

        save(self, path, overwrite=overwrite)

    def close(self) -> None:
        """Close the file that the maps are read from, if there is one; a `with` block does so at its end.

        Example:
            >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
            >>> gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers="0").save("maps.h5")
            >>> gl.load("maps.h5").close()
        """
        if self._close is not None:
            self._close()

    def __enter__(self) -> SaliencyMaps:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
