"""Images that come with targets: the classes or captions that a data set has for each."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from ..data.datasets.annotations import Annotated
from ..data.datasets.captions import read_captions
from ..data.datasets.coco import read_instances
from ..data.datasets.voc import read_voc
from ..errors import GradlightError
from ..files import shown
from .classes import match
from .items import Asked, Item, Source

__all__ = ["by_class", "of_captions", "of_coco", "of_voc"]


def of_voc(asked: Asked) -> Source:
    """Read a split of VOC; the targets of a photo are its classes, by the alphabet, whether difficult or not."""
    return _of_objects(asked, "voc", read_voc(asked.source, asked.split))


def of_coco(asked: Asked) -> Source:
    """Read COCO instances; the targets of a photo are its classes, in the order of the categories, crowds too."""
    return _of_objects(asked, "coco", read_instances(_file(asked), asked.source))


def _of_objects(asked: Asked, kind: str, read: Annotated) -> Source:
    notes = _told(read.left_out)
    if not asked.wanted:
        return Source(kind, [Item(str(photo.path), None) for photo in read.photos], list(read.failures), notes)
    rows = [(str(photo.path), photo.classes(read.categories)) for photo in read.photos]
    present = {name for _, names in rows for name in names}
    order = [name for name in read.categories if name in present]
    found = by_class(asked, kind, rows, order, "no object is marked on it")
    return Source(kind, found.items, [*read.failures, *found.failures], [*notes, *found.notes])


def by_class(asked: Asked, kind: str, rows: Iterable[tuple[str, list[str]]], order: list[str], none: str) -> Source:
    """Ask each photo for those of its classes that the model has; none: the reason of a photo without a class."""
    if asked.labels is None:
        raise GradlightError(
            f"{shown(asked.source)}: the targets here are classes ({', '.join(order[:3])} …), and a captioner has none."
            " Give the folder of its photos with --kind folder, captions with --annotations, or a classifier."
        )
    matched = match(order, asked.labels)
    if not matched.indices:
        raise GradlightError(
            f"{shown(asked.source)}: none of its classes is among the model's {len(asked.labels)}. {matched.note} To"
            " explain its images all the same: --target top."
        )
    items, failures = [], []
    for path, names in rows:
        targets = dict.fromkeys(matched.indices[name] for name in names if name in matched.indices)
        if targets:
            items.append(Item(path, tuple(targets)))
        else:
            why = f"the model has none of its classes ({', '.join(names)})" if names else none
            failures.append((path, f"{shown(path)}: {why}"))
    return Source(kind, items, failures, [matched.note] if matched.note else [])


def of_captions(asked: Asked) -> Source:
    """Read photos with captions, of a split or of all; the targets of a photo are its captions."""
    if asked.labels is not None and asked.wanted:
        raise GradlightError(
            f"{shown(asked.source)}: captions are the targets of a captioner, and this model is a classifier. Give"
            " COCO's instances_*.json, or a --target of your own."
        )
    read = read_captions(_file(asked), asked.source)
    photos = [photo for photo in read.photos if asked.split in (None, photo.split)]
    if not photos:
        known = ", ".join(sorted({photo.split or "none" for photo in read.photos}))
        raise GradlightError(f"{shown(_file(asked))}: no photo is of the split {asked.split!r}; there are: {known}.")
    items = [Item(str(photo.path), photo.captions if asked.wanted else None) for photo in photos]
    why = f"not found, or found more than once, in {shown(asked.source)}"
    failures = [(os.path.join(asked.source, name), f"{shown(name)}: {why}") for name in read.missing]
    return Source("captions", items, failures, _told(read.left_out))


def _file(asked: Asked) -> Path:
    if asked.annotations is None:
        raise GradlightError(f"{shown(asked.source)}: photos of COCO need a file of annotations: --annotations FILE.")
    return asked.annotations


def _told(left_out: dict[str, int]) -> list[str]:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items())
    return [f"Left out of the annotations: {reasons}."] if reasons else []
