"""Real contributions of layers that torch does not know: their own forward pass, run once more and watched.

Nothing is read off a layer's class or name. A convolution or linear map that uses the layer's own weight is seen as it
is called, with the input, padding and groups it is called with; the gradient at its output is what autograd carries
there from the layer's own output. A parameter with one entry for each channel is a scale if the layer's output depends
on it channel by channel; its derivative is autograd's own, and the sum over all places is checked against autograd's
gradient of the parameter, so that what cannot be taken apart by location is refused and never guessed.

One layer's forward pass, run by itself and watched: which operations use the weights that are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .capture import Tap, precise
from .contributions import Contribution, Dense, Outer, Patches

__all__ = ["Own", "RefusedError", "Use", "convolution", "gradients_of", "own_tensors", "replayed", "run"]


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


class _ReplayMode(TorchFunctionMode):
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
    watch = _ReplayMode(list(own.tensors.values()))
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


Pair = tuple[int, int]


def replayed(tap: Tap, parameter: str) -> Contribution:
    """Give the contribution to a layer's own "weight" or "bias". Raises RefusedError, with the reason."""
    module, source = tap.module, tap.raw_source
    if module is None or source is None:
        raise RefusedError("")
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise RefusedError("; it keeps no running statistics and mixes the images of a batch")
    own = own_tensors(module)
    with gradients_of(module, own.tensors):
        replay = _Replay(tap, own, *run(module, source, own))
        if len(replay.uses) > 1:
            raise RefusedError(f"; it uses its own weights in {len(replay.uses)} convolutions or linear maps")
        if replay.uses:
            return _of_a_matrix(tap, replay, replay.uses[0], parameter)
        return _of_a_scale(tap, replay, parameter)


def convolution(
    gradient: Tensor,
    source: Tensor,
    kernel: Pair,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "constant",
) -> Contribution:
    """Contribution to a convolution's weight: each group's gradient at its output times its patch of the input."""
    steps = _pair(dilation)
    patches = Patches(Dense(source, groups), kernel, _pair(stride), _pads(padding, kernel, steps), steps, mode)
    return Outer(Dense(gradient, groups), patches)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _pads(padding: Any, kernel: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    """Give a convolution's padding as left, right, top, bottom; "same" puts the odd one at the end."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    rows, columns = _pair(padding)
    return (columns, columns, rows, rows)


class _Replay:
    """What a layer's forward pass by itself has shown.

    uses: where its own tensors are convolved or multiplied. output, gradient: of the layer, as they lie in memory; what
    is outside the grid has gradient zero.
    """

    def __init__(self, tap: Tap, own: Own, output: Tensor, uses: list[Use]) -> None:
        self.own, self.output, self.uses = own.tensors, output, uses
        self.gradient = _pulled_back(tap, self.output)


def _pulled_back(tap: Tap, output: Tensor) -> Tensor:
    """Give a tap's gradient as the layer's output lies in memory. Raises RefusedError if that is another output."""
    place = torch.zeros_like(output).requires_grad_()
    laid = tap.layer.layout(place)
    if laid.shape != tap.gradient.shape:
        raise RefusedError("; its forward pass by itself gives another shape")
    (gradient,) = torch.autograd.grad(laid, place, tap.gradient.to(output.dtype))
    if not _near(tap.layer.layout(output.detach()).to(tap.activation.dtype), tap.activation, output.dtype):
        raise RefusedError("; its forward pass by itself gives something else than in the network")
    return gradient


def _near(found: Tensor, wanted: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> bool:
    tolerance = 16 * torch.finfo(dtype).eps ** 0.75
    largest = (wanted if scale is None else scale).abs().max()
    return bool((found - wanted).abs().max() <= tolerance * largest)


def _of_a_matrix(tap: Tap, replay: _Replay, use: Use, parameter: str) -> Contribution:
    if use.given.get(parameter) is None:
        raise RefusedError("")
    (gradient,) = torch.autograd.grad(replay.output, use.output, replay.gradient)
    gradient, source = precise(_map(tap, replay, use, gradient)), precise(_map(tap, replay, use, use.source))
    batch, _, *grid = tap.gradient.shape
    if gradient.shape[0] != batch or list(gradient.shape[2:]) != grid:
        raise RefusedError(" at the same locations as its output")
    if parameter == "bias":
        return Dense(gradient)
    if use.operation is F.linear:
        return Outer(Dense(gradient), Dense(source))
    options = {name: value for name, value in use.given.items() if name not in ("input", "weight", "bias")}
    rows, columns = use.given["weight"].shape[2:]
    return convolution(gradient, source, (rows, columns), **options)


def _map(tap: Tap, replay: _Replay, use: Use, tensor: Tensor) -> Tensor:
    """Bring what an operation inside a layer took or gave to [B,C,h,w]."""
    if use.operation is F.conv2d and tensor.ndim == 4:
        return tensor
    if use.operation is F.linear and tensor.ndim == 4:
        return tensor.movedim(-1, 1)
    if tensor.ndim == replay.output.ndim == 3 and tensor.shape[1] == replay.output.shape[1]:
        return tap.layer.layout(tensor)
    rows, columns = tap.gradient.shape[2:]
    if tensor.ndim == 3 and tensor.shape[1] == rows * columns:
        laid: Tensor = tensor.movedim(-1, 1).unflatten(2, (rows, columns))
        return laid
    raise RefusedError(" at the same locations as its output")


def _of_a_scale(tap: Tap, replay: _Replay, parameter: str) -> Contribution:
    channels = tap.gradient.shape[1]
    slopes = {
        name: slope
        for name, tensor in replay.own.items()
        if tensor.numel() == channels and (slope := _slope(tap, replay.output, tensor)) is not None
    }
    name = _chosen(slopes, parameter)
    products = tap.gradient * slopes[name]
    (whole,) = torch.autograd.grad(replay.output, replay.own[name], replay.gradient, retain_graph=True)
    summed, scale = products.sum((0, 2, 3)), products.abs().sum((0, 2, 3))
    if not _near(summed, whole.flatten().to(summed.dtype), replay.output.dtype, scale):
        raise RefusedError(f"; its {name} does not act on each channel by itself")
    return Dense(products)


def _slope(tap: Tap, output: Tensor, tensor: Tensor) -> Tensor | None:
    """Differentiate a layer's output [B,C,h,w] by a tensor with an entry for each channel; None if it does not enter.

    Backward twice, which is forward: the gradient is linear in what it is taken of, and its slope is what is asked.
    """
    probe = torch.zeros_like(output).requires_grad_()
    gradient = _gradient(output, tensor, probe)
    slope = None if gradient is None else _gradient(gradient, probe, torch.ones_like(gradient))
    if slope is None:
        return None
    laid = precise(tap.layer.layout(slope.detach()))
    return laid if bool(laid.any()) else None


def _gradient(result: Tensor, tensor: Tensor, toward: Tensor) -> Tensor | None:
    """Go back from a result to a tensor, so that one can go back again; None if it does not enter."""
    if not result.requires_grad:
        return None
    found: tuple[Tensor | None, ...]
    found = torch.autograd.grad(result, tensor, toward, create_graph=True, allow_unused=True)
    return found[0]


def _chosen(slopes: dict[str, Tensor], parameter: str) -> str:
    """Choose the scale or the shift of a layer: by torch's own two names, else by whether the slope is one all over."""
    if parameter in slopes:
        return parameter
    unnamed = {name: slope for name, slope in slopes.items() if name not in ("weight", "bias")}
    fitting = [name for name, slope in unnamed.items() if bool((slope == 1).all()) == (parameter == "bias")]
    if len(fitting) > 1:
        raise RefusedError(f"; it has several, {', '.join(map(repr, fitting))}")
    if not fitting:
        raise RefusedError("")
    return fitting[0]
