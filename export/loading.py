"""Photos read ahead of the network, in processes of their own; one that cannot be read becomes a reason."""

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

__all__ = ["Loaded", "PhotoLoading"]


@dataclass(frozen=True)
class Loaded:
    """One image of a batch: its pixels [3,H,W] and photo, or why it has none."""

    item: Item
    pixels: Tensor | None
    photo: Photo | None
    reason: str = ""


class _PhotoDataset(Dataset[list[Loaded]]):
    """Reads the batch that is handed to it in place of a number."""

    def __init__(self, preprocess: Preprocess) -> None:
        self.preprocess = preprocess

    def __getitem__(self, batch: Any) -> list[Loaded]:
        return [self._read(item) for item in batch]

    def _read(self, item: Item) -> Loaded:
        try:
            pixels, (photo,) = read_images([item.path], self.preprocess)
        except GradlightError as error:
            return Loaded(item, None, None, str(error))
        return Loaded(item, pixels[0], photo)


class _Waiting(Sampler[Any]):
    """The batches that wait to be read, without an end; an empty one where none waits."""

    def __init__(self) -> None:
        self.batches: deque[Sequence[Item]] = deque()

    def __iter__(self) -> Iterator[Any]:
        while True:
            yield self.batches.popleft() if self.batches else ()


class PhotoLoading:
    """Reads batches ahead, shard after shard, with the same processes; readers: how many, 0 for none.

    They are started early and stay: after a fork every page of memory that is written to is copied first, and a
    network writes to all of its activations.
    """

    def __init__(self, preprocess: Preprocess, readers: int) -> None:
        self._waiting = _Waiting()
        self._loaded: Iterator[list[Loaded]] | None = iter(
            DataLoader(
                _PhotoDataset(preprocess),
                sampler=self._waiting,
                batch_size=None,
                num_workers=readers,
                worker_init_fn=_keep_out_of_signals,
                multiprocessing_context=_start_method() if readers else None,
            )
        )

    def batches(self, batches: Sequence[Sequence[Item]]) -> Iterator[list[Loaded]]:
        """Read batches, in their order; those of a call before must have been taken."""
        self._waiting.batches.extend(batches)
        left = len(batches)
        while left and self._loaded is not None:
            if found := next(self._loaded):
                left -= 1
                yield found

    def close(self) -> None:
        """End the processes."""
        self._loaded = None


def _start_method() -> str | None:
    """Fork on Linux, also from a process that was itself spawned: a fresh start imports torch."""
    return "fork" if sys.platform == "linux" else None


def _keep_out_of_signals(_: int) -> None:
    """Leave the signals of the group to the process that writes; it ends its readers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
