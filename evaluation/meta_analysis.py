"""What the inner step of meta-saliency does as a network learns (paper, supplement D, figures 10 to 12).

A network is trained on scenes with its weights kept after every epoch. At each of them, maps with the step are held
against those without it, on scenes that the training sees and on others; and maps of each epoch against the last.

How the analysis of meta-saliency is told: tables, curves over the epochs, and maps of steps down and up.

A training of the scenes' network whose weights are kept after every epoch; it goes on where it was stopped.
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

__all__ = [
    "SPLITS",
    "KeptTraining",
    "at_epoch",
    "kept_epochs",
    "meta_analysis",
    "over_epochs",
    "steps_side_by_side",
    "tables",
]

_PANEL = 1.7
_STYLES = {"training": "-", "validation": "--"}
_LABELS = {"with_and_without": "ρ of maps with and without the step", "against_last": "ρ with the last epoch's map"}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """Tell the effect of the step on both splits over the epochs, and how the maps settle."""
    return [_with_and_without(figures), _against_last(figures)]


def _with_and_without(figures: Mapping[str, Any]) -> Table:
    found = figures["with_and_without"]
    shown = _shown(figures["epochs"])
    rows: list[list[Cell]] = []
    for direction, methods in found["training"].items():
        for method, layers in methods.items():
            for layer in layers:
                for split in found:
                    values = found[split][direction][method][layer]
                    rows.append([method, layer, direction, split, *(values[at] for at in shown), mean(values[1:])])
    columns = ["method", "layer", "step", "images", *(f"epoch {at}" for at in shown), "mean of 1 to last"]
    precision = ", ".join(f"{at}: {figures['mean_average_precision'][at]:.3f}" for at in shown)
    notes = [
        f"Spearman's ρ, mean over {figures['images']} scenes of each split; lr {figures['lr']}. Trained on"
        f" {figures['scenes']} scenes; mean average precision on held-out ones after epoch {precision}."
    ]
    return Table("Meta-saliency over the epochs: ρ of maps with and without the step", columns, rows, notes)


def _against_last(figures: Mapping[str, Any]) -> Table:
    shown = _shown(figures["epochs"])
    rows: list[list[Cell]] = [
        [method, layer, name, *(values[at] for at in shown)]
        for name, methods in figures["against_last"]["validation"].items()
        for method, layers in methods.items()
        for layer, values in layers.items()
    ]
    columns = ["method", "layer", "step", *(f"epoch {at}" for at in shown)]
    notes = [f"Spearman's ρ, mean over {figures['images']} held-out scenes."]
    return Table("Maps over the epochs: ρ with the same map at the last epoch", columns, rows, notes)


def _shown(epochs: int) -> list[int]:
    """Choose the epochs that a table tells: the untrained network, the last, and up to three between."""
    return sorted(set(np.linspace(0, epochs, min(5, epochs + 1)).round().astype(int).tolist()))


def over_epochs(figures: Mapping[str, Any], what: str) -> Figure:
    """Draw ρ over the epochs: a panel for each method and layer, training images solid, validation dashed."""
    found = figures[what]
    first = next(iter(found["training"].values()))
    methods, layers = list(first), list(next(iter(first.values())))
    drawing = Figure(figsize=(2.8 * len(layers) + 1.8, 2.5 * len(methods)), layout="constrained")
    panels = drawing.subplots(len(methods), len(layers), squeeze=False, sharex=True, sharey=True)
    for line, method in zip(panels, methods, strict=True):
        for panel, layer in zip(line, layers, strict=True):
            for split, style in _STYLES.items():
                for colour, name in enumerate(found[split]):
                    values = [np.nan if each is None else each for each in found[split][name][method][layer]]
                    panel.plot(values, style, color=f"C{colour}", label=f"{name}, {split}")
            panel.set_title(f"{method}\n{layer}", fontsize=8)
            panel.set_xlabel("epoch", fontsize=8)
    drawing.supylabel(_LABELS[what], fontsize=9)
    drawing.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return drawing


def steps_side_by_side(maps: Mapping[str, SaliencyMaps]) -> Figure:
    """Draw photos with the deepest maps of the last method: a step up, none, and one down (paper, figure 12)."""
    plain = maps["plain"]
    method, layer = plain.methods[-1], plain.layers[-1]
    names = ("ascent", "plain", "descent")
    drawing = Figure(figsize=(_PANEL * 4, (_PANEL + 0.15) * len(plain)), layout="constrained")
    panels = drawing.subplots(len(plain), 4, squeeze=False)
    for number, line in enumerate(panels):
        photo = plain.images[number]
        picture = picture_of(photo)
        draw_photo(line[0], photo, picture)
        line[0].set_title(plain.targets[number][0].label, fontsize=8)
        for panel, name in zip(line[1:], names, strict=True):
            values = maps[name].upsampled(method, layer)[number, 0].double().cpu().numpy()
            draw_photo(panel, photo, picture)
            draw_map(panel, photo, values, bool((values < 0).any()), 0.65)
            panel.set_title(name, fontsize=8)
    return drawing


_STATE = "training.pt"


@dataclass(frozen=True)
class KeptTraining:
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


def kept_epochs(folder: Path, course: KeptTraining, workers: int = 2, progress: bool = False) -> None:
    """Train a network on scenes, and keep its weights before the first and after every epoch in a folder.

    The folder is made if it is missing. A training that was stopped, at any place, goes on after the last whole epoch
    with the same random numbers, so that its weights are those of one that was not. workers: processes that draw.
    Raises GradlightError for a folder with another training, or one that cannot be written.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be made: {error.strerror}.") from error
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


def at_epoch(folder: Path, course: KeptTraining, epoch: int) -> Classifier:
    """Give the network as it was after an epoch."""
    return classifier("scenes", checkpoint=course.weights(folder, epoch), device="cpu")


def _keep(folder: Path, course: KeptTraining, epoch: int, training: Training) -> None:
    """Keep the weights, then the state that says they are kept; each whole or not at all."""
    tensors = {name: tensor.contiguous() for name, tensor in training.network.state_dict().items()}
    replace_file(course.weights(folder, epoch), save(tensors))
    with replacing(folder / _STATE) as temporary:
        torch.save({"course": asdict(course), "epoch": epoch, **training.state()}, temporary)


def _read(path: Path, course: KeptTraining) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True)
        found = state["course"]
    # Whatever else lies there may refuse, in its own way, to be read.
    except Exception as error:
        raise GradlightError(f"{format_path(path)}: not the state of a training. Name another folder.") from error
    if found != asdict(course):
        told = ", ".join(f"{name} {found.get(name)}, not {value}" for name, value in asdict(course).items())
        raise GradlightError(
            f"{format_path(path)}: of another training ({told}). Name another folder, or ask for the same."
        )
    return state


SPLITS = {"training": scenes.TRAINING, "validation": scenes.HELD_OUT}

_VARIANTS = ("plain", "descent", "ascent")
_TOGETHER = 8
_PRECISION = 200
_PICTURED = 4


def meta_analysis(
    folder: Path,
    methods: Sequence[str] = ("normgrad", "selective_normgrad"),
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    course: KeptTraining | None = None,
    images: int = 64,
    lr: float = 0.002,
    workers: int = 2,
    progress: bool = False,
) -> Result:
    """Train a network on scenes and follow its maps, with the inner step and without, over the epochs.

    folder: keeps the weights of every epoch, and is made if it is missing. images: scenes of each split, the first that
    the training sees and the first held out; each is asked for the shape of its largest object. lr: of the inner step,
    down ("descent") and up ("ascent").
    figures["with_and_without"]: split → direction → method → layer → mean ρ of maps with and without the step at each
    epoch, 0 (untrained) to the last; figures["against_last"]: split → "plain", "descent" or "ascent" → method → layer →
    mean ρ with the same map at the last epoch. Raises GradlightError for no image, and as `kept_epochs` does.
    """
    course = course or KeptTraining()
    if not 1 <= images <= course.scenes:
        raise GradlightError(f"{images} scenes of each split were asked for; give 1 to {course.scenes}.")
    kept_epochs(folder, course, workers, progress)
    ask = partial(_maps, folder, course, list(methods), layers, lr)
    found = _followed(ask, images, course.epochs, ledger, progress)
    precision = [
        ledger.once(f"precision {epoch}", partial(_precision, folder, course, epoch))
        for epoch in range(course.epochs + 1)
    ]
    figures = {
        "epochs": course.epochs,
        "scenes": course.scenes,
        "seed": course.seed,
        "images": images,
        "lr": lr,
        "mean_average_precision": precision,
        "with_and_without": {split: _means(parts, "with_and_without") for split, parts in found.items()},
        "against_last": {split: _means(parts, "against_last") for split, parts in found.items()},
    }
    pictured = scenes.HELD_OUT[: min(_PICTURED, images)]
    return Result(
        "meta_analysis",
        figures,
        tables(figures),
        {
            "with_and_without": partial(over_epochs, figures, "with_and_without"),
            "against_last": partial(over_epochs, figures, "against_last"),
            "positive_and_negative": lambda: steps_side_by_side(ask(course.epochs, pictured)),
        },
    )


Ask = Callable[[int, Sequence[int]], dict[str, SaliencyMaps]]
"""Epoch and seeds of scenes → the maps of these, by variant."""

Parts = list[dict[str, Any]]


def _followed(ask: Ask, images: int, epochs: int, ledger: Ledger, progress: bool) -> dict[str, list[Parts]]:
    """Compare the maps of every epoch, a few scenes at a time: split → [epoch] → what each few gave."""
    found: dict[str, list[Parts]] = {split: [[] for _ in range(epochs + 1)] for split in SPLITS}
    with tqdm(total=2 * images * (epochs + 1), unit="image", disable=not progress) as bar:
        for split, seeds in SPLITS.items():
            for start in range(0, images, _TOGETHER):
                some = seeds[start : min(start + _TOGETHER, images)]
                last = cache(partial(ask, epochs, some))
                for epoch, parts in enumerate(found[split]):
                    key = f"{split} {start} epoch {epoch}"
                    parts.append(ledger.once(key, partial(_compared, ask, epoch, some, last)))
                    bar.update(len(some))
    return found


def _maps(
    folder: Path,
    course: KeptTraining,
    methods: Sequence[str],
    layers: str | Sequence[str],
    lr: float,
    epoch: int,
    seeds: Sequence[int],
) -> dict[str, SaliencyMaps]:
    """Explain scenes at an epoch, without the step and with it in both directions."""
    model = at_epoch(folder, course, epoch)
    images, targets = [scenes.name(seed) for seed in seeds], [_largest(seed) for seed in seeds]
    steps = {name: None if name == "plain" else Meta(lr, name) for name in _VARIANTS}
    return {
        name: explain(model, images, targets, methods=methods, layers=layers, meta=step) for name, step in steps.items()
    }


def _largest(seed: int) -> str:
    """Name the shape of the object of a scene of which most is to be seen."""
    return max(scenes.draw(seed).objects, key=lambda thing: int(thing.mask.sum())).kind


def _compared(
    ask: Ask, epoch: int, seeds: Sequence[int], last: Callable[[], dict[str, SaliencyMaps]]
) -> dict[str, Any]:
    """Hold the maps of an epoch against each other, and against those of the last."""
    now = ask(epoch, seeds)
    return {
        "with_and_without": {name: _rho(now["plain"], now[name]) for name in _VARIANTS[1:]},
        "against_last": {name: _rho(now[name], last()[name]) for name in _VARIANTS},
    }


def _rho(one: SaliencyMaps, other: SaliencyMaps) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {method: {} for method in one.methods}
    for method, layer in one.pairs:
        rho = map_correlation(one[method, layer], other[method, layer], one.size)
        found[method][layer] = rho.flatten().tolist()
    return found


def _precision(folder: Path, course: KeptTraining, epoch: int) -> float:
    return mean_average_precision(at_epoch(folder, course, epoch).network, scenes.HELD_OUT[:_PRECISION])[0]


def _means(epochs: Sequence[Sequence[dict[str, Any]]], what: str) -> dict[str, Any]:
    """Average over the images: name → method → layer → [epoch]."""
    first = epochs[0][0][what]
    return {
        name: {
            method: {
                layer: [mean(rho for part in parts for rho in part[what][name][method][layer]) for parts in epochs]
                for layer in places
            }
            for method, places in methods.items()
        }
        for name, methods in first.items()
    }
