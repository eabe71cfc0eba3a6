"""Preprocessing with its inverse and its view, bit for bit as the presets of torchvision and timm."""

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

# A panorama of 20000 x 1 pixels, resized completely to a shorter side of 256, would fill five gigabytes.
_LARGEST_WHOLE = 64_000_000


class Preprocess(Protocol):
    """Bring an upright RGB picture to pixels, with the view, and pixels back to a picture."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Give pixels [3,H,W] and where they lie in the photo."""

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Turn pixels [3,H,W] into a picture of their own size."""

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""


@dataclass(frozen=True)
class Preprocessing:
    """Resize, crop at the centre, scale to 0…1 and normalise.

    Args:
        size: (height, width) of the pixels.
        resize: (height, width) that the photo is scaled to before the crop.
        fit: How it is scaled: "shorter" (it just covers that size), "longer" (it just fits in) or "squash" (exactly
            that size, whatever its proportions).
        interpolation: "nearest", "bilinear", "bicubic", …
        mean: Mean of each channel, subtracted.
        std: Standard deviation of each channel, divided by.
        fill: Colour (0…255) around a scaled photo that is smaller than the crop.

    Example:
        >>> from PIL import Image
        >>> from gradlight.models.preprocessing import IMAGENET
        >>> pixels, view = IMAGENET(Image.new("RGB", (512, 512)))
        >>> pixels.shape, view.box
        (torch.Size([3, 224, 224]), (32.0, 32.0, 480.0, 480.0))
    """

    size: tuple[int, int] = (224, 224)
    resize: tuple[int, int] = (256, 256)
    fit: str = "shorter"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    fill: tuple[int, int, int] = (0, 0, 0)

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Preprocess one photo.

        Args:
            photo: An upright RGB picture.

        Returns:
            Pixels [3,H,W], float32, and where they lie in the photo.
        """
        height, width = _FITS[self.fit]((photo.height, photo.width), self.resize)
        rows, columns = self.size
        top, left = _offset(height, rows), _offset(width, columns)
        box = (max(left, 0), max(top, 0), min(left + columns, width), min(top + rows, height))
        crop = _resized_crop(photo, (width, height), box, InterpolationMode(self.interpolation))
        if crop.size != (columns, rows):
            canvas = Image.new("RGB", (columns, rows), self.fill)
            canvas.paste(crop, (box[0] - left, box[1] - top))
            crop = canvas
        pixels = functional.normalize(functional.to_tensor(crop), list(self.mean), list(self.std))
        x_scale, y_scale = photo.width / width, photo.height / height
        photo_box = (left * x_scale, top * y_scale, (left + columns) * x_scale, (top + rows) * y_scale)
        return pixels, View(photo.size, photo_box, self.size, photo.info.get("orientation", 1))

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Turn pixels [3,H,W] into a picture of their own size."""
        mean, std = (torch.tensor(numbers, device="cpu").reshape(3, 1, 1) for numbers in (self.mean, self.std))
        return picture_of(pixels.detach().float().cpu() * std + mean)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""
        record = asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


IMAGENET = Preprocessing()


@dataclass(frozen=True)
class OriginalSize:
    """Scale to 0…1 and normalise a photo at its own size.

    Args:
        mean: Mean of each channel, subtracted.
        std: Standard deviation of each channel, divided by.
        longest: A photo with a longer side is scaled down to it, since memory grows with the pixels.
        shortest: A photo with a shorter side is scaled up to it.
        size: The size that stands for all where there is no photo.

    Example:
        >>> from PIL import Image
        >>> from gradlight.models.preprocessing import OriginalSize
        >>> OriginalSize()(Image.new("RGB", (320, 240)))[0].shape
        torch.Size([3, 240, 320])
    """

    mean: tuple[float, float, float] = IMAGENET.mean
    std: tuple[float, float, float] = IMAGENET.std
    longest: int = 1024
    shortest: int = 32
    size: tuple[int, int] = (224, 224)

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Preprocess one upright RGB photo: pixels [3,H,W], float32, and where they lie in the photo."""
        width, height = photo.size
        scale = min(1.0, self.longest / max(width, height))
        size = (max(self.shortest, round(height * scale)), max(self.shortest, round(width * scale)))
        return replace(_SQUASH, size=size, resize=size, mean=self.mean, std=self.std)(photo)

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Turn pixels [3,H,W] into a picture of their own size."""
        return replace(_SQUASH, mean=self.mean, std=self.std).denormalise(pixels)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""
        return {"fit": "original", "longest": self.longest, "mean": list(self.mean), "std": list(self.std)}


_SQUASH = Preprocessing(fit="squash")


def picture_of(levels: Tensor) -> Image.Image:
    """Make an RGB picture of levels.

    Args:
        levels: [3,H,W] from 0 to 1; what lies beyond is clipped, NaN is black.

    Returns:
        The picture.

    Example:
        >>> import torch
        >>> from gradlight.models.preprocessing import picture_of
        >>> picture_of(torch.ones(3, 4, 5)).getpixel((0, 0))
        (255, 255, 255)
    """
    bytes_ = levels.nan_to_num(0.0).clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(bytes_.permute(1, 2, 0).contiguous().numpy())


def _offset(length: int, crop: int) -> int:
    """Give where a centred crop begins, rounded as torchvision and timm do; negative where there is padding."""
    return -((crop - length) // 2) if crop > length else round((length - crop) / 2.0)


def _resized_crop(
    photo: Image.Image, size: tuple[int, int], box: tuple[int, int, int, int], mode: InterpolationMode
) -> Image.Image:
    """Resize a photo to size (width, height) and cut a box out of the result."""
    if size[0] * size[1] <= _LARGEST_WHOLE:
        resized: Image.Image = functional.resize(photo, [size[1], size[0]], mode)
        return resized.crop(box)
    # Only the box is made, from the photo's pixels around it: the same up to one grey level.
    scales = photo.width / size[0], photo.height / size[1]
    photo_box = [edge * scales[index % 2] for index, edge in enumerate(box)]
    margins = [math.ceil(3 * max(scale, 1)) for scale in scales]
    x, y = (max(math.floor(photo_box[axis]) - margins[axis], 0) for axis in (0, 1))
    right = min(math.ceil(photo_box[2]) + margins[0], photo.width)
    bottom = min(math.ceil(photo_box[3]) + margins[1], photo.height)
    inner = (photo_box[0] - x, photo_box[1] - y, min(photo_box[2] - x, right - x), min(photo_box[3] - y, bottom - y))
    filters = functional.pil_modes_mapping
    return photo.crop((x, y, right, bottom)).resize((box[2] - box[0], box[3] - box[1]), filters[mode], inner)


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
