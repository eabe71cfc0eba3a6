"""Train a captioner: cross-entropy of the next word, with the whole state written after every epoch to resume from."""

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
"""Returns the batches of an epoch: pixels [B,3,H,W] and tokens [B,T], padded with −1."""

_STATE_FILE = "training.pt"
_MIN_STEPS = 11  # of OneCycleLR, which divides by zero where a tenth of its steps is one


@dataclass(frozen=True)
class TrainingSettings:
    """How to train: AdamW with one cycle of the learning rate.

    Args:
        epochs: the maximal number of epochs.
        rate: the highest learning rate of the decoder.
        encoder_rate: the highest learning rate of the encoder; 0 freezes it.
        decay: the weight decay.
        patience: training stops after this number of epochs without a better validation loss.
        clip: the maximal norm of the gradient.
        seed: of the dropout and the order of the batches.
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
    """How far a training is.

    Args:
        losses: the validation loss of every finished epoch.

    Example:
        >>> Progress([2.0, 1.5, 1.7]).best
        1
    """

    losses: list[float]

    @property
    def best(self) -> int:
        """The epoch with the lowest validation loss, counted from 0."""
        return min(range(len(self.losses)), key=self.losses.__getitem__)

    def over(self, settings: TrainingSettings) -> bool:
        """Return whether all epochs are finished, or the last ones have not improved the loss."""
        done = len(self.losses)
        return done >= settings.epochs or (done > 0 and done - 1 - self.best >= settings.patience)


def fit(
    network: CaptionNetwork,
    batches: Batches,
    steps: int,
    validation: Batches,
    settings: TrainingSettings,
    state_path: Path,
    progress: bool = False,
) -> Progress:
    """Train a network in place; it ends with the weights of the best epoch.

    Args:
        network: the captioner.
        batches: returns the training batches of an epoch.
        steps: the number of batches of an epoch.
        validation: validation(0) returns the batches of the validation set.
        settings: how to train.
        state_path: the file of the training's state, written after every epoch; if it exists, training resumes from it.
        progress: whether a progress bar is shown.

    Returns:
        The validation losses.

    Raises:
        GradlightError: if the state was written with other settings, and if the loss is not finite.
    """
    optimiser = _make_optimiser(network, settings)
    rates = [group["lr"] for group in optimiser.param_groups]
    total = max(settings.epochs * steps, _MIN_STEPS)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rates, total_steps=total, pct_start=0.1)
    run = _TrainingRun(network, optimiser, schedule, settings, steps, state_path)
    run.restore()
    while not run.progress.over(settings):
        epoch = len(run.progress.losses)
        torch.manual_seed(settings.seed * 1_000_003 + epoch)
        _train_epoch(run, batches(epoch), epoch, progress)
        run.add_loss(mean_loss(network, validation(0)))
        run.store()
    network.load_state_dict(run.best_weights)
    return run.progress


def prepare(folder: Path) -> Path:
    """Make the folder of a training, and return the path of its state; raises GradlightError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _STATE_FILE).open("ab").close()
        if (folder / _STATE_FILE).stat().st_size == 0:
            (folder / _STATE_FILE).unlink()
    except OSError as error:
        raise GradlightError(
            f"{folder}: nothing can be written there ({error.strerror}). Name another folder."
        ) from error
    return folder / _STATE_FILE


def mean_loss(network: CaptionNetwork, batches: Iterator[tuple[Tensor, Tensor]]) -> float:
    """Compute the mean cross-entropy of a step (a word, or END) over batches, in eval mode."""
    total, count = 0.0, 0
    with preserved(network), torch.no_grad():
        for pixels, tokens in batches:
            loss, steps = _summed_loss(network, pixels, tokens)
            total, count = total + float(loss), count + steps
    return total / max(count, 1)


def _summed_loss(network: CaptionNetwork, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, int]:
    """Compute the summed negative log-probability of a batch, and its number of steps."""
    device = next(network.parameters()).device
    tokens = tokens.to(device)
    with torch.autocast(device.type, torch.bfloat16):
        features = network.features(pixels.to(device))
    features = {name: tensor.float() for name, tensor in features.items()}
    log_probs = network.decoder.log_probs(features, tokens)
    picked, exists = step_log_probs(log_probs, tokens, network.decoder.special_tokens.end)
    return -picked.sum(), int(exists.sum())


def _make_optimiser(network: CaptionNetwork, settings: TrainingSettings) -> torch.optim.Optimizer:
    """Make the optimiser, with a group for the encoder unless it is frozen."""
    network.encoder.requires_grad_(settings.encoder_rate > 0)
    groups = [{"params": list(network.decoder.parameters()), "lr": settings.rate}]
    if settings.encoder_rate > 0:
        groups.append({"params": list(network.encoder.parameters()), "lr": settings.encoder_rate})
    return torch.optim.AdamW(groups, weight_decay=settings.decay)


@dataclass
class _TrainingRun:
    """A training with its whole state."""

    network: CaptionNetwork
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    settings: TrainingSettings
    steps: int
    state_path: Path

    def __post_init__(self) -> None:
        self.progress = Progress([])
        self.best_weights = _copy_weights(self.network)

    @property
    def settings_record(self) -> dict[str, Any]:
        """The settings that a training must be resumed with."""
        return {**asdict(self.settings), "steps": self.steps}

    def add_loss(self, loss: float) -> None:
        """Add the validation loss of an epoch, and keep the weights if they are the best."""
        if not math.isfinite(loss):
            raise GradlightError(
                f"The loss of epoch {len(self.progress.losses) + 1} is {loss}: this training has diverged. Remove"
                f" {self.state_path} if it exists, and begin again with a lower rate."
            )
        self.progress.losses.append(loss)
        if self.progress.best == len(self.progress.losses) - 1:
            self.best_weights = _copy_weights(self.network)

    def store(self) -> None:
        """Write everything that is needed to resume, atomically."""
        state = {
            "settings": self.settings_record,
            "losses": self.progress.losses,
            "best": self.best_weights,
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": _plain_values(self.schedule.state_dict()),
        }
        temporary = self.state_path.with_name(f"{self.state_path.name}.part")
        torch.save(state, temporary)
        os.replace(temporary, self.state_path)

    def restore(self) -> None:
        """Load the stored state, if there is one."""
        if not self.state_path.exists():
            return
        state = open_checkpoint(self.state_path)
        stored = state.get("settings") if isinstance(state, dict) else None
        if stored != self.settings_record:
            differences = _format_differences(stored, self.settings_record)
            raise GradlightError(
                f"{self.state_path}: this training was begun with other settings ({differences}). Repeat them, or"
                " remove the file."
            )
        try:
            self.network.load_state_dict(state["network"])
            self.optimiser.load_state_dict(state["optimiser"])
            self.schedule.load_state_dict({**self.schedule.state_dict(), **state["schedule"]})
            self.progress, self.best_weights = Progress(list(state["losses"])), state["best"]
        except (KeyError, RuntimeError, ValueError) as error:
            raise GradlightError(f"{self.state_path}: the state of another network's training ({error}).") from error


def _train_epoch(run: _TrainingRun, batches: Iterator[tuple[Tensor, Tensor]], epoch: int, progress: bool) -> None:
    """Take one optimiser step per batch."""
    network, settings = run.network, run.settings
    network.train()
    if settings.encoder_rate == 0:
        network.encoder.eval()  # its running statistics belong to its frozen weights
    with tqdm(total=run.steps, unit="step", disable=not progress, desc=f"epoch {epoch + 1}/{settings.epochs}") as bar:
        for pixels, tokens in batches:
            loss, count = _summed_loss(network, pixels, tokens)
            mean = loss / count
            run.optimiser.zero_grad(set_to_none=True)
            mean.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            run.optimiser.step()
            run.schedule.step()
            bar.set_postfix(loss=f"{float(mean.detach()):.3f}", refresh=False)
            bar.update()
    network.eval()


def _format_differences(stored: Any, current: dict[str, Any]) -> str:
    """Format which settings a training was begun with that are different now."""
    before = stored if isinstance(stored, dict) else {}
    names = [name for name in {**before, **current} if before.get(name) != current.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r} and is {current.get(name)!r}" for name in names)


def _plain_values(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out the schedule's own functions, which cannot be stored."""
    return {name: value for name, value in state.items() if isinstance(value, (int, float, bool, list))}


def _copy_weights(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
