"""Training a captioner: cross-entropy of the next word, kept after every epoch so that it can go on after any stop."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ...errors import GradlightError
from ..checkpoints import open_checkpoint
from ..preserve import preserved
from .decoder import step_log_probs
from .encoder import CaptionNetwork

__all__ = ["Batches", "Progress", "TrainingSettings", "fit", "mean_loss", "prepare"]

Batches = Callable[[int], Iterator[tuple[Tensor, Tensor]]]
"""Give the batches of an epoch: pixels [B,3,H,W] and tokens [B,T], padded with −1."""


_STATE = "training.pt"
_FEWEST = 11  # of OneCycleLR, which divides by zero where a tenth of its steps is one


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: AdamW with one cycle of the learning rate.

    rate: of the decoder; encoder_rate: of the encoder, 0 freezes it. patience: epochs without a better validation loss
    before the training stops. clip: the largest norm of the gradient.
    """

    epochs: int = 12
    rate: float = 2e-3
    encoder_rate: float = 1e-3
    decay: float = 0.02
    patience: int = 4
    clip: float = 5.0
    seed: int = 0


@dataclass
class Progress:
    """How far a training is: epochs done, the validation loss of each, and the best epoch (counted from 0)."""

    losses: list[float]

    @property
    def best(self) -> int:
        """The epoch with the least validation loss."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    def over(self, settings: TrainingSettings) -> bool:
        """Tell whether all epochs are done, or the last ones brought nothing."""
        done = len(self.losses)
        return done >= settings.epochs or (done > 0 and done - 1 - self.best >= settings.patience)


def fit(
    network: CaptionNetwork,
    batches: Batches,
    steps: int,
    validation: Batches,
    settings: TrainingSettings,
    keep: Path,
    progress: bool = False,
) -> Progress:
    """Train a network in place, and leave it with the weights of the best epoch.

    steps: batches of an epoch. validation(0) gives the held-out batches. keep: the file of the training's state,
    written after every epoch; where it exists the training goes on from there. Raises GradlightError if it was made
    with other settings, and where the loss is no longer finite.
    """
    optimiser = _optimiser(network, settings)
    rates = [group["lr"] for group in optimiser.param_groups]
    total = max(settings.epochs * steps, _FEWEST)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=total, pct_start=0.1)
    run = _TrainingRun(network, optimiser, schedule, settings, steps, keep)
    run.restore()
    while not run.progress.over(settings):
        epoch = len(run.progress.losses)
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        _epoch(run, batches(epoch), steps, epoch, progress)
        run.note(mean_loss(network, validation(0)))
        run.store()
    network.load_state_dict(run.best)
    return run.progress


def prepare(folder: Path) -> Path:
    """Make the folder of a training and give the file of its state; GradlightError where nothing can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _STATE).open("ab").close()
        if (folder / _STATE).stat().st_size == 0:
            (folder / _STATE).unlink()
    except OSError as error:
        raise GradlightError(
            f"{folder}: nothing can be written there ({error.strerror}). Name another folder."
        ) from error
    return folder / _STATE


def mean_loss(network: CaptionNetwork, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Give the mean cross-entropy of a step (a word, or END) over batches, in eval mode."""
    total, count = 0.0, 0
    with preserved(network), torch.no_grad():
        for pixels, tokens in batches:
            loss, steps = _loss(network, pixels, tokens)
            total, count = total + float(loss), count + steps
    return total / max(count, 1)


def _loss(network: CaptionNetwork, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
    """Give the summed negative log-probability of a batch, and of how many steps."""
    device = next(network.parameters()).device
    tokens = tokens.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        features = network.features(pixels.to(device))
    exact = {name: tensor.float() for name, tensor in features.items()}
    picked, exists = step_log_probs(network.decoder.log_probs(exact, tokens), tokens, network.decoder.specials.end)
    return -picked.sum(), int(exists.sum())


def _optimiser(network: CaptionNetwork, settings: TrainingSettings) -> torch.optim.Optimizer:
    network.encoder.requires_grad_(settings.encoder_rate > 0)
    groups = [{"params": list(network.decoder.parameters()), "lr": settings.rate}]
    if settings.encoder_rate > 0:
        groups.append({"params": list(network.encoder.parameters()), "lr": settings.encoder_rate})
    return torch.optim.AdamW(groups, weight_decay=settings.decay)


@dataclass
class _TrainingRun:
    """One training with all of its state."""

    network: CaptionNetwork
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    settings: TrainingSettings
    steps: int
    keep: Path

    def __post_init__(self) -> None:
        self.progress = Progress([])
        self.best = _copied(self.network)

    def note(self, loss: float) -> None:
        """Take the validation loss of an epoch in; its weights are kept if they are the best."""
        if not math.isfinite(loss):
            raise GradlightError(
                f"The loss of epoch {len(self.progress.losses) + 1} is {loss}: this training came to nothing. Remove"
                f" {self.keep} if it is there, and begin again with a lower rate."
            )
        self.progress.losses.append(loss)
        if self.progress.best == len(self.progress.losses) - 1:
            self.best = _copied(self.network)

    def store(self) -> None:
        """Write everything that is needed to go on, whole or not at all."""
        state = {
            "settings": self._asked(),
            "losses": self.progress.losses,
            "best": self.best,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": _plain(self.schedule.state_dict()),
        }
        beside = self.keep.with_name(f"{self.keep.name}.part")
        torch.save(state, beside)
        os.replace(beside, self.keep)

    def _asked(self) -> dict[str, Any]:
        """Give all that a training must be begun with again to go on."""
        return {**asdict(self.settings), "steps": self.steps}

    def restore(self) -> None:
        """Go on from the kept state, if there is one."""
        if not self.keep.exists():
            return
        state = open_checkpoint(self.keep)
        begun = state.get("settings") if isinstance(state, dict) else None
        if begun != self._asked():
            raise GradlightError(
                f"{self.keep}: this training was begun with other settings ({_others(begun, self._asked())}). Repeat"
                " them, or remove the file."
            )
        try:
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
            self.progress, self.best = Progress(list(state["losses"])), state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise GradlightError(f"{self.keep}: the state of another network's training ({error}).") from error


def _others(begun: Any, asked: dict[str, Any]) -> str:
    """Say which settings a training was begun with that are others now."""
    known = begun if isinstance(begun, dict) else {}
    names = [name for name in {**known, **asked} if known.get(name) != asked.get(name)]
    return ", ".join(f"{name} was {known.get(name)!r} and is {asked.get(name)!r}" for name in names)


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is no plain data: the schedule's own functions."""
    return {name: value for name, value in state.items() if isinstance(value, (int, float, bool, list))}


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _epoch(run: _TrainingRun, batches: Iterator[tuple[Tensor, Tensor]], steps: int, epoch: int, progress: bool) -> None:
    network, settings = run.network, run.settings
    network.train()
    if settings.encoder_rate == 0:
        network.encoder.eval()  # its running statistics belong to its frozen weights
    with tqdm(total=steps, unit="step", disable=not progress, desc=f"epoch {epoch + 1}/{settings.epochs}") as bar:
        for pixels, tokens in batches:
            loss, count = _loss(network, pixels, tokens)
            mean = loss / count
            run.optimiser.zero_grad(set_to_none=True)
            mean.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            run.optimiser.step()
            run.schedule.step()
            bar.set_postfix(loss=f"{float(mean.detach()):.3f}", refresh=False)
            bar.update()
    network.eval()
