"""What the pointing game has shown: accuracies by player, beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from ..explainers.combination import is_combination
from .pointing_rule import Score
from .published import published
from .result import Result
from .tables import Cell, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Answer", "told"]

Means = Mapping[str, Mapping[str, float | None]]
"""Accuracy, 0…1, by player and subset; None where no pair was asked for."""

_SUBSETS = ("all", "difficult")
_POINTS = ("centre", "random")


@dataclass(frozen=True)
class Answer:
    """A class on a photo: whether the pair is of the difficult subset, and whether each player hit it."""

    label: str
    subset: bool
    hits: dict[str, bool]


def told(answers: Sequence[Answer], labels: Sequence[str], network: str, notes: Sequence[str]) -> Result:
    """Tell the answers of a game: accuracies from 0 to 1 as figures, in per cent as tables.

    labels: the classes that were asked for. Players are "METHOD / LAYER", "centre" and "random".
    """
    scores = {name: {subset: _score(answers, name, subset) for subset in _SUBSETS} for name in answers[0].hits}
    means = {name: {subset: score.mean(labels) for subset, score in row.items()} for name, row in scores.items()}
    figures: dict[str, Any] = {
        "pairs": {subset: scores["centre"][subset].asked for subset in _SUBSETS},
        "accuracy": means,
        "torchray_accuracy": {
            name: {subset: score.torchray_mean(labels) for subset, score in row.items()} for name, row in scores.items()
        },
        "classes": {
            name: {label: [score["all"].hits.get(label, 0), score["all"].misses.get(label, 0)] for label in labels}
            for name, score in scores.items()
        },
    }
    tables = [_accuracies(figures, len(labels), scores["centre"], notes), _beside(means, network)]
    return Result("pointing_game", figures, tables, {"pointing_game": partial(_picture, means)})


def _score(answers: Sequence[Answer], player: str, subset: str) -> Score:
    score = Score()
    for answer in answers:
        if subset == "all" or answer.subset:
            score.add(answer.label, answer.hits[player])
    return score


def _accuracies(figures: Mapping[str, Any], classes: int, asked: Mapping[str, Score], notes: Sequence[str]) -> Table:
    """Tell every player's accuracy; also as TorchRay averages, where a class was not there to be asked for."""
    present = {subset: len(set(asked[subset].hits) | set(asked[subset].misses)) for subset in _SUBSETS}
    columns, kinds = ["all", "difficult"], ["accuracy"]
    told = [
        f"Per cent of {figures['pairs']['all']} pairs of photo and class, {figures['pairs']['difficult']} of them"
        " difficult, averaged over the classes."
    ]
    if min(present.values()) < classes:
        columns += ["all, TorchRay's mean", "difficult, TorchRay's mean"]
        kinds += ["torchray_accuracy"]
        told.append(
            f"{present['all']} of {classes} classes were there to be asked for ({present['difficult']} among the"
            " difficult pairs); TorchRay's mean counts the others as 0."
        )
    rows: list[list[Cell]] = [
        [*_player(name), *(_percent(figures[kind][name][subset]) for kind in kinds for subset in _SUBSETS)]
        for name in figures["accuracy"]
    ]
    return Table("Pointing game: accuracy", ["method", "layer", *columns], rows, [*told, *notes], 1)


def _beside(means: Means, network: str) -> Table:
    """Hold each method's best layer and best combination against the published ones of the nearest network."""
    like = "vgg16" if "vgg" in network.casefold() else "resnet50"
    columns = [f"{what}, {subset}" for subset in _SUBSETS for what in ("best layer", "best combination")]
    others = [f"VOC07 {what}, {subset}" for subset in _SUBSETS for what in ("single", "combined")]
    benchmark = [f"{data} {subset}" for data in ("VOC07", "COCO") for subset in _SUBSETS]
    rows: list[list[Cell]] = []
    for method in dict.fromkeys(_player(name)[0] for name in means):
        own = [_best(means, method, subset, joined) for subset in _SUBSETS for joined in (False, True)]
        best = published("pointing_best").get(method, {}).get(like, {})
        paper = [best.get(subset, {}).get(kind) for subset in _SUBSETS for kind in ("single", "combined")]
        known = published("pointing_benchmark").get(method, {})
        torchray = [known.get(data, {}).get(like, {}).get(subset) for data in ("voc07", "coco") for subset in _SUBSETS]
        rows.append([method, *own, *paper, *torchray])
    notes = [
        f"Per cent. Published figures are of {like}, trained on ImageNet and fine-tuned on the data set named: VOC07"
        " single and combined by Rebuffi et al. (2020), Table 3; the last four by Fong et al. (2019), TorchRay, which"
        " fixes a layer for each method. They compare only with a game on the same data and a network of that kind.",
    ]
    names = ["method", *columns, *(f"published {name}" for name in [*others, *benchmark])]
    return Table("Pointing game: beside the published figures", names, rows, notes, 1)


def _best(means: Means, method: str, subset: str, joined: bool) -> Cell:
    """Find the best accuracy of a method at one layer, or of its combinations; centre and chance have no layer."""
    own = {_player(name)[1]: row[subset] for name, row in means.items() if _player(name)[0] == method}
    found = [share for layer, share in own.items() if share is not None and is_combination(layer or "") == joined]
    return _percent(max(found, default=None))


def _player(name: str) -> tuple[str, str | None]:
    method, _, layer = name.partition(" / ")
    return method, layer or None


def _percent(share: float | None) -> float:
    """Give a share in per cent, NaN where there is none."""
    return math.nan if share is None else 100 * share


def _picture(means: Means) -> Figure:
    """Draw accuracy over the layers, a line for each method, as the paper's Figure 3; combinations as points."""
    from matplotlib.figure import Figure

    played = [_player(name) for name in means]
    names = {layer: None for _, layer in played if layer}
    layers = sorted(names, key=lambda name: (is_combination(name), name != "input"))
    drawing = Figure(figsize=(10, 4), layout="constrained")
    for axes, subset in zip(drawing.subplots(1, 2, sharey=True), _SUBSETS, strict=True):
        for number, method in enumerate(dict.fromkeys(method for method, layer in played if layer)):
            own = [layer for layer in layers if (method, layer) in played]
            for joined, style in ((False, "o-"), (True, "o")):
                places = [layers.index(layer) for layer in own if is_combination(layer) == joined]
                shares = [_percent(means[f"{method} / {layers[place]}"][subset]) for place in places]
                axes.plot(places, shares, style, color=f"C{number}", label=None if joined else method)
        for point, style in zip(_POINTS, ("--", ":"), strict=True):
            axes.axhline(_percent(means[point][subset]), color="grey", linestyle=style, label=point)
        axes.set_xticks(range(len(layers)), layers, rotation=60)
        axes.set_title(subset)
        axes.grid(alpha=0.3)
    drawing.axes[0].set_ylabel("accuracy (%)")
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return drawing
