"""Explain a network and leave it as it was: eval mode, frozen weights, put back bit for bit, also after an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from ..errors import GradlightError

__all__ = ["preserved", "trainable"]


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode with frozen parameters and gradients on, and put everything back at the end.

    What is put back: every module's training flag, every parameter's requires_grad, every buffer's identity and
    values. `torch.no_grad()` or `inference_mode()` around the call make no difference. Hooks are their makers' to
    remove. Raises GradlightError if the weights were made under inference_mode: autograd cannot pass through them.
    """
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise GradlightError(
            "The network's weights were made under torch.inference_mode(), and no gradient passes through such"
            " tensors. Build or load the network outside inference_mode."
        )
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        for module in network.modules():
            _keep_buffers(module, undo)
            if module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False
        for parameter in network.parameters():
            if parameter.requires_grad:
                undo.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        yield


@contextmanager
def trainable(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Give every floating-point parameter with requires_grad on, for as long as the weights' gradient is needed."""
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    with ExitStack() as undo:
        for parameter in parameters:
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        yield parameters


def _keep_buffers(module: nn.Module, undo: ExitStack) -> None:
    """Note a module's buffers; those made under inference_mode cannot be overwritten in place here, only replaced."""
    changeable = [buffer for buffer in module._buffers.values() if buffer is not None and not buffer.is_inference()]
    values = [(buffer, buffer._version, buffer.clone()) for buffer in changeable]
    undo.callback(_put_back, module, dict(module._buffers), values)


def _put_back(module: nn.Module, buffers: dict[str, Tensor | None], values: list[tuple[Tensor, int, Tensor]]) -> None:
    module._buffers.clear()
    module._buffers.update(buffers)
    with torch.no_grad():
        for buffer, version, value in values:
            if buffer._version != version:
                buffer.copy_(value)
