"""From what the options name to a model and photos."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from ..data import images as pictures
from ..errors import GradlightError
from ..models.base import Explainable
from ..models.captioner import Captioner, captioner
from ..models.classifiers import classifier
from ..models.registry import SOURCES
from .console import notice

__all__ = ["ModelOptions", "open_captioner", "open_model", "readable"]

_CAPTIONER = "captioner/"


@dataclass(frozen=True)
class ModelOptions:
    """The options that name a model, as they were typed."""

    name: str
    checkpoint: Path | None = None
    pretrained: bool = True
    labels: Path | None = None
    device: str | None = None
    encoder: str | None = None


def open_model(source: ModelOptions, words: bool = False) -> Explainable:
    """Make the model that the options name.

    "captioner/scenes" and "captioner/PATH" are captioners, and so is a file or folder that is there; "scenes" is one
    where words are asked for. Everything else is a classifier.
    """
    bundled = source.name == "scenes"
    if source.name.startswith(_CAPTIONER) or (words if bundled else Path(source.name).exists()):
        return open_captioner(source)
    if source.encoder is not None:
        raise GradlightError(f"--encoder is a captioner's eye, and {source.name!r} is a classifier.")
    return classifier(
        source.name,
        pretrained=source.pretrained and source.checkpoint is None,
        checkpoint=source.checkpoint,
        labels=None if source.labels is None else _read_labels(source.labels),
        device=source.device,
    )


def open_captioner(source: ModelOptions) -> Captioner:
    """Make the captioner that the options name: "scenes", or the path of a checkpoint."""
    name = source.name.removeprefix(_CAPTIONER)
    if source.labels is not None or source.checkpoint is not None:
        raise GradlightError(
            f"--labels and --checkpoint are for classifiers; the captioner {name!r} has its words and its weights in"
            " its own files."
        )
    return captioner(name, encoder=source.encoder, pretrained=source.pretrained, device=source.device)


def readable(images: list[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Sort photos, and those of folders, into what can be read and what cannot, with the reason, which is told.

    Raises GradlightError when none can be read.
    """
    good, failures = [], []
    for path in (found for given in images for found in (pictures.find(given) if given.is_dir() else [given])):
        try:
            if SOURCES.named_image(str(path)) is None:
                pictures.load(path)
            good.append(path)
        except GradlightError as error:
            failures.append((str(path), f"{error}{SOURCES.scheme_hint(str(path))}"))
    if not good and not failures:
        raise GradlightError(f"No image was found in {', '.join(map(str, images))}.")
    if not good:
        raise GradlightError(f"None of {len(failures)} images can be read. The first: {failures[0][1]}")
    for _, reason in failures:
        notice(f"left out: {reason}")
    return good, failures


def _read_labels(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise GradlightError(f"{path}: the labels cannot be read: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(label, str) and label for label in found):
        raise GradlightError(f"{path}: labels are one name a line, or a JSON list of names.")
    return found
