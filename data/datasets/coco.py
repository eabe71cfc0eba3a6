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
_OTHER_LAYOUTS = (
    ("caption", "It holds captions, which are the targets of captioners: of COCO, take instances_*.json"),
    ("segments_info", "It is a panoptic file: of COCO, take instances_*.json"),
)
_MAX_SIDE = 1 << 20
_MIN_NUMBERS = 6  # of a polygon: three corners
_MAX_KEYS = 6  # keys that a message lists


def read_instances(annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> AnnotatedDataset:
    """Read the photos of COCO instances and their objects, in the order of the file.

    Boxes are 0-based, as COCO's are. Outlines are polygons, or run lengths as counts; objects with other outlines
    (counts packed into text) have only their box, and are counted in left_out, as is every entry that cannot be used.

    Args:
        annotations: The JSON file, such as instances_val2017.json.
        images: The folder of the photos; each is found as by `annotations.PhotoFolder`.

    Returns:
        The photos with their objects. A photo that is not found, or found more than once, is among its failures.

    Raises:
        GradlightError: The file is not JSON or has another layout, the folder is not one, or no photo remains.

    Example:
        >>> import json, pathlib
        >>> pathlib.Path("a.jpg").touch()
        >>> image = {"id": 1, "file_name": "a.jpg", "width": 8, "height": 6}
        >>> cat = {"image_id": 1, "category_id": 17, "bbox": [1, 2, 3, 4]}
        >>> document = {"images": [image], "annotations": [cat], "categories": [{"id": 17, "name": "cat"}]}
        >>> _ = pathlib.Path("instances.json").write_text(json.dumps(document))
        >>> [thing.box for thing in read_instances("instances.json", ".").photos[0].objects]
        [(1.0, 2.0, 4.0, 6.0)]
    """
    source, folder = format_path(annotations), PhotoFolder(images)
    document = read_document(annotations, _EXPECTED)
    _check_layout(source, document)
    left_out: Counter[str] = Counter()
    categories = _read_categories(document["categories"], left_out)
    entries = _read_images(document["images"], left_out)
    objects = _read_objects(document["annotations"], categories, entries, left_out)
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
            f"{source}: none of its {len(entries)} photos is in {format_path(images)}. Left out:"
            f" {_format_left_out(left_out)}. Give the folder that holds the photos, or download them."
        )
    return AnnotatedDataset(tuple(photos.values()), tuple(categories.values()), tuple(failures), dict(left_out))


def _check_layout(source: str, document: Any) -> None:
    """Raise GradlightError for a file of another layout; the message says what it contains."""
    if not isinstance(document, dict):
        raise GradlightError(f"{source}: no instances: JSON with a {type(document).__name__} on top. {_EXPECTED}.")
    lists = [document.get(name) for name in ("images", "annotations", "categories")]
    entries = lists[1] if isinstance(lists[1], list) else []
    first = next((entry for entry in entries if isinstance(entry, dict)), {})
    hint = next((f" {hint}." for key, hint in _OTHER_LAYOUTS if key in first), "")
    if hint or not all(isinstance(entries, list) for entries in lists):
        raise GradlightError(f"{source}: no instances: its top has {_format_keys(document)}.{hint} {_EXPECTED}.")


def _read_categories(entries: Sequence[Any], left_out: Counter[str]) -> dict[object, str]:
    """Give id → name of every category."""
    names: dict[object, str] = {}
    for entry in entries:
        match entry:
            case {"id": int() | str() as key, "name": str(name)} if key not in names and name.strip():
                names[key] = name.strip()
            case _:
                left_out["categories without an id of their own and a name"] += 1
    return names


def _read_images(entries: Sequence[Any], left_out: Counter[str]) -> dict[object, tuple[str, tuple[int, int]]]:
    """Give id → (file name, (width, height)) of every image."""
    images: dict[object, tuple[str, tuple[int, int]]] = {}
    for entry in entries:
        match entry:
            case {"id": int() | str() as key, "file_name": str(name), "width": int(width), "height": int(height)} if (
                key not in images and 0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE
            ):
                images[key] = name, (width, height)
            case _:
                left_out["images without an id of their own, file_name, width and height"] += 1
    return images


def _read_objects(
    entries: Sequence[Any], categories: dict[object, str], images: dict[object, Any], left_out: Counter[str]
) -> dict[object, list[AnnotatedObject]]:
    """Give image id → objects."""
    objects: dict[object, list[AnnotatedObject]] = {}
    for entry in entries:
        match entry:
            case {"image_id": int() | str() as image, "category_id": int() | str() as category, "bbox": bounds}:
                box = _read_box(bounds)
            case _:
                left_out["annotations without image_id, category_id and bbox"] += 1
                continue
        if image not in images or category not in categories:
            left_out["annotations of unknown images or categories"] += 1
        elif box is None:
            left_out["annotations whose bbox is not x, y, width, height"] += 1
        else:
            outline = _read_outline(entry.get("segmentation"), left_out)
            crowd = entry.get("iscrowd") == 1
            objects.setdefault(image, []).append(AnnotatedObject(categories[category], box, False, crowd, outline))
    return objects


def _read_box(bounds: Any) -> Box | None:
    """Convert [x, y, width, height] to left, top, right, bottom; None for anything else."""
    numbers = _read_numbers(bounds)
    if numbers is None or len(numbers) != 4 or min(numbers[2:]) < 0:
        return None
    x, y, width, height = map(float, numbers)
    return x, y, x + width, y + height


def _read_outline(segmentation: Any, left_out: Counter[str]) -> Outline | None:
    """Read polygons or run lengths; None where there are none, or where they cannot be used."""
    match segmentation:
        case None | []:
            return None
        case {"size": [int(height), int(width)], "counts": [*counts]}:
            runs = _read_numbers(counts)
            if runs is not None and (runs == np.trunc(runs)).all():
                return RunLengths(height, width, runs.astype(np.int64))
        case [*polygons]:
            corners = list(_read_corners(polygons))
            if len(corners) == len(polygons):
                return tuple(corners)
    left_out["segmentations that are neither polygons nor run lengths as counts"] += 1
    return None


def _read_corners(polygons: Sequence[Any]) -> Iterator[np.ndarray[Any, np.dtype[np.float64]]]:
    """Give the corners [N,2] of every list that is a polygon."""
    for polygon in polygons:
        numbers = _read_numbers(polygon)
        if numbers is not None and len(numbers) >= _MIN_NUMBERS and len(numbers) % 2 == 0:
            yield numbers.reshape(-1, 2)


def _read_numbers(values: Any) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    """Convert a list of numbers between -1e12 and 1e12 to an array; None for anything else."""
    if not isinstance(values, list) or not all(type(value) in (int, float) for value in values):
        return None
    return np.array(values, np.float64) if all(-1e12 < value < 1e12 for value in values) else None


def _format_keys(record: dict[str, Any]) -> str:
    """Format the first keys of a record."""
    listed = ", ".join(repr(key) for key in list(record)[:_MAX_KEYS])
    return f"{listed} …" if len(record) > _MAX_KEYS else listed or "no keys"


def _format_left_out(left_out: Counter[str]) -> str:
    """Format the reasons with their numbers."""
    return "; ".join(f"{reason}: {count}" for reason, count in left_out.items()) or "nothing"
