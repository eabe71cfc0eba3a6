"""Image processors of transformers as they are: their pixels bit for bit, and where these lie in the photo."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

from PIL import Image
from torch import Tensor

from .measuring import Box, Measured
from .preprocessing import Preprocess

__all__ = ["ImageProcessor", "default_processor", "own_preprocess"]

_STEPS = ("_preprocess", "resize", "center_crop")
_BASES = ("TorchvisionBackend", "PilBackend")


class ImageProcessor(Measured):
    """Run an image processor of transformers on an upright RGB picture.

    The view of its pixels is computed where its steps are the library's common ones (resize, then crop at the centre),
    and measured where it has steps of its own.
    """

    def __init__(self, processor: Any) -> None:
        super().__init__(self.pixels)
        self.processor = processor

    def pixels(self, photo: Image.Image) -> Tensor:
        """Give the pixels [3,H,W] of a picture."""
        found: Tensor = self.processor(images=photo, return_tensors="pt")["pixel_values"][0]
        return found

    def to_json(self) -> dict[str, Any]:
        """Describe the processor by its own configuration."""
        described: dict[str, Any] = json.loads(self.processor.to_json_string())
        return described

    def _measure(self, photo: tuple[int, int], size: tuple[int, int]) -> Box | str:
        """Compute the box of the common steps; measure it for others."""
        box = _common_box(self.processor, photo) if _has_common_steps(self.processor) else None
        return box or super()._measure(photo, size)


def own_preprocess(given: Callable[[Image.Image], Any]) -> Preprocess:
    """Make the preprocessing of what a caller gives: an image processor of transformers, or any other callable."""
    transformers = sys.modules.get("transformers")
    if transformers is not None and isinstance(given, transformers.BaseImageProcessor):
        return ImageProcessor(given)
    return Measured(given)


def default_processor(config: Any) -> Any:
    """Make the image processor that transformers has for networks of a configuration, or None if it has none.

    Its size is that of the configuration, which holds it itself or in its vision part.
    """
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    eye = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    for known in (config, eye):
        if type(known) in IMAGE_PROCESSOR_MAPPING:
            found: Any = IMAGE_PROCESSOR_MAPPING[type(known)]
            kind = found.get("torchvision") or found["pil"]
            return kind(**_sizes(kind, getattr(eye, "image_size", None)))
    return None


def _sizes(kind: Any, side: Any) -> dict[str, Any]:
    """Give the options that make a kind of processor give pixels of a side, or of (height, width)."""
    if side is None:
        return {}
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    whole = {"height": height, "width": width}
    if "shortest_edge" not in (kind.size or {}):
        return {"size": whole, "crop_size": whole}
    return {"size": {"shortest_edge": max(height, width)}, "crop_size": whole}


def _has_common_steps(processor: Any) -> bool:
    """Tell whether a processor does nothing of its own, and nothing but resize, crop, rescale and normalise."""
    bases = [base for base in type(processor).__mro__ if base.__name__ in _BASES]
    if not bases or getattr(processor, "do_pad", None):
        return False
    return all(getattr(type(processor), step) is getattr(bases[0], step) for step in _STEPS)


def _common_box(processor: Any, photo: tuple[int, int]) -> Box | None:
    """Compute where the pixels lie in a photo (width, height); None where the crop is larger than what it cuts."""
    width, height = photo
    rows, columns = _resized(processor, height, width)
    if not rows:
        return None
    across, down = width / columns, height / rows
    if not processor.do_center_crop:
        return 0.0, 0.0, float(width), float(height)
    crop = processor.crop_size
    top, left = (rows - crop.height) // 2, (columns - crop.width) // 2
    if top < 0 or left < 0:
        return None
    return left * across, top * down, (left + crop.width) * across, (top + crop.height) * down


def _resized(processor: Any, height: int, width: int) -> tuple[int, int]:
    """Give the size (height, width) of a photo before the crop, (0, 0) for ways of resizing that are not known here."""
    size = processor.size
    if not processor.do_resize:
        return height, width
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge or size.longest_edge:
        return 0, 0
    edge = size.shortest_edge
    return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))
