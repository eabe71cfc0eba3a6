"""How weight randomisation is told: a row for each method and layer, curves, and the strip of maps of figure 8."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ..explainers.combination import are_flat
from ..explainers.maps import SaliencyMaps
from ..explainers.plotting import draw_map, draw_photo, picture_of
from .means import Share, mean
from .tables import Cell, Table

__all__ = ["Glimpse", "curves", "strip", "tables"]

_PANEL = 1.5


@dataclass(frozen=True)
class Glimpse:
    """The maps of one photo at one step, by variant."""

    title: str
    maps: dict[str, SaliencyMaps]


def tables(figures: dict[str, Any]) -> list[Table]:
    """Tell every mode in a table, and the focus where there is any."""
    telling = {"cascading": _cascading, "independent": _independent}
    made = [telling[mode](found, figures["images"]) for mode, found in figures["modes"].items()]
    known = any(rows[0] is not None for _, rows in _rows(figures["focus"]))
    return [*made, _focus(figures)] if known and "cascading" in figures["modes"] else made


def _rows(found: dict[str, Any]) -> Iterator[tuple[list[str], list[Share]]]:
    """Give the name of each row, and its figures after each step."""
    for variant, methods in found.items():
        for method, layers in methods.items():
            for layer, values in layers.items():
                yield [method, layer, variant], values


def _turns(steps: Sequence[str]) -> dict[str, int]:
    """Choose the steps of a cascade that a table tells."""
    last = len(steps) - 1
    return {"first module": 0, "1/4": round(last / 4), "1/2": round(last / 2), "3/4": round(3 * last / 4), "all": last}


def _cascading(found: dict[str, Any], images: int) -> Table:
    shown = _turns(found["steps"])
    rows = [
        [*name, *(rho[at] for at in shown.values()), rho_abs[-1]]
        for (name, rho), (_, rho_abs) in zip(_rows(found["rho"]), _rows(found["rho_abs"]), strict=True)
    ]
    columns = ["method", "layer", "step", *shown, "all, absolute maps"]
    return Table("Cascading randomisation: ρ with the trained network's map", columns, rows, _notes(found, images))


def _focus(figures: dict[str, Any]) -> Table:
    found = figures["modes"]["cascading"]
    shown = _turns(found["steps"])
    rows = [
        [*name, trained[0], *(values[at] for at in shown.values())]
        for (name, trained), (_, values) in zip(_rows(figures["focus"]), _rows(found["focus"]), strict=True)
    ]
    note = "The share of the map on the target's object, over the object's share of the photo; 1 is chance."
    return Table("Cascading randomisation: focus", ["method", "layer", "step", "trained", *shown], rows, [note])


def _independent(found: dict[str, Any], images: int) -> Table:
    rows: list[list[Cell]] = []
    for (name, rho), (_, rho_abs) in zip(_rows(found["rho"]), _rows(found["rho_abs"]), strict=True):
        known = [(value, step) for value, step in zip(rho, found["steps"], strict=True) if value is not None]
        least, module = min(known, default=(None, None))
        rows.append([*name, mean(rho), mean(rho_abs), least, module])
    columns = ["method", "layer", "step", "mean over modules", "absolute maps", "least", "of module"]
    return Table("Independent randomisation: ρ with the trained network's map", columns, rows, _notes(found, images))


def _notes(found: dict[str, Any], images: int) -> list[str]:
    turns = found["steps"]
    text = f"{len(turns)} modules, from {turns[0]} to {turns[-1]}; mean over {images} images."
    left = f" {found['left_out']} ρ of flat maps are left out." if found["left_out"] else ""
    return [text + left]


def curves(figures: dict[str, Any], mode: str) -> Figure:
    """Draw ρ after each step: a panel for each layer, a line for each method, dashed with the meta step."""
    found, layers = figures["modes"][mode], figures["layers"]
    drawing = Figure(figsize=(3.4 * len(layers) + 1.6, 3.4), layout="constrained")
    panels = drawing.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    for panel, layer in zip(panels, layers, strict=True):
        for variant, methods in found["rho"].items():
            for colour, (method, rho) in enumerate(methods.items()):
                if layer in rho:
                    values = np.array([np.nan if value is None else value for value in rho[layer]])
                    label = method if variant == "plain" else f"{method}, {variant}"
                    panel.plot(values, "-" if variant == "plain" else "--", color=f"C{colour}", label=label)
        panel.set_title(layer, fontsize=9)
        panel.set_xlabel(f"modules, from {found['steps'][0]}", fontsize=8)
        panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    panels[0].set_ylabel("Spearman's ρ")
    panels[0].set_ylim(-1.05, 1.05)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, fontsize=8, loc="outside right upper")
    return drawing


def strip(glimpses: Sequence[Glimpse]) -> Figure:
    """Draw the maps of one photo step by step: a row for each method and variant (paper, figures 8 and 13).

    Each method at its deepest layer, but above those where its map of the trained network is the same everywhere.
    """
    first = glimpses[0].maps["plain"]
    rows = [(method, _place(first, method), variant) for variant in glimpses[0].maps for method in first.methods]
    drawing = Figure(figsize=(_PANEL * (len(glimpses) + 1), (_PANEL + 0.3) * len(rows)), layout="constrained")
    panels = drawing.subplots(len(rows), len(glimpses) + 1, squeeze=False)
    photo = first.images[0]
    picture = picture_of(photo)
    for line, (method, layer, variant) in zip(panels, rows, strict=True):
        draw_photo(line[0], photo, picture)
        where = layer if variant == "plain" else f"{layer}, {variant}"
        line[0].set_title(f"{method}\n{where}", fontsize=7)
        for panel, glimpse in zip(line[1:], glimpses, strict=True):
            values = glimpse.maps[variant].upsampled(method, layer)[0, 0].double().cpu().numpy()
            draw_photo(panel, photo, picture)
            draw_map(panel, photo, values, bool((values < 0).any()), 0.65)
            panel.set_title(glimpse.title, fontsize=7)
    return drawing


def _place(maps: SaliencyMaps, method: str) -> str:
    """Find the deepest layer at which a method's map of one photo is not the same everywhere."""
    deepest_first = [layer for name, layer in maps.pairs if name == method][::-1]
    return next((layer for layer in deepest_first if not are_flat(maps[method, layer]).any()), deepest_first[0])
