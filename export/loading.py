"""Loading of photos ahead of the network, in separate processes; a photo that cannot be read becomes a failure."""

from __future__ import annotations

import signal
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..errors import GradlightError
from ..models.base import Photo
from ..models.images import read_images
from ..models.preprocessing import Preprocess
from .lists import Item

__all__ = ["LoadedPhoto", "PhotoLoader"]


@dataclass(frozen=True)
class LoadedPhoto:
    """One image of a batch.

    Args:
        item: The image.
        pixels: [3,H,W]; None if the image cannot be read.
        photo: The record of the photo; None if it cannot be read.
        reason: Why it cannot be read.
    """

    item: Item
    pixels: Tensor | None
    photo: Photo | None
    reason: str = ""


class _PhotoDataset(Dataset[list[LoadedPhoto]]):
    """Reads a batch of items; the batch itself is the index."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __getitem__(self, batch: Any) -> list[LoadedPhoto]:
        return [self._read(item) for item in batch]

    def _read(self, item: Item) -> LoadedPhoto:
        try:
            pixels, (photo,) = read_images([item.path], self.preprocess)
        except GradlightError as error:
            return LoadedPhoto(item, None, None, str(error))
        return LoadedPhoto(item, pixels[0], photo)


class _BatchQueue(Sampler[Any]):
    """The batches that wait to be read, without an end; an empty batch if none waits."""

    def __init__(self) -> None:
        self.batches: deque[Sequence[Item]] = deque()

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batches.popleft() if self.batches else ()


class PhotoLoader:
    """Loads batches ahead, shard after shard, with the same processes.

    The processes are started early and stay: after a fork every page of memory that is written to is copied first, and
    a network writes to all of its activations.

    Args:
        preprocess: Brings photos to pixels.
        readers: Processes; 0 reads in this one.
    """

    def __init__(self, preprocess: Preprocess, readers: int) -> None:
        self._queue = _BatchQueue()
        self._loaded: Iterator[list[LoadedPhoto]] | None = iter(
            DataLoader(
                _PhotoDataset(preprocess),
                sampler=self._queue,
                batch_size=None,
                num_workers=readers,
                worker_init_fn=_ignore_signals,
                multiprocessing_context=_start_method() if readers else None,
            )
        )

    def batches(self, batches: Sequence[Sequence[Item]]) -> Iterator[list[LoadedPhoto]]:
        """Load batches in their order; the batches of an earlier call must have been taken."""
        self._queue.batches.extend(batches)
        remaining = len(batches)
        while remaining and self._loaded is not None:
            if batch := next(self._loaded):
                remaining -= 1
                yield batch

    def close(self) -> None:
        """End the processes."""
        self._loaded = None


def _start_method() -> str | None:
    """Fork on Linux, also from a process that was itself spawned: a fresh start imports torch."""
    return "fork" if sys.platform == "linux" else None


def _ignore_signals(_: int) -> None:
    """Ignore signals to the process group; the process that writes ends its readers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
