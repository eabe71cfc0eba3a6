"""A captioner of photos: trained on captions that people wrote, and held against those of other photos.

What a captioner of photos learns from: batches of photos with their captions, an epoch at a time.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from ...data.datasets.captions import CaptionedPhoto, read_captions
from ...data.images import load
from ...errors import GradlightError, GradlightWarning, nearest
from ..checkpoints import PathLike
from ..preprocessing import Preprocessing
from ..preserve import preserved
from .bleu import bleu
from .checkpoints import build_encoder
from .decoder import Decoder, SpecialTokens
from .encoder import CaptionNetwork, ResNetPlan
from .format import Checkpoint, write_folder
from .search import generate
from .state_dicts import FAMILIES
from .trainer import TrainingSettings, fit, prepare
from .vocabulary import Vocabulary, build_vocabulary, encode_captions, tokenize

__all__ = ["PREPROCESSING", "CaptionTask", "CaptionTrainingSet", "PhotoReport", "split", "train", "vocabulary_of"]

PREPROCESSING = Preprocessing()


@dataclass(frozen=True)
class CaptionTask(TrainingSettings):
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


class CaptionTrainingSet:
    """What is to be learnt, and what is asked; unread: the photos that could not be read, and why."""

    def __init__(
        self,
        training: Sequence[CaptionedPhoto],
        held: Sequence[CaptionedPhoto],
        vocabulary: Vocabulary,
        task: CaptionTask,
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
                found = generate(network.decoder, network.features(pixels.to(device)))
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
    return Vocabulary({**found.words, unk: "UNK"}, SpecialTokens(found.specials.bos, found.specials.end, unk))


_ATTENTIVE = ("att2in2", "soft attention")
_LONGEST = 999
_PROBE = 64
_LISTED = 3
_UNREADABLE = "photos that cannot be read"


@dataclass(frozen=True)
class PhotoReport:
    """What a training did: how much it saw, the held-out loss of each epoch, and BLEU-1 to BLEU-4 (0 to 1).

    photos and captions: to train on. held_out: photos to validate and score with. words: of the vocabulary, UNK too.
    left_out: how often each reason to leave something out was met; test photos are none.
    """

    epochs: int
    losses: list[float]
    photos: int
    held_out: int
    captions: int
    words: int
    left_out: dict[str, int]
    bleu: dict[str, float]

    def __str__(self) -> str:
        scores = ", ".join(f"{name} {score:.3f}" for name, score in self.bleu.items())
        gone = "; ".join(f"{reason}: {count}" for reason, count in self.left_out.items()) or "nothing"
        return (
            f"{self.epochs} epochs of {self.photos} photos with {self.captions} captions, {self.words} words; the loss"
            f" of a word on {self.held_out} held-out photos fell to {min(self.losses):.3f}, and the captions of these"
            f" have {scores}. Left out: {gone}."
        )


def train(
    folder: Path,
    captions: PathLike,
    images: PathLike,
    *,
    family: str = "att2in2",
    encoder: PathLike = "torchvision/resnet101",
    pretrained: bool = True,
    threshold: int = 5,
    length: int = 16,
    embed: int = 512,
    size: int = 512,
    attention: int = 512,
    epochs: int = 10,
    batch_size: int = 16,
    rate: float = 5e-4,
    encoder_rate: float = 0.0,
    workers: int = 2,
    seed: int = 0,
    held_out: float = 0.1,
    progress: bool = False,
) -> PhotoReport:
    """Train a captioner on photos with captions and write it into a folder, as `files.write_folder` does.

    captions, images: see `data.captions.read_captions`. Photos that the file puts into "train" and "val" stay there,
    those of "test" are not used; of those without a split, or if none is in "val", the share `held_out` validates.
    encoder: "timm/NAME", "torchvision/NAME" or a file of ResNet weights; encoder_rate 0 freezes it. Words that are
    rarer than `threshold` in the training captions become UNK; captions are cut behind `length` words.

    An epoch takes one caption of each photo, by chance. A photo that cannot be read is left out, with one
    GradlightWarning at the end. The state of the training lies in the folder until the end, and a training that was
    stopped goes on from its last epoch. Raises GradlightError for settings, files and networks that it cannot use.
    """
    name = os.fspath(encoder)
    read = read_captions(captions, images)
    training, held = split(read.photos, held_out, seed)
    task = CaptionTask(
        epochs=epochs,
        rate=rate,
        encoder_rate=encoder_rate,
        seed=seed,
        family=family,
        encoder=name,
        pretrained=pretrained,
        threshold=threshold,
        length=length,
        batch_size=batch_size,
        embed=embed,
        size=size,
        attention=attention,
        photos=_digest(training, held),
    )
    _check(task, workers)
    course = CaptionTrainingSet(training, held, vocabulary_of(training, threshold), task, workers)
    keep = prepare(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        eye, plan = build_encoder(name, pretrained)
        network = CaptionNetwork(eye, _decoder(task, eye, course.vocabulary))
        network.to(device).to(memory_format=torch.channels_last)
        steps = -(-len(training) // batch_size)
        done = fit(network, course.lessons, steps, course.exams, task, keep, progress)
    scores = course.score(network)
    left_out = {**read.left_out, **({_UNREADABLE: len(course.unread)} if course.unread else {})}
    written = sum(len(photo.captions) for photo in training)
    facts = {"trained on": f"{len(training)} photos", "settings": asdict(task), "losses": done.losses, "BLEU": scores}
    write_folder(folder, _checkpoint_of(network, task, plan, course.vocabulary), facts)
    keep.unlink()
    _warn_of(left_out, [*course.unread.values(), *read.missing])
    counts = len(training), len(held), written, len(course.vocabulary)
    return PhotoReport(len(done.losses), done.losses, *counts, left_out, scores)


def _digest(*parts: Sequence[CaptionedPhoto]) -> str:
    known = [[(photo.path.name, photo.captions) for photo in part] for part in parts]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _check(task: CaptionTask, workers: int) -> None:
    """Refuse, before the long work, what would fail in it."""
    if task.family not in FAMILIES:
        near = nearest(task.family, FAMILIES)
        raise GradlightError(f"No decoder is called {task.family!r}.{near} Known: {', '.join(FAMILIES)}.")
    numbers = {name: value for name, value in asdict(task).items() if type(value) is int and name != "seed"}
    if low := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
        raise GradlightError(f"{', '.join(low)}: each of these must be 1 or more.")
    if workers < 0 or task.length > _LONGEST or task.rate <= 0 or task.encoder_rate < 0:
        raise GradlightError(
            f"workers={workers}, length={task.length}, rate={task.rate} and encoder_rate={task.encoder_rate} make no"
            f" training: a length is at most {_LONGEST}, a rate above 0, the others are not below 0."
        )


def _decoder(task: CaptionTask, eye: nn.Module, vocabulary: Vocabulary) -> Decoder:
    with preserved(eye), torch.no_grad():
        width = eye(torch.zeros(1, 3, _PROBE, _PROBE)).shape[1]
    words = len(vocabulary) + 1
    sizes = {"embed": task.embed, "size": task.size, "rows": words, "columns": words}
    reads = {"places": width, "attention": task.attention} if task.family in _ATTENTIVE else {"features": width}
    # END counts as a token of what is said, and not as a word of what is learnt.
    return FAMILIES[task.family].make(vocabulary.specials, **sizes, **reads, max_length=task.length + 1)


def _checkpoint_of(network: CaptionNetwork, task: CaptionTask, plan: ResNetPlan, vocabulary: Vocabulary) -> Checkpoint:
    return Checkpoint(
        family=task.family,
        project="gradlight",
        decoder=network.decoder,
        vocabulary=vocabulary,
        encoder_state=network.encoder.state_dict(),
        plan=plan,
        reading=network.reading,
        preprocessing=PREPROCESSING,
    )


def _warn_of(left_out: dict[str, int], examples: Sequence[str]) -> None:
    if left_out:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
        such = f" Such as: {'; '.join(examples[:_LISTED])}" if examples else ""
        warnings.warn(f"Left out of the training: {reasons}.{such}", GradlightWarning, stacklevel=3)
