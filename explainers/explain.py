"""The road: photos and a model to exact maps, in five steps."""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import GradlightError, GradlightWarning
from ..models.base import Explainable, Layer, Photo, as_list
from ..models.objective import Objective, Target, Targets
from ..models.preserve import preserved
from .capture import record
from .choice import choose_layers
from .maps import MapLayer, Origin, SaliencyMaps
from .meta import Meta, moved
from .methods import Method, MethodLike, methods_of

__all__ = ["explain"]

Maps = dict[tuple[str, str], Tensor]

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
    progress: bool = False,
) -> SaliencyMaps:
    """Explain what a model says of images: one map per image, target, method and layer.

    images: a path, Pillow image, HWC uint8 array, or a list of them; or a tensor of pixels [B,3,H,W].
    target: index, label, "top", "top5", "min"; one for all images or a list with one entry per image, and an entry
    that is itself a list asks several targets of its image. None: what the network itself says. For a captioner a
    text is that caption; words=True, or `caption.words` as the target, gives one map for each word of it.
    methods: published names, "EXTRACT+AGGREGATE", or Method. layers: "stages", "all", "input", names, globs.
    meta: take the paper's inner step first, for each image and target alone. batch_size: images per pass, 8 unless
    given. The maps are raw: [B,K,h,w], never normalised, never resized. The network is left bit for bit as it was.
    Raises GradlightError for a target, method, layer or image that is not to be had. (Paper: algorithm 1, section 4.4.)
    """
    _check_meta(meta)
    chosen, given = methods_of(methods), as_list(images)
    total = len(given)
    if total == 0:
        raise GradlightError("There is no image to explain: the list is empty.")
    objective = model.word_objective(target) if words else model.objective(target)
    objective.rows(0, total, total)
    batches = _batches(model, given, _checked(batch_size))
    parts: list[Maps] = []
    photos: list[Photo] = []
    targets: list[Sequence[Target]] = []
    with tqdm(total=total, unit="image", disable=not progress) as bar, closing(batches), preserved(model.network):
        for pixels, read in batches:
            size = (pixels.shape[2], pixels.shape[3])
            places = choose_layers(model, layers, size)
            rows = objective.rows(len(photos), len(photos) + len(read), total)
            maps, fixed = (
                _plain(rows, pixels, places, chosen) if meta is None else _meta(rows, pixels, places, chosen, meta)
            )
            parts.append(maps)
            photos.extend(read)
            targets.extend(fixed)
            bar.update(len(read))
    _check_even(targets)
    _warn_of(targets)
    step = None if meta is None else meta.describe()
    origin = Origin(model.describe(), model.weights_sha256(), objective.describe(), step)
    joined = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    about = {place.name: MapLayer(place.depth, place.stride) for place in places}
    return SaliencyMaps(joined, about, photos, targets, size, origin)


def _check_meta(meta: Meta | None) -> None:
    if meta is not None and not isinstance(meta, Meta):
        raise GradlightError(f"meta={meta!r} is no meta step; give gradlight.Meta(lr=0.002, direction='descent').")


def _check_even(targets: Sequence[Sequence[Target]]) -> None:
    counts = {len(row) for row in targets}
    if len(counts) > 1:
        raise GradlightError(
            f"The images have {min(counts)} to {max(counts)} targets each (captions of {min(counts)} to {max(counts)}"
            " words?), and the maps of one call are [images, targets, h, w]. Explain one image a call."
        )


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


def _batches(model: Explainable, images: Any, count: int) -> Generator[tuple[Tensor, list[Photo]], None, None]:
    """Step 1: photos to pixels, a batch at a time."""
    shape: torch.Size | None = None
    for start in range(0, len(images), count):
        pixels, photos = model.read(images[start : start + count])
        if shape not in (None, pixels.shape[1:]):
            raise GradlightError(
                f"The preprocessing makes pixels of different sizes, {list(shape or ())} and {list(pixels.shape[1:])};"
                " the maps of one call must fit together. Explain photos of different sizes in calls of their own."
            )
        shape = pixels.shape[1:]
        yield pixels, photos


def _plain(
    objective: Objective,
    pixels: Tensor,
    layers: Sequence[Layer],
    methods: Sequence[Method],
    targets: Targets | None = None,
) -> tuple[Maps, Targets]:
    """Steps 2 to 5: one forward, one backward per target, then every method at every layer from the same taps."""
    recording = record(objective, pixels, layers, targets)
    found: dict[tuple[str, str], list[Tensor]] = {(m.name, at.name): [] for m in methods for at in layers}
    for number in range(recording.scores.shape[1]):
        taps = recording.taps(number)
        for method in methods:
            for name, tap in taps.items():
                found[method.name, name].append(method(tap))
    return {key: torch.stack(maps, 1) for key, maps in found.items()}, recording.targets


def _meta(
    objective: Objective, pixels: Tensor, layers: Sequence[Layer], methods: Sequence[Method], meta: Meta
) -> tuple[Maps, Targets]:
    """The same at θ', whose step is taken for each image and target alone, with the target chosen at θ."""
    with torch.no_grad():
        targets = objective.choose(objective.outputs(pixels.detach().clone()))
    rows: list[Maps] = []
    for image, row in zip(pixels.split(1), targets, strict=True):
        columns: list[Maps] = []
        for target in row:
            with moved(objective, image, target, meta):
                columns.append(_plain(objective, image, layers, methods, [[target]])[0])
        rows.append({key: torch.cat([column[key] for column in columns], 1) for key in columns[0]})
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}, targets
