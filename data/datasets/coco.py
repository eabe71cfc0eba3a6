"""COCO instances: the photos of a JSON file with the boxes and outlines of their objects."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import GradlightError
from ...files import format_path
from .annotations import (
    AnnotatedDataset,
    AnnotatedObject,
    AnnotatedPhoto,
    Box,
    Outline,
    PhotoFolder,
    RunLengths,
    read_document,
)

__all__ = ["read_instances"]

_EXPECTED = (
    'Expected are COCO instances: "images" with id, file_name, width and height, "annotations" with image_id,'
    ' category_id and bbox, "categories" with id and name'
)
_OTHERS = (
    ("caption", "It holds captions, which are the targets of captioners: of COCO, take instances_*.json"),
    ("segments_info", "It is a panoptic file: of COCO, take instances_*.json"),
)
_LARGEST = 1 << 20
_SMALLEST = 6  # numbers of a polygon: three corners
_LISTED = 6


def read_instances(annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> AnnotatedDataset:
    """Read the photos of COCO instances and their objects, in the order of the file.

    images: the folder of the photos, each found as `documents.PhotoFolder` says; one that is not found, or found more
    than once, is among the failures. Boxes are 0-based, as COCO's are. Outlines are polygons, or run lengths as
    counts; objects with others (counts packed into text) have only their box, and are counted in left_out, as is
    every entry that cannot be used.

    Raises GradlightError, saying what was found, for a file that is not JSON or of another layout, for a folder that
    is none, and where no photo remains.
    """
    source, folder = format_path(annotations), PhotoFolder(images)
    document = read_document(annotations, _EXPECTED)
    _check(source, document)
    left_out: Counter[str] = Counter()
    categories = _categories(document["categories"], left_out)
    entries = _images(document["images"], left_out)
    objects = _objects(document["annotations"], categories, entries, left_out)
    photos, failures = {}, []
    for key, (name, size) in entries.items():
        paths = folder.find(name)
        if len(paths) != 1:
            where = "in several sub-folders of" if paths else "not found in"
            failures.append((os.path.join(images, name), f"{format_path(name)}: {where} {format_path(images)}"))
        elif paths[0] in photos:
            left_out["images with the photo of an earlier one"] += 1
        else:
            photos[paths[0]] = AnnotatedPhoto(paths[0], size, tuple(objects.get(key, ())))
    if not photos:
        raise GradlightError(
            f"{source}: none of its {len(entries)} photos is in {format_path(images)}. Left out: {_told(left_out)}."
            " Give the folder that holds the photos, or download them."
        )
    return AnnotatedDataset(tuple(photos.values()), tuple(categories.values()), tuple(failures), dict(left_out))


def _check(source: str, document: Any) -> None:
    """Refuse a file of another layout, saying what it holds instead."""
    if not isinstance(document, dict):
        raise GradlightError(f"{source}: no instances: JSON with a {type(document).__name__} on top. {_EXPECTED}.")
    parts = [document.get(name) for name in ("images", "annotations", "categories")]
    entries = parts[1] if isinstance(parts[1], list) else []
    first = next((entry for entry in entries if isinstance(entry, dict)), {})
    hint = next((f" {hint}." for key, hint in _OTHERS if key in first), "")
    if hint or not all(isinstance(part, list) for part in parts):
        raise GradlightError(f"{source}: no instances: its top has {_keys(document)}.{hint} {_EXPECTED}.")


def _categories(entries: Sequence[Any], left_out: Counter[str]) -> dict[object, str]:
    names: dict[object, str] = {}
    for entry in entries:
        match entry:
            case {"id": int() | str() as key, "name": str(name)} if key not in names and name.strip():
                names[key] = name.strip()
            case _:
                left_out["categories without an id of their own and a name"] += 1
    return names


def _images(entries: Sequence[Any], left_out: Counter[str]) -> dict[object, tuple[str, tuple[int, int]]]:
    images: dict[object, tuple[str, tuple[int, int]]] = {}
    for entry in entries:
        match entry:
            case {"id": int() | str() as key, "file_name": str(name), "width": int(width), "height": int(height)} if (
                key not in images and 0 < width <= _LARGEST and 0 < height <= _LARGEST
            ):
                images[key] = name, (width, height)
            case _:
                left_out["images without an id of their own, file_name, width and height"] += 1
    return images


def _objects(
    entries: Sequence[Any], categories: dict[object, str], images: dict[object, Any], left_out: Counter[str]
) -> dict[object, list[AnnotatedObject]]:
    objects: dict[object, list[AnnotatedObject]] = {}
    for entry in entries:
        match entry:
            case {"image_id": int() | str() as image, "category_id": int() | str() as category, "bbox": bounds}:
                box = _box(bounds)
            case _:
                left_out["annotations without image_id, category_id and bbox"] += 1
                continue
        if image not in images or category not in categories:
            left_out["annotations of unknown images or categories"] += 1
        elif box is None:
            left_out["annotations whose bbox is not x, y, width, height"] += 1
        else:
            outline = _outline(entry.get("segmentation"), left_out)
            crowd = entry.get("iscrowd") == 1
            objects.setdefault(image, []).append(AnnotatedObject(categories[category], box, False, crowd, outline))
    return objects


def _box(bounds: Any) -> Box | None:
    numbers = _numbers(bounds)
    if numbers is None or len(numbers) != 4 or min(numbers[2:]) < 0:
        return None
    x, y, width, height = map(float, numbers)
    return x, y, x + width, y + height


def _outline(segmentation: Any, left_out: Counter[str]) -> Outline | None:
    match segmentation:
        case None | []:
            return None
        case {"size": [int(height), int(width)], "counts": [*counts]}:
            runs = _numbers(counts)
            if runs is not None and (runs == np.trunc(runs)).all():
                return RunLengths(height, width, runs.astype(np.int64))
        case [*polygons]:
            corners = list(_corners(polygons))
            if len(corners) == len(polygons):
                return tuple(corners)
    left_out["segmentations that are neither polygons nor run lengths as counts"] += 1
    return None


def _corners(polygons: Sequence[Any]) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    for polygon in polygons:
        numbers = _numbers(polygon)
        if numbers is not None and len(numbers) >= _SMALLEST and len(numbers) % 2 == 0:
            yield numbers.reshape(-1, 2)


def _numbers(values: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Make an array of a list of finite numbers below a million million, or nothing of anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    return np.array(values, np.float64) if all(-1e12 < value < 1e12 for value in values) else None


def _keys(record: dict[str, Any]) -> str:
    listed = ", ".join(repr(key) for key in list(record)[:_LISTED])
    return f"{listed} …" if len(record) > _LISTED else listed or "no keys"


def _told(left_out: Counter[str]) -> str:
    return "; ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "nothing"
