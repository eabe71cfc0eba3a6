"""Explanation of one batch of an export: loaded images to stored maps, and to reasons for those that fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import torch
from PIL import Image

from ..data.hdf5.schema import StoredMaps
from ..errors import GradlightError
from ..explainers.archive import to_stored
from ..explainers.batch import BatchRunner, ImageBatch
from ..explainers.explain import assemble, describe_origin
from ..explainers.maps import MapLayer, Origin, SaliencyMaps
from ..explainers.methods import methods_of
from ..explainers.precision import Precision
from ..models.base import Explainable, Photo, intact
from ..models.objective import Objective
from ..models.preprocessing import Preprocess
from ..models.preserve import exclusive
from .loading import LoadedPhoto
from .plan import ExportSettings

__all__ = ["BatchExplainer", "concatenate"]


class BatchExplainer:
    """Explains batch after batch with one model.

    Args:
        model: The model.
        settings: How images are explained, and how their maps are stored.

    Raises:
        GradlightError: The network's pixels vary in size with the photo, and the settings have no size of the maps.
    """

    def __init__(self, model: Explainable, settings: ExportSettings) -> None:
        self.model, self.settings = model, settings
        precision = Precision(settings.precision)
        self._runner = BatchRunner(model, methods_of(settings.methods), settings.layers, settings.meta, precision)
        self._origin: Origin | None = None
        self._varies = _has_varying_size(model.preprocess)
        if self._varies and settings.size is None:
            raise GradlightError(
                f"{model.name!r} takes each photo in its own size, so the maps of two photos have different grids."
                " Give a size for all maps, as --size 224."
            )

    def __call__(self, batch: Sequence[LoadedPhoto]) -> StoredMaps:
        """Explain images in their order; one that cannot be read or explained becomes a failure."""
        failures = [(image.item.path, image.reason) for image in batch if image.pixels is None]
        groups: list[StoredMaps] = []
        readable = [image for image in batch if image.pixels is not None]
        with exclusive(self.model.network), intact(self.model.network):
            for _, group in groupby(readable, key=lambda each: each.pixels.shape if each.pixels is not None else None):
                groups += self._explain_group(list(group), failures)
        return dataclasses.replace(concatenate([self.empty(), *groups]), failures=failures)

    def empty(self) -> StoredMaps:
        """Give the content of a file without images."""
        size = self.model.size
        layers = self._runner.map_layers(size)
        maps = {pair: torch.zeros(0, *layer.size) for pair, layer in layers.items()}
        map_layers = {layer.name: MapLayer(layer.depth, layer.stride, layer.extent) for layer in layers.values()}
        return self._stored(SaliencyMaps(maps, map_layers, [], [], size, self._describe_origin()))

    def _explain_group(self, group: list[LoadedPhoto], failures: list[tuple[str, str]]) -> list[StoredMaps]:
        """Explain images of one size; if that fails, one by one."""
        try:
            maps = self._maps(group)
        except GradlightError as error:
            if len(group) == 1:
                failures.append((group[0].item.path, str(error)))
                return []
            return [stored for image in group for stored in self._explain_group([image], failures)]
        finite = [image for image in range(len(maps)) if _is_finite(maps, image)]
        for image in sorted(set(range(len(maps))) - set(finite)):
            failures.append((maps.images[image].path, "its maps are not finite (NaN or infinite)"))
        return [self._stored(maps if len(finite) == len(maps) else maps[finite])] if finite else []

    def _maps(self, group: Sequence[LoadedPhoto]) -> SaliencyMaps:
        pixels = torch.stack([image.pixels for image in group if image.pixels is not None])
        photos: list[Photo] = [image.photo for image in group if image.photo is not None]
        size = (pixels.shape[2], pixels.shape[3])
        objective = self._objective([image.item.targets or self.settings.target for image in group])
        batch_maps = self._runner.run(objective, ImageBatch(photos, self.model.cast(pixels)))
        return assemble(self._runner.map_layers(size), [batch_maps], photos, size, self._describe_origin())

    def _objective(self, targets: Sequence[Sequence[str | int] | None]) -> Objective:
        rows = None if all(row is None for row in targets) else [None if row is None else list(row) for row in targets]
        return self.model.word_objective(rows) if self.settings.words else self.model.objective(rows)

    def _describe_origin(self) -> Origin:
        """Describe the origin once, by the target of images without targets of their own."""
        if self._origin is None:
            objective = self._objective([self.settings.target])
            self._origin = describe_origin(self.model, objective, self.settings.meta, precision=self.settings.precision)
        return self._origin

    def _stored(self, maps: SaliencyMaps) -> StoredMaps:
        if self.settings.combine is not None:
            how, weights = self.settings.combine
            maps = maps.joined(maps.combine(weights, how))
        if self.settings.size is not None:
            maps = maps.resized(self.settings.size)
        stored = to_stored(maps)
        if not self._varies or self.settings.size is None:
            return stored
        layers = {key: dataclasses.replace(row, stride=(1.0, 1.0)) for key, row in stored.layers.items()}
        return dataclasses.replace(stored, pixels=self.settings.size, layers=layers)


def _has_varying_size(preprocess: Preprocess) -> bool:
    """Tell whether photos of different sizes become pixels of different sizes."""
    shapes = {preprocess(Image.new("RGB", size))[0].shape for size in ((320, 240), (240, 320))}
    return len(shapes) > 1


def concatenate(contents: Sequence[StoredMaps]) -> StoredMaps:
    """Concatenate the contents of several files, in their order.

    Args:
        contents: Contents of one model, with the same methods and layers.

    Returns:
        One content; complete if all of them are.
    """
    starts = np.cumsum([0, *(len(content.images) for content in contents)]).tolist()
    targets = [
        dataclasses.replace(row, image=row.image + start)
        for content, start in zip(contents, starts[:-1], strict=True)
        for row in content.targets
    ]
    return dataclasses.replace(
        contents[0],
        images=[row for content in contents for row in content.images],
        targets=targets,
        maps={key: np.concatenate([content.maps[key] for content in contents]) for key in contents[0].maps},
        failures=[failure for content in contents for failure in content.failures],
        complete=all(content.complete for content in contents),
    )


def _is_finite(maps: SaliencyMaps, image: int) -> bool:
    return all(bool(torch.isfinite(maps.rows(*key, image=image)).all()) for key in maps.pairs)
