"""`explain`: from images and a model to exact saliency maps, batch by batch.

One call of each function, from the outside in, of explain(model, "dog.jpg", 207, methods="normgrad", layers="layer4"):

    explain.explain               resolves the target, preprocesses, runs batch by batch, assembles the result
    batch.BatchRunner.run         one batch, in parts where memory is short, with the network held in eval mode
    batch.BatchRunner._from_taps  one recorded forward pass, then one backward pass per target
    capture.Recording.backward    torch.autograd.grad of the scores, with a hook at layer4
    batch.BatchRunner._receive    that hook: the gradient makes the tap (x, g), which every method reads
    methods.Method.__call__       extract: conv1x1(tap) = g xᵀ, factored; aggregate:
    aggregation.norm              ‖g‖·‖x‖ at each location, [1,7,7]
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from ..errors import GradlightError, GradlightWarning
from ..models.base import Explainable, Photo, as_list, check_model, intact
from ..models.objective import Objective, Target
from ..models.preserve import exclusive
from .batch import BatchMaps, BatchRunner, MapLayers, Runner
from .maps import MapLayer, Origin, SaliencyMaps
from .meta import Meta
from .methods import MethodLike, methods_of
from .precision import Precision

if TYPE_CHECKING:
    from .cache import CacheLike

__all__ = ["assemble", "describe_origin", "explain"]

_BATCH_SIZE = 8


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
) -> SaliencyMaps:
    """Explain a model's output for images: one map per image, target, method and layer (paper, algorithm 1).

    An image's maps never depend on its neighbours in the batch, and the network is left bit for bit as it was. Calls
    from several threads on one network take turns.

    Args:
        model: What `gradlight.classifier` or `gradlight.captioner` returns.
        images: A path, Pillow image, HWC uint8 array, or a list of them; or a tensor of pixels [B,3,H,W].
        target: What the maps explain: an index, a label, "top", "top5", "min"; one for all images or a list with one
            entry per image, where an entry that is itself a list gives several targets of its image. For a captioner,
            a text is that caption's log-probability, and `caption.words` gives one map per word. None: the top class,
            or the generated caption.
        methods: Published names ("normgrad"), cells of the grid ("conv3x3+norm"), `Method`, or a list of them.
        layers: "stages", "all", "input", names, globs ("layer3.*"), or a list of them. Of each stage, a method has the
            layer at which it is defined: normgrad_real the last one with a weight, cam the one that is averaged.
        words: One map for each word of a captioner's target.
        meta: The paper's inner step (section 4.4), taken first, for each image and target alone.
        batch_size: Images per pass, 8 by default; fewer, with a warning, where memory is short.
        cache: True, or a folder, keeps the maps of every image and returns them again, bit for bit, as long as
            nothing that decides them has changed.
        progress: Show a progress bar on standard error.
        precision: "bf16" runs the network's passes in bfloat16, about twice as fast where the processor supports it;
            statistics stay in float32. None: as the network is.

    Returns:
        The maps, [B,K,h,w] by method and layer: raw, never normalised, never resized.

    Raises:
        GradlightError: `model` is not a model, or a target, method, layer or image is unknown or cannot be explained.

    Example:
        >>> model = gl.classifier("scenes")
        >>> maps = gl.explain(model, "scenes:1", "star", methods=["normgrad", "grad_cam"], layers=["layer3", "layer4"])
        >>> maps
        SaliencyMaps(1 image × 1 target; methods: normgrad, grad_cam; layers: layer3, layer4)
        >>> maps["normgrad", "layer4"].shape[:2]
        torch.Size([1, 1])
    """
    check_model(model)
    _check_meta(meta)
    chosen_methods, image_list = methods_of(methods), as_list(images)
    total = len(image_list)
    if total == 0:
        raise GradlightError("There is no image to explain: the list is empty.")

    # Other calls on this network wait, so that no target, checksum or layer is found in the middle of a meta step.
    with exclusive(model.network), intact(model.network):
        # Resolve the targets.
        objective = model.word_objective(target) if words else model.objective(target)
        _check_target_count(objective, total)

        step = _checked_batch_size(batch_size)
        batch_runner = BatchRunner(model, chosen_methods, layers, meta, Precision(precision))
        runner: Runner = batch_runner
        if cache is not None and cache is not False:
            from .cache import with_cache

            runner = with_cache(batch_runner, cache)

        batches: list[BatchMaps] = []
        photos: list[Photo] = []
        sizes: list[tuple[int, int]] = []
        with tqdm(total=total, unit="image", disable=not progress) as bar:
            for start in range(0, total, step):
                # Preprocess.
                batch = runner.read(image_list[start : start + step])
                sizes.append(batch.size)
                _check_sizes(sizes)
                # Record, run backward, make every method's maps.
                batches.append(runner.run(objective.rows(start, start + len(batch), total), batch))
                photos.extend(batch.photos)
                bar.update(len(batch))

        # Assemble.
        origin = describe_origin(model, objective, meta, runner.weights_sha256(), precision)
        return assemble(runner.map_layers(sizes[0]), batches, photos, sizes[0], origin)


def describe_origin(
    model: Explainable,
    objective: Objective,
    meta: Meta | None,
    weights: str | None = None,
    precision: str | None = None,
) -> Origin:
    """Describe what makes maps, for the files that keep them.

    Args:
        model: What is explained.
        objective: Its objective.
        meta: The inner step, if there is one.
        weights: Checksum of the weights; None computes it.
        precision: Of the passes; it is described only where one was asked for.

    Returns:
        The description, in JSON types.
    """
    passes = {} if precision is None else {"precision": precision}
    step = None if meta is None else meta.describe()
    return Origin({**model.describe(), **passes}, weights or model.weights_sha256(), objective.describe(), step)


def assemble(
    layers: MapLayers, batches: Sequence[BatchMaps], photos: Sequence[Photo], size: tuple[int, int], origin: Origin
) -> SaliencyMaps:
    """Join the maps of batches, in their order.

    Args:
        layers: The layer of every (method, layer name), as `Runner.map_layers` lists them.
        batches: The maps of each batch.
        photos: The photos of all batches.
        size: Height and width of the pixels.
        origin: What made the maps.

    Returns:
        The result of `explain`. Scores that are not finite are warned of.
    """
    targets = [list(row) for batch in batches for row in batch.targets]
    _warn_of_scores(targets)
    maps = {pair: torch.cat([batch.maps[pair] for batch in batches]) for pair in batches[0].maps}
    map_layers = {layer.name: MapLayer(layer.depth, layer.stride, layer.extent) for layer in layers.values()}
    return SaliencyMaps(maps, map_layers, list(photos), targets, size, origin)


def _check_meta(meta: Meta | None) -> None:
    if meta is not None and not isinstance(meta, Meta):
        raise GradlightError(f"meta={meta!r} is no meta step; give gradlight.Meta(lr=0.002, direction='descent').")


def _check_target_count(objective: Objective, total: int) -> None:
    """Raise GradlightError where there are neither one target nor as many as images, before any work is done."""
    objective.rows(0, total, total)


def _check_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """Raise GradlightError where the pixels of the last batch are not of the size of the first."""
    if sizes[-1] != sizes[0]:
        raise GradlightError(
            f"The preprocessing makes pixels of different sizes, {list(sizes[0])} and {list(sizes[-1])}; the maps of"
            " one call must have the same grid. Explain photos of different sizes in separate calls."
        )


def _checked_batch_size(batch_size: int | None) -> int:
    if batch_size is not None and (isinstance(batch_size, bool) or batch_size < 1):
        raise GradlightError(f"batch_size must be at least 1, not {batch_size!r}.")
    return batch_size or _BATCH_SIZE


def _warn_of_scores(targets: Sequence[Sequence[Target]]) -> None:
    """Warn of scores that are not finite: the maps of such a network carry no information."""
    broken = [target for row in targets for target in row if not math.isfinite(target.score)]
    if broken:
        first = f"the first of {broken[0].label!r} ({broken[0].score})"
        text = f"{len(broken)} scores are not finite, {first}; their maps carry no information."
        warnings.warn(text, GradlightWarning, stacklevel=4)
