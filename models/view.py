"""The view: where a network's pixels lie in the original photo, and how maps are brought back to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import GradlightError

__all__ = ["View"]


@dataclass(frozen=True)
class View:
    """The region of the upright photo that the pixels cover.

    Args:
        photo: (width, height) of the photo.
        box: (left, top, right, bottom) in photo coordinates, where 0, 0 is the outer corner of the first pixel; it
            reaches beyond the photo where the pixels are padded, and right < left where they are mirrored.
        size: (height, width) of the pixels.
        orientation: The EXIF tag of the stored file (1 = as it is).

    Example:
        >>> from gradlight.models.view import View
        >>> crop = View(photo=(640, 480), box=(80.0, 0.0, 560.0, 480.0), size=(224, 224))
        >>> crop.to_photo([112, 112]).tolist(), crop.to_pixels([320, 240]).tolist()
        ([320.0, 240.0], [112.0, 112.0])
    """

    photo: tuple[int, int]
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    orientation: int = 1

    @classmethod
    def whole(cls, photo: tuple[int, int], size: tuple[int, int], orientation: int = 1) -> View:
        """Make the view of pixels that cover exactly the whole photo.

        Args:
            photo: (width, height) of the photo.
            size: (height, width) of the pixels.
            orientation: The EXIF tag of the stored file.

        Returns:
            The view.
        """
        return cls(photo, (0.0, 0.0, float(photo[0]), float(photo[1])), size, orientation)

    def to_photo(self, points: Any) -> Tensor:
        """Bring points from pixel coordinates to photo coordinates.

        Args:
            points: [..., 2], (x, y).

        Returns:
            Points of the same shape, float64.
        """
        corner, scale = self._affine()
        return torch.as_tensor(points, dtype=torch.float64, device="cpu") * scale + corner

    def to_pixels(self, points: Any) -> Tensor:
        """Bring points from photo coordinates to pixel coordinates.

        Args:
            points: [..., 2], (x, y).

        Returns:
            Points of the same shape, float64.
        """
        corner, scale = self._affine()
        return (torch.as_tensor(points, dtype=torch.float64, device="cpu") - corner) / scale

    def lay(self, maps: Tensor) -> Tensor:
        """Lay maps of any resolution over the photo, by bilinear interpolation.

        The grid of a map covers the box, as in `interpolate(align_corners=False)`: the outer half of its border
        locations holds their own value.

        Args:
            maps: [..., h, w].

        Returns:
            Maps [..., height, width] of the photo; NaN outside the box.

        Example:
            >>> import torch
            >>> from gradlight.models.view import View
            >>> right_half = View(photo=(4, 1), box=(2.0, 0.0, 4.0, 1.0), size=(8, 8))
            >>> right_half.lay(torch.tensor([[1.0, 2.0]])).tolist()
            [[nan, nan, 1.0, 2.0]]
        """
        maps = maps if maps.is_floating_point() else maps.float()
        left, top, right, bottom = self.box
        width, height = self.photo
        return _resample(_resample(maps, height, top, bottom, -2), width, left, right, -1)

    def to_json(self) -> dict[str, Any]:
        """Give the view in JSON types."""
        return {
            "photo": list(self.photo),
            "box": list(self.box),
            "size": list(self.size),
            "orientation": self.orientation,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> View:
        """Make the view of a record.

        Args:
            record: What `to_json` gave.

        Returns:
            The view.

        Raises:
            GradlightError: If it is no such record.
        """
        try:
            width, height = (int(n) for n in record["photo"])
            left, top, right, bottom = (float(n) for n in record["box"])
            rows, columns = (int(n) for n in record["size"])
            orientation = int(record.get("orientation", 1))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GradlightError(
                f"This is not a record of a view: {record!r}. It needs photo (2 numbers), box (4) and size (2)."
            ) from error
        return cls((width, height), (left, top, right, bottom), (rows, columns), orientation)

    def _affine(self) -> tuple[Tensor, Tensor]:
        """Give the photo coordinates of the pixels' first corner, and the photo's pixels per pixel, as (x, y)."""
        left, top, right, bottom = self.box
        rows, columns = self.size
        corner = torch.tensor([left, top], dtype=torch.float64, device="cpu")
        return corner, torch.tensor(
            [(right - left) / columns, (bottom - top) / rows], dtype=torch.float64, device="cpu"
        )


def _resample(maps: Tensor, length: int, start: float, stop: float, dim: int) -> Tensor:
    """Resample one axis, whose cells divide start…stop, at the centres of `length` photo pixels."""
    cells = maps.shape[dim]
    centres = torch.arange(length, dtype=torch.float64, device=maps.device) + 0.5
    positions = (centres - start) / (stop - start) * cells
    outside = (positions < -1e-9) | (positions > cells + 1e-9)
    positions = (positions - 0.5).clamp(0, cells - 1)
    before = positions.long()
    after = (before + 1).clamp(max=cells - 1)
    shape = [length, 1] if dim == -2 else [length]
    fraction = (positions - before).to(maps.dtype).reshape(shape)
    resampled = maps.index_select(dim, before) * (1 - fraction) + maps.index_select(dim, after) * fraction
    return resampled.masked_fill(outside.reshape(shape), float("nan"))
