"""The precision of the network's passes: the network's own, float32, or bfloat16."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import GradlightError, nearest

__all__ = ["Precision"]

_PRECISIONS = ("float32", "bf16")


@dataclass(frozen=True)
class Precision:
    """How the forward and backward passes are computed; statistics of activations and gradients stay in float32.

    Args:
        precision: None computes as the network is, under the caller's autocast if there is one; "bf16" computes under
            autocast to bfloat16; "float32" computes without autocast.

    Raises:
        GradlightError: The precision is unknown.

    Example:
        >>> with Precision("bf16").passes(torch.device("cpu")):
        ...     (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
        torch.bfloat16
    """

    precision: str | None = None

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in _PRECISIONS:
            raise GradlightError(
                f"precision must be 'float32', 'bf16' or None (as the network is), not {self.precision!r}."
                f"{nearest(str(self.precision), _PRECISIONS)}"
            )

    def passes(self, device: torch.device) -> AbstractContextManager[object]:
        """Return the context in which the network's passes run."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def lay_out(self, pixels: Tensor, trunk: nn.Module) -> Tensor:
        """Lay pixels [B,3,H,W] out as the trunk computes fastest: in bfloat16, channels last for convolutions."""
        if self.precision == "bf16" and _is_convolutional(trunk):
            return pixels.contiguous(memory_format=torch.channels_last)
        return pixels


def _is_convolutional(trunk: nn.Module) -> bool:
    """Tell whether most of a network's weights are those of convolutions."""
    sizes = [(parameter.numel(), parameter.ndim) for parameter in trunk.parameters()]
    return 2 * sum(count for count, dimensions in sizes if dimensions == 4) > sum(count for count, _ in sizes)
