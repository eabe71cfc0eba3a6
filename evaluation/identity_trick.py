"""The identity trick: is a virtual identity as good as the real convolution (paper, section 4.1 and table 4)?

At a convolution, NormGrad with its own weight ‖g‖‖x_in‖ is compared with NormGrad of a virtual 1×1 identity behind it,
‖g‖‖x_out‖ (table 2, rows 5 and 4): Spearman's ρ of the two maps at the size of the pixels, and the difference of their
accuracies in the pointing game.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.layer_selection import LayerName
from ..models.base import Explainable
from .ledger import Ledger
from .metrics import map_correlation
from .pointing_game import MeasurePointing
from .samples import Sample
from .tables import Cell, Result, Table, published

__all__ = ["convolutions", "identity_trick"]

_REAL, _IDENTITY = "normgrad_real", "normgrad"


def identity_trick(
    model: Explainable,
    samples: Sequence[Sample],
    layers: Sequence[str] | None = None,
    *,
    ledger: Ledger,
    target: Any = None,
    measure_pointing: MeasurePointing | None = None,
    progress: bool = False,
) -> Result:
    """Correlate the maps of real convolutions with those of virtual identities behind them, image by image.

    Args:
        model: The model.
        samples: The photos.
        layers: Convolutions; those of `convolutions` unless given.
        ledger: Keeps the correlations of each photo.
        target: As `explain` takes it; the network's own answer unless given.
        measure_pointing: Plays the pointing game for the second table (`pointing_game.pointing_measure`).
        progress: Show a progress bar.

    Returns:
        figures["correlations"]: layer → mean and standard deviation of ρ, and how many pairs have a constant map,
        which are left out.

    Raises:
        GradlightError: There are no images, or a layer has no weight of its own.
    """
    if not samples:
        raise GradlightError("There is no image to compare the maps of: give at least one.")
    layer_names = convolutions(model) if layers is None else list(layers)
    by_layer: dict[str, list[float | None]] = {}
    for sample in tqdm(samples, unit="image", disable=not progress):
        rows = ledger.once(f"correlations of {sample.key}", partial(_correlate, model, sample, layer_names, target))
        for layer, values in rows:
            by_layer.setdefault(layer, []).extend(values)
    summaries = {layer: _summarise(values) for layer, values in by_layer.items()}
    figures: dict[str, Any] = {"images": len(samples), "correlations": summaries}
    tables = [_correlation_table(summaries, _published_correlations(model))]
    if measure_pointing is not None:
        accuracy = measure_pointing([_IDENTITY, _REAL], list(by_layer), lambda maps: maps)
        figures["pointing"] = {
            layer: {"real": accuracy[_REAL, layer], "identity": accuracy[_IDENTITY, layer]} for layer in by_layer
        }
        figures["pointing_difference"] = _difference(figures["pointing"])
        tables.append(_pointing_table(figures["pointing"], figures["pointing_difference"]))
    return Result("identity_trick", figures, tables)


def convolutions(model: Explainable) -> list[str]:
    """Choose a convolution for each stage of a network: the paper's own for ResNet50 and VGG16.

    In a ResNet it is the first of the stage's first block, "STAGE.0.conv1"; in other networks the last one up to the
    stage's layer. Grouped convolutions are left out: the identity that is compared mixes all channels.

    Args:
        model: The model.

    Returns:
        Layer names, shallowest first.

    Raises:
        GradlightError: The network has no such convolution.

    Example:
        >>> convolutions(gl.classifier("scenes"))
        ['layer1.0.conv1', 'layer2.0.conv1', 'layer3.0.conv1', 'layer4.0.conv1']
    """
    candidates = [layer for layer in model.layers() if _is_convolution(model, layer.name)]
    names = {layer.name for layer in candidates}
    chosen = []
    for stage in model.stages():
        first = f"{stage.name}.0.conv1"
        before = [layer.name for layer in candidates if layer.depth <= stage.depth]
        if first in names or before:
            chosen.append(first if first in names else before[-1])
    if not chosen:
        raise GradlightError(
            f"{model.name!r} has no convolution with a spatial output, so there is nothing to compare. Name layers"
            " with a weight of their own; `model.layers()` lists the layers."
        )
    return list(dict.fromkeys(chosen))


def _is_convolution(model: Explainable, name: str) -> bool:
    if name == "input":
        return False
    module = model.trunk.get_submodule(LayerName.parse(name).module)
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and module.groups == 1


def _correlate(model: Explainable, sample: Sample, layers: Sequence[str], target: Any) -> list[tuple[str, list[float]]]:
    """Give ρ of every target of one image at each layer, shallowest first."""
    maps = explain(model, [sample.image], target, methods=[_IDENTITY, _REAL], layers=layers)
    return [
        (layer, map_correlation(maps[_IDENTITY, layer], maps[_REAL, layer], maps.size).flatten().tolist())
        for layer in maps.layers
    ]


def _summarise(values: Sequence[float | None]) -> dict[str, float | int | None]:
    defined = [rho for rho in values if rho is not None]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.pstdev(defined) if defined else None,
        "maps": len(defined),
        "constant": len(values) - len(defined),
    }


def _published_correlations(model: Explainable) -> dict[str, tuple[float, float]]:
    """Find the paper's mean and standard deviation at each layer of a network by its name, whatever its weights."""
    architecture = model.name.partition("/")[2].partition(".")[0]
    by_layer = published("identity_correlation").get(architecture, {})
    return {layer: (row["mean"] / 100, row["deviation"] / 100) for layer, row in by_layer.items()}


def _correlation_table(
    summaries: Mapping[str, Mapping[str, float | int | None]], paper: Mapping[str, tuple[float, float]]
) -> Table:
    rows: list[list[Cell]] = [
        [layer, row["mean"], row["std"], row["maps"], row["constant"], *paper.get(layer, (None, None))]
        for layer, row in summaries.items()
    ]
    columns = ["layer", "ρ", "± std", "maps", "constant", "paper: ρ", "paper: ± std"]
    shown = len(columns) if paper else 5
    return Table(
        "Identity trick: Spearman's ρ between the maps of the real convolution and of a virtual identity",
        columns[:shown],
        [row[:shown] for row in rows],
        ["constant: pairs with a constant map, which have no ρ and are left out of the mean (paper, table 4)."],
    )


def _difference(pointing: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average the absolute difference in accuracy over the layers."""
    differences = [abs(row["real"] - row["identity"]) for row in pointing.values()]
    return {"mean": statistics.fmean(differences), "std": statistics.pstdev(differences)}


def _pointing_table(pointing: Mapping[str, Mapping[str, float]], difference: Mapping[str, float]) -> Table:
    rows: list[list[Cell]] = [
        [layer, row["real"], row["identity"], row["real"] - row["identity"]] for layer, row in pointing.items()
    ]
    text = f"{difference['mean']:.2%} ± {difference['std']:.2%}"
    return Table(
        "Identity trick: accuracy in the pointing game",
        ["layer", "real", "identity", "difference"],
        rows,
        [f"Accuracy, 0…1. Mean absolute difference {text}; the paper's on VOC: 0.53% ± 0.62%."],
    )
