"""Photos that were read before: their pixels' checksums are known without decoding them again."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor

from ..errors import GradlightError
from ..models.base import Explainable, Photo, View
from ..models.fingerprint import file_sha256, pixels_sha256

__all__ = ["Batch", "Reader"]

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


class Reader:
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
