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
        if torch.device(device).type == "meta":
            raise RuntimeError("the weights would have no values there.")
        network.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise GradlightError(
            f"The network cannot go to device {str(device)!r}: {reason}. Here there are: {', '.join(_devices())}."
        ) from error


def _devices() -> list[str]:
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *found, *(["mps"] if torch.backends.mps.is_available() else [])]
