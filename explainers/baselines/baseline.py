"""`Baseline`: a published attribution method and the layers at which it makes maps; and what the baselines share.

Shared are the objective as a function of pixels, the optional import of Captum, and reproducible random numbers.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import GradlightError
from ...models.base import Layer
from ...models.objective import Objective, Target

__all__ = [
    "Attribute",
    "Baseline",
    "ScoreFunction",
    "at_layers",
    "at_pixels",
    "default_device",
    "import_captum",
    "score_function",
    "score_without_graph",
    "seeded",
]

Attribute = Callable[[Objective, Tensor, Target, Layer], Tensor]
"""From an objective, the pixels [1,3,H,W] of one image, one fixed target and a layer to the map [1,h,w]."""


@dataclass(frozen=True)
class Baseline:
    """A published attribution method, applied to the same objective as the methods of this library.

    Another setting of a method is another Baseline.

    Args:
        name: The name by which `explain` finds its maps.
        attribute: Makes the raw map, inside `preserved`; it leaves the network untouched, also after an error.
        places: Which layers it makes maps at, of those requested: `at_layers` or `at_pixels`.
        formula: The map in one line of plain text.
        reference: Authors, year and title of the source.

    Example:
        >>> from functools import partial
        >>> from gradlight.explainers.baselines.perturbation import rise
        >>> Baseline("rise_500", partial(rise, masks=500), at_pixels).name
        'rise_500'
    """

    name: str
    attribute: Attribute
    places: Callable[[Sequence[Layer]], Sequence[Layer]]
    formula: str = ""
    reference: str = ""

    def at_stages(self, trunk: nn.Module, layers: Sequence[Layer], stages: Sequence[Layer]) -> Sequence[Layer]:
        """Return the layers for layers="stages": the pixels, which every network has, for a map of the pixels."""
        return layers[:1] if self.places is at_pixels else stages


def at_layers(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Make a map at each requested layer."""
    return layers


def at_pixels(layers: Sequence[Layer]) -> Sequence[Layer]:
    """Make one map, of the pixels, whatever layers are requested; the first of them gives the size of the pixels."""
    first = layers[0]
    height, width = (round(side * stride) for side, stride in zip(first.size, first.stride, strict=True))
    return [next((layer for layer in layers if layer.name == "input"), Layer("input", 0, 3, (height, width)))]


ScoreFunction = Callable[[Tensor], Tensor]
"""From pixels [B,3,H,W] to the scores [B] of one target."""


def score_function(objective: Objective, target: Target) -> ScoreFunction:
    """Make the function from pixels [B,3,H,W] to the scores [B] of one target, the same for all images."""

    def score(pixels: Tensor) -> Tensor:
        return objective.scores(objective.outputs(pixels), [[target]] * len(pixels))[:, 0]

    return score


def score_without_graph(score: ScoreFunction, pixels: Tensor) -> Tensor:
    """Score pixels [B,3,H,W] without a graph: [B]."""
    with torch.no_grad():
        return score(pixels)


def import_captum(baseline: str) -> Any:
    """Import `captum.attr` for the baseline of this name.

    Raises:
        GradlightError: If Captum is not installed.
    """
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        raise GradlightError(f'{baseline} needs Captum: pip install "gradlight[baselines]".') from error


_one_at_a_time = threading.RLock()
"""All threads draw from the same generators, whatever network they work on."""


@contextmanager
def default_device(device: torch.device) -> Iterator[None]:
    """Make a library that names no device create its tensors on this one, whatever the caller's default is."""
    with nullcontext() if torch.empty(0).device == device else device:
        yield


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that a library draws from, and restore their state afterwards; one thread at a time.

    Example:
        >>> import torch
        >>> def draw():
        ...     with seeded(3, torch.device("cpu")):
        ...         return torch.rand(2)
        >>> torch.equal(draw(), draw())
        True
    """
    devices = [device] if device.type == "cuda" else []
    with _one_at_a_time, torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed the generators of every other device too.
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield
