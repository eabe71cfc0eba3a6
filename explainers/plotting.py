"""Draw maps over the photos they explain, as matplotlib figures."""

from __future__ import annotations

import textwrap
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
from .combination import upsample

if TYPE_CHECKING:
    from .maps import SaliencyMaps

__all__ = ["MOST_PANELS", "colour_bars", "draw_map", "draw_photo", "figure", "picture_of", "rows_of"]

Array = npt.NDArray[np.float64]
PanelRow = npt.NDArray[np.object_]
"""The axes of one row of a figure."""

MOST_PANELS = 600
_PANEL_INCHES = 2.2
_PHOTO_PIXELS = 480
_LABEL_CHARACTERS = 34

# --- Figures


def figure(
    maps: SaliencyMaps, images: Sequence[int], methods: Sequence[str], layers: Sequence[str], opacity: float
) -> Figure:
    """Draw the photo of each image, then its maps.

    One row per image, target and method, with one panel per layer. If the targets are the words of captions: one row
    per image, method and layer, with one panel per word and the caption above the photo.

    Args:
        maps: The maps.
        images: Numbers of the images.
        methods: Names of the methods.
        layers: Names of the layers.
        opacity: Of the strongest location of a map, 0…1.

    Returns:
        The figure.

    Raises:
        GradlightError: For no panels, or more than `MOST_PANELS`.
    """
    by_word = _are_words(maps, images)
    rows = [
        (image, k, method, layer)
        for image in images
        for k in ([0] if by_word else range(len(maps.targets[image])))
        for method in methods
        for layer in (layers if by_word else [""])
    ]
    columns = 1 + (max((len(maps.targets[image]) for image in images), default=0) if by_word else len(layers))
    if not rows or len(rows) * columns > MOST_PANELS:
        raise GradlightError(
            f"The figure would have {len(rows)} rows and {columns} columns; it holds 1 to {MOST_PANELS} panels."
            " Choose with plot(images=…, methods=…, layers=…)."
        )
    aspect = float(np.clip(np.mean([maps.images[i].height / maps.images[i].width for i in images]), 0.4, 1.6))
    height = (_PANEL_INCHES * aspect + 0.45) * len(rows)
    drawing = Figure(figsize=(_PANEL_INCHES * columns + 1.1, height), layout="constrained")
    axes = drawing.subplots(len(rows), columns, squeeze=False)
    signed = {
        key: any(bool((maps.rows(*key, image=image) < 0).any()) for image in images)
        for key in maps.pairs
        if key[0] in methods and key[1] in layers
    }
    for panels, (image, k, method, layer) in zip(axes, rows, strict=True):
        if by_word:
            _draw_words(panels, maps, (image, method, layer), signed, opacity)
        else:
            _draw_layers(panels, maps, (image, k, method), layers, signed, opacity)
    colour_bars(drawing, axes.ravel().tolist(), height, set(signed.values()))
    return drawing


def rows_of(maps: SaliencyMaps, image: int) -> int:
    """Return how many rows of a figure one method of an image takes."""
    return len(maps.layers) if _are_words(maps, [image]) else len(maps.targets[image])


def _are_words(maps: SaliencyMaps, images: Sequence[int]) -> bool:
    """Return whether every image has several targets, all words: a caption, which is read from left to right."""
    return all(
        len(maps.targets[image]) > 1 and all(target.kind == "word" for target in maps.targets[image])
        for image in images
    )


def _draw_layers(
    panels: PanelRow,
    maps: SaliencyMaps,
    row: tuple[int, int, str],
    layers: Sequence[str],
    signed: dict[tuple[str, str], bool],
    opacity: float,
) -> None:
    """Draw one row: a photo, and the maps of one target and method at each layer."""
    image, k, method = row
    photo, target = maps.images[image], maps.targets[image][k]
    picture = picture_of(photo)
    draw_photo(panels[0], photo, picture)
    panels[0].set_title(_format_target(target), fontsize=8)
    for panel, layer in zip(panels[1:], layers, strict=True):
        draw_photo(panel, photo, picture)
        if (method, layer) in signed:
            values = _upsampled(maps, image, method, layer)[k]
            draw_map(panel, photo, values, signed[method, layer], opacity)
            panel.set_title(f"{method}\n{layer}", fontsize=8)


def _draw_words(
    panels: PanelRow,
    maps: SaliencyMaps,
    row: tuple[int, str, str],
    signed: dict[tuple[str, str], bool],
    opacity: float,
) -> None:
    """Draw one row: a photo with its caption, and the maps of each word by one method at one layer."""
    image, method, layer = row
    photo, targets = maps.images[image], maps.targets[image]
    picture = picture_of(photo)
    draw_photo(panels[0], photo, picture)
    caption = " ".join(target.label for target in targets)
    panels[0].set_title(f"{_wrapped(caption)}\n{method}\n{layer}", fontsize=8)
    upsampled = _upsampled(maps, image, method, layer) if (method, layer) in signed else None
    for k, panel in enumerate(panels[1:]):
        panel.set_axis_off()
        if k < len(targets):
            draw_photo(panel, photo, picture)
            panel.set_title(_format_word(targets[k]), fontsize=8)
        if k < len(targets) and upsampled is not None:
            draw_map(panel, photo, upsampled[k], signed[method, layer], opacity)


def _upsampled(maps: SaliencyMaps, image: int, method: str, layer: str) -> Array:
    """Return the maps of one image at the size of the pixels, one per target: [K,H,W]."""
    rows = maps.rows(method, layer, image=image).unsqueeze(0)
    return upsample(rows, maps.size, maps.layer_info[layer].extent)[0].double().cpu().numpy()


def _format_word(target: Target) -> str:
    return f"{target.label} ({target.score:.2f})"


def _format_target(target: Target) -> str:
    return f"{_wrapped(target.label)}\n{target.kind}, score {target.score:.4g}"


def _wrapped(label: str) -> str:
    """Break a label into lines that are no wider than a panel."""
    return "\n".join(textwrap.wrap(label, _LABEL_CHARACTERS, break_long_words=False)) or label


# --- Panels


def picture_of(photo: Photo) -> Image.Image:
    """Return the photo at a size for a panel, or plain grey if it cannot be read any more."""
    try:
        picture = photo.picture().copy()
    except GradlightError:
        picture = Image.new("RGB", (photo.width, photo.height), (190, 190, 190))
    picture.thumbnail((_PHOTO_PIXELS, _PHOTO_PIXELS))
    return picture


def draw_photo(panel: Axes, photo: Photo, picture: Image.Image) -> None:
    """Draw a photo in its own coordinates."""
    panel.imshow(np.asarray(picture), extent=(0, photo.width, photo.height, 0))
    panel.set_axis_off()


def draw_map(panel: Axes, photo: Photo, values: Array, signed: bool, opacity: float) -> None:
    """Draw a map [H,W] over a photo, at the location of the pixels in it, as opaque as it is strong.

    A map that is never negative runs from its smallest (clear) to its largest value (yellow); a signed one from minus
    to plus its largest magnitude (blue, clear, red).
    """
    left, top, right, bottom = photo.view.box
    panel.imshow(_coloured(values, signed, opacity), extent=(left, right, bottom, top), interpolation="bilinear")
    panel.set_xlim(0, photo.width)
    panel.set_ylim(photo.height, 0)


def colour_bars(drawing: Figure, panels: list[Axes], height: float, kinds: set[bool]) -> None:
    """Draw one colour bar per kind of map (signed or not), no taller than a panel or two."""
    for signed in sorted(kinds):
        scale = ScalarMappable(Normalize(-1 if signed else 0, 1), _colour_map(signed))
        bar = drawing.colorbar(scale, ax=panels, shrink=min(1.0, 2.5 / height), aspect=18, fraction=0.02, pad=0.01)
        bar.set_ticks([-1, 0, 1] if signed else [0, 1])
        bar.set_ticklabels(["−max", "0", "max"] if signed else ["min", "max"])
        bar.ax.tick_params(labelsize=7)


def _colour_map(signed: bool) -> Colormap:
    return mpl.colormaps["RdBu_r" if signed else "inferno"]


def _coloured(values: Array, signed: bool, opacity: float) -> Array:
    """Turn a map [H,W] into colours with opacity [H,W,4]."""
    if signed:
        strength = values / (np.abs(values).max() or 1.0)
        colours = _colour_map(signed)((strength + 1) / 2)
    else:
        span = values.max() - values.min()
        strength = (values - values.min()) / (span or 1.0)
        colours = _colour_map(signed)(strength)
    colours[..., 3] = opacity * np.abs(strength) ** 0.5
    return np.asarray(colours)
