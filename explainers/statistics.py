"""All statistics that the methods read of a tap in one pass over its values, compiled by torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial

import torch
from torch import Tensor

from ..errors import GradlightError
from .capture import Tap
from .contributions import Dense

__all__ = ["Statistics"]

Wanted = tuple[tuple[str, str], ...]
"""Pairs of a field of a tap and a statistic of it, such as ("gradient_field", "norm")."""

_FIELDS = ("activation_field", "gradient_field", "product_field")
# Shapes of taps for which torch may compile anew; its own bound of 8 is fewer than VGG's.
_SHAPES = 64


class Statistics:
    """Compute the statistics of taps together; which ones the methods read is learnt from the first tap."""

    def __init__(self) -> None:
        self._wanted: Wanted | None = None

    def fill(self, tap: Tap) -> None:
        """Compute what the methods will read of a tap [B,C,h,w], as [B,1,h,w] each, as far as it is not there yet.

        Raises GradlightError where torch cannot compile.
        """
        wanted = tuple((name, what) for name, what in self._wanted or () if what not in getattr(tap, name).__dict__)
        if not wanted:
            return
        found = _computed(wanted, tap.activation, tap.gradient)
        for (name, what), values in zip(wanted, found, strict=True):
            getattr(tap, name).__dict__[what] = values

    def learn(self, tap: Tap) -> None:
        """Note what the methods have read of a tap."""
        if self._wanted is None:
            self._wanted = tuple((name, what) for name in _FIELDS for what in _FORMULAS if what in _read(tap, name))


def _read(tap: Tap, name: str) -> dict[str, object]:
    field: Dense | None = tap.__dict__.get(name)
    return {} if field is None else field.__dict__


_seen: set[tuple[object, ...]] = set()
"""What torch has compiled: the statistics, and how the tensors lie in memory."""


def _computed(wanted: Wanted, activation: Tensor, gradient: Tensor) -> list[Tensor]:
    compute = _compiled(wanted)
    kind = (wanted, *((each.shape, each.stride(), each.dtype, each.device) for each in (activation, gradient)))
    # `preserved` turns off what the user has compiled, not this.
    with torch.compiler.set_stance("default"):
        if kind in _seen:
            # Something else may have changed that torch compiles for, such as the number of threads.
            with suppress(torch._dynamo.exc.FailOnRecompileLimitHit):
                return compute(activation, gradient)
        return _first(kind, partial(compute, activation, gradient))


def _first(kind: tuple[object, ...], compute: Callable[[], list[Tensor]]) -> list[Tensor]:
    try:
        # Not in every call: a change of its settings costs torch more than the statistics do.
        with torch._dynamo.config.patch(recompile_limit=_SHAPES):
            found = compute()
    except Exception as error:
        raise GradlightError(
            f"compile=True failed in torch.compile: {str(error).strip().splitlines()[0]} On the CPU it needs a C++"
            " compiler, such as g++. Without compile=True the maps are the same, and take a little longer."
        ) from error
    _seen.add(kind)
    return found


@cache
def _compiled(wanted: Wanted) -> Callable[[Tensor, Tensor], list[Tensor]]:
    def compute(activation: Tensor, gradient: Tensor) -> list[Tensor]:
        values = dict(zip(_FIELDS, (activation, gradient, gradient * activation), strict=True))
        return [_FORMULAS[what](values[name]) for name, what in wanted]

    compiled: Callable[[Tensor, Tensor], list[Tensor]] = torch.compile(compute, dynamic=False, fullgraph=True)
    return compiled


def _norm(values: Tensor) -> Tensor:
    """Give the root of the summed squares, which may be too small or too large for float32, of [B,C,h,w]."""
    largest = values.abs().amax((1, 2, 3), keepdim=True)
    scale = torch.where(largest > 0, largest, 1.0)
    return (values / scale).square().sum(1, keepdim=True).sqrt() * scale


_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "total": lambda values: values.sum(1, keepdim=True),
    "highest": lambda values: values.amax(1, keepdim=True),
    "lowest": lambda values: values.amin(1, keepdim=True),
    "norm": _norm,
    "positive_norm": lambda values: _norm(values.clamp(min=0)),
    "negative_norm": lambda values: _norm(values.clamp(max=0)),
}
