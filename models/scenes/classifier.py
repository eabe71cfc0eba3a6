"""The bundled classifier of generated scenes: a slim ResNet, its training, and how well it does on held-out scenes."""

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
_RATE, _DECAY = 4e-3, 0.02
_CHUNK = 250


@dataclass(frozen=True)
class Report:
    """What a training did: how much it saw, and its mean average precision on held-out scenes."""

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

    It takes pixels [B,3,160,160], normalised by MEAN and STD, to one logit per class of the scenes [B,16].
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
    """Give the place of the weights that come with the package."""
    return Path(str(files("gradlight.data"))) / "bundled" / "scenes.safetensors"


def load_bundled() -> nn.Module:
    """Make the network with the weights that come with the package, in eval mode."""
    network = build()
    network.load_state_dict(load_file(bundled_path()))
    return network.eval()


def average_precision(scores: npt.NDArray[np.float64], present: npt.NDArray[np.bool_]) -> float:
    """Average, over the present ones, the precision at the threshold that just lets each one in (no interpolation).

    scores and present: [N]. Equal scores are let in together, so the order of the rows makes no difference. NaN when
    nothing is present.
    """
    found = scores[present]
    if not len(found):
        return float("nan")
    right, all_in = (len(s) - np.searchsorted(np.sort(s), found, side="left") for s in (found, scores))
    return float(np.mean(right / all_in))


def mean_average_precision(
    network: nn.Module, seeds: Sequence[int], progress: bool = False
) -> tuple[float, dict[str, float]]:
    """Give the mean over the classes of the average precision on the scenes of some seeds, and each class's own.

    A class that none of the scenes shows has no average precision (NaN), and the mean leaves it out.
    """
    scores, labels = [], []
    with preserved(network), torch.no_grad(), tqdm(total=len(seeds), unit="scene", disable=not progress) as bar:
        for start in range(0, len(seeds), _CHUNK):
            pictures, present = draw_many(seeds[start : start + _CHUNK])
            scores.append(torch.cat([network(_pixels(part)) for part in pictures.split(BATCH)]).double().numpy())
            labels.append(present.numpy() > 0)
            bar.update(len(present))
    columns = zip(np.concatenate(scores).T, np.concatenate(labels).T, strict=True)
    each = dict(zip(scenes.CLASSES, (average_precision(s, p) for s, p in columns), strict=True))
    return float(np.nanmean(list(each.values()))), each


def draw_many(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw the scenes of some seeds: pictures [N,3,S,S] in bytes, labels [N,classes]."""
    drawn = [scenes.draw(seed, SIZE) for seed in seeds]
    pictures = torch.from_numpy(np.stack([scene.array for scene in drawn]))
    return pictures.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(np.stack([scene.labels for scene in drawn]))


def _pixels(pictures: Tensor) -> Tensor:
    mean, std = torch.tensor(MEAN).view(3, 1, 1), torch.tensor(STD).view(3, 1, 1)
    return ((pictures.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


class Training:
    """A training of the network on `count` scenes, epoch by epoch, that can be put aside and taken up again.

    It draws from torch's own random numbers, for the first weights too: seed them before it is made.
    """

    def __init__(self, count: int, epochs: int) -> None:
        self.steps = count // BATCH
        self.network = build().to(memory_format=torch.channels_last).train()
        self._optimiser = torch.optim.AdamW(self.network.parameters(), lr=_RATE, weight_decay=_DECAY)
        total = epochs * self.steps
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimiser, _RATE, total_steps=total, pct_start=0.15)
        self._parts: dict[str, Any] = {"network": self.network, "optimiser": self._optimiser}
        self._parts["schedule"] = self._schedule

    def epoch(self, pictures: Tensor, labels: Tensor, bar: Any) -> None:
        """Pass once over the scenes; bar: moves one on with each step, and shows its loss."""
        for rows in torch.randperm(len(pictures))[: self.steps * BATCH].split(BATCH):
            loss = _step(self.network, _turned(pictures[rows]), labels[rows], self._optimiser)
            self._schedule.step()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            bar.update()

    def state(self) -> dict[str, Any]:
        """Give all that the next epoch depends on, torch's random numbers included."""
        return {**{name: part.state_dict() for name, part in self._parts.items()}, "random": torch.get_rng_state()}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to where `state` was taken."""
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
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
    """Train the network on `count` scenes with binary cross-entropy, and write its weights as safetensors.

    Every scene is mirrored and turned by right angles at random. The defaults are those of the bundled weights. The
    file is written at the end; until then an interruption leaves nothing behind.
    """
    _check(output, epochs, count, held_out)
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


def _check(output: Path, epochs: int, count: int, held_out: int) -> None:
    """Refuse, before the long work, what would fail after it."""
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


def draw_in_parallel(seeds: Sequence[int], workers: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Draw scenes as `draw_many` does, in processes of their own."""
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = list(tqdm(pool.map(draw_many, chunks), total=len(chunks), unit="chunk", disable=not progress))
    return torch.cat([pictures for pictures, _ in parts]), torch.cat([labels for _, labels in parts])


def _turned(pictures: Tensor) -> Tensor:
    """Mirror and turn a batch by right angles, each quarter of it in its own way."""
    return torch.cat([_turn(part) for part in pictures.chunk(4)])


def _turn(pictures: Tensor) -> Tensor:
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
