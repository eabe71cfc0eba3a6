"""Explain a network and leave it as it was: eval mode, frozen weights, put back bit for bit, also after an error."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GradlightError
from .strides import straighten
from .wrapping import as_written

__all__ = ["preserved", "trainable"]


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode with frozen parameters and gradients on, and put everything back at the end.

    What is put back: every module's training flag, every parameter's requires_grad, the identity and values of every
    buffer and of every tensor that is a module's attribute. `torch.no_grad()` or `inference_mode()` around the call
    make no difference, nor do compilation and checkpointing (`as_written`), nor how gradients lie in memory
    (`strides`). Hooks are their makers' to remove. Raises GradlightError if the weights were made under
    inference_mode: autograd cannot pass through them.
    """
    if any(parameter.is_inference() for parameter in network.parameters()):
        raise GradlightError(
            "The network's weights were made under torch.inference_mode(), and no gradient passes through such"
            " tensors. Build or load the network outside inference_mode."
        )
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(as_written())
        straighten(network, undo)
        for module in network.modules():
            _keep(module._buffers, undo)
            _keep_attributes(vars(module), undo)
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


def _keep(buffers: dict[str, Tensor | None], undo: ExitStack) -> None:
    """Note a module's buffers; those made under inference_mode cannot be overwritten in place here, only replaced."""
    undo.callback(_put_back, _values(buffers))
    undo.callback(_replace, buffers, dict(buffers))


def _keep_attributes(held: dict[str, Any], undo: ExitStack) -> None:
    """Note the tensors that are plain attributes, as torch's older weight_norm and spectral_norm leave the weight."""
    tensors = {name: value for name, value in held.items() if isinstance(value, Tensor)}
    if tensors:
        undo.callback(_put_back, _values(tensors))
        undo.callback(held.update, tensors)


def _values(tensors: Mapping[str, Tensor | None]) -> list[tuple[Tensor, int, Tensor]]:
    changeable = [tensor for tensor in tensors.values() if tensor is not None and not tensor.is_inference()]
    return [(tensor, tensor._version, tensor.detach().clone()) for tensor in changeable]


def _replace(buffers: dict[str, Tensor | None], former: dict[str, Tensor | None]) -> None:
    buffers.clear()
    buffers.update(former)


def _put_back(values: list[tuple[Tensor, int, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, version, value in values:
            if tensor._version != version:
                # An observer of quantization resizes its buffers.
                tensor.resize_(value.shape).copy_(value)
