"""Proportional propagation rules, shared by excitation backpropagation and relevance propagation.

Each distributes the signal at an operation's output among its inputs, in proportion to what each contributes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .backward_rules import STRUCTURAL, check_constant_factor, depends_on_pixels, out_of_place, replace_backward

__all__ = [
    "ADDITIONS",
    "ALLOWED",
    "SCALINGS",
    "Quotient",
    "distribute",
    "pass_constant_factor",
    "pass_unchanged",
    "split_addition",
]

Quotient = Callable[[Tensor, Tensor], Tensor]
"""Divides a signal by the total that it is distributed over, and defines the result for a total of zero."""

ADDITIONS = ("add", "iadd", "radd")
SCALINGS = ("mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv")
ALLOWED = STRUCTURAL | {"max_pool1d", "max_pool2d", "adaptive_max_pool2d"}
"""Operations without a rule: their own gradient propagates the signal, that of a maximum to its winner."""


def distribute(quotient: Quotient, run: Callable[[Tensor], Tensor], x: Tensor, signal: Tensor) -> Tensor:
    """Distribute a signal over x in proportion to what each entry contributes to a piecewise linear function.

    Example:
        >>> import torch
        >>> distribute(torch.div, lambda x: x.sum(), torch.tensor([1.0, 3.0]), torch.tensor(8.0)).tolist()
        [2.0, 6.0]
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = run(leaf)
    (gradient,) = torch.autograd.grad(result, leaf, quotient(signal, result.detach()))
    return leaf.detach() * gradient


def pass_unchanged(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an operation of one tensor, and propagate the signal unchanged."""
    return replace_backward(out_of_place(func, args, kwargs), lambda signal, x: (signal,), x)


def pass_constant_factor(method: str, func: Any, first: Any, second: Any, **kwargs: Any) -> Any:
    """Multiply or divide by a constant, and propagate the signal unchanged; two parts of the network are an error."""
    check_constant_factor(method, func, first, second)
    if depends_on_pixels(first):
        return replace_backward(lambda x: func(x.clone(), second, **kwargs), _summed_to_shape, first)
    return replace_backward(lambda x: func(first, x, **kwargs), _summed_to_shape, second)


def split_addition(quotient: Quotient, func: Any, first: Any, second: Any, *, alpha: float = 1) -> Tensor:
    """Split the signal at a sum of two parts of the network; an addend that does not depend on the pixels is a bias."""
    if not depends_on_pixels(first):
        return replace_backward(lambda x: first + alpha * x, _summed_to_shape, second)
    if not depends_on_pixels(second):
        return replace_backward(lambda x: x + alpha * second, _summed_to_shape, first)

    def backward(signal: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        per_unit = quotient(signal, a + alpha * b)
        return (per_unit * a).sum_to_size(a.shape), (per_unit * alpha * b).sum_to_size(b.shape)

    return replace_backward(lambda a, b: torch.add(a, b, alpha=alpha), backward, first, second)


def _summed_to_shape(signal: Tensor, x: Tensor) -> tuple[Tensor]:
    return (signal.sum_to_size(x.shape),)
