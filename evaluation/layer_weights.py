"""How much each layer tells of its images, measured; and what layers weighted so are worth in the pointing game.

Paper, section 4.2, table 3, supplement C (table 6 and figure 9).
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import GradlightError, GradlightWarning
from ..explainers.combination import combination_name
from ..explainers.combination import layer_weights as shares_of
from ..explainers.layer_selection import choose_layers
from ..explainers.layer_weights import accuracy, averaged_features, spread
from ..explainers.layer_weights_store import KINDS, LayerMeasure, MeasuredWeights, keep
from ..explainers.maps import SaliencyMaps
from ..models.base import Explainable
from .ledger import Ledger
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["PlayGame", "joined_by", "layer_weights", "measure", "weightings"]

PlayGame = Callable[
    [Sequence[str], Sequence[str], Callable[[SaliencyMaps], SaliencyMaps]], Mapping[tuple[str, str], float]
]
"""PlayGame the pointing game with methods and layers: (method, layer) → accuracy, 0…1.

The function is applied to the maps of every image before they play, and may put combinations of layers beside them.
"""

_HOW = ("sum", "product")


def layer_weights(
    model: Explainable,
    samples: Sequence[Sample],
    methods: Sequence[str] = (),
    layers: str | Sequence[str] = "stages",
    *,
    data: str,
    ledger: Ledger,
    play: PlayGame | None = None,
    path: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Measure the layers' weights, keep them, and hold the best single layer against every weighting and way to join.

    data: the name of the data set. path: of the JSON, instead of the place where `maps.combine(weights="spread")` looks
    for it. play: the pointing game, for the second table; seed: of the split for the probe. Raises GradlightError for
    too few samples, and for layers that are not there.
    """
    measured = measure(model, samples, layers, data=data, ledger=ledger, seed=seed, progress=progress)
    place = keep(measured, path)
    asked = weightings(measured)
    figures: dict[str, Any] = {"measured": measured.to_json(), "weights": _shares(asked, list(measured.layers))}
    tables = [_weights_table(measured, asked, place)]
    if play is not None:
        found = play(methods, list(measured.layers), partial(joined_by, asked=asked))
        figures["pointing"] = {f"{method} / {layer}": value for (method, layer), value in found.items()}
        tables.append(_pointing_table(found, methods, list(measured.layers), list(asked)))
    return Result("layer_weights", figures, tables, {"layer_weights": partial(_picture, figures["weights"])})


def measure(
    model: Explainable,
    samples: Sequence[Sample],
    layers: str | Sequence[str] = "stages",
    *,
    data: str,
    ledger: Ledger,
    seed: int = 0,
    progress: bool = False,
) -> MeasuredWeights:
    """Measure spread and probe accuracy of layers; where no sample has a truth, there is no accuracy.

    Where every sample shows exactly one class, the accuracy is that of choosing it; else the mean average precision.
    """
    if len(samples) < 2:
        raise GradlightError(f"Layer weights are measured over several images; {len(samples)} were given.")
    names = layers
    rows = []
    for sample in tqdm(samples, unit="image", disable=not progress):
        rows.append(ledger.once(f"features of {sample.key}", partial(_row, model, sample, names)))
        # Photos of another size have the same layers, which lie otherwise.
        names = list(rows[0]["features"])
    labels, meaning = _labels([row["labels"] for row in rows])
    found = {}
    for layer in names:
        features = torch.stack([_unpacked(row["features"][layer]) for row in rows])
        score = None
        if labels is not None:
            score = ledger.once(f"accuracy at {layer}", partial(accuracy, features, labels, seed))
        found[layer] = LayerMeasure(spread(features), score)
    return MeasuredWeights(model.name, model.weights_sha256(), data, len(rows), found, meaning, seed)


def weightings(measured: MeasuredWeights) -> dict[str, str | dict[str, float]]:
    """Name every weighting that is to be had: those that need no measuring, and what was measured."""
    known = {kind: measured.weights(kind) for kind in KINDS}
    return {"uniform": "uniform", "linear": "linear", **{kind: found for kind, found in known.items() if found}}


def joined_by(maps: SaliencyMaps, asked: Mapping[str, str | dict[str, float]]) -> SaliencyMaps:
    """Put beside maps their combinations "HOW(WEIGHTING)", by sum and by product with every asked weighting."""
    joined = maps
    with warnings.catch_warnings():
        # Grad-CAM has flat maps (nothing speaks for the target), and so they play: as zeros.
        warnings.simplefilter("ignore", GradlightWarning)
        for name, weights in asked.items():
            for how in _HOW:
                joined = joined.joined(_named(maps.combine(weights, how), combination_name(how, name)))
    return joined


def _named(maps: SaliencyMaps, name: str) -> SaliencyMaps:
    """Give another name to the one layer of maps."""
    (layer,) = maps.layers
    rows = {(method, name): maps.rows(method, layer) for method in maps.methods}
    return SaliencyMaps(rows, {name: maps.about[layer]}, maps.images, maps.targets, maps.size, maps.origin)


def _row(model: Explainable, sample: Sample, layers: str | Sequence[str]) -> dict[str, Any]:
    """Look at one image: the classes that it shows, and its averaged features at each layer."""
    pixels = model.pixels([sample.image])
    chosen = choose_layers(model, layers, (pixels.shape[2], pixels.shape[3]))
    packed = {name: _packed(values[0]) for name, values in averaged_features(model, pixels, chosen).items()}
    return {"labels": [truth.label for truth in sample.truths], "features": packed}


def _packed(values: Tensor) -> str:
    # As text of float32: a thousand images of a large network would be hundreds of megabytes of digits.
    return base64.b64encode(values.float().numpy().astype("<f4").tobytes()).decode()


def _unpacked(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64))


def _labels(shown: Sequence[Sequence[str]]) -> tuple[Tensor | None, str | None]:
    """Make the labels that a probe learns of the classes that each image shows, and tell what it is judged by."""
    names = sorted({label for labels in shown for label in labels})
    if len(names) < 2:
        return None, None
    if all(len(labels) == 1 for labels in shown):
        return torch.tensor([names.index(label) for (label,) in shown]), "top-1 accuracy"
    return torch.tensor([[name in labels for name in names] for labels in shown]), "mean average precision"


def _shares(asked: Mapping[str, str | dict[str, float]], layers: Sequence[str]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(layers, shares_of(weights, layers), strict=True)) for name, weights in asked.items()}


def _weights_table(measured: MeasuredWeights, asked: Mapping[str, str | dict[str, float]], place: Path) -> Table:
    shares = _shares(asked, list(measured.layers))
    rows = [
        [layer, at.spread, at.accuracy, *(shares[name][layer] for name in shares)]
        for layer, at in measured.layers.items()
    ]
    judged = "not measured: it is not known of the images what they show"
    if measured.accuracy_is is not None:
        judged = f"{measured.accuracy_is} of a linear probe on held-out images"
    return Table(
        f"Layer weights of {measured.model}, measured on {measured.count} images of {measured.data}",
        ["layer", "spread", "accuracy", *(f"γ {name}" for name in shares)],
        rows,
        [f"spread: mean absolute deviation of the averaged features. accuracy: {judged}.", f"Kept in {place.name}."],
    )


def _pointing_table(
    found: Mapping[tuple[str, str], float], methods: Sequence[str], layers: Sequence[str], asked: Sequence[str]
) -> Table:
    names = [combination_name(how, name) for how in _HOW for name in asked]
    rows: list[list[Cell]] = []
    for method in methods:
        single = {layer: found[method, layer] for layer in layers if (method, layer) in found}
        best = max(single, key=lambda layer: single[layer])
        rows.append([method, best, single[best], *(found.get((method, name)) for name in names)])
    return Table(
        "Pointing game: the best single layer against every combination of layers",
        ["method", "best layer", "best single", *names],
        rows,
        ["Accuracy, 0…1, of the pointing game (paper, tables 3 and 6)."],
    )


def _picture(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the weights over the layers (paper, figure 9)."""
    drawing = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawing.subplots()
    for name, weights in shares.items():
        axes.plot(list(weights), list(weights.values()), marker="o", label=name)
    axes.set_ylabel("weight γ, of sum 1")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return drawing
