"""What the inner step of meta-saliency does as a network learns (paper, supplement D, figures 10 to 12).

A network is trained on scenes with its weights kept after every epoch. At each of them, maps with the step are held
against those without it, on scenes that the training sees and on others; and maps of each epoch against the last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..data.scenes import generator as scenes
from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..models.scenes.classifier import mean_average_precision
from .epochs import Course, at_epoch, kept_epochs
from .ledger import Ledger
from .means import mean
from .meta_report import over_epochs, steps_side_by_side, tables
from .ranks import map_correlation
from .result import Result

__all__ = ["SPLITS", "meta_analysis"]

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
    course: Course | None = None,
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
    course = course or Course()
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
    course: Course,
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


def _precision(folder: Path, course: Course, epoch: int) -> float:
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
