"""The static picture of a viewer, for saved notebooks and wherever its program cannot run.

It follows the page's own drawing (static/pane.js and static/colours.js) in every option of `DISPLAY_OPTIONS`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from ..errors import GradlightWarning
from ..explainers.combination import is_combination, upsample
from ..explainers.maps import SaliencyMaps
from ..explainers.plotting import draw_photo, picture_of
from ..models.base import Photo
from .options import COLOUR_TABLES
from .payload import Pane

__all__ = ["PaneMaps", "draw"]

PaneMaps = tuple[Pane, SaliencyMaps | None]
"""A pane, and the maps of its one image and target; None while they are being computed."""

Values = npt.NDArray[np.float64]

_PANE_WIDTH = 3.4
_DPI = 110
_LEVELS = (0.2, 0.4, 0.6, 0.8)
_SIGNED_LEVELS = (0.1, 0.3, 0.7, 0.9)
_ROUNDING = 1e-6
# Paper and ink of each theme, as in static/viewer.css.
_THEMES = {"light": ("#ffffff", "#16191d"), "dark": ("#16191d", "#e8eaed")}


class _Scale(NamedTuple):
    """How values become colours: the range that the colours span, the colour table, and whether 0 is its middle."""

    low: float
    high: float
    colours: Colormap
    symmetric: bool

    @property
    def flat(self) -> bool:
        return self.low == self.high


def draw(
    photo: Photo,
    panes: Sequence[PaneMaps],
    labels: Mapping[str, str],
    weights: Mapping[str, float],
    options: Mapping[str, Any],
) -> bytes:
    """Draw panes side by side.

    Args:
        photo: The photo that all maps explain.
        panes: The panes with their maps, from left to right.
        labels: Names of the targets by their keys.
        weights: Weights of the single layers in a combination.
        options: Values of `DISPLAY_OPTIONS` by name, and "lr", the learning rate that captions name.

    Returns:
        A PNG.
    """
    paper, ink = _THEMES["dark" if options["theme"] == "dark" else "light"]
    tallness = min(max(photo.height / photo.width, 0.4), 1.8)
    size = (_PANE_WIDTH * len(panes), _PANE_WIDTH * tallness + 0.9)
    drawing = Figure(figsize=size, layout="constrained", facecolor=paper)
    for panel, (pane, maps) in zip(drawing.subplots(1, len(panes), squeeze=False)[0], panes, strict=True):
        panel.set_title(_format_caption(pane, labels, options["lr"]), fontsize=8, color=ink)
        selected = None if maps is None else _select_map(maps, pane, weights)
        if selected is None or options["display"] != "map":
            draw_photo(panel, photo, picture_of(photo))
        if selected is not None:
            rows, values, signed = selected
            scale = _scale_of(rows, signed, options)
            _draw_map(panel, photo, values, scale, options)
            _draw_colour_bar(panel, scale, ink)
        panel.set_axis_off()
        panel.set_xlim(0, photo.width)
        panel.set_ylim(photo.height, 0)
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", dpi=_DPI)
    return stream.getvalue()


def _format_caption(pane: Pane, labels: Mapping[str, str], lr: float) -> str:
    where = pane.layer if pane.combine == "off" else f"{pane.combine} of all layers"
    step = "" if pane.meta == "off" else f", {pane.meta} step {lr:g}"
    return f"{labels.get(pane.target, pane.target)[:60]}\n{pane.method}, {where}{step}"


def _select_map(maps: SaliencyMaps, pane: Pane, weights: Mapping[str, float]) -> tuple[Values, Values, bool] | None:
    """Give the map of a pane as computed [h,w] and upsampled [H,W], and whether 0 is the middle of its colours.

    As on the page, one layer's map with negative values makes all maps of its method signed, and a combination is
    never signed. None where the method has no map at the layer.
    """
    layers = [layer for method, layer in maps.pairs if method == pane.method]
    if pane.combine != "off":
        combined = _combine(maps, pane, [layer for layer in layers if not is_combination(layer)], weights)
        return None if combined is None else (*_arrays(combined, pane.method, combined.layers[0]), False)
    if pane.layer not in layers:
        return None
    signed = any(bool((maps.rows(pane.method, layer) < 0).any()) for layer in layers)
    return *_arrays(maps, pane.method, pane.layer), signed


def _combine(
    maps: SaliencyMaps, pane: Pane, layers: Sequence[str], weights: Mapping[str, float]
) -> SaliencyMaps | None:
    """Combine one method's maps; None where all weights are 0."""
    if not any(weights[layer] for layer in layers):
        return None
    layer_info = {layer: maps.layer_info[layer] for layer in layers}
    rows = {(pane.method, layer): maps.rows(pane.method, layer) for layer in layers}
    alone = SaliencyMaps(rows, layer_info, maps.images, maps.targets, maps.size, maps.origin)
    with warnings.catch_warnings():
        # A flat layer needs no warning here: the viewer shows that it is flat.
        warnings.simplefilter("ignore", GradlightWarning)
        return alone.combine({layer: weights[layer] for layer in layers}, pane.combine)


def _arrays(maps: SaliencyMaps, method: str, layer: str) -> tuple[Values, Values]:
    """Give one map as computed and upsampled; one that is not finite is flat, as on the page."""
    rows = maps.rows(method, layer).float().cpu()
    rows = rows if bool(rows.isfinite().all()) else rows.new_zeros(rows.shape)
    laid = upsample(rows.unsqueeze(0), maps.size, maps.layer_info[layer].extent)
    return rows[0].double().numpy(), laid[0, 0].double().numpy()


def _scale_of(values: Values, signed: bool, options: Mapping[str, Any]) -> _Scale:
    """Choose range and colours by the options "normalisation" and "colours"."""
    automatic = "symmetric" if signed else "minmax"
    normalisation = automatic if options["normalisation"] == "auto" else options["normalisation"]
    symmetric = normalisation == "symmetric"
    low, high = float(values.min()), float(values.max())
    if normalisation == "percentile":
        ascending = np.sort(values, axis=None)
        low, high = (float(ascending[int(share * (ascending.size - 1) + 0.5)]) for share in (0.01, 0.99))
    elif symmetric:
        low, high = -max(-low, high), max(-low, high)
    if high - low <= _ROUNDING * max(abs(low), abs(high)):
        high = low
    automatic_colours = "blue-red" if symmetric else "inferno"
    name = automatic_colours if options["colours"] == "auto" else options["colours"]
    return _Scale(low, high, mpl.colormaps[COLOUR_TABLES[name]], symmetric)


def _draw_map(panel: Axes, photo: Photo, values: Values, scale: _Scale, options: Mapping[str, Any]) -> None:
    """Draw an upsampled map where the network saw the photo, as colours or as contour lines."""
    left, top, right, bottom = photo.view.box
    if options["display"] == "contours":
        height, width = values.shape
        columns = left + (np.arange(width) + 0.5) / width * (right - left)
        rows = top + (np.arange(height) + 0.5) / height * (bottom - top)
        _draw_contours(panel, (columns, rows, values), scale)
    else:
        shades = _shades(values, scale, None if options["display"] == "map" else options["opacity"])
        panel.imshow(shades, extent=(left, right, bottom, top), interpolation="bilinear")
    panel.set_aspect("equal")


def _shades(values: Values, scale: _Scale, opacity: float | None) -> Values:
    """Colour values: [H,W] to [H,W,4]. An overlay is as opaque as the map is strong; an opacity of None is opaque."""
    steps = np.arange(256)
    strength = np.abs(steps / 127.5 - 1) if scale.symmetric else steps / 255
    table = np.asarray(scale.colours(steps))
    table[:, 3] = (
        1 if opacity is None else opacity * (np.minimum(1.5 * strength, 1) if scale.symmetric else strength**0.5)
    )
    if scale.flat:
        return np.broadcast_to(table[128 if scale.symmetric else 0], (*values.shape, 4))
    indices = np.round((values - scale.low) * 255 / (scale.high - scale.low)).clip(0, 255).astype(int)
    return np.asarray(table[indices])


def _draw_contours(panel: Axes, field: tuple[Values, Values, Values], scale: _Scale) -> None:
    """Draw lines of equal value, each over an edge that contrasts with it."""
    values = field[2]
    for share in _SIGNED_LEVELS if scale.symmetric else _LEVELS:
        level = scale.low + share * (scale.high - scale.low)
        if scale.flat or not values.min() < level < values.max():
            continue
        colour = scale.colours(round(255 * share))
        edge = (1, 1, 1, 0.8) if colour[1] < 0.5 else (0, 0, 0, 0.67)
        for drawn, width in ((edge, 2.4), (colour, 1.2)):
            panel.contour(*field, levels=[level], colors=[drawn], linewidths=width, linestyles="solid")


def _draw_colour_bar(panel: Axes, scale: _Scale, ink: str) -> None:
    """Draw the colours under a pane, with the values at their two ends."""
    ends = (0.0, 1.0) if scale.flat else (scale.low, scale.high)
    mappable = ScalarMappable(Normalize(*ends), scale.colours)
    bar = panel.figure.colorbar(mappable, ax=panel, orientation="horizontal", shrink=0.8, aspect=40, pad=0.02)
    bar.set_ticks(ends, labels=["flat" if scale.flat else _format_value(scale.low), _format_value(scale.high)])
    bar.ax.tick_params(labelsize=7, length=0, colors=ink)
    bar.outline.set_edgecolor(ink)
    bar.outline.set_linewidth(0.5)


def _format_value(value: float) -> str:
    """Format a value with three significant digits."""
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.2e}"
    return f"{float(f'{value:.3g}'):g}"
