"""Masks of COCO objects: run lengths in column order, and polygons filled exactly as COCO's own tools fill them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..errors import GradlightError

__all__ = ["Counts", "Mask", "Polygon", "decode", "fill"]

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
