"""What people marked on photos: the objects of a photo, their boxes and outlines; VOC and COCO are read into these.

Masks of COCO objects: run lengths in column order, and polygons filled exactly as COCO's own tools fill them.

What every reader of a data set's JSON needs: the document itself, and its photos found under one folder.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ...errors import GradlightError
from ...files import format_path, read_whole
from ..images import MAX_PIXELS

__all__ = [
    "AnnotatedDataset",
    "AnnotatedObject",
    "AnnotatedPhoto",
    "Box",
    "Counts",
    "Mask",
    "Outline",
    "PhotoFolder",
    "Polygon",
    "RunLengths",
    "decode",
    "fill",
    "read_document",
]

Counts = npt.NDArray[np.int64]
"""Lengths of runs, down the first column and on with the next: of pixels outside, inside, outside …"""
Polygon = npt.NDArray[np.float64]
"""Corners [N,2] as (x, y); the pixel of column 0 and row 0 lies between 0 and 1."""
Mask = npt.NDArray[np.bool_]

_FINE = 5  # steps of the finer grid along each side of a pixel
_CENTRE = _FINE // 2


def decode(counts: Counts, height: int, width: int) -> Mask:
    """Make the mask [H,W] of run lengths; raises GradlightError where they are not those of its pixels."""
    pixels = height * width
    # Looked at one by one first, because a sum of large counts could overflow and come out right.
    if not counts.size or counts.min() < 0 or counts.max() > pixels or int(counts.sum()) != pixels:
        raise GradlightError(
            f"These run lengths do not fill a mask of {width} x {height}: they must be counts from 0 that add up to"
            f" {pixels}. Get a whole copy of the annotations."
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def fill(polygon: Polygon, height: int, width: int) -> Mask:
    """Fill a polygon by the even-odd rule: a mask [H,W], equal to that of COCO's tools pixel for pixel.

    Their rule, restated (pycocotools, `maskApi.c`): corners are rounded to a grid that is five times finer, edges are
    lines of its points, and in the middle of each column of pixels an edge turns inside to outside from the first
    pixel on whose centre is not above it. Parts outside the picture are cut off. Raises GradlightError for corners
    that lie farther outside than the picture is large.
    """
    far = np.abs(polygon - np.array([width, height]) / 2).max(0)
    if not (far <= 1.5 * np.array([width, height])).all():
        raise GradlightError(
            f"A polygon reaches far outside its picture of {width} x {height}, or is not finite. Check that the"
            " annotations belong to the photos."
        )
    corners = np.trunc(_FINE * polygon + 0.5).astype(np.int64)
    edges = zip(corners, np.roll(corners, -1, 0), strict=True)
    turns = np.concatenate([_turns(start, end, height, width) for start, end in edges])
    flips = np.bincount(turns, minlength=height * width + 1)[:-1]
    return np.asarray(np.cumsum(flips) % 2 == 1).reshape(width, height).T


def _turns(start: Counts, end: Counts, height: int, width: int) -> Counts:
    """Give the places, counted down the columns, where an edge turns inside to outside or back."""
    along = int(abs(end[0] - start[0]) < abs(end[1] - start[1]))  # the axis on which the edge is longer
    low, high = (start, end) if start[along] <= end[along] else (end, start)
    steps = np.arange(high[along] - low[along] + 1)
    slope = (high[1 - along] - low[1 - along]) / max(len(steps) - 1, 1)
    points = np.empty((len(steps), 2), np.int64)
    points[:, along] = low[along] + steps
    points[:, 1 - along] = np.trunc(low[1 - along] + slope * steps + 0.5)
    columns, rows = np.minimum(points[:-1], points[1:])[points[:-1, 0] != points[1:, 0]].T
    met = (columns % _FINE == _CENTRE) & (columns >= 0) & (columns < _FINE * width)
    first = np.ceil((rows[met] - _CENTRE) / _FINE).astype(np.int64).clip(0, height)
    return np.asarray(columns[met] // _FINE * height + first)


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
class AnnotatedDataset:
    """The photos of a data set in its order, its categories in theirs, and what is not among them.

    failures: photos that cannot be used, by path or name, each with its reason. left_out: how often each reason to
    leave out something smaller was met.
    """

    photos: tuple[AnnotatedPhoto, ...]
    categories: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    left_out: dict[str, int]


_MOST_BYTES = 1 << 30  # several times the largest file that is known
_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive: unpack it and give the JSON file in it"),
    (b"\x1f\x8b", "gzip-compressed data: unpack it first"),
    (b"<", "a web page or XML: download the file again"),
)


def read_document(path: str | os.PathLike[str], expected: str) -> Any:
    """Read a JSON file of at most 1 GiB.

    expected: sentences for the errors, saying which layouts are known. Raises GradlightError, which names the file,
    for what cannot be read, is too large or is not JSON.
    """
    source = format_path(path)
    content = read_whole(path, _MOST_BYTES, f"No such file is so large. {expected}")
    if not content.strip():
        raise GradlightError(f"{source}: empty file. Get a whole copy of it.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        what = [f"it looks like {what}" for start, what in _LOOKS_LIKE if content.lstrip().startswith(start)]
        reason = what[0] if what else f"{error}. Get a whole copy of it, in UTF-8"
        raise GradlightError(f"{source}: not JSON: {reason}.") from error


class PhotoFolder:
    """Finds photos under a folder; all of it is listed at most once, and only if a photo is not where it should be.

    Raises GradlightError for what is no folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not os.path.isdir(self.root):  # Path.is_dir fails on names that are too long
            raise GradlightError(f"{format_path(root)}: not a folder. Give the folder that holds the photos.")

    def find(self, name: str) -> list[Path]:
        """Give the one photo that is meant, or all that could be.

        A photo is looked for by its whole name, then in train2014, val2014, train2017 and val2017, then by its base
        name in every sub-folder that is neither hidden nor a link; never outside.
        """
        whole = Path(name)
        inside = [] if whole.is_absolute() or ".." in whole.parts else [whole]
        likely = (self.root / path for path in [*inside, *(Path(folder, whole.name) for folder in _FOLDERS)])
        near = next(filter(os.path.isfile, likely), None)
        return [near] if near else self._index.get(whole.name, [])

    @cached_property
    def _index(self) -> dict[str, list[Path]]:
        index: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                index.setdefault(name, []).append(Path(parent, name))
        return index
