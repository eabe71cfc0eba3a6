"""The objective: one differentiable scalar per image and target, whatever the network is.

An adapter writes the four small steps of `Objective` (outputs, choose, scores, losses); everything in `explainers/`
works on those and never asks what kind of network it has.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..errors import GradlightError

__all__ = ["Objective", "Target", "Targets", "evened"]


@dataclass(frozen=True)
class Target:
    """What one map is asked about: `kind` ("class", "caption", "word"), its number, its name, and the score it got."""

    kind: str
    index: int
    label: str
    score: float = math.nan


Targets = Sequence[Sequence[Target]]
"""The fixed targets of a batch: one row per image."""


def evened(targets: Targets) -> Targets:
    """Fill up the shorter rows by repeating their last target, so that every image has as many."""
    longest = max((len(row) for row in targets), default=0)
    return [[*row, *[row[-1]] * (longest - len(row))] for row in targets]


class Objective(nn.Module):
    """Map pixels [B,3,H,W] to scores [B,K], and to the training loss [B] of the same targets.

    The steps are apart so that several targets share one forward pass, and so that a target such as "top", chosen
    from the network's own answer, stays the same when the weights are moved (meta-saliency).
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose layers lie over the image; their names are its modules'."""
        return self.network

    @abstractmethod
    def outputs(self, pixels: Tensor) -> Any:
        """Run the network once; what comes back is only ever handed to the three methods below."""

    @abstractmethod
    def choose(self, outputs: Any) -> Targets:
        """Fix the targets of every image of the batch (argmax for "top", a generated caption, or as asked)."""

    @abstractmethod
    def scores(self, outputs: Any, targets: Targets) -> Tensor:
        """Score [B,K] of each target, in rows of one length: a logit or a log-probability; larger is more of it."""

    @abstractmethod
    def losses(self, outputs: Any, targets: Targets) -> Tensor:
        """Training loss [B,K] of each target: cross-entropy, binary cross-entropy, negative log-probability."""

    @abstractmethod
    def rows(self, start: int, stop: int, total: int) -> Objective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types, for files and cache keys."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Score [B,K] of the targets, chosen from the same forward pass; GradlightError where images differ in K."""
        outputs = self.outputs(pixels)
        return self.scores(outputs, _even(self.choose(outputs)))

    def loss(self, pixels: Tensor) -> Tensor:
        """Training loss [B] of the targets, their mean where an image has several."""
        outputs = self.outputs(pixels)
        return self.losses(outputs, _even(self.choose(outputs))).mean(1)


def _even(targets: Targets) -> Targets:
    counts = [len(row) for row in targets]
    if len(set(counts)) > 1:
        raise GradlightError(
            f"The images have {min(counts)} to {max(counts)} targets each, so their scores form no [images, targets]."
            " Give the objective images with as many targets, one at a time for instance."
        )
    return targets
