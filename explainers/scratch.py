"""Memory to work in that is used over and over: a large tensor that is freed goes back to the system, page by page."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["scratch_like"]

_MOST = 2**24
_held = threading.local()


def scratch_like(tensor: Tensor) -> Tensor:
    """Give memory for values like a tensor's, laid out as it is; the next call in the same thread gives the same.

    On the CPU it is one piece for each dtype, of 16 MB at the most, which the thread keeps; what is larger, elsewhere
    or not dense is new memory.
    """
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type != "cpu" or size > _MOST or not _is_dense(tensor):
        return torch.empty_like(tensor)
    pieces: dict[torch.dtype, Tensor] = _held.__dict__.setdefault("pieces", {})
    piece = pieces.get(tensor.dtype)
    if piece is None or piece.numel() < tensor.numel():
        piece = pieces[tensor.dtype] = torch.empty(tensor.numel(), dtype=tensor.dtype)
    return piece[: tensor.numel()].as_strided(tensor.shape, tensor.stride())


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor fills its memory without gaps, in whatever order of its dimensions."""
    filled = 1
    steps = [step for step in zip(tensor.stride(), tensor.shape, strict=True) if step[1] > 1]
    for stride, size in sorted(steps):
        if stride != filled:
            return False
        filled *= size
    return True
