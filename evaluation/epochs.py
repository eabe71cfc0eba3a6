"""A training of the scenes' network whose weights are kept after every epoch; it goes on where it was stopped."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from tqdm.auto import tqdm

from ..data.scenes import generator as scenes
from ..errors import GradlightError
from ..files import replace_file, replacing, shown
from ..models.classifiers import Classifier, classifier
from ..models.scenes.classifier import BATCH, Training, draw_in_parallel

__all__ = ["Course", "at_epoch", "kept_epochs"]

_STATE = "training.pt"


@dataclass(frozen=True)
class Course:
    """A training: passes over how many scenes, and the seed of its random numbers.

    Raises GradlightError for no epoch, or fewer scenes than the training takes at once.
    """

    epochs: int = 8
    scenes: int = 2_000
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.scenes < BATCH:
            raise GradlightError(
                f"A training takes at least 1 epoch and {BATCH} scenes; got {self.epochs} and {self.scenes}."
            )

    def weights(self, folder: Path, epoch: int) -> Path:
        """Name the file with the weights after an epoch; 0: before the first."""
        return folder / f"epoch_{epoch:03}.safetensors"


def kept_epochs(folder: Path, course: Course, workers: int = 2, progress: bool = False) -> None:
    """Train a network on scenes, and keep its weights before the first and after every epoch in a folder.

    The folder is made if it is missing. A training that was stopped, at any place, goes on after the last whole epoch
    with the same random numbers, so that its weights are those of one that was not. workers: processes that draw.
    Raises GradlightError for a folder with another training, or one that cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{shown(folder)}: cannot be made: {error.strerror}.") from error
    state = _read(folder / _STATE, course)
    done = 0 if state is None else state["epoch"]
    if done == course.epochs:
        return
    with torch.random.fork_rng(devices=[]), tqdm(total=course.epochs, unit="epoch", disable=not progress) as bar:
        torch.manual_seed(course.seed)
        training = Training(course.scenes, course.epochs)
        if state is None:
            _keep(folder, course, 0, training)
        pictures, labels = draw_in_parallel(scenes.TRAINING[: course.scenes], workers, progress=False)
        if state is not None:
            training.restore(state)
        bar.update(done)
        for epoch in range(done + 1, course.epochs + 1):
            training.epoch(pictures, labels, tqdm(disable=True))
            _keep(folder, course, epoch, training)
            bar.update()


def at_epoch(folder: Path, course: Course, epoch: int) -> Classifier:
    """Give the network as it was after an epoch."""
    return classifier("scenes", checkpoint=course.weights(folder, epoch), device="cpu")


def _keep(folder: Path, course: Course, epoch: int, training: Training) -> None:
    """Keep the weights, then the state that says they are kept; each whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in training.network.state_dict().items()}
    replace_file(course.weights(folder, epoch), save(tensors))
    with replacing(folder / _STATE) as temporary:
        torch.save({"course": asdict(course), "epoch": epoch, **training.state()}, temporary)


def _read(path: Path, course: Course) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        found = state["course"]
    # Whatever else lies there may refuse, in its own way, to be read.
    except Exception as error:
        raise GradlightError(f"{shown(path)}: not the state of a training. Name another folder.") from error
    if found != asdict(course):
        told = ", ".join(f"{name} {found.get(name)}, not {value}" for name, value in asdict(course).items())
        raise GradlightError(f"{shown(path)}: of another training ({told}). Name another folder, or ask for the same.")
    return state
