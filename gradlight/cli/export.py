"""What `export` and `merge` do, once there is work to do."""

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
from .console import interactive
from .explain import ExplainOptions, parse_combine, parse_meta, split_list
from .open_model import ModelOptions, open_model

__all__ = ["ExportJob", "Ways", "merge_files", "run"]

_LOGS: dict[str, Callable[[], Reporter]] = {"bar": lambda: Bar(interactive()), "json": JsonLines}


@dataclass(frozen=True)
class ExportJob:
    """The options of `export` about its source and its output, as they were typed."""

    source: str
    annotations: Path | None
    split: str | None
    kind: str | None
    output: Path
    size: str | None
    dtype: str
    compression: str


@dataclass(frozen=True)
class Ways:
    """The options of `export` that make no difference to the maps, as they were typed."""

    manner: ExportOptions
    workers: int
    engine: str
    address: str | None
    gpus: float
    log: str


def run(job: ExportJob, source: ModelOptions, asked: ExplainOptions, ways: Ways) -> int:
    """Export a data set and say what was written; give the exit status."""
    if ways.log not in _LOGS:
        raise GradlightError(f"--log is bar or json, not {ways.log!r}.{nearest(ways.log, _LOGS)}")
    reporter = _LOGS[ways.log]()
    settings = ExportSettings(
        target=None if asked.target is None else tuple(asked.target),
        methods=tuple(split_list(asked.methods)),
        layers=tuple(split_list(asked.layers)),
        words=asked.words,
        combine=parse_combine(asked.combine),
        meta=parse_meta(asked.meta),
        batch_size=asked.batch_size or ExportSettings.batch_size,
        size=_size(job.size),
        dtype=job.dtype,
        compression=job.compression,
        precision=asked.precision,
    )
    make = partial(open_model, source, asked.words or job.kind == "captions")
    with _told(reporter):
        outcome = export(
            make,
            partial(_find, job=job, own=settings.target is None, reporter=reporter),
            job.output,
            settings,
            ways.manner,
            engine=_engine(ways),
            reporter=reporter,
        )
    print(f"wrote {outcome.output}: {outcome.images} images, {outcome.failures} failures")
    return 1 if outcome.failures else 0


def _find(model: Explainable, *, job: ExportJob, own: bool, reporter: Reporter) -> ImageList:
    """Find the images; their own targets count where none is asked of all."""
    labels = None if isinstance(model, Captioner) else model.labels
    found = find_items(
        job.source, annotations=job.annotations, split=job.split, labels=labels, kind=job.kind, targets=own
    )
    for note in found.notes:
        reporter.note(note)
    return found


def _engine(ways: Ways) -> Engine:
    if ways.engine == "ray":
        from ..export.ray_engine import Ray

        return Ray(ways.workers, ways.address, ways.gpus)
    if ways.engine != "local":
        raise GradlightError(f"--engine is local or ray, not {ways.engine!r}.{nearest(ways.engine, ('local', 'ray'))}")
    if ways.address is not None or ways.gpus:
        raise GradlightError("--address and --gpus are of the engine ray; add --engine ray.")
    return InProcess() if ways.workers == 1 else WorkerProcesses(ways.workers)


@contextmanager
def _told(reporter: Reporter) -> Iterator[None]:
    """Tell warnings as notes, each once, so that they do not break a bar or a line of JSON."""
    told: set[str] = set()

    def tell(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if str(message) not in told and issubclass(category, GradlightWarning):
            told.add(str(message))
            reporter.note(str(message))

    with warnings.catch_warnings():
        warnings.simplefilter("always", GradlightWarning)
        warnings.showwarning = tell
        yield


def _size(text: str | None) -> tuple[int, int] | None:
    """Read "224" or "240x320" (height x width)."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,5})(?:[x×](\d{1,5}))?", text.strip())
    if found is None:
        raise GradlightError(f"--size takes a side, such as 224, or HEIGHTxWIDTH; {text!r} was given.")
    return int(found[1]), int(found[2] or found[1])


def merge_files(files: list[Path], output: Path, copy: bool, overwrite: bool) -> None:
    """Join files of maps, in the order given."""
    if output.resolve() in [path.resolve() for path in files]:
        raise GradlightError(f"{output}: one of the files to join has this name. Choose another name.")
    join = copy_into if copy else write_index
    join(output, files, overwrite=overwrite)
    print(f"wrote {output}: {len(files)} files joined{'' if copy else '; it needs them where they are'}")
