"""Generated scenes with exact truth: textured backgrounds with one to four coloured shapes, drawn from a seed.

A scene knows the visible pixels of each object, its multi-label classes (shapes and colours) and true captions, so a
map can be held against what it should show.

The shapes and colours of the generated scenes.

Textured backgrounds for the generated scenes: muted, so that the objects' colours are the objects' alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from ...errors import GradlightError, nearest

__all__ = [
    "CLASSES",
    "COLOURS",
    "HELD_OUT",
    "KINDS",
    "SAMPLES",
    "SEEDS",
    "TRAINING",
    "Scene",
    "SceneObject",
    "background",
    "draw",
    "name",
    "relation",
    "seed_of",
]

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


TRAINING = range(10_000_000)
"""Seeds to train on."""
HELD_OUT = range(10_000_000, 20_000_000)
"""Seeds that no training sees."""
SAMPLES = (20_000_066, 20_000_050, 20_000_005, 20_000_007, 20_000_004, 20_000_031)
"""Seeds of the six scenes that come with the package."""
SEEDS = range(30_000_000)
"""Seeds of the scenes that have a name: to train on, held out, and as many again from which samples are chosen."""

CLASSES = [*KINDS, *COLOURS]
"""The labels of a scene: its shapes, then its colours."""

_NAMED = "scenes:"
_UNIT = 160
_RADII = {"small": (13.0, 18.0), "medium": (20.0, 27.0), "large": (30.0, 40.0)}  # pixels of a scene of _UNIT
_FINE = 3  # samples along each side of a pixel
_VISIBLE = 0.65
_TRIES = 40


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One shape: mask [H,W] of its visible pixels, centre (x, y) and radius in pixels, turn in radians."""

    kind: str
    colour: str
    scale: str
    centre: tuple[float, float]
    radius: float
    turn: float
    mask: Mask

    @property
    def name(self) -> str:
        """Name it as captions do: "a small red star"; what is neither small nor large goes without a size."""
        words = [*([self.scale] if self.scale != "medium" else []), self.colour, self.kind]
        return f"{'an' if words[0] == 'orange' else 'a'} {' '.join(words)}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Bounds of the visible pixels: left, top, right, bottom, the last two exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class Scene:
    """A picture with its truth; objects from the one behind to the one in front."""

    seed: int
    image: Image.Image
    objects: tuple[SceneObject, ...]

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The picture as bytes [H,W,3]."""
        return np.asarray(self.image)

    @property
    def classes(self) -> list[str]:
        """The classes present, in the order of CLASSES."""
        present = {name for thing in self.objects for name in (thing.kind, thing.colour)}
        return [name for name in CLASSES if name in present]

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """The classes present as ones among zeros, in the order of CLASSES."""
        return np.isin(CLASSES, self.classes).astype(np.float32)

    def mask(self, name: str) -> Mask:
        """Mark the visible pixels of the objects of a shape or colour. Raises GradlightError for an unknown class."""
        if name not in CLASSES:
            raise GradlightError(f"Scenes have no class {name!r}.{nearest(name, CLASSES)} Known: {', '.join(CLASSES)}.")
        found = [thing.mask for thing in self.objects if name in (thing.kind, thing.colour)]
        return np.logical_or.reduce(found) if found else np.zeros(self.objects[0].mask.shape, bool)

    @property
    def captions(self) -> list[str]:
        """Several true captions: the first of one object or of how the two largest lie, the others plainer."""
        named = [thing.name for thing in self.objects]
        listed = " and ".join(named)
        if len(named) == 1:
            return [listed, f"there is {listed}", f"a picture of {listed}", f"{listed} alone"]
        first, second = sorted(self.objects, key=lambda thing: -int(thing.mask.sum()))[:2]
        related = [f"{a.name} {relation(a, b)} {b.name}" for a, b in ((first, second), (second, first))]
        counted = f"there are {('two', 'three', 'four')[len(named) - 2]} objects"
        return [*related, listed, f"there is {related[0]}", f"a picture of {listed}", counted]


def relation(a: SceneObject, b: SceneObject) -> str:
    """Say how the centre of a lies to that of b, by the larger of the two distances: "above", "left of" …"""
    across, down = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
    if abs(down) >= abs(across):
        return "above" if down > 0 else "below"
    return "left of" if across > 0 else "right of"


def name(seed: int) -> str:
    """Name the scene of a seed as images are named: "scenes:123". Raises GradlightError for a seed not in SEEDS."""
    if seed not in SEEDS:
        raise GradlightError(f"{_NAMED}{seed}: there is no scene of this name: its seed must be {_told(SEEDS)}.")
    return f"{_NAMED}{seed}"


def seed_of(name: str) -> int | None:
    """Give the seed of a scene's name, or None for anything that does not begin like one.

    Raises GradlightError for a name that begins like a scene's and is none, or whose seed is not in SEEDS.
    """
    if not name.startswith(_NAMED):
        return None
    written = name.removeprefix(_NAMED)
    seed = int(written) if re.fullmatch("[0-9]{1,20}", written) else -1
    if seed not in SEEDS:
        raise GradlightError(
            f"{name!r} names no scene: {_NAMED}SEED is expected, with a seed {_told(SEEDS)} ({_told(TRAINING)} to train"
            f" on, {_told(HELD_OUT)} held out). A file that is so called can be given by its absolute path."
        )
    return seed


def _told(seeds: range) -> str:
    return f"from {seeds[0]} to {seeds[-1]}"


@dataclass(frozen=True)
class _Cover:
    """The share of each pixel that a shape covers, in the box of pixels around it."""

    rows: slice
    columns: slice
    share: Floats


def draw(seed: int, size: int = _UNIT) -> Scene:
    """Draw the scene of a seed, size × size pixels (160 or more); the same seed gives the same bits.

    Raises GradlightError for a smaller size or a negative seed.
    """
    if seed < 0 or size < _UNIT:
        raise GradlightError(f"A scene takes a seed from 0 and a size from {_UNIT}; got seed {seed} and size {size}.")
    random = np.random.default_rng([seed, size])
    canvas = background(random, size)
    light = random.uniform(0, 2 * np.pi)
    count = int(random.integers(1, 5))
    objects: list[SceneObject] = []
    areas: list[int] = []
    for _ in range(_TRIES):
        thing, cover = _random_object(random, size)
        left = [other.mask & ~thing.mask for other in objects]
        if any(mask.sum() < _VISIBLE * area for mask, area in zip(left, areas, strict=True)):
            continue
        if (thing.kind, thing.colour) in {(other.kind, other.colour) for other in objects}:
            continue
        objects = [*(replace(other, mask=mask) for other, mask in zip(objects, left, strict=True)), thing]
        areas.append(int(thing.mask.sum()))
        _paint(random, canvas, thing, cover, light)
        if len(objects) == count:
            break
    return Scene(seed, Image.fromarray(np.rint(canvas.clip(0, 255)).astype(np.uint8)), tuple(objects))


def _random_object(random: np.random.Generator, size: int) -> tuple[SceneObject, _Cover]:
    """Choose an object and its place, wholly or almost wholly inside the picture."""
    kind, colour = str(random.choice(list(KINDS))), str(random.choice(list(COLOURS)))
    scale = str(random.choice(list(_RADII)))
    radius = float(random.uniform(*_RADII[scale])) * size / _UNIT
    x, y = (float(c) for c in random.uniform(0.9 * radius, size - 0.9 * radius, 2))
    turn = float(random.uniform(0, 2 * np.pi))
    cover = _cover(kind, (x, y), radius, turn, size)
    mask = np.zeros((size, size), bool)
    mask[cover.rows, cover.columns] = cover.share > 0.5
    return SceneObject(kind, colour, scale, (x, y), radius, turn, mask), cover


def _cover(kind: str, centre: tuple[float, float], radius: float, turn: float, size: int) -> _Cover:
    fine = (np.arange(size * _FINE) + 0.5) / _FINE
    near = [np.flatnonzero(np.abs(fine - c) <= 1.1 * radius) // _FINE for c in centre]
    (left, right), (top, bottom) = [(int(n[0]), int(n[-1]) + 1) for n in near]
    xs = (fine[left * _FINE : right * _FINE] - centre[0]) / radius
    ys = (fine[top * _FINE : bottom * _FINE, None] - centre[1]) / radius
    u, v = xs * np.cos(turn) + ys * np.sin(turn), ys * np.cos(turn) - xs * np.sin(turn)
    inside = KINDS[kind](u, v).reshape(bottom - top, _FINE, right - left, _FINE)
    return _Cover(slice(top, bottom), slice(left, right), inside.sum((1, 3), dtype=np.uint8) / _FINE**2)


def _paint(random: np.random.Generator, canvas: Floats, thing: SceneObject, cover: _Cover, light: float) -> None:
    """Lay an object over the canvas, lighter towards the light and a little uneven."""
    colour = np.array(COLOURS[thing.colour], float) * random.uniform(0.88, 1.06) + random.uniform(-8, 8, 3)
    pixel = np.arange(len(canvas)) + 0.5
    across = (pixel[cover.columns] - thing.centre[0]) / thing.radius
    down = (pixel[cover.rows, None] - thing.centre[1]) / thing.radius
    slope = random.uniform(0.05, 0.2) * (across * np.cos(light) + down * np.sin(light))
    grain = random.normal(0, 0.015, canvas.shape[:2])[cover.rows, cover.columns]
    shade = 1 + slope.clip(-0.2, 0.2) + grain
    part = canvas[cover.rows, cover.columns]
    part += cover.share[..., None] * (shade[..., None] * colour - part)
