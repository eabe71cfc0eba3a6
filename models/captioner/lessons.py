"""What a captioner of photos learns from: batches of photos with their captions, an epoch at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...data.datasets.captions import CaptionedPhoto
from ...data.images import load
from ...errors import GradlightError
from ..preprocessing import Preprocessing
from ..preserve import preserved
from .bleu import bleu
from .decoder import Specials
from .network import CaptionNetwork
from .training import Settings
from .vocabulary import Vocabulary, tokenize
from .wording import build_vocabulary, encode_captions

__all__ = ["PREPROCESSING", "Course", "Task", "split", "vocabulary_of"]

PREPROCESSING = Preprocessing()


@dataclass(frozen=True)
class Task(Settings):
    """All that a training must be begun with again to go on; photos: a digest of their names, captions and splits."""

    family: str = ""
    encoder: str = ""
    pretrained: bool = True
    threshold: int = 5
    length: int = 16
    batch_size: int = 16
    embed: int = 512
    size: int = 512
    attention: int = 512
    photos: str = ""


class _Pixels(Dataset[tuple[int, Tensor | str]]):
    """Photos by their row: the pixels, or why there are none."""

    def __init__(self, photos: Sequence[CaptionedPhoto]) -> None:
        self.paths = [str(photo.path) for photo in photos]

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, PREPROCESSING(load(self.paths[row]))[0]
        except (GradlightError, OSError, MemoryError) as error:
            return row, str(error) or type(error).__name__


_Batch = tuple[list[int], Tensor, dict[int, str]]


def _collated(items: list[tuple[int, Tensor | str]]) -> _Batch:
    good = [(row, found) for row, found in items if isinstance(found, Tensor)]
    pixels = torch.stack([found for _, found in good]) if good else torch.empty(0)
    return [row for row, _ in good], pixels, {row: found for row, found in items if isinstance(found, str)}


class Course:
    """What is to be learnt, and what is asked; unread: the photos that could not be read, and why."""

    def __init__(
        self,
        training: Sequence[CaptionedPhoto],
        held: Sequence[CaptionedPhoto],
        vocabulary: Vocabulary,
        task: Task,
        workers: int,
    ) -> None:
        self.photos, self.count, self.vocabulary, self.task = [*training, *held], len(training), vocabulary, task
        self.unread: dict[int, str] = {}
        self._rows: list[list[int]] = []
        self._loader = DataLoader(
            _Pixels(self.photos),
            batch_sampler=self._rows,
            num_workers=workers,
            collate_fn=_collated,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # else it would draw from the numbers that dropout draws from
        )

    def lessons(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give an epoch's batches in an order of its own, with one caption of each photo."""
        random = torch.Generator().manual_seed(self.task.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=random).tolist()
        lots = torch.rand(self.count, generator=random, dtype=torch.float64).tolist()
        for rows, pixels in self._read(order):
            said = [self.photos[row].captions for row in rows]
            picked = [texts[int(lots[row] * len(texts))] for row, texts in zip(rows, said, strict=True)]
            yield pixels, self._tokens(picked)

    def exams(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the held-out photos with their first captions."""
        for rows, pixels in self._held():
            yield pixels, self._tokens([self.photos[row].captions[0] for row in rows])

    def score(self, network: CaptionNetwork) -> dict[str, float]:
        """Say a greedy caption of each held-out photo and give their BLEU against all that people wrote."""
        device = next(network.parameters()).device
        written: list[list[list[str]]] = []
        said: list[list[str]] = []
        with preserved(network), torch.no_grad():
            for rows, pixels in self._held():
                found = network.decoder.generate(network.features(pixels.to(device)))
                said += [self.vocabulary.decode(tokens) for tokens, _ in found]
                written += [[tokenize(text) for text in self.photos[row].captions] for row in rows]
        return bleu(written, said)

    def _held(self) -> Iterator[tuple[list[int], Tensor]]:
        return self._read(list(range(self.count, len(self.photos))))

    def _read(self, rows: list[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Bring rows to pixels, batch by batch, without those that cannot be read."""
        size = self.task.batch_size
        # The list itself is what the loader goes through, so that its workers live on from epoch to epoch.
        self._rows[:] = [rows[start : start + size] for start in range(0, len(rows), size)]
        found = False
        for good, pixels, refused in self._loader:
            self.unread.update(refused)
            if good:
                found = True
                yield good, pixels
        if not found:
            side = "training" if rows[0] < self.count else "held-out"
            raise GradlightError(f"None of the {len(rows)} {side} photos can be read, such as: {self.unread[rows[0]]}")

    def _tokens(self, texts: list[str]) -> Tensor:
        tokens = encode_captions(self.vocabulary, [tokenize(text) for text in texts], self.task.length)
        return tokens[:, : int((tokens >= 0).sum(1).max())]


def split(
    photos: Sequence[CaptionedPhoto], share: float, seed: int
) -> tuple[list[CaptionedPhoto], list[CaptionedPhoto]]:
    """Divide photos into those to train on and those to hold out, at least one each."""
    if not 0 < share < 1:
        raise GradlightError(f"held_out={share} is no share of the photos; give one between 0 and 1, such as 0.1.")
    training, held, free = ([photo for photo in photos if photo.split == name] for name in ("train", "val", ""))
    if not held and not free:
        training, free = [], training
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(round(share * len(free)), 0 if held else 1), len(free) if training else len(free) - 1)
    chosen = set(order[: max(count, 0)])
    training += [photo for row, photo in enumerate(free) if row not in chosen]
    held += [photo for row, photo in enumerate(free) if row in chosen]
    if not training or not held:
        raise GradlightError(
            f"Of {len(photos)} photos, {len(training)} are to train on and {len(held)} to hold out; there must be one"
            " of each at least. Give more photos, or a file with other splits."
        )
    return training, held


def vocabulary_of(photos: Sequence[CaptionedPhoto], threshold: int) -> Vocabulary:
    """Make the vocabulary of the captions of photos, with UNK in any case."""
    found = build_vocabulary((text for photo in photos for text in photo.captions), threshold)
    if found.specials.unk is not None:
        return found
    # The captions of held-out photos have words of their own.
    unk = len(found) + 1
    return Vocabulary({**found.words, unk: "UNK"}, Specials(found.specials.bos, found.specials.end, unk))
