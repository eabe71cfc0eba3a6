"""One layer's forward pass, run by itself and watched: which operations use the weights that are its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Own", "RefusedError", "Use", "gradients_of", "own_tensors", "run"]


class RefusedError(Exception):
    """Why a layer's own weight has no contribution of each location; the text continues a sentence."""


_OPERATIONS: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
}


@dataclass(frozen=True)
class Use:
    """One convolution or linear map that used a layer's own weight: how it was called, its input and its output."""

    operation: Callable[..., Any]
    given: dict[str, Any]
    source: Tensor
    output: Tensor


class _Watch(TorchFunctionMode):
    """Note the operations that use tensors which are a layer's own, or made of them."""

    def __init__(self, own: list[Tensor]) -> None:
        super().__init__()
        self.own, self.uses = own, list[Use]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func not in _OPERATIONS:
            return output
        given = dict(zip(_OPERATIONS[func], args, strict=False), **(kwargs or {}))
        weight = given["weight"]
        if not (weight.requires_grad or any(weight is tensor for tensor in self.own)):
            return output
        if not output.requires_grad:
            output.requires_grad_()
        self.uses.append(Use(func, given, given["input"].detach().clone(), output))
        # A copy goes on, because what follows may work in place.
        return output.clone()


@dataclass(frozen=True)
class Own:
    """A layer's own tensors by name; where it has none (whole), those of its parts, if one operation uses them all."""

    tensors: dict[str, Tensor]
    whole: bool


def own_tensors(module: nn.Module) -> Own:
    """Find a module's own floating-point tensors: parameters, what makes them, and fixed ones in a weight's place."""
    found: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if isinstance(made := getattr(module, "parametrizations", None), nn.Module):
        found |= dict(made.named_parameters())
    held = {**module._buffers, **vars(module)}
    found |= {name: held[name] for name in ("weight", "bias") if isinstance(held.get(name), Tensor)}
    own = {name: tensor for name, tensor in found.items() if tensor.is_floating_point()}
    if own:
        return Own(own, whole=False)
    found = {name: tensor for name, tensor in module.named_parameters() if tensor.is_floating_point()}
    if not found:
        raise RefusedError("")
    return Own(found, whole=True)


@contextmanager
def gradients_of(module: nn.Module, own: dict[str, Tensor]) -> Iterator[None]:
    """Switch gradients on for a module's own tensors, and off for all others that it has."""
    wanted = {id(tensor) for tensor in own.values()}
    with ExitStack() as undo:
        undo.enter_context(torch.enable_grad())
        for tensor in {id(t): t for t in [*module.parameters(), *own.values()]}.values():
            needs = id(tensor) in wanted
            if tensor.is_leaf and tensor.requires_grad != needs:
                undo.callback(tensor.requires_grad_, not needs)
                tensor.requires_grad_(needs)
        yield


def run(module: nn.Module, source: Tensor, own: Own) -> tuple[Tensor, list[Use]]:
    """Run a module's forward pass on its source, inside `gradients_of`: its output, and the uses of its own weights.

    Raises RefusedError, with the reason, where that is not to be had.
    """
    watch = _Watch(list(own.tensors.values()))
    try:
        with watch:
            # Not a call: the hooks have had their turn, and the source is what the last of them handed on.
            output = module.forward(source.detach().clone())
    except (RuntimeError, TypeError, ValueError) as error:
        raise RefusedError(f"; its forward pass cannot be run by itself ({str(error).splitlines()[0]})") from error
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise RefusedError("")
    if own.whole and not (len(watch.uses) == 1 and _is_all(own.tensors, watch.uses[0])):
        raise RefusedError("")
    return output, watch.uses


def _is_all(own: dict[str, Tensor], use: Use) -> bool:
    """Tell whether one operation uses all weights that there are."""
    used = {id(use.given["weight"]), id(use.given.get("bias"))}
    return all(id(tensor) in used for tensor in own.values())
