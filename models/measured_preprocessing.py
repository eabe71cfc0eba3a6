"""Preprocessing by a caller's own function: its view is measured with pictures of known grey ramps."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import GradlightError, GradlightWarning
from .preprocessing import picture_of
from .view import View

__all__ = ["MeasuredPreprocessing"]

_SHORTEST_SIDE = 16
Box = tuple[float, float, float, float]


class MeasuredPreprocessing:
    """Wrap a callable and measure the view of its pixels.

    For each size of photo, five pictures of that size go through the callable once: black, white, a grey ramp from
    left to right (twice, to notice what is random), and one from top to bottom. Black and white undo the
    normalisation; the ramps then give each pixel's coordinates in the photo, and a straight line is fitted to them.
    Where the fit is bad (rotation, random crops, contrast stretching, photos below 16 pixels), the pixels are taken
    for the whole photo, with a GradlightWarning.

    Args:
        function: An upright RGB Pillow image → a float tensor [3,H,W].

    Example:
        >>> from PIL import Image
        >>> from torchvision import transforms
        >>> from gradlight.models.measured_preprocessing import MeasuredPreprocessing
        >>> crop = transforms.Compose([transforms.CenterCrop(64), transforms.ToTensor()])
        >>> _, view = MeasuredPreprocessing(crop)(Image.new("RGB", (128, 96)))
        >>> [round(edge) for edge in view.box]
        [32, 16, 96, 80]
    """

    def __init__(self, function: Callable[[Image.Image], Any]) -> None:
        self.function = function
        self._boxes: dict[tuple[tuple[int, int], tuple[int, int]], Box | None] = {}

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Run the callable on one photo.

        Args:
            photo: An upright RGB picture.

        Returns:
            Its pixels [3,H,W], and the measured view.

        Raises:
            GradlightError: If the callable gives no such tensor.
        """
        pixels = self._run(photo)
        size, orientation = (pixels.shape[1], pixels.shape[2]), photo.info.get("orientation", 1)
        key = (photo.size, size)
        if key not in self._boxes:
            self._boxes[key] = self._box_or_warning(photo.size, size)
        box = self._boxes[key]
        if box is None:
            return pixels, View.whole(photo.size, size, orientation)
        return pixels, View(photo.size, box, size, orientation)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels, found by running the callable on a grey picture of 256 x 256."""
        _, height, width = self._run(Image.new("RGB", (256, 256), "grey")).shape
        return height, width

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Turn pixels [3,H,W] into a picture of their own size."""
        size = (pixels.shape[2], pixels.shape[1])
        black, white = (self._run(Image.new("RGB", size, shade)).flatten(1).double() for shade in ("black", "white"))
        low, high = (shade.median(1).values.reshape(3, 1, 1) for shade in (black, white))
        return picture_of((pixels.detach().double().cpu() - low) / (high - low))

    def to_json(self) -> dict[str, Any]:
        """Describe the callable by its repr where that does not change from run to run, else by its name."""
        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        text = repr(self.function)
        return {"callable": name if " at 0x" in text else text}

    def _run(self, photo: Image.Image) -> Tensor:
        pixels = self.function(photo)
        if not isinstance(pixels, Tensor) or pixels.ndim != 3 or pixels.shape[0] != 3:
            result = f"a tensor {list(pixels.shape)}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise GradlightError(
                f"preprocess= must bring an RGB Pillow image to a tensor [3,H,W]; it gave {result}. End it with"
                " ToTensor and Normalize, or wrap it in a function that takes the one image out of a batch."
            )
        return pixels.detach().cpu()

    def _box_or_warning(self, photo: tuple[int, int], size: tuple[int, int]) -> Box | None:
        box = self._measure(photo, size)
        if not isinstance(box, str):
            return box
        warnings.warn(
            f"Where preprocess= puts a photo of {photo[0]} x {photo[1]} pixels could not be measured ({box}); its"
            " maps are laid over the whole photo.",
            GradlightWarning,
            stacklevel=2,
        )
        return None

    def _measure(self, photo: tuple[int, int], size: tuple[int, int]) -> Box | str:
        """Measure the box, or say why it cannot be measured."""
        if min(photo) < _SHORTEST_SIDE:
            return f"a side is shorter than {_SHORTEST_SIDE} pixels"
        rightwards = _ramp(*photo)
        downwards = _ramp(photo[1], photo[0]).transpose(Image.Transpose.TRANSPOSE)
        shades = [Image.new("RGB", photo, shade) for shade in ("black", "white")]
        runs = [self._run(picture).double() for picture in (*shades, rightwards, downwards, rightwards)]
        if any(run.shape[1:] != size for run in runs) or not torch.equal(runs[2], runs[4]):
            return "it does not give the same pixels each time"
        black, white = runs[:2]
        span = white - black
        of_photo = span.abs() >= 0.99 * span.abs().amax((1, 2), keepdim=True).clamp(min=1e-6)
        levels = [((run - black) / span).where(of_photo, torch.nan).nanmean(0) for run in runs[2:4]]
        horizontal = _fit(levels[0], photo[0])
        vertical = _fit(levels[1].T, photo[1])
        if horizontal is None or vertical is None:
            return "it does more than scale, crop, pad, mirror and normalise"
        return horizontal[0], vertical[0], horizontal[1], vertical[1]


def _ramp(width: int, height: int) -> Image.Image:
    """Draw a grey ramp from left to right that keeps, in the mean over its rows, what 8 bits round away.

    Each row rounds at another fraction, for what resizing averages; and the rows drift slowly through one grey level,
    for the rounding after it.
    """
    exact = (np.arange(width) + 0.5) / width * 255
    drift = (np.arange(height) + 0.5) / height * 4 % 1 - 0.5
    rounding = np.arange(height) * 0.6180339887498949 % 1
    grey = np.floor(exact[None, :] + (drift + rounding)[:, None]).clip(0, 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(np.broadcast_to(grey[..., None], (height, width, 3))))


def _fit(levels: Tensor, length: int) -> tuple[float, float] | None:
    """Fit the photo's coordinate to the columns of levels [h,w], where 0…1 is the photo's length.

    Returns the coordinates of the two outer edges, or None if a straight line does not describe them.
    """
    rows, columns = levels.shape
    coordinates = levels * length
    # Resizing bends a ramp near the photo's edges, where the filter reaches beyond it.
    margin = min(2 + 3 * length / columns, length / 4)
    inside = (coordinates > margin) & (coordinates < length - margin)
    y, x = torch.nonzero(inside, as_tuple=True)
    if x.numel() < 4 or x.min() == x.max():
        return None
    grid = torch.stack([torch.ones(x.numel(), dtype=torch.float64, device=x.device), x + 0.5, y - y.double().mean()], 1)
    line = torch.linalg.lstsq(grid, coordinates[inside].unsqueeze(1), driver="gelsd").solution[:, 0]
    error = (grid @ line - coordinates[inside]).square().mean().sqrt()
    tolerance = 0.5 + 0.01 * length
    if not error <= tolerance or not abs(line[2]) * rows <= tolerance or line[1] == 0:
        return None
    return float(line[0]), float(line[0] + line[1] * columns)
