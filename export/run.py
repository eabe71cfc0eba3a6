"""The export of a whole data set to one output: begin, resume after any stop, and finish."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.hdf5.reader import MapsFile
from ..data.hdf5.shards import copy_into, write_index
from ..data.hdf5.writer import destination
from ..errors import GradlightError
from ..models.base import Explainable
from .explaining import BatchExplainer
from .folder import ShardFolder, locked
from .lists import ImageList
from .local import Engine, InProcess
from .plan import ExportSettings, Plan, shard_size
from .progress import Bar, BatchReport, Reporter, stop_signals
from .worker import ShardTask

__all__ = ["ExportOptions", "Outcome", "UnfinishedError", "export"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class UnfinishedError(GradlightError):
    """An export was stopped before its end; its finished work is kept."""

    exit_status = 1


@dataclass(frozen=True)
class Outcome:
    """A finished export.

    Args:
        output: The file.
        images: Explained images.
        failures: Images that failed.
    """

    output: Path
    images: int
    failures: int


@dataclass(frozen=True)
class ExportOptions:
    """How an export runs; the maps do not depend on it.

    Args:
        resume: Go on with an unfinished export.
        overwrite: Begin again, and replace existing files.
        single: One file, without shards beside it.
        readers: Processes that read photos ahead of the network.
        images_per_shard: 200, or fewer if maps are large, unless given.
    """

    resume: bool = False
    overwrite: bool = False
    single: bool = False
    readers: int = 1
    images_per_shard: int | None = None


def export(
    make: Callable[[], Explainable],
    find: Callable[[Explainable], ImageList],
    output: str | Path,
    settings: ExportSettings,
    options: ExportOptions,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Explain every image of a source into one HDF5 output, which gets its name only when it is complete.

    Work is kept in shards beside the output as it is done. Images that cannot be read or explained become rows of
    /failures.

    Args:
        make: Makes the model.
        find: Finds the images and their targets.
        output: The file, .h5 or .hdf5.
        settings: How images are explained.
        options: How the export runs.
        engine: Makes the shards; in this process unless given.
        reporter: Receives the progress.

    Returns:
        The output with the numbers of its images and failures.

    Raises:
        UnfinishedError: The export was stopped by Ctrl-C, SIGTERM or an error after some work was kept.
        GradlightError: The export cannot begin, the output exists, or the parameters differ from those of the export to
            resume.
    """
    path = _check_output(output, options)
    folder, reporter = ShardFolder(path), reporter or Bar(shown=False)
    if (outcome := _finished_before(path, folder, options)) is not None:
        reporter.note(f"{path} is finished already.")
        return outcome
    model = make()
    _ = model.labels  # a network whose number of classes is unknown is run once
    images = find(model)
    _check_settings(model, settings)
    _make_folder(folder)
    try:
        with locked(folder.path):
            plan = _begin(model, images, folder, settings, options)
            task = ShardTask(make, settings, path, options.readers)
            _make_shards(task, plan, model, engine or InProcess(), reporter)
            outcome = _finish(plan, folder, options)
    finally:
        folder.remove_if_unused()
    return outcome


def _check_output(output: str | Path, options: ExportOptions) -> Path:
    path = Path(output)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise GradlightError(f"{path}: maps are written as HDF5; name a file that ends in .h5.")
    if options.resume and options.overwrite:
        raise GradlightError("--resume goes on with an export and --overwrite begins it again; ask for one of them.")
    return destination(path, overwrite=options.overwrite)


def _finished_before(path: Path, folder: ShardFolder, options: ExportOptions) -> Outcome | None:
    """Give the outcome of a finished export that is resumed; an existing output is replaced only by --overwrite."""
    if not path.exists() or options.overwrite:
        return None
    if not options.resume:
        raise GradlightError(f"{path}: there are maps under this name already. --overwrite replaces them.")
    if folder.record() is not None:
        return None
    with MapsFile(path) as file:
        return Outcome(path, len(file.images), len(file.failures))


def _check_settings(model: Explainable, settings: ExportSettings) -> None:
    """Raise the errors of unknown layers and targets before any work."""
    BatchExplainer(model, settings).empty()


def _make_folder(folder: ShardFolder) -> None:
    try:
        folder.path.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(
            f"{folder.path}: the folder of the shards cannot be created ({error.strerror})."
        ) from error


def _begin(
    model: Explainable, images: ImageList, folder: ShardFolder, settings: ExportSettings, options: ExportOptions
) -> Plan:
    """Begin an export, or check that it is the one that was begun before."""
    if not images.items:
        first = f" The first: {images.failures[0][1]}" if images.failures else ""
        raise GradlightError(f"There is no image to explain.{first}")
    count = shard_size(model, settings, options.images_per_shard)
    plan = Plan(tuple(images.items), settings, count, tuple(images.failures))
    record, previous = plan.record(model), folder.record()
    if options.overwrite:
        folder.clear()
    elif previous is not None and folder.has_shards():
        _check_record(previous, record, folder, options)
    folder.remove_temporary_files()
    folder.begin(record)
    return plan


def _check_record(
    previous: dict[str, Any], record: dict[str, Any], folder: ShardFolder, options: ExportOptions
) -> None:
    if not options.resume:
        raise GradlightError(
            f"{folder.path}: an unfinished export is there. --resume goes on with it, --overwrite begins again."
        )
    names = [name for name in {**previous, **record} if previous.get(name) != record.get(name)]
    if names:
        differences = "; ".join(f"{name} was {previous.get(name)!r} and is {record.get(name)!r}" for name in names)
        raise GradlightError(
            f"The unfinished export has other parameters: {differences}. Resume it with the same parameters, or begin"
            " again with --overwrite."
        )


def _make_shards(task: ShardTask, plan: Plan, model: Explainable, engine: Engine, reporter: Reporter) -> None:
    """Make the shards that are not finished yet."""
    folder = ShardFolder(task.output)
    finished = folder.finished(plan.shards)
    reporter.begin(len(plan.items), sum(plan.shard(number).images for number in finished))
    if 0 not in finished and plan.failures:
        reporter.batch(BatchReport(0, plan.failures))
    todo = [plan.shard(number) for number in range(plan.shards) if number not in finished]
    reason = "Stopped"
    try:
        with stop_signals(_SIGNALS) as stop:
            engine.run(task, model, todo, stop, reporter)
    except GradlightError as error:
        if not folder.has_shards():
            raise
        reason = str(error)
    finally:
        reporter.end()
    unfinished = plan.shards - len(folder.finished(plan.shards))
    if unfinished:
        raise UnfinishedError(
            f"{reason.rstrip('.')}. {plan.shards - unfinished} of {plan.shards} shards are finished, and all finished"
            f" work is kept in {folder.path}. Go on with the same command and --resume."
        )


def _finish(plan: Plan, folder: ShardFolder, options: ExportOptions) -> Outcome:
    """Make the output from the finished shards: an index of them, or one file."""
    shards = [folder.shard(number) for number in range(plan.shards)]
    counts = []
    for path in shards:
        with MapsFile(path) as file:
            counts.append((len(file.images), len(file.failures)))
    images, failures = (sum(column) for column in zip(*counts, strict=True))
    if images == 0:
        with MapsFile(shards[0]) as file:
            reason = file.failures[0][1]
        folder.clear()
        raise GradlightError(f"None of {failures} images can be explained. The first: {reason}")
    if len(shards) == 1:
        folder.publish(0)
    elif options.single:
        copy_into(folder.output, shards, compression=plan.settings.compression, overwrite=options.overwrite)
        folder.clear()
    else:
        write_index(folder.output, shards, overwrite=options.overwrite)
        folder.end()
    return Outcome(folder.output, images, failures)
