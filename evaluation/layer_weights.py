"""Layer weights: measure how much each layer tells about its images, and test weighted layers in the pointing game.

Paper, section 4.2, table 3, supplement C (table 6 and figure 9).
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Mapping, Sequence
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
from .pointing_game import MeasurePointing
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["Weightings", "layer_weights", "measure", "weightings", "with_weightings"]

Weightings = Mapping[str, str | dict[str, float]]
"""Name of a weighting → weights, as `SaliencyMaps.combine` takes them."""

_HOW = ("sum", "product")


def layer_weights(
    model: Explainable,
    samples: Sequence[Sample],
    methods: Sequence[str] = (),
    layers: str | Sequence[str] = "stages",
    *,
    data: str,
    ledger: Ledger,
    measure_pointing: MeasurePointing | None = None,
    path: Path | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Measure the layers' weights, store them, and compare the best single layer with every weighted combination.

    Args:
        model: The model.
        samples: The photos.
        methods: Methods of the pointing game.
        layers: Layers, as `explain` takes them.
        data: The name of the data set.
        ledger: Keeps the features of each photo and the accuracy of each layer.
        measure_pointing: Plays the pointing game for the second table (`pointing_game.pointing_measure`).
        path: Of the JSON file; by default the file that `maps.combine(weights="spread")` reads.
        seed: Of the split for the probe.
        progress: Show a progress bar.

    Returns:
        figures["measured"]: the measurements; figures["weights"]: weighting → layer → weight, of sum 1.

    Raises:
        GradlightError: There are too few samples, or a layer is unknown.
    """
    measured = measure(model, samples, layers, data=data, ledger=ledger, seed=seed, progress=progress)
    stored_path = keep(measured, path)
    weights = weightings(measured)
    layer_names = list(measured.layers)
    figures: dict[str, Any] = {"measured": measured.to_json(), "weights": _shares(weights, layer_names)}
    tables = [_weights_table(measured, weights, stored_path)]
    if measure_pointing is not None:
        pointing = measure_pointing(methods, layer_names, partial(with_weightings, weights=weights))
        figures["pointing"] = {f"{method} / {layer}": value for (method, layer), value in pointing.items()}
        tables.append(_pointing_table(pointing, methods, layer_names, list(weights)))
    return Result("layer_weights", figures, tables, {"layer_weights": partial(_draw_weights, figures["weights"])})


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
    """Measure spread and probe accuracy of layers.

    Where every sample shows exactly one class, the accuracy is top-1 accuracy; else the mean average precision. Where
    the samples' classes are unknown, there is no accuracy.

    Args:
        model: The model.
        samples: The photos, two or more.
        layers: Layers, as `explain` takes them.
        data: The name of the data set.
        ledger: Keeps the features of each photo and the accuracy of each layer.
        seed: Of the split for the probe.
        progress: Show a progress bar.

    Returns:
        The measurements.

    Raises:
        GradlightError: There are too few samples, or a layer is unknown.
    """
    if len(samples) < 2:
        raise GradlightError(f"Layer weights are measured over several images; {len(samples)} were given.")
    names = layers
    rows = []
    for sample in tqdm(samples, unit="image", disable=not progress):
        rows.append(ledger.once(f"features of {sample.key}", partial(_features_row, model, sample, names)))
        # Photos of another size have the same layers under other sizes: the names of the first photo hold for all.
        names = list(rows[0]["features"])
    labels, accuracy_kind = _probe_labels([row["labels"] for row in rows])
    measures = {}
    for layer in names:
        features = torch.stack([_unpack(row["features"][layer]) for row in rows])
        score = None
        if labels is not None:
            score = ledger.once(f"accuracy at {layer}", partial(accuracy, features, labels, seed))
        measures[layer] = LayerMeasure(spread(features), score)
    return MeasuredWeights(model.name, model.weights_sha256(), data, len(rows), measures, accuracy_kind, seed)


def weightings(measured: MeasuredWeights) -> dict[str, str | dict[str, float]]:
    """Collect every weighting: those that need no measurement, and those that were measured.

    Args:
        measured: The measurements.

    Returns:
        Name of the weighting → weights, as `SaliencyMaps.combine` takes them.
    """
    by_kind = {kind: measured.weights(kind) for kind in KINDS}
    return {"uniform": "uniform", "linear": "linear", **{kind: weights for kind, weights in by_kind.items() if weights}}


def with_weightings(maps: SaliencyMaps, weights: Weightings) -> SaliencyMaps:
    """Add to maps their combinations "HOW(WEIGHTING)", by sum and by product with every weighting.

    Args:
        maps: Maps of several layers.
        weights: The weightings.

    Returns:
        The maps with the combined layers added.
    """
    combined = maps
    with warnings.catch_warnings():
        # Grad-CAM has flat maps (no evidence for the target); they count as zeros.
        warnings.simplefilter("ignore", GradlightWarning)
        for name, layer_weighting in weights.items():
            for how in _HOW:
                layer_name = combination_name(how, name)
                combined = combined.joined(_rename_layer(maps.combine(layer_weighting, how), layer_name))
    return combined


def _rename_layer(maps: SaliencyMaps, name: str) -> SaliencyMaps:
    """Rename the only layer of maps."""
    (layer,) = maps.layers
    rows = {(method, name): maps.rows(method, layer) for method in maps.methods}
    return SaliencyMaps(rows, {name: maps.layer_info[layer]}, maps.images, maps.targets, maps.size, maps.origin)


# ---------------------------------------------------------------------------------------------------------------------
# Features of one image


def _features_row(model: Explainable, sample: Sample, layers: str | Sequence[str]) -> dict[str, Any]:
    """Give the classes that an image shows, and its averaged features at each layer, packed."""
    pixels = model.pixels([sample.image])
    chosen = choose_layers(model, layers, (pixels.shape[2], pixels.shape[3]))
    packed = {name: _pack(values[0]) for name, values in averaged_features(model, pixels, chosen).items()}
    return {"labels": [truth.label for truth in sample.truths], "features": packed}


def _pack(values: Tensor) -> str:
    # Base64 of float32: a thousand images of a large network would be hundreds of megabytes of decimal digits.
    return base64.b64encode(values.float().numpy().astype("<f4").tobytes()).decode()


def _unpack(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f4").astype(np.float64))


def _probe_labels(image_labels: Sequence[Sequence[str]]) -> tuple[Tensor | None, str | None]:
    """Make the labels that a probe learns from the classes of each image, and name the kind of its accuracy."""
    names = sorted({label for labels in image_labels for label in labels})
    if len(names) < 2:
        return None, None
    if all(len(labels) == 1 for labels in image_labels):
        return torch.tensor([names.index(label) for (label,) in image_labels]), "top-1 accuracy"
    return torch.tensor([[name in labels for name in names] for labels in image_labels]), "mean average precision"


# ---------------------------------------------------------------------------------------------------------------------
# Tables and picture


def _shares(weights: Weightings, layers: Sequence[str]) -> dict[str, dict[str, float]]:
    return {name: dict(zip(layers, shares_of(values, layers), strict=True)) for name, values in weights.items()}


def _weights_table(measured: MeasuredWeights, weights: Weightings, stored_path: Path) -> Table:
    shares = _shares(weights, list(measured.layers))
    rows = [
        [layer, layer_measure.spread, layer_measure.accuracy, *(shares[name][layer] for name in shares)]
        for layer, layer_measure in measured.layers.items()
    ]
    accuracy_note = "not measured: the images' classes are unknown"
    if measured.accuracy_is is not None:
        accuracy_note = f"{measured.accuracy_is} of a linear probe on held-out images"
    return Table(
        f"Layer weights of {measured.model}, measured on {measured.count} images of {measured.data}",
        ["layer", "spread", "accuracy", *(f"γ {name}" for name in shares)],
        rows,
        [
            f"spread: mean absolute deviation of the averaged features. accuracy: {accuracy_note}.",
            f"Kept in {stored_path.name}.",
        ],
    )


def _pointing_table(
    pointing: Mapping[tuple[str, str], float],
    methods: Sequence[str],
    layers: Sequence[str],
    weighting_names: Sequence[str],
) -> Table:
    combined = [combination_name(how, name) for how in _HOW for name in weighting_names]
    rows: list[list[Cell]] = []
    for method in methods:
        single = {layer: pointing[method, layer] for layer in layers if (method, layer) in pointing}
        best = max(single, key=lambda layer: single[layer])
        rows.append([method, best, single[best], *(pointing.get((method, name)) for name in combined)])
    return Table(
        "Pointing game: the best single layer against every combination of layers",
        ["method", "best layer", "best single", *combined],
        rows,
        ["Accuracy, 0…1, of the pointing game (paper, tables 3 and 6)."],
    )


def _draw_weights(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw the weights over the layers (paper, figure 9)."""
    drawing = Figure(figsize=(6, 3.5), layout="constrained")
    axes = drawing.subplots()
    for name, weights in shares.items():
        axes.plot(list(weights), list(weights.values()), marker="o", label=name)
    axes.set_ylabel("weight γ, of sum 1")
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return drawing
