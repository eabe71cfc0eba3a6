"""Generated scenes with exact ground truth: a textured background and one to four coloured shapes, drawn from a seed.

A scene holds the visible pixels of each object, its multi-label classes (shapes and colours) and true captions, so a
saliency map can be compared with the pixels that it should highlight. The backgrounds have muted colours: only objects
show the colours that are classes. The same seed and size give the same pixels on every machine.
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
    "draw",
    "name",
    "relation",
    "seed_of",
]

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

_UNIT = 160  # the smallest side of a scene in pixels
_RADII = {"small": (13.0, 18.0), "medium": (20.0, 27.0), "large": (30.0, 40.0)}  # in pixels of a scene of _UNIT
_SUBPIXELS = 3  # samples along each side of a pixel
_MIN_VISIBLE = 0.65  # the share of each object's pixels that later objects must leave visible
_MAX_TRIES = 40


# --- Seeds and names

TRAINING = range(10_000_000)
"""Seeds of the training set."""
HELD_OUT = range(10_000_000, 20_000_000)
"""Seeds of the validation and test sets, which no training uses."""
SAMPLES = (20_000_066, 20_000_050, 20_000_005, 20_000_007, 20_000_004, 20_000_031)
"""Seeds of the six scenes that are bundled with the package."""
SEEDS = range(30_000_000)
"""Seeds of the scenes that have a name: TRAINING, HELD_OUT, and as many again, from which SAMPLES are chosen."""

_PREFIX = "scenes:"


def name(seed: int) -> str:
    """Give the name under which a scene can be used in place of an image's path.

    Args:
        seed: One of SEEDS.

    Returns:
        The name, "scenes:SEED".

    Raises:
        GradlightError: The seed is not one of SEEDS.

    Example:
        >>> name(123)
        'scenes:123'
    """
    if seed not in SEEDS:
        raise GradlightError(
            f"{_PREFIX}{seed}: there is no scene of this name: its seed must be {_format_range(SEEDS)}."
        )
    return f"{_PREFIX}{seed}"


def seed_of(name: str) -> int | None:
    """Read the seed from the name of a scene.

    Args:
        name: Any name or path of an image.

    Returns:
        The seed, or None for a name that does not begin with "scenes:".

    Raises:
        GradlightError: The name begins with "scenes:", but no seed of SEEDS follows.

    Example:
        >>> seed_of("scenes:123"), seed_of("cat.jpg")
        (123, None)
    """
    if not name.startswith(_PREFIX):
        return None
    digits = name.removeprefix(_PREFIX)
    seed = int(digits) if re.fullmatch("[0-9]{1,20}", digits) else -1
    if seed not in SEEDS:
        raise GradlightError(
            f"{name!r} names no scene: {_PREFIX}SEED is expected, with a seed {_format_range(SEEDS)}"
            f" ({_format_range(TRAINING)} to train on, {_format_range(HELD_OUT)} held out). A file of that name can be"
            " given by its absolute path."
        )
    return seed


def _format_range(seeds: range) -> str:
    """Format a range of seeds for a message."""
    return f"from {seeds[0]} to {seeds[-1]}"


# --- Shapes and colours

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
"""Colour → (red, green, blue) in 0 to 255, before shading."""


def _star(u: Floats, v: Floats) -> Mask:
    """Mark a star of five points: in polar coordinates one straight edge, mirrored and rotated."""
    fifth, outer, inner = np.pi / 5, 1.0, 0.42
    angle = np.abs((np.arctan2(v, u) + fifth) % (2 * fifth) - fifth)
    edge: Floats = outer * inner * np.sin(fifth) / (outer * np.sin(angle) + inner * np.sin(fifth - angle))
    return np.hypot(u, v) <= edge


def _heart(u: Floats, v: Floats) -> Mask:
    """Mark a heart: the sextic curve (x² + y² − 1)³ = x²y³."""
    x, y = 1.25 * u, 0.1 - 1.25 * v
    beyond_circle = x * x + y * y - 1
    return beyond_circle * beyond_circle * beyond_circle <= x * x * (y * y * y)


def _ring(u: Floats, v: Floats) -> Mask:
    """Mark a ring."""
    radius = np.hypot(u, v)
    return (radius >= 0.52) & (radius <= 0.94)


def _cross(u: Floats, v: Floats) -> Mask:
    """Mark an upright cross."""
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
"""Shape → function that marks the points inside it; (u, v) are in units of the object's radius, and rotate with it."""

CLASSES = [*KINDS, *COLOURS]
"""The multi-label classes of a scene: the shapes, then the colours."""


# --- Scenes


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One shape in a scene.

    Attributes:
        kind: The shape, a key of KINDS.
        colour: The colour, a key of COLOURS.
        scale: "small", "medium" or "large".
        centre: (x, y) in pixels.
        radius: In pixels.
        turn: The rotation in radians.
        mask: [H,W], the visible pixels.

    Example:
        >>> thing = draw(0).objects[0]
        >>> thing.name, thing.box
        ('a small white heart', (29, 94, 54, 119))
    """

    kind: str
    colour: str
    scale: str
    centre: tuple[float, float]
    radius: float
    turn: float
    mask: Mask

    @property
    def name(self) -> str:
        """The object in words, as in captions: "a small red star"; the size "medium" is omitted."""
        words = [*([self.scale] if self.scale != "medium" else []), self.colour, self.kind]
        return f"{'an' if words[0] == 'orange' else 'a'} {' '.join(words)}"

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The bounds of the visible pixels: left, top, right, bottom, the last two exclusive."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


@dataclass(frozen=True, eq=False)
class Scene:
    """A generated image with its ground truth.

    Attributes:
        seed: The seed that it was drawn from.
        image: The RGB image.
        objects: The objects, from the back to the front.

    Example:
        >>> scene = draw(0)
        >>> scene.classes
        ['circle', 'heart', 'purple', 'white']
        >>> scene.mask("purple").shape
        (160, 160)
    """

    seed: int
    image: Image.Image
    objects: tuple[SceneObject, ...]

    @property
    def array(self) -> npt.NDArray[np.uint8]:
        """The image as uint8 [H,W,3]."""
        return np.asarray(self.image)

    @property
    def classes(self) -> list[str]:
        """The classes present, in the order of CLASSES."""
        present = {name for thing in self.objects for name in (thing.kind, thing.colour)}
        return [name for name in CLASSES if name in present]

    @property
    def labels(self) -> npt.NDArray[np.float32]:
        """The classes as a multi-hot vector, float32 [len(CLASSES)]."""
        return np.isin(CLASSES, self.classes).astype(np.float32)

    def mask(self, name: str) -> Mask:
        """Mark the visible pixels of all objects of a class.

        Args:
            name: A shape or a colour.

        Returns:
            A mask [H,W], all False where the class is absent.

        Raises:
            GradlightError: The class is unknown.
        """
        if name not in CLASSES:
            raise GradlightError(f"Scenes have no class {name!r}.{nearest(name, CLASSES)} Known: {', '.join(CLASSES)}.")
        masks = [thing.mask for thing in self.objects if name in (thing.kind, thing.colour)]
        return np.logical_or.reduce(masks) if masks else np.zeros(self.objects[0].mask.shape, bool)

    @property
    def captions(self) -> list[str]:
        """True captions: the first describes the only object, or the relation of the two largest ones."""
        named = [thing.name for thing in self.objects]
        listed = " and ".join(named)
        if len(named) == 1:
            return [listed, f"there is {listed}", f"a picture of {listed}", f"{listed} alone"]
        first, second = sorted(self.objects, key=lambda thing: -int(thing.mask.sum()))[:2]
        related = [f"{a.name} {relation(a, b)} {b.name}" for a, b in ((first, second), (second, first))]
        counted = f"there are {('two', 'three', 'four')[len(named) - 2]} objects"
        return [*related, listed, f"there is {related[0]}", f"a picture of {listed}", counted]


def relation(a: SceneObject, b: SceneObject) -> str:
    """Describe where the centre of object a lies relative to that of object b.

    Returns:
        "above", "below", "left of" or "right of", along the axis on which the centres are farther apart.

    Example:
        >>> relation(*draw(0).objects)
        'left of'
    """
    across, down = b.centre[0] - a.centre[0], b.centre[1] - a.centre[1]
    if abs(down) >= abs(across):
        return "above" if down > 0 else "below"
    return "left of" if across > 0 else "right of"


# --- Drawing


def draw(seed: int, size: int = _UNIT) -> Scene:
    """Draw a scene; the same seed and size always give the same pixels.

    Args:
        seed: A whole number from 0; SEEDS has the ones that are used by name.
        size: The height and width in pixels, at least 160.

    Returns:
        The image with its ground truth.

    Raises:
        GradlightError: The seed is negative or the size too small.

    Example:
        >>> scene = draw(0)
        >>> scene.image.size, scene.captions[0]
        ((160, 160), 'a small purple circle right of a small white heart')
    """
    if seed < 0 or size < _UNIT:
        raise GradlightError(f"A scene takes a seed from 0 and a size from {_UNIT}; got seed {seed} and size {size}.")
    random = np.random.default_rng([seed, size])
    canvas = _background(random, size)
    light = random.uniform(0, 2 * np.pi)
    count = int(random.integers(1, 5))
    objects: list[SceneObject] = []
    areas: list[int] = []
    for _ in range(_MAX_TRIES):
        thing, coverage = _random_object(random, size)
        visible = [behind.mask & ~thing.mask for behind in objects]
        if any(mask.sum() < _MIN_VISIBLE * area for mask, area in zip(visible, areas, strict=True)):
            continue
        if (thing.kind, thing.colour) in {(behind.kind, behind.colour) for behind in objects}:
            continue
        objects = [*(replace(behind, mask=mask) for behind, mask in zip(objects, visible, strict=True)), thing]
        areas.append(int(thing.mask.sum()))
        _paint(random, canvas, thing, coverage, light)
        if len(objects) == count:
            break
    return Scene(seed, Image.fromarray(np.rint(canvas.clip(0, 255)).astype(np.uint8)), tuple(objects))


@dataclass(frozen=True)
class _Coverage:
    """The share of each pixel that a shape covers, within the pixels of its bounding box."""

    rows: slice
    columns: slice
    share: Floats


def _random_object(random: np.random.Generator, size: int) -> tuple[SceneObject, _Coverage]:
    """Draw the properties of an object at random; nearly all of it lies inside the image."""
    kind, colour = str(random.choice(list(KINDS))), str(random.choice(list(COLOURS)))
    scale = str(random.choice(list(_RADII)))
    radius = float(random.uniform(*_RADII[scale])) * size / _UNIT
    x, y = (float(c) for c in random.uniform(0.9 * radius, size - 0.9 * radius, 2))
    turn = float(random.uniform(0, 2 * np.pi))
    coverage = _cover(kind, (x, y), radius, turn, size)
    mask = np.zeros((size, size), bool)
    mask[coverage.rows, coverage.columns] = coverage.share > 0.5
    return SceneObject(kind, colour, scale, (x, y), radius, turn, mask), coverage


def _cover(kind: str, centre: tuple[float, float], radius: float, turn: float, size: int) -> _Coverage:
    """Compute the share of each pixel inside a shape, from 3 × 3 samples per pixel."""
    samples = (np.arange(size * _SUBPIXELS) + 0.5) / _SUBPIXELS
    near = [np.flatnonzero(np.abs(samples - c) <= 1.1 * radius) // _SUBPIXELS for c in centre]
    (left, right), (top, bottom) = [(int(n[0]), int(n[-1]) + 1) for n in near]
    xs = (samples[left * _SUBPIXELS : right * _SUBPIXELS] - centre[0]) / radius
    ys = (samples[top * _SUBPIXELS : bottom * _SUBPIXELS, None] - centre[1]) / radius
    u, v = xs * np.cos(turn) + ys * np.sin(turn), ys * np.cos(turn) - xs * np.sin(turn)
    inside = KINDS[kind](u, v).reshape(bottom - top, _SUBPIXELS, right - left, _SUBPIXELS)
    return _Coverage(slice(top, bottom), slice(left, right), inside.sum((1, 3), dtype=np.uint8) / _SUBPIXELS**2)


def _paint(random: np.random.Generator, canvas: Floats, thing: SceneObject, coverage: _Coverage, light: float) -> None:
    """Paint an object onto the canvas, brighter towards the light and with a little noise."""
    colour = np.array(COLOURS[thing.colour], float) * random.uniform(0.88, 1.06) + random.uniform(-8, 8, 3)
    pixel = np.arange(len(canvas)) + 0.5
    across = (pixel[coverage.columns] - thing.centre[0]) / thing.radius
    down = (pixel[coverage.rows, None] - thing.centre[1]) / thing.radius
    slope = random.uniform(0.05, 0.2) * (across * np.cos(light) + down * np.sin(light))
    grain = random.normal(0, 0.015, canvas.shape[:2])[coverage.rows, coverage.columns]
    shade = 1 + slope.clip(-0.2, 0.2) + grain
    region = canvas[coverage.rows, coverage.columns]  # a view, so the canvas changes with it
    region += coverage.share[..., None] * (shade[..., None] * colour - region)


# --- Backgrounds


def _background(random: np.random.Generator, size: int) -> Floats:
    """Draw a background [size,size,3] in about 0 to 255: two muted colours mixed by a texture, and a little noise."""
    texture = _TEXTURES[int(random.integers(len(_TEXTURES)))](random, size)
    grey = random.uniform(60, 150, 2)
    ends = grey[:, None] + random.uniform(-16, 16, (2, 3))
    mixed = ends[0] + texture[..., None] * (ends[1] - ends[0])
    return np.asarray(mixed + random.normal(0, random.uniform(1, 6), (size, size, 1)))


def _noise(random: np.random.Generator, size: int) -> Floats:
    """Sum smooth noise at five scales."""
    total = np.zeros((size, size))
    for octave in range(5):
        cells = 2 ** (octave + 1) + 1
        field = Image.fromarray(random.random((cells, cells)).astype(np.float32))
        total += np.asarray(field.resize((size, size), Image.Resampling.BICUBIC)) / 2**octave
    return _to_unit_range(total)


def _stripes(random: np.random.Generator, size: int) -> Floats:
    """Draw parallel stripes with soft or sharp edges."""
    wave = np.sin(2 * np.pi * _project(random, size) * random.uniform(4, 16) + random.uniform(0, 6.3))
    return np.asarray(0.5 + 0.5 * np.tanh(random.uniform(0.6, 4) * wave))


def _checks(random: np.random.Generator, size: int) -> Floats:
    """Draw a rotated checkerboard."""
    turn, count = random.uniform(0, np.pi), random.uniform(4, 12)
    y, x = np.mgrid[0:size, 0:size] / size
    u, v = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    return np.asarray((np.floor(u * count) + np.floor(v * count)) % 2, dtype=float)


def _gradient(random: np.random.Generator, size: int) -> Floats:
    """Draw a gradient along a random direction, with a little noise."""
    return _to_unit_range(_project(random, size) + 0.15 * _noise(random, size))


def _speckle(random: np.random.Generator, size: int) -> Floats:
    """Draw smooth noise with bright speckles."""
    return _to_unit_range(0.5 * _noise(random, size) + random.random((size, size)) ** 3)


def _project(random: np.random.Generator, size: int) -> Floats:
    """Give each pixel's coordinate along a random direction, in units of the size."""
    turn = random.uniform(0, 2 * np.pi)
    y, x = np.mgrid[0:size, 0:size] / size
    return np.asarray(x * np.cos(turn) + y * np.sin(turn))


def _to_unit_range(field: Floats) -> Floats:
    """Shift and scale values to 0 to 1."""
    return np.asarray((field - field.min()) / (np.ptp(field) or 1.0))


_TEXTURES: tuple[Callable[[np.random.Generator, int], Floats], ...] = (_noise, _stripes, _checks, _gradient, _speckle)
