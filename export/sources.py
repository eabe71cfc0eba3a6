"""What an export is of: whatever a person names as SOURCE, brought to a list of images and what each is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ..data.datasets.voc import find_voc
from ..data.scenes import generator as scenes
from ..errors import GradlightError, nearest
from ..files import format_path
from ..models.class_objective import resolve
from .datasets import by_class, match, of_captions, of_coco, of_voc
from .lists import SUFFIXES, ImageList, Item, SourceSpec, Walked, read_list, walk

__all__ = ["KINDS", "ImageList", "Item", "find_items"]

_SCENES = "scenes:"
_HOW = (
    "SOURCE is a folder, an image, a list of images (.txt, .csv), a VOC root, a folder of photos with --annotations,"
    f" or {_SCENES}A-B"
)


def find_items(
    source: str,
    *,
    annotations: Path | None = None,
    split: str | None = None,
    labels: Sequence[str] | None,
    kind: str | None = None,
    targets: bool = True,
) -> ImageList:
    """Find the images of a source and their targets.

    source: a folder (see `photo_folders.walk`), which is an ImageFolder where every image lies in a sub-folder that is
    called like a class; a VOC root (see `data.voc`), with the split to take; a folder of COCO's photos, with
    annotations; one image; a list (see `lists.read_list`); "scenes:A-B" without B, or "scenes:held-out:N". Targets are
    every class present, in the data set's order, or every caption, or what the list says.

    labels: the model's classes, or None for a captioner. kind: one of KINDS, instead of finding out. targets=False
    takes the images alone. An image without a target that the model can be asked is among the failures. Raises
    GradlightError for what is no source, for class targets of a captioner, captions of a classifier, and where no
    class is the model's or no image remains.
    """
    if kind is not None and kind not in KINDS:
        raise GradlightError(f"There is no kind of source {kind!r}.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    chosen = kind is not None
    kind = kind or _kind(source, annotations, labels)
    if annotations is not None and kind not in _ANNOTATED:
        raise GradlightError(f"{format_path(source)}: sources of the kind {kind!r} take no --annotations. {_HOW}.")
    if split is not None and kind not in _SPLIT:
        raise GradlightError(
            f"{format_path(source)}: sources of the kind {kind!r} have no splits; {split!r} was asked for."
        )
    reader = KINDS[kind] if chosen or kind != "folder" else _any_folder
    found = reader(SourceSpec(source, annotations, split, labels, targets))
    if not found.items:
        first = f" The first of {len(found.failures)}: {found.failures[0][1]}" if found.failures else ""
        raise GradlightError(f"{format_path(source)}: there is no image to explain.{first or f' {_HOW}.'}")
    return found


def _kind(source: str, annotations: Path | None, labels: Sequence[str] | None) -> str:
    if source.startswith(_SCENES):
        return "scenes"
    if annotations is not None:
        return "captions" if labels is None else "coco"
    if os.path.isdir(source):
        return "voc" if find_voc(source) else "folder"
    if source.lower().endswith(SUFFIXES):
        return "list"
    if not os.path.lexists(source):
        raise GradlightError(f"{format_path(source)}: there is no such file or folder. {_HOW}.")
    return "image"


def _folder(asked: SourceSpec) -> ImageList:
    return _plain(_walked(asked))


def _any_folder(asked: SourceSpec) -> ImageList:
    """Read a folder; as an ImageFolder only where that leaves nothing out."""
    walked = _walked(asked)
    names = _class_folders(asked.source, walked)
    if not asked.wanted or not asked.labels or "" in names:
        return _plain(walked)
    matched = match(sorted(set(names)), asked.labels)
    if not matched.missing:
        return _by_folder(asked, walked, names)
    if matched.indices:
        walked.notes.append(f"Not taken as an ImageFolder. {matched.note} To take it so: --kind imagefolder.")
    return _plain(walked)


def _image_folder(asked: SourceSpec) -> ImageList:
    walked = _walked(asked)
    if not asked.wanted:
        return _plain(walked, "imagefolder")
    return _by_folder(asked, walked, _class_folders(asked.source, walked))


def _walked(asked: SourceSpec) -> Walked:
    walked = walk(asked.source)
    if not walked.paths and not walked.failures:
        raise GradlightError(
            " ".join([f"{format_path(asked.source)}: no image was found in this folder.", *walked.notes])
        )
    return walked


def _plain(walked: Walked, kind: str = "folder") -> ImageList:
    return ImageList(kind, [Item(path, None) for path in walked.paths], walked.failures, walked.notes)


def _class_folders(source: str, walked: Walked) -> list[str]:
    """Name the sub-folder of each photo, "" for those that are in none."""
    start = len(os.path.join(source, ""))
    return [path[start:].partition(os.sep)[0] if os.sep in path[start:] else "" for path in walked.paths]


def _by_folder(asked: SourceSpec, walked: Walked, names: list[str]) -> ImageList:
    rows = [(path, [name] if name else []) for path, name in zip(walked.paths, names, strict=True)]
    found = by_class(asked, "imagefolder", rows, sorted(set(names) - {""}), "it lies in no sub-folder of a class")
    return ImageList(found.kind, found.items, [*walked.failures, *found.failures], [*walked.notes, *found.notes])


def _list(asked: SourceSpec) -> ImageList:
    """Read a list; a target that the classifier does not have is told for each image that asks it."""
    items, failures = [], []
    wrong: dict[tuple[str, ...], str] = {}
    for path, written in read_list(asked.source):
        targets = written if asked.wanted else None
        if targets is not None and asked.labels is not None and targets not in wrong:
            wrong[targets] = _reason(targets, asked.labels)
        if targets is not None and wrong.get(targets):
            failures.append((path, f"{format_path(path)}: {wrong[targets]}"))
        else:
            items.append(Item(path, targets))
    return ImageList("list", items, failures)


def _reason(targets: tuple[str, ...], labels: Sequence[str]) -> str:
    try:
        resolve([targets], labels)
    except GradlightError as error:
        return str(error)
    return ""


def _scenes(asked: SourceSpec) -> ImageList:
    """Name the scenes of "scenes:A-B", "scenes:held-out:N" or "scenes:SEED"."""
    written = asked.source.removeprefix(_SCENES)
    if numbers := re.fullmatch("([0-9]{1,20})-([0-9]{1,20})", written):
        first, end = map(int, numbers.groups())
    elif count := re.fullmatch("held-out:([0-9]{1,20})", written):
        first, end = scenes.HELD_OUT.start, scenes.HELD_OUT.start + int(count[1])
        if end > scenes.HELD_OUT.stop:
            raise GradlightError(f"{asked.source}: there are {len(scenes.HELD_OUT)} held-out scenes.")
    elif re.fullmatch("[0-9]{1,20}", written):
        first, end = int(written), int(written) + 1
    else:
        raise GradlightError(
            f"{format_path(asked.source)}: not a range of scenes. Give {_SCENES}A-B (A to B - 1) or {_SCENES}held-out:N."
        )
    if first >= end:
        raise GradlightError(f"{asked.source}: this range is empty: {_SCENES}A-B is A to B - 1. Give a B above A.")
    if end > scenes.SEEDS.stop:
        raise GradlightError(f"{asked.source}: scenes have seeds from 0 to {scenes.SEEDS[-1]}. Give a range in these.")
    return ImageList("scenes", [Item(scenes.name(seed), None) for seed in range(first, end)])


def _image(asked: SourceSpec) -> ImageList:
    return ImageList("image", [Item(asked.source, None)])


KINDS: dict[str, Callable[[SourceSpec], ImageList]] = {
    "folder": _folder,
    "imagefolder": _image_folder,
    "list": _list,
    "voc": of_voc,
    "coco": of_coco,
    "captions": of_captions,
    "scenes": _scenes,
    "image": _image,
}
"""The kinds of sources, each with its reader."""

_ANNOTATED = ("coco", "captions")
_SPLIT = ("voc", "captions")
