"""A whole data set to one output: begun, gone on with after any stop, and finished."""

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
from .folder import ShardFolder, held
from .lists import ImageList
from .local import Engine, Here
from .plan import ExportSettings, Plan, shard_size
from .progress import Bar, BatchReport, Reporter, stop_signals
from .worker import ShardTask

__all__ = ["ExportOptions", "Outcome", "UnfinishedError", "export"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class UnfinishedError(GradlightError):
    """An export that stopped on the way; what it did is kept."""

    exit_status = 1


@dataclass(frozen=True)
class Outcome:
    """What a finished export has made."""

    output: Path
    images: int
    failures: int


@dataclass(frozen=True)
class ExportOptions:
    """How an export is done, which makes no difference to its maps.

    resume: go on with an unfinished one. overwrite: begin anew, whatever is there. single: one file, without shards
    beside it. readers: processes that read photos ahead of the network. images_a_shard: 200 unless given.
    """

    resume: bool = False
    overwrite: bool = False
    single: bool = False
    readers: int = 1
    images_a_shard: int | None = None


def export(
    make: Callable[[], Explainable],
    find: Callable[[Explainable], ImageList],
    output: str | Path,
    settings: ExportSettings,
    manner: ExportOptions,
    *,
    engine: Engine | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Explain every image of a source into one HDF5 output, which appears under its name only when it is whole.

    make gives the model; find its images and targets. Work is kept in shards beside the output as it goes. Images that
    cannot be read or explained become rows of /failures. Raises UnfinishedError when it is stopped by Ctrl-C, SIGTERM
    or an error after some work was kept; GradlightError for what cannot be begun, for an output that is another's or
    finished, and for other parameters than those of the export that is to be resumed.
    """
    target = _target(output, manner)
    folder, reporter = ShardFolder(target), reporter or Bar(shown=False)
    if (finished := _finished_before(target, folder, manner)) is not None:
        reporter.note(f"{target} is finished already.")
        return finished
    model = make()
    _ = model.labels  # a network that has not said how many classes it has is run once
    source = find(model)
    BatchExplainer(model, settings).empty()  # refuses layers and targets that are not to be had
    _make_folder(folder)
    try:
        with held(folder.path):
            plan = _begun(model, source, folder, settings, manner)
            task = ShardTask(make, settings, target, manner.readers)
            _work(task, plan, model, engine or Here(), reporter)
            outcome = _finish(plan, folder, manner)
    finally:
        folder.leave()
    return outcome


def _target(output: str | Path, manner: ExportOptions) -> Path:
    path = Path(output)
    if path.suffix.lower() not in (".h5", ".hdf5"):
        raise GradlightError(f"{path}: maps are written as HDF5; name a file that ends in .h5.")
    if manner.resume and manner.overwrite:
        raise GradlightError("--resume goes on with an export and --overwrite begins it anew; ask for one of them.")
    return destination(path, overwrite=manner.overwrite)


def _finished_before(target: Path, folder: ShardFolder, manner: ExportOptions) -> Outcome | None:
    """Look at an output that is there: finished, with --resume; otherwise it is only replaced when that was asked."""
    if not target.exists() or manner.overwrite:
        return None
    if not manner.resume:
        raise GradlightError(f"{target}: there are maps under this name already. --overwrite replaces them.")
    return _outcome(target) if folder.record() is None else None


def _make_folder(folder: ShardFolder) -> None:
    try:
        folder.path.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{folder.path}: the folder of the shards cannot be made ({error.strerror}).") from error


def _begun(
    model: Explainable, source: ImageList, folder: ShardFolder, settings: ExportSettings, manner: ExportOptions
) -> Plan:
    """Begin an export, or find that it is the one that was begun before."""
    if not source.items:
        first = f" The first: {source.failures[0][1]}" if source.failures else ""
        raise GradlightError(f"There is no image to explain.{first}")
    count = shard_size(model, settings, manner.images_a_shard)
    plan = Plan(tuple(source.items), settings, count, tuple(source.failures))
    record, before = plan.record(model), folder.record()
    if manner.overwrite:
        folder.clear()
    elif before is not None and folder.holds_work():
        _check_same(before, record, folder, manner)
    folder.sweep()
    folder.begin(record)
    return plan


def _check_same(before: dict[str, Any], record: dict[str, Any], folder: ShardFolder, manner: ExportOptions) -> None:
    if not manner.resume:
        raise GradlightError(
            f"{folder.path}: an unfinished export is there. --resume goes on with it, --overwrite begins anew."
        )
    names = [name for name in {**before, **record} if before.get(name) != record.get(name)]
    if names:
        differences = "; ".join(f"{name} was {before.get(name)!r} and is {record.get(name)!r}" for name in names)
        raise GradlightError(
            f"The unfinished export was begun otherwise: {differences}. Resume it as it was begun, or begin anew with"
            " --overwrite."
        )


def _work(task: ShardTask, plan: Plan, model: Explainable, engine: Engine, reporter: Reporter) -> None:
    folder = ShardFolder(task.output)
    done = folder.finished(plan.shards)
    reporter.begin(len(plan.items), sum(plan.shard(number).images for number in done))
    if 0 not in done and plan.failures:
        reporter.batch(BatchReport(0, plan.failures))
    todo = [plan.shard(number) for number in range(plan.shards) if number not in done]
    reason = "Stopped"
    try:
        with stop_signals(_SIGNALS) as stop:
            engine.run(task, model, todo, stop, reporter)
    except GradlightError as error:
        if not folder.holds_work():
            raise
        reason = str(error)
    finally:
        reporter.end()
    left = plan.shards - len(folder.finished(plan.shards))
    if left:
        raise UnfinishedError(
            f"{reason.rstrip('.')}. {plan.shards - left} of {plan.shards} shards are finished, and what is done is kept"
            f" in {folder.path}. Go on with the same command and --resume."
        )


def _finish(plan: Plan, folder: ShardFolder, manner: ExportOptions) -> Outcome:
    """Make the output of the finished shards: an index over them, or one file that holds everything."""
    shards = [folder.shard(number) for number in range(plan.shards)]
    counts = []
    for path in shards:
        with MapsFile(path) as file:
            counts.append((len(file.images), len(file.failures)))
    images, failed = (sum(column) for column in zip(*counts, strict=True))
    if images == 0:
        with MapsFile(shards[0]) as file:
            reason = file.failures[0][1]
        folder.clear()
        raise GradlightError(f"None of {failed} images can be explained. The first: {reason}")
    if len(shards) == 1:
        folder.publish(0)
    elif manner.single:
        copy_into(folder.output, shards, compression=plan.settings.compression, overwrite=manner.overwrite)
        folder.clear()
    else:
        write_index(folder.output, shards, overwrite=manner.overwrite)
        folder.end()
    return Outcome(folder.output, images, failed)


def _outcome(target: Path) -> Outcome:
    with MapsFile(target) as file:
        return Outcome(target, len(file.images), len(file.failures))
