"""Command `explain`: check the options, read the photos, explain them, and write pictures and HDF5 files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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
from .console import is_interactive
from .open_model import ModelOptions, ReadPhoto, open_model, read_photos

__all__ = [
    "ExplainOptions",
    "explain_images",
    "explain_photos",
    "numbered_path",
    "parse_combine",
    "parse_meta",
    "split_list",
    "write_pictures",
]

_ROWS_PER_PAGE = 12


@dataclass(frozen=True)
class ExplainOptions:
    """The options that decide which maps are made, as strings of the command line."""

    target: list[str] | None
    methods: str
    layers: str
    combine: str | None
    meta: str | None
    batch_size: int | None
    words: bool = False
    precision: str | None = None


def explain_images(
    images: list[Path], outputs: list[Path], model_options: ModelOptions, options: ExplainOptions
) -> int:
    """Explain photos and write every output; photos that cannot be read are left out, with a notice.

    The words of captions are explained photo by photo, since captions have different numbers of words; the files are
    numbered: out.h5, out-2.h5 …

    Args:
        images: photos, or folders of photos.
        outputs: files to write: pictures (.png) or maps (.h5, .hdf5).
        model_options: the options that name the model.
        options: the options that decide which maps are made.

    Returns:
        The exit status: 1 if some photos cannot be read, else 0.

    Raises:
        GradlightError: an option or an output is wrong, or no photo can be read.
    """
    for output in outputs:
        _check_output(output)
    parse_meta(options.meta)
    parse_combine(options.combine)
    Precision(options.precision)
    model = open_model(model_options, options.words)
    photos, failures = read_photos(images, model, keep_originals=any(map(_is_picture, outputs)))
    groups = [[photo] for photo in photos] if options.words else [photos]
    for number, group in enumerate(groups, start=1):
        maps = _explain_group(model, group, options)
        for output in outputs:
            written = _write(maps, numbered_path(output, number), failures)
            print("\n".join(f"wrote {path}" for path in written))
    return 1 if failures else 0


def _is_picture(output: Path) -> bool:
    """Return whether an output is a picture, by its suffix."""
    return output.suffix.lower() == ".png"


def _check_output(output: Path) -> None:
    """Raise GradlightError for an output of an unknown kind or one that cannot be written."""
    if output.suffix.lower() not in (".png", ".h5", ".hdf5"):
        raise GradlightError(f"{output}: maps are written as a picture (.png) or as HDF5 (.h5); name one of these.")
    if not _is_picture(output):
        destination(output)
    elif not output.absolute().parent.is_dir():
        raise GradlightError(f"{output}: the folder {output.absolute().parent} does not exist. Create it first.")


def _explain_group(model: Explainable, photos: list[ReadPhoto], options: ExplainOptions) -> SaliencyMaps:
    """Make the maps of photos as the options say, with the combination of layers if there is one."""
    maps = explain_photos(
        model,
        photos,
        None if options.target is None else [list(options.target)],
        methods=split_list(options.methods),
        layers=split_list(options.layers),
        words=options.words,
        meta=parse_meta(options.meta),
        batch_size=options.batch_size,
        progress=is_interactive(),
        precision=options.precision,
    )
    combine = parse_combine(options.combine)
    return maps.joined(maps.combine(how=combine[0], weights=combine[1])) if combine else maps


def explain_photos(model: Explainable, photos: Sequence[ReadPhoto], target: Any, **options: Any) -> SaliencyMaps:
    """Make the maps of photos that have been read, without decoding them again.

    Photos that are not in memory, or whose pixels differ in size, are explained by their paths.

    Args:
        model: the model that has read the photos.
        photos: the photos, at least one.
        target: the targets, as `gradlight.explain` accepts them.
        **options: further keyword arguments of `gradlight.explain`.

    Returns:
        The maps, with the records of the photos.
    """
    pixels = [photo.pixels for photo in photos if photo.pixels is not None]
    records = [photo.record for photo in photos if photo.record is not None]
    if len(pixels) < len(photos) or len({one.shape for one in pixels}) > 1:
        return explain(model, [photo.path for photo in photos], target, **options)
    maps = explain(model, torch.stack(pixels), target, **options)
    # Explained as pixels, the maps have records of pictures without a file.
    maps.images = records
    return maps


def _write(maps: SaliencyMaps, output: Path, failures: list[tuple[str, str]]) -> list[Path]:
    """Write maps to one output and return the files written."""
    if _is_picture(output):
        return write_pictures(maps, output)
    save(maps, output, failures)
    return [output]


def numbered_path(path: Path, number: int) -> Path:
    """Return the path of a numbered file: out.png, out-2.png, and so on.

    Example:
        >>> numbered_path(Path("out.png"), 1).name, numbered_path(Path("out.png"), 2).name
        ('out.png', 'out-2.png')
    """
    return path if number == 1 else path.with_stem(f"{path.stem}-{number}")


def write_pictures(maps: SaliencyMaps, output: Path) -> list[Path]:
    """Draw maps as PNG files with about a dozen rows each: out.png, out-2.png, and so on.

    Args:
        maps: the maps.
        output: the first file.

    Returns:
        The files written.

    Raises:
        GradlightError: a file cannot be written.
    """
    written = []
    for page, (images, methods) in enumerate(_pages(maps), start=1):
        path = numbered_path(output, page)
        figure = maps.plot(images, methods=methods)
        try:
            figure.savefig(path, dpi=90)
        except OSError as error:
            raise GradlightError(f"{path}: the picture cannot be written: {error.strerror or error}.") from error
        written.append(path)
    return written


def _pages(maps: SaliencyMaps) -> Iterator[tuple[range, list[str]]]:
    """Divide maps into pages: several images with all methods, or one image with as many methods as fit on a page."""
    rows, columns = rows_of(maps, 0), 1 + max(len(maps.layers), len(maps.targets[0]))
    methods = maps.methods
    methods_per_page = max(1, min(len(methods), MOST_PANELS // (rows * columns)))
    all_methods_fit = methods_per_page == len(methods)
    images_per_page = max(1, _ROWS_PER_PAGE // (rows * methods_per_page)) if all_methods_fit else 1
    for image in range(0, len(maps), images_per_page):
        for method in range(0, len(methods), methods_per_page):
            page_images = range(image, min(image + images_per_page, len(maps)))
            yield page_images, methods[method : method + methods_per_page]


def split_list(text: str) -> list[str]:
    """Split a comma-separated list of names.

    Example:
        >>> split_list("normgrad, grad_cam")
        ['normgrad', 'grad_cam']
    """
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_meta(text: str | None) -> Meta | None:
    """Parse the option `--meta`.

    Args:
        text: "LR", "descent:LR" or "ascent:LR"; None is no meta step.

    Returns:
        The meta step, or None.

    Raises:
        GradlightError: the text has another form.

    Example:
        >>> parse_meta("ascent:0.01").direction
        'ascent'
    """
    if text is None:
        return None
    direction, colon, rate = text.rpartition(":")
    try:
        return Meta(float(rate), direction if colon else "descent")
    except ValueError as error:
        if isinstance(error, GradlightError):
            raise
        raise GradlightError(f"--meta must be LR, descent:LR or ascent:LR, such as 0.002; it is {text!r}.") from error


def parse_combine(text: str | None) -> tuple[str, str] | None:
    """Parse and check the option `--combine`.

    Args:
        text: "HOW:WEIGHTS" or "HOW"; None is no combination.

    Returns:
        HOW and WEIGHTS ("linear" if not given), or None.

    Raises:
        GradlightError: one of them is unknown.

    Example:
        >>> parse_combine("product")
        ('product', 'linear')
    """
    if text is None:
        return None
    how, _, weights = text.partition(":")
    check_how(how)
    check_weights(weights or "linear")
    return how, weights or "linear"
