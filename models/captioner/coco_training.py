"""Train a captioner on photos with captions that people wrote, and score it on photos of a validation set."""

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
from .format import MAX_LENGTH, Checkpoint, write_folder
from .search import generate
from .state_dicts import FAMILIES
from .trainer import TrainingSettings, fit, prepare
from .vocabulary import Vocabulary, build_vocabulary, encode_captions, tokenize

__all__ = [
    "PREPROCESSING",
    "CaptionDataset",
    "CaptionTask",
    "PhotoReport",
    "split_photos",
    "train",
    "vocabulary_with_unk",
]

PREPROCESSING = Preprocessing()

_ATTENTION_FAMILIES = ("att2in2", "soft attention")
_MAX_WORDS = MAX_LENGTH - 1  # END is a token too
_PROBE_SIZE = 64
_MAX_EXAMPLES = 3
_UNREADABLE = "photos that cannot be read"


@dataclass(frozen=True)
class CaptionTask(TrainingSettings):
    """All settings that a training must be resumed with.

    Args:
        epochs: see `TrainingSettings`, as for the other inherited settings.
        family: of the decoder, a key of `state_dicts.FAMILIES`.
        encoder: "timm/NAME", "torchvision/NAME" or a file of ResNet weights.
        pretrained: whether a named encoder gets its pretrained weights.
        threshold: words that occur less often become UNK.
        length: captions are truncated to this number of words.
        batch_size: photos per step.
        embed: the size of a word embedding.
        size: the size of the decoder's hidden state.
        attention: the hidden size of the decoder's attention.
        photos: a digest of the photos' names, captions and splits.
    """

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


@dataclass(frozen=True)
class PhotoReport:
    """The result of a training.

    Args:
        epochs: the number of finished epochs.
        losses: the validation loss of each epoch.
        photos: the number of photos of the training set.
        held_out: the number of photos of the validation set.
        captions: the number of captions of the training set.
        words: the number of words of the vocabulary, UNK included.
        left_out: how often each reason to leave something out occurred; photos of the test split do not count.
        bleu: BLEU-1 to BLEU-4 of the validation set, from 0 to 1.
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
        left_out = "; ".join(f"{reason}: {count}" for reason, count in self.left_out.items()) or "nothing"
        return (
            f"{self.epochs} epochs of {self.photos} photos with {self.captions} captions, {self.words} words; the loss"
            f" of a word on {self.held_out} held-out photos fell to {min(self.losses):.3f}, and the captions of these"
            f" have {scores}. Left out: {left_out}."
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
    """Train a captioner on photos with captions, and write it into a folder (`format.write_folder`).

    An epoch takes one random caption of each photo. A photo that cannot be read is left out, with one GradlightWarning
    at the end. Until the end the folder has the state of the training; a training that was stopped resumes from its
    last epoch.

    Args:
        folder: of the captioner.
        captions: the file of captions (`data.datasets.captions.read_captions`).
        images: the folder of the photos.
        family: of the decoder, a key of `state_dicts.FAMILIES`.
        encoder: "timm/NAME", "torchvision/NAME" or a file of ResNet weights.
        pretrained: whether a named encoder gets its pretrained weights.
        threshold: words that occur less often in the training captions become UNK.
        length: captions are truncated to this number of words.
        embed: the size of a word embedding.
        size: the size of the decoder's hidden state.
        attention: the hidden size of the decoder's attention.
        epochs: the maximal number of epochs.
        batch_size: photos per step.
        rate: the highest learning rate of the decoder.
        encoder_rate: the highest learning rate of the encoder; 0 freezes it.
        workers: the number of processes that read photos; 0: this process.
        seed: of the weights, the dropout, and the order of the photos.
        held_out: the fraction of the photos without a split that go into the validation set, if the file puts none into
            "val". Photos of the splits "train" and "val" stay there, and those of "test" are not used.
        progress: whether a progress bar is shown.

    Returns:
        What was trained on, the validation losses, and the BLEU scores.

    Raises:
        GradlightError: for settings, files and networks that cannot be used.
    """
    encoder_name = os.fspath(encoder)
    dataset = read_captions(captions, images)
    training, validation = split_photos(dataset.photos, held_out, seed)
    task = CaptionTask(
        epochs=epochs,
        rate=rate,
        encoder_rate=encoder_rate,
        seed=seed,
        family=family,
        encoder=encoder_name,
        pretrained=pretrained,
        threshold=threshold,
        length=length,
        batch_size=batch_size,
        embed=embed,
        size=size,
        attention=attention,
        photos=_digest(training, validation),
    )
    _check_task(task, workers)
    batches = CaptionDataset(training, validation, vocabulary_with_unk(training, threshold), task, workers)
    state_path = prepare(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        encoder_network, plan = build_encoder(encoder_name, pretrained)
        network = CaptionNetwork(encoder_network, _make_decoder(task, encoder_network, batches.vocabulary))
        network.to(device).to(memory_format=torch.channels_last)
        steps = -(-len(training) // batch_size)
        done = fit(network, batches.training_batches, steps, batches.validation_batches, task, state_path, progress)
    scores = batches.score(network)
    left_out = {**dataset.left_out, **({_UNREADABLE: len(batches.unreadable)} if batches.unreadable else {})}
    caption_count = sum(len(photo.captions) for photo in training)
    facts = {"trained on": f"{len(training)} photos", "settings": asdict(task), "losses": done.losses, "BLEU": scores}
    write_folder(folder, _make_checkpoint(network, task, plan, batches.vocabulary), facts)
    state_path.unlink()
    _warn_of_left_out(left_out, [*batches.unreadable.values(), *dataset.missing])
    counts = len(training), len(validation), caption_count, len(batches.vocabulary)
    return PhotoReport(len(done.losses), done.losses, *counts, left_out, scores)


# --- The photos in batches


class _PhotoPixels(Dataset[tuple[int, Tensor | str]]):
    """Photos by their row: the pixels, or why the photo cannot be read."""

    def __init__(self, photos: Sequence[CaptionedPhoto]) -> None:
        self.paths = [str(photo.path) for photo in photos]

    def __getitem__(self, row: int) -> tuple[int, Tensor | str]:
        try:
            return row, PREPROCESSING(load(self.paths[row]))[0]
        except (GradlightError, OSError, MemoryError) as error:
            return row, str(error) or type(error).__name__


_PixelBatch = tuple[list[int], Tensor, dict[int, str]]
"""The rows of the readable photos, their pixels, and the rows of the others with the reason."""


def _collate(items: list[tuple[int, Tensor | str]]) -> _PixelBatch:
    readable = [(row, pixels) for row, pixels in items if isinstance(pixels, Tensor)]
    stacked = torch.stack([pixels for _, pixels in readable]) if readable else torch.empty(0)
    return [row for row, _ in readable], stacked, {row: reason for row, reason in items if isinstance(reason, str)}


class CaptionDataset:
    """The training set and the validation set, in batches of pixels and tokens.

    Args:
        training: the photos of the training set.
        validation: the photos of the validation set.
        vocabulary: numbers the words.
        task: the settings.
        workers: the number of processes that read photos; 0: this process.
    """

    def __init__(
        self,
        training: Sequence[CaptionedPhoto],
        validation: Sequence[CaptionedPhoto],
        vocabulary: Vocabulary,
        task: CaptionTask,
        workers: int,
    ) -> None:
        self.photos, self.training_count = [*training, *validation], len(training)
        self.vocabulary, self.task = vocabulary, task
        self.unreadable: dict[int, str] = {}
        self._batch_rows: list[list[int]] = []
        self._loader = DataLoader(
            _PhotoPixels(self.photos),
            batch_sampler=self._batch_rows,
            num_workers=workers,
            collate_fn=_collate,
            persistent_workers=workers > 0,
            multiprocessing_context="spawn" if workers else None,
            generator=torch.Generator(),  # else it would draw from the random numbers of dropout
        )

    def training_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield an epoch's batches in a random order, with one random caption of each photo."""
        random = torch.Generator().manual_seed(self.task.seed * 1_000_003 + epoch)
        order = torch.randperm(self.training_count, generator=random).tolist()
        choices = torch.rand(self.training_count, generator=random, dtype=torch.float64).tolist()
        for rows, pixels in self._read(order):
            captions = [self.photos[row].captions for row in rows]
            chosen = [texts[int(choices[row] * len(texts))] for row, texts in zip(rows, captions, strict=True)]
            yield pixels, self._encode(chosen)

    def validation_batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the photos of the validation set with their first captions; every epoch has the same."""
        for rows, pixels in self._read_validation():
            yield pixels, self._encode([self.photos[row].captions[0] for row in rows])

    def score(self, network: CaptionNetwork) -> dict[str, float]:
        """Compute the BLEU of greedy captions of the validation set against all captions that people wrote."""
        device = next(network.parameters()).device
        references: list[list[list[str]]] = []
        hypotheses: list[list[str]] = []
        with preserved(network), torch.no_grad():
            for rows, pixels in self._read_validation():
                generated = generate(network.decoder, network.features(pixels.to(device)))
                hypotheses += [self.vocabulary.decode(tokens) for tokens, _ in generated]
                references += [[tokenize(text) for text in self.photos[row].captions] for row in rows]
        return bleu(references, hypotheses)

    def _read_validation(self) -> Iterator[tuple[list[int], Tensor]]:
        return self._read(list(range(self.training_count, len(self.photos))))

    def _read(self, rows: list[int]) -> Iterator[tuple[list[int], Tensor]]:
        """Read photos batch by batch, without those that cannot be read."""
        size = self.task.batch_size
        # The loader iterates over this very list, so that its workers live on from epoch to epoch.
        self._batch_rows[:] = [rows[start : start + size] for start in range(0, len(rows), size)]
        any_readable = False
        for readable, pixels, reasons in self._loader:
            self.unreadable.update(reasons)
            if readable:
                any_readable = True
                yield readable, pixels
        if not any_readable:
            side = "training" if rows[0] < self.training_count else "held-out"
            raise GradlightError(
                f"None of the {len(rows)} {side} photos can be read, such as: {self.unreadable[rows[0]]}"
            )

    def _encode(self, texts: list[str]) -> Tensor:
        """Encode captions as tokens [B,T], as long as the longest."""
        tokens = encode_captions(self.vocabulary, [tokenize(text) for text in texts], self.task.length)
        return tokens[:, : int((tokens >= 0).sum(1).max())]


def split_photos(
    photos: Sequence[CaptionedPhoto], share: float, seed: int
) -> tuple[list[CaptionedPhoto], list[CaptionedPhoto]]:
    """Split photos into a training set and a validation set, with at least one photo each.

    Args:
        photos: with their splits "train", "val", "test" or "".
        share: the fraction of the photos without a split that goes into the validation set.
        seed: of the random choice.

    Returns:
        The two sets.

    Raises:
        GradlightError: for a share outside 0 … 1, and if one of the sets would be empty.
    """
    if not 0 < share < 1:
        raise GradlightError(f"held_out={share} is no share of the photos; give one between 0 and 1, such as 0.1.")
    training, validation, free = ([photo for photo in photos if photo.split == name] for name in ("train", "val", ""))
    if not validation and not free:
        training, free = [], training
    order = torch.randperm(len(free), generator=torch.Generator().manual_seed(seed)).tolist()
    count = min(max(round(share * len(free)), 0 if validation else 1), len(free) if training else len(free) - 1)
    chosen = set(order[: max(count, 0)])
    training += [photo for row, photo in enumerate(free) if row not in chosen]
    validation += [photo for row, photo in enumerate(free) if row in chosen]
    if not training or not validation:
        raise GradlightError(
            f"Of {len(photos)} photos, {len(training)} are for training and {len(validation)} for validation; there"
            " must be at least one of each. Give more photos, or a file with other splits."
        )
    return training, validation


def vocabulary_with_unk(photos: Sequence[CaptionedPhoto], threshold: int) -> Vocabulary:
    """Build the vocabulary of photos' captions, always with UNK: the validation captions can have other words."""
    vocabulary = build_vocabulary((text for photo in photos for text in photo.captions), threshold)
    if vocabulary.special_tokens.unk is not None:
        return vocabulary
    unk, special_tokens = len(vocabulary) + 1, vocabulary.special_tokens
    return Vocabulary({**vocabulary.words, unk: "UNK"}, SpecialTokens(special_tokens.bos, special_tokens.end, unk))


# --- The steps of a training


def _digest(*sets: Sequence[CaptionedPhoto]) -> str:
    content = [[(photo.path.name, photo.captions) for photo in photos] for photos in sets]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _check_task(task: CaptionTask, workers: int) -> None:
    """Raise GradlightError, before the long work, for settings that would fail in it."""
    if task.family not in FAMILIES:
        near = nearest(task.family, FAMILIES)
        raise GradlightError(f"No decoder is called {task.family!r}.{near} Known: {', '.join(FAMILIES)}.")
    numbers = {name: value for name, value in asdict(task).items() if type(value) is int and name != "seed"}
    if too_low := [f"{name}={value}" for name, value in numbers.items() if value < 1]:
        raise GradlightError(f"{', '.join(too_low)}: each of these must be 1 or more.")
    if workers < 0 or task.length > _MAX_WORDS or task.rate <= 0 or task.encoder_rate < 0:
        raise GradlightError(
            f"workers={workers}, length={task.length}, rate={task.rate} and encoder_rate={task.encoder_rate} make no"
            f" training: length must be at most {_MAX_WORDS}, rate above 0, and the others not below 0."
        )


def _make_decoder(task: CaptionTask, encoder: nn.Module, vocabulary: Vocabulary) -> Decoder:
    """Make an untrained decoder for an encoder's features."""
    with preserved(encoder), torch.no_grad():
        width = encoder(torch.zeros(1, 3, _PROBE_SIZE, _PROBE_SIZE)).shape[1]
    words = len(vocabulary) + 1
    sizes = {"embed": task.embed, "size": task.size, "rows": words, "columns": words}
    if task.family in _ATTENTION_FAMILIES:
        sizes |= {"location_features": width, "attention": task.attention}
    else:
        sizes["features"] = width
    # The search counts END as a token; the length of the training captions does not.
    return FAMILIES[task.family].make(vocabulary.special_tokens, **sizes, max_length=task.length + 1)


def _make_checkpoint(
    network: CaptionNetwork, task: CaptionTask, plan: ResNetPlan, vocabulary: Vocabulary
) -> Checkpoint:
    return Checkpoint(
        family=task.family,
        project="gradlight",
        decoder=network.decoder,
        vocabulary=vocabulary,
        encoder_state=network.encoder.state_dict(),
        plan=plan,
        pooling=network.pooling,
        preprocessing=PREPROCESSING,
    )


def _warn_of_left_out(left_out: dict[str, int], examples: Sequence[str]) -> None:
    if left_out:
        reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
        such_as = f" Such as: {'; '.join(examples[:_MAX_EXAMPLES])}" if examples else ""
        warnings.warn(f"Left out of the training: {reasons}.{such_as}", GradlightWarning, stacklevel=3)
