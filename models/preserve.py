"""Explain a network and leave it as it was: eval mode, frozen weights, put back bit for bit, also after an error.

Keep torch's batch norm from misreading a gradient that came of tokens.

Its backward pass on the CPU takes a gradient [1,C,h,w] whose first stride is not C·h·w, as one of tokens laid out as a
grid has it, for one in another order, and gives wrong numbers (torch 2.15 still does).

Networks as they come in practice: what is wrapped around them, what runs them otherwise, what is refused.

Bringing a network to a device.
"""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..errors import GradlightError

__all__ = [
    "Device",
    "as_written",
    "check_explainable",
    "preserved",
    "straighten",
    "to_device",
    "trainable",
    "unwrapped",
]


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


def unwrapped(network: nn.Module) -> nn.Module:
    """Take off what is wrapped around a whole network: torch.compile, DataParallel, DDP, an averaged model.

    Neither changes what the network computes, and its layers keep the names that they have without it.
    """
    while True:
        parts = vars(network).get("_modules")
        name = "module" if isinstance(network, (DataParallel, DistributedDataParallel, AveragedModel)) else "_orig_mod"
        # Not getattr: adapters such as peft's answer for the networks inside them.
        inside = parts.get(name) if isinstance(parts, dict) else None
        if inside is None:
            return network
        network = inside


@contextmanager
def as_written() -> Iterator[None]:
    """Run networks operation by operation, as their forward is written: uncompiled, and without checkpointing.

    Compiled code fires no hooks inside. A checkpointed part would run a second time in the backward pass, without the
    taps of the first. Autocast stays the caller's choice, but keeps no casts of weights that may be moved meanwhile.
    """
    with ExitStack() as undo:
        if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        undo.callback(torch.set_autocast_cache_enabled, torch.is_autocast_cache_enabled())
        torch.set_autocast_cache_enabled(False)
        undo.enter_context(_checkpointing.off())
        yield


class _Straight:
    """What torch's reentrant checkpointing does, without it: run the part."""

    @staticmethod
    def apply(run: Callable[..., Any], preserve: bool, *args: Any) -> Any:
        return run(*args)


class _Checkpointing:
    """The two places in torch.utils.checkpoint where the two modes begin, put aside for as long as anybody needs it."""

    def __init__(self) -> None:
        self.straight = {"CheckpointFunction": _Straight, "_checkpoint_hook": lambda *args, **options: nullcontext()}
        self.lock, self.users, self.kept = threading.Lock(), 0, dict[str, Any]()

    @contextmanager
    def off(self) -> Iterator[None]:
        held = vars(torch.utils.checkpoint)
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.kept = {name: held[name] for name in self.straight if name in held}
                held.update({name: self.straight[name] for name in self.kept})
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    held.update(self.kept)


_checkpointing = _Checkpointing()


def check_explainable(network: nn.Module) -> None:
    """Raise GradlightError for a network through which no gradient can pass, or that takes more than an image."""
    for name, module in network.named_modules():
        if reason := _hindrance(module):
            where = f"Its module {name!r}" if name else "The network"
            raise GradlightError(f"{where} {reason}")
    needed = _required(network)
    if len(needed) > 1:
        more = ", ".join(map(repr, needed[1:]))
        raise GradlightError(
            f"{type(network).__name__} takes more than an image: its forward needs {', '.join(map(repr, needed))}. Give"
            f" a module whose forward takes the pixels alone and calls the network with them and {more}."
        )


def _hindrance(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return (
            "is TorchScript, where no hook reaches a layer. Give the module that torch.jit.script or torch.jit.trace"
            " was given."
        )
    if "quantized" in type(module).__module__.split("."):
        return (
            f"is quantized ({type(module).__name__}), and integer arithmetic has no gradient. Give the floating-point"
            " network, or the one prepared for quantization before it was converted."
        )
    tensors = [tensor for tensor in (*module._parameters.values(), *module._buffers.values()) if tensor is not None]
    if any(torch.nn.parameter.is_lazy(tensor) for tensor in tensors):
        return "is lazy and has no weights yet. Run it once on an image, then give it."
    if any(tensor.is_meta for tensor in tensors):
        return "has its weights on the meta device, so they have no values. Load them first."
    return None


def _required(network: nn.Module) -> list[str]:
    """Name the arguments that a network's forward cannot do without."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in named if p.default is p.empty]


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


Device = str | torch.device | None


def to_device(network: nn.Module, device: str | torch.device) -> None:
    """Move a network to a device; raises GradlightError where there is no such device, or no room."""
    try:
        if torch.device(device).type == "meta":
            raise RuntimeError("the weights would have no values there.")
        network.to(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise GradlightError(
            f"The network cannot go to device {str(device)!r}: {reason}. Here there are: {', '.join(_devices())}."
        ) from error


def _devices() -> list[str]:
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *found, *(["mps"] if torch.backends.mps.is_available() else [])]
