"""The difficult subset of the pointing game: small things among others (Zhang et al., 2016)."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["is_difficult"]

_SMALL = 0.25


def is_difficult(areas: Iterable[int], pixels: int, others: bool) -> bool:
    """Tell whether a photo and a class belong to the difficult subset.

    They do where the class's ground truth covers less than a quarter of the photo and another class is present. areas:
    pixels of each of its objects, added up, overlaps counted twice as the published lists do. pixels: of the photo.
    others: whether another class is present.
    """
    return others and sum(areas) < _SMALL * pixels
