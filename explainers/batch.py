"""One batch: pixels to the maps of every method at every layer, for each image's own targets."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..errors import GradlightError, GradlightWarning
from ..models.base import Layer
from ..models.objective import Objective, Target, Targets
from .baselines.baseline import Baseline
from .capture import Tap, record
from .meta import Meta, meta_step
from .methods import AnyMethod, Method
from .per_sample import NotCoveredError, per_sample_meta_step
from .precision import Precision
from .statistics import Statistics
from .threads import few_threads

__all__ = ["BatchMaps", "BatchRunner"]

# Of one gradient: it, its activation and what is computed of both are at work together.
_CACHED = 2**22
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")


@dataclass(frozen=True)
class BatchMaps:
    """Maps [M,h,w] by method and layer, a row for each target; the targets of each image."""

    maps: dict[tuple[str, str], Tensor]
    targets: Targets


class BatchRunner:
    """What is asked of every batch, and how many images at once the memory has been found to hold."""

    def __init__(
        self,
        layers: Sequence[Layer],
        methods: Sequence[AnyMethod],
        meta: Meta | None,
        arithmetic: Precision | None = None,
    ) -> None:
        self.layers, self.methods, self.meta = layers, methods, meta
        self.arithmetic = arithmetic or Precision()
        self.most: int | None = None
        self._tapped = [method for method in methods if isinstance(method, Method)]
        self._baselines = [method for method in methods if isinstance(method, Baseline)]
        self._statistics = Statistics() if self.arithmetic.compile else None

    @property
    def places(self) -> dict[tuple[str, str], Layer]:
        """Every (method, layer) that maps are made for."""
        return {(method.name, at.name): at for method in self.methods for at in method.places(self.layers)}

    def run(self, objective: Objective, pixels: Tensor) -> BatchMaps:
        """Explain pixels [B,3,H,W], inside `preserved`; in smaller parts, with a warning, where memory is short.

        Raises GradlightError when it is short for one image alone.
        """
        count = len(pixels)
        pixels = self.arithmetic.lay_out(pixels, objective.trunk)
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
        with self.arithmetic.passes(pixels.device):
            if not self._tapped:
                made = BatchMaps({}, _chosen(objective, pixels))
            elif self.meta is None:
                made = self._plain(objective, pixels)
            else:
                made = self._stepped(objective, pixels, self.meta)
            maps = {**made.maps, **self._others(objective, pixels, made.targets)}
        return BatchMaps({pair: maps[pair] for pair in self.places}, made.targets)

    def _plain(self, objective: Objective, pixels: Tensor, targets: Targets | None = None) -> BatchMaps:
        """One forward, one backward per target, and every method at every layer from the same taps."""
        recording = record(objective, pixels, self.layers, targets)
        count = recording.scores.shape[1]
        found: dict[tuple[str, str], list[Tensor]] = {(m.name, at.name): [] for m in self._tapped for at in self.layers}
        for number in range(count):
            recording.visit(number, partial(self._see, found))
        return BatchMaps({key: _of_rows(maps, recording.targets) for key, maps in found.items()}, recording.targets)

    def _see(self, found: dict[tuple[str, str], list[Tensor]], tap: Tap) -> None:
        """Make every method's map of a tap, some images at a time where the batch is too large for the cache."""
        size = max(1, _CACHED * len(tap.gradient) // _bytes(tap.gradient))
        taps = [tap] if size >= len(tap.gradient) else list(tap.parts(size))
        # Nobody's autocast, neither the caller's nor our own, is for the statistics.
        with torch.autocast(tap.gradient.device.type, enabled=False):
            made = [self._maps(part) for part in taps]
        for method, *maps in zip(self._tapped, *made, strict=True):
            found[method.name, tap.layer.name].append(maps[0] if len(maps) == 1 else torch.cat(maps))

    def _maps(self, tap: Tap) -> list[Tensor]:
        with few_threads(tap.gradient):
            if self._statistics is None:
                return [method(tap) for method in self._tapped]
            self._statistics.fill(tap)
            maps = [method(tap) for method in self._tapped]
            self._statistics.learn(tap)
            return maps

    def _stepped(self, objective: Objective, pixels: Tensor, meta: Meta) -> BatchMaps:
        """The same at θ', whose step is taken for each image and target alone, with the target chosen at θ.

        First for the first target of every image, together, then for the second of those that have one …
        """
        maps, targets = self._moved(objective, pixels, None, meta)
        rows = {key: [[one] for one in values] for key, values in maps.items()}
        for turn in range(1, max(len(row) for row in targets)):
            images = [image for image, row in enumerate(targets) if len(row) > turn]
            more, _ = self._moved(objective, pixels[images], [[targets[image][turn]] for image in images], meta)
            for key, values in more.items():
                for image, one in zip(images, values, strict=True):
                    rows[key][image].append(one)
        return BatchMaps(
            {key: torch.stack([one for row in made for one in row]) for key, made in rows.items()}, targets
        )

    def _moved(
        self, objective: Objective, pixels: Tensor, targets: Targets | None, meta: Meta
    ) -> tuple[dict[tuple[str, str], Tensor], Targets]:
        """Explain the first target of every image at its θ', together, or alone where the network has no such form."""
        try:
            with per_sample_meta_step(objective, pixels, targets, meta) as found:
                return self._plain(objective, pixels, [row[:1] for row in found]).maps, found
        # A layer that is run again by itself, for its own weight, cannot have each image's; what else is refused is
        # refused again.
        except (NotCoveredError, GradlightError):
            found = _chosen(objective, pixels) if targets is None else targets
            pairs = zip(pixels.split(1), found, strict=True)
            return _joined([self._alone(objective, image, row[0], meta) for image, row in pairs]).maps, found

    def _alone(self, objective: Objective, image: Tensor, target: Target, meta: Meta) -> BatchMaps:
        with meta_step(objective, image, target, meta):
            return self._plain(objective, image, [[target]])

    def _others(self, objective: Objective, pixels: Tensor, targets: Targets) -> dict[tuple[str, str], Tensor]:
        """Make the maps of the baselines, each for one image, target and layer at a time."""
        found: dict[tuple[str, str], list[Tensor]] = {}
        for image, row in zip(pixels.split(1), targets, strict=True):
            for target in row:
                at_step = nullcontext() if self.meta is None else meta_step(objective, image, target, self.meta)
                with at_step if self._baselines else nullcontext():
                    for baseline in self._baselines:
                        for layer in baseline.places(self.layers):
                            made = baseline.attribute(objective, image, target, layer)
                            found.setdefault((baseline.name, layer.name), []).append(made)
        return {key: torch.cat(maps) for key, maps in found.items()}

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


def _chosen(objective: Objective, pixels: Tensor) -> Targets:
    with torch.no_grad():
        return objective.choose(objective.outputs(pixels.detach().clone()))


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _of_rows(maps: Sequence[Tensor], targets: Targets) -> Tensor:
    """Put the maps [B,h,w] of the first targets, of the second …, in the order of the images' own targets [M,h,w]."""
    if len(maps) == 1:
        return maps[0]
    asked = torch.tensor([len(row) for row in targets])
    return torch.stack(list(maps), 1)[torch.arange(len(maps)) < asked.unsqueeze(1)]


def _joined(parts: Sequence[BatchMaps]) -> BatchMaps:
    if len(parts) == 1:
        return parts[0]
    maps = {key: torch.cat([part.maps[key] for part in parts]) for key in parts[0].maps}
    return BatchMaps(maps, [row for part in parts for row in part.targets])
