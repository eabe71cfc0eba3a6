"""PASCAL VOC and data sets of the same layout: the photos of a split, with the boxes of their objects."""

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

_SUB_FOLDERS = ("JPEGImages", "Annotations", "ImageSets/Main")
_MAX_ANNOTATION_BYTES = 1 << 20  # the largest annotation of VOC 2012 has 30 KiB
_MAX_SPLIT_BYTES = 1 << 28
_ADVICE = "No such file is so large: check it"
_MAX_SPLITS = 12  # splits that a message lists


def find_voc(root: str | os.PathLike[str]) -> list[Path]:
    """Find the folders of VOC's layout: the root itself, VOC… in it, or else VOCdevkit/VOC… in it.

    Args:
        root: A folder.

    Returns:
        The folders, sorted; none where the root has another layout.

    Example:
        >>> for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        ...     Path("VOCdevkit/VOC2007", name).mkdir(parents=True)
        >>> [folder.as_posix() for folder in find_voc(".")]
        ['VOCdevkit/VOC2007']
    """
    for parent in (Path(root), Path(root, "VOCdevkit")):
        folders = [folder for folder in (parent, *_voc_folders(parent)) if _is_voc(folder)]
        if folders:
            return folders
    return []


def read_voc(root: str | os.PathLike[str], split: str | None = None) -> AnnotatedDataset:
    """Read the photos of a split and their objects.

    The boxes of VOC, 1-based and inclusive, become 0-based and exclusive.

    Args:
        root: The folder, as for `find_voc`; it must have exactly one data set.
        split: The name of a file of ImageSets/Main without its ".txt", such as "test"; may be omitted where there is
            only one. The split of a class, such as "dog_test", has the photos that are not marked -1 in it.

    Returns:
        The photos with their objects. A photo that is missing, or whose annotation is missing, damaged or hostile (a
        DOCTYPE, entities, more than 1 MiB), is among its failures.

    Raises:
        GradlightError: The root has another layout or several data sets, the split is unknown or must be chosen, or
            no photo remains.

    Example:
        >>> for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        ...     Path("VOC2007", name).mkdir(parents=True)
        >>> Path("VOC2007/JPEGImages/a.jpg").touch()
        >>> _ = Path("VOC2007/ImageSets/Main/test.txt").write_text("a")
        >>> xml = "<annotation><size><width>8</width><height>6</height></size></annotation>"
        >>> _ = Path("VOC2007/Annotations/a.xml").write_text(xml)
        >>> read_voc(".").photos[0].size
        (8, 6)
    """
    folder = _choose_folder(root)
    names = _read_names(_find_split(folder, split))
    files = _list_photos(folder / "JPEGImages")
    photos, failures = [], []
    for name in names:
        path = files.get(name)
        if path is None:
            missing = os.path.join(folder, "JPEGImages", name)
            failures.append((missing, f"{format_path(missing)}: the split lists it, but there is no such photo"))
            continue
        try:
            size, objects = _read_annotation(folder / "Annotations" / f"{name}.xml")
            photos.append(AnnotatedPhoto(path, size, objects))
        except GradlightError as error:
            failures.append((str(path), str(error)))
    if not photos:
        first = f" The first: {failures[0][1]}" if failures else ""
        raise GradlightError(f"{format_path(folder)}: none of the {len(names)} photos of the split can be used.{first}")
    categories = sorted({thing.name for photo in photos for thing in photo.objects})
    return AnnotatedDataset(tuple(photos), tuple(categories), tuple(failures), {})


def _is_voc(folder: Path) -> bool:
    """Tell whether a folder has the sub-folders of VOC's layout."""
    return all(os.path.isdir(folder / name) for name in _SUB_FOLDERS)


def _voc_folders(parent: Path) -> list[Path]:
    """List what is named VOC… in a folder; nothing where the folder cannot be listed."""
    try:
        names = sorted(entry.name for entry in os.scandir(parent) if entry.name.startswith("VOC"))
    except (OSError, ValueError):
        return []
    return [parent / name for name in names]


def _choose_folder(root: str | os.PathLike[str]) -> Path:
    """Give the only folder of VOC's layout at a root; raises GradlightError where there are none or several."""
    folders = find_voc(root)
    if len(folders) == 1:
        return folders[0]
    if folders:
        listed = ", ".join(format_path(folder) for folder in folders)
        raise GradlightError(f"{format_path(root)}: there are several VOC data sets here. Give one of {listed}.")
    raise GradlightError(
        f"{format_path(root)}: not VOC's layout, neither here nor in VOCdevkit: {', '.join(_SUB_FOLDERS)} are expected"
        " in one folder. Give that folder or VOCdevkit."
    )


def _find_split(folder: Path, split: str | None) -> Path:
    """Find the file of a split; where none is named, the splits of single classes are not candidates."""
    sets = folder / "ImageSets" / "Main"
    try:
        splits = sorted(Path(entry.name).stem for entry in os.scandir(sets) if entry.name.endswith(".txt"))
    except OSError as error:
        raise GradlightError(f"{format_path(sets)}: cannot be listed: {error.strerror}. Check the folder.") from error
    general = [name for name in splits if "_" not in name or name.rpartition("_")[2] not in splits]
    if split is None and len(general) == 1:
        return sets / f"{general[0]}.txt"
    if split in splits:
        return sets / f"{split}.txt"
    if general:
        listed = f"There are {', '.join(general[:_MAX_SPLITS])}"
    else:
        listed = "There is none: a file such as test.txt is expected"
    more = f" and {len(splits) - len(general)} of single classes" if len(splits) > len(general) else ""
    problem = "no split was chosen" if split is None else f"there is no split {split!r}.{nearest(split, splits)}"
    raise GradlightError(
        f"{format_path(sets)}: {problem.rstrip('.')}. {listed}{more}. Give one: --split {(general or ['test'])[0]}"
    )


def _read_names(path: Path) -> list[str]:
    """Read the names of the photos of a split."""
    content = read_whole(path, _MAX_SPLIT_BYTES, _ADVICE)
    if b"\0" in content:
        raise GradlightError(f"{format_path(path)}: not a split: one name of a photo per line is expected, in UTF-8.")
    lines = [line.strip() for line in content.decode("utf-8-sig", "surrogateescape").split("\n") if line.strip()]
    rows = [line.rsplit(maxsplit=1) for line in lines]
    # In the split of a class, each photo has a flag: 1, the class is present; 0, it is hard to see; -1, it is absent.
    flagged = all(len(row) == 2 and row[1] in ("-1", "0", "1") for row in rows)
    return list(dict.fromkeys([row[0] for row in rows if row[1] != "-1"] if flagged else lines))


def _list_photos(folder: Path) -> dict[str, Path]:
    """Give name without suffix → path of every photo; so no name of a split can lead out of the folder."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be listed: {error.strerror}. Check the folder.") from error
    photos: dict[str, Path] = {}
    for path in map(Path, names):
        if path.suffix.lower() in IMAGE_SUFFIXES:
            photos.setdefault(path.stem, folder / path)
    return photos


class _NoDoctypeBuilder(ElementTree.TreeBuilder):
    """Builds the elements of XML and refuses a document type; without one, nothing can be expanded or fetched."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Raise GradlightError."""
        raise GradlightError("it has a DOCTYPE, which no annotation needs and which could fetch or expand anything")


def _read_annotation(path: Path) -> tuple[tuple[int, int], tuple[AnnotatedObject, ...]]:
    """Read the size (width, height) and the objects of an annotation; the elements <part> of objects are ignored."""
    content = read_whole(path, _MAX_ANNOTATION_BYTES, _ADVICE)
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_NoDoctypeBuilder()))
        if root.tag != "annotation":
            raise GradlightError(f"it begins with <{root.tag[:40]}>, not with <annotation>")
        size = _read_size(root, "size/width"), _read_size(root, "size/height")
        return size, tuple(_read_object(element) for element in root.findall("object"))
    except GradlightError as error:
        raise GradlightError(f"{format_path(path)}: not used: {error}. Check this file.") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise GradlightError(f"{format_path(path)}: not XML: {error}. Get a whole copy of it.") from error


def _read_object(element: ElementTree.Element) -> AnnotatedObject:
    """Read the element <object>."""
    left, top, right, bottom = (_read_number(element, f"bndbox/{name}") for name in ("xmin", "ymin", "xmax", "ymax"))
    if left > right or top > bottom:
        raise GradlightError(f"the box from ({left:g}, {top:g}) to ({right:g}, {bottom:g}) has its corners swapped")
    box: Box = (left - 1, top - 1, right, bottom)
    difficult = (element.findtext("difficult") or "0").strip() == "1"
    return AnnotatedObject(_read_text(element, "name"), box, difficult)


def _read_text(element: ElementTree.Element, path: str) -> str:
    """Read the text of the element at a path; raises GradlightError where it is missing or empty."""
    text = " ".join((element.findtext(path) or "").split())
    if not text:
        raise GradlightError(f"an <{element.tag}> has no <{path.replace('/', '><')}>")
    return text


def _read_number(element: ElementTree.Element, path: str) -> float:
    """Read a number of pixels; raises GradlightError for any other text."""
    text = _read_text(element, path)
    if not re.fullmatch(r"[+-]?[0-9]{1,9}(\.[0-9]*)?", text):
        raise GradlightError(f"<{path.replace('/', '><')}> is {text[:40]!r}, not a number of pixels")
    return float(text)


def _read_size(element: ElementTree.Element, path: str) -> int:
    """Read a whole number of at least 1."""
    number = _read_number(element, path)
    if number < 1 or number != int(number):
        raise GradlightError(f"<{path.replace('/', '><')}> is {number:g}, not a size in pixels")
    return int(number)
