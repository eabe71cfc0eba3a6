"""One batch: pixels to the maps of every method at every layer, for each image's own targets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import GradlightError, GradlightWarning
from ..models.base import Layer
from ..models.objective import Objective, Targets
from .capture import record
from .meta import Meta, moved
from .methods import Method

__all__ = ["BatchMaps", "Job"]

_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


@dataclass(frozen=True)
class BatchMaps:
    """Maps [M,h,w] by method and layer, a row for each target; the targets of each image."""

    maps: dict[tuple[str, str], Tensor]
    targets: Targets


class Job:
    """What is asked of every batch, and how many images at once the memory has been found to hold."""

    def __init__(self, layers: Sequence[Layer], methods: Sequence[Method], meta: Meta | None) -> None:
        self.layers, self.methods, self.meta = layers, methods, meta
        self.most: int | None = None

    def run(self, objective: Objective, pixels: Tensor) -> BatchMaps:
        """Explain pixels [B,3,H,W], inside `preserved`; in smaller parts, with a warning, where memory is short.

        Raises GradlightError when it is short for one image alone.
        """
        count = len(pixels)
        while True:
            step = min(count, self.most or count)
            starts = range(0, count, step)
            try:
                return _joined(
                    [self._once(objective.rows(i, min(i + step, count), count), pixels[i : i + step]) for i in starts]
                )
            except (MemoryError, RuntimeError) as error:
                self._shrink(error, step)

    def _once(self, objective: Objective, pixels: Tensor) -> BatchMaps:
        if self.meta is None:
            return _plain(objective, pixels, self.layers, self.methods)
        return _stepped(objective, pixels, self.layers, self.methods, self.meta)

    def _shrink(self, error: Exception, step: int) -> None:
        """Halve the number of images at once; raises the error again if it is not about memory."""
        if not (isinstance(error, MemoryError) or any(text in str(error).lower() for text in _NO_MEMORY)):
            raise error
        if step == 1:
            raise GradlightError(
                f"Memory does not suffice for one image with {len(self.layers)} layers ({error}). Ask for fewer layers"
                " or smaller images."
            ) from error
        self.most = step // 2
        warnings.warn(
            f"Memory does not suffice for {step} images at once; going on with {self.most}.",
            GradlightWarning,
            stacklevel=4,
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _plain(
    objective: Objective,
    pixels: Tensor,
    layers: Sequence[Layer],
    methods: Sequence[Method],
    targets: Targets | None = None,
) -> BatchMaps:
    """One forward, one backward per target, then every method at every layer from the same taps."""
    recording = record(objective, pixels, layers, targets)
    found: dict[tuple[str, str], list[Tensor]] = {(m.name, at.name): [] for m in methods for at in layers}
    for number in range(recording.scores.shape[1]):
        taps = recording.taps(number)
        for method in methods:
            for name, tap in taps.items():
                found[method.name, name].append(method(tap))
    asked = torch.tensor([len(row) for row in recording.targets])
    own = torch.arange(recording.scores.shape[1]) < asked.unsqueeze(1)
    return BatchMaps({key: torch.stack(maps, 1)[own] for key, maps in found.items()}, recording.targets)


def _stepped(
    objective: Objective, pixels: Tensor, layers: Sequence[Layer], methods: Sequence[Method], meta: Meta
) -> BatchMaps:
    """The same at θ', whose step is taken for each image and target alone, with the target chosen at θ."""
    with torch.no_grad():
        targets = objective.choose(objective.outputs(pixels.detach().clone()))
    rows: list[BatchMaps] = []
    for image, row in zip(pixels.split(1), targets, strict=True):
        for target in row:
            with moved(objective, image, target, meta):
                rows.append(_plain(objective, image, layers, methods, [[target]]))
    return BatchMaps(_joined(rows).maps, targets)


def _joined(parts: Sequence[BatchMaps]) -> BatchMaps:
    maps = {key: torch.cat([part.maps[key] for part in parts]) for key in parts[0].maps}
    return BatchMaps(maps, [row for part in parts for row in part.targets])
