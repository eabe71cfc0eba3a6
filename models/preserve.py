"""Explain a network and leave it as it was: eval mode, frozen weights, put back bit for bit, also after an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    modules, parameters = list(network.modules()), list(network.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        raise GradlightError(
            "The network's weights were made under torch.inference_mode(), and no gradient passes through such"
            " tensors. Build or load the network outside inference_mode."
        )
    with ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(as_written())
        straighten(modules, undo)
        _keep(modules, undo)
        for module in modules:
            if module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False
        for parameter in parameters:
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


def _keep(modules: Sequence[nn.Module], undo: ExitStack) -> None:
    """Note the buffers, and the tensors that are plain attributes, as torch's older weight_norm leaves the weight.

    Those made under inference_mode cannot be overwritten in place here, only replaced.
    """
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]
    attributes = [(vars(module), _tensors(vars(module))) for module in modules]
    kept = [tensor for _, held in [*buffers, *attributes] for tensor in held.values() if tensor is not None]
    values = [(tensor, tensor._version, tensor.detach().clone()) for tensor in kept if not tensor.is_inference()]
    undo.callback(_put_back, values)
    undo.callback(_replace, buffers, attributes)


def _tensors(held: dict[str, Any]) -> dict[str, Tensor | None]:
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


_Held = Sequence[tuple[dict[str, Any], dict[str, Tensor | None]]]


def _replace(buffers: _Held, attributes: _Held) -> None:
    for held, former in buffers:
        held.clear()
        held.update(former)
    for held, former in attributes:
        held.update(former)


def _put_back(values: list[tuple[Tensor, int, Tensor]]) -> None:
    with torch.no_grad():
        for tensor, version, value in values:
            if tensor._version != version:
                # An observer of quantization resizes its buffers.
                tensor.resize_(value.shape).copy_(value)
