"""Handing a signal down in shares: what excitation backpropagation and relevance propagation have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backward_rules import STRUCTURAL, check_constant, copying, steered

__all__ = ["ADDITIONS", "KNOWN", "SCALINGS", "Quotient", "added", "passed", "scaled", "shared"]

Quotient = Callable[[Tensor, Tensor], Tensor]
"""Divides a signal by the total that it is shared out of, and says what becomes of a total of zero."""

ADDITIONS = ("add", "iadd", "radd")
SCALINGS = ("mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv")
KNOWN = STRUCTURAL | {"max_pool1d", "max_pool2d", "adaptive_max_pool2d"}
"""Operations without a rule: their own gradient moves the signal, a maximum's to its winner."""


def shared(quotient: Quotient, run: Callable[[Tensor], Tensor], x: Tensor, signal: Tensor) -> Tensor:
    """Hand a signal to x in proportion to what each entry adds to a function that is linear piece by piece."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        made = run(leaf)
    (found,) = torch.autograd.grad(made, leaf, quotient(signal, made.detach()))
    return leaf.detach() * found


def passed(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an operation of one tensor and hand the signal on as it is."""
    return steered(copying(func, args, kwargs), lambda signal, x: (signal,), x)


def scaled(method: str, func: Any, first: Any, second: Any, **kwargs: Any) -> Any:
    """Multiply or divide by a constant, and hand the signal on as it is; two parts of the network are an error."""
    check_constant(method, func, first, second)
    if _flows(first):
        return steered(lambda x: func(x.clone(), second, **kwargs), _summed_to, first)
    return steered(lambda x: func(first, x, **kwargs), _summed_to, second)


def added(quotient: Quotient, func: Any, first: Any, second: Any, *, alpha: float = 1) -> Tensor:
    """Split at an addition of two parts of the network; what does not depend on the pixels is a bias."""
    if not _flows(first):
        return steered(lambda x: first + alpha * x, _summed_to, second)
    if not _flows(second):
        return steered(lambda x: x + alpha * second, _summed_to, first)

    def back(signal: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        part = quotient(signal, a + alpha * b)
        return (part * a).sum_to_size(a.shape), (part * alpha * b).sum_to_size(b.shape)

    return steered(lambda a, b: torch.add(a, b, alpha=alpha), back, first, second)


def _flows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _summed_to(signal: Tensor, x: Tensor) -> tuple[Tensor]:
    return (signal.sum_to_size(x.shape),)
