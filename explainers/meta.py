"""Meta-saliency: one SGD step on all weights, then the unchanged method at θ' (paper, section 4.4)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GradlightError, nearest
from ..models.objective import Objective, Target
from ..models.preserve import trainable

__all__ = ["Meta", "check_steppable", "meta_step"]

_SIGNS = {"descent": -1.0, "ascent": 1.0}


@dataclass(frozen=True)
class Meta:
    """The inner step of meta-saliency: θ' = θ − lr·∇ℓ, or θ + lr·∇ℓ (the paper's negative meta-saliency).

    The loss ℓ is the target's own (cross-entropy for a classifier). The step is taken for each image and target alone,
    on every weight, those of norms and all biases included; the running statistics of norms stay as they are.

    Args:
        lr: Length of the step, the paper's 2ε; its class-sensitivity figures use ε = 0.001.
        direction: "descent" or "ascent".

    Raises:
        GradlightError: The direction is unknown, or `lr` is not a finite number ≥ 0.

    Example:
        >>> gl.Meta(lr=0.002, direction="ascent").rate
        0.002
        >>> maps = gl.explain(gl.classifier("scenes"), "scenes:1", "star", layers="layer4", meta=gl.Meta(lr=0.002))
        >>> maps.origin.meta
        {'lr': 0.002, 'direction': 'descent'}
    """

    lr: float = 0.002
    direction: str = "descent"

    def __post_init__(self) -> None:
        if self.direction not in _SIGNS:
            raise GradlightError(
                f"The direction of a meta step must be 'descent' or 'ascent', not {self.direction!r}."
                f"{nearest(str(self.direction), _SIGNS)}"
            )
        if isinstance(self.lr, bool) or not isinstance(self.lr, (int, float)) or not 0 <= self.lr < math.inf:
            raise GradlightError(f"lr must be a finite number, zero or more, not {self.lr!r}; the paper uses 0.002.")

    @property
    def rate(self) -> float:
        """The signed factor of the gradient: −lr for descent, +lr for ascent."""
        return _SIGNS[self.direction] * self.lr

    def describe(self) -> dict[str, Any]:
        """Describe the step in JSON types."""
        return asdict(self)


def check_steppable(network: nn.Module) -> None:
    """Check that a network's weights can be stepped: they must not be distributed over processes.

    Args:
        network: The network.

    Raises:
        GradlightError: If a weight is a sharded tensor (FSDP2, tensor parallel).
    """
    sharded = next((name for name, weight in network.named_parameters() if hasattr(weight, "full_tensor")), None)
    if sharded is not None:
        raise GradlightError(
            f"meta= needs whole weights, and {sharded!r} is distributed over processes (FSDP2 or tensor parallel)."
            " Explain without meta=, or load the full state dict into a network that is not sharded."
        )


@contextmanager
def meta_step(objective: Objective, pixels: Tensor, target: Target, meta: Meta) -> Iterator[None]:
    """Hold the network at θ' for one image and one fixed target, then restore every weight bit for bit.

    The weights' own tensors are set aside, not overwritten, so nothing has to be undone by arithmetic.

    Args:
        objective: Whose loss is stepped on.
        pixels: [1,3,H,W].
        target: The target whose loss it is.
        meta: Length and direction of the step.
    """
    network = objective.network
    check_steppable(network)
    with trainable(network) as parameters:
        loss = objective.losses(objective.outputs(pixels.detach().clone()), [[target]]).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with ExitStack() as undo:
        _step(parameters, gradients, meta.rate, undo)
        yield


def _step(parameters: list[nn.Parameter], gradients: tuple[Tensor | None, ...], rate: float, undo: ExitStack) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            undo.callback(setattr, parameter, "data", parameter.data)
            parameter.data = parameter.data.add(gradient, alpha=rate)
