"""Notice that tensors were written to without reading them all: marks, sums and samples of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

__all__ = ["Probe"]

Array = npt.NDArray[Any]
Read = Callable[[], Array]

_WHOLE = 32 << 20
_SMALL = 32 << 10
_STEP = 256
# A prime: a row of weights put in the place of another then falls on other columns.
_COLUMNS = 1021
_UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Probe:
    """What a list of tensors looked like, to compare with later.

    Noticed for certain: another tensor, memory, shape, dtype, and every change that moves a version counter
    (optimizers, everything in place under autograd or no_grad). Writes that move none (through `.data`, through NumPy,
    under inference_mode) are noticed by looking at the numbers. Up to 32 MiB of tensors are looked at whole: each below
    32 KiB by its bytes, the others by 1021 column sums of their 64-bit words, which change with any one number. Of
    more than that, tensors below 32 KiB are looked at whole; of the others the last number, every 256th, the first
    of every row (filter) and that of every input of the first row. So what changes a whole filter, a whole input
    channel or 256 consecutive numbers is noticed for certain, and what changes one number, through `.data`, with a
    probability of 1 in 256.

    The memory of the tensors is held until the probe is gone. Raises TypeError for tensors that are not plain memory
    (sparse, quantised, of a class of their own, on the meta device).
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._marks = _marks(tensors)
        with torch.no_grad():
            self._reads = _reads(tensors)
            self._found = [read().copy() for read in self._reads]

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these tensors look as they did then."""
        if _marks(tensors) != self._marks:
            return False
        with torch.no_grad():
            pairs = zip(self._reads, self._found, strict=True)
            return all(np.array_equal(read(), found) for read, found in pairs)


def _marks(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    try:
        return [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in tensors]
    except RuntimeError:  # tensors made under inference_mode have no version
        versions = [-1 if t.is_inference() else t._version for t in tensors]
        return [
            (t.data_ptr(), version, t.shape, t.stride(), t.dtype) for t, version in zip(tensors, versions, strict=True)
        ]


def _reads(tensors: Sequence[Tensor]) -> list[Read]:
    """Sort memory by how it is looked at: whole, by sums, by samples."""
    reads: list[Read] = []
    whole: list[Tensor] = []
    folded: list[Tensor] = []
    sampled: list[Tensor] = []
    unique = {(t.data_ptr(), t.shape): t for t in tensors if t.numel()}.values()
    few = sum(t.numel() * t.element_size() for t in unique) <= _WHOLE
    for tensor in unique:
        flat = _flat(tensor)
        if flat is None:
            reads.append(_copying(tensor))
            continue
        if len(flat) <= _SMALL:
            whole.append(flat)
        elif few and flat.storage_offset() % 8 == 0 and flat.data_ptr() % 8 == 0:
            size = len(flat) // (8 * _COLUMNS) * (8 * _COLUMNS)
            folded.append(flat[:size].view(torch.int64).view(-1, _COLUMNS))
            whole.append(flat[size:])
        else:
            numbers = flat.view(_UNITS[min(tensor.element_size(), 8)])
            sampled += [numbers[::_STEP], numbers[-1:], *_edges(tensor)]
    reads += [_joining(group) for group in _alike(whole)]
    reads += [_folding(group) for group in _alike(folded)]
    return reads + [_joining(group) for group in _alike(sampled)]


def _edges(tensor: Tensor) -> list[Tensor]:
    """Give the first number of every filter, and of every input channel of the first filter."""
    if tensor.ndim < 2 or tensor.element_size() not in _UNITS:
        return []
    numbers = tensor.detach().view(_UNITS[tensor.element_size()])
    while numbers.ndim > 2:
        numbers = numbers.select(-1, 0)
    return [numbers[:, 0], numbers[0]]


def _flat(tensor: Tensor) -> Tensor | None:
    """Give the bytes of a tensor as they lie in memory, or None if other numbers lie between them."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{type(tensor).__name__} is not plain memory")
    if tensor.device.type == "meta" or tensor.is_conj() or tensor.is_neg():
        raise TypeError("there are no numbers in memory")
    step = 1
    for stride, side in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if side > 1 and stride != step:
            return None
        step *= side
    flat = tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.view(torch.uint8)


def _alike(views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group views by device and kind of number."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for view in views:
        groups.setdefault((view.device, view.dtype), []).append(view)
    return list(groups.values())


def _copying(tensor: Tensor) -> Read:
    return lambda: tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()


def _joining(views: Sequence[Tensor]) -> Read:
    if views[0].device.type != "cpu":
        return lambda: torch.cat(list(views)).cpu().numpy()
    # NumPy gathers many strided views twice as fast, and into the same memory every time.
    arrays = [view.numpy() for view in views]
    into = np.empty(sum(map(len, arrays)), arrays[0].dtype)
    return lambda: np.concatenate(arrays, out=into)


def _folding(views: Sequence[Tensor]) -> Read:
    if views[0].device.type != "cpu":
        return lambda: torch.stack([view.sum(0) for view in views]).cpu().numpy()
    arrays = [view.numpy() for view in views]
    into = np.empty((len(arrays), _COLUMNS), np.int64)

    def read() -> Array:
        for array, row in zip(arrays, into, strict=True):
            np.add.reduce(array, axis=0, out=row)
        return into

    return read
