"""Is a virtual identity as good as the real convolution? The paper's section 4.1 and table 4.

At a convolution, NormGrad with its own weight ‖g‖‖x_in‖ is held against NormGrad of a virtual 1×1 identity behind it,
‖g‖‖x_out‖ (table 2, rows 5 and 4): Spearman's ρ of the two maps at the size of the pixels, and what the difference does
to the pointing game.
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
from ..models.base import Explainable
from .layer_weights import PlayGame
from .ledger import Ledger
from .metrics import map_correlation
from .samples import Sample
from .tables import Cell, Result, Table, published

__all__ = ["convolutions", "identity_trick"]

REAL, IDENTITY = "normgrad_real", "normgrad"


def identity_trick(
    model: Explainable,
    samples: Sequence[Sample],
    layers: Sequence[str] | None = None,
    *,
    ledger: Ledger,
    target: Any = None,
    play: PlayGame | None = None,
    progress: bool = False,
) -> Result:
    """Correlate the maps of real convolutions with those of virtual identities behind them, image by image.

    layers: convolutions; those of `convolutions` unless given. target: as `explain` takes it, the network's own answer
    unless given. play: the pointing game, for the second table. Pairs with a constant map are counted and left out.
    Raises GradlightError for no images, and for a layer without a weight of its own.
    """
    if not samples:
        raise GradlightError("There is no image to compare the maps of: give at least one.")
    chosen = convolutions(model) if layers is None else list(layers)
    found: dict[str, list[float | None]] = {}
    for sample in tqdm(samples, unit="image", disable=not progress):
        rows = ledger.once(f"correlations of {sample.key}", partial(_compared, model, sample, chosen, target))
        for layer, values in rows:
            found.setdefault(layer, []).extend(values)
    summary = {layer: _summary(values) for layer, values in found.items()}
    figures: dict[str, Any] = {"images": len(samples), "correlations": summary}
    tables = [_correlation_table(summary, _published(model))]
    if play is not None:
        accuracy = play([IDENTITY, REAL], list(found), lambda maps: maps)
        figures["pointing"] = {
            layer: {"real": accuracy[REAL, layer], "identity": accuracy[IDENTITY, layer]} for layer in found
        }
        figures["pointing_difference"] = _difference(figures["pointing"])
        tables.append(_pointing_table(figures["pointing"], figures["pointing_difference"]))
    return Result("identity_trick", figures, tables)


def convolutions(model: Explainable) -> list[str]:
    """Choose a convolution for each stage of a network: the paper's own for ResNet50 and VGG16.

    In a ResNet the first of the stage's first block, "STAGE.0.conv1"; elsewhere the last one up to the stage's layer.
    Grouped convolutions are passed over: the identity that is compared mixes all channels. Raises GradlightError for a
    network without any.
    """
    known = [layer for layer in model.layers() if _is_convolution(model, layer.name)]
    names = {layer.name for layer in known}
    chosen = []
    for stage in model.stages():
        first = f"{stage.name}.0.conv1"
        before = [layer.name for layer in known if layer.depth <= stage.depth]
        if first in names or before:
            chosen.append(first if first in names else before[-1])
    if not chosen:
        raise GradlightError(
            f"{model.name!r} has no convolution that lies over the image, so there is nothing to compare. Name layers"
            " with a weight of their own; `model.layers()` lists the layers."
        )
    return list(dict.fromkeys(chosen))


def _is_convolution(model: Explainable, name: str) -> bool:
    if name == "input":
        return False
    module = model.trunk.get_submodule(name.partition(":")[0])
    return isinstance(module, nn.Conv2d) and type(module).forward is nn.Conv2d.forward and module.groups == 1


def _compared(model: Explainable, sample: Sample, layers: Sequence[str], target: Any) -> list[tuple[str, list[float]]]:
    """Give ρ of every target of one image at each layer, shallowest first."""
    maps = explain(model, [sample.image], target, methods=[IDENTITY, REAL], layers=layers)
    return [
        (layer, map_correlation(maps[IDENTITY, layer], maps[REAL, layer], maps.size).flatten().tolist())
        for layer in maps.layers
    ]


def _summary(values: Sequence[float | None]) -> dict[str, float | int | None]:
    known = [rho for rho in values if rho is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.pstdev(known) if known else None,
        "maps": len(known),
        "constant": len(values) - len(known),
    }


def _published(model: Explainable) -> dict[str, tuple[float, float]]:
    """Find the paper's mean and standard deviation at each layer of a network by its name, whatever its weights."""
    architecture = model.name.partition("/")[2].partition(".")[0]
    found = published("identity_correlation").get(architecture, {})
    return {layer: (at["mean"] / 100, at["deviation"] / 100) for layer, at in found.items()}


def _correlation_table(
    summary: Mapping[str, Mapping[str, float | int | None]], paper: Mapping[str, tuple[float, float]]
) -> Table:
    rows: list[list[Cell]] = [
        [layer, at["mean"], at["std"], at["maps"], at["constant"], *paper.get(layer, (None, None))]
        for layer, at in summary.items()
    ]
    columns = ["layer", "ρ", "± std", "maps", "constant", "paper: ρ", "paper: ± std"]
    kept = len(columns) if paper else 5
    return Table(
        "Identity trick: Spearman's ρ between the maps of the real convolution and of a virtual identity",
        columns[:kept],
        [row[:kept] for row in rows],
        ["constant: pairs with a constant map, which have no ρ and are left out of the mean (paper, table 4)."],
    )


def _difference(pointing: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Average the absolute difference in accuracy over the layers."""
    apart = [abs(at["real"] - at["identity"]) for at in pointing.values()]
    return {"mean": statistics.fmean(apart), "std": statistics.pstdev(apart)}


def _pointing_table(pointing: Mapping[str, Mapping[str, float]], difference: Mapping[str, float]) -> Table:
    rows: list[list[Cell]] = [
        [layer, at["real"], at["identity"], at["real"] - at["identity"]] for layer, at in pointing.items()
    ]
    apart = f"{difference['mean']:.2%} ± {difference['std']:.2%}"
    return Table(
        "Identity trick: accuracy in the pointing game",
        ["layer", "real", "identity", "difference"],
        rows,
        [f"Accuracy, 0…1. Mean absolute difference {apart}; the paper's on VOC: 0.53% ± 0.62%."],
    )
