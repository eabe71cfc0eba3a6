"""Photos read ahead of the network, in processes of their own; one that cannot be read becomes a reason."""

from __future__ import annotations

import signal
import sys
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import GradlightError
from ..models.base import Photo
from ..models.preprocessing import Preprocess
from ..models.reading import read_images
from .items import Item

__all__ = ["Loaded", "load_batches"]


@dataclass(frozen=True)
class Loaded:
    """One image of a batch: its pixels [3,H,W] and photo, or why it has none."""

    item: Item
    pixels: Tensor | None
    photo: Photo | None
    reason: str = ""


class _Batches(Dataset[list[Loaded]]):
    """Batches of items, read when they are asked for."""

    def __init__(self, batches: Sequence[Sequence[Item]], preprocess: Preprocess) -> None:
        self.batches, self.preprocess = batches, preprocess

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> list[Loaded]:
        return [self._read(item) for item in self.batches[number]]

    def _read(self, item: Item) -> Loaded:
        try:
            pixels, (photo,) = read_images([item.path], self.preprocess)
        except GradlightError as error:
            return Loaded(item, None, None, str(error))
        return Loaded(item, pixels[0], photo)


def load_batches(
    batches: Sequence[Sequence[Item]], preprocess: Preprocess, readers: int
) -> Generator[list[Loaded], None, None]:
    """Read batches in their order; readers: processes that read ahead, 0 for none."""
    count = min(readers, len(batches))
    yield from DataLoader(
        _Batches(batches, preprocess),
        batch_size=None,
        num_workers=count,
        worker_init_fn=_keep_out_of_signals,
        multiprocessing_context=_start_method() if count else None,
    )


def _start_method() -> str | None:
    """Fork on Linux, also from a process that was itself spawned: a fresh start imports torch, for seconds a shard."""
    return "fork" if sys.platform == "linux" else None


def _keep_out_of_signals(_: int) -> None:
    """Leave the signals of the group to the process that writes; it ends its readers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
