"""The shapes and colours of the generated scenes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["COLOURS", "KINDS"]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

COLOURS = {
    "red": (214, 36, 40),
    "orange": (240, 128, 20),
    "yellow": (238, 216, 40),
    "green": (46, 160, 58),
    "cyan": (44, 200, 212),
    "blue": (36, 76, 214),
    "purple": (142, 48, 186),
    "white": (240, 240, 240),
}
"""Colour → red, green and blue in 0…255, before light and shade."""


def _star(u: Floats, v: Floats) -> Mask:
    """Five points: in polar coordinates one straight edge, mirrored and turned."""
    fifth, outer, inner = np.pi / 5, 1.0, 0.42
    angle = np.abs((np.arctan2(v, u) + fifth) % (2 * fifth) - fifth)
    edge: Floats = outer * inner * np.sin(fifth) / (outer * np.sin(angle) + inner * np.sin(fifth - angle))
    return np.hypot(u, v) <= edge


def _heart(u: Floats, v: Floats) -> Mask:
    x, y = 1.25 * u, 0.1 - 1.25 * v
    beyond_circle = x * x + y * y - 1
    return beyond_circle * beyond_circle * beyond_circle <= x * x * (y * y * y)


def _ring(u: Floats, v: Floats) -> Mask:
    radius = np.hypot(u, v)
    return (radius >= 0.52) & (radius <= 0.94)


def _cross(u: Floats, v: Floats) -> Mask:
    narrow, wide = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return (narrow <= 0.29) & (wide <= 0.92)


KINDS: dict[str, Callable[[Floats, Floats], Mask]] = {
    "circle": lambda u, v: np.hypot(u, v) <= 0.88,
    "square": lambda u, v: np.maximum(np.abs(u), np.abs(v)) <= 0.74,
    "triangle": lambda u, v: (v <= 0.5) & (v >= 1.732 * np.abs(u) - 1.0),
    "star": _star,
    "ring": _ring,
    "cross": _cross,
    "heart": _heart,
    "crescent": lambda u, v: (np.hypot(u, v) <= 0.92) & (np.hypot(u - 0.48, v) >= 0.76),
}
"""Shape → whether points (u, v), in units of the object's radius and turned with it, are inside."""
