"""What people marked on photos: the objects of a photo, their boxes and outlines; VOC and COCO are read into these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import GradlightError
from .images import MAX_PIXELS
from .run_lengths import Counts, Mask, Polygon, decode, fill

__all__ = ["Annotated", "AnnotatedObject", "AnnotatedPhoto", "Box", "Outline", "RunLengths"]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels from 0, the last two exclusive."""


@dataclass(frozen=True, eq=False)
class RunLengths:
    """An outline as run lengths in column order, for a picture of its own size."""

    height: int
    width: int
    counts: Counts


Outline = tuple[Polygon, ...] | RunLengths


@dataclass(frozen=True, eq=False)
class AnnotatedObject:
    """One object; difficult is VOC's flag, crowd COCO's. outline is None where only the box is known."""

    name: str
    box: Box
    difficult: bool = False
    crowd: bool = False
    outline: Outline | None = None

    def mask(self, height: int, width: int) -> Mask:
        """Mark the object's pixels [H,W]: those of its outline, or of its box where it has none.

        A pixel is in a box if its centre is. Raises GradlightError for an outline of a picture of another size, and
        for pictures of more than MAX_PIXELS.
        """
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise GradlightError(
                f"A mask of {width} x {height} cannot be made: at most {MAX_PIXELS} pixels, at least 1."
            )
        if isinstance(self.outline, RunLengths):
            return self._decoded(self.outline, height, width)
        if self.outline:
            return np.asarray(np.logical_or.reduce([fill(polygon, height, width) for polygon in self.outline]))
        left, top, right, bottom = self.box
        rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
        return np.asarray((rows > top) & (rows < bottom) & (columns > left) & (columns < right))

    def _decoded(self, runs: RunLengths, height: int, width: int) -> Mask:
        if (runs.height, runs.width) != (height, width):
            raise GradlightError(
                f"The run lengths of a {self.name!r} are for a picture of {runs.width} x {runs.height}, not of"
                f" {width} x {height}. Check that the annotations belong to the photos."
            )
        return decode(runs.counts, height, width)


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo on disk, its size (width, height) as its annotation says, and its objects."""

    path: Path
    size: tuple[int, int]
    objects: tuple[AnnotatedObject, ...]

    def classes(self, order: Sequence[str]) -> list[str]:
        """Give the classes that are present, in an order that holds all of them."""
        present = {thing.name for thing in self.objects}
        return [name for name in order if name in present]


@dataclass(frozen=True)
class Annotated:
    """The photos of a data set in its order, its categories in theirs, and what is not among them.

    failures: photos that cannot be used, by path or name, each with its reason. left_out: how often each reason to
    leave out something smaller was met.
    """

    photos: tuple[AnnotatedPhoto, ...]
    categories: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    left_out: dict[str, int]
