"""Annotated photos: the common records of all data sets, masks of outlines, and what the readers of JSON files share.

PASCAL VOC and COCO are read into `AnnotatedDataset`. The masks of COCO objects come from run lengths in column order,
and from polygons, which are filled exactly as COCO's own tools fill them.
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
    "decode_run_lengths",
    "fill_polygon",
    "read_document",
]

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels from 0, the last two exclusive."""
Counts = npt.NDArray[np.int64]
"""Run lengths, down the first column and on with the next: the numbers of pixels outside, inside, outside …"""
Polygon = npt.NDArray[np.float64]
"""Corners [N,2] as (x, y); the pixel of column 0 and row 0 reaches from 0 to 1."""
Mask = npt.NDArray[np.bool_]


# --- Records


@dataclass(frozen=True, eq=False)
class RunLengths:
    """An outline as run lengths in column order, for an image of this height and width.

    Example:
        >>> RunLengths(2, 2, np.array([1, 3])).counts
        array([1, 3])
    """

    height: int
    width: int
    counts: Counts


Outline = tuple[Polygon, ...] | RunLengths


@dataclass(frozen=True, eq=False)
class AnnotatedObject:
    """One annotated object.

    Attributes:
        name: Its category.
        box: Its bounding box.
        difficult: The flag of VOC.
        crowd: The flag of COCO.
        outline: Its polygons or run lengths, None where only the box is known.

    Example:
        >>> AnnotatedObject("cat", (1.0, 0.0, 3.0, 1.0)).mask(2, 4).astype(int)
        array([[0, 1, 1, 0],
               [0, 0, 0, 0]])
    """

    name: str
    box: Box
    difficult: bool = False
    crowd: bool = False
    outline: Outline | None = None

    def mask(self, height: int, width: int) -> Mask:
        """Mark the pixels of the object: those of its outline, or of its box where it has no outline.

        Args:
            height: The height of the photo.
            width: The width of the photo.

        Returns:
            A mask [H,W]. A pixel is in a box if its centre is.

        Raises:
            GradlightError: The outline belongs to an image of another size, or the photo has more than MAX_PIXELS.
        """
        if height < 1 or width < 1 or height * width > MAX_PIXELS:
            raise GradlightError(
                f"A mask of {width} x {height} cannot be made: at most {MAX_PIXELS} pixels, at least 1."
            )
        if isinstance(self.outline, RunLengths):
            return self._decode(self.outline, height, width)
        if self.outline:
            return np.asarray(np.logical_or.reduce([fill_polygon(polygon, height, width) for polygon in self.outline]))
        left, top, right, bottom = self.box
        rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
        return np.asarray((rows > top) & (rows < bottom) & (columns > left) & (columns < right))

    def _decode(self, outline: RunLengths, height: int, width: int) -> Mask:
        """Decode run lengths, after checking that they belong to a photo of this size."""
        if (outline.height, outline.width) != (height, width):
            raise GradlightError(
                f"The run lengths of a {self.name!r} are for a picture of {outline.width} x {outline.height}, not of"
                f" {width} x {height}. Check that the annotations belong to the photos."
            )
        return decode_run_lengths(outline.counts, height, width)


@dataclass(frozen=True)
class AnnotatedPhoto:
    """A photo on disk with its objects.

    Attributes:
        path: The image file.
        size: (width, height) as the annotation says.
        objects: The annotated objects.

    Example:
        >>> cat = AnnotatedObject("cat", (0.0, 0.0, 9.0, 9.0))
        >>> AnnotatedPhoto(Path("a.jpg"), (640, 480), (cat,)).classes(["dog", "cat"])
        ['cat']
    """

    path: Path
    size: tuple[int, int]
    objects: tuple[AnnotatedObject, ...]

    def classes(self, order: Sequence[str]) -> list[str]:
        """List the categories of the objects, in the order of a list of all categories."""
        present = {thing.name for thing in self.objects}
        return [name for name in order if name in present]


@dataclass(frozen=True)
class AnnotatedDataset:
    """The photos of a data set, in its order, and what could not be read.

    Attributes:
        photos: The photos with their objects.
        categories: The names of all categories, in the order of the data set.
        failures: (path or name, reason) of every photo that cannot be used.
        left_out: Reason → number of smaller entries (objects, outlines, categories) that are left out for it.

    Example:
        >>> dataset = AnnotatedDataset((), ("cat", "dog"), (("a.jpg", "not found"),), {})
        >>> dataset.failures[0]
        ('a.jpg', 'not found')
    """

    photos: tuple[AnnotatedPhoto, ...]
    categories: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    left_out: dict[str, int]


# --- Masks

_SUBPIXELS = 5  # steps of the finer grid along each side of a pixel
_CENTRE = _SUBPIXELS // 2


def decode_run_lengths(counts: Counts, height: int, width: int) -> Mask:
    """Decode run lengths in column order.

    Args:
        counts: The run lengths, the first one of pixels outside.
        height: The height of the image.
        width: The width of the image.

    Returns:
        A mask [H,W].

    Raises:
        GradlightError: The counts do not add up to the number of pixels.

    Example:
        >>> decode_run_lengths(np.array([1, 2, 1]), height=2, width=2).astype(int)
        array([[0, 1],
               [1, 0]])
    """
    pixels = height * width
    # Each count is checked before their sum, because a sum of large counts could overflow and still match.
    if not counts.size or counts.min() < 0 or counts.max() > pixels or int(counts.sum()) != pixels:
        raise GradlightError(
            f"These run lengths do not fill a mask of {width} x {height}: they must be counts from 0 that add up to"
            f" {pixels}. Get a whole copy of the annotations."
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def fill_polygon(polygon: Polygon, height: int, width: int) -> Mask:
    """Fill a polygon by the even-odd rule, pixel for pixel as COCO's tools do (pycocotools, `maskApi.c`).

    Corners are rounded to a grid that is five times finer than the pixels, and edges are rasterised on it. In the
    middle of each column of pixels, an edge switches between outside and inside, from the first pixel on whose centre
    is not above the edge. Parts outside the image are cut off.

    Args:
        polygon: Corners [N,2] as (x, y).
        height: The height of the image.
        width: The width of the image.

    Returns:
        A mask [H,W].

    Raises:
        GradlightError: A corner is farther outside the image than the image is large, or is not finite.

    Example:
        >>> fill_polygon(np.array([[1.0, 0.0], [3.0, 0.0], [3.0, 2.0], [1.0, 2.0]]), 3, 4).astype(int)
        array([[0, 1, 1, 0],
               [0, 1, 1, 0],
               [0, 0, 0, 0]])
    """
    distance = np.abs(polygon - np.array([width, height]) / 2).max(0)
    if not (distance <= 1.5 * np.array([width, height])).all():
        raise GradlightError(
            f"A polygon reaches far outside its picture of {width} x {height}, or is not finite. Check that the"
            " annotations belong to the photos."
        )
    corners = np.trunc(_SUBPIXELS * polygon + 0.5).astype(np.int64)
    edges = zip(corners, np.roll(corners, -1, 0), strict=True)
    crossings = np.concatenate([_find_crossings(start, end, height, width) for start, end in edges])
    flips = np.bincount(crossings, minlength=height * width + 1)[:-1]
    return np.asarray(np.cumsum(flips) % 2 == 1).reshape(width, height).T


def _find_crossings(start: Counts, end: Counts, height: int, width: int) -> Counts:
    """Give the indices of the pixels, in column order, where an edge switches between outside and inside."""
    along = int(abs(end[0] - start[0]) < abs(end[1] - start[1]))  # the axis on which the edge is longer
    low, high = (start, end) if start[along] <= end[along] else (end, start)
    steps = np.arange(high[along] - low[along] + 1)
    slope = (high[1 - along] - low[1 - along]) / max(len(steps) - 1, 1)
    points = np.empty((len(steps), 2), np.int64)
    points[:, along] = low[along] + steps
    points[:, 1 - along] = np.trunc(low[1 - along] + slope * steps + 0.5)
    columns, rows = np.minimum(points[:-1], points[1:])[points[:-1, 0] != points[1:, 0]].T
    crosses = (columns % _SUBPIXELS == _CENTRE) & (columns >= 0) & (columns < _SUBPIXELS * width)
    first = np.ceil((rows[crosses] - _CENTRE) / _SUBPIXELS).astype(np.int64).clip(0, height)
    return np.asarray(columns[crosses] // _SUBPIXELS * height + first)


# --- JSON documents and their photos

_MAX_BYTES = 1 << 30  # several times the largest known file
_SPLIT_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive: unpack it and give the JSON file in it"),
    (b"\x1f\x8b", "gzip-compressed data: unpack it first"),
    (b"<", "a web page or XML: download the file again"),
)


def read_document(path: str | os.PathLike[str], expected: str) -> Any:
    """Read a JSON file of at most 1 GiB.

    Args:
        path: The file.
        expected: Which layouts are supported, for the error messages.

    Returns:
        The document as plain data.

    Raises:
        GradlightError: The file cannot be read, is too large or is not JSON. The message names it.

    Example:
        >>> _ = Path("a.json").write_text('{"images": []}')
        >>> read_document("a.json", "Expected are captions.")
        {'images': []}
    """
    source = format_path(path)
    content = read_whole(path, _MAX_BYTES, f"No such file is so large. {expected}")
    if not content.strip():
        raise GradlightError(f"{source}: empty file. Get a whole copy of it.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        hints = [f"it looks like {hint}" for start, hint in _LOOKS_LIKE if content.lstrip().startswith(start)]
        reason = hints[0] if hints else f"{error}. Get a whole copy of it, in UTF-8"
        raise GradlightError(f"{source}: not JSON: {reason}.") from error


class PhotoFolder:
    """Finds photos in a folder; its content is listed at most once, and only if a photo is not where it is expected.

    Args:
        root: The folder.

    Raises:
        GradlightError: The root is not a folder.

    Example:
        >>> Path("val2017").mkdir()
        >>> Path("val2017/a.jpg").touch()
        >>> [path.as_posix() for path in PhotoFolder(".").find("a.jpg")]
        ['val2017/a.jpg']
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not os.path.isdir(self.root):  # Path.is_dir fails on names that are too long
            raise GradlightError(f"{format_path(root)}: not a folder. Give the folder that holds the photos.")

    def find(self, name: str) -> list[Path]:
        """Find a photo: by its path in the folder, then in train2014, val2014, train2017 and val2017, then by its name.

        The search by name covers all sub-folders that are neither hidden nor links, and never leaves the folder.

        Args:
            name: The file name, which may begin with folders.

        Returns:
            The path of the photo; several where the name is ambiguous; none where it is not found.
        """
        path = Path(name)
        inside = [] if path.is_absolute() or ".." in path.parts else [path]
        candidates = (self.root / p for p in [*inside, *(Path(folder, path.name) for folder in _SPLIT_FOLDERS)])
        match = next(filter(os.path.isfile, candidates), None)
        return [match] if match else self._paths_by_name.get(path.name, [])

    @cached_property
    def _paths_by_name(self) -> dict[str, list[Path]]:
        """File name → paths of all files of this name in the folder."""
        paths: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                paths.setdefault(name, []).append(Path(parent, name))
        return paths
