"""Keep torch's batch norm from misreading a gradient that came of tokens.

Its backward pass on the CPU takes a gradient [1,C,h,w] whose first stride is not C·h·w, as one of tokens laid out as a
grid has it, for one in another order, and gives wrong numbers (torch 2.15 still does).
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

__all__ = ["straighten"]


def straighten(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Let the gradients of the norms among modules lie in memory as their shape says, until `undo` is closed."""
    for module in modules:
        if isinstance(module, _NormBase):
            undo.callback(module.register_forward_hook(_watch).remove)


def _watch(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    alone = isinstance(output, Tensor) and output.requires_grad and output.shape[0] == 1
    if alone and output.device.type == "cpu":
        output.register_hook(_straight)


def _straight(gradient: Tensor) -> Tensor:
    return gradient if gradient.stride(0) == gradient.numel() else gradient.contiguous()
