"""The bundled classifier of generated scenes: a slim ResNet, its training, and its score on held-out scenes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from importlib.resources import files
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...data.scenes import generator as scenes
from ...errors import GradlightError
from ..preserve import preserved

__all__ = [
    "BATCH",
    "MEAN",
    "SIZE",
    "STD",
    "Report",
    "Training",
    "average_precision",
    "build",
    "bundled_path",
    "draw_in_parallel",
    "draw_many",
    "load_bundled",
    "mean_average_precision",
    "train",
]

SIZE = 160
"""Height and width of the pictures, in pixels."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""The network takes (pixels / 255 − MEAN) / STD, per channel."""

BATCH = 64
_LEARNING_RATE, _WEIGHT_DECAY = 4e-3, 0.02
_CHUNK = 250


# --- the network and its score ---


@dataclass(frozen=True)
class Report:
    """The result of a training.

    Args:
        epochs: Passes over the training scenes.
        training_scenes: Their number.
        held_out_scenes: The number of scenes that the score is of.
        mean_average_precision: The score on these.
    """

    epochs: int
    training_scenes: int
    held_out_scenes: int
    mean_average_precision: float

    def __str__(self) -> str:
        return (
            f"{self.epochs} epochs of {self.training_scenes} scenes; mean average precision"
            f" {self.mean_average_precision:.4f} on {self.held_out_scenes} held-out scenes"
        )


def build() -> nn.Module:
    """Make the untrained network: timm's ResNet, stages of 16 to 128 channels at 1/2, 1/4, 1/8 and 1/16 of the pixels.

    Returns:
        A network from pixels [B,3,160,160], normalised by MEAN and STD, to one logit per class of the scenes [B,16].

    Example:
        >>> import torch
        >>> from gradlight.models.scenes.classifier import build
        >>> build()(torch.zeros(1, 3, 160, 160)).shape
        torch.Size([1, 16])
    """
    network: Any = ResNet(
        cast(Any, BasicBlock),
        layers=(1, 1, 2, 2),
        channels=(16, 32, 64, 128),
        num_classes=len(scenes.CLASSES),
        zero_init_last=False,
    )
    # Without the first pooling every stage is twice as fine, and so are its maps.
    network.maxpool = nn.Identity()
    return cast(nn.Module, network)


def bundled_path() -> Path:
    """Give the path of the weights that come with the package.

    Returns:
        A safetensors file.
    """
    return Path(str(files("gradlight.data"))) / "bundled" / "scenes.safetensors"


def load_bundled() -> nn.Module:
    """Make the network with the weights that come with the package.

    Returns:
        The network in eval mode.
    """
    network = build()
    network.load_state_dict(load_file(bundled_path()))
    return network.eval()


def average_precision(scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> float:
    """Average, over the positives, the precision at the threshold that just accepts each one (no interpolation).

    Equal scores are accepted together, so the order of the rows makes no difference.

    Args:
        scores: [N].
        present: [N], whether each is a positive.

    Returns:
        The average precision; NaN if there are no positives.

    Example:
        >>> import numpy as np
        >>> from gradlight.models.scenes.classifier import average_precision
        >>> average_precision(np.array([3.0, 2.0, 1.0, 0.0]), np.array([True, False, False, True]))
        0.75
    """
    positives = scores[present]
    if not len(positives):
        return float("nan")
    accepted_positives, accepted = (
        len(s) - np.searchsorted(np.sort(s), positives, side="left") for s in (positives, scores)
    )
    return float(np.mean(accepted_positives / accepted))


def mean_average_precision(
    network: nn.Module, seeds: Sequence[int], progress: bool = False
) -> tuple[float, dict[str, float]]:
    """Score a network by the mean over the classes of the average precision.

    Args:
        network: A network as `build` makes it.
        seeds: The scenes.
        progress: Whether to show a progress bar.

    Returns:
        The mean, and each class's own average precision: NaN for a class that none of the scenes shows, which the mean
        leaves out.
    """
    scores, labels = [], []
    with preserved(network), torch.no_grad(), tqdm(total=len(seeds), unit="scene", disable=not progress) as bar:
        for start in range(0, len(seeds), _CHUNK):
            pictures, present = draw_many(seeds[start : start + _CHUNK])
            logits = [network(_pixels(batch)) for batch in pictures.split(BATCH)]
            scores.append(torch.cat(logits).double().numpy())
            labels.append(present.numpy() > 0)
            bar.update(len(present))
    columns = zip(np.concatenate(scores).T, np.concatenate(labels).T, strict=True)
    by_class = dict(zip(scenes.CLASSES, (average_precision(s, p) for s, p in columns), strict=True))
    return float(np.nanmean(list(by_class.values()))), by_class


# --- drawing scenes ---


def draw_many(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw scenes.

    Args:
        seeds: N seeds.

    Returns:
        Pictures [N,3,S,S] in bytes, and labels [N,classes].
    """
    drawn = [scenes.draw(seed, SIZE) for seed in seeds]
    pictures = torch.from_numpy(np.stack([scene.array for scene in drawn]))
    return pictures.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack([scene.labels for scene in drawn]))


def _pixels(pictures: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def draw_in_parallel(seeds: Sequence[int], workers: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Draw scenes as `draw_many` does, in several processes.

    Args:
        seeds: N seeds.
        workers: The number of processes.
        progress: Whether to show a progress bar.

    Returns:
        Pictures [N,3,S,S] in bytes, and labels [N,classes].
    """
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        drawn = list(tqdm(pool.map(draw_many, chunks), total=len(chunks), unit="chunk", disable=not progress))
    return torch.cat([pictures for pictures, _ in drawn]), torch.cat([labels for _, labels in drawn])


# --- training ---


class Training:
    """A training of the network, epoch by epoch, that can be saved and resumed.

    It draws from torch's own random numbers, also for the initial weights: seed them before it is made.

    Args:
        count: The number of training scenes.
        epochs: The number of epochs, which the learning rate depends on.
    """

    def __init__(self, count: int, epochs: int) -> None:
        self.steps = count // BATCH
        self.network = build().to(memory_format=torch.channels_last).train()
        self._optimiser = torch.optim.AdamW(self.network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, _LEARNING_RATE, total_steps=epochs * self.steps, pct_start=0.15
        )
        self._stateful: dict[str, Any] = {"network": self.network, "optimiser": self._optimiser}
        self._stateful["schedule"] = self._schedule

    def epoch(self, pictures: Tensor, labels: Tensor, bar: Any) -> None:
        """Train on every scene once.

        Args:
            pictures: [N,3,S,S] in bytes.
            labels: [N,classes].
            bar: A tqdm bar, which shows each step and its loss.
        """
        for rows in torch.randperm(len(pictures))[: self.steps * BATCH].split(BATCH):
            loss = _step(self.network, _augmented(pictures[rows]), labels[rows], self._optimiser)
            self._schedule.step()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

    def state(self) -> dict[str, Any]:
        """Give all that the next epoch depends on, torch's random numbers included."""
        states = {name: stateful.state_dict() for name, stateful in self._stateful.items()}
        return {**states, "random": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` gave."""
        for name, stateful in self._stateful.items():
            stateful.load_state_dict(state[name])
        torch.set_rng_state(state["random"])


def train(
    output: Path,
    *,
    epochs: int = 14,
    count: int = 12_000,
    held_out: int = 2_000,
    seed: int = 0,
    workers: int = 2,
    progress: bool = False,
) -> Report:
    """Train the network with binary cross-entropy, and write its weights as safetensors.

    Every scene is mirrored and turned by right angles at random. The defaults are those of the bundled weights. The
    file is written at the end; until then an interruption leaves nothing behind.

    Args:
        output: The file to write.
        epochs: Passes over the scenes.
        count: The number of training scenes.
        held_out: The number of scenes for the score.
        seed: Of torch's random numbers.
        workers: Processes that draw the scenes.
        progress: Whether to show progress bars.

    Returns:
        The result.

    Raises:
        GradlightError: If the file cannot be written, or a number is too small.
    """
    _check_arguments(output, epochs, count, held_out)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        training = Training(count, epochs)
        pictures, labels = draw_in_parallel(scenes.TRAINING[:count], workers, progress)
        with tqdm(total=epochs * training.steps, unit="step", disable=not progress) as bar:
            for _ in range(epochs):
                training.epoch(pictures, labels, bar)
    score, _ = mean_average_precision(training.network, scenes.HELD_OUT[:held_out], progress)
    report = Report(epochs, count, held_out, score)
    facts = {"classes": scenes.CLASSES, "size": SIZE, "mean": MEAN, "std": STD, "seed": seed, **asdict(report)}
    state = {name: tensor.contiguous() for name, tensor in training.network.state_dict().items()}
    output.write_bytes(save(state, metadata={key: json.dumps(value) for key, value in facts.items()}))
    return report


def _check_arguments(output: Path, epochs: int, count: int, held_out: int) -> None:
    """Raise GradlightError, before the long work, for what would fail after it."""
    if not output.parent.is_dir():
        raise GradlightError(f"{output}: there is no folder {output.parent} to write the weights into. Make it first.")
    if output.is_dir():
        raise GradlightError(
            f"{output} is a folder. Name the file for the weights, such as {output / 'scenes.safetensors'}."
        )
    if epochs < 1 or count < BATCH or held_out < 1:
        raise GradlightError(
            f"Training takes at least 1 epoch, {BATCH} scenes (one batch) and 1 held-out scene;"
            f" got {epochs}, {count} and {held_out}."
        )


def _augmented(pictures: Tensor) -> Tensor:
    """Mirror and turn a batch by right angles, each quarter of it in its own way."""
    return torch.cat([_mirrored_and_turned(quarter) for quarter in pictures.chunk(4)])


def _mirrored_and_turned(pictures: Tensor) -> Tensor:
    mirrored = pictures.flip(3) if torch.rand(()) < 0.5 else pictures
    return torch.rot90(mirrored, int(torch.randint(4, ())), (2, 3))


def _step(network: nn.Module, pictures: Tensor, labels: Tensor, optimiser: torch.optim.Optimizer) -> float:
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(_pixels(pictures))
    loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return float(loss.detach())
