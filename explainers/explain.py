"""The road: photos and a model to exact maps, in five steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tqdm.auto import tqdm

from ..errors import GradlightError, GradlightWarning
from ..models.base import Explainable, Photo, as_list, check_model
from ..models.objective import Objective, Target
from .batch import BatchMaps, BatchRunner
from .cache import CacheLike, opened
from .layer_selection import choose_layers
from .maps import MapLayer, Origin, SaliencyMaps
from .meta import Meta
from .methods import MethodLike, methods_of
from .precision import Precision

__all__ = ["assemble", "describe_origin", "explain"]

_BATCH = 8


def explain(
    model: Explainable,
    images: Any,
    target: Any = None,
    *,
    methods: MethodLike | Iterable[MethodLike] = "selective_normgrad",
    layers: str | Iterable[str] = "stages",
    words: bool = False,
    meta: Meta | None = None,
    batch_size: int | None = None,
    cache: CacheLike = None,
    progress: bool = False,
    precision: str | None = None,
    compile: bool = False,
) -> SaliencyMaps:
    """Explain what a model says of images: one map per image, target, method and layer.

    images: a path, Pillow image, HWC uint8 array, or a list of them; or a tensor of pixels [B,3,H,W].
    target: index, label, "top", "top5", "min"; one for all images or a list with one entry per image, and an entry
    that is itself a list asks several targets of its image. None: what the network itself says. For a captioner a
    text is that caption; words=True, or `caption.words` as the target, gives one map for each word of it.
    methods: published names, "EXTRACT+AGGREGATE", or Method. layers: "stages", "all", "input", names, globs.
    meta: take the paper's inner step first, for each image and target alone. batch_size: images per pass, 8 unless
    given; fewer, with a warning, where memory is short. The maps are raw: [B,K,h,w], never normalised, never resized.
    The network is left bit for bit as it was. cache: True or a folder keeps the maps of every image and gives them
    back, bit for bit, as long as nothing that decides them has changed. precision: "bf16" runs the passes in bfloat16,
    about twice as fast where the processor has it; the statistics stay in float32. compile: let torch compile the
    statistics, seconds once, for long runs.
    Raises GradlightError for what is no model, and for a target, method, layer or image that is not to be had. (Paper:
    algorithm 1, section 4.4.)
    """
    check_model(model)
    _check_meta(meta)
    chosen, given = methods_of(methods), as_list(images)
    total = len(given)
    if total == 0:
        raise GradlightError("There is no image to explain: the list is empty.")
    objective = model.word_objective(target) if words else model.objective(target)
    objective.rows(0, total, total)
    arithmetic = Precision(precision, compile)
    count, source = _checked(batch_size), opened(cache, model, chosen, meta, arithmetic)
    parts: list[BatchMaps] = []
    photos: list[Photo] = []
    with tqdm(total=total, unit="image", disable=not progress) as bar:
        for start in range(0, total, count):
            some = given[start : start + count]
            batch = source.read(some)
            if not parts:
                size, job = batch.size, BatchRunner(choose_layers(model, layers, batch.size), chosen, meta, arithmetic)
            _check_size(size, batch.size)
            rows = objective.rows(start, start + len(some), total)
            parts.append(source.maps(some, batch, rows, job))
            photos.extend(batch.photos)
            bar.update(len(some))
    origin = describe_origin(model, objective, meta, source.weights_sha256(), precision)
    return assemble(job, parts, photos, size, origin)


def describe_origin(
    model: Explainable,
    objective: Objective,
    meta: Meta | None,
    weights: str | None = None,
    precision: str | None = None,
) -> Origin:
    """Describe what makes maps, for the files that keep them; a precision is said where one was asked for."""
    passes = {} if precision is None else {"precision": precision}
    step = None if meta is None else meta.describe()
    return Origin({**model.describe(), **passes}, weights or model.weights_sha256(), objective.describe(), step)


def assemble(
    job: BatchRunner, parts: Sequence[BatchMaps], photos: Sequence[Photo], size: tuple[int, int], origin: Origin
) -> SaliencyMaps:
    """Put the maps of batches together, in their order; size: height and width of the pixels."""
    targets = [list(row) for part in parts for row in part.targets]
    _warn_of(targets)
    joined = {key: torch.cat([part.maps[key] for part in parts]) for key in parts[0].maps}
    about = {place.name: MapLayer(place.depth, place.stride) for place in job.places.values()}
    return SaliencyMaps(joined, about, list(photos), targets, size, origin)


def _check_meta(meta: Meta | None) -> None:
    if meta is not None and not isinstance(meta, Meta):
        raise GradlightError(f"meta={meta!r} is no meta step; give gradlight.Meta(lr=0.002, direction='descent').")


def _warn_of(targets: Sequence[Sequence[Target]]) -> None:
    """Tell of scores that are not numbers: the maps of such a network say nothing."""
    odd = [target for row in targets for target in row if not math.isfinite(target.score)]
    if odd:
        first = f"the first of {odd[0].label!r} ({odd[0].score})"
        warnings.warn(
            f"{len(odd)} scores are not finite, {first}; their maps say nothing.", GradlightWarning, stacklevel=3
        )


def _checked(batch_size: int | None) -> int:
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise GradlightError(f"batch_size must be at least 1, not {batch_size!r}.")
    return batch_size or _BATCH


def _check_size(first: tuple[int, int], size: tuple[int, int]) -> None:
    if size != first:
        raise GradlightError(
            f"The preprocessing makes pixels of different sizes, {list(first)} and {list(size)}; the maps of one call"
            " must fit together. Explain photos of different sizes in calls of their own."
        )
