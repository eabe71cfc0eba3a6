"""Photos for experiments, with the objects that they show: scenes, VOC, COCO, or a folder of photos.

Every pair of a photo and a class knows whether it is in the difficult subset of the pointing game (Zhang et al., 2016).
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

Mask = npt.NDArray[np.bool_]

_SMALL_AREA = 0.25  # fraction of the photo


@dataclass(frozen=True, eq=False)
class Truth:
    """A class that a photo shows.

    Args:
        label: The class.
        mask: [H,W], the union of its objects' outlines (COCO, crowds too), boxes (VOC) or visible pixels (scenes).
        boxes: One for each object.
        difficult: Whether VOC marks every one of its objects as difficult.
        subset: Whether the photo and the class are in the difficult subset (`is_difficult`).
    """

    label: str
    mask: Mask
    boxes: tuple[Box, ...]
    difficult: bool = False
    subset: bool = False


@dataclass(frozen=True, eq=False)
class Sample:
    """A photo and the classes that it shows.

    Args:
        key: A unique name in the data set.
        image: The photo, as `explain` takes it.
        width: In pixels.
        height: In pixels.
        truths: The classes.
    """

    key: str
    image: ImageLike
    width: int
    height: int
    truths: tuple[Truth, ...] = ()


@dataclass(frozen=True, eq=False)
class Samples(Sequence[Sample]):
    """The samples of a data set, each created when it is accessed.

    Args:
        items: The samples.
        labels: All classes of the data set.
        notes: What is left out.
    """

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
    """Open the first `count` photos of a data set.

    Args:
        data: "scenes" (the validation set; the classes are shapes and colours), a VOC root, a folder of COCO's photos,
            or a folder of photos whose objects are unknown.
        count: The number of photos; None for all of them.
        annotations: COCO's instances_*.json.
        split: The split of VOC.

    Returns:
        The samples.

    Raises:
        GradlightError: The count is below 1, the data set does not take an option, or there is no photo.

    Example:
        >>> samples = open_samples("scenes", 2)
        >>> len(samples), samples[0].width, samples[0].height
        (2, 160, 160)
    """
    if count is not None and count < 1:
        raise GradlightError(f"{count} photos were asked for; give a count of at least 1.")
    if data == "scenes":
        _check_unused(data, annotations=annotations, split=split)
        return _open_scenes(count)
    if annotations is not None:
        _check_unused(data, split=split)
        return _open_annotated(read_instances(annotations, data), count, lambda photo: photo.path.name)
    if find_voc(data):
        return _open_annotated(read_voc(data, split), count, lambda photo: photo.path.stem)
    _check_unused(data, split=split)
    return _open_folder(Path(data), count)


def is_difficult(areas: Iterable[int], pixels: int, others: bool) -> bool:
    """Tell whether a photo and a class are in the difficult subset.

    They are if the class covers less than a quarter of the photo and another class is present.

    Args:
        areas: Pixels of each object of the class; overlaps count twice, as in the published lists.
        pixels: Pixels of the photo.
        others: Whether another class is present.

    Returns:
        Whether they are in the subset.

    Example:
        >>> is_difficult([10, 10], 100, others=True), is_difficult([10, 20], 100, others=True)
        (True, False)
    """
    return others and sum(areas) < _SMALL_AREA * pixels


def _check_unused(data: str, **options: object) -> None:
    names = [name for name, value in options.items() if value is not None]
    if names:
        raise GradlightError(
            f"{format_path(data)} takes no {' and no '.join(names)}: a split belongs to VOC, annotations to"
            " COCO's photos."
        )


# ---------------------------------------------------------------------------------------------------------------------
# Scenes


def _open_scenes(count: int | None) -> Samples:
    if count is None or count > len(scenes.HELD_OUT):
        raise GradlightError(f"There are {len(scenes.HELD_OUT)} validation scenes: say how many of them to take.")
    return Samples(MappedSequence(scenes.HELD_OUT[:count], _scene_sample), tuple(scenes.CLASSES))


def _scene_sample(seed: int) -> Sample:
    scene = scenes.draw(seed)
    height, width = scene.array.shape[:2]
    name = scenes.name(seed)
    return Sample(name, name, width, height, tuple(_scene_truth(scene, label) for label in scene.classes))


def _scene_truth(scene: scenes.Scene, label: str) -> Truth:
    """Make the truth of a class of a scene; the shape and the colour of one object do not count as two classes."""
    objects = [scene_object for scene_object in scene.objects if label in (scene_object.kind, scene_object.colour)]
    mask = scene.mask(label)
    subset = is_difficult([int(mask.sum())], mask.size, len(scene.objects) > len(objects))
    return Truth(label, mask, tuple(_float_box(scene_object.box) for scene_object in objects), subset=subset)


def _float_box(box: tuple[int, int, int, int]) -> Box:
    left, top, right, bottom = map(float, box)
    return left, top, right, bottom


# ---------------------------------------------------------------------------------------------------------------------
# VOC and COCO


def _open_annotated(dataset: AnnotatedDataset, count: int | None, key: Callable[[AnnotatedPhoto], str]) -> Samples:
    def make(photo: AnnotatedPhoto) -> Sample:
        truths = tuple(_annotated_truth(photo, label) for label in photo.classes(dataset.categories))
        return Sample(key(photo), str(photo.path), *photo.size, truths)

    notes = [f"Left out of the annotations: {reason}: {number}." for reason, number in dataset.left_out.items()]
    if dataset.failures:
        notes.insert(0, f"{len(dataset.failures)} photos cannot be used; the first: {dataset.failures[0][1]}")
    return Samples(MappedSequence(dataset.photos[:count], make), dataset.categories, tuple(notes))


def _annotated_truth(photo: AnnotatedPhoto, label: str) -> Truth:
    width, height = photo.size
    objects = [annotated for annotated in photo.objects if annotated.name == label]
    masks = [_object_mask(photo, annotated) for annotated in objects]
    others = len(photo.classes([label])) < len({annotated.name for annotated in photo.objects})
    return Truth(
        label,
        np.asarray(np.logical_or.reduce(masks)),
        tuple(annotated.box for annotated in objects),
        all(annotated.difficult for annotated in objects),
        is_difficult([int(mask.sum()) for mask in masks], width * height, others),
    )


def _object_mask(photo: AnnotatedPhoto, annotated: AnnotatedObject) -> Mask:
    width, height = photo.size
    try:
        return annotated.mask(height, width)
    except GradlightError as error:
        raise GradlightError(f"{format_path(photo.path)}: {error}") from error


# ---------------------------------------------------------------------------------------------------------------------
# Folders of photos


def _open_folder(folder: Path, count: int | None) -> Samples:
    if not folder.is_dir():
        raise GradlightError(
            f'{format_path(folder)}: there is no such folder. Data are "scenes", a VOC root, a folder of COCO\'s photos'
            " with annotations, or a folder of photos."
        )
    paths = sorted(_photo_paths(folder))
    if not paths:
        raise GradlightError(f"{format_path(folder)}: no photo was found in this folder.")

    def make(path: Path) -> Sample:
        return Sample(path.relative_to(folder).as_posix(), str(path), *images.load(path).size)

    return Samples(MappedSequence(paths[:count], make))


def _photo_paths(folder: Path) -> list[Path]:
    paths = (Path(parent, name) for parent, _, names in os.walk(folder) for name in names if name[0] != ".")
    return [path for path in paths if path.suffix.lower() in images.IMAGE_SUFFIXES]
