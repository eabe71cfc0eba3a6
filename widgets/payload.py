"""Maps and photos as the few bytes that a page needs of them.

What is on show, pane by pane, derived from the viewer's traits; the page has the same few lines.
"""

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
from ..explainers.maps import SaliencyMaps
from ..models.base import Photo

__all__ = [
    "COMPARED",
    "MOST_PANES",
    "TABLES",
    "MapKey",
    "Pane",
    "colour_tables",
    "pack",
    "panes_of",
    "photo_bytes",
    "thumbnail",
]

_BUDGET = 700_000
_SIDES = (112, 96, 80, 64, 56, 48, 40, 32, 28, 24, 20, 16)
_PHOTO = 768
_SMALL = 320
_THUMB = 88

TABLES = {"inferno": "inferno", "viridis": "viridis", "magma": "magma", "cividis": "cividis", "grey": "gray"} | {
    "blue-red": "RdBu_r"
}
"""The colours by their names on the page; all but the last, for signed maps, are perceptually uniform."""


class MapKey(NamedTuple):
    """What one set of maps is of: an image (by number), a target (by its key), and the inner step."""

    image: int
    target: str
    meta: str = "off"
    lr: float = 0.0


@cache
def colour_tables() -> bytes:
    """Give the tables of `TABLES` one after another: 256 colours each, three bytes a colour."""
    steps = np.linspace(0, 1, 256)
    return b"".join(mpl.colormaps[name](steps, bytes=True)[:, :3].tobytes() for name in TABLES.values())


def pack(parts: Mapping[MapKey, SaliencyMaps], serial: int) -> bytes:
    """Pack the maps of parts, each of one image and one target, for the page.

    A uint32 (the length of the header), the header as JSON (method, number of the layer, h, w, low, high of each map),
    then the maps, a byte for each location: round(255·√m), m from low (0) to high (1), so that small values keep their
    differences, which a product over layers lives on. Grids larger than 112 × 112 (less, where many maps of one part
    would pass 0.7 MB) are reduced; the maps that are saved never are. serial: makes each delivery unlike the last.
    """
    headers, chunks = [], []
    for part, maps in parts.items():
        found = list(_maps(maps))
        side = _side(values.shape for _, _, values in found)
        listed = []
        for method, layer, values in found:
            low, high, levels = _quantised(_reduced(values, side))
            listed.append([method, layer, *levels.shape, low, high])
            chunks.append(levels.tobytes())
        headers.append({**part._asdict(), "maps": listed})
    header = json.dumps({"serial": serial, "parts": headers}, separators=(",", ":")).encode()
    return b"".join([struct.pack("<I", len(header)), header, *chunks])


def _maps(maps: SaliencyMaps) -> Iterator[tuple[str, int, Tensor]]:
    """Give the method, the number of the layer and the map [h,w] of the one image and target."""
    for method, layer in maps.pairs:
        yield method, maps.layers.index(layer), maps.rows(method, layer, image=0)[0].detach().float().cpu()


def _side(shapes: Iterable[Sequence[int]]) -> int:
    """Find the largest side at which all maps together keep to the budget."""
    sizes = np.array([tuple(shape) for shape in shapes]).reshape(-1, 2)
    return next((side for side in _SIDES if np.minimum(sizes, side).prod(1).sum() <= _BUDGET), _SIDES[-1])


def _reduced(values: Tensor, side: int) -> Tensor:
    size = [min(length, side) for length in values.shape]
    if size == list(values.shape):
        return values
    return functional.interpolate(values[None, None], size, mode="bilinear", antialias=True)[0, 0]


def _quantised(values: Tensor) -> tuple[float, float, np.ndarray[Any, np.dtype[np.uint8]]]:
    """Bring a map to bytes on the square-root scale; one that is not finite is shown as flat."""
    if not bool(torch.isfinite(values).all()):
        values = torch.zeros_like(values)
    low, high = float(values.min()), float(values.max())
    span = high - low
    levels = ((values - low) / (span or 1.0)).clamp(0, 1).sqrt().mul(255).round()
    return _short(low), _short(high), levels.to(torch.uint8).numpy()


def _short(value: float) -> float:
    """Keep the digits that a float32 has."""
    return float(f"{value:.8g}")


def photo_bytes(photo: Photo) -> bytes:
    """Give the photo at a size for the page, as PNG if it is small and JPEG if not; b"" where it cannot be read."""
    try:
        picture = photo.picture()
    except GradlightError:
        return b""
    small = max(picture.size) <= _SMALL
    return _encoded(_shrunk(picture, _PHOTO), "PNG" if small else "JPEG")


def thumbnail(photo: Photo) -> str:
    """Give a small picture of a photo as a data URL; "" where it cannot be read."""
    try:
        picture = photo.picture()
    except GradlightError:
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(_encoded(_shrunk(picture, _THUMB), "JPEG")).decode()


def _shrunk(picture: Image.Image, side: int) -> Image.Image:
    picture = picture.convert("RGB")
    picture.thumbnail((side, side))
    return picture


def _encoded(picture: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **({"quality": 88} if kind == "JPEG" else {"optimize": True}))
    return stream.getvalue()


MOST_PANES = 4
COMPARED = ("off", "method", "layer", "target", "meta")


class Pane(NamedTuple):
    """One pane: a target, a method, a layer or a combination of all, and the inner step."""

    target: str
    method: str
    layer: str
    meta: str
    combine: str

    def part(self, image: int, lr: float) -> MapKey:
        """Give what its maps are of."""
        return MapKey(image, self.target, self.meta, 0.0 if self.meta == "off" else lr)


def panes_of(first: Pane, compare: str, others: Sequence[str]) -> list[Pane]:
    """List the panes: the first shows what the controls say, the others differ in the one thing that is compared.

    Beside a combination single layers can be compared.
    """
    if compare == "off":
        return [first]
    base = first._replace(combine="off") if compare == "layer" else first
    return [first, *(base._replace(**{compare: value}) for value in others[: MOST_PANES - 1])]
