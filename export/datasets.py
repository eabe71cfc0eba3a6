"""Images with the targets that a data set gives them: the classes of VOC and COCO, or captions.

The classes of a data set are found among the labels of a model by their exact names and known synonyms.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..data.datasets.annotations import AnnotatedDataset
from ..data.datasets.captions import read_captions
from ..data.datasets.coco import read_instances
from ..data.datasets.voc import read_voc
from ..errors import GradlightError
from ..files import format_path
from .lists import ImageList, Item, SourceSpec

__all__ = ["ClassMatch", "find_caption_items", "find_coco_items", "find_voc_items", "items_by_class", "match_classes"]


# ---------------------------------------------------------------------------------------------------------------------
# Data sets


def find_voc_items(spec: SourceSpec) -> ImageList:
    """Read a split of VOC; the targets of a photo are its classes, sorted by name, difficult ones too.

    Args:
        spec: The source.

    Returns:
        The photos with their targets.

    Raises:
        GradlightError: The folder is not a VOC root, the split is unknown, or none of its classes is the model's.
    """
    return _annotated_items(spec, "voc", read_voc(spec.source, spec.split))


def find_coco_items(spec: SourceSpec) -> ImageList:
    """Read COCO instances; the targets of a photo are its classes, in the order of the categories, crowds too.

    Args:
        spec: The source.

    Returns:
        The photos with their targets.

    Raises:
        GradlightError: The annotations are missing or cannot be read, or none of their classes is the model's.
    """
    return _annotated_items(spec, "coco", read_instances(_annotations_of(spec), spec.source))


def find_caption_items(spec: SourceSpec) -> ImageList:
    """Read photos with captions, of one split or of all; the targets of a photo are its captions.

    Args:
        spec: The source.

    Returns:
        The photos with their targets.

    Raises:
        GradlightError: The model is a classifier, the annotations are missing or cannot be read, or no photo is of the
            split.
    """
    if spec.labels is not None and spec.with_targets:
        raise GradlightError(
            f"{format_path(spec.source)}: captions are the targets of a captioner, and this model is a classifier. Give"
            " COCO's instances_*.json, or a --target of your own."
        )
    dataset = read_captions(_annotations_of(spec), spec.source)
    photos = [photo for photo in dataset.photos if spec.split in (None, photo.split)]
    if not photos:
        splits = ", ".join(sorted({photo.split or "none" for photo in dataset.photos}))
        raise GradlightError(
            f"{format_path(_annotations_of(spec))}: no photo is of the split {spec.split!r}; there are: {splits}."
        )
    items = [Item(str(photo.path), photo.captions if spec.with_targets else None) for photo in photos]
    reason = f"not found, or found more than once, in {format_path(spec.source)}"
    failures = [(os.path.join(spec.source, name), f"{format_path(name)}: {reason}") for name in dataset.missing]
    return ImageList("captions", items, failures, _format_left_out(dataset.left_out))


def items_by_class(
    spec: SourceSpec, kind: str, rows: Iterable[tuple[str, list[str]]], class_order: list[str], no_class_reason: str
) -> ImageList:
    """Give each photo those of its classes as targets that the model has.

    Args:
        spec: The source; its labels are the model's.
        kind: The kind of the source.
        rows: Paths with their classes.
        class_order: All classes, in the order of the targets.
        no_class_reason: Why a photo without a class fails.

    Returns:
        The photos with a target; the others are failures.

    Raises:
        GradlightError: The model is a captioner, or has none of the classes.
    """
    if spec.labels is None:
        raise GradlightError(
            f"{format_path(spec.source)}: the targets here are classes ({', '.join(class_order[:3])} …), and a"
            " captioner has none. Give the folder of its photos with --kind folder, captions with"
            " --annotations, or a classifier."
        )
    match = match_classes(class_order, spec.labels)
    if not match.indices:
        raise GradlightError(
            f"{format_path(spec.source)}: none of its classes is among the model's {len(spec.labels)}. {match.note} To"
            " explain its images all the same: --target top."
        )
    items, failures = [], []
    for path, names in rows:
        targets = dict.fromkeys(match.indices[name] for name in names if name in match.indices)
        if targets:
            items.append(Item(path, tuple(targets)))
        else:
            reason = f"the model has none of its classes ({', '.join(names)})" if names else no_class_reason
            failures.append((path, f"{format_path(path)}: {reason}"))
    return ImageList(kind, items, failures, [match.note] if match.note else [])


def _annotated_items(spec: SourceSpec, kind: str, dataset: AnnotatedDataset) -> ImageList:
    notes = _format_left_out(dataset.left_out)
    if not spec.with_targets:
        items = [Item(str(photo.path), None) for photo in dataset.photos]
        return ImageList(kind, items, list(dataset.failures), notes)
    rows = [(str(photo.path), photo.classes(dataset.categories)) for photo in dataset.photos]
    present = {name for _, names in rows for name in names}
    class_order = [name for name in dataset.categories if name in present]
    images = items_by_class(spec, kind, rows, class_order, "no object is marked on it")
    return ImageList(kind, images.items, [*dataset.failures, *images.failures], [*notes, *images.notes])


def _annotations_of(spec: SourceSpec) -> Path:
    if spec.annotations is None:
        raise GradlightError(
            f"{format_path(spec.source)}: photos of COCO need a file of annotations: --annotations FILE."
        )
    return spec.annotations


def _format_left_out(left_out: dict[str, int]) -> list[str]:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
    return [f"Left out of the annotations: {reasons}."] if reasons else []


# ---------------------------------------------------------------------------------------------------------------------
# Classes of a data set among the labels of a model

_MAX_LISTED = 12

# Names of PASCAL VOC (host.robots.ox.ac.uk/pascal/VOC/voc2007) and of COCO (cocodataset.org) for the same classes.
_SYNONYMS = (
    {"aeroplane", "airplane"},
    {"diningtable", "dining table"},
    {"motorbike", "motorcycle"},
    {"pottedplant", "potted plant"},
    {"sofa", "couch"},
    {"tvmonitor", "tv"},
)


@dataclass(frozen=True)
class ClassMatch:
    """The classes of a data set that a model has.

    Args:
        indices: Class → index of the model's label.
        missing: Class that the model does not have → labels that it could be, as text, or "".
    """

    indices: dict[str, int]
    missing: dict[str, str]

    @property
    def note(self) -> str:
        """The classes that the model does not have, as text; "" if it has all."""
        if not self.missing:
            return ""
        names = ", ".join(f"{name!r}{candidates}" for name, candidates in list(self.missing.items())[:_MAX_LISTED])
        more = f" and {len(self.missing) - _MAX_LISTED} more" if len(self.missing) > _MAX_LISTED else ""
        count = len(self.indices) + len(self.missing)
        return f"The model does not have {len(self.missing)} of the {count} classes: {names}{more}."


def match_classes(names: Sequence[str], labels: Sequence[str]) -> ClassMatch:
    """Find the label of each class, in the order of `names`.

    A label is the class's if it is the same; else the same ignoring case and reading "_" as a blank; else if one of its
    parts between commas is, as in ImageNet's "dining table, board". A name of VOC or COCO is also searched under the
    other's name. If several labels fit equally well, the class is missing.

    Args:
        names: Classes of the data set.
        labels: Labels of the model.

    Returns:
        The matched and the missing classes.

    Example:
        >>> match_classes(["diningtable", "dog"], ["cat", "Dining table, board"])
        ClassMatch(indices={'diningtable': 1}, missing={'dog': ''})
    """
    exact, folded, parts = _LabelIndex(), _LabelIndex(), _LabelIndex()
    for index, label in enumerate(labels):
        exact.add(label, index)
        folded.add(_fold(label), index)
        for comma_part in label.split(","):
            parts.add(_fold(comma_part), index)
    indices: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name in names:
        spellings = _spellings(_fold(name))
        stages = [exact.find(name), *(index.find(spelling) for spelling in spellings for index in (folded, parts))]
        candidates = next((stage for stage in stages if stage), [])
        if len(candidates) == 1:
            indices[name] = candidates[0]
        elif candidates:
            missing[name] = f" (could be {' or '.join(f'{i} ({labels[i]})' for i in candidates[:3])})"
        else:
            missing[name] = ""
    return ClassMatch(indices, missing)


class _LabelIndex:
    """Indices of labels by key; several labels may have one key."""

    def __init__(self) -> None:
        self._indices: dict[str, list[int]] = {}

    def add(self, key: str, index: int) -> None:
        indices = self._indices.setdefault(key, [])
        if index not in indices:
            indices.append(index)

    def find(self, key: str) -> list[int]:
        return self._indices.get(key, []) if key else []


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _spellings(folded: str) -> list[str]:
    """Give a class's own name first, then the synonyms."""
    return [folded, *(name for group in _SYNONYMS if folded in group for name in sorted(group - {folded}))]
