"""Commands `export` and `merge`: from the options to an export of a data set; joining files of maps."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..data.hdf5.shards import copy_into, write_index
from ..errors import GradlightError, GradlightWarning, nearest
from ..export.lists import ImageList
from ..export.local import Engine, InProcess, WorkerProcesses
from ..export.plan import ExportSettings
from ..export.progress import Bar, JsonLines, Reporter
from ..export.run import ExportOptions, export
from ..export.sources import find_items
from ..models.base import Explainable
from ..models.captioner import Captioner
from .console import is_interactive
from .explain import ExplainOptions, parse_combine, parse_meta, split_list
from .open_model import ModelOptions, open_model

__all__ = ["DatasetOptions", "ExecutionOptions", "export_dataset", "merge_files"]

_REPORTERS: dict[str, Callable[[], Reporter]] = {"bar": lambda: Bar(is_interactive()), "json": JsonLines}


@dataclass(frozen=True)
class DatasetOptions:
    """The options of `export` about its source and its output, as strings of the command line."""

    source: str
    annotations: Path | None
    split: str | None
    kind: str | None
    output: Path
    size: str | None
    dtype: str
    compression: str


@dataclass(frozen=True)
class ExecutionOptions:
    """The options of `export` that do not change the maps: resuming, processes, engine, progress."""

    run: ExportOptions
    workers: int
    engine: str
    address: str | None
    gpus: float
    log: str


def export_dataset(
    dataset: DatasetOptions, model_options: ModelOptions, options: ExplainOptions, execution: ExecutionOptions
) -> int:
    """Export the maps of a data set and print what was written.

    Args:
        dataset: the source of the images, and the output.
        model_options: the options that name the model.
        options: the options that decide which maps are made.
        execution: the options that do not change the maps.

    Returns:
        The exit status: 1 if some images failed, else 0.

    Raises:
        GradlightError: an option is wrong, or the export was stopped.
    """
    if execution.log not in _REPORTERS:
        raise GradlightError(f"--log must be bar or json, not {execution.log!r}.{nearest(execution.log, _REPORTERS)}")
    reporter = _REPORTERS[execution.log]()
    settings = ExportSettings(
        target=None if options.target is None else tuple(options.target),
        methods=tuple(split_list(options.methods)),
        layers=tuple(split_list(options.layers)),
        words=options.words,
        combine=parse_combine(options.combine),
        meta=parse_meta(options.meta),
        batch_size=options.batch_size or ExportSettings.batch_size,
        size=_parse_size(dataset.size),
        dtype=dataset.dtype,
        compression=dataset.compression,
        precision=options.precision,
    )
    make_model = partial(open_model, model_options, options.words or dataset.kind == "captions")
    with _warnings_as_notes(reporter):
        outcome = export(
            make_model,
            partial(_list_images, dataset=dataset, own_targets=settings.target is None, reporter=reporter),
            dataset.output,
            settings,
            execution.run,
            engine=_make_engine(execution),
            reporter=reporter,
        )
    print(f"wrote {outcome.output}: {outcome.images} images, {outcome.failures} failures")
    return 1 if outcome.failures else 0


def _list_images(model: Explainable, *, dataset: DatasetOptions, own_targets: bool, reporter: Reporter) -> ImageList:
    """List the images of the source; with own_targets also the targets that the source contains."""
    labels = None if isinstance(model, Captioner) else model.labels
    image_list = find_items(
        dataset.source,
        annotations=dataset.annotations,
        split=dataset.split,
        labels=labels,
        kind=dataset.kind,
        targets=own_targets,
    )
    for note in image_list.notes:
        reporter.note(note)
    return image_list


def _make_engine(execution: ExecutionOptions) -> Engine:
    """Make the engine that the options name."""
    if execution.engine == "ray":
        from ..export.ray_engine import Ray

        return Ray(execution.workers, execution.address, execution.gpus)
    if execution.engine != "local":
        suggestion = nearest(execution.engine, ("local", "ray"))
        raise GradlightError(f"--engine must be local or ray, not {execution.engine!r}.{suggestion}")
    if execution.address is not None or execution.gpus:
        raise GradlightError("--address and --gpus are options of the engine ray; add --engine ray.")
    return InProcess() if execution.workers == 1 else WorkerProcesses(execution.workers)


@contextmanager
def _warnings_as_notes(reporter: Reporter) -> Iterator[None]:
    """Report each warning once as a note, so that it does not break a progress bar or a line of JSON."""
    reported: set[str] = set()

    def report(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if str(message) not in reported and issubclass(category, GradlightWarning):
            reported.add(str(message))
            reporter.note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", GradlightWarning)
        warnings.showwarning = report
        yield


def _parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse "224" or "240x320" (height x width)."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip())
    if match is None:
        raise GradlightError(f"--size must be one side, such as 224, or HEIGHTxWIDTH; it is {text!r}.")
    return int(match[1]), int(match[2] or match[1])


def merge_files(files: list[Path], output: Path, copy: bool, overwrite: bool) -> None:
    """Join files of maps, in the given order.

    Args:
        files: HDF5 files of maps.
        output: the file to write.
        copy: copy all maps into the output instead of writing an index over the files.
        overwrite: replace an existing output.

    Raises:
        GradlightError: the output is one of the files, exists, or the files do not fit together.
    """
    if output.resolve() in [path.resolve() for path in files]:
        raise GradlightError(f"{output}: one of the files to join has this name. Choose another name.")
    join = copy_into if copy else write_index
    join(output, files, overwrite=overwrite)
    print(f"wrote {output}: {len(files)} files joined{'' if copy else '; it needs them where they are'}")
