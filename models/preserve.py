"""Explain a network and leave it as it was: eval mode and frozen weights, undone bit for bit, also after an error.

Calls at the same time on one network take turns (`exclusive`). Here too is what differs between networks in practice:
wrappers around a network, compilation and checkpointing that would hide its layers, networks that cannot be explained,
a batch norm that misreads gradients, and devices.
"""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

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
    "contiguous_norm_gradients",
    "exclusive",
    "plain_runs",
    "preserved",
    "this_thread",
    "to_device",
    "trainable",
    "unwrapped",
]

Device = str | torch.device | None
"""A device, or None for the one that the network is on."""


# --- a network in eval mode, restored afterwards ---


@contextmanager
def preserved(network: nn.Module) -> Iterator[None]:
    """Put a network into eval mode with frozen parameters and gradients on, and restore everything at the end.

    Restored are every module's training flag, every parameter's requires_grad, the identity and values of every
    buffer and of every tensor that is a module's attribute. `torch.no_grad()` or `inference_mode()` around the call
    make no difference, nor do compilation and checkpointing (`as_written`), nor how gradients lie in memory
    (`contiguous_norm_gradients`). Hooks are for those to remove who register them. Other threads wait (`exclusive`).

    Args:
        network: The network.

    Yields:
        Nothing.

    Raises:
        GradlightError: If the weights were made under inference_mode: autograd cannot pass through them.

    Example:
        >>> from torch import nn
        >>> from gradlight.models.preserve import preserved
        >>> network = nn.Dropout(0.5)
        >>> with preserved(network):
        ...     network.training
        False
        >>> network.training
        True
    """
    modules, parameters = list(network.modules()), list(network.parameters())
    if any(parameter.is_inference() for parameter in parameters):
        raise GradlightError(
            "The network's weights were made under torch.inference_mode(), and no gradient passes through such"
            " tensors. Build or load the network outside inference_mode."
        )
    count = len(this_thread.restorations)
    with exclusive(network), ExitStack() as undo:
        undo.enter_context(torch.inference_mode(False))
        undo.enter_context(torch.enable_grad())
        undo.enter_context(as_written())
        contiguous_norm_gradients(modules, undo)
        _restore_tensors(modules, undo)
        for module in modules:
            if module.training:
                undo.callback(setattr, module, "training", True)
                module.training = False
        for parameter in parameters:
            if parameter.requires_grad:
                undo.callback(parameter.requires_grad_, True)
                parameter.requires_grad_(False)
        yield
    del this_thread.restorations[count:]  # all of it is done; after an error it is done once more


@contextmanager
def trainable(network: nn.Module) -> Iterator[list[nn.Parameter]]:
    """Set requires_grad of every floating-point parameter, for as long as the weights' gradient is needed.

    Args:
        network: The network.

    Yields:
        These parameters.
    """
    parameters = [p for p in network.parameters() if p.is_floating_point()]
    with ExitStack() as undo:
        for parameter in parameters:
            undo.callback(parameter.requires_grad_, parameter.requires_grad)
            parameter.requires_grad_(True)
        yield parameters


_TensorDicts = Sequence[tuple[dict[str, Any], dict[str, Tensor | None]]]
"""Dictionaries of modules, each with a copy of the tensors that it held."""


def _restore_tensors(modules: Sequence[nn.Module], undo: ExitStack) -> None:
    """Restore at the end the buffers, and the tensors that are plain attributes, as torch's older weight_norm has.

    Those made under inference_mode cannot be overwritten in place here, only replaced.
    """
    buffers = [(module._buffers, dict(module._buffers)) for module in modules]
    attributes = [(vars(module), _tensors(vars(module))) for module in modules]
    tensors = [tensor for _, held in [*buffers, *attributes] for tensor in held.values() if tensor is not None]
    values = [(tensor, tensor._version, tensor.detach().clone()) for tensor in tensors if not tensor.is_inference()]
    identities = partial(_restore_identities, buffers, attributes)
    undo.callback(_restore_values, values)
    undo.callback(identities)
    if this_thread.watched:
        this_thread.restorations += [partial(_restore_values, values, by_version=False), identities]


def _tensors(held: dict[str, Any]) -> dict[str, Tensor | None]:
    return {name: value for name, value in held.items() if isinstance(value, Tensor)}


def _restore_identities(buffers: _TensorDicts, attributes: _TensorDicts) -> None:
    for held, former in buffers:
        held.clear()
        held.update(former)
    for held, former in attributes:
        held.update(former)


def _restore_values(values: list[tuple[Tensor, int, Tensor]], by_version: bool = True) -> None:
    """Restore values; after an error by all means, for that may come between a tensor's change and its version's."""
    with torch.no_grad():
        for tensor, version, value in values:
            if not by_version or tensor._version != version:
                # An observer of quantization resizes its buffers.
                tensor.resize_(value.shape).copy_(value)


# --- calls at the same time


class _NetworkLocks:
    """Give every network its lock. Networks that share a module share the lock, or take each other's too."""

    def __init__(self) -> None:
        self._lock_of: WeakKeyDictionary[nn.Module, tuple[int, Any]] = WeakKeyDictionary()
        self._guard, self._count = threading.Lock(), 0

    def of(self, network: nn.Module) -> list[Any]:
        """List the locks of a network's modules, always in the same order; new modules get the first of them."""
        modules = list(network.modules())
        with self._guard:
            known = {lock[0]: lock for module in modules if (lock := self._lock_of.get(module)) is not None}
            if not known:
                self._count += 1
            first = known[min(known)] if known else (self._count, threading.RLock())
            for module in modules:
                self._lock_of.setdefault(module, first)
        return [known[number][1] for number in sorted(known)] or [first[1]]


_network_locks = _NetworkLocks()
if hasattr(os, "register_at_fork"):
    # A thread that held a lock does not exist in the child.
    os.register_at_fork(after_in_child=_network_locks.__init__)  # type: ignore[misc]


def exclusive(network: nn.Module) -> AbstractContextManager[Any]:
    """Let no other thread work on a network meanwhile; networks that share no module with it run in parallel.

    Hooks, flags and a meta step belong to a whole network, so calls on one network take turns. A call inside of another
    one of the same thread goes through.

    Args:
        network: The network.

    Returns:
        The context. It is the lock itself wherever possible: no Ctrl-C can come between that and a `with`.
    """
    first, *others = _network_locks.of(network)
    return _all_of([first, *others]) if others else first


@contextmanager
def _all_of(locks: Sequence[Any]) -> Iterator[None]:
    with locks[0], _all_of(locks[1:]) if locks[1:] else nullcontext():
        yield


# --- what a clean-up of this thread has to do, for the case that it is interrupted


class _OfThisThread(threading.local):
    """What `preserved` must restore, and how many uncompiled runs there are, in this thread."""

    def __init__(self) -> None:
        self.watched = False
        self.restorations: list[Callable[[], None]] = []
        self.plain_runs: list[object] = []


this_thread = _OfThisThread()


# --- compilation and checkpointing


@contextmanager
def as_written() -> Iterator[None]:
    """Run networks operation by operation, as their forward is written: uncompiled, and without checkpointing.

    Compiled code runs no hooks inside. A checkpointed block would run a second time in the backward pass, without the
    taps of the first. Autocast stays the caller's choice, but keeps no casts of weights that may change meanwhile.

    Yields:
        Nothing.
    """
    run = object()
    try:
        this_thread.plain_runs.append(run)
        plain_runs.begin(run)
        yield
    finally:
        plain_runs.end(run)
        this_thread.plain_runs.remove(run)


class _PlainCheckpointFunction:
    """What torch's reentrant checkpointing does, without it: run the block."""

    @staticmethod
    def apply(run: Callable[..., Any], _preserve: bool, *args: Any) -> Any:
        return run(*args)


class _PlainRuns:
    """What `as_written` sets for all threads at once: from the first run that begins until the last that ends.

    Checkpointing has two entry points in torch.utils.checkpoint, one for each of its modes.
    """

    def __init__(self) -> None:
        self.replacements = {
            "CheckpointFunction": _PlainCheckpointFunction,
            "_checkpoint_hook": lambda *args, **options: nullcontext(),
        }
        self.lock, self.runs, self.originals = threading.RLock(), set[object](), dict[str, Any]()
        self.stance: Any = None
        self.caches_casts = True

    def begin(self, run: object) -> None:
        namespace = vars(torch.utils.checkpoint)
        with self.lock:
            if not self.runs:
                self.originals = {name: namespace[name] for name in self.replacements if name in namespace}
                self.caches_casts = torch.is_autocast_cache_enabled()
            self.runs.add(run)
            namespace.update({name: self.replacements[name] for name in self.originals})
            torch.set_autocast_cache_enabled(False)
            dynamo = sys.modules.get("torch._dynamo.eval_frame")
            if self.stance is None and hasattr(dynamo, "_stance"):
                # Noted before it is changed: set_stance's own note is lost where Ctrl-C falls into it.
                self.stance = vars(dynamo)["_stance"]
                torch.compiler.set_stance("force_eager")

    def end(self, run: object) -> None:
        with self.lock:
            if run in self.runs and len(self.runs) == 1:
                vars(torch.utils.checkpoint).update(self.originals)
                torch.set_autocast_cache_enabled(self.caches_casts)
                if self.stance is not None:
                    vars(sys.modules["torch._dynamo.eval_frame"])["_set_stance"](self.stance)
                    self.stance = None
            self.runs.discard(run)


plain_runs = _PlainRuns()


# --- strides of gradients ---


def contiguous_norm_gradients(modules: Iterable[nn.Module], undo: ExitStack) -> None:
    """Make the gradients that reach batch and instance norms contiguous, until `undo` is closed.

    On the CPU, torch's backward pass of a norm takes a gradient [1,C,h,w] whose first stride is not C·h·w, as that of
    tokens arranged as a grid, for one in another memory order, and gives wrong numbers (torch 2.15 still does).

    Args:
        modules: Modules; those that are no norms are left alone.
        undo: Removes the hooks.
    """
    for module in modules:
        if isinstance(module, _NormBase):
            undo.callback(module.register_forward_hook(_hook_gradient).remove)


def _hook_gradient(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    one_image = isinstance(output, Tensor) and output.requires_grad and output.shape[0] == 1
    if one_image and output.device.type == "cpu":
        output.register_hook(_contiguous)


def _contiguous(gradient: Tensor) -> Tensor:
    return gradient if gradient.stride(0) == gradient.numel() else gradient.contiguous()


# --- wrappers, and networks that cannot be explained ---


def unwrapped(network: nn.Module) -> nn.Module:
    """Take off the wrappers of a network: torch.compile, DataParallel, DDP, an averaged model.

    None of them changes what the network computes, and its layers keep the names that they have without it.

    Args:
        network: A network.

    Returns:
        The network inside, or the same.

    Example:
        >>> from torch import nn
        >>> from gradlight.models.preserve import unwrapped
        >>> unwrapped(nn.DataParallel(nn.Linear(2, 3)))
        Linear(in_features=2, out_features=3, bias=True)
    """
    while True:
        modules = vars(network).get("_modules")
        name = "module" if isinstance(network, (DataParallel, DistributedDataParallel, AveragedModel)) else "_orig_mod"
        # Not getattr: adapters such as peft's answer for the networks inside them.
        inside = modules.get(name) if isinstance(modules, dict) else None
        if inside is None:
            return network
        network = inside


def check_explainable(network: nn.Module) -> None:
    """Check that gradients can pass through a network, and that it takes an image alone.

    Args:
        network: The network.

    Raises:
        GradlightError: If not; the message names the module and what to give instead.
    """
    for name, module in network.named_modules():
        if reason := _hindrance(module):
            where = f"Its module {name!r}" if name else "The network"
            raise GradlightError(f"{where} {reason}")
    needed = _required_arguments(network)
    if len(needed) > 1:
        more = ", ".join(map(repr, needed[1:]))
        raise GradlightError(
            f"{type(network).__name__} takes more than an image: its forward needs {', '.join(map(repr, needed))}. Give"
            f" a module whose forward takes the pixels alone and calls the network with them and {more}."
        )


def _hindrance(module: nn.Module) -> str | None:
    """Say why no gradient can pass through a module."""
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


def _required_arguments(network: nn.Module) -> list[str]:
    """Name the arguments of a network's forward that have no default."""
    try:
        parameters = inspect.signature(network.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in named if p.default is p.empty]


# --- devices ---


def to_device(network: nn.Module, device: str | torch.device) -> None:
    """Move a network to a device.

    Args:
        network: The network.
        device: "cpu", "cuda:1", …

    Raises:
        GradlightError: If there is no such device, or not enough memory on it; the message lists the devices.
    """
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
    cuda = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]
