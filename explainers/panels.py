"""One panel of a figure: a photo, and a map laid over it through its view."""

from __future__ import annotations

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

__all__ = ["colour_bars", "draw_map", "draw_photo", "picture_of"]

Array = npt.NDArray[np.float64]

_PHOTO = 480


def picture_of(photo: Photo) -> Image.Image:
    """Give the photo at a size for the page, or plain grey where it cannot be read any more."""
    try:
        picture = photo.picture().copy()
    except GradlightError:
        picture = Image.new("RGB", (photo.width, photo.height), (190, 190, 190))
    picture.thumbnail((_PHOTO, _PHOTO))
    return picture


def draw_photo(panel: Axes, photo: Photo, picture: Image.Image) -> None:
    """Draw a photo in its own coordinates."""
    panel.imshow(np.asarray(picture), extent=(0, photo.width, photo.height, 0))
    panel.set_axis_off()


def draw_map(panel: Axes, photo: Photo, values: Array, signed: bool, opacity: float) -> None:
    """Lay a map [H,W] over a photo, as opaque as it is strong.

    One that is never negative runs from its least (clear) to its largest value (yellow); a signed one from minus to
    plus its largest magnitude (blue, clear, red).
    """
    left, top, right, bottom = photo.view.box
    panel.imshow(_shade(values, signed, opacity), extent=(left, right, bottom, top), interpolation="bilinear")
    panel.set_xlim(0, photo.width)
    panel.set_ylim(photo.height, 0)


def colour_bars(drawing: Figure, panels: list[Axes], height: float, kinds: set[bool]) -> None:
    """Draw one bar for each kind of map (signed or not), no taller than a panel or two."""
    for signed in sorted(kinds):
        scale = ScalarMappable(Normalize(-1 if signed else 0, 1), _colours(signed))
        bar = drawing.colorbar(scale, ax=panels, shrink=min(1.0, 2.5 / height), aspect=18, fraction=0.02, pad=0.01)
        bar.set_ticks([-1, 0, 1] if signed else [0, 1])
        bar.set_ticklabels(["−max", "0", "max"] if signed else ["min", "max"])
        bar.ax.tick_params(labelsize=7)


def _colours(signed: bool) -> Colormap:
    return mpl.colormaps["RdBu_r" if signed else "inferno"]


def _shade(values: Array, signed: bool, opacity: float) -> Array:
    if signed:
        strength = values / (np.abs(values).max() or 1.0)
        colours = _colours(signed)((strength + 1) / 2)
    else:
        span = values.max() - values.min()
        strength = (values - values.min()) / (span or 1.0)
        colours = _colours(signed)(strength)
    colours[..., 3] = opacity * np.abs(strength) ** 0.5
    return np.asarray(colours)
