"""As many threads as a small tensor is worth: to wake the others takes longer than what they would do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["few_threads"]

_WORTH = 2**25
"""Bytes times threads. A pass over 16 MB waits for the memory, and two threads wait no shorter than one; the more there
are, the smaller is what one alone gets through before they have come in."""


@contextmanager
def few_threads(tensor: Tensor) -> Iterator[None]:
    """Let this thread alone work on what is as small as a tensor on the CPU; other threads' settings stay.

    Only where torch has OpenMP, whose number of threads is each thread's own.
    """
    count = torch.get_num_threads()
    work = tensor.numel() * tensor.element_size() * count
    if count == 1 or work > _WORTH or tensor.device.type != "cpu" or not torch.backends.openmp.is_available():
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
