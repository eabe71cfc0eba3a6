"""The pointing game: does a class's map have its largest value on an object of that class?

Zhang et al. (2016), as TorchRay plays it (Fong et al., 2019) and as the paper's tables were made: a fully convolutional
classifier gets the whole photo, the gradient starts from a spatial softmax of its grid of scores, the map is upsampled
to the original photo, and its first largest location must be nearer than 15 pixels to the ground truth. Accuracy is the
mean over the classes; once for all pairs of photo and class, once for the difficult ones.
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
from ..models.layers.layout import Extent
from .ledger import Ledger
from .metrics import TOLERANCE, HitCounts, argmax_location, is_hit, lay_over_photo, smooth, with_combinations
from .samples import Sample, Samples, Truth
from .tables import Cell, Result, Table, published
from .whole_photo import WholePhotos, whole_photos

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "CombineMaps",
    "MeasurePointing",
    "PairHits",
    "class_indices",
    "pointed_locations",
    "pointing_game",
    "pointing_measure",
    "pointing_result",
]

CombineMaps = Callable[[SaliencyMaps], SaliencyMaps]
"""Adds combined layers to the maps of one photo."""

MeasurePointing = Callable[[Sequence[str], Sequence[str], CombineMaps], Mapping[tuple[str, str], float]]
"""Plays the game: methods, layers, function that adds combined layers → accuracy, 0…1, by (method, layer)."""


def pointing_game(
    model: Explainable,
    samples: Samples,
    methods: MethodLike | Sequence[MethodLike],
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    meta: Meta | None = None,
    classes: Sequence[str] | None = None,
    combine: CombineMaps = with_combinations,
    name: str = "pointing_game",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Play with a classifier: every method at every layer, the combined layers, the centre and random locations.

    Args:
        model: The classifier.
        samples: Photos whose objects are known.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        ledger: Keeps the hits of each photo.
        meta: The inner step of meta-saliency.
        classes: Classes of the data set; all of them unless given. The network must have them under the same names.
        combine: Adds combined layers to the maps of a photo.
        name: The game's name in the ledger, a different one for each `combine`.
        tolerance: In pixels of the photo.
        seed: Of the random locations.
        progress: Show a progress bar.

    Returns:
        figures["accuracy"]: "METHOD / LAYER", "centre" or "random" → "all" or "difficult" → accuracy, 0…1.

    Raises:
        GradlightError: The model has no classes or not those asked for, the objects on the photos are unknown, or an
            annotation has another size than its photo.
    """
    whole_photo_model = whole_photos(model)
    indices = class_indices(_selected_classes(samples, classes), whole_photo_model.labels)
    layer_names = [layer.name for layer in choose_layers(whole_photo_model, layers, whole_photo_model.size)]
    game = _Game(
        whole_photo_model, tuple(methods_of(methods)), tuple(layer_names), meta, indices, combine, tolerance, seed
    )
    pairs: list[PairHits] = []
    for number, sample in enumerate(tqdm(samples, unit="photo", disable=not progress)):
        entries = ledger.once(f"{name} {game.key} {sample.key}", partial(game.play, sample, number))
        pairs += [PairHits(**entry) for entry in entries]
    if not pairs:
        raise GradlightError(f"On {len(samples)} photos there is no object to point at: none of {', '.join(indices)}.")
    notes = [*samples.notes, *whole_photo_model.notes]
    return pointing_result(pairs, list(indices), whole_photo_model.name, notes)


def pointing_measure(
    model: Explainable,
    samples: Samples,
    *,
    ledger: Ledger,
    name: str,
    classes: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> MeasurePointing:
    """Make the function with which other experiments play the game.

    Args:
        model: The classifier.
        samples: Photos whose objects are known.
        ledger: Keeps the hits of each photo.
        name: The games' name in the ledger.
        classes: As in `pointing_game`.
        tolerance: In pixels of the photo.

    Returns:
        A function of methods, layers and `combine`, which gives the accuracy, 0…1, by (method, layer).
    """

    def measure(methods: Sequence[str], layers: Sequence[str], combine: CombineMaps) -> dict[tuple[str, str], float]:
        result = pointing_game(
            model,
            samples,
            methods,
            layers,
            ledger=ledger,
            classes=classes,
            combine=combine,
            name=name,
            tolerance=tolerance,
        )
        accuracy = {_split(map_name): row["all"] for map_name, row in result.figures["accuracy"].items()}
        return {(method, layer): value for (method, layer), value in accuracy.items() if layer}

    return measure


def class_indices(labels: Sequence[str], network_labels: Sequence[str]) -> dict[str, int]:
    """Find the classes of a data set among a network's by name, ignoring case and reading "_" as a blank.

    Args:
        labels: Classes of the data set.
        network_labels: Classes of the network.

    Returns:
        Class of the data set → index of the network's class.

    Raises:
        GradlightError: The network lacks classes or has a name twice; the error names these classes.

    Example:
        >>> class_indices(["potted plant", "dog"], ["cat", "Dog", "potted_plant"])
        {'potted plant': 2, 'dog': 1}
    """
    exact = {label: index for index, label in enumerate(network_labels) if network_labels.count(label) == 1}
    by_folded_name: dict[str, list[int]] = {}
    for index, label in enumerate(network_labels):
        by_folded_name.setdefault(_fold(label), []).append(index)
    indices: dict[str, int] = {}
    for label in labels:
        candidates = [exact[label]] if label in exact else by_folded_name.get(_fold(label), [])
        if len(candidates) == 1:
            indices[label] = candidates[0]
    missing = [label for label in labels if label not in indices]
    if missing:
        first = nearest(missing[0], network_labels)
        raise GradlightError(
            f"{len(missing)} of the {len(labels)} classes of the data set are not among the {len(network_labels)} of"
            f" the network: {', '.join(missing)}.{first} Give labels= with the data set's names to the model, or"
            " classes= those to ask for."
        )
    return indices


def _fold(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def _selected_classes(samples: Samples, classes: Sequence[str] | None) -> Sequence[str]:
    if not samples.labels:
        raise GradlightError(
            "The objects on these photos are unknown, so there is nothing to point at: the pointing game takes"
            ' "scenes", a VOC root, or COCO\'s photos with annotations.'
        )
    unknown = [label for label in classes or () if label not in samples.labels]
    if unknown:
        raise GradlightError(f"The data set has no class {unknown[0]!r}.{nearest(unknown[0], samples.labels)}")
    return samples.labels if classes is None else list(dict.fromkeys(classes))


# ---------------------------------------------------------------------------------------------------------------------
# The game on one photo


@dataclass(frozen=True)
class _Game:
    """The settings of a game; they are the same for every photo."""

    model: WholePhotos
    methods: tuple[AnyMethod, ...]
    layers: tuple[str, ...]
    meta: Meta | None
    indices: dict[str, int]
    combine: CombineMaps
    tolerance: float
    seed: int

    @property
    def key(self) -> str:
        """Describe the settings, for the ledger."""
        step = None if self.meta is None else self.meta.describe()
        methods = [method.name for method in self.methods]
        return json.dumps([methods, self.layers, step, list(self.indices), self.tolerance, self.seed])

    def play(self, sample: Sample, number: int) -> list[dict[str, Any]]:
        """Give the fields of PairHits of every class on the photo with the given number."""
        truths = [truth for truth in sample.truths if truth.label in self.indices and not truth.difficult]
        if not truths:
            return []
        targets = [[self.indices[truth.label] for truth in truths]]
        maps = explain(
            self.model, [sample.image], targets, methods=self.methods, layers=self.layers, meta=self.meta, batch_size=1
        )
        _check_size(sample, maps)
        locations = pointed_locations(self.combine(maps)) | self._locations_without_maps(sample, truths, number)
        return [
            {
                "label": truth.label,
                "subset": truth.subset,
                "hits": {
                    name: is_hit(truth.mask, points[k][0], points[k][1], self.tolerance)
                    for name, points in locations.items()
                },
            }
            for k, truth in enumerate(truths)
        ]

    def _locations_without_maps(
        self, sample: Sample, truths: Sequence[Truth], number: int
    ) -> dict[str, list[list[float]]]:
        """Give the centre and random locations, which depend on the photo's number and the seed alone."""
        generator = np.random.default_rng([self.seed, number])
        random = generator.integers(0, [sample.height, sample.width], (len(truths), 2))
        return {"centre": [[sample.height / 2, sample.width / 2]] * len(truths), "random": random.tolist()}


def pointed_locations(maps: SaliencyMaps) -> dict[str, list[list[float]]]:
    """Find the locations that the maps of one photo point at.

    Args:
        maps: Maps of one photo.

    Returns:
        "METHOD / LAYER" → (row, column) in the photo for each target.
    """
    view = maps.images[0].view
    return {
        f"{method} / {layer}": _locations(maps.rows(method, layer).cpu(), layer, view, maps.layer_info[layer].extent)
        for method, layer in maps.pairs
    }


def _locations(rows: Tensor, layer: str, view: View, extent: Extent | None) -> list[list[float]]:
    photo_maps = lay_over_photo(rows, view, extent)
    locations: list[list[float]] = argmax_location(smooth(photo_maps) if layer == "input" else photo_maps).tolist()
    return locations


def _check_size(sample: Sample, maps: SaliencyMaps) -> None:
    photo = maps.images[0]
    if (photo.width, photo.height) != (sample.width, sample.height):
        raise GradlightError(
            f"{sample.key}: the photo has {photo.width} x {photo.height} pixels, its annotation is of"
            f" {sample.width} x {sample.height}. Check that the annotations belong to the photos."
        )


# ---------------------------------------------------------------------------------------------------------------------
# The result

Accuracies = Mapping[str, Mapping[str, float | None]]
"""Accuracy, 0…1, by "METHOD / LAYER" (or "centre", "random") and subset; None if there was no pair."""

_SUBSETS = ("all", "difficult")
_WITHOUT_MAPS = ("centre", "random")


@dataclass(frozen=True)
class PairHits:
    """The hits of one pair of photo and class.

    Args:
        label: The class.
        subset: Whether the pair is in the difficult subset.
        hits: "METHOD / LAYER", "centre" or "random" → whether it hit.
    """

    label: str
    subset: bool
    hits: dict[str, bool]


def pointing_result(pairs: Sequence[PairHits], labels: Sequence[str], network: str, notes: Sequence[str]) -> Result:
    """Make the result of a game: accuracies from 0 to 1 as figures, in per cent as tables.

    Args:
        pairs: The hits of all pairs.
        labels: The classes of the game.
        network: The network's name, which selects the published figures to compare with.
        notes: Notes for the first table.

    Returns:
        The result.
    """
    counts = {name: {subset: _count(pairs, name, subset) for subset in _SUBSETS} for name in pairs[0].hits}
    accuracy = {name: {subset: count.mean(labels) for subset, count in row.items()} for name, row in counts.items()}
    figures: dict[str, Any] = {
        "pairs": {subset: counts["centre"][subset].total for subset in _SUBSETS},
        "accuracy": accuracy,
        "torchray_accuracy": {
            name: {subset: count.torchray_mean(labels) for subset, count in row.items()} for name, row in counts.items()
        },
        "classes": {
            name: {label: [row["all"].hits.get(label, 0), row["all"].misses.get(label, 0)] for label in labels}
            for name, row in counts.items()
        },
    }
    tables = [_accuracy_table(figures, len(labels), counts["centre"], notes), _comparison_table(accuracy, network)]
    return Result("pointing_game", figures, tables, {"pointing_game": partial(_draw_accuracy, accuracy)})


def _count(pairs: Sequence[PairHits], name: str, subset: str) -> HitCounts:
    counts = HitCounts()
    for pair in pairs:
        if subset == "all" or pair.subset:
            counts.add(pair.label, pair.hits[name])
    return counts


def _accuracy_table(
    figures: Mapping[str, Any], class_count: int, counts: Mapping[str, HitCounts], notes: Sequence[str]
) -> Table:
    """Make a row for each map; where a class has no pair, also with TorchRay's mean."""
    present = {subset: len(set(counts[subset].hits) | set(counts[subset].misses)) for subset in _SUBSETS}
    columns, kinds = ["all", "difficult"], ["accuracy"]
    own_notes = [
        f"Per cent of {figures['pairs']['all']} pairs of photo and class, {figures['pairs']['difficult']} of them"
        " difficult, averaged over the classes."
    ]
    if min(present.values()) < class_count:
        columns += ["all, TorchRay's mean", "difficult, TorchRay's mean"]
        kinds += ["torchray_accuracy"]
        own_notes.append(
            f"{present['all']} of {class_count} classes are on the photos ({present['difficult']} among the"
            " difficult pairs); TorchRay's mean counts the others as 0."
        )
    rows: list[list[Cell]] = [
        [*_split(name), *(_percent(figures[kind][name][subset]) for kind in kinds for subset in _SUBSETS)]
        for name in figures["accuracy"]
    ]
    return Table("Pointing game: accuracy", ["method", "layer", *columns], rows, [*own_notes, *notes], 1)


def _comparison_table(accuracy: Accuracies, network: str) -> Table:
    """Compare each method's best layer and best combination with the published ones of the nearest network."""
    architecture = "vgg16" if "vgg" in network.casefold() else "resnet50"
    columns = [f"{kind}, {subset}" for subset in _SUBSETS for kind in ("best layer", "best combination")]
    paper_columns = [f"VOC07 {kind}, {subset}" for subset in _SUBSETS for kind in ("single", "combined")]
    torchray_columns = [f"{data} {subset}" for data in ("VOC07", "COCO") for subset in _SUBSETS]
    rows: list[list[Cell]] = []
    for method in dict.fromkeys(_split(name)[0] for name in accuracy):
        own = [_best(accuracy, method, subset, combined) for subset in _SUBSETS for combined in (False, True)]
        best = published("pointing_best").get(method, {}).get(architecture, {})
        paper = [best.get(subset, {}).get(kind) for subset in _SUBSETS for kind in ("single", "combined")]
        benchmark = published("pointing_benchmark").get(method, {})
        torchray = [
            benchmark.get(data, {}).get(architecture, {}).get(subset)
            for data in ("voc07", "coco")
            for subset in _SUBSETS
        ]
        rows.append([method, *own, *paper, *torchray])
    notes = [
        f"Per cent. Published figures are of {architecture}, trained on ImageNet and fine-tuned on the data set named:"
        " VOC07 single and combined by Rebuffi et al. (2020), Table 3; the last four by Fong et al. (2019), TorchRay,"
        " which fixes a layer for each method. They compare only with a game on the same data and a network of that"
        " kind.",
    ]
    published_columns = [f"published {column}" for column in [*paper_columns, *torchray_columns]]
    columns = ["method", *columns, *published_columns]
    return Table("Pointing game: beside the published figures", columns, rows, notes, 1)


def _best(accuracy: Accuracies, method: str, subset: str, combined: bool) -> Cell:
    """Find a method's best accuracy at one layer or of its combinations; "centre" and "random" have no layer."""
    by_layer = {_split(name)[1]: row[subset] for name, row in accuracy.items() if _split(name)[0] == method}
    shares = [
        share for layer, share in by_layer.items() if share is not None and is_combination(layer or "") == combined
    ]
    return _percent(max(shares, default=None))


def _split(name: str) -> tuple[str, str | None]:
    """Split "METHOD / LAYER"; "centre" and "random" have no layer."""
    method, _, layer = name.partition(" / ")
    return method, layer or None


def _percent(share: float | None) -> float:
    """Convert a share to per cent, None to NaN."""
    return math.nan if share is None else 100 * share


def _draw_accuracy(accuracy: Accuracies) -> Figure:
    """Draw accuracy over the layers, a line for each method, as the paper's Figure 3; combinations as points."""
    from matplotlib.figure import Figure

    pairs = [_split(name) for name in accuracy]
    layer_set = {layer: None for _, layer in pairs if layer}
    layers = sorted(layer_set, key=lambda layer: (is_combination(layer), layer != "input"))
    drawing = Figure(figsize=(10, 4), layout="constrained")
    for axes, subset in zip(drawing.subplots(1, 2, sharey=True), _SUBSETS, strict=True):
        for number, method in enumerate(dict.fromkeys(method for method, layer in pairs if layer)):
            own_layers = [layer for layer in layers if (method, layer) in pairs]
            for combined, style in ((False, "o-"), (True, "o")):
                positions = [layers.index(layer) for layer in own_layers if is_combination(layer) == combined]
                shares = [_percent(accuracy[f"{method} / {layers[position]}"][subset]) for position in positions]
                axes.plot(positions, shares, style, color=f"C{number}", label=None if combined else method)
        for name, style in zip(_WITHOUT_MAPS, ("--", ":"), strict=True):
            axes.axhline(_percent(accuracy[name][subset]), color="grey", linestyle=style, label=name)
        axes.set_xticks(range(len(layers)), layers, rotation=60)
        axes.set_title(subset)
        axes.grid(alpha=0.3)
    drawing.axes[0].set_ylabel("accuracy (%)")
    drawing.legend(*drawing.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small")
    return drawing
