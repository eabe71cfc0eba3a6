"""PASCAL VOC and data sets laid out like it: the photos of a split, with the boxes of their objects."""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from ...errors import GradlightError, nearest
from ...files import format_path, read_whole
from ..images import IMAGE_SUFFIXES
from .annotations import AnnotatedDataset, AnnotatedObject, AnnotatedPhoto, Box

__all__ = ["find_voc", "read_voc"]

_PARTS = ("JPEGImages", "Annotations", "ImageSets/Main")
_MOST_BYTES = 1 << 20  # the largest annotation of VOC 2012 has 30 KiB
_MOST_NAMES = 1 << 28
_ADVICE = "No such file is so large: check it"
_LISTED = 12


def find_voc(root: str | os.PathLike[str]) -> list[Path]:
    """Find the folders of VOC's layout at a root: itself, VOCdevkit/VOC2007 in it, or VOC2007 in it; sorted."""
    place = Path(root)
    for parent in (place, place / "VOCdevkit"):
        found = [folder for folder in (parent, *_folders_in(parent)) if _is_voc(folder)]
        if found:
            return found
    return []


def read_voc(root: str | os.PathLike[str], split: str | None = None) -> AnnotatedDataset:
    """Read the photos of a split and their objects.

    root: see `find_voc`. split: a file of ImageSets/Main without its ".txt", such as "test"; it may be left out where
    there is only one. Those of one class, as "dog_test", give the photos that are not marked -1 in it. The boxes of
    VOC, 1-based and inclusive, become 0-based and exclusive.

    A photo that is not there, or whose annotation is missing, broken or hostile (a DOCTYPE, entities, more than 1 MiB),
    is among the failures. Raises GradlightError for a root of another layout, of several data sets, for a split that
    is unknown or must be chosen, and where no photo remains.
    """
    folder = _one(root)
    names = _names(_split_file(folder, split))
    files = _photos_of(folder / "JPEGImages")
    photos, failures = [], []
    for name in names:
        path = files.get(name)
        if path is None:
            missing = os.path.join(folder, "JPEGImages", name)
            failures.append((missing, f"{format_path(missing)}: the split lists it, but there is no such photo"))
            continue
        try:
            size, objects = _annotation(folder / "Annotations" / f"{name}.xml")
            photos.append(AnnotatedPhoto(path, size, objects))
        except GradlightError as error:
            failures.append((str(path), str(error)))
    if not photos:
        first = f" The first: {failures[0][1]}" if failures else ""
        raise GradlightError(f"{format_path(folder)}: none of the {len(names)} photos of the split can be used.{first}")
    categories = sorted({thing.name for photo in photos for thing in photo.objects})
    return AnnotatedDataset(tuple(photos), tuple(categories), tuple(failures), {})


def _is_voc(folder: Path) -> bool:
    return all(os.path.isdir(folder / part) for part in _PARTS)


def _folders_in(parent: Path) -> list[Path]:
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if entry.name.startswith("VOC"))
    except (OSError, ValueError):
        return []
    return [parent / name for name in names]


def _one(root: str | os.PathLike[str]) -> Path:
    found = find_voc(root)
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(format_path(folder) for folder in found)
        raise GradlightError(f"{format_path(root)}: there are several VOC data sets here. Give one of {listed}.")
    raise GradlightError(
        f"{format_path(root)}: not VOC's layout, neither here nor in VOCdevkit: {', '.join(_PARTS)} are expected in one"
        " folder. Give that folder or VOCdevkit."
    )


def _split_file(folder: Path, split: str | None) -> Path:
    """Find the file of a split; the splits of single classes are known, but not counted where none is asked for."""
    sets = folder / "ImageSets" / "Main"
    try:
        known = sorted(Path(entry.name).stem for entry in os.scandir(sets) if entry.name.endswith(".txt"))
    except OSError as error:
        raise GradlightError(f"{format_path(sets)}: cannot be listed: {error.strerror}. Check the folder.") from error
    whole = [name for name in known if "_" not in name or name.rpartition("_")[2] not in known]
    if split is None and len(whole) == 1:
        return sets / f"{whole[0]}.txt"
    if split in known:
        return sets / f"{split}.txt"
    there = f"There are {', '.join(whole[:_LISTED])}" if whole else "There is none: a file such as test.txt is expected"
    more = f" and {len(known) - len(whole)} of single classes" if len(known) > len(whole) else ""
    asked = "no split was chosen" if split is None else f"there is no split {split!r}.{nearest(split, known)}"
    raise GradlightError(
        f"{format_path(sets)}: {asked.rstrip('.')}. {there}{more}. Give one: --split {(whole or ['test'])[0]}"
    )


def _names(path: Path) -> list[str]:
    content = read_whole(path, _MOST_NAMES, _ADVICE)
    if b"\0" in content:
        raise GradlightError(f"{format_path(path)}: not a split: one name of a photo a line is expected, in UTF-8.")
    lines = [line.strip() for line in content.decode("utf-8-sig", "surrogateescape").split("\n") if line.strip()]
    rows = [line.rsplit(maxsplit=1) for line in lines]
    # The splits of single classes say of each photo: 1, the class is there; 0, it is hard to see; -1, it is not.
    flagged = all(len(row) == 2 and row[1] in ("-1", "0", "1") for row in rows)
    return list(dict.fromkeys([row[0] for row in rows if row[1] != "-1"] if flagged else lines))


def _photos_of(folder: Path) -> dict[str, Path]:
    """Find each photo by its name without suffix; so no name of a split can lead out of the folder."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be listed: {error.strerror}. Check the folder.") from error
    photos: dict[str, Path] = {}
    for path in map(Path, names):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photos.setdefault(path.stem, folder / path)
    return photos


class _Builder(ElementTree.TreeBuilder):
    """Builds elements, and stops at a document type: without one, nothing can be expanded and nothing fetched."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        raise GradlightError("it has a DOCTYPE, which no annotation needs and which could fetch or expand anything")


def _annotation(path: Path) -> tuple[tuple[int, int], tuple[AnnotatedObject, ...]]:
    """Read the size (width, height) and the objects of an annotation; parts of objects are no objects."""
    content = read_whole(path, _MOST_BYTES, _ADVICE)
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_Builder()))
        if root.tag != "annotation":
            raise GradlightError(f"it begins with <{root.tag[:40]}>, not with <annotation>")
        size = _whole(root, "size/width"), _whole(root, "size/height")
        return size, tuple(_object(element) for element in root.findall("object"))
    except GradlightError as error:
        raise GradlightError(f"{format_path(path)}: not used: {error}. Check this file.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise GradlightError(f"{format_path(path)}: not XML: {error}. Get a whole copy of it.") from error


def _object(element: ElementTree.Element) -> AnnotatedObject:
    left, top, right, bottom = (_number(element, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
    if left > right or top > bottom:
        raise GradlightError(f"the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) is turned inside out")
    box: Box = (left - 1, top - 1, right, bottom)
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return AnnotatedObject(_text(element, "name"), box, difficult)


def _text(element: ElementTree.Element, place: str) -> str:
    text = " ".join((element.findtext(place) or "").split())
    if not text:
        raise GradlightError(f"an <{element.tag}> has no <{place.replace('/', '><')}>")
    return text


def _number(element: ElementTree.Element, place: str) -> float:
    text = _text(element, place)
    if not re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]*)?", text):
        raise GradlightError(f"<{place.replace('/', '><')}> is {text[:40]!r}, not a number of pixels")
    return float(text)


def _whole(element: ElementTree.Element, place: str) -> int:
    number = _number(element, place)
    if number < 1 or number != int(number):
        raise GradlightError(f"<{place.replace('/', '><')}> is {number:g}, not a size in pixels")
    return int(number)
