"""The effect of meta-saliency's inner step while a network learns (paper, supplement D, figures 10 to 12).

A network is trained on scenes, and its weights are kept after every epoch. At each epoch, maps with the step are
compared with those without it, on scenes of the training set and of the validation set; and the maps of each epoch are
compared with those of the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save
from tqdm.auto import tqdm

from ..data.scenes import generator as scenes
from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.plotting import draw_map, draw_photo, picture_of
from ..files import format_path, replace_file, replacing
from ..models.classifiers import Classifier, classifier
from ..models.scenes.classifier import BATCH, Training, draw_in_parallel, mean_average_precision
from .ledger import Ledger
from .metrics import map_correlation, mean
from .tables import Cell, Result, Table

__all__ = ["SPLITS", "EpochTraining", "classifier_at_epoch", "meta_analysis", "train_epochs"]

SPLITS = {"training": scenes.TRAINING, "validation": scenes.HELD_OUT}
"""Name → seeds of the scenes."""

_VARIANTS = ("plain", "descent", "ascent")
_BATCH = 8  # scenes that are explained together
_PRECISION = 200  # validation scenes for the mean average precision
_PICTURED = 4


def meta_analysis(
    folder: Path,
    methods: Sequence[str] = ("normgrad", "selective_normgrad"),
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    training: EpochTraining | None = None,
    images: int = 64,
    lr: float = 0.002,
    workers: int = 2,
    progress: bool = False,
) -> Result:
    """Train a network on scenes and compare its maps, with the inner step and without, over the epochs.

    Args:
        folder: Keeps the weights of every epoch; created if it is missing.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        ledger: Keeps the figures of each epoch and batch.
        training: The training; the defaults of EpochTraining unless given.
        images: Scenes of each split, its first ones; the target is the shape of the scene's largest object.
        lr: Of the inner step, down ("descent") and up ("ascent").
        workers: Processes that draw scenes.
        progress: Show a progress bar.

    Returns:
        figures["with_and_without"]: split → direction → method → layer → mean ρ of maps with and without the step at
        each epoch, 0 (untrained) to the last; figures["against_last"]: split → "plain", "descent" or "ascent" → method
        → layer → mean ρ with the same map at the last epoch.

    Raises:
        GradlightError: The number of images does not fit the training, or as in `train_epochs`.
    """
    training = training or EpochTraining()
    if not 1 <= images <= training.scenes:
        raise GradlightError(f"{images} scenes of each split were asked for; give 1 to {training.scenes}.")
    train_epochs(folder, training, workers, progress)
    explain_epoch = partial(_maps_at_epoch, folder, training, list(methods), layers, lr)
    correlations = _correlations(explain_epoch, images, training.epochs, ledger, progress)
    precision = [
        ledger.once(f"precision {epoch}", partial(_precision, folder, training, epoch))
        for epoch in range(training.epochs + 1)
    ]
    figures = {
        "epochs": training.epochs,
        "scenes": training.scenes,
        "seed": training.seed,
        "images": images,
        "lr": lr,
        "mean_average_precision": precision,
        "with_and_without": {split: _means(epochs, "with_and_without") for split, epochs in correlations.items()},
        "against_last": {split: _means(epochs, "against_last") for split, epochs in correlations.items()},
    }
    pictured = scenes.HELD_OUT[: min(_PICTURED, images)]
    return Result(
        "meta_analysis",
        figures,
        [_step_table(figures), _last_epoch_table(figures)],
        {
            "with_and_without": partial(_draw_over_epochs, figures, "with_and_without"),
            "against_last": partial(_draw_over_epochs, figures, "against_last"),
            "positive_and_negative": lambda: _draw_steps(explain_epoch(training.epochs, pictured)),
        },
    )


# ---------------------------------------------------------------------------------------------------------------------
# Correlations of maps

ExplainEpoch = Callable[[int, Sequence[int]], dict[str, SaliencyMaps]]
"""Epoch and seeds of scenes → their maps, by variant."""

BatchFigures = list[dict[str, Any]]
"""The correlations of each batch of scenes."""


def _correlations(
    explain_epoch: ExplainEpoch, images: int, epochs: int, ledger: Ledger, progress: bool
) -> dict[str, list[BatchFigures]]:
    """Compare the maps of every epoch, a batch of scenes at a time: split → [epoch] → [batch]."""
    figures: dict[str, list[BatchFigures]] = {split: [[] for _ in range(epochs + 1)] for split in SPLITS}
    with tqdm(total=2 * images * (epochs + 1), unit="image", disable=not progress) as bar:
        for split, split_seeds in SPLITS.items():
            for start in range(0, images, _BATCH):
                seeds = split_seeds[start : min(start + _BATCH, images)]
                last = cache(partial(explain_epoch, epochs, seeds))
                for epoch, batches in enumerate(figures[split]):
                    key = f"{split} {start} epoch {epoch}"
                    batches.append(ledger.once(key, partial(_compare_batch, explain_epoch, epoch, seeds, last)))
                    bar.update(len(seeds))
    return figures


def _maps_at_epoch(
    folder: Path,
    training: EpochTraining,
    methods: Sequence[str],
    layers: str | Sequence[str],
    lr: float,
    epoch: int,
    seeds: Sequence[int],
) -> dict[str, SaliencyMaps]:
    """Explain scenes at an epoch, without the step and with it in both directions."""
    model = classifier_at_epoch(folder, training, epoch)
    images, targets = [scenes.name(seed) for seed in seeds], [_largest_shape(seed) for seed in seeds]
    steps = {name: None if name == "plain" else Meta(lr, name) for name in _VARIANTS}
    return {
        name: explain(model, images, targets, methods=methods, layers=layers, meta=step) for name, step in steps.items()
    }


def _largest_shape(seed: int) -> str:
    """Name the shape of the object with the most visible pixels of a scene."""
    return max(scenes.draw(seed).objects, key=lambda scene_object: int(scene_object.mask.sum())).kind


def _compare_batch(
    explain_epoch: ExplainEpoch, epoch: int, seeds: Sequence[int], last: Callable[[], dict[str, SaliencyMaps]]
) -> dict[str, Any]:
    """Compare the maps of an epoch with each other, and with those of the last epoch."""
    maps = explain_epoch(epoch, seeds)
    return {
        "with_and_without": {name: _rho(maps["plain"], maps[name]) for name in _VARIANTS[1:]},
        "against_last": {name: _rho(maps[name], last()[name]) for name in _VARIANTS},
    }


def _rho(a: SaliencyMaps, b: SaliencyMaps) -> dict[str, dict[str, list[float]]]:
    """Correlate maps: method → layer → ρ of each image."""
    figures: dict[str, dict[str, list[float]]] = {method: {} for method in a.methods}
    for method, layer in a.pairs:
        figures[method][layer] = map_correlation(a[method, layer], b[method, layer], a.size).flatten().tolist()
    return figures


def _means(epochs: Sequence[BatchFigures], kind: str) -> dict[str, Any]:
    """Average over the images: variant → method → layer → [epoch]."""
    return {
        variant: {
            method: {
                layer: [
                    mean(rho for batch in batches for rho in batch[kind][variant][method][layer]) for batches in epochs
                ]
                for layer in layers
            }
            for method, layers in methods.items()
        }
        for variant, methods in epochs[0][0][kind].items()
    }


def _precision(folder: Path, training: EpochTraining, epoch: int) -> float:
    network = classifier_at_epoch(folder, training, epoch).network
    return mean_average_precision(network, scenes.HELD_OUT[:_PRECISION])[0]


# ---------------------------------------------------------------------------------------------------------------------
# A training whose weights are kept after every epoch

_STATE = "training.pt"


@dataclass(frozen=True)
class EpochTraining:
    """A training of the scenes' classifier.

    Args:
        epochs: Passes over the training set.
        scenes: The size of the training set.
        seed: Of the random numbers.

    Raises:
        GradlightError: There is no epoch, or less than a batch of scenes.
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
        """Name the file of the weights after an epoch; 0: before the first."""
        return folder / f"epoch_{epoch:03}.safetensors"


def train_epochs(folder: Path, training: EpochTraining, workers: int = 2, progress: bool = False) -> None:
    """Train a network on scenes, and keep its weights before the first and after every epoch in a folder.

    A training that was stopped at any time is resumed after the last complete epoch with the same random numbers, so
    that its weights are those of one that was not stopped.

    Args:
        folder: Created if it is missing; its parent is not.
        training: The training.
        workers: Processes that draw scenes.
        progress: Show a progress bar.

    Raises:
        GradlightError: The folder has another training, or cannot be created.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be created: {error.strerror}.") from error
    state = _read_state(folder / _STATE, training)
    finished = 0 if state is None else state["epoch"]
    if finished == training.epochs:
        return
    with torch.random.fork_rng(devices=[]), tqdm(total=training.epochs, unit="epoch", disable=not progress) as bar:
        torch.manual_seed(training.seed)
        trainer = Training(training.scenes, training.epochs)
        if state is None:
            _keep_epoch(folder, training, 0, trainer)
        pictures, labels = draw_in_parallel(scenes.TRAINING[: training.scenes], workers, progress=False)
        if state is not None:
            trainer.restore(state)
        bar.update(finished)
        for epoch in range(finished + 1, training.epochs + 1):
            trainer.epoch(pictures, labels, tqdm(disable=True))
            _keep_epoch(folder, training, epoch, trainer)
            bar.update()


def classifier_at_epoch(folder: Path, training: EpochTraining, epoch: int) -> Classifier:
    """Open the classifier as it was after an epoch.

    Args:
        folder: The folder of `train_epochs`.
        training: The training.
        epoch: The epoch; 0: before the first.

    Returns:
        The classifier, on the CPU.
    """
    return classifier("scenes", checkpoint=training.weights(folder, epoch), device="cpu")


def _keep_epoch(folder: Path, training: EpochTraining, epoch: int, trainer: Training) -> None:
    """Write the weights, then the state that marks the epoch as complete; no file is ever incomplete."""
    tensors = {name: tensor.contiguous() for name, tensor in trainer.network.state_dict().items()}
    replace_file(training.weights(folder, epoch), save(tensors))
    with replacing(folder / _STATE) as temporary:
        torch.save({"course": asdict(training), "epoch": epoch, **trainer.state()}, temporary)


def _read_state(path: Path, training: EpochTraining) -> dict[str, Any] | None:
    """Read the state of a training; None if there is none."""
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        settings = state["course"]
    # Any other file under this name may fail to load with any exception.
    except Exception as error:
        raise GradlightError(f"{format_path(path)}: not the state of a training. Name another folder.") from error
    if settings != asdict(training):
        changes = ", ".join(f"{name} {settings.get(name)}, not {value}" for name, value in asdict(training).items())
        raise GradlightError(
            f"{format_path(path)}: of another training ({changes}). Name another folder, or ask for the same."
        )
    return state


# ---------------------------------------------------------------------------------------------------------------------
# Tables and pictures

_PANEL_INCHES = 1.7
_STYLES = {"training": "-", "validation": "--"}
_LABELS = {"with_and_without": "ρ of maps with and without the step", "against_last": "ρ with the last epoch's map"}


def _step_table(figures: Mapping[str, Any]) -> Table:
    """Make the table of ρ of maps with and without the step."""
    correlations = figures["with_and_without"]
    shown = _shown_epochs(figures["epochs"])
    rows: list[list[Cell]] = []
    for direction, methods in correlations["training"].items():
        for method, layers in methods.items():
            for layer in layers:
                for split in correlations:
                    values = correlations[split][direction][method][layer]
                    rows.append([method, layer, direction, split, *(values[at] for at in shown), mean(values[1:])])
    columns = ["method", "layer", "step", "images", *(f"epoch {at}" for at in shown), "mean of 1 to last"]
    precision = ", ".join(f"{at}: {figures['mean_average_precision'][at]:.3f}" for at in shown)
    notes = [
        f"Spearman's ρ, mean over {figures['images']} scenes of each split; lr {figures['lr']}. Trained on"
        f" {figures['scenes']} scenes; mean average precision on validation scenes after epoch {precision}."
    ]
    return Table("Meta-saliency over the epochs: ρ of maps with and without the step", columns, rows, notes)


def _last_epoch_table(figures: Mapping[str, Any]) -> Table:
    """Make the table of ρ with the maps of the last epoch."""
    shown = _shown_epochs(figures["epochs"])
    rows: list[list[Cell]] = [
        [method, layer, variant, *(values[at] for at in shown)]
        for variant, methods in figures["against_last"]["validation"].items()
        for method, layers in methods.items()
        for layer, values in layers.items()
    ]
    columns = ["method", "layer", "step", *(f"epoch {at}" for at in shown)]
    notes = [f"Spearman's ρ, mean over {figures['images']} validation scenes."]
    return Table("Maps over the epochs: ρ with the same map at the last epoch", columns, rows, notes)


def _shown_epochs(epochs: int) -> list[int]:
    """Choose the epochs that a table shows: the untrained network, the last epoch, and up to three between."""
    return sorted(set(np.linspace(0, epochs, min(5, epochs + 1)).round().astype(int).tolist()))


def _draw_over_epochs(figures: Mapping[str, Any], kind: str) -> Figure:
    """Draw ρ over the epochs: a panel for each method and layer, training set solid, validation set dashed."""
    correlations = figures[kind]
    first = next(iter(correlations["training"].values()))
    methods, layers = list(first), list(next(iter(first.values())))
    drawing = Figure(figsize=(2.8 * len(layers) + 1.8, 2.5 * len(methods)), layout="constrained")
    panels = drawing.subplots(len(methods), len(layers), squeeze=False, sharex=True, sharey=True)
    for row, method in zip(panels, methods, strict=True):
        for panel, layer in zip(row, layers, strict=True):
            for split, style in _STYLES.items():
                for colour, (variant, rho) in enumerate(correlations[split].items()):
                    values = [np.nan if value is None else value for value in rho[method][layer]]
                    panel.plot(values, style, color=f"C{colour}", label=f"{variant}, {split}")
            panel.set_title(f"{method}\n{layer}", fontsize=8)
            panel.set_xlabel("epoch", fontsize=8)
    drawing.supylabel(_LABELS[kind], fontsize=9)
    drawing.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return drawing


def _draw_steps(maps: Mapping[str, SaliencyMaps]) -> Figure:
    """Draw photos with the deepest maps of the last method: a step up, none, and one down (paper, figure 12)."""
    plain = maps["plain"]
    method, layer = plain.methods[-1], plain.layers[-1]
    variants = ("ascent", "plain", "descent")
    drawing = Figure(figsize=(_PANEL_INCHES * 4, (_PANEL_INCHES + 0.15) * len(plain)), layout="constrained")
    panels = drawing.subplots(len(plain), 4, squeeze=False)
    for number, row in enumerate(panels):
        photo = plain.images[number]
        picture = picture_of(photo)
        draw_photo(row[0], photo, picture)
        row[0].set_title(plain.targets[number][0].label, fontsize=8)
        for panel, variant in zip(row[1:], variants, strict=True):
            values = maps[variant].upsampled(method, layer)[number, 0].double().cpu().numpy()
            draw_photo(panel, photo, picture)
            draw_map(panel, photo, values, bool((values < 0).any()), 0.65)
            panel.set_title(variant, fontsize=8)
    return drawing
