"""Textured backgrounds for the generated scenes: muted, so that the objects' colours are the objects' alone."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image

__all__ = ["background"]

Floats = npt.NDArray[np.float64]


def background(random: np.random.Generator, size: int) -> Floats:
    """Draw a background [size,size,3] in 0…255: two muted colours mixed by a texture, and a little grain."""
    texture = _TEXTURES[int(random.integers(len(_TEXTURES)))](random, size)
    grey = random.uniform(60, 150, 2)
    ends = grey[:, None] + random.uniform(-16, 16, (2, 3))
    mixed = ends[0] + texture[..., None] * (ends[1] - ends[0])
    return np.asarray(mixed + random.normal(0, random.uniform(1, 6), (size, size, 1)))


def _noise(random: np.random.Generator, size: int) -> Floats:
    """Sum smooth noise of finer and finer grain."""
    total = np.zeros((size, size))
    for octave in range(5):
        cells = 2 ** (octave + 1) + 1
        field = Image.fromarray(random.random((cells, cells)).astype(np.float32))
        total += np.asarray(field.resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return _spread(total)


def _stripes(random: np.random.Generator, size: int) -> Floats:
    wave = np.sin(2 * np.pi * _across(random, size) * random.uniform(4, 16) + random.uniform(0, 6.3))
    return np.asarray(0.5 + 0.5 * np.tanh(random.uniform(0.6, 4) * wave))


def _checks(random: np.random.Generator, size: int) -> Floats:
    turn, count = random.uniform(0, np.pi), random.uniform(4, 12)
    y, x = np.mgrid[0:size, 0:size] / size
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return np.asarray((np.floor(u * count) + np.floor(v * count)) % 2, dtype=float)


def _gradient(random: np.random.Generator, size: int) -> Floats:
    return _spread(_across(random, size) + 0.15 * _noise(random, size))


def _speckle(random: np.random.Generator, size: int) -> Floats:
    return _spread(0.5 * _noise(random, size) + random.random((size, size)) ** 3)


def _across(random: np.random.Generator, size: int) -> Floats:
    """Give each pixel's distance along a direction drawn at random, in units of the size."""
    turn = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size
    return np.asarray(x * np.cos(turn) + y * np.sin(turn))


def _spread(field: Floats) -> Floats:
    return np.asarray((field - field.min()) / (np.ptp(field) or 1.0))


_TEXTURES: tuple[Callable[[np.random.Generator, int], Floats], ...] = (_noise, _stripes, _checks, _gradient, _speckle)
