"""The pointing game: does a class's map have its largest value on an object of that class?

Zhang et al. (2016) as TorchRay plays it (Fong et al., 2019) and the paper's tables were made: a fully convolutional
classifier sees the whole photo, the scores of its grid send back a spatial softmax, the map is laid over the original
photo, and its first largest place must lie nearer than 15 pixels to the ground truth. Accuracy is the mean over the
classes; once for all pairs of photo and class, once for the difficult ones.

What the pointing game has shown: accuracies by player, beside the published ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import GradlightError, nearest
from ..explainers.combination import is_combination
from ..explainers.explain import explain
from ..explainers.layer_selection import choose_layers
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.methods import AnyMethod, MethodLike, methods_of
from ..models.base import Explainable, View
from .ledger import Ledger
from .metrics import TOLERANCE, Score, hits, laid, largest, smoothed, with_combinations
from .samples import Sample, Samples, Truth
from .tables import Cell, Result, Table, published
from .whole_photo import WholePhotos, whole_photos

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Answer", "Joined", "class_indices", "player", "pointing_game", "points", "told"]

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


Joined = Callable[[SaliencyMaps], SaliencyMaps]
Play = Callable[[Sequence[str], Sequence[str], Joined], dict[tuple[str, str], float]]


def pointing_game(
    model: Explainable,
    samples: Samples,
    methods: MethodLike | Sequence[MethodLike],
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    meta: Meta | None = None,
    classes: Sequence[str] | None = None,
    joined: Joined = with_combinations,
    name: str = "pointing_game",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Play with a classifier: every method at every layer, the layers in each combination, the centre and chance.

    samples: photos whose objects are known. classes: of the data set, those to ask for; all unless given, and the
    network must have them by the same names. joined: puts combinations of layers beside the maps of a photo; name: of
    the game in the ledger, another one for each `joined`. tolerance: in pixels of the photo. seed: of the random
    points. Raises GradlightError for a model without classes, for classes that it does not have, for photos of which
    nothing is known, and where an annotation is not of its photo.
    """
    playing = whole_photos(model)
    indices = class_indices(_asked(samples, classes), playing.labels)
    names = [layer.name for layer in choose_layers(playing, layers, playing.size)]
    chosen = tuple(methods_of(methods))
    job = _Job(playing, chosen, tuple(names), meta, indices, joined, tolerance, seed)
    answers: list[Answer] = []
    for number, sample in enumerate(tqdm(samples, unit="photo", disable=not progress)):
        found = ledger.once(f"{name} {job.key} {sample.key}", partial(job.play, sample, number))
        answers += [Answer(**answer) for answer in found]
    if not answers:
        raise GradlightError(f"On {len(samples)} photos there is no object to point at: none of {', '.join(indices)}.")
    return told(answers, list(indices), playing.name, [*samples.notes, *playing.notes])


def player(
    model: Explainable,
    samples: Samples,
    *,
    ledger: Ledger,
    name: str,
    classes: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> Play:
    """Make the game that other experiments play: methods, layers, joined → accuracy, 0…1, by (method, layer).

    name: of their games in the ledger. The other arguments are those of `pointing_game`.
    """

    def play(methods: Sequence[str], layers: Sequence[str], joined: Joined) -> dict[tuple[str, str], float]:
        result = pointing_game(
            model,
            samples,
            methods,
            layers,
            ledger=ledger,
            classes=classes,
            joined=joined,
            name=name,
            tolerance=tolerance,
        )
        split = {each.partition(" / ")[::2]: row["all"] for each, row in result.figures["accuracy"].items()}
        return {(method, layer): share for (method, layer), share in split.items() if layer}

    return play


def class_indices(labels: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Find the classes of a data set among a network's by name, without regard to case and to "_" for a blank.

    Raises GradlightError that names the classes which the network does not have, or has twice.
    """
    exact = {label: index for index, label in enumerate(known) if known.count(label) == 1}
    folded: dict[str, list[int]] = {}
    for index, label in enumerate(known):
        folded.setdefault(_fold(label), []).append(index)
    found: dict[str, int] = {}
    for label in labels:
        same = [exact[label]] if label in exact else folded.get(_fold(label), [])
        if len(same) == 1:
            found[label] = same[0]
    missing = [label for label in labels if label not in found]
    if missing:
        first = nearest(missing[0], known)
        raise GradlightError(
            f"{len(missing)} of the {len(labels)} classes of the data set are not among the {len(known)} of the"
            f" network: {', '.join(missing)}.{first} Give labels= with the data set's names to the model, or classes="
            " those to ask for."
        )
    return found


def _fold(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def _asked(samples: Samples, classes: Sequence[str] | None) -> Sequence[str]:
    if not samples.labels:
        raise GradlightError(
            "Nothing is known of the objects on these photos, so there is nothing to point at: the pointing game takes"
            ' "scenes", a VOC root, or COCO\'s photos with annotations.'
        )
    wrong = [label for label in classes or () if label not in samples.labels]
    if wrong:
        raise GradlightError(f"The data set has no class {wrong[0]!r}.{nearest(wrong[0], samples.labels)}")
    return samples.labels if classes is None else list(dict.fromkeys(classes))


@dataclass(frozen=True)
class _Job:
    """What is done with every photo."""

    model: WholePhotos
    methods: tuple[AnyMethod, ...]
    layers: tuple[str, ...]
    meta: Meta | None
    indices: dict[str, int]
    joined: Joined
    tolerance: float
    seed: int

    @property
    def key(self) -> str:
        """Name the unit of work that one photo is, apart from the photo."""
        step = None if self.meta is None else self.meta.describe()
        methods = [method.name for method in self.methods]
        about = [methods, self.layers, step, list(self.indices), self.tolerance, self.seed]
        return json.dumps(about)

    def play(self, sample: Sample, number: int) -> list[dict[str, Any]]:
        """Ask for every class on a photo, the number-th: an answer for each, with every player's hit or miss."""
        truths = [truth for truth in sample.truths if truth.label in self.indices and not truth.difficult]
        if not truths:
            return []
        targets = [[self.indices[truth.label] for truth in truths]]
        maps = explain(
            self.model, [sample.image], targets, methods=self.methods, layers=self.layers, meta=self.meta, batch_size=1
        )
        _check(sample, maps)
        places = points(self.joined(maps)) | self._without_maps(sample, truths, number)
        return [
            {
                "label": truth.label,
                "subset": truth.subset,
                "hits": {name: hits(truth.mask, at[k][0], at[k][1], self.tolerance) for name, at in places.items()},
            }
            for k, truth in enumerate(truths)
        ]

    def _without_maps(self, sample: Sample, truths: Sequence[Truth], number: int) -> dict[str, list[list[float]]]:
        """Point at the centre, and anywhere; the same place for a photo, whatever was played before."""
        random = np.random.default_rng([self.seed, number])
        anywhere = random.integers(0, [sample.height, sample.width], (len(truths), 2))
        return {"centre": [[sample.height / 2, sample.width / 2]] * len(truths), "random": anywhere.tolist()}


def points(maps: SaliencyMaps) -> dict[str, list[list[float]]]:
    """Tell where the maps of one photo point: (row, column) of the photo for each target, by "METHOD / LAYER"."""
    view = maps.images[0].view
    return {f"{method} / {layer}": _point(maps.rows(method, layer).cpu(), layer, view) for method, layer in maps.pairs}


def _point(rows: Tensor, layer: str, view: View) -> list[list[float]]:
    over = laid(rows, view)
    found: list[list[float]] = largest(smoothed(over) if layer == "input" else over).tolist()
    return found


def _check(sample: Sample, maps: SaliencyMaps) -> None:
    photo = maps.images[0]
    if (photo.width, photo.height) != (sample.width, sample.height):
        raise GradlightError(
            f"{sample.key}: the photo has {photo.width} x {photo.height} pixels, its annotation is of"
            f" {sample.width} x {sample.height}. Check that the annotations belong to the photos."
        )
