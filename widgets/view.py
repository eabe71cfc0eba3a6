"""`gradlight.view`: open a viewer of a model and an image, or of finished maps."""

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
from .live_source import live_source
from .map_sources import FinishedMaps
from .options import OPTIONS, document_options
from .payload import MapKey
from .viewer import Viewer
from .worker import CancelToken

__all__ = ["view"]

# The other options have parameters of their own, which take more than the trait does: `meta` has the learning rate.
_KEYWORDS = [name for name in OPTIONS if name not in ("image", "target", "meta", "lr")]


@document_options
def view(
    source: Explainable | SaliencyMaps | str | Path,
    image: Any = None,
    target: Any = None,
    *,
    methods: MethodLike | Iterable[MethodLike] | None = None,
    layers: str | Iterable[str] = "all",
    meta: Meta | None = None,
    **options: Any,
) -> Viewer:
    """Open a viewer of a model and an image, whose maps are computed on request, or of finished maps.

    Args:
        source: A classifier or captioner; or finished maps, or the path of their file.
        image: With a model, a path, Pillow image, HWC uint8 array or tensor [1,3,H,W] of pixels. With finished maps,
            the number or path of the image to open; None opens the first.
        target: With a model, one target or several, as for `explain`. With finished maps, the name of a target.
        methods: With a model, the methods that are computed at once; None for five of them, and all others can be
            chosen in the viewer. With finished maps, the methods to display; None for all.
        layers: The layers to display, as for `explain`.
        meta: The inner step with which the viewer opens.
        **options: Options of the viewer, as display="contours" (see Options); image, target, meta and lr are set by
            the parameters above.

    Returns:
        The viewer: a widget that shows itself in a notebook.

    Raises:
        GradlightError: An option, image, target, method or layer is unknown, or the source cannot be viewed.

    Example:
        >>> import torch
        >>> pixels = torch.rand(1, 3, 160, 160)
        >>> viewer = gl.view(gl.classifier("scenes"), pixels, "star", layers="layer4", opacity=0.5)
        >>> viewer.target, viewer.method, viewer.opacity
        ('star', 'selective_normgrad', 0.5)
    """
    for name in options:
        if name not in _KEYWORDS:
            raise GradlightError(f"A viewer has no {name!r}.{nearest(name, _KEYWORDS)} It has: {', '.join(_KEYWORDS)}.")
    if isinstance(source, (str, Path)):
        finished = FinishedMaps(load(source), os.path.basename(source), methods, layers)
        return _view_finished(finished, image, target, options)
    if isinstance(source, SaliencyMaps):
        finished = FinishedMaps(source, source.origin.model.get("name", "maps"), methods, layers)
        return _view_finished(finished, image, target, options)
    if image is None:
        raise GradlightError("A model needs an image to look at: gradlight.view(model, image).")
    live = live_source(source, image, methods, layers)
    initial_maps = live.initial_maps(target, meta)
    return Viewer(live, initial_maps, next(iter(initial_maps)), options)


def _view_finished(finished: FinishedMaps, image: Any, target: Any, options: dict[str, Any]) -> Viewer:
    number = _image_number(finished, image)
    choices = finished.choices(number)
    first = choices[0].key if choices else ""
    key = MapKey(number, first if target is None else finished.resolve_target(number, str(target)))
    initial_maps = {key: finished.maps(key, finished.methods, CancelToken())} if choices else {}
    return Viewer(finished, initial_maps, key, options)


def _image_number(finished: FinishedMaps, image: Any) -> int:
    """Find the image to open, by its number or its path."""
    if image is None:
        return 0
    if isinstance(image, int) and -len(finished) <= image < len(finished):
        return image % len(finished)
    if isinstance(image, (str, Path)):
        for number, photo in enumerate(finished.source.images):
            if photo.path == str(image):
                return number
    raise GradlightError(
        f"There is no image {image!r} among these {len(finished)}. Give its number, from 0, or its path."
    )
