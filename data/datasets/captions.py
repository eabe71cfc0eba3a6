"""Captions of photos on disk: COCO captions and Karpathy's dataset files, each photo looked up under one folder."""

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
_LISTED = 3
_EXPECTED = (
    'Expected are COCO captions ("images" with id and file_name, "annotations" with image_id and caption) or '
    'Karpathy\'s dataset_*.json ("images" with filename and sentences)'
)


@dataclass(frozen=True)
class CaptionedPhoto:
    """A photo on disk, the captions that people gave it, and "train", "val", "test" or, if unknown, ""."""

    path: Path
    captions: tuple[str, ...]
    split: str


@dataclass(frozen=True)
class CaptionedDataset:
    """The photos of a captions file in its order, and what of the file is not among them.

    missing: the names of photos that were not found, or found more than once. left_out: how often each reason was met.
    """

    photos: tuple[CaptionedPhoto, ...]
    missing: tuple[str, ...]
    left_out: dict[str, int]

    @property
    def summary(self) -> str:
        """Say how much was read and what was left out."""
        read = f"Photos: {len(self.photos)}; captions: {sum(len(photo.captions) for photo in self.photos)}."
        return f"{read} Left out: {_told(self.left_out, self.missing)}." if self.left_out else read


@dataclass(frozen=True)
class _CaptionRecord:
    """What a file says of one photo, before the photo is looked for; its name may begin with folders."""

    name: str
    captions: list[str]
    split: str


def read_captions(annotations: str | os.PathLike[str], images: str | os.PathLike[str]) -> CaptionedDataset:
    """Read the captions of photos from COCO-captions JSON or from Karpathy's dataset_*.json.

    images: the folder of the photos; each is found as `documents.PhotoFolder` says. A split
    such as "val2017" is "val"; Karpathy's "restval" is "train". Blanks are tidied in captions, nothing else.

    A single entry that cannot be used is left out and counted: a photo that is not there, an image without captions, a
    caption without words or of an unknown image. Raises GradlightError, saying what was found, for a file that is not
    JSON or of another layout, for a folder that is none, and where no photo with a caption remains.
    """
    source, folder = format_path(annotations), PhotoFolder(images)
    document = _document(source, annotations)
    left_out: Counter[str] = Counter()
    entries = (_coco if "annotations" in document else _karpathy)(source, document, left_out)
    captioned = [entry for entry in entries if entry.captions]
    left_out["images without captions"] += len(entries) - len(captioned)
    if not captioned:
        why = f"Left out: {_told(left_out)}. {_ids(document)}Check that images and captions belong together."
        raise GradlightError(f"{source}: no image has a caption. {why}")
    photos, missing = _found(captioned, folder, left_out)
    if not photos:
        why = f"Left out: {_told(left_out, missing)}. Give the folder that holds the photos, or download them."
        raise GradlightError(f"{source}: none of its {len(captioned)} photos is in {format_path(images)}. {why}")
    return CaptionedDataset(tuple(photos), tuple(missing), dict(+left_out))


def _found(
    entries: list[_CaptionRecord], folder: PhotoFolder, left_out: Counter[str]
) -> tuple[list[CaptionedPhoto], list[str]]:
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


def _coco(source: str, document: dict[str, Any], left_out: Counter[str]) -> list[_CaptionRecord]:
    annotations = document["annotations"]
    if not isinstance(annotations, list) or not any("caption" in entry for entry in _records(annotations)):
        _refuse(source, document)
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
                _add(text, entries[key], left_out)
            case {"image_id": int() | float() | str(), "caption": str()}:
                left_out["captions of unknown images"] += 1
            case _:
                left_out["annotations without image_id and caption"] += 1
    return list(entries.values())


def _karpathy(source: str, document: dict[str, Any], left_out: Counter[str]) -> list[_CaptionRecord]:
    if not any("sentences" in image for image in _records(document["images"])):
        _refuse(source, document)
    entries = []
    for image in document["images"]:
        match image:
            case {"filename": str(name), "sentences": [*sentences]}:
                whole = os.path.join(str(image.get("filepath") or ""), name)
                entries.append(_CaptionRecord(whole, [], _split(image)))
            case _:
                left_out["images without filename and sentences"] += 1
                continue
        for sentence in sentences:
            match sentence:
                case {"raw": str(text)}:
                    _add(text, entries[-1], left_out)
                case {"tokens": [*words]} if all(isinstance(word, str) for word in words):
                    _add(" ".join(words), entries[-1], left_out)
                case _:
                    left_out["sentences without raw text or tokens"] += 1
    return entries


def _add(text: str, entry: _CaptionRecord, left_out: Counter[str]) -> None:
    if re.search(r"\w", text):
        # Half a surrogate pair, which JSON can spell, could be neither printed nor stored.
        entry.captions.append(" ".join(text.encode("utf-8", "replace").decode().split()))
    else:
        left_out["captions without words"] += 1


def _split(image: dict[str, Any]) -> str:
    return _SPLITS.get(str(image.get("split", "")).lower().rstrip("0123456789"), "")


def _document(source: str, path: str | os.PathLike[str]) -> dict[str, Any]:
    document = read_document(path, _EXPECTED)
    if not isinstance(document, dict) or not isinstance(document.get("images"), list):
        _refuse(source, document)
    return document


def _refuse(source: str, document: object) -> NoReturn:
    """Say what a file of another layout holds instead of captions."""
    if not isinstance(document, dict):
        raise GradlightError(f"{source}: no captions file: JSON with a {type(document).__name__} on top. {_EXPECTED}.")
    entries = document.get("annotations", document.get("images"))
    first = next(iter(_records(entries)), {}) if isinstance(entries, list) else {}
    hint = " Of COCO, take captions_*.json, not instances or keypoints." if "category_id" in first else ""
    inside = f"; an entry has {_keys(first)}" if first else ""
    raise GradlightError(f"{source}: no captions file: its top has {_keys(document)}{inside}.{hint} {_EXPECTED}.")


def _records(entries: list[Any]) -> list[dict[str, Any]]:
    return [entry for entry in entries if isinstance(entry, dict)]


def _keys(record: dict[str, Any]) -> str:
    listed = ", ".join(repr(key) for key in list(record)[: 2 * _LISTED])
    return f"{listed} …" if len(record) > 2 * _LISTED else listed or "no keys"


def _ids(document: dict[str, Any]) -> str:
    """Show an id of either side: whether numbers or text, or of another file, is seen at a glance."""
    said = _records(document.get("annotations", []))
    image = next((entry["id"] for entry in _records(document["images"]) if "id" in entry), None)
    meant = next((entry["image_id"] for entry in said if "image_id" in entry), None)
    return "" if None in (image, meant) else f"An image's id is {image!r}, an annotation's image_id {meant!r}. "


def _told(left_out: Counter[str] | dict[str, int], missing: tuple[str, ...] | list[str] = ()) -> str:
    reasons = "; ".join(f"{reason}: {count}" for reason, count in left_out.items() if count)
    return f"{reasons} (such as {', '.join(map(format_path, missing[:_LISTED]))})" if missing else reasons or "nothing"
