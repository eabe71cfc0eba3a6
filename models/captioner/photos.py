"""A captioner of photos: trained on captions that people wrote, and held against those of other photos."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from ...data.datasets.captions import CaptionedPhoto, read_captions
from ...errors import GradlightError, GradlightWarning, nearest
from ..checkpoints import PathLike
from ..preserve import preserved
from .decoder import Decoder
from .encoder import ResNetPlan
from .eyes import build_eye
from .families import FAMILIES
from .files import Checkpoint, write_folder
from .lessons import PREPROCESSING, Course, Task, split, vocabulary_of
from .network import CaptionNetwork
from .training import fit, prepare
from .vocabulary import Vocabulary

__all__ = ["PhotoReport", "train"]

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
    task = Task(
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
    course = Course(training, held, vocabulary_of(training, threshold), task, workers)
    keep = prepare(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if device == "cuda" else []):
        torch.manual_seed(seed)
        eye, plan = build_eye(name, pretrained)
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


def _check(task: Task, workers: int) -> None:
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


def _decoder(task: Task, eye: nn.Module, vocabulary: Vocabulary) -> Decoder:
    with preserved(eye), torch.no_grad():
        width = eye(torch.zeros(1, 3, _PROBE, _PROBE)).shape[1]
    words = len(vocabulary) + 1
    sizes = {"embed": task.embed, "size": task.size, "rows": words, "columns": words}
    reads = {"places": width, "attention": task.attention} if task.family in _ATTENTIVE else {"features": width}
    # END counts as a token of what is said, and not as a word of what is learnt.
    return FAMILIES[task.family].make(vocabulary.specials, **sizes, **reads, max_length=task.length + 1)


def _checkpoint_of(network: CaptionNetwork, task: Task, plan: ResNetPlan, vocabulary: Vocabulary) -> Checkpoint:
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
