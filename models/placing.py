"""Bringing a network to a device."""

from __future__ import annotations

import torch
from torch import nn

from ..errors import GradlightError

__all__ = ["Device", "place"]

Device = str | torch.device | None


def place(network: nn.Module, device: str | torch.device) -> None:
    """Move a network to a device; raises GradlightError where there is no such device, or no room."""
    try:
        network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise GradlightError(
            f'The network cannot go to device {str(device)!r}: {str(error).splitlines()[0]} Give "cpu", or "cuda" on a'
            " machine with a GPU."
        ) from error
