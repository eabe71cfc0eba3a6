"""How the passes are computed: in the network's own precision or in bfloat16, with statistics compiled or not."""

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
    """precision: None computes as the network is; "bf16" runs its passes under autocast to bfloat16.

    Statistics are in float32 at least, always. compile: let torch compile them, once for each shape of a layer.
    Raises GradlightError for another precision.
    """

    precision: str | None = None
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision is not None and self.precision not in _PRECISIONS:
            raise GradlightError(
                f"precision is 'float32', 'bf16' or None (as the network is), not {self.precision!r}."
                f"{nearest(str(self.precision), _PRECISIONS)}"
            )

    def passes(self, device: torch.device) -> AbstractContextManager[object]:
        """Hold what the network's passes need."""
        if self.precision is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=torch.bfloat16, enabled=self.precision == "bf16")

    def lay_out(self, pixels: Tensor, trunk: nn.Module) -> Tensor:
        """Lay pixels [B,3,H,W] out as the trunk computes fastest: in bfloat16, channels last for convolutions."""
        if self.precision == "bf16" and _convolves(trunk):
            return pixels.contiguous(memory_format=torch.channels_last)
        return pixels


def _convolves(trunk: nn.Module) -> bool:
    """Tell whether most of a network's weights are those of convolutions."""
    sizes = [(parameter.numel(), parameter.ndim) for parameter in trunk.parameters()]
    return 2 * sum(count for count, dimensions in sizes if dimensions == 4) > sum(count for count, _ in sizes)
