"""What earlier calls have found: maps that a cache still holds are not made again.

One entry holds all maps of one image and objective under one setting (weights, pixels, meta step …), each under its
method and layer, so that asking for some of them again is answered from one small file. Where a map is missing, all
that is asked of that image is made anew and put beside what was there; what was there stays as it is, bit for bit.

Photos that were read before: their pixels' checksums are known without decoding them again.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from ..models.preserve import preserved
from .batch import BatchMaps, BatchRunner
from .cache_store import KEPT, Cache, Entry, open_cache
from .meta import Meta
from .methods import AnyMethod
from .precision import Precision

__all__ = ["Afresh", "Batch", "CacheLike", "PhotoReader", "Recall", "opened"]

_MOST = 4096


@dataclass(frozen=True)
class _Seen:
    """What is known of a photo that was preprocessed once: its size, its view, and the checksum of its pixels."""

    width: int
    height: int
    view: View
    pixels: str


_seen: WeakKeyDictionary[Explainable, OrderedDict[str, _Seen]] = WeakKeyDictionary()


class Batch:
    """Some images of a call: their photos, their pixels' size and checksums, and the pixels, if they were needed."""

    def __init__(self, photos: list[Photo], checksums: list[str], size: tuple[int, int], pixels: Tensor | None) -> None:
        self.photos, self.checksums, self.size, self.pixels = photos, checksums, size, pixels

    @classmethod
    def of(cls, pixels: Tensor, photos: Sequence[Photo]) -> Batch:
        """Make a batch of pixels [B,3,H,W] that have been read."""
        return cls(list(photos), [pixels_sha256(one) for one in pixels], (pixels.shape[2], pixels.shape[3]), pixels)

    def part(self, start: int, stop: int) -> Batch:
        """Give images start…stop, whose pixels have been read."""
        return Batch(self.photos[start:stop], self.checksums[start:stop], self.size, self.held()[start:stop])

    def held(self) -> Tensor:
        """Give the pixels [B,3,H,W]. Raises GradlightError where they were never read."""
        if self.pixels is None:
            raise GradlightError("The pixels of this batch were not needed and have not been read.")
        return self.pixels


class PhotoReader:
    """Reads batches of images, and decodes only photos whose file, for this network, was not read before.

    network: the network's checksum, for its dtype and device are those of the pixels.
    """

    def __init__(self, model: Explainable, network: str) -> None:
        self._model = model
        steps = model.preprocess.to_json()
        # Somebody's own function may do another thing each time, so its pixels are made each time.
        self._steps = None if "callable" in steps else json.dumps([network, steps], sort_keys=True)

    def read(self, images: Any) -> Batch:
        """Read a batch; images: part of what `as_list` gives. Raises GradlightError as `Explainable.read` does."""
        return self._known(images) or self.decode(images)

    def decode(self, images: Any) -> Batch:
        """Read a batch with its pixels."""
        batch = Batch.of(*self._model.read(images))
        memo = _seen.setdefault(self._model, OrderedDict())
        for photo, checksum in zip(batch.photos, batch.checksums, strict=True):
            if photo.path and self._steps is not None:
                memo[photo.sha256 + self._steps] = _Seen(photo.width, photo.height, photo.view, checksum)
        while len(memo) > _MOST:
            memo.popitem(last=False)
        return batch

    def _known(self, images: Any) -> Batch | None:
        """Make a batch without pixels, if every image is the path of a file whose content was read before."""
        memo = _seen.get(self._model)
        if not memo or self._steps is None or not all(isinstance(image, (str, Path)) for image in images):
            return None
        photos, seen = [], []
        for image in images:
            try:
                checksum = file_sha256(image)
            except GradlightError:
                return None  # no file, as the name of a scene is none; what is wrong is told by who reads images
            if (one := memo.get(checksum + self._steps)) is None:
                return None
            photos.append(Photo(os.fspath(image), checksum, one.width, one.height, one.view))
            seen.append(one)
        if len({one.view.size for one in seen}) != 1:
            return None
        return Batch(photos, [one.pixels for one in seen], seen[0].view.size, None)


CacheLike = bool | str | Path | Cache | None
"""None or False: no cache. True: the user's own; a folder's path; or a Cache, which may have another bound."""

_VERSION = 1
# Said by the weights or the pixels, or not settled before the network has run.
_NO_MATTER = frozenset({"name", "checkpoint", "pretrained", "num_classes", "preprocessing"})


def opened(
    cache: CacheLike, model: Explainable, methods: Sequence[AnyMethod], meta: Meta | None, arithmetic: Precision
) -> Afresh:
    """Open the cache of a call, if there is one; a network that cannot be described does, with a warning, without."""
    if cache is None or cache is False:
        return Afresh(model)
    folder = open_cache(cache)
    try:
        return Recall(folder, model, methods, meta, arithmetic)
    # Whatever somebody's network holds may refuse, in its own way, to be looked at.
    except Exception as error:
        warnings.warn(f"The cache is not used: {error}", GradlightWarning, stacklevel=3)
        return Afresh(model)


@dataclass
class _CacheHit:
    """What the cache holds of one image: its key, the entry, its targets, and the maps if all that are asked."""

    key: str
    entry: Entry | None = None
    targets: list[Target] | None = None
    maps: dict[tuple[str, str], Tensor] | None = None


class Afresh:
    """Makes the maps of one model, set of methods and meta step, batch by batch, without a cache."""

    def __init__(self, model: Explainable) -> None:
        self._model = model

    def weights_sha256(self) -> str:
        """Give the checksum of the model's weights."""
        return self._model.weights_sha256()

    def read(self, images: Any) -> Batch:
        """Read a batch; images: part of what `as_list` gives. Raises GradlightError as `Explainable.read` does."""
        pixels, photos = self._model.read(images)
        return Batch(photos, [], (pixels.shape[2], pixels.shape[3]), pixels)

    def maps(self, images: Any, batch: Batch, objective: Objective, job: BatchRunner) -> BatchMaps:
        """Make the maps of a batch. images: what `read` made it of; objective: of these images."""
        with preserved(self._model.network):
            return job.run(objective, batch.held())


class Recall(Afresh):
    """Remembers them: gives from a cache what it holds, and keeps there what it does not.

    Raises GradlightError where something cannot be described.
    """

    def __init__(
        self,
        cache: Cache,
        model: Explainable,
        methods: Sequence[AnyMethod],
        meta: Meta | None,
        arithmetic: Precision | None = None,
    ) -> None:
        super().__init__(model)
        self.cache = cache
        self._weights, network = fingerprint(model.network)
        self._methods = {method.name: f"{method.name} {value_sha256(method)}" for method in methods}
        self._device = next((p.device for p in model.network.parameters()), torch.device("cpu"))
        self._setting = {
            "version": [_VERSION, __version__, torch.__version__],
            "network": network,
            "model": {name: value for name, value in model.describe().items() if name not in _NO_MATTER},
            "meta": None if meta is None else meta.describe(),
            "arithmetic": [*_arithmetic(self._device.type), repr(arithmetic or Precision())],
        }
        self._reader = PhotoReader(model, network)

    def weights_sha256(self) -> str:
        """Give the checksum of the model's weights, as they were at the beginning of the call."""
        return self._weights

    def read(self, images: Any) -> Batch:
        """Read a batch, without decoding photos that were read before."""
        return self._reader.read(images)

    def maps(self, images: Any, batch: Batch, objective: Objective, job: BatchRunner) -> BatchMaps:
        """Give the maps of a batch, made where the cache does not hold them; its photos are read if they must be."""
        found = self._search(batch, objective, job)
        missing = [number for number, one in enumerate(found) if one.maps is None]
        if missing and batch.pixels is None:
            read = self._reader.decode(images)
            if read.checksums != batch.checksums:  # a file was changed in between
                found, missing = self._search(read, objective, job), list(range(len(found)))
            batch.photos, batch.checksums, batch.pixels = read.photos, read.checksums, read.pixels
        for start, stop in _runs(missing):
            rows = objective.rows(start, stop, len(found))
            self._keep(found[start:stop], super().maps(images, batch.part(start, stop), rows, job))
        maps = [one.maps or {} for one in found]
        joined = {key: torch.cat([one[key] for one in maps]) for key in maps[0]} if len(maps) > 1 else maps[0]
        return BatchMaps(joined, [one.targets or [] for one in found])

    def _search(self, batch: Batch, objective: Objective, job: BatchRunner) -> list[_CacheHit]:
        names = {pair: self._name(*pair) for pair in job.places}
        count = len(batch.checksums)
        asked = [objective.rows(number, number + 1, count) for number in range(count)]
        return [self._one(self._key(*about), names) for about in zip(batch.checksums, asked, strict=True)]

    def _key(self, pixels: str, objective: Objective) -> str:
        """Make the key of one image's maps; "" for an objective that cannot be described, whose maps are not kept."""
        try:
            return _sha256(_canonical([self._setting, pixels, objective_sha256(objective)]))
        except GradlightError as error:
            warnings.warn(f"These maps are not kept in the cache: {error}", GradlightWarning, stacklevel=5)
            return ""

    def _one(self, key: str, names: dict[tuple[str, str], str]) -> _CacheHit:
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
        maps = {at: torch.from_numpy(entry.arrays[name]).to(self._device) for at, name in names.items()}
        return _CacheHit(key, entry, targets, maps)

    def _keep(self, found: Sequence[_CacheHit], made: BatchMaps) -> None:
        """Cut new maps into images, put those that are known already in their place, and store what is new."""
        start = 0
        for one, row in zip(found, made.targets, strict=True):
            stop = start + len(row)
            targets = [Target(target.kind, target.index, target.label, target.score) for target in row]
            maps = {key: values[start:stop] for key, values in made.maps.items()}
            arrays = {self._name(*key): values.detach().cpu().numpy() for key, values in maps.items()}
            if one.entry is not None and _asked(one.targets or []) == _asked(targets):
                arrays = {**arrays, **one.entry.arrays}
                targets = one.targets or []
                maps = {at: torch.from_numpy(arrays[self._name(*at)]).to(values.device) for at, values in maps.items()}
            one.maps, one.targets, start = maps, targets, stop
            rows = [[target.kind, target.index, target.label, target.score] for target in targets]
            if one.key and all(str(array.dtype) in KEPT for array in arrays.values()):
                self.cache.put(one.key, arrays, {"targets": rows, "setting": self._setting})

    def _name(self, method: str, layer: str) -> str:
        return f"{self._methods[method]} at {layer}"


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Group increasing numbers into stretches start…stop (exclusive) without gaps."""
    start = 0
    for at in range(1, len(numbers) + 1):
        if at == len(numbers) or numbers[at] != numbers[at - 1] + 1:
            yield numbers[start], numbers[at - 1] + 1
            start = at


def _target(kind: Any, index: Any, label: Any, score: Any) -> Target:
    if not (isinstance(kind, str) and isinstance(label, str) and type(index) is int and type(score) is float):
        raise TypeError("its targets are not what targets are")
    return Target(kind, index, label, score)


def _asked(targets: Sequence[Target]) -> list[tuple[str, int, str]]:
    return [(target.kind, target.index, target.label) for target in targets]


def _arithmetic(device: str) -> list[str]:
    """Name what the caller has chosen of how numbers are computed, and where."""
    cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else "exact"
    return [device, torch.get_float32_matmul_precision(), cast]


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
