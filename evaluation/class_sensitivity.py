"""Do maps of the most and of the least probable class differ? The paper's section 4.3, figures 5 to 7.

Spearman's ρ between the two, at the size of the pixels: near 0 where a method is sensitive to the class, near 1 where
it shows the same whatever it is asked. With the inner step of meta-saliency, and without.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..models.base import Explainable
from ..models.classifiers import Classifier
from .ledger import Ledger
from .metrics import map_correlation
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["RATES", "class_sensitivity", "correlations"]

RATES = (0.002,)
"""The paper's 2ε, with ε = 0.001."""

_PLAIN = 0.0
Key = tuple[str, str, float]
"""Method, layer, and the rate of the inner step; 0: without it."""
Summaries = Mapping[Key, Mapping[str, float | int | None]]


def class_sensitivity(
    model: Explainable,
    samples: Sequence[Sample],
    methods: Sequence[str],
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    rates: Sequence[float] = RATES,
    progress: bool = False,
) -> Result:
    """Correlate the maps of the most and the least probable class of every image, without and with inner steps.

    rates: of the inner steps (descent). Pairs with a constant map have no ρ: they are counted and left out of the
    means. Raises GradlightError for a model that is no classifier, and for no images.
    """
    if not isinstance(model, Classifier):
        raise GradlightError(f"Class sensitivity is asked of a classifier, and {model.name!r} is none.")
    if not samples:
        raise GradlightError("There is no image to compare the maps of: give at least one.")
    steps = [_PLAIN, *dict.fromkeys(float(rate) for rate in rates if rate != _PLAIN)]
    found: dict[Key, list[float | None]] = {}
    for sample in tqdm(samples, unit="image", disable=not progress):
        for rate in steps:
            rows = ledger.once(f"{sample.key} at lr {rate}", partial(_compared, model, sample, methods, layers, rate))
            for method, layer, rho in rows:
                found.setdefault((method, layer, rate), []).append(rho)
    summary = {key: _summary(values) for key, values in found.items()}
    return Result(
        "class_sensitivity",
        {"images": len(samples), "rates": steps, "correlations": [_told(key, summary[key]) for key in summary]},
        [_table(summary, steps)],
        {
            "class_sensitivity": partial(_over_layers, summary, [_PLAIN]),
            **{f"meta_saliency_lr{rate:g}": partial(_over_layers, summary, [_PLAIN, rate]) for rate in steps[1:]},
        },
    )


def correlations(maps: SaliencyMaps) -> dict[tuple[str, str], float]:
    """Correlate the maps of the two targets of one image: (method, layer) → ρ, NaN where one of them is constant."""
    return {key: float(map_correlation(maps[key][:, :1], maps[key][:, 1:], maps.size).squeeze()) for key in maps.pairs}


def _compared(
    model: Explainable, sample: Sample, methods: Sequence[str], layers: str | Sequence[str], rate: float
) -> list[tuple[str, str, float]]:
    meta = Meta(rate) if rate != _PLAIN else None
    maps = explain(model, [sample.image], [["top", "min"]], methods=methods, layers=layers, meta=meta)
    return [(method, layer, rho) for (method, layer), rho in correlations(maps).items()]


def _summary(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Average the known ρ of all images, and their absolute values; count those that are not known."""
    known = [rho for rho in values if rho is not None]
    return {
        "mean": statistics.fmean(known) if known else None,
        "std": statistics.pstdev(known) if known else None,
        "mean_absolute": statistics.fmean(map(abs, known)) if known else None,
        "images": len(known),
        "constant": len(values) - len(known),
    }


def _told(key: Key, summary: Mapping[str, Any]) -> dict[str, Any]:
    method, layer, rate = key
    return {"method": method, "layer": layer, "lr": rate, **summary}


def _table(summary: Summaries, steps: Sequence[float]) -> Table:
    pairs = list(dict.fromkeys((method, layer) for method, layer, _ in summary))
    rows: list[list[Cell]] = []
    for pair in pairs:
        of_steps = [summary[(*pair, rate)] for rate in steps]
        figures = [each[name] for each in of_steps for name in ("mean", "mean_absolute")]
        rows.append([*pair, *figures, sum(each["constant"] or 0 for each in of_steps)])
    told = ["" if rate == _PLAIN else f", meta lr {rate:g}" for rate in steps]
    return Table(
        "Class sensitivity: Spearman's ρ between the maps of the most and the least probable class",
        ["method", "layer", *(f"{name}{step}" for step in told for name in ("ρ", "|ρ|")), "constant"],
        rows,
        [
            "Means over the images; nearer to 0 is more sensitive (paper, figures 6 and 7). constant: pairs with a"
            " constant map, which have no ρ, in all columns together."
        ],
    )


def _over_layers(summary: Summaries, steps: Sequence[float]) -> Figure:
    """Draw the mean ρ of every method over the layers; dashed after an inner step (paper, figures 6 and 7)."""
    layers = list(dict.fromkeys(layer for _, layer, _ in summary))
    drawing = Figure(figsize=(max(6.0, 1.2 * len(layers) + 3), 4.5), layout="constrained")
    axes = drawing.subplots()
    for number, method in enumerate(dict.fromkeys(method for method, _, _ in summary)):
        for rate in steps:
            means = [summary.get((method, layer, rate), {}).get("mean") for layer in layers]
            # By number and not by name: a method without a figure at the first layer would move the layers about.
            axes.plot(
                range(len(layers)),
                [float("nan") if mean is None else mean for mean in means],
                color=f"C{number % 10}",
                linestyle="-" if rate == _PLAIN else "--",
                marker="osD^"[number // 10 % 4],
                label=method if rate == _PLAIN else f"{method}, meta lr {rate:g}",
            )
    axes.axhline(0, color="0.6", linewidth=0.8)
    axes.set_xticks(range(len(layers)), layers)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("Spearman's ρ, most and least probable class")
    drawing.legend(loc="outside right upper", frameon=False, fontsize=8)
    return drawing
