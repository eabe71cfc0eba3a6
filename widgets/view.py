"""`view`: a viewer of a model and an image, or of finished maps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import GradlightError, nearest
from ..explainers.archive import load
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.methods import MethodLike
from ..models.base import Explainable
from .live_source import live
from .map_sources import Browsed
from .payload import MapKey
from .viewer import Viewer
from .worker import CancelToken

__all__ = ["view"]

_LOOK: tuple[str, ...] = ("method", "layer", "combine", "weighting", "weights", "compare", "others")
_LOOK += ("opacity", "colours", "display", "normalisation", "theme")


def view(
    source: Explainable | SaliencyMaps | str | Path,
    image: Any = None,
    target: Any = None,
    *,
    methods: MethodLike | Iterable[MethodLike] | None = None,
    layers: str | Iterable[str] = "all",
    meta: Meta | None = None,
    **look: Any,
) -> Viewer:
    """Look at maps: of a model and an image, computed as they are asked for, or finished ones.

    source: a model, with image (a path, Pillow image, HWC uint8 array or tensor of pixels) and target as for `explain`,
    of which the first several may be shown; or SaliencyMaps or the path of their file, with the number of an image and
    the name of a target to begin with. methods: those that are computed at once (of a model; five unless given), or
    that are shown. layers: as for `explain`. meta: the inner step to begin with. look: traits of the viewer, as
    opacity=0.5, compare="method", display="contours".
    Raises GradlightError for what is not to be had.
    """
    for name in look:
        if name not in _LOOK:
            raise GradlightError(f"A viewer has no {name!r}.{nearest(name, _LOOK)} It has: {', '.join(_LOOK)}.")
    if isinstance(source, (str, Path)):
        return _browser(load(source), os.path.basename(source), image, target, methods, layers, look)
    if isinstance(source, SaliencyMaps):
        return _browser(source, source.origin.model.get("name", "maps"), image, target, methods, layers, look)
    if image is None:
        raise GradlightError("A model needs an image to look at: gradlight.view(model, image).")
    made = live(source, image, methods, layers)
    opened = made.first(target, meta)
    return Viewer(made, opened, next(iter(opened)), look)


def _browser(
    maps: SaliencyMaps, title: str, image: Any, target: Any, methods: Any, layers: Any, look: dict[str, Any]
) -> Viewer:
    browsed = Browsed(maps, title, methods, layers)
    number = _numbered(browsed, image)
    choices = browsed.choices(number)
    first = choices[0].key if choices else ""
    part = MapKey(number, first if target is None else browsed.key(number, str(target)))
    opened = {part: browsed.maps(part, browsed.methods, CancelToken())} if choices else {}
    return Viewer(browsed, opened, part, look)


def _numbered(browsed: Browsed, image: Any) -> int:
    """Find the image to begin with, by its number or its path."""
    if image is None:
        return 0
    if isinstance(image, int) and -len(browsed) <= image < len(browsed):
        return image % len(browsed)
    if isinstance(image, (str, Path)):
        for number, photo in enumerate(browsed.source.images):
            if photo.path == str(image):
                return number
    raise GradlightError(
        f"There is no image {image!r} among these {len(browsed)}. Give its number, from 0, or its path."
    )
