"""What the baselines share: an objective as a plain function of pixels, and other people's libraries."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...errors import GradlightError
from ...models.objective import Objective, Target

__all__ = ["captum_for", "scores_of", "scoring", "seeded"]

Scoring = Callable[[Tensor], Tensor]


def scoring(objective: Objective, target: Target) -> Scoring:
    """Make the function from pixels [B,3,H,W] to the scores [B] of one target, the same for all of them."""

    def score(pixels: Tensor) -> Tensor:
        return objective.scores(objective.outputs(pixels), [[target]] * len(pixels))[:, 0]

    return score


def scores_of(score: Scoring, pixels: Tensor) -> Tensor:
    """Score pixels [B,3,H,W] without a graph: [B]."""
    with torch.no_grad():
        return score(pixels)


def captum_for(name: str) -> Any:
    """Give the module `captum.attr` to the baseline of a name; raises GradlightError where it is not installed."""
    try:
        return importlib.import_module("captum.attr")
    except ImportError as error:
        raise GradlightError(f'{name} needs Captum: pip install "gradlight[baselines]".') from error


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the generators that a library draws from, and put back what they were before."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed, which would seed the generators of every other device too.
        torch.default_generator.manual_seed(seed)
        for each in devices:
            with torch.cuda.device(each):
                torch.cuda.manual_seed(seed)
        yield
