"""Photos to experiment on, with what is known of the objects they show: scenes, VOC, COCO, or a plain folder.

The difficult subset of the pointing game: small things among others (Zhang et al., 2016).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from ..data import images
from ..data.datasets.annotations import AnnotatedDataset, AnnotatedObject, AnnotatedPhoto, Box
from ..data.datasets.coco import read_instances
from ..data.datasets.voc import find_voc, read_voc
from ..data.scenes import generator as scenes
from ..errors import GradlightError
from ..explainers.lazy import MappedSequence
from ..files import format_path
from ..models.base import ImageLike

__all__ = ["Mask", "Sample", "Samples", "Truth", "is_difficult", "open_samples"]

_SMALL = 0.25


def is_difficult(areas: Iterable[int], pixels: int, others: bool) -> bool:
    """Tell whether a photo and a class belong to the difficult subset.

    They do where the class's ground truth covers less than a quarter of the photo and another class is present. areas:
    pixels of each of its objects, added up, overlaps counted twice as the published lists do. pixels: of the photo.
    others: whether another class is present.
    """
    return others and sum(areas) < _SMALL * pixels


Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Truth:
    """A class that a photo shows.

    mask [H,W]: the union of its objects' outlines (COCO, crowds too), of their boxes (VOC) or of their visible pixels
    (scenes). boxes: one for each object. difficult: VOC flags every one of its objects so. subset: the photo and the
    class belong to the difficult subset (`difficult.is_difficult`).
    """

    label: str
    mask: Mask
    boxes: tuple[Box, ...]
    difficult: bool = False
    subset: bool = False


@dataclass(frozen=True, eq=False)
class Sample:
    """A photo as `explain` takes it, under a key of its own; width and height in pixels, and the classes it shows."""

    key: str
    image: ImageLike
    width: int
    height: int
    truths: tuple[Truth, ...] = ()


@dataclass(frozen=True, eq=False)
class Samples(Sequence[Sample]):
    """Samples that are made when they are asked for; labels: all classes of the data set; notes: what is left out."""

    items: Sequence[Sample]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    @overload
    def __getitem__(self, number: int) -> Sample: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Sample]: ...
    def __getitem__(self, number: int | slice) -> Sample | Sequence[Sample]:
        return self.items[number]


def open_samples(
    data: str, count: int | None = None, annotations: Path | None = None, split: str | None = None
) -> Samples:
    """Open the first `count` photos of a data set, all of them unless given.

    data: "scenes" (held-out ones, the classes are shapes and colours), a VOC root with the split to take, a folder of
    COCO's photos with annotations (instances_*.json), or a folder of photos of which nothing is known. Raises
    GradlightError for a count below 1, options that the data set does not take, and where there is no photo.
    """
    if count is not None and count < 1:
        raise GradlightError(f"{count} photos were asked for; give a count of at least 1.")
    if data == "scenes":
        return _scenes(count, _refused(data, annotations=annotations, split=split))
    if annotations is not None:
        _refused(data, split=split)
        return _annotated(read_instances(annotations, data), count, _file_name)
    if find_voc(data):
        return _annotated(read_voc(data, split), count, _stem)
    return _folder(Path(data), count, _refused(data, split=split))


def _refused(data: str, **options: object) -> tuple[str, ...]:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise GradlightError(
            f"{format_path(data)} takes no {' and no '.join(given)}: a split is VOC's, annotations belong to COCO's photos."
        )
    return ()


def _scenes(count: int | None, notes: tuple[str, ...]) -> Samples:
    if count is None or count > len(scenes.HELD_OUT):
        raise GradlightError(f"There are {len(scenes.HELD_OUT)} held-out scenes: say how many of them to take.")
    return Samples(MappedSequence(scenes.HELD_OUT[:count], _scene), tuple(scenes.CLASSES), notes)


def _scene(seed: int) -> Sample:
    scene = scenes.draw(seed)
    height, width = scene.array.shape[:2]
    name = scenes.name(seed)
    return Sample(name, name, width, height, tuple(_shape_or_colour(scene, label) for label in scene.classes))


def _shape_or_colour(scene: scenes.Scene, label: str) -> Truth:
    """Make the truth of a class of a scene; the shape and the colour of one object are not two things to confuse."""
    own = [thing for thing in scene.objects if label in (thing.kind, thing.colour)]
    mask = scene.mask(label)
    subset = is_difficult([int(mask.sum())], mask.size, len(scene.objects) > len(own))
    return Truth(label, mask, tuple(_as_floats(thing.box) for thing in own), subset=subset)


def _as_floats(box: tuple[int, int, int, int]) -> Box:
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


def _stem(photo: AnnotatedPhoto) -> str:
    return photo.path.stem


def _file_name(photo: AnnotatedPhoto) -> str:
    return photo.path.name


def _annotated(read: AnnotatedDataset, count: int | None, key: Callable[[AnnotatedPhoto], str]) -> Samples:
    def make(photo: AnnotatedPhoto) -> Sample:
        truths = tuple(_truth(photo, label) for label in photo.classes(read.categories))
        return Sample(key(photo), str(photo.path), *photo.size, truths)

    notes = [f"{len(read.failures)} photos cannot be used; the first: {read.failures[0][1]}"] if read.failures else []
    notes += [f"Left out of the annotations: {reason}: {number}." for reason, number in read.left_out.items()]
    return Samples(MappedSequence(read.photos[:count], make), read.categories, tuple(notes))


def _truth(photo: AnnotatedPhoto, label: str) -> Truth:
    width, height = photo.size
    own = [thing for thing in photo.objects if thing.name == label]
    masks = [_mask(photo, thing) for thing in own]
    others = len(photo.classes([label])) < len({thing.name for thing in photo.objects})
    return Truth(
        label,
        np.asarray(np.logical_or.reduce(masks)),
        tuple(thing.box for thing in own),
        all(thing.difficult for thing in own),
        is_difficult([int(mask.sum()) for mask in masks], width * height, others),
    )


def _mask(photo: AnnotatedPhoto, thing: AnnotatedObject) -> Mask:
    width, height = photo.size
    try:
        return thing.mask(height, width)
    except GradlightError as error:
        raise GradlightError(f"{format_path(photo.path)}: {error}") from error


def _folder(folder: Path, count: int | None, notes: tuple[str, ...]) -> Samples:
    if not folder.is_dir():
        raise GradlightError(
            f'{format_path(folder)}: there is no such folder. Data are "scenes", a VOC root, a folder of COCO\'s photos with'
            " annotations, or a folder of photos."
        )
    paths = sorted(_photos(folder))
    if not paths:
        raise GradlightError(f"{format_path(folder)}: no photo was found in this folder.")

    def make(path: Path) -> Sample:
        return Sample(path.relative_to(folder).as_posix(), str(path), *images.load(path).size)

    return Samples(MappedSequence(paths[:count], make), notes=notes)


def _photos(folder: Path) -> list[Path]:
    found = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names if name[0] != ".")
    return [path for path in found if path.suffix.lower() in images.IMAGE_SUFFIXES]
