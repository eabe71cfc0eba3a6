"""What `explain` of the command line does, once there is work to do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..data.hdf5.writer import destination
from ..errors import GradlightError
from ..explainers.archive import save
from ..explainers.combination import check_how, check_weights
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.plotting import MOST_PANELS, rows_of
from ..explainers.precision import Precision
from ..models.base import Explainable
from .console import interactive
from .open_model import ModelOptions, open_model, readable

__all__ = [
    "ExplainOptions",
    "explain_images",
    "numbered",
    "parse_combine",
    "parse_meta",
    "split_list",
    "write_pictures",
]

_ROWS_A_PAGE = 12


@dataclass(frozen=True)
class ExplainOptions:
    """What the options of `explain` ask for, as they were typed."""

    target: list[str] | None
    methods: str
    layers: str
    combine: str | None
    meta: str | None
    batch_size: int | None
    words: bool = False
    precision: str | None = None


def explain_images(images: list[Path], outputs: list[Path], source: ModelOptions, asked: ExplainOptions) -> int:
    """Explain photos and write every output; give the exit status. Photos that cannot be read are left out and told.

    The words of captions are explained photo by photo, since each has its own number of them: out.h5, out-2.h5 …
    """
    for output in outputs:
        if output.suffix.lower() not in (".png", ".h5", ".hdf5"):
            raise GradlightError(f"{output}: maps are written as a picture (.png) or as HDF5 (.h5); name one of these.")
        if output.suffix.lower() != ".png":
            destination(output)
        elif not output.absolute().parent.is_dir():
            raise GradlightError(f"{output}: the folder {output.absolute().parent} does not exist. Create it first.")
    parse_meta(asked.meta)
    parse_combine(asked.combine)
    Precision(asked.precision)
    good, failures = readable(images)
    model = open_model(source, asked.words)
    groups = [[path] for path in good] if asked.words else [good]
    for number, group in enumerate(groups, start=1):
        maps = _explained(model, group, asked)
        for output in outputs:
            written = _write(maps, numbered(output, number), failures)
            print("\n".join(f"wrote {path}" for path in written))
    return 1 if failures else 0


def _explained(model: Explainable, images: list[Path], asked: ExplainOptions) -> SaliencyMaps:
    maps = explain(
        model,
        images,
        None if asked.target is None else [list(asked.target)],
        methods=split_list(asked.methods),
        layers=split_list(asked.layers),
        words=asked.words,
        meta=parse_meta(asked.meta),
        batch_size=asked.batch_size,
        progress=interactive(),
        precision=asked.precision,
    )
    combine = parse_combine(asked.combine)
    return maps.joined(maps.combine(how=combine[0], weights=combine[1])) if combine else maps


def _write(maps: SaliencyMaps, output: Path, failures: list[tuple[str, str]]) -> list[Path]:
    if output.suffix.lower() == ".png":
        return write_pictures(maps, output)
    save(maps, output, failures)
    return [output]


def numbered(path: Path, number: int) -> Path:
    """Name the file of a number: out.png, out-2.png, out-3.png …"""
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def write_pictures(maps: SaliencyMaps, output: Path) -> list[Path]:
    """Draw maps as PNG, about a dozen rows a page: out.png, out-2.png …; give the files written."""
    written = []
    for page, (images, methods) in enumerate(_pages(maps), start=1):
        path = numbered(output, page)
        drawing = maps.plot(images, methods=methods)
        try:
            drawing.savefig(path, dpi=90)
        except OSError as error:
            raise GradlightError(f"{path}: the picture cannot be written: {error.strerror or error}.") from error
        written.append(path)
    return written


def _pages(maps: SaliencyMaps) -> Iterator[tuple[range, list[str]]]:
    """Divide maps into pages: several images with all methods, or one image with as many methods as a page holds."""
    rows, columns = rows_of(maps, 0), 1 + max(len(maps.layers), len(maps.targets[0]))
    methods = maps.methods
    together = max(1, min(len(methods), MOST_PANELS // (rows * columns)))
    step = max(1, _ROWS_A_PAGE // (rows * together)) if together == len(methods) else 1
    for start in range(0, len(maps), step):
        for first in range(0, len(methods), together):
            yield range(start, min(start + step, len(maps))), methods[first : first + together]


def split_list(text: str) -> list[str]:
    """Read names with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def parse_meta(text: str | None) -> Meta | None:
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


def parse_combine(text: str | None) -> tuple[str, str] | None:
    """Read "product:linear", and check it before any work is done."""
    if text is None:
        return None
    how, _, weights = text.partition(":")
    check_how(how)
    check_weights(weights or "linear")
    return how, weights or "linear"
