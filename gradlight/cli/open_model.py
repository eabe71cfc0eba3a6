"""Open what the options name: a classifier or a captioner, and the photos, each of which is decoded once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..data import images as pictures
from ..errors import GradlightError
from ..models.base import Explainable, Photo
from ..models.captioner import Captioner, captioner
from ..models.classifiers import classifier
from ..models.images import read_images
from ..models.preprocessing import Preprocess
from ..models.registry import SOURCES
from ..models.view import View
from .console import print_notice

__all__ = ["ModelOptions", "ReadPhoto", "open_captioner", "open_model", "read_photos"]

_CAPTIONER = "captioner/"

# The preprocessed pixels of 1,700 photos at 224 x 224, or 30 decoded photos of 12 megapixels. Beyond this, photos are
# decoded again when they are explained or drawn.
_MAX_BYTES_HELD = 1 << 30


@dataclass(frozen=True)
class ModelOptions:
    """The options that name a model, as strings of the command line."""

    name: str
    checkpoint: Path | None = None
    pretrained: bool = True
    labels: Path | None = None
    device: str | None = None
    encoder: str | None = None


# ---- models


def open_model(options: ModelOptions, words: bool = False) -> Explainable:
    """Open the model that the options name.

    "captioner/scenes", "captioner/PATH" and every existing file or folder are captioners; "scenes" is a captioner if
    words are explained, else a classifier; every other name is a classifier.

    Args:
        options: the options that name the model.
        words: words are explained.

    Returns:
        A classifier or a captioner.

    Raises:
        GradlightError: there is no such model, or the options do not fit its kind.
    """
    bundled = options.name == "scenes"
    if options.name.startswith(_CAPTIONER) or (words if bundled else Path(options.name).exists()):
        return open_captioner(options)
    if options.encoder is not None:
        raise GradlightError(f"--encoder is for captioners, and {options.name!r} is a classifier. Leave it out.")
    return classifier(
        options.name,
        pretrained=options.pretrained and options.checkpoint is None,
        checkpoint=options.checkpoint,
        labels=None if options.labels is None else _read_labels(options.labels),
        device=options.device,
    )


def open_captioner(options: ModelOptions) -> Captioner:
    """Open the captioner that the options name.

    Args:
        options: their name is "scenes" or the path of a checkpoint, with or without "captioner/" before it.

    Returns:
        The captioner.

    Raises:
        GradlightError: there is no such captioner, or options of classifiers are given.
    """
    name = options.name.removeprefix(_CAPTIONER)
    if options.labels is not None or options.checkpoint is not None:
        raise GradlightError(
            f"--labels and --checkpoint are for classifiers; the checkpoint of the captioner {name!r} already contains"
            " its words and its weights."
        )
    return captioner(name, encoder=options.encoder, pretrained=options.pretrained, device=options.device)


def _read_labels(path: Path) -> list[str]:
    """Read class names from a text file with one name per line or from a JSON list."""
    try:
        text = path.read_text(encoding="utf-8")
        labels = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise GradlightError(f"{path}: the labels cannot be read: {error}.") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) and label for label in labels):
        raise GradlightError(f"{path}: labels must be one name per line, or a JSON list of names.")
    return labels


# ---- photos


@dataclass(frozen=True)
class ReadPhoto:
    """A photo that was decoded without an error.

    pixels [3,H,W] and record are None if they did not fit in the memory for photos; then the photo is decoded again.
    """

    path: Path
    pixels: Tensor | None = None
    record: Photo | None = None

    @property
    def image(self) -> Any:
        """The image to give to a model: the pixels [3,H,W], or else the path."""
        return self.path if self.pixels is None else self.pixels


class _KeepOriginal:
    """A preprocessing that keeps the last picture that it was given."""

    def __init__(self, preprocess: Preprocess) -> None:
        self._preprocess = preprocess
        self.original: Image.Image | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self._preprocess.size

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        self.original = photo
        return self._preprocess(photo)

    def denormalise(self, pixels: Tensor) -> Image.Image:
        return self._preprocess.denormalise(pixels)

    def to_json(self) -> dict[str, Any]:
        return self._preprocess.to_json()


def read_photos(
    images: Sequence[Path], model: Explainable, keep_originals: bool = False
) -> tuple[list[ReadPhoto], list[tuple[str, str]]]:
    """Decode and preprocess photos; one that cannot be read is left out, with a notice.

    Args:
        images: photos, names of scenes, or folders, which are searched for photos.
        model: its preprocessing is applied.
        keep_originals: keep the decoded photos too, for pictures of maps over photos.

    Returns:
        The photos that can be read, and (path, reason) of those that cannot.

    Raises:
        GradlightError: there is no photo, or none of them can be read.
    """
    paths = [path for image in images for path in (pictures.find(image) if image.is_dir() else [image])]
    if not paths:
        raise GradlightError(f"No image was found in {', '.join(map(str, images))}.")
    readable: list[ReadPhoto] = []
    failures: list[tuple[str, str]] = []
    preprocess = _KeepOriginal(model.preprocess)
    bytes_held = 0
    for path in paths:
        try:
            pixels, (record,) = read_images([path], preprocess)
        except GradlightError as error:
            failures.append((str(path), f"{error}{SOURCES.scheme_hint(str(path))}"))
            continue
        if bytes_held + pixels.nbytes > _MAX_BYTES_HELD:
            readable.append(ReadPhoto(path))
            continue
        bytes_held += pixels.nbytes
        original_bytes = 3 * record.width * record.height
        if keep_originals and bytes_held + original_bytes <= _MAX_BYTES_HELD:
            record = replace(record, held=preprocess.original)
            bytes_held += original_bytes
        readable.append(ReadPhoto(path, pixels[0], record))
    if not readable:
        raise GradlightError(f"None of {len(failures)} images can be read. The first: {failures[0][1]}")
    for _, reason in failures:
        print_notice(f"left out: {reason}")
    return readable, failures
