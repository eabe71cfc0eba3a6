"""Where a network's pixels lie in the original photo, and the way back."""

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

    photo: (width, height). box: (left, top, right, bottom) in photo coordinates, where 0, 0 is the outer corner of
    the first pixel; it reaches beyond the photo where the pixels are padded, and right < left where they are
    mirrored. size: (height, width) of the pixels. orientation: the EXIF tag of the stored file (1 = as it is).
    """

    photo: tuple[int, int]
    box: tuple[float, float, float, float]
    size: tuple[int, int]
    orientation: int = 1

    @classmethod
    def whole(cls, photo: tuple[int, int], size: tuple[int, int], orientation: int = 1) -> View:
        """Make the view of pixels that cover exactly the whole photo."""
        return cls(photo, (0.0, 0.0, float(photo[0]), float(photo[1])), size, orientation)

    def to_photo(self, points: Any) -> Tensor:
        """Bring points [..., 2], (x, y) in pixel coordinates, to photo coordinates, as float64."""
        corner, scale = self._affine()
        return torch.as_tensor(points, dtype=torch.float64, device="cpu") * scale + corner

    def to_pixels(self, points: Any) -> Tensor:
        """Bring points [..., 2], (x, y) in photo coordinates, to pixel coordinates, as float64."""
        corner, scale = self._affine()
        return (torch.as_tensor(points, dtype=torch.float64, device="cpu") - corner) / scale

    def lay(self, maps: Tensor) -> Tensor:
        """Lay maps [..., h, w] of any resolution over the photo: [..., height, width], bilinear, NaN outside the box.

        The grid of a map covers the box, as in `interpolate(align_corners=False)`: the outer half of its border
        locations holds their own value.
        """
        maps = maps if maps.is_floating_point() else maps.float()
        left, top, right, bottom = self.box
        width, height = self.photo
        return _stretch(_stretch(maps, height, top, bottom, -2), width, left, right, -1)

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
        """Make the view again from what `to_json` gave; raises GradlightError for anything else."""
        try:
            width, height = (int(n) for n in record["photo"])
            left, top, right, bottom = (float(n) for n in record["box"])
            rows, columns = (int(n) for n in record["size"])
            orientation = int(record.get("orientation", 1))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise GradlightError(
                f"This is no record of a view: {record!r}. It needs photo (2 numbers), box (4) and size (2)."
            ) from error
        return cls((width, height), (left, top, right, bottom), (rows, columns), orientation)

    def _affine(self) -> tuple[Tensor, Tensor]:
        left, top, right, bottom = self.box
        rows, columns = self.size
        corner = torch.tensor([left, top], dtype=torch.float64)
        return corner, torch.tensor([(right - left) / columns, (bottom - top) / rows], dtype=torch.float64)


def _stretch(maps: Tensor, length: int, start: float, stop: float, dim: int) -> Tensor:
    """Resample one axis, whose cells divide start…stop, at the centres of `length` photo pixels."""
    cells = maps.shape[dim]
    centres = torch.arange(length, dtype=torch.float64, device=maps.device) + 0.5
    places = (centres - start) / (stop - start) * cells
    outside = (places < -1e-9) | (places > cells + 1e-9)
    places = (places - 0.5).clamp(0, cells - 1)
    before = places.long()
    after = (before + 1).clamp(max=cells - 1)
    shape = [length, 1] if dim == -2 else [length]
    part = (places - before).to(maps.dtype).reshape(shape)
    laid = maps.index_select(dim, before) * (1 - part) + maps.index_select(dim, after) * part
    return laid.masked_fill(outside.reshape(shape), float("nan"))
