"""The cache of `explain(cache=…)`: a runner that wraps `BatchRunner` and makes only maps that no entry holds yet.

One entry holds all maps of one image and objective under one setting (weights, pixels, meta step …), each under its
method and layer, so that any of them are found again in one small file. Where a map is missing, every map that is asked
of that image is made again and stored beside those of the entry, which stay as they are, bit for bit.

A photo whose file was read before, for the same network, is not decoded again: the checksum of its pixels is known.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .. import __version__
from ..errors import GradlightError, GradlightWarning
from ..models.base import Explainable, Photo, View
from ..models.fingerprint import file_sha256, fingerprint, objective_sha256, pixels_sha256, value_sha256
from ..models.objective import Objective, Target
from .batch import BatchMaps, BatchRunner, ImageBatch, MapLayers, Runner
from .cache_store import KEPT, Cache, Entry, open_cache

__all__ = ["CacheLike", "CachedRunner", "CheckedBatch", "PhotoReader", "with_cache"]

CacheLike = bool | str | Path | Cache | None
"""None or False: no cache. True: the user's own; a folder's path; or a Cache, which may have another bound."""

_VERSION = 2
# Decided by the weights or the pixels, or not settled before the network has run.
_NOT_IN_KEY = frozenset({"name", "checkpoint", "pretrained", "num_classes", "answer", "preprocessing"})


def with_cache(runner: BatchRunner, cache: bool | str | Path | Cache) -> Runner:
    """Wrap a runner in a cache.

    Args:
        runner: What makes the maps that the cache does not hold.
        cache: True, a folder, or a Cache.

    Returns:
        The wrapped runner; the runner itself, with a warning, for a network that cannot be described.

    Raises:
        GradlightError: `cache` is not a cache.
    """
    folder = open_cache(cache)
    try:
        return CachedRunner(runner, folder)
    # Any object inside a user's network may refuse to be described, in its own way.
    except Exception as error:
        warnings.warn(f"The cache is not used: {error}", GradlightWarning, stacklevel=3)
        return runner


# --- photos that were read before


class CheckedBatch(ImageBatch):
    """A batch that is known by the checksums of its pixels, and holds the pixels only if they were needed.

    Args:
        images: What the batch was read from.
        photos: One record per image.
        checksums: Of the pixels of each image.
        size: Height and width of the pixels.
        pixels: [B,3,H,W], or None where they were not decoded.
    """

    def __init__(
        self, images: Any, photos: Sequence[Photo], checksums: list[str], size: tuple[int, int], pixels: Tensor | None
    ) -> None:
        self.images, self.photos, self.checksums = images, list(photos), checksums
        self._size, self._decoded = size, pixels

    @classmethod
    def of(cls, images: Any, pixels: Tensor, photos: Sequence[Photo]) -> CheckedBatch:
        """Make a batch of decoded pixels [B,3,H,W]."""
        size = pixels.shape[2], pixels.shape[3]
        return cls(images, photos, [pixels_sha256(each) for each in pixels], size, pixels)

    @property
    def is_decoded(self) -> bool:
        """Whether the pixels are at hand."""
        return self._decoded is not None

    @property
    def pixels(self) -> Tensor:
        """Pixels [B,3,H,W] of the images. Raises GradlightError where they were not decoded."""
        if self._decoded is None:
            raise GradlightError("The pixels of this batch were not needed and have not been decoded.")
        return self._decoded

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self._size

    def replace(self, batch: CheckedBatch) -> None:
        """Take over the photos and pixels of the same images, decoded."""
        self.photos, self.checksums, self._size, self._decoded = batch.photos, batch.checksums, batch.size, batch.pixels


@dataclass(frozen=True)
class _DecodedPhoto:
    """What is known of a photo that was preprocessed once: its size, its view, and the checksum of its pixels."""

    width: int
    height: int
    view: View
    pixels: str


_decoded_photos: WeakKeyDictionary[Explainable, OrderedDict[str, _DecodedPhoto]] = WeakKeyDictionary()
_MAX_PHOTOS = 4096


class PhotoReader:
    """Reads batches of images, and decodes only photos whose file was not read before, for this network.

    Args:
        model: Whose preprocessing makes the pixels.
        network: Checksum of the network, for its dtype and device are those of the pixels.
    """

    def __init__(self, model: Explainable, network: str) -> None:
        self._model = model
        steps = model.preprocess.to_json()
        # A user's own function may return something else each time, so its pixels are made each time.
        self._steps = None if "callable" in steps else json.dumps([network, steps], sort_keys=True)

    def read(self, images: Any) -> CheckedBatch:
        """Read some images of what `as_list` returns. Raises GradlightError as `Explainable.read` does."""
        return self._remembered(images) or self.decode(images)

    def decode(self, images: Any) -> CheckedBatch:
        """Read images with their pixels."""
        batch = CheckedBatch.of(images, *self._model.read(images))
        memory = _decoded_photos.setdefault(self._model, OrderedDict())
        for photo, checksum in zip(batch.photos, batch.checksums, strict=True):
            if photo.path and self._steps is not None:
                memory[photo.sha256 + self._steps] = _DecodedPhoto(photo.width, photo.height, photo.view, checksum)
        while len(memory) > _MAX_PHOTOS:
            memory.popitem(last=False)
        return batch

    def _remembered(self, images: Any) -> CheckedBatch | None:
        """Make a batch without pixels, if every image is the path of a file whose content was read before."""
        memory = _decoded_photos.get(self._model)
        if not memory or self._steps is None or not all(isinstance(image, (str, Path)) for image in images):
            return None
        photos, decoded = [], []
        for image in images:
            try:
                checksum = file_sha256(image)
            except GradlightError:
                return None  # not a file, such as the name of a scene; an error is raised by what reads the images
            entry = memory.get(checksum + self._steps)
            if entry is None:
                return None
            photos.append(Photo(os.fspath(image), checksum, entry.width, entry.height, entry.view))
            decoded.append(entry)
        if len({entry.view.size for entry in decoded}) != 1:
            return None
        return CheckedBatch(images, photos, [entry.pixels for entry in decoded], decoded[0].view.size, None)


# --- maps that were made before


@dataclass
class _CacheHit:
    """What the cache holds of one image: its key, the entry, its targets, and its maps if all that are asked."""

    key: str
    entry: Entry | None = None
    targets: list[Target] | None = None
    maps: dict[tuple[str, str], Tensor] | None = None


class CachedRunner:
    """Runs batches as the runner that it wraps, and answers from a cache what it holds.

    Args:
        runner: What makes the maps that the cache does not hold.
        cache: Where maps are kept.

    Raises:
        GradlightError: The network or a method cannot be described.
    """

    def __init__(self, runner: BatchRunner, cache: Cache) -> None:
        self._runner, self.cache = runner, cache
        model, meta = runner.model, runner.meta
        self._weights, network = fingerprint(model.network)
        self._methods = {method.name: f"{method.name} {_method_sha256(method)}" for method in runner.methods}
        self._device = next((p.device for p in model.network.parameters()), torch.device("cpu"))
        self._setting = {
            "version": [_VERSION, __version__, torch.__version__],
            "network": network,
            "model": {name: value for name, value in model.describe().items() if name not in _NOT_IN_KEY},
            "meta": None if meta is None else meta.describe(),
            "arithmetic": [*_arithmetic(self._device.type), repr(runner.precision)],
        }
        self._reader = PhotoReader(model, network)

    def read(self, images: Any) -> CheckedBatch:
        """Read a batch, without decoding photos that were read before."""
        return self._reader.read(images)

    def map_layers(self, size: tuple[int, int]) -> MapLayers:
        """List every (method, layer) that has maps, for pixels of a size (height, width)."""
        return self._runner.map_layers(size)

    def weights_sha256(self) -> str:
        """Return the checksum of the model's weights, as they were at the beginning of the call."""
        return self._weights

    def run(self, objective: Objective, batch: ImageBatch) -> BatchMaps:
        """Return the maps of a batch, made where the cache does not hold them; its photos are decoded if needed.

        Args:
            objective: The objective of these images.
            batch: The images, as `read` returns them.

        Returns:
            The maps [M,h,w] of every method and layer, and the targets that they explain.

        Raises:
            GradlightError: As `BatchRunner.run` does.
        """
        if not isinstance(batch, CheckedBatch):
            batch = CheckedBatch.of(None, batch.pixels, batch.photos)
        hits = self._search(batch, objective)
        missing = [number for number, hit in enumerate(hits) if hit.maps is None]
        if missing and not batch.is_decoded:
            decoded = self._reader.decode(batch.images)
            if decoded.checksums != batch.checksums:  # a file was changed in between
                hits, missing = self._search(decoded, objective), list(range(len(hits)))
            batch.replace(decoded)
        for start, stop in _stretches(missing):
            rows = objective.rows(start, stop, len(hits))
            made = self._runner.run(rows, ImageBatch(batch.photos[start:stop], batch.pixels[start:stop]))
            self._keep(hits[start:stop], made)
        maps = [hit.maps or {} for hit in hits]
        joined = {pair: torch.cat([each[pair] for each in maps]) for pair in maps[0]} if len(maps) > 1 else maps[0]
        return BatchMaps(joined, [hit.targets or [] for hit in hits])

    def _search(self, batch: CheckedBatch, objective: Objective) -> list[_CacheHit]:
        """Look every image of a batch up."""
        names = {pair: self._array_name(*pair) for pair in self.map_layers(batch.size)}
        hits: list[_CacheHit] = []
        for number, checksum in enumerate(batch.checksums):
            key = self._key(checksum, objective.rows(number, number + 1, len(batch)))
            hits.append(self._find(key, names))
        return hits

    def _key(self, pixels: str, objective: Objective) -> str:
        """Make the key of one image's maps; "" for an objective that cannot be described, whose maps are not kept."""
        try:
            return _sha256(_canonical([self._setting, pixels, objective_sha256(objective)]))
        except GradlightError as error:
            warnings.warn(f"These maps are not kept in the cache: {error}", GradlightWarning, stacklevel=5)
            return ""

    def _find(self, key: str, names: dict[tuple[str, str], str]) -> _CacheHit:
        entry = self.cache.get(key) if key else None
        if entry is None:
            return _CacheHit(key)
        try:
            targets = [_target(*row) for row in entry.facts["targets"]]
            if any(values.shape[:1] != (len(targets),) or values.ndim != 3 for values in entry.arrays.values()):
                raise ValueError("its maps are not those of its targets")
        except (KeyError, TypeError, ValueError) as error:
            self.cache.drop(key, str(error))
            return _CacheHit(key)
        if not all(name in entry.arrays for name in names.values()):
            return _CacheHit(key, entry, targets)
        maps = {pair: torch.from_numpy(entry.arrays[name]).to(self._device) for pair, name in names.items()}
        return _CacheHit(key, entry, targets, maps)

    def _keep(self, hits: Sequence[_CacheHit], made: BatchMaps) -> None:
        """Split new maps by image, prefer those that the entry holds already, and store what is new."""
        start = 0
        for hit, row in zip(hits, made.targets, strict=True):
            stop = start + len(row)
            targets = [Target(target.kind, target.index, target.label, target.score) for target in row]
            maps = {pair: values[start:stop] for pair, values in made.maps.items()}
            arrays = {self._array_name(*pair): values.detach().cpu().numpy() for pair, values in maps.items()}
            if hit.entry is not None and _identities(hit.targets or []) == _identities(targets):
                arrays = {**arrays, **hit.entry.arrays}
                targets = hit.targets or []
                maps = {
                    pair: torch.from_numpy(arrays[self._array_name(*pair)]).to(values.device)
                    for pair, values in maps.items()
                }
            hit.maps, hit.targets, start = maps, targets, stop
            rows = [[target.kind, target.index, target.label, target.score] for target in targets]
            if hit.key and all(str(array.dtype) in KEPT for array in arrays.values()):
                self.cache.put(hit.key, arrays, {"targets": rows, "setting": self._setting})

    def _array_name(self, method: str, layer: str) -> str:
        return f"{self._methods[method]} at {layer}"


def _method_sha256(method: object) -> str:
    """Hash what decides the maps of a method, its formula and its reference left out."""
    if not is_dataclass(method):
        return value_sha256(method)
    names = [each.name for each in fields(method) if each.name not in ("formula", "reference")]
    return value_sha256([type(method).__qualname__, [(name, getattr(method, name)) for name in names]])


def _stretches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Group increasing numbers into stretches start…stop (exclusive) without gaps."""
    start = 0
    for end in range(1, len(numbers) + 1):
        if end == len(numbers) or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], numbers[end - 1] + 1
            start = end


def _target(kind: Any, index: Any, label: Any, score: Any) -> Target:
    if not (isinstance(kind, str) and isinstance(label, str) and type(index) is int and type(score) is float):
        raise TypeError("its targets have fields of another type")
    return Target(kind, index, label, score)


def _identities(targets: Sequence[Target]) -> list[tuple[str, int, str]]:
    """Give what targets are, without their scores."""
    return [(target.kind, target.index, target.label) for target in targets]


def _arithmetic(device: str) -> list[str]:
    """Name what the caller has chosen of how numbers are computed, and where."""
    cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "exact"
    return [device, torch.get_float32_matmul_precision(), cast]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
