"""What the page receives as bytes: maps, photos, thumbnails and colour tables; and the panes that need them."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from ..errors import GradlightError
from ..explainers.combination import upsample
from ..explainers.maps import SaliencyMaps
from ..models.base import Photo
from .options import COLOUR_TABLES

__all__ = ["MAX_PANES", "MapKey", "Pane", "colour_tables", "pack", "panes_of", "photo_bytes", "thumbnail"]

MAX_PANES = 4
"""The number of panes that a viewer shows at most; static/state.js has the same."""

_BYTE_BUDGET = 700_000
_GRID_SIDES = (112, 96, 80, 64, 56, 48, 40, 32, 28, 24, 20, 16)
_PHOTO_SIDE = 768
_PNG_SIDE = 320
_THUMBNAIL_SIDE = 88


class MapKey(NamedTuple):
    """What one set of maps explains.

    Args:
        image: Number of the image.
        target: Key of the target.
        meta: Direction of the inner step, or "off".
        lr: Learning rate of the inner step; 0 without one.
    """

    image: int
    target: str
    meta: str = "off"
    lr: float = 0.0


class Pane(NamedTuple):
    """What one pane shows: a target, a method, a layer or a combination of all layers, and the inner step."""

    target: str
    method: str
    layer: str
    meta: str
    combine: str

    def map_key(self, image: int, lr: float) -> MapKey:
        """Give the key of the maps that this pane shows.

        Args:
            image: Number of the displayed image.
            lr: Learning rate of the inner step, where the pane has one.

        Returns:
            The key.

        Example:
            >>> Pane("dog", "normgrad", "layer4", "off", "off").map_key(3, lr=0.1)
            MapKey(image=3, target='dog', meta='off', lr=0.0)
        """
        return MapKey(image, self.target, self.meta, 0.0 if self.meta == "off" else lr)


def panes_of(first: Pane, compare: str, others: Sequence[str]) -> list[Pane]:
    """List the panes: the first shows what the controls say, the others differ in the compared field.

    Beside a combination, single layers can be compared.

    Args:
        first: What the controls say.
        compare: The field of `Pane` that differs, or "off".
        others: Values of that field in the further panes.

    Returns:
        One to `MAX_PANES` panes.

    Example:
        >>> first = Pane("dog", "normgrad", "layer4", "off", "off")
        >>> [pane.method for pane in panes_of(first, "method", ["gradient", "grad_cam"])]
        ['normgrad', 'gradient', 'grad_cam']
    """
    if compare == "off":
        return [first]
    base = first._replace(combine="off") if compare == "layer" else first
    return [first, *(base._replace(**{compare: value}) for value in others[: MAX_PANES - 1])]


@cache
def colour_tables() -> bytes:
    """Give the tables of `COLOUR_TABLES` one after another.

    Returns:
        256 colours for each table, three bytes (red, green, blue) for each colour.

    Example:
        >>> len(colour_tables())
        4608
    """
    steps = np.linspace(0, 1, 256)
    return b"".join(mpl.colormaps[name](steps, bytes=True)[:, :3].tobytes() for name in COLOUR_TABLES.values())


# --- Maps


def pack(maps_by_key: Mapping[MapKey, SaliencyMaps], serial: int) -> bytes:
    """Pack maps for the page.

    The format is a uint32 (the length of the header), the header as JSON (method, number of the layer, h, w, low and
    high of each map), then the maps with a byte for each location: round(255·√m), m running from low (0) to high (1).
    The square root keeps differences between small values, on which a product over layers depends. Grids larger than
    112 × 112 are reduced (to smaller grids where many maps of one key would exceed 0.7 MB); saved maps never are.

    Args:
        maps_by_key: Maps of one image and one target for each key.
        serial: A number that differs in each delivery, so that equal deliveries reach the page too.

    Returns:
        The delivery, which `unpack` of static/numbers.js reads.
    """
    headers, chunks = [], []
    for key, maps in maps_by_key.items():
        tensors = list(_map_tensors(maps))
        side = _largest_side(values.shape for _, _, values in tensors)
        entries = []
        for method, layer, values in tensors:
            low, high, levels = _quantise(_reduce(values, side))
            entries.append([method, layer, *levels.shape, low, high])
            chunks.append(levels.tobytes())
        headers.append({**key._asdict(), "maps": entries})
    header = json.dumps({"serial": serial, "parts": headers}, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(header)), header, *chunks])


def _map_tensors(maps: SaliencyMaps) -> Iterator[tuple[str, int, Tensor]]:
    """Give the method, the number of the layer and the map [h,w] of the one image and target."""
    for method, layer in maps.pairs:
        values = maps.rows(method, layer, image=0)[0].detach().float().cpu()
        if (extent := maps.layer_info[layer].extent) is not None:  # the page lays every grid over all pixels
            values = upsample(values[None, None], maps.size, extent)[0, 0]
        yield method, maps.layers.index(layer), values


def _largest_side(shapes: Iterable[Sequence[int]]) -> int:
    """Find the largest side at which all maps together keep to the budget."""
    sizes = np.array([tuple(shape) for shape in shapes]).reshape(-1, 2)
    fitting = (side for side in _GRID_SIDES if np.minimum(sizes, side).prod(1).sum() <= _BYTE_BUDGET)
    return next(fitting, _GRID_SIDES[-1])


def _reduce(values: Tensor, side: int) -> Tensor:
    """Shrink a map [h,w] to at most side × side."""
    size = [min(length, side) for length in values.shape]
    if size == list(values.shape):
        return values
    return functional.interpolate(values[None, None], size, mode="bilinear", antialias=True)[0, 0]


def _quantise(values: Tensor) -> tuple[float, float, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Bring a map to bytes on the square-root scale; one that is not finite becomes flat."""
    if not bool(torch.isfinite(values).all()):
        values = torch.zeros_like(values)
    low, high = float(values.min()), float(values.max())
    span = high - low
    levels = ((values - low) / (span or 1.0)).clamp(0, 1).sqrt().mul(255).round()
    return _float32_digits(low), _float32_digits(high), levels.to(torch.uint8).numpy()


def _float32_digits(value: float) -> float:
    """Keep the digits that a float32 has."""
    return float(f"{value:.8g}")


# --- Photos


def photo_bytes(photo: Photo) -> bytes:
    """Encode a photo at the size of the page: a small one as PNG, others as JPEG.

    Args:
        photo: The record of the photo.

    Returns:
        The file's bytes; b"" where the photo cannot be read.
    """
    try:
        picture = photo.picture()
    except GradlightError:
        return b""
    small = max(picture.size) <= _PNG_SIDE
    return _encode(_shrink(picture, _PHOTO_SIDE), "PNG" if small else "JPEG")


def thumbnail(photo: Photo) -> str:
    """Encode a thumbnail of a photo.

    Args:
        photo: The record of the photo.

    Returns:
        A data URL; "" where the photo cannot be read.
    """
    try:
        picture = photo.picture()
    except GradlightError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(_encode(_shrink(picture, _THUMBNAIL_SIDE), "JPEG")).decode()


def _shrink(picture: Image.Image, side: int) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    return picture


def _encode(picture: Image.Image, file_format: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, file_format, **({"quality": 88} if file_format == "JPEG" else {"optimize": True}))
    return stream.getvalue()
