"""Draw maps over the photos they explain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from PIL import Image

from ..errors import GradlightError
from ..models.base import Photo
from ..models.objective import Target

if TYPE_CHECKING:
    from .maps import SaliencyMaps

__all__ = ["MOST_PANELS", "figure"]

Array = npt.NDArray[np.float64]

_PANEL = 2.2
MOST_PANELS = 600
_PHOTO = 480


def figure(
    maps: SaliencyMaps, images: Sequence[int], methods: Sequence[str], layers: Sequence[str], opacity: float
) -> Figure:
    """Draw a row for each image, target and method: the photo, then a panel for each layer.

    Maps that are never negative run from their least (clear) to their largest value (yellow); signed ones from minus
    to plus their largest magnitude (blue, clear, red). Raises GradlightError for more panels than a page can hold.
    """
    rows = [(image, k, method) for image in images for k in range(len(maps.targets[image])) for method in methods]
    columns = len(layers) + 1
    if not rows or len(rows) * columns > MOST_PANELS:
        raise GradlightError(
            f"A figure of {len(rows)} rows and {columns} columns was asked; it holds 1 to {MOST_PANELS} panels."
            " Choose with plot(images=…, methods=…, layers=…)."
        )
    tallness = float(np.clip(np.mean([maps.images[i].height / maps.images[i].width for i in images]), 0.4, 1.6))
    height = (_PANEL * tallness + 0.45) * len(rows)
    drawing = Figure(figsize=(_PANEL * columns + 1.1, height), layout="constrained")
    axes = drawing.subplots(len(rows), columns, squeeze=False)
    kinds = {key: bool((maps[key] < 0).any()) for key in maps.pairs if key[0] in methods and key[1] in layers}
    for line, (image, k, method) in zip(axes, rows, strict=True):
        _draw_row(line, maps, (image, k, method), layers, kinds, opacity)
    _colour_bars(drawing, axes.ravel().tolist(), height, set(kinds.values()))
    return drawing


def _draw_row(
    line: npt.NDArray[np.object_],
    maps: SaliencyMaps,
    row: tuple[int, int, str],
    layers: Sequence[str],
    signed: dict[tuple[str, str], bool],
    opacity: float,
) -> None:
    image, k, method = row
    photo, target = maps.images[image], maps.targets[image][k]
    picture = _picture(photo)
    _draw_photo(line[0], photo, picture)
    line[0].set_title(_named(target), fontsize=8)
    for panel, layer in zip(line[1:], layers, strict=True):
        _draw_photo(panel, photo, picture)
        if (method, layer) in signed:
            values = maps.upsampled(method, layer)[image, k].double().cpu().numpy()
            _draw_map(panel, photo, _shade(values, signed[method, layer], opacity))
            panel.set_title(f"{method}\n{layer}", fontsize=8)


def _named(target: Target) -> str:
    return f"{target.label}\n{target.kind}, score {target.score:.4g}"


def _picture(photo: Photo) -> Image.Image:
    """Give the photo at a size for the page, or plain grey where it cannot be read any more."""
    try:
        picture = photo.picture().copy()
    except GradlightError:
        picture = Image.new("RGB", (photo.width, photo.height), (190, 190, 190))
    picture.thumbnail((_PHOTO, _PHOTO))
    return picture


def _draw_photo(panel: Axes, photo: Photo, picture: Image.Image) -> None:
    panel.imshow(np.asarray(picture), extent=(0, photo.width, photo.height, 0))
    panel.set_axis_off()


def _draw_map(panel: Axes, photo: Photo, colours: Array) -> None:
    left, top, right, bottom = photo.view.box
    panel.imshow(colours, extent=(left, right, bottom, top), interpolation="bilinear")
    panel.set_xlim(0, photo.width)
    panel.set_ylim(photo.height, 0)


def _colours(signed: bool) -> Colormap:
    return mpl.colormaps["RdBu_r" if signed else "inferno"]


def _shade(values: Array, signed: bool, opacity: float) -> Array:
    """Colour a map [H,W] as RGBA, as opaque as it is strong."""
    if signed:
        strength = values / (np.abs(values).max() or 1.0)
        colours = _colours(signed)((strength + 1) / 2)
    else:
        span = values.max() - values.min()
        strength = (values - values.min()) / (span or 1.0)
        colours = _colours(signed)(strength)
    colours[..., 3] = opacity * np.abs(strength) ** 0.5
    return np.asarray(colours)


def _colour_bars(drawing: Figure, panels: list[Axes], height: float, kinds: set[bool]) -> None:
    """Draw one bar for each kind of map, no taller than a panel or two."""
    for signed in sorted(kinds):
        scale = ScalarMappable(Normalize(-1 if signed else 0, 1), _colours(signed))
        bar = drawing.colorbar(scale, ax=panels, shrink=min(1.0, 2.5 / height), aspect=18, fraction=0.02, pad=0.01)
        bar.set_ticks([-1, 0, 1] if signed else [0, 1])
        bar.set_ticklabels(["−max", "0", "max"] if signed else ["min", "max"])
        bar.ax.tick_params(labelsize=7)
