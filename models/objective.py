"""The objective: one differentiable scalar per image and target, for any kind of network.

An adapter writes the four steps of `Objective` (outputs, choose, scores, losses); the explainers work on these alone
and do not ask what kind of network there is.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from ..errors import GradlightError
from .preserve import exclusive

__all__ = ["Objective", "Target", "Targets", "needs_gradient", "pad_targets", "run"]


@dataclass(frozen=True)
class Target:
    """What one map is about.

    Args:
        kind: "class", "caption" or "word".
        index: The number of the class, or the position of the word.
        label: The class, caption or word as text.
        score: The score that the network gives it; NaN if it has not been computed.

    Example:
        >>> model = gl.classifier("scenes")
        >>> objective = model.objective("star")
        >>> ((target,),) = objective.choose(objective.outputs(model.pixels("scenes:7")))
        >>> target.kind, target.index, target.label
        ('class', 3, 'star')
    """

    kind: str
    index: int
    label: str
    score: float = math.nan


Targets = Sequence[Sequence[Target]]
"""The fixed targets of a batch: one row per image."""


def pad_targets(targets: Targets) -> Targets:
    """Repeat the last target of shorter rows, so that every image has the same number.

    Args:
        targets: One row per image, none of them empty.

    Returns:
        Rows of one length.

    Example:
        >>> from gradlight.models.objective import Target, pad_targets
        >>> star, red = Target("class", 3, "star"), Target("class", 8, "red")
        >>> [[target.label for target in row] for row in pad_targets([[star, red], [star]])]
        [['star', 'red'], ['star', 'star']]
    """
    longest = max((len(row) for row in targets), default=0)
    return [[*row, *[row[-1]] * (longest - len(row))] for row in targets]


def needs_gradient(error: RuntimeError) -> bool:
    """Tell whether an error says that a tensor needs a gradient, as a hook's `retain_grad` does where there is none.

    Example:
        >>> import torch
        >>> from gradlight.models.objective import needs_gradient
        >>> try:
        ...     torch.zeros(1).retain_grad()
        ... except RuntimeError as error:
        ...     needs_gradient(error)
        True
    """
    text = str(error)
    return any(phrase in text for phrase in ("requires_grad=False", "require gradient", "require grad "))


def run(network: nn.Module, pixels: Tensor) -> Any:
    """Run a network; once more with gradients where they are off and a hook of the network's needs them.

    Args:
        network: The network.
        pixels: [B,3,H,W].

    Returns:
        What the network gives.
    """
    try:
        return network(pixels)
    except RuntimeError as error:
        if torch.is_grad_enabled() or not needs_gradient(error):
            raise
    with torch.inference_mode(False), torch.enable_grad():
        return network(pixels.clone().requires_grad_().clone())


class Objective(nn.Module):
    """Map pixels [B,3,H,W] to scores [B,K], and to the training loss [B] of the same targets.

    A derived class writes six methods. The first four are separate so that several targets share one forward pass, and
    so that a target such as "top", chosen from the network's own output, stays the same when the weights change
    (meta-saliency).

    Args:
        network: The network that is explained.

    Example:
        >>> model = gl.classifier("scenes")
        >>> objective = model.objective(["star", "red"])
        >>> pixels = model.pixels(["scenes:7", "scenes:8"])
        >>> objective(pixels).shape, objective.loss(pixels).shape
        (torch.Size([2, 1]), torch.Size([2]))
        >>> objective.describe()["targets"]
        [['star'], ['red']]
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose layers are spatial; layers are named by this module's submodules."""
        return self.network

    @abstractmethod
    def outputs(self, pixels: Tensor) -> Any:
        """Run the network once.

        Args:
            pixels: [B,3,H,W].

        Returns:
            Anything that `choose`, `scores` and `losses` of this objective can read.
        """

    @abstractmethod
    def choose(self, outputs: Any) -> Targets:
        """Fix the targets of every image of the batch (argmax for "top", a generated caption, or those given).

        Args:
            outputs: What `outputs` returned.

        Returns:
            One row of targets per image.

        Raises:
            GradlightError: If a target is unknown, or their number does not match the images.
        """

    @abstractmethod
    def scores(self, outputs: Any, targets: Targets) -> Tensor:
        """Score each target: a logit or a log-probability.

        Args:
            outputs: What `outputs` returned.
            targets: One row per image, all of the same length K.

        Returns:
            Scores [B,K], differentiable; a larger score means more of the target.
        """

    @abstractmethod
    def losses(self, outputs: Any, targets: Targets) -> Tensor:
        """Compute the training loss: cross-entropy, binary cross-entropy, or negative log-probability.

        Args:
            outputs: What `outputs` returned.
            targets: One row per image, all of the same length K.

        Returns:
            Losses [B,K], differentiable.
        """

    @abstractmethod
    def rows(self, start: int, stop: int, total: int) -> Objective:
        """Give the objective of a part of the images.

        Args:
            start: The first image.
            stop: The image after the last.
            total: The number of all images.

        Returns:
            The objective of images start … stop - 1.

        Raises:
            GradlightError: If the number of targets is neither one nor `total`.
        """

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types, for files and cache keys."""

    def prepare(self, pixels: Tensor) -> bool:
        """Learn about the network what `outputs` must know; to be called before hooks are registered.

        Args:
            pixels: [B,3,H,W].

        Returns:
            Whether every image must run alone, because the network's answer depends on the others of its batch.
        """
        return False

    def forward(self, pixels: Tensor) -> Tensor:
        """Score the targets, which are chosen from the same forward pass.

        Args:
            pixels: [B,3,H,W].

        Returns:
            Scores [B,K].

        Raises:
            GradlightError: If the images have different numbers of targets.
        """
        with exclusive(self.network):
            if not _followed():
                self.prepare(pixels)
            outputs = self.outputs(pixels)
            return self.scores(outputs, _check_even(self.choose(outputs)))

    def loss(self, pixels: Tensor) -> Tensor:
        """Compute the training loss of the targets, averaged where an image has several.

        Args:
            pixels: [B,3,H,W].

        Returns:
            Losses [B].

        Raises:
            GradlightError: If the images have different numbers of targets.
        """
        with exclusive(self.network):
            if not _followed():
                self.prepare(pixels)
            outputs = self.outputs(pixels)
            return self.losses(outputs, _check_even(self.choose(outputs))).mean(1)


def _followed() -> bool:
    """Tell whether a function mode follows every call of this thread, and must not see those of an examination."""
    return any(not isinstance(mode, DeviceContext) for mode in _get_current_function_mode_stack())


def _check_even(targets: Targets) -> Targets:
    """Give the targets back if every image has the same number of them."""
    counts = [len(row) for row in targets]
    if len(set(counts)) > 1:
        raise GradlightError(
            f"The images have {min(counts)} to {max(counts)} targets each, so their scores form no [images, targets]."
            " Give the objective images with the same number of targets, for instance one at a time."
        )
    return targets
