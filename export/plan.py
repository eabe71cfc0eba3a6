"""The plan of an export: its settings, and the batches and shards of its images, fixed before it begins."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.hdf5.schema import MAP_DTYPES, options
from ..errors import GradlightError, nearest
from ..explainers.combination import check_how, check_weights
from ..explainers.layer_selection import choose_layers
from ..explainers.meta import Meta
from ..explainers.methods import methods_of
from ..explainers.precision import Precision
from ..models.base import Explainable
from .lists import Item

__all__ = ["IMAGES_PER_SHARD", "ExportSettings", "Plan", "Shard", "shard_size"]

IMAGES_PER_SHARD = 200
_MAX_SHARD_BYTES = 128 * 2**20  # a shard is assembled in memory before it is written


@dataclass(frozen=True)
class ExportSettings:
    """How every image is explained, and how its maps are stored.

    Args:
        target: For images that have none of their own; None for the network's own answer.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        words: One map for each word of a caption.
        combine: (how, weights) of a combination, stored beside its layers.
        meta: The inner step of meta-saliency.
        batch_size: Images in one pass.
        size: (height, width) that every map is resized to; None keeps each layer's own size.
        dtype: "float32" or "float16".
        compression: As in `data.hdf5`.
        precision: Of the network's passes, as in `explain`.

    Raises:
        GradlightError: A value is unknown or out of range.

    Example:
        >>> ExportSettings(methods=("normgrad",), dtype="float16").batch_size
        8
    """

    target: tuple[str | int, ...] | None = None
    methods: tuple[str, ...] = ("selective_normgrad",)
    layers: tuple[str, ...] = ("stages",)
    words: bool = False
    combine: tuple[str, str] | None = None
    meta: Meta | None = None
    batch_size: int = 8
    size: tuple[int, int] | None = None
    dtype: str = "float32"
    compression: str = "gzip"
    precision: str | None = None

    def __post_init__(self) -> None:
        methods_of(self.methods)
        Precision(self.precision)
        options(self.compression)
        dtypes = [str(dtype) for dtype in MAP_DTYPES]
        if self.dtype not in dtypes:
            raise GradlightError(
                f"Maps are stored as {' or '.join(dtypes)}, not {self.dtype!r}.{nearest(self.dtype, dtypes)}"
            )
        if self.combine is not None:
            check_how(self.combine[0])
            check_weights(self.combine[1])
        if self.batch_size < 1:
            raise GradlightError(f"batch_size must be at least 1, not {self.batch_size}.")
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise GradlightError(f"The size of maps must be from 1x1 to 4096x4096, not {self.size}.")


@dataclass(frozen=True)
class Shard:
    """A unit of work.

    Args:
        number: Its number.
        batches: Its batches of images.
        failures: Images that failed before, each with the reason.
    """

    number: int
    batches: tuple[tuple[Item, ...], ...]
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> int:
        """The number of images."""
        return sum(map(len, self.batches))


@dataclass(frozen=True)
class Plan:
    """The images of an export in their order, cut into shards of whole batches.

    The cuts do not depend on how often the work is stopped or on who does it, so neither do the maps.

    Args:
        items: The images.
        settings: How they are explained.
        images_per_shard: The size of a shard, a multiple of the batch size.
        failures: Images that the source itself could not use; stored in the first shard.

    Example:
        >>> plan = Plan(tuple(Item(f"scenes:{n}", None) for n in range(5)), ExportSettings(batch_size=2), 4)
        >>> plan.shards, [len(batch) for batch in plan.shard(0).batches]
        (2, [2, 2])
    """

    items: tuple[Item, ...]
    settings: ExportSettings
    images_per_shard: int = IMAGES_PER_SHARD
    failures: tuple[tuple[str, str], ...] = field(default=())

    @property
    def shards(self) -> int:
        """The number of shards."""
        return max(1, math.ceil(len(self.items) / self.images_per_shard))

    def shard(self, number: int) -> Shard:
        """Give a shard by its number."""
        items = self.items[number * self.images_per_shard : (number + 1) * self.images_per_shard]
        step = self.settings.batch_size
        batches = [items[start : start + step] for start in range(0, len(items), step)]
        return Shard(number, tuple(batches), self.failures if number == 0 else ())

    def record(self, model: Explainable) -> dict[str, Any]:
        """Describe in JSON types everything that the maps depend on, and how they are stored."""
        description = {name: value for name, value in model.describe().items() if name not in ("checkpoint", "version")}
        record: dict[str, Any] = {
            "model": description,
            "weights_sha256": model.weights_sha256(),
            **asdict(self.settings),
            "images": len(self.items),
            "images_sha256": _hash_items([(item.path, item.targets) for item in self.items]),
            "images_a_shard": self.images_per_shard,
        }
        return dict(json.loads(json.dumps(record)))


def shard_size(model: Explainable, settings: ExportSettings, images: int | None) -> int:
    """Choose the number of images of a shard, in whole batches.

    Args:
        model: The model, whose layers decide the size of the maps.
        settings: How images are explained.
        images: The wanted number; None for 200, or fewer if maps are large.

    Returns:
        The number of images, a multiple of the batch size.

    Raises:
        GradlightError: The wanted number is below 1.
    """
    step = settings.batch_size
    if images is not None:
        if images < 1:
            raise GradlightError(f"A shard must have at least 1 image, not {images}.")
        return math.ceil(images / step) * step
    chosen = [choose_layers(model, list(settings.layers), model.size, each) for each in methods_of(settings.methods)]
    grids = {layer.name: layer.size for layers in chosen for layer in layers}.values()
    grid_list = [*grids, *([model.size] if settings.combine else [])]
    locations = sum(math.prod(settings.size or grid) for grid in grid_list)
    image_bytes = 4 * locations * len(settings.methods) * _targets_per_image(settings)
    return max(1, min(IMAGES_PER_SHARD, _MAX_SHARD_BYTES // image_bytes) // step) * step


def _targets_per_image(settings: ExportSettings) -> int:
    """Estimate how many targets an image has."""
    return 10 if settings.words else len(settings.target or (None,))


def _hash_items(items: Iterable[tuple[str, Sequence[int | str] | None]]) -> str:
    digest = hashlib.sha256()
    for path, targets in items:
        digest.update(json.dumps([path, targets]).encode())
    return digest.hexdigest()
