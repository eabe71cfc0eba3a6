"""Captions of photos: COCO captions and Karpathy's dataset files, with each photo found in one folder."""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from ...errors import GradlightError
from ...files import format_path
from .annotations import PhotoFolder, read_document

__all__ = ["CaptionedDataset", "CaptionedPhoto", "read_captions"]

_SPLITS = {"train": "train", "restval": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_MAX_NAMES = 3  # names that a message lists
_EXPECTED = (
    'Expected are COCO captions ("images" with id and file_name, "annotations" with image_id and caption) or '
    'Karpathy\'s dataset_*.json ("images" with filename and sentences)'
)


@dataclass(frozen=True)
class CaptionedPhoto:
    """A photo on disk with the captions that people wrote for it.

    Attributes:
        path: The image file.
        captions: The captions, with normalised blanks.
        split: "train", "val", "test", or "" where it is unknown.

    Example:
        >>> CaptionedPhoto(Path("a.jpg"), ("a cat",), "train").split
        'train'
    """

    path: Path
    captions: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class CaptionedDataset:
    """The photos of a captions file, in its order, and what could not be read.

    Attributes:
        photos: The photos with their captions.
        missing: The names of photos that were not found, or found more than once.
        left_out: Reason → number of entries of the file that are left out for it.

    Example:
        >>> photo = CaptionedPhoto(Path("a.jpg"), ("a cat",), "train")
        >>> CaptionedDataset((photo,), ("b.jpg",), {"photos not found": 1}).summary
        'Photos: 1; captions: 1. Left out: photos not found: 1 (such as b.jpg).'
    """

    photos: tuple[CaptionedPhoto, ...]
    missing: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def summary(self) -> str:
        """One line with the numbers of photos and captions, and what is left out."""
        totals = f"Photos: {len(self.photos)}; captions: {sum(len(photo.captions) for photo in self.photos)}."
        return f"{totals} Left out: {_format_left_out(self.left_out, self.missing)}." if self.left_out else totals


@dataclass(frozen=True)
class _CaptionRecord:
    """The entry of a file about one photo, before the photo is searched; its name may begin with folders."""

    name: str
    captions: list[str]
    split: str


def read_captions(annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> CaptionedDataset:
    """Read the captions of photos from COCO-captions JSON or from Karpathy's dataset_*.json.

    A split such as "val2017" is read as "val", and Karpathy's "restval" as "train". Blanks in captions are normalised;
    nothing else is changed. A single entry that cannot be used is left out and counted: a photo that is missing, an
    image without captions, a caption without words or of an unknown image.

    Args:
        annotations: The JSON file.
        images: The folder of the photos; each is found as by `annotations.PhotoFolder`.

    Returns:
        The photos with their captions, and what is left out.

    Raises:
        GradlightError: The file is not JSON or has another layout, the folder is not one, or no photo with a caption
            remains.

    Example:
        >>> Path("a.jpg").touch()
        >>> document = '{"images": [{"filename": "a.jpg", "split": "val", "sentences": [{"raw": "a  cat"}]}]}'
        >>> _ = Path("dataset.json").write_text(document)
        >>> [(photo.path.name, photo.captions) for photo in read_captions("dataset.json", ".").photos]
        [('a.jpg', ('a cat',))]
    """
    source, folder = format_path(annotations), PhotoFolder(images)
    document = _read_checked_document(source, annotations)
    left_out: Counter[str] = Counter()
    read_entries = _read_coco if "annotations" in document else _read_karpathy
    entries = read_entries(source, document, left_out)
    captioned = [entry for entry in entries if entry.captions]
    left_out["images without captions"] += len(entries) - len(captioned)
    if not captioned:
        raise GradlightError(
            f"{source}: no image has a caption. Left out: {_format_left_out(left_out)}. {_format_ids(document)}Check"
            " that images and captions belong together."
        )
    photos, missing = _find_photos(captioned, folder, left_out)
    if not photos:
        why = (
            f"Left out: {_format_left_out(left_out, missing)}. Give the folder that holds the photos, or download them."
        )
        raise GradlightError(f"{source}: none of its {len(captioned)} photos is in {format_path(images)}. {why}")
    return CaptionedDataset(tuple(photos), tuple(missing), dict(+left_out))


def _find_photos(
    entries: list[_CaptionRecord], folder: PhotoFolder, left_out: Counter[str]
) -> tuple[list[CaptionedPhoto], list[str]]:
    """Find the photos of the entries; returns them, and the names of those that are missing or ambiguous."""
    photos: dict[Path, CaptionedPhoto] = {}
    missing = []
    for entry in entries:
        paths = folder.find(entry.name)
        if len(paths) != 1:
            left_out["photos in several sub-folders" if paths else "photos not found"] += 1
            missing.append(entry.name)
        elif paths[0] in photos:
            left_out["images with the photo of an earlier one"] += 1
        else:
            photos[paths[0]] = CaptionedPhoto(paths[0], tuple(entry.captions), entry.split)
    return list(photos.values()), missing


def _read_coco(source: str, document: dict[str, Any], left_out: Counter[str]) -> list[_CaptionRecord]:
    """Read the entries of COCO captions, and count in left_out what cannot be used."""
    annotations = document["annotations"]
    if not isinstance(annotations, list) or not any("caption" in entry for entry in _records(annotations)):
        _refuse_layout(source, document)
    entries: dict[object, _CaptionRecord] = {}
    for image in document["images"]:
        match image:
            case {"id": int() | float() | str() as key, "file_name": str(name)} if key not in entries:
                entries[key] = _CaptionRecord(name, [], _split(image))
            case {"id": int() | float() | str(), "file_name": str()}:
                left_out["images with the id of an earlier one"] += 1
            case _:
                left_out["images without id and file_name"] += 1
    for annotation in annotations:
        match annotation:
            case {"image_id": int() | float() | str() as key, "caption": str(text)} if key in entries:
                _add_caption(text, entries[key], left_out)
            case {"image_id": int() | float() | str(), "caption": str()}:
                left_out["captions of unknown images"] += 1
            case _:
                left_out["annotations without image_id and caption"] += 1
    return list(entries.values())


def _read_karpathy(source: str, document: dict[str, Any], left_out: Counter[str]) -> list[_CaptionRecord]:
    """Read the entries of Karpathy's file, and count in left_out what cannot be used."""
    if not any("sentences" in image for image in _records(document["images"])):
        _refuse_layout(source, document)
    entries = []
    for image in document["images"]:
        match image:
            case {"filename": str(name), "sentences": [*sentences]}:
                path = os.path.join(str(image.get("filepath") or ""), name)
                entries.append(_CaptionRecord(path, [], _split(image)))
            case _:
                left_out["images without filename and sentences"] += 1
                continue
        for sentence in sentences:
            match sentence:
                case {"raw": str(text)}:
                    _add_caption(text, entries[-1], left_out)
                case {"tokens": [*words]} if all(isinstance(word, str) for word in words):
                    _add_caption(" ".join(words), entries[-1], left_out)
                case _:
                    left_out["sentences without raw text or tokens"] += 1
    return entries


def _add_caption(text: str, entry: _CaptionRecord, left_out: Counter[str]) -> None:
    """Add a caption to an entry, unless it has no words."""
    if re.search(r"\w", text):
        # Half a surrogate pair, which JSON can contain, could be neither printed nor stored.
        entry.captions.append(" ".join(text.encode("utf-8", "replace").decode().split()))
    else:
        left_out["captions without words"] += 1


def _split(image: dict[str, Any]) -> str:
    """Read the split of an image, "" where it is unknown."""
    return _SPLITS.get(str(image.get("split", "")).lower().rstrip("0123456789"), "")


def _read_checked_document(source: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the file; raises GradlightError unless it has a list of images."""
    document = read_document(path, _EXPECTED)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        _refuse_layout(source, document)
    return document


def _refuse_layout(source: str, document: object) -> NoReturn:
    """Raise GradlightError for a file of another layout; the message says what it contains."""
    if not isinstance(document, dict):
        raise GradlightError(f"{source}: no captions file: JSON with a {type(document).__name__} on top. {_EXPECTED}.")
    entries = document.get("annotations", document.get("images"))
    first = next(iter(_records(entries)), {}) if isinstance(entries, list) else {}
    hint = " Of COCO, take captions_*.json, not instances or keypoints." if "category_id" in first else ""
    inside = f"; an entry has {_format_keys(first)}" if first else ""
    raise GradlightError(
        f"{source}: no captions file: its top has {_format_keys(document)}{inside}.{hint} {_EXPECTED}."
    )


def _records(entries: list[Any]) -> list[dict[str, Any]]:
    """Give the entries that are objects of JSON."""
    return [entry for entry in entries if isinstance(entry, dict)]


def _format_keys(record: dict[str, Any]) -> str:
    """Format the first keys of a record."""
    listed = ", ".join(repr(key) for key in list(record)[: 2 * _MAX_NAMES])
    return f"{listed} …" if len(record) > 2 * _MAX_NAMES else listed or "no keys"


def _format_ids(document: dict[str, Any]) -> str:
    """Format one id of an image and one of an annotation, which shows whether their types and files match."""
    annotations = _records(document.get("annotations", []))
    image_id = next((entry["id"] for entry in _records(document["images"]) if "id" in entry), None)
    reference = next((entry["image_id"] for entry in annotations if "image_id" in entry), None)
    if None in (image_id, reference):
        return ""
    return f"An image's id is {image_id!r}, an annotation's image_id {reference!r}. "


def _format_left_out(left_out: Counter[str] | dict[str, int], missing: tuple[str, ...] | list[str] = ()) -> str:
    """Format the reasons with their numbers, and the first names of missing photos."""
    reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items() if count)
    return (
        f"{reasons} (such as {', '.join(map(format_path, missing[:_MAX_NAMES]))})" if missing else reasons or "nothing"
    )
