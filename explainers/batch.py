"""Run one batch of images: record, run backward, and make every method's map at every layer for each target."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from ..errors import GradlightError, GradlightWarning
from ..models.base import Explainable, Layer, Photo
from ..models.objective import Objective, Targets
from ..models.preserve import preserved
from .capture import Tap, TapOf, record
from .layer_selection import choose_layers
from .meta import Meta, check_steppable, meta_step
from .methods import AnyMethod
from .per_sample import NotCoveredError, per_sample_meta_step
from .precision import Precision

__all__ = ["BatchMaps", "BatchRunner", "ImageBatch", "MapLayers", "Runner"]

MapLayers = dict[tuple[str, str], Layer]
"""Every (method, layer name) that has maps, with the layer."""

_Maps = dict[tuple[str, str], Tensor]


class ImageBatch:
    """Images of one batch: where they come from, and their pixels.

    Args:
        photos: One record per image.
        pixels: [B,3,H,W], as the network wants them.

    Example:
        >>> model = gl.classifier("scenes")
        >>> pixels, photos = model.read(["scenes:1", "scenes:2"])
        >>> len(ImageBatch(photos, pixels))
        2
    """

    def __init__(self, photos: Sequence[Photo], pixels: Tensor) -> None:
        self.photos, self._pixels = list(photos), pixels

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def pixels(self) -> Tensor:
        """Pixels [B,3,H,W] of the images."""
        return self._pixels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self._pixels.shape[2], self._pixels.shape[3]


@dataclass(frozen=True)
class BatchMaps:
    """The maps of a batch.

    Args:
        maps: [M,h,w] by method and layer, one row per target.
        targets: The targets of each image; M in all.

    Example:
        >>> BatchMaps({("normgrad", "layer4"): torch.zeros(1, 7, 7)}, [[gl.Target("class", 3, "star")]]).targets
        [[Target(kind='class', index=3, label='star', score=nan)]]
    """

    maps: _Maps
    targets: Targets


class Runner(Protocol):
    """What `explain` runs batch by batch: a `BatchRunner`, or the cache that wraps one."""

    def read(self, images: Any) -> ImageBatch:
        """Read some images of what `as_list` returns. Raises GradlightError as `Explainable.read` does."""

    def run(self, objective: Objective, batch: ImageBatch) -> BatchMaps:
        """Make the maps of a batch that `read` returned; the objective is that of its images."""

    def map_layers(self, size: tuple[int, int]) -> MapLayers:
        """List every (method, layer) that has maps, for pixels of a size (height, width)."""

    def weights_sha256(self) -> str:
        """Hash the weights of the model."""


class BatchRunner:
    """Runs batch after batch of one model, with the same methods, layers and meta step.

    Args:
        model: What is explained.
        methods: Methods and baselines. Those that can be called with a tap share the passes of a batch; the others
            run passes of their own, for one image, target and layer at a time.
        layers: Names as `choose_layers` takes them.
        meta: The inner step; None leaves the weights as they are.
        precision: Of the network's passes.

    Example:
        >>> from gradlight.explainers.methods import METHODS
        >>> runner = BatchRunner(gl.classifier("scenes"), [METHODS["normgrad"]], "layer4")
        >>> batch = runner.read(["scenes:1", "scenes:2"])
        >>> maps = runner.run(runner.model.objective("star"), batch).maps["normgrad", "layer4"]
        >>> len(maps)
        2
    """

    def __init__(
        self,
        model: Explainable,
        methods: Sequence[AnyMethod],
        layers: str | Iterable[str] = "stages",
        meta: Meta | None = None,
        precision: Precision | None = None,
    ) -> None:
        self.model, self.methods, self.meta = model, methods, meta
        self.layers = layers if isinstance(layers, str) or not isinstance(layers, Iterable) else list(layers)
        self.precision = precision or Precision()
        self._tap_methods: dict[str, Callable[[Tap], Tensor]] = {each.name: each for each in methods if callable(each)}
        self._own_passes = [method for method in methods if not callable(method)]
        self._max_images: dict[tuple[int, int], int] = {}

    def read(self, images: Any) -> ImageBatch:
        """Read some images of what `as_list` returns. Raises GradlightError as `Explainable.read` does."""
        pixels, photos = self.model.read(images)
        return ImageBatch(photos, pixels)

    def map_layers(self, size: tuple[int, int]) -> MapLayers:
        """List every (method, layer) that has maps, for pixels of a size (height, width)."""
        return {
            (method.name, layer.name): layer
            for method in self.methods
            for layer in method.places(choose_layers(self.model, self.layers, size, method))
        }

    def weights_sha256(self) -> str:
        """Hash the weights of the model."""
        return self.model.weights_sha256()

    def run(self, objective: Objective, batch: ImageBatch) -> BatchMaps:
        """Explain a batch; in parts, with a warning, where memory does not suffice for the whole.

        Args:
            objective: The objective of these images.
            batch: The images, as `read` returns them.

        Returns:
            The maps [M,h,w] of every method and layer, and the targets that they explain.

        Raises:
            GradlightError: Memory does not suffice for one image alone, or a method is not defined at a layer.
        """
        pairs = self.map_layers(batch.size)
        pixels, count = self.precision.lay_out(batch.pixels, objective.trunk), len(batch)
        with preserved(self.model.network):
            while True:
                results: list[BatchMaps] = []
                step = min(count, self._max_images.get(batch.size, count))
                try:
                    with self.precision.passes(pixels.device):
                        step = 1 if objective.prepare(pixels) else step
                    for start in range(0, count, step):
                        stop = min(start + step, count)
                        rows, images = objective.rows(start, stop, count), pixels[start:stop]
                        with self.precision.passes(pixels.device):
                            if not self._tap_methods:
                                result = BatchMaps({}, _chosen(rows, images))
                            elif self.meta is None:
                                result = self._from_taps(rows, images, pairs)
                            else:
                                result = self._at_stepped_weights(rows, images, pairs, self.meta)
                            maps = {**result.maps, **self._from_own_passes(rows, images, pairs, result.targets)}
                        results.append(BatchMaps({pair: maps[pair] for pair in pairs}, result.targets))
                    return _concatenated(results)
                except (MemoryError, RuntimeError) as error:
                    self._max_images[batch.size] = _halved(step, error, len(_layers_of(pairs)))

    # --- methods that read taps: one forward pass, and one backward pass per target, for all of them

    def _from_taps(
        self, objective: Objective, pixels: Tensor, pairs: MapLayers, targets: Targets | None = None
    ) -> BatchMaps:
        """Record one forward pass; in the backward pass of each target, every method reads the tap of every layer."""
        tapped = {pair: layer for pair, layer in pairs.items() if pair[0] in self._tap_methods}
        recording = record(objective, pixels, _layers_of(tapped), targets)
        maps = {pair: list[Tensor]() for pair in tapped}
        for target in range(recording.scores.shape[1]):
            recording.backward(target, partial(self._receive, maps))
        return BatchMaps({pair: _in_rows(each, recording.targets) for pair, each in maps.items()}, recording.targets)

    def _receive(self, maps: dict[tuple[str, str], list[Tensor]], tap_of: TapOf, gradient: Tensor) -> None:
        """Make every method's map of a layer, some images at a time where the batch exceeds the processor's cache."""
        tap = tap_of(gradient)
        methods = {name: each for name, each in self._tap_methods.items() if (name, tap.layer.name) in maps}
        made: dict[str, list[Tensor]] = {name: [] for name in methods}
        # Neither the caller's autocast nor our own applies to statistics.
        with torch.autocast(gradient.device.type, enabled=False):
            for chunk in _cache_sized_parts(tap):
                with few_threads(chunk.gradient):
                    for name, method in methods.items():
                        made[name].append(method(chunk))
        for name, rows in made.items():
            maps[name, tap.layer.name].append(rows[0] if len(rows) == 1 else torch.cat(rows))

    # --- the same at θ' (paper, section 4.4)

    def _at_stepped_weights(self, objective: Objective, pixels: Tensor, pairs: MapLayers, meta: Meta) -> BatchMaps:
        """Make the maps at θ', whose step is taken for each image and target alone, with the target chosen at θ.

        First for the first target of every image, together, then for the second of those that have one …
        """
        check_steppable(objective.network)
        maps, targets = self._at_first_steps(objective, pixels, pairs, None, meta)
        rows = {pair: [[row] for row in values] for pair, values in maps.items()}
        for number in range(1, max(len(row) for row in targets)):
            images = [image for image, row in enumerate(targets) if len(row) > number]
            single = [[targets[image][number]] for image in images]
            more, _ = self._at_first_steps(objective, pixels[images], pairs, single, meta)
            for pair, values in more.items():
                for image, row in zip(images, values, strict=True):
                    rows[pair][image].append(row)
        return BatchMaps(
            {pair: torch.stack([row for image in images for row in image]) for pair, images in rows.items()}, targets
        )

    def _at_first_steps(
        self, objective: Objective, pixels: Tensor, pairs: MapLayers, targets: Targets | None, meta: Meta
    ) -> tuple[_Maps, Targets]:
        """Explain the first target of every image at its θ'; one by one where the network has no per-sample form."""
        try:
            with per_sample_meta_step(objective, pixels, targets, meta) as fixed:
                return self._from_taps(objective, pixels, pairs, [row[:1] for row in fixed]).maps, fixed
        # A layer that is run again by itself, for its own weight, cannot have each image's; what else is refused is
        # refused again.
        except (NotCoveredError, GradlightError):
            fixed = _chosen(objective, pixels) if targets is None else targets
            results = []
            for image, row in zip(pixels.split(1), fixed, strict=True):
                with meta_step(objective, image, row[0], meta):
                    results.append(self._from_taps(objective, image, pairs, [row[:1]]))
            return _concatenated(results).maps, fixed

    # --- methods that run passes of their own

    def _from_own_passes(self, objective: Objective, pixels: Tensor, pairs: MapLayers, targets: Targets) -> _Maps:
        """Make the maps of the baselines, for one image, target and layer at a time."""
        maps: dict[tuple[str, str], list[Tensor]] = {}
        for image, row in zip(pixels.split(1), targets, strict=True) if self._own_passes else ():
            for target in row:
                with nullcontext() if self.meta is None else meta_step(objective, image, target, self.meta):
                    for method in self._own_passes:
                        for pair, layer in pairs.items():
                            if pair[0] == method.name:
                                made = method.attribute(objective, image, target, layer)
                                maps.setdefault(pair, []).append(made)
        return {pair: torch.cat(rows) for pair, rows in maps.items()}


def _layers_of(pairs: MapLayers) -> list[Layer]:
    """List the layers of maps, shallowest first, each once."""
    return sorted({layer.name: layer for layer in pairs.values()}.values(), key=lambda layer: layer.depth)


def _chosen(objective: Objective, pixels: Tensor) -> Targets:
    """Fix the targets of a batch as the network answers at θ."""
    with torch.no_grad():
        return objective.choose(objective.outputs(pixels.detach().clone()))


def _in_rows(maps: Sequence[Tensor], targets: Targets) -> Tensor:
    """Put the maps [B,h,w] of the first targets, of the second …, in the order of the images' own targets [M,h,w]."""
    if len(maps) == 1:
        return maps[0]
    counts = torch.tensor([len(row) for row in targets], device="cpu")
    return torch.stack(list(maps), 1)[torch.arange(len(maps), device="cpu") < counts.unsqueeze(1)]


def _concatenated(results: Sequence[BatchMaps]) -> BatchMaps:
    if len(results) == 1:
        return results[0]
    maps = {pair: torch.cat([result.maps[pair] for result in results]) for pair in results[0].maps}
    return BatchMaps(maps, [row for result in results for row in result.targets])


# --- memory, the processor's cache, and threads

_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "out of memory")

_CACHED_BYTES = 2**22
"""Bytes of a gradient that are worked on together with its activation and what is computed of both."""

_THREADED_BYTES = 2**25
"""Bytes times threads. A pass over 16 MB waits for the memory, and two threads wait no shorter than one; the more there
are, the smaller is what one alone gets through before they have come in."""


def _halved(step: int, error: Exception, layers: int) -> int:
    """Halve a number of images, with a warning; raises the error again if it is not about memory."""
    if not (isinstance(error, MemoryError) or any(text in str(error).lower() for text in _OUT_OF_MEMORY)):
        raise error
    if step == 1:
        raise GradlightError(
            f"Memory does not suffice for one image with {layers} layers ({error}). Ask for fewer layers or smaller"
            " images."
        ) from error
    half = step // 2
    text = f"Memory does not suffice for {step} images at once; going on with {half}."
    warnings.warn(text, GradlightWarning, stacklevel=4)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return half


def _cache_sized_parts(tap: Tap) -> Iterable[Tap]:
    """Cut a tap into parts that fit in the processor's cache; one that fits is its own only part."""
    size = max(1, _CACHED_BYTES * len(tap.gradient) // _bytes(tap.gradient))
    return [tap] if size >= len(tap.gradient) else tap.parts(size)


def _bytes(tensor: Tensor) -> int:
    return max(1, tensor.numel() * tensor.element_size())


@contextmanager
def few_threads(tensor: Tensor) -> Iterator[None]:
    """Let one thread alone work on a tensor that is small and on the CPU: to wake others would take longer.

    Only where torch has OpenMP, whose number of threads is each thread's own, so that others keep theirs.
    """
    count = torch.get_num_threads()
    work = tensor.numel() * tensor.element_size() * count
    if count == 1 or work > _THREADED_BYTES or tensor.device.type != "cpu" or not torch.backends.openmp.is_available():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
