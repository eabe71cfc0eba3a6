"""What a decoder reads of an encoder's last map: one vector of the whole image, and one of each place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ...errors import GradlightError

__all__ = ["Reading"]


@dataclass(frozen=True)
class Reading:
    """How an encoder's last map becomes features.

    grid: the places are pooled to grid × grid; None leaves them as they are. boxes: where each place lies is put
    behind its features, as ImageCaptioning.pytorch's `use_box` does for regions: left, top, right, bottom and area, all
    as shares of the image.
    """

    grid: int | None = None
    boxes: bool = False

    def __call__(self, maps: Tensor) -> dict[str, Tensor]:
        """Read features off a map [B,C,h,w]: "fc" [B,C], its mean, and "att" [B,N,C], or [B,N,C+5] with boxes."""
        places = maps if self.grid is None else functional.adaptive_avg_pool2d(maps, self.grid)
        rows = torch.movedim(places.flatten(2), 1, 2)
        if self.boxes:
            where = _boxes(places.shape[2], places.shape[3]).to(rows)
            rows = torch.cat([rows, where.expand(len(rows), -1, -1)], 2)
        return {"fc": maps.mean((2, 3)), "att": rows}

    def to_json(self) -> dict[str, Any]:
        """Describe the reading in JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Reading:
        """Make it again from what `to_json` gave; raises GradlightError for anything else."""
        try:
            grid, boxes = record["grid"], record["boxes"]
        except (KeyError, TypeError) as error:
            raise GradlightError(f"This does not say how features are read: {record!r}.") from error
        if not isinstance(boxes, bool) or not (grid is None or (type(grid) is int and 0 < grid <= _MOST)):
            raise GradlightError(f"This does not say how features are read: {record!r}.")
        return cls(grid, boxes)


_MOST = 256


def _boxes(rows: int, columns: int) -> Tensor:
    """Give the boxes [rows·columns,5] of a grid's places."""
    top, left = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    area = torch.full_like(top, 1 / (rows * columns))
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows, area], 2).flatten(0, 1)
