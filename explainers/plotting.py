"""Draw maps over the photos they explain."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from ..errors import GradlightError
from ..models.objective import Target
from .combination import upsample
from .panels import colour_bars, draw_map, draw_photo, picture_of

if TYPE_CHECKING:
    from .maps import SaliencyMaps

__all__ = ["MOST_PANELS", "figure", "rows_of"]

_PANEL = 2.2
MOST_PANELS = 600


def figure(
    maps: SaliencyMaps, images: Sequence[int], methods: Sequence[str], layers: Sequence[str], opacity: float
) -> Figure:
    """Draw the photo of each image, then its maps.

    A row for each image, target and method, with a panel for each layer; of the words of a sentence, a row for each
    image, method and layer, with a panel for each word and the sentence above the photo. Raises GradlightError for more
    panels than a page can hold.
    """
    spoken = _are_words(maps, images)
    rows = [
        (image, k, method, layer)
        for image in images
        for k in ([0] if spoken else range(len(maps.targets[image])))
        for method in methods
        for layer in (layers if spoken else [""])
    ]
    columns = 1 + (max((len(maps.targets[image]) for image in images), default=0) if spoken else len(layers))
    if not rows or len(rows) * columns > MOST_PANELS:
        raise GradlightError(
            f"A figure of {len(rows)} rows and {columns} columns was asked; it holds 1 to {MOST_PANELS} panels."
            " Choose with plot(images=…, methods=…, layers=…)."
        )
    tallness = float(np.clip(np.mean([maps.images[i].height / maps.images[i].width for i in images]), 0.4, 1.6))
    height = (_PANEL * tallness + 0.45) * len(rows)
    drawing = Figure(figsize=(_PANEL * columns + 1.1, height), layout="constrained")
    axes = drawing.subplots(len(rows), columns, squeeze=False)
    signed = {
        key: any(bool((maps.rows(*key, image=image) < 0).any()) for image in images)
        for key in maps.pairs
        if key[0] in methods and key[1] in layers
    }
    for line, (image, k, method, layer) in zip(axes, rows, strict=True):
        if spoken:
            _draw_sentence(line, maps, (image, method, layer), signed, opacity)
        else:
            _draw_layers(line, maps, (image, k, method), layers, signed, opacity)
    colour_bars(drawing, axes.ravel().tolist(), height, set(signed.values()))
    return drawing


def rows_of(maps: SaliencyMaps, image: int) -> int:
    """Tell how many rows of a figure one method of an image takes."""
    return len(maps.layers) if _are_words(maps, [image]) else len(maps.targets[image])


def _are_words(maps: SaliencyMaps, images: Sequence[int]) -> bool:
    """Tell whether every target is a word, and there are several: a sentence, which is read from left to right."""
    return all(
        len(maps.targets[image]) > 1 and all(target.kind == "word" for target in maps.targets[image])
        for image in images
    )


def _draw_layers(
    line: npt.NDArray[np.object_],
    maps: SaliencyMaps,
    row: tuple[int, int, str],
    layers: Sequence[str],
    signed: dict[tuple[str, str], bool],
    opacity: float,
) -> None:
    image, k, method = row
    photo, target = maps.images[image], maps.targets[image][k]
    picture = picture_of(photo)
    draw_photo(line[0], photo, picture)
    line[0].set_title(_named(target), fontsize=8)
    for panel, layer in zip(line[1:], layers, strict=True):
        draw_photo(panel, photo, picture)
        if (method, layer) in signed:
            values = _upsampled(maps, image, method, layer)[k]
            draw_map(panel, photo, values, signed[method, layer], opacity)
            panel.set_title(f"{method}\n{layer}", fontsize=8)


def _draw_sentence(
    line: npt.NDArray[np.object_],
    maps: SaliencyMaps,
    row: tuple[int, str, str],
    signed: dict[tuple[str, str], bool],
    opacity: float,
) -> None:
    image, method, layer = row
    photo, targets = maps.images[image], maps.targets[image]
    picture = picture_of(photo)
    draw_photo(line[0], photo, picture)
    sentence = " ".join(target.label for target in targets)
    line[0].set_title(f"{_wrapped(sentence)}\n{method}\n{layer}", fontsize=8)
    upsampled = _upsampled(maps, image, method, layer) if (method, layer) in signed else None
    for k, panel in enumerate(line[1:]):
        panel.set_axis_off()
        if k < len(targets):
            draw_photo(panel, photo, picture)
            panel.set_title(_word(targets[k]), fontsize=8)
        if k < len(targets) and upsampled is not None:
            draw_map(panel, photo, upsampled[k], signed[method, layer], opacity)


def _upsampled(maps: SaliencyMaps, image: int, method: str, layer: str) -> npt.NDArray[np.float64]:
    """Give the maps of one image at the size of the pixels: one for each target."""
    return upsample(maps.rows(method, layer, image=image).unsqueeze(0), maps.size)[0].double().cpu().numpy()


def _word(target: Target) -> str:
    return f"{target.label} ({target.score:.2f})"


def _named(target: Target) -> str:
    return f"{_wrapped(target.label)}\n{target.kind}, score {target.score:.4g}"


def _wrapped(label: str) -> str:
    """Break a sentence into lines that are no wider than a panel."""
    return "\n".join(textwrap.wrap(label, 34, break_long_words=False)) or label
