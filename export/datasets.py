"""Images that come with targets: the classes or captions that a data set has for each.

The classes of a data set among the labels of a model: by their names, never by a mere resemblance.
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

__all__ = ["Matched", "by_class", "match", "of_captions", "of_coco", "of_voc"]

_LISTED = 12

# PASCAL VOC's names (host.robots.ox.ac.uk/pascal/VOC/voc2007) and COCO's (cocodataset.org) of the same things.
_SAME = (
    {"aeroplane", "airplane"},
    {"diningtable", "dining table"},
    {"motorbike", "motorcycle"},
    {"pottedplant", "potted plant"},
    {"sofa", "couch"},
    {"tvmonitor", "tv"},
)


@dataclass(frozen=True)
class Matched:
    """The index of the label of each class that the model has; each that it has not, with what it could be, or ""."""

    indices: dict[str, int]
    missing: dict[str, str]

    @property
    def note(self) -> str:
        """Say which classes the model does not have; "" if it has all."""
        if not self.missing:
            return ""
        listed = ", ".join(f"{name!r}{why}" for name, why in list(self.missing.items())[:_LISTED])
        more = f" and {len(self.missing) - _LISTED} more" if len(self.missing) > _LISTED else ""
        count = len(self.indices) + len(self.missing)
        return f"The model does not have {len(self.missing)} of the {count} classes: {listed}{more}."


def match(names: Sequence[str], labels: Sequence[str]) -> Matched:
    """Find the label of each class, in the order of `names`.

    A label is the class's if it is the same; else the same without regard to case and to "_" for a blank; else if one
    of its parts between commas is, as in ImageNet's "dining table, board". A name of VOC or COCO also goes by that of
    the other. Where several labels fit equally well the class counts as missing.
    """
    exact, folded, parts = _Index(), _Index(), _Index()
    for index, label in enumerate(labels):
        exact.add(label, index)
        folded.add(_fold(label), index)
        for part in label.split(","):
            parts.add(_fold(part), index)
    indices: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name in names:
        spellings = _spellings(_fold(name))
        stages = [exact.find([name]), *(index.find([key]) for key in spellings for index in (folded, parts))]
        found = next((stage for stage in stages if stage), [])
        if len(found) == 1:
            indices[name] = found[0]
        else:
            missing[name] = f" (could be {' or '.join(f'{i} ({labels[i]})' for i in found[:3])})" if found else ""
    return Matched(indices, missing)


class _Index:
    """Labels by key, each key with all labels that have it."""

    def __init__(self) -> None:
        self._indices: dict[str, list[int]] = {}

    def add(self, key: str, index: int) -> None:
        known = self._indices.setdefault(key, [])
        if index not in known:
            known.append(index)

    def find(self, keys: Sequence[str]) -> list[int]:
        return [index for key in keys if key for index in self._indices.get(key, [])]


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _spellings(folded: str) -> list[str]:
    """Give a class's own name first, then the one that the other data set has for it."""
    return [folded, *(other for same in _SAME if folded in same for other in sorted(same - {folded}))]


def of_voc(asked: SourceSpec) -> ImageList:
    """Read a split of VOC; the targets of a photo are its classes, by the alphabet, whether difficult or not."""
    return _of_objects(asked, "voc", read_voc(asked.source, asked.split))


def of_coco(asked: SourceSpec) -> ImageList:
    """Read COCO instances; the targets of a photo are its classes, in the order of the categories, crowds too."""
    return _of_objects(asked, "coco", read_instances(_file(asked), asked.source))


def _of_objects(asked: SourceSpec, kind: str, read: AnnotatedDataset) -> ImageList:
    notes = _told(read.left_out)
    if not asked.wanted:
        return ImageList(kind, [Item(str(photo.path), None) for photo in read.photos], list(read.failures), notes)
    rows = [(str(photo.path), photo.classes(read.categories)) for photo in read.photos]
    present = {name for _, names in rows for name in names}
    order = [name for name in read.categories if name in present]
    found = by_class(asked, kind, rows, order, "no object is marked on it")
    return ImageList(kind, found.items, [*read.failures, *found.failures], [*notes, *found.notes])


def by_class(
    asked: SourceSpec, kind: str, rows: Iterable[tuple[str, list[str]]], order: list[str], none: str
) -> ImageList:
    """Ask each photo for those of its classes that the model has; none: the reason of a photo without a class."""
    if asked.labels is None:
        raise GradlightError(
            f"{format_path(asked.source)}: the targets here are classes ({', '.join(order[:3])} …), and a captioner has none."
            " Give the folder of its photos with --kind folder, captions with --annotations, or a classifier."
        )
    matched = match(order, asked.labels)
    if not matched.indices:
        raise GradlightError(
            f"{format_path(asked.source)}: none of its classes is among the model's {len(asked.labels)}. {matched.note} To"
            " explain its images all the same: --target top."
        )
    items, failures = [], []
    for path, names in rows:
        targets = dict.fromkeys(matched.indices[name] for name in names if name in matched.indices)
        if targets:
            items.append(Item(path, tuple(targets)))
        else:
            why = f"the model has none of its classes ({', '.join(names)})" if names else none
            failures.append((path, f"{format_path(path)}: {why}"))
    return ImageList(kind, items, failures, [matched.note] if matched.note else [])


def of_captions(asked: SourceSpec) -> ImageList:
    """Read photos with captions, of a split or of all; the targets of a photo are its captions."""
    if asked.labels is not None and asked.wanted:
        raise GradlightError(
            f"{format_path(asked.source)}: captions are the targets of a captioner, and this model is a classifier. Give"
            " COCO's instances_*.json, or a --target of your own."
        )
    read = read_captions(_file(asked), asked.source)
    photos = [photo for photo in read.photos if asked.split in (None, photo.split)]
    if not photos:
        known = ", ".join(sorted({photo.split or "none" for photo in read.photos}))
        raise GradlightError(
            f"{format_path(_file(asked))}: no photo is of the split {asked.split!r}; there are: {known}."
        )
    items = [Item(str(photo.path), photo.captions if asked.wanted else None) for photo in photos]
    why = f"not found, or found more than once, in {format_path(asked.source)}"
    failures = [(os.path.join(asked.source, name), f"{format_path(name)}: {why}") for name in read.missing]
    return ImageList("captions", items, failures, _told(read.left_out))


def _file(asked: SourceSpec) -> Path:
    if asked.annotations is None:
        raise GradlightError(
            f"{format_path(asked.source)}: photos of COCO need a file of annotations: --annotations FILE."
        )
    return asked.annotations


def _told(left_out: dict[str, int]) -> list[str]:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
    return [f"Left out of the annotations: {reasons}."] if reasons else []
