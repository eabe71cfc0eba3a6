"""A network's preprocessing, bit for bit as torchvision's and timm's presets do it, together with its inverse."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from .view import View

__all__ = ["IMAGENET", "OriginalSize", "Preprocess", "Preprocessing", "View", "picture_of"]

# A panorama of 20000 x 1 pixels, resized whole to a shorter side of 256, would fill five gigabytes.
_LARGEST_WHOLE = 64_000_000


class Preprocess(Protocol):
    """Bring an upright RGB picture to pixels, with the view, and pixels back to a picture."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Give pixels [3,H,W] and where they lie in the photo."""

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Show pixels [3,H,W] as a picture of their own size."""

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop at the centre, scale to 0…1 and normalise.

    size: (height, width) of the pixels. resize: (height, width) that the photo is scaled to before the crop, in the
    way of `fit`: "shorter" (it just covers that size), "longer" (it just fits in) or "squash" (exactly that size,
    whatever its proportions). Where the scaled photo is smaller than the crop, `fill` (0…255) surrounds it.
    """

    size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    fit: str = "shorter"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fill: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Bring an upright RGB picture to pixels [3,H,W], float32, with the view."""
        height, width = _FITS[self.fit]((photo.height, photo.width), self.resize)
        rows, columns = self.size
        top, left = _offset(height, rows), _offset(width, columns)
        part = (max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height))
        crop = _resized_part(photo, (width, height), part, InterpolationMode(self.interpolation))
        if crop.size != (columns, rows):
            canvas = Image.new("RGB", (columns, rows), self.fill)
            canvas.paste(crop, (part[0] - left, part[1] - top))
            crop = canvas
        pixels = functional.normalize(functional.to_tensor(crop), list(self.mean), list(self.std))
        across, down = photo.width / width, photo.height / height
        box = (left * across, top * down, (left + columns) * across, (top + rows) * down)
        return pixels, View(photo.size, box, self.size, photo.info.get("orientation", 1))

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Show pixels [3,H,W] as a picture of their own size."""
        mean, std = (torch.tensor(numbers).reshape(3, 1, 1) for numbers in (self.mean, self.std))
        return picture_of(pixels.detach().float().cpu() * std + mean)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""
        record = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


IMAGENET = Preprocessing()


@dataclass(frozen=True)
class OriginalSize:
    """Scale to 0…1 and normalise a photo at its own size.

    longest: a photo with a longer side is scaled down to it, since memory grows with the pixels. shortest: one with a
    shorter side is scaled up. size: what is told where no photo is at hand.
    """

    mean: tuple[float, float, float] = IMAGENET.mean
    std: tuple[float, float, float] = IMAGENET.std
    longest: int = 1024
    shortest: int = 32
    size: tuple[int, int] = (224, 224)

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Bring an upright RGB picture to pixels [3,H,W], float32, with the view."""
        width, height = photo.size
        scale = min(1.0, self.longest / max(width, height))
        size = (max(self.shortest, round(height * scale)), max(self.shortest, round(width * scale)))
        return replace(_WHOLE, size=size, resize=size, mean=self.mean, std=self.std)(photo)

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Show pixels [3,H,W] as a picture of their own size."""
        return replace(_WHOLE, mean=self.mean, std=self.std).denormalise(pixels)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""
        return {"fit": "original", "longest": self.longest, "mean": list(self.mean), "std": list(self.std)}


_WHOLE = Preprocessing(fit="squash")


def picture_of(levels: Tensor) -> Image.Image:
    """Make an RGB picture of levels [3,H,W] from 0 to 1; what lies beyond is clipped, NaN is black."""
    bytes_ = levels.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())


def _offset(length: int, crop: int) -> int:
    """Tell where a centred crop begins, rounded as torchvision and timm do; negative where there is padding."""
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2.0)


def _resized_part(
    photo: Image.Image, size: tuple[int, int], part: tuple[int, int, int, int], mode: InterpolationMode
) -> Image.Image:
    """Resize a photo to size (width, height) and cut out a part of the result."""
    if size[0] * size[1] <= _LARGEST_WHOLE:
        whole: Image.Image = functional.resize(photo, [size[1], size[0]], mode)
        return whole.crop(part)
    # Only the part is made, from the photo's pixels around it: the same up to one grey level.
    scales = photo.width / size[0], photo.height / size[1]
    box = [edge * scales[index % 2] for index, edge in enumerate(part)]
    margins = [math.ceil(3 * max(scale, 1)) for scale in scales]
    x, y = (max(math.floor(box[axis]) - margins[axis], 0) for axis in (0, 1))
    right = min(math.ceil(box[2]) + margins[0], photo.width)
    bottom = min(math.ceil(box[3]) + margins[1], photo.height)
    inner = (box[0] - x, box[1] - y, min(box[2] - x, right - x), min(box[3] - y, bottom - y))
    filters = functional.pil_modes_mapping
    return photo.crop((x, y, right, bottom)).resize((part[2] - part[0], part[3] - part[1]), filters[mode], inner)


def _shorter(photo: tuple[int, int], resize: tuple[int, int]) -> tuple[int, int]:
    height, width = photo
    if resize[0] != resize[1]:
        return _scaled(photo, min(height / resize[0], width / resize[1]))
    edge = resize[0]
    return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))


def _longer(photo: tuple[int, int], resize: tuple[int, int]) -> tuple[int, int]:
    return _scaled(photo, max(photo[0] / resize[0], photo[1] / resize[1]))


def _squash(photo: tuple[int, int], resize: tuple[int, int]) -> tuple[int, int]:
    return resize


def _scaled(photo: tuple[int, int], ratio: float) -> tuple[int, int]:
    return max(1, round(photo[0] / ratio)), max(1, round(photo[1] / ratio))


_FITS = {"shorter": _shorter, "longer": _longer, "squash": _squash}
