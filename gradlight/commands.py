"""What the subcommands of the command line do, once there is work to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .console import interactive, notice
from .data import images as pictures
from .data.store import destination
from .errors import GradlightError, nearest
from .explainers.archive import save
from .explainers.combination import check_how, layer_weights
from .explainers.explain import explain
from .explainers.maps import SaliencyMaps
from .explainers.meta import Meta
from .explainers.plotting import MOST_PANELS
from .models.classifiers import Classifier, classifier

__all__ = [
    "Asked",
    "explain_images",
    "open_model",
    "readable",
    "train_network",
    "write_pictures",
]

Source = tuple[str, Path | None, bool, Path | None, str | None]

_ROWS_A_PAGE = 12


@dataclass(frozen=True)
class Asked:
    """What the options of `explain` ask for, as they were typed."""

    target: list[str] | None
    methods: str
    layers: str
    combine: str | None
    meta: str | None
    batch_size: int | None


def explain_images(images: list[Path], outputs: list[Path], source: Source, asked: Asked) -> int:
    """Explain photos and write every output; give the exit status. Photos that cannot be read are left out and told."""
    for output in outputs:
        if output.suffix.lower() not in (".png", ".h5", ".hdf5"):
            raise GradlightError(f"{output}: maps are written as a picture (.png) or as HDF5 (.h5); name one of these.")
        if output.suffix.lower() != ".png":
            destination(output)
        elif not output.absolute().parent.is_dir():
            raise GradlightError(f"{output}: the folder {output.absolute().parent} does not exist. Create it first.")
    meta = _parse_meta(asked.meta)
    combine = _parse_combine(asked.combine)
    good, failures = readable(images)
    model = open_model(source)
    maps = explain(
        model,
        good,
        None if asked.target is None else [[_number(text) for text in asked.target]],
        methods=_listed(asked.methods),
        layers=_listed(asked.layers),
        meta=meta,
        batch_size=asked.batch_size,
        progress=interactive(),
    )
    if combine:
        maps = maps.joined(maps.combine(how=combine[0], weights=combine[1]))
    for output in outputs:
        if output.suffix.lower() == ".png":
            written = write_pictures(maps, output)
        else:
            save(maps, output, failures)
            written = [output]
        print("\n".join(f"wrote {path}" for path in written))
    return 1 if failures else 0


def write_pictures(maps: SaliencyMaps, output: Path) -> list[Path]:
    """Draw maps as PNG, about a dozen rows a page: out.png, out-2.png …; give the files written."""
    written = []
    for page, (images, methods) in enumerate(_pages(maps), start=1):
        path = output if page == 1 else output.with_stem(f"{output.stem}-{page}")
        drawing = maps.plot(images, methods=methods)
        try:
            drawing.savefig(path, dpi=90)
        except OSError as error:
            raise GradlightError(f"{path}: the picture cannot be written: {error.strerror or error}.") from error
        written.append(path)
    return written


def _pages(maps: SaliencyMaps) -> Iterator[tuple[range, list[str]]]:
    """Divide maps into pages: several images with all methods, or one image with as many methods as a page holds."""
    targets, methods = len(maps.targets[0]), maps.methods
    together = max(1, min(len(methods), MOST_PANELS // (targets * (len(maps.layers) + 1))))
    step = max(1, _ROWS_A_PAGE // (targets * together)) if together == len(methods) else 1
    for start in range(0, len(maps), step):
        for first in range(0, len(methods), together):
            yield range(start, min(start + step, len(maps))), methods[first : first + together]


def readable(images: list[Path]) -> tuple[list[Path], list[tuple[str, str]]]:
    """Sort photos, and those of folders, into what can be read and what cannot, with the reason, which is told.

    Raises GradlightError when none can be read.
    """
    good, failures = [], []
    for path in (found for given in images for found in (pictures.find(given) if given.is_dir() else [given])):
        try:
            pictures.load(path)
            good.append(path)
        except GradlightError as error:
            failures.append((str(path), str(error)))
    if not good and not failures:
        raise GradlightError(f"No image was found in {', '.join(map(str, images))}.")
    if not good:
        raise GradlightError(f"None of {len(failures)} images can be read. The first: {failures[0][1]}")
    for _, reason in failures:
        notice(f"left out: {reason}")
    return good, failures


def open_model(source: Source) -> Classifier:
    """Make the classifier that the options name."""
    name, checkpoint, pretrained, labels, device = source
    return classifier(
        name,
        pretrained=pretrained and checkpoint is None,
        checkpoint=checkpoint,
        labels=None if labels is None else _read_labels(labels),
        device=device,
    )


def _read_labels(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if path.suffix.lower() == ".json" else [line.strip() for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise GradlightError(f"{path}: the labels cannot be read: {error}.") from error
    if not isinstance(found, list) or not all(isinstance(label, str) and label for label in found):
        raise GradlightError(f"{path}: labels are one name a line, or a JSON list of names.")
    return found


def _number(text: str) -> int | str:
    return int(text) if text.removeprefix("-").isdecimal() else text


def _listed(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _parse_meta(text: str | None) -> Meta | None:
    """Read "0.002", "descent:0.002" or "ascent:0.002"."""
    if text is None:
        return None
    direction, colon, rate = text.rpartition(":")
    try:
        return Meta(float(rate), direction if colon else "descent")
    except ValueError as error:
        if isinstance(error, GradlightError):
            raise
        raise GradlightError(f"--meta takes LR, descent:LR or ascent:LR, such as 0.002; {text!r} was given.") from error


def _parse_combine(text: str | None) -> tuple[str, str] | None:
    """Read "product:linear", and check it before any work is done."""
    if text is None:
        return None
    how, _, weights = text.partition(":")
    check_how(how)
    layer_weights(weights or "linear", ["layer"])
    return how, weights or "linear"


def train_network(what: str, out: Path, epochs: int | None, seed: int) -> None:
    """Train a bundled network and write its weights."""
    if what != "scenes":
        raise GradlightError(f"There is no training of {what!r}.{nearest(what, ['scenes'])} Known: scenes.")
    from .models.scenes import train

    options = {} if epochs is None else {"epochs": epochs}
    print(train(out, seed=seed, progress=interactive(), **options))
