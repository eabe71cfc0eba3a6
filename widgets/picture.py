"""What a viewer shows as a picture that never changes: for saved notebooks, and where no program runs."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from ..errors import GradlightWarning
from ..explainers.combination import is_combination, upsample
from ..explainers.maps import SaliencyMaps
from ..explainers.plotting import draw_map, draw_photo, picture_of
from ..models.base import Photo
from .payload import Pane

__all__ = ["Shown", "draw"]

Shown = tuple[Pane, SaliencyMaps | None]
"""A pane, and the maps of its one image and target, if they are there."""

_WIDTH = 3.4
_DOTS = 110


def draw(
    photo: Photo, shown: Sequence[Shown], labels: Mapping[str, str], weights: Mapping[str, float], opacity: float
) -> bytes:
    """Draw the panes side by side as a PNG.

    labels: the names of the targets by their keys. weights: of the single layers.
    """
    tallness = min(max(photo.height / photo.width, 0.4), 1.8)
    drawing = Figure(figsize=(_WIDTH * len(shown), _WIDTH * tallness + 0.6), layout="constrained")
    picture = picture_of(photo)
    for panel, (pane, maps) in zip(drawing.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        draw_photo(panel, photo, picture)
        where = pane.layer if pane.combine == "off" else f"{pane.combine} of all layers"
        step = "" if pane.meta == "off" else f", {pane.meta} step"
        panel.set_title(f"{labels.get(pane.target, pane.target)[:60]}\n{pane.method}, {where}{step}", fontsize=8)
        found = None if maps is None else _combined(maps, pane, weights)
        if found is not None:
            maps, layer = found
            rows = maps.rows(pane.method, layer)
            values = upsample(rows.float().cpu().unsqueeze(0), maps.size)[0, 0].double().numpy()
            draw_map(panel, photo, values, bool((rows < 0).any()), opacity)
    stream = io.BytesIO()
    drawing.savefig(stream, format="png", dpi=_DOTS)
    return stream.getvalue()


def _combined(maps: SaliencyMaps, pane: Pane, weights: Mapping[str, float]) -> tuple[SaliencyMaps, str] | None:
    """Give maps, and the layer of them that a pane shows; None where it has none."""
    if pane.combine == "off":
        return (maps, pane.layer) if (pane.method, pane.layer) in maps.pairs else None
    # Some methods are defined at some layers only.
    layers = [layer for method, layer in maps.pairs if method == pane.method and not is_combination(layer)]
    if not any(weights[layer] for layer in layers):
        return None
    about = {layer: maps.about[layer] for layer in layers}
    rows = {(pane.method, layer): maps.rows(pane.method, layer) for layer in layers}
    alone = SaliencyMaps(rows, about, maps.images, maps.targets, maps.size, maps.origin)
    with warnings.catch_warnings():
        # A layer that says nothing is no news here: the page shows it.
        warnings.simplefilter("ignore", GradlightWarning)
        combined = alone.combine({layer: weights[layer] for layer in layers}, pane.combine)
    return combined, combined.layers[0]
