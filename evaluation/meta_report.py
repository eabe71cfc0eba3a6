"""How the analysis of meta-saliency is told: tables, curves over the epochs, and maps of steps down and up."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..explainers.maps import SaliencyMaps
from ..explainers.plotting import draw_map, draw_photo, picture_of
from .means import mean
from .tables import Cell, Table

__all__ = ["over_epochs", "steps_side_by_side", "tables"]

_PANEL = 1.7
_STYLES = {"training": "-", "validation": "--"}
_LABELS = {"with_and_without": "ρ of maps with and without the step", "against_last": "ρ with the last epoch's map"}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """Tell the effect of the step on both splits over the epochs, and how the maps settle."""
    return [_with_and_without(figures), _against_last(figures)]


def _with_and_without(figures: Mapping[str, Any]) -> Table:
    found = figures["with_and_without"]
    shown = _shown(figures["epochs"])
    rows: list[list[Cell]] = []
    for direction, methods in found["training"].items():
        for method, layers in methods.items():
            for layer in layers:
                for split in found:
                    values = found[split][direction][method][layer]
                    rows.append([method, layer, direction, split, *(values[at] for at in shown), mean(values[1:])])
    columns = ["method", "layer", "step", "images", *(f"epoch {at}" for at in shown), "mean of 1 to last"]
    precision = ", ".join(f"{at}: {figures['mean_average_precision'][at]:.3f}" for at in shown)
    notes = [
        f"Spearman's ρ, mean over {figures['images']} scenes of each split; lr {figures['lr']}. Trained on"
        f" {figures['scenes']} scenes; mean average precision on held-out ones after epoch {precision}."
    ]
    return Table("Meta-saliency over the epochs: ρ of maps with and without the step", columns, rows, notes)


def _against_last(figures: Mapping[str, Any]) -> Table:
    shown = _shown(figures["epochs"])
    rows: list[list[Cell]] = [
        [method, layer, name, *(values[at] for at in shown)]
        for name, methods in figures["against_last"]["validation"].items()
        for method, layers in methods.items()
        for layer, values in layers.items()
    ]
    columns = ["method", "layer", "step", *(f"epoch {at}" for at in shown)]
    notes = [f"Spearman's ρ, mean over {figures['images']} held-out scenes."]
    return Table("Maps over the epochs: ρ with the same map at the last epoch", columns, rows, notes)


def _shown(epochs: int) -> list[int]:
    """Choose the epochs that a table tells: the untrained network, the last, and up to three between."""
    return sorted(set(np.linspace(0, epochs, min(5, epochs + 1)).round().astype(int).tolist()))


def over_epochs(figures: Mapping[str, Any], what: str) -> Figure:
    """Draw ρ over the epochs: a panel for each method and layer, training images solid, validation dashed."""
    found = figures[what]
    first = next(iter(found["training"].values()))
    methods, layers = list(first), list(next(iter(first.values())))
    drawing = Figure(figsize=(2.8 * len(layers) + 1.8, 2.5 * len(methods)), layout="constrained")
    panels = drawing.subplots(len(methods), len(layers), squeeze=False, sharex=True, sharey=True)
    for line, method in zip(panels, methods, strict=True):
        for panel, layer in zip(line, layers, strict=True):
            for split, style in _STYLES.items():
                for colour, name in enumerate(found[split]):
                    values = [np.nan if each is None else each for each in found[split][name][method][layer]]
                    panel.plot(values, style, color=f"C{colour}", label=f"{name}, {split}")
            panel.set_title(f"{method}\n{layer}", fontsize=8)
            panel.set_xlabel("epoch", fontsize=8)
    drawing.supylabel(_LABELS[what], fontsize=9)
    drawing.legend(*panels[0, 0].get_legend_handles_labels(), fontsize=8, loc="outside right upper")
    return drawing


def steps_side_by_side(maps: Mapping[str, SaliencyMaps]) -> Figure:
    """Draw photos with the deepest maps of the last method: a step up, none, and one down (paper, figure 12)."""
    plain = maps["plain"]
    method, layer = plain.methods[-1], plain.layers[-1]
    names = ("ascent", "plain", "descent")
    drawing = Figure(figsize=(_PANEL * 4, (_PANEL + 0.15) * len(plain)), layout="constrained")
    panels = drawing.subplots(len(plain), 4, squeeze=False)
    for number, line in enumerate(panels):
        photo = plain.images[number]
        picture = picture_of(photo)
        draw_photo(line[0], photo, picture)
        line[0].set_title(plain.targets[number][0].label, fontsize=8)
        for panel, name in zip(line[1:], names, strict=True):
            values = maps[name].upsampled(method, layer)[number, 0].double().cpu().numpy()
            draw_photo(panel, photo, picture)
            draw_map(panel, photo, values, bool((values < 0).any()), 0.65)
            panel.set_title(name, fontsize=8)
    return drawing
