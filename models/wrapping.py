"""Networks as they come in practice: what is wrapped around them, what runs them otherwise, what is refused."""

from __future__ import annotations

import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from ..errors import GradlightError

__all__ = ["as_written", "check_explainable", "unwrapped"]


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
