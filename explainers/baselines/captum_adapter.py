"""Adapters for Captum: an objective as a function of pixels, the optional import, reproducible random numbers."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import GradlightError
from ...models.objective import Objective, Target

__all__ = ["ScoreFunction", "import_captum", "score_function", "score_without_graph", "seeded"]

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


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that a library draws from, and restore their state afterwards.

    Example:
        >>> import torch
        >>> def draw():
        ...     with seeded(3, torch.device("cpu")):
        ...         return torch.rand(2)
        >>> torch.equal(draw(), draw())
        True
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed the generators of every other device too.
        torch.default_generator.manual_seed(seed)
        for cuda_device in devices:
            with torch.cuda.device(cuda_device):
                torch.cuda.manual_seed(seed)
        yield
