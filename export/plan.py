"""What an export does, decided before it begins: which images, asked what, in which batches and shards."""

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

__all__ = ["IMAGES_A_SHARD", "ExportSettings", "Plan", "Shard", "shard_size"]

IMAGES_A_SHARD = 200
_SHARD_BYTES = 128 * 2**20  # a shard is put together in memory before it is written


@dataclass(frozen=True)
class ExportSettings:
    """How every image is explained, and how its maps are kept.

    target: for images that have none of their own; None is what the network itself says. words: one map for each word
    of a caption. combine: (how, weights), kept beside the layers that it combines. size: (height, width) that every map
    is brought to; None keeps each layer's own grid. dtype: "float32" or "float16". compression: as in `data.store`.
    precision: of the network's passes, as in `explain`.
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
        known = [str(dtype) for dtype in MAP_DTYPES]
        if self.dtype not in known:
            raise GradlightError(
                f"Maps are kept as {' or '.join(known)}, not {self.dtype!r}.{nearest(self.dtype, known)}"
            )
        if self.combine is not None:
            check_how(self.combine[0])
            check_weights(self.combine[1])
        if self.batch_size < 1:
            raise GradlightError(f"batch_size must be at least 1, not {self.batch_size}.")
        if self.size is not None and not all(1 <= side <= 4096 for side in self.size):
            raise GradlightError(f"Maps are brought to a size from 1x1 to 4096x4096, not {self.size}.")


@dataclass(frozen=True)
class Shard:
    """A piece of work that is done as a whole: its batches of images, and failures that are known before."""

    number: int
    batches: tuple[tuple[Item, ...], ...]
    failures: tuple[tuple[str, str], ...] = ()

    @property
    def images(self) -> int:
        """How many images it has."""
        return sum(map(len, self.batches))


@dataclass(frozen=True)
class Plan:
    """The images of an export in their order, cut into shards of whole batches.

    The cuts do not depend on how often the work is stopped or on who does it, so neither do the maps. failures: what
    the source itself could not use, kept in the first shard.
    """

    items: tuple[Item, ...]
    settings: ExportSettings
    images_a_shard: int = IMAGES_A_SHARD
    failures: tuple[tuple[str, str], ...] = field(default=())

    @property
    def shards(self) -> int:
        """How many shards there are."""
        return max(1, math.ceil(len(self.items) / self.images_a_shard))

    def shard(self, number: int) -> Shard:
        """Give a shard by its number."""
        items = self.items[number * self.images_a_shard : (number + 1) * self.images_a_shard]
        step = self.settings.batch_size
        batches = [items[start : start + step] for start in range(0, len(items), step)]
        return Shard(number, tuple(batches), self.failures if number == 0 else ())

    def record(self, model: Explainable) -> dict[str, Any]:
        """Describe in JSON types everything that the maps depend on, and how they are kept."""
        settings = asdict(self.settings)
        about = {name: value for name, value in model.describe().items() if name not in ("checkpoint", "version")}
        found: dict[str, Any] = {
            "model": about,
            "weights_sha256": model.weights_sha256(),
            **settings,
            "images": len(self.items),
            "images_sha256": _digest([(item.path, item.targets) for item in self.items]),
            "images_a_shard": self.images_a_shard,
        }
        return dict(json.loads(json.dumps(found)))


def shard_size(model: Explainable, settings: ExportSettings, asked: int | None) -> int:
    """Choose how many images a shard has: the asked number or 200, in whole batches, fewer where maps are large."""
    step = settings.batch_size
    if asked is not None:
        if asked < 1:
            raise GradlightError(f"A shard has at least 1 image, not {asked}.")
        return math.ceil(asked / step) * step
    grids = [layer.size for layer in choose_layers(model, list(settings.layers), model.size)]
    grids += [model.size] if settings.combine else []
    places = sum(math.prod(settings.size or grid) for grid in grids)
    an_image = 4 * places * len(settings.methods) * _targets(settings)
    return max(1, min(IMAGES_A_SHARD, _SHARD_BYTES // an_image) // step) * step


def _targets(settings: ExportSettings) -> int:
    """Guess how many maps of a kind an image has."""
    return 10 if settings.words else len(settings.target or (None,))


def _digest(items: Iterable[tuple[str, Sequence[int | str] | None]]) -> str:
    digest = hashlib.sha256()
    for path, targets in items:
        digest.update(json.dumps([path, targets]).encode())
    return digest.hexdigest()
