"""Class sensitivity: do maps of the most and of the least probable class differ (paper, section 4.3, figures 5 to 7)?

Spearman's ρ between the two, at the size of the pixels: near 0 where a method is sensitive to the class, near 1 where
its map is the same for every class. With the inner step of meta-saliency, and without.
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

    Args:
        model: The classifier.
        samples: The photos.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        ledger: Keeps the correlations of each photo and step.
        rates: Learning rates of the inner steps (descent).
        progress: Show a progress bar.

    Returns:
        figures["correlations"]: for each method, layer and rate the mean of ρ, its standard deviation and the mean of
        |ρ|. Pairs with a constant map have no ρ: they are counted and left out.

    Raises:
        GradlightError: The model is not a classifier, or there are no images.
    """
    if not isinstance(model, Classifier):
        raise GradlightError(f"Class sensitivity needs a classifier, and {model.name!r} is none.")
    if not samples:
        raise GradlightError("There is no image to compare the maps of: give at least one.")
    steps = [_PLAIN, *dict.fromkeys(float(rate) for rate in rates if rate != _PLAIN)]
    values_by_key: dict[Key, list[float | None]] = {}
    for sample in tqdm(samples, unit="image", disable=not progress):
        for rate in steps:
            rows = ledger.once(f"{sample.key} at lr {rate}", partial(_correlate, model, sample, methods, layers, rate))
            for method, layer, rho in rows:
                values_by_key.setdefault((method, layer, rate), []).append(rho)
    summaries = {key: _summarise(values) for key, values in values_by_key.items()}
    rows = [_json_row(key, summary) for key, summary in summaries.items()]
    figures = {"images": len(samples), "rates": steps, "correlations": rows}
    return Result(
        "class_sensitivity",
        figures,
        [_correlation_table(summaries, steps)],
        {
            "class_sensitivity": partial(_draw_over_layers, summaries, [_PLAIN]),
            **{
                f"meta_saliency_lr{rate:g}": partial(_draw_over_layers, summaries, [_PLAIN, rate]) for rate in steps[1:]
            },
        },
    )


def correlations(maps: SaliencyMaps) -> dict[tuple[str, str], float]:
    """Correlate the maps of the two targets of one image.

    Args:
        maps: Maps of one image with two targets.

    Returns:
        (method, layer) → ρ; NaN where one of the maps is constant.
    """
    return {key: float(map_correlation(maps[key][:, :1], maps[key][:, 1:], maps.size).squeeze()) for key in maps.pairs}


def _correlate(
    model: Explainable, sample: Sample, methods: Sequence[str], layers: str | Sequence[str], rate: float
) -> list[tuple[str, str, float]]:
    meta = Meta(rate) if rate != _PLAIN else None
    maps = explain(model, [sample.image], [["top", "min"]], methods=methods, layers=layers, meta=meta)
    return [(method, layer, rho) for (method, layer), rho in correlations(maps).items()]


def _summarise(values: Sequence[float | None]) -> dict[str, float | int | None]:
    """Average ρ and |ρ| over the images; count the images without ρ."""
    defined = [rho for rho in values if rho is not None]
    return {
        "mean": statistics.fmean(defined) if defined else None,
        "std": statistics.pstdev(defined) if defined else None,
        "mean_absolute": statistics.fmean(map(abs, defined)) if defined else None,
        "images": len(defined),
        "constant": len(values) - len(defined),
    }


def _json_row(key: Key, summary: Mapping[str, Any]) -> dict[str, Any]:
    method, layer, rate = key
    return {"method": method, "layer": layer, "lr": rate, **summary}


def _correlation_table(summaries: Summaries, steps: Sequence[float]) -> Table:
    pairs = list(dict.fromkeys((method, layer) for method, layer, _ in summaries))
    rows: list[list[Cell]] = []
    for pair in pairs:
        step_summaries = [summaries[(*pair, rate)] for rate in steps]
        figures = [summary[name] for summary in step_summaries for name in ("mean", "mean_absolute")]
        rows.append([*pair, *figures, sum(summary["constant"] or 0 for summary in step_summaries)])
    suffixes = ["" if rate == _PLAIN else f", meta lr {rate:g}" for rate in steps]
    return Table(
        "Class sensitivity: Spearman's ρ between the maps of the most and the least probable class",
        ["method", "layer", *(f"{name}{suffix}" for suffix in suffixes for name in ("ρ", "|ρ|")), "constant"],
        rows,
        [
            "Means over the images; nearer to 0 is more sensitive (paper, figures 6 and 7). constant: pairs with a"
            " constant map, which have no ρ, in all columns together."
        ],
    )


def _draw_over_layers(summaries: Summaries, steps: Sequence[float]) -> Figure:
    """Draw the mean ρ of every method over the layers; dashed after an inner step (paper, figures 6 and 7)."""
    layers = list(dict.fromkeys(layer for _, layer, _ in summaries))
    drawing = Figure(figsize=(max(6.0, 1.2 * len(layers) + 3), 4.5), layout="constrained")
    axes = drawing.subplots()
    for number, method in enumerate(dict.fromkeys(method for method, _, _ in summaries)):
        for rate in steps:
            means = [summaries.get((method, layer, rate), {}).get("mean") for layer in layers]
            # By number and not by name: a method without a figure at the first layer would reorder the layers.
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
