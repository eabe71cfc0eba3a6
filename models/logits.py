"""Find the logits in whatever a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import GradlightError

__all__ = ["Output", "find_logits"]

Output = str | int | None
"""A key, position or attribute of the network's answer that holds the logits; None: look for them."""

_NAMES = ("logits", "out", "output")


def find_logits(answer: Any, output: Output = None) -> Tensor:
    """Find the logits [B,C] in a network's answer, and compute in float32 at least from there on.

    They are the tensor itself; in a tuple or list the first one of shape [B,C]; in a mapping "logits", "out" or
    "output", or else the only tensor of that shape; of any other object the attribute `logits`. `output` names them
    instead. Raises GradlightError, saying what was found, where there are none.
    """
    logits: Tensor | None = _search(answer) if output is None else _named(answer, output)
    if logits is None or not _fits(logits):
        asked = f" at output={output!r}" if output is not None else ""
        hint = (
            "output= names a key, a position or an attribute that holds them."
            if output is None
            else "Name another key, position or attribute."
        )
        raise GradlightError(f"No logits [B,C] were found{asked}: the network gave {_shown(answer)}. {hint}")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _search(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping):
        named = [answer[name] for name in _NAMES if _fits(answer.get(name))]
        fitting = [value for value in answer.values() if _fits(value)]
        return named[0] if named else fitting[0] if len(fitting) == 1 else None
    if _fits(held := getattr(answer, "logits", None)):
        return held
    if isinstance(answer, (tuple, list)):
        return next((value for value in answer if _fits(value)), None)
    return None


def _named(answer: Any, output: str | int) -> Any:
    if isinstance(output, str) and not isinstance(answer, Mapping):
        return getattr(answer, output, None)
    try:
        return answer[output]
    except (IndexError, KeyError, TypeError):
        return None


def _fits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point() and value.shape[1] > 0


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key!r}: {_shown(part)}" for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        inside = ", ".join(_shown(part) for part in value)
    else:
        return type(value).__name__
    return f"{type(value).__name__}({inside})"
