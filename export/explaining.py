"""A batch of loaded images to what a file keeps of it: maps that are sound, and reasons for the rest."""

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
from ..models.base import Explainable, Photo
from ..models.objective import Objective
from ..models.preprocessing import Preprocess
from .loading import Loaded
from .plan import ExportSettings

__all__ = ["BatchExplainer", "joined"]


class BatchExplainer:
    """Explain batch after batch with one model; what has to be found out once is kept."""

    def __init__(self, model: Explainable, settings: ExportSettings) -> None:
        self.model, self.settings = model, settings
        precision = Precision(settings.precision)
        self._runner = BatchRunner(model, methods_of(settings.methods), settings.layers, settings.meta, precision)
        self._origin: Origin | None = None
        self._varies = _sizes_vary(model.preprocess)
        if self._varies and settings.size is None:
            raise GradlightError(
                f"{model.name!r} looks at each photo in its own size, so the maps of two photos have different grids."
                " Give the size that every map is brought to, as --size 224."
            )

    def __call__(self, loaded: Sequence[Loaded]) -> StoredMaps:
        """Give the maps of the images in their order; what fails of itself or for its target becomes a failure."""
        failures = [(each.item.path, each.reason) for each in loaded if each.pixels is None]
        parts: list[StoredMaps] = []
        readable = [each for each in loaded if each.pixels is not None]
        for _, group in groupby(readable, key=lambda each: each.pixels.shape if each.pixels is not None else None):
            parts += self._explained(list(group), failures)
        return dataclasses.replace(joined([self.empty(), *parts]), failures=failures)

    def empty(self) -> StoredMaps:
        """Give what a file of no images at all keeps."""
        size = self.model.size
        layers = self._runner.map_layers(size)
        maps = {pair: torch.zeros(0, *layer.size) for pair, layer in layers.items()}
        about = {layer.name: MapLayer(layer.depth, layer.stride) for layer in layers.values()}
        return self._stored(SaliencyMaps(maps, about, [], [], size, self._made_by()))

    def _explained(self, group: list[Loaded], failures: list[tuple[str, str]]) -> list[StoredMaps]:
        try:
            maps = self._maps(group)
        except GradlightError as error:
            if len(group) == 1:
                failures.append((group[0].item.path, str(error)))
                return []
            return [part for each in group for part in self._explained([each], failures)]
        sound = [image for image in range(len(maps)) if _is_finite(maps, image)]
        for image in sorted(set(range(len(maps))) - set(sound)):
            failures.append((maps.images[image].path, "its maps are not finite (NaN or infinite)"))
        return [self._stored(maps if len(sound) == len(maps) else maps[sound])] if sound else []

    def _maps(self, group: Sequence[Loaded]) -> SaliencyMaps:
        pixels = torch.stack([each.pixels for each in group if each.pixels is not None])
        photos: list[Photo] = [each.photo for each in group if each.photo is not None]
        size = (pixels.shape[2], pixels.shape[3])
        common = self.settings.target
        objective = self._objective([each.item.targets or common for each in group])
        made = self._runner.run(objective, ImageBatch(photos, self.model.cast(pixels)))
        return assemble(self._runner.map_layers(size), [made], photos, size, self._made_by())

    def _objective(self, targets: Sequence[Sequence[str | int] | None]) -> Objective:
        rows = None if all(row is None for row in targets) else [None if row is None else list(row) for row in targets]
        return self.model.word_objective(rows) if self.settings.words else self.model.objective(rows)

    def _made_by(self) -> Origin:
        """Describe the origin once, by what is asked of images without targets of their own."""
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


def _sizes_vary(preprocess: Preprocess) -> bool:
    """Tell whether photos of different sizes become pixels of different sizes."""
    shapes = {preprocess(Image.new("RGB", size))[0].shape for size in ((320, 240), (240, 320))}
    return len(shapes) > 1


def joined(parts: Sequence[StoredMaps]) -> StoredMaps:
    """Put the contents of several files together, in their order; they have one model, methods and layers."""
    starts = np.cumsum([0, *(len(part.images) for part in parts)]).tolist()
    targets = [
        dataclasses.replace(row, image=row.image + start)
        for part, start in zip(parts, starts[:-1], strict=True)
        for row in part.targets
    ]
    return dataclasses.replace(
        parts[0],
        images=[row for part in parts for row in part.images],
        targets=targets,
        maps={key: np.concatenate([part.maps[key] for part in parts]) for key in parts[0].maps},
        failures=[failure for part in parts for failure in part.failures],
        complete=all(part.complete for part in parts),
    )


def _is_finite(maps: SaliencyMaps, image: int) -> bool:
    return all(bool(torch.isfinite(maps.rows(*key, image=image)).all()) for key in maps.pairs)
