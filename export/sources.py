"""Sources of an export: find the images, and the targets of each, that a SOURCE of the command line stands for."""

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
from .datasets import find_caption_items, find_coco_items, find_voc_items, items_by_class, match_classes
from .lists import LIST_SUFFIXES, FolderListing, ImageList, Item, SourceSpec, list_folder, read_list

__all__ = ["KINDS", "find_items"]

_SCENES = "scenes:"
_USAGE = (
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

    Targets are every class present, in the data set's order, or every caption, or what the list says.

    Args:
        source: A folder (see `lists.list_folder`), which is an ImageFolder if every image is in a sub-folder that is
            named like a class; a VOC root (see `data.datasets.voc`); a folder of COCO's photos, with annotations; one
            image; a list (see `lists.read_list`); "scenes:A-B" without B, or "scenes:held-out:N".
        annotations: The file of annotations.
        split: The split of VOC or of captions.
        labels: The model's classes; None for a captioner.
        kind: One of KINDS; found from the source unless given.
        targets: False gives the images alone.

    Returns:
        The images. An image without a target that the model has is among the failures.

    Raises:
        GradlightError: The source is not one of these, has classes and the model is a captioner, has captions and the
            model is a classifier, has no class of the model, or has no image.

    Example:
        >>> find_items("scenes:5-7", labels=None).items
        [Item(path='scenes:5', targets=None), Item(path='scenes:6', targets=None)]
    """
    if kind is not None and kind not in KINDS:
        raise GradlightError(f"There is no kind of source {kind!r}.{nearest(kind, KINDS)} Known: {', '.join(KINDS)}.")
    is_chosen = kind is not None
    kind = kind or _find_kind(source, annotations, labels)
    if annotations is not None and kind not in _KINDS_WITH_ANNOTATIONS:
        raise GradlightError(f"{format_path(source)}: sources of the kind {kind!r} take no --annotations. {_USAGE}.")
    if split is not None and kind not in _KINDS_WITH_SPLITS:
        raise GradlightError(
            f"{format_path(source)}: sources of the kind {kind!r} have no splits; {split!r} was asked for."
        )
    reader = KINDS[kind] if is_chosen or kind != "folder" else _find_any_folder
    images = reader(SourceSpec(source, annotations, split, labels, targets))
    if not images.items:
        first = f" The first of {len(images.failures)}: {images.failures[0][1]}" if images.failures else ""
        raise GradlightError(f"{format_path(source)}: there is no image to explain.{first or f' {_USAGE}.'}")
    return images


def _find_kind(source: str, annotations: Path | None, labels: Sequence[str] | None) -> str:
    if source.startswith(_SCENES):
        return "scenes"
    if annotations is not None:
        return "captions" if labels is None else "coco"
    if os.path.isdir(source):
        return "voc" if find_voc(source) else "folder"
    if source.lower().endswith(LIST_SUFFIXES):
        return "list"
    if not os.path.lexists(source):
        raise GradlightError(f"{format_path(source)}: there is no such file or folder. {_USAGE}.")
    return "image"


# ---------------------------------------------------------------------------------------------------------------------
# Folders


def _find_folder(spec: SourceSpec) -> ImageList:
    return _without_targets(_list_photos(spec))


def _find_any_folder(spec: SourceSpec) -> ImageList:
    """List a folder, as an ImageFolder only if that leaves nothing out."""
    listing = _list_photos(spec)
    names = _class_folders(spec.source, listing)
    if not spec.with_targets or not spec.labels or "" in names:
        return _without_targets(listing)
    match = match_classes(sorted(set(names)), spec.labels)
    if not match.missing:
        return _by_folder(spec, listing, names)
    if match.indices:
        listing.notes.append(f"Not taken as an ImageFolder. {match.note} To take it so: --kind imagefolder.")
    return _without_targets(listing)


def _find_image_folder(spec: SourceSpec) -> ImageList:
    listing = _list_photos(spec)
    if not spec.with_targets:
        return _without_targets(listing, "imagefolder")
    return _by_folder(spec, listing, _class_folders(spec.source, listing))


def _list_photos(spec: SourceSpec) -> FolderListing:
    listing = list_folder(spec.source)
    if not listing.paths and not listing.failures:
        raise GradlightError(
            " ".join([f"{format_path(spec.source)}: no image was found in this folder.", *listing.notes])
        )
    return listing


def _without_targets(listing: FolderListing, kind: str = "folder") -> ImageList:
    return ImageList(kind, [Item(path, None) for path in listing.paths], listing.failures, listing.notes)


def _class_folders(source: str, listing: FolderListing) -> list[str]:
    """Name the sub-folder of each photo, "" for those that are in none."""
    start = len(os.path.join(source, ""))
    return [path[start:].partition(os.sep)[0] if os.sep in path[start:] else "" for path in listing.paths]


def _by_folder(spec: SourceSpec, listing: FolderListing, names: list[str]) -> ImageList:
    rows = [(path, [name] if name else []) for path, name in zip(listing.paths, names, strict=True)]
    reason = "it is in no sub-folder of a class"
    images = items_by_class(spec, "imagefolder", rows, sorted(set(names) - {""}), reason)
    failures, notes = [*listing.failures, *images.failures], [*listing.notes, *images.notes]
    return ImageList(images.kind, images.items, failures, notes)


# ---------------------------------------------------------------------------------------------------------------------
# Lists, scenes and single images


def _find_list(spec: SourceSpec) -> ImageList:
    """Read a list; a target that the classifier does not have makes a failure of each image that has it."""
    items, failures = [], []
    reasons: dict[tuple[str, ...], str] = {}
    for path, written in read_list(spec.source):
        targets = written if spec.with_targets else None
        if targets is not None and spec.labels is not None and targets not in reasons:
            reasons[targets] = _target_error(targets, spec.labels)
        if targets is not None and reasons.get(targets):
            failures.append((path, f"{format_path(path)}: {reasons[targets]}"))
        else:
            items.append(Item(path, targets))
    return ImageList("list", items, failures)


def _target_error(targets: tuple[str, ...], labels: Sequence[str]) -> str:
    """Give the reason why targets are unknown; "" if they are known."""
    try:
        resolve([targets], labels)
    except GradlightError as error:
        return str(error)
    return ""


def _find_scenes(spec: SourceSpec) -> ImageList:
    """Name the scenes of "scenes:A-B", "scenes:held-out:N" or "scenes:SEED"."""
    written = spec.source.removeprefix(_SCENES)
    if numbers := re.fullmatch("([0-9]{1,20})-([0-9]{1,20})", written):
        first, end = map(int, numbers.groups())
    elif count := re.fullmatch("held-out:([0-9]{1,20})", written):
        first, end = scenes.HELD_OUT.start, scenes.HELD_OUT.start + int(count[1])
        if end > scenes.HELD_OUT.stop:
            raise GradlightError(f"{spec.source}: there are {len(scenes.HELD_OUT)} held-out scenes.")
    elif re.fullmatch("[0-9]{1,20}", written):
        first, end = int(written), int(written) + 1
    else:
        raise GradlightError(
            f"{format_path(spec.source)}: not a range of scenes. Give {_SCENES}A-B (A to B - 1) or {_SCENES}held-out:N."
        )
    if first >= end:
        raise GradlightError(f"{spec.source}: this range is empty: {_SCENES}A-B is A to B - 1. Give a B above A.")
    if end > scenes.SEEDS.stop:
        raise GradlightError(
            f"{spec.source}: scenes have seeds from 0 to {scenes.SEEDS[-1]}. Give a range within these."
        )
    return ImageList("scenes", [Item(scenes.name(seed), None) for seed in range(first, end)])


def _find_image(spec: SourceSpec) -> ImageList:
    return ImageList("image", [Item(spec.source, None)])


KINDS: dict[str, Callable[[SourceSpec], ImageList]] = {
    "folder": _find_folder,
    "imagefolder": _find_image_folder,
    "list": _find_list,
    "voc": find_voc_items,
    "coco": find_coco_items,
    "captions": find_caption_items,
    "scenes": _find_scenes,
    "image": _find_image,
}
"""The kinds of sources, each with its reader."""

_KINDS_WITH_ANNOTATIONS = ("coco", "captions")
_KINDS_WITH_SPLITS = ("voc", "captions")
