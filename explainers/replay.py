"""Contributions to the weights of layers that torch does not define: run their forward pass again, and record it.

Nothing is inferred from a layer's class or name. A convolution or linear map that uses the layer's own weight is
recorded as it is called, with its input, padding and groups; the gradient at its output is what autograd propagates
there from the layer's own output. A parameter with one entry per channel is a scale if the layer's output depends on it
channel by channel; its derivative is autograd's own, and the sum over all locations is checked against autograd's
gradient of the parameter, so that a layer that cannot be separated by location is refused, never approximated.
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

__all__ = ["NoSharedWeightError", "convolution_contribution", "replay"]

Pair = tuple[int, int]


class NoSharedWeightError(Exception):
    """Why a layer's own weight has no contribution at each location; the text continues a sentence."""


def replay(tap: Tap, parameter: str) -> Contribution:
    """Compute the contribution to a layer's own parameter by replaying the layer.

    Args:
        tap: The layer's tap, with its module and the module's input.
        parameter: "weight" or "bias".

    Returns:
        The contribution.

    Raises:
        NoSharedWeightError: If there is none, with the reason.
    """
    module, source = tap.module, tap.raw_source
    if module is None or source is None:
        raise NoSharedWeightError("")
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
        raise NoSharedWeightError("; it keeps no running statistics and mixes the images of a batch")
    own = _own_tensors(module)
    with _gradients_only_of(module, own.tensors):
        output, uses = _run(module, source, own)
        replayed = _ReplayedLayer(own.tensors, output, uses, _raw_gradient(tap, output))
        if len(uses) > 1:
            raise NoSharedWeightError(f"; it uses its own weights in {len(uses)} convolutions or linear maps")
        if uses:
            return _matrix_contribution(tap, replayed, uses[0], parameter)
        return _scale_contribution(tap, replayed, parameter)


# --- Recording a layer's forward pass

_ARGUMENT_NAMES: dict[Any, tuple[str, ...]] = {
    F.conv2d: ("input", "weight", "bias", "stride", "padding", "dilation", "groups"),
    F.linear: ("input", "weight", "bias"),
}


@dataclass(frozen=True)
class _OwnTensors:
    """A layer's own tensors by name, or, where it has none, those of its submodules (of_submodules)."""

    tensors: dict[str, Tensor]
    of_submodules: bool


@dataclass(frozen=True)
class _WeightUse:
    """One convolution or linear map that used a layer's own weight: its arguments, its input and its output."""

    operation: Callable[..., Any]
    arguments: dict[str, Any]
    source: Tensor
    output: Tensor


@dataclass(frozen=True)
class _ReplayedLayer:
    """A layer's own tensors, its output, the uses of its own weights, and the gradient, both in the raw layout.

    Locations outside the map's grid have gradient zero.
    """

    own: dict[str, Tensor]
    output: Tensor
    uses: list[_WeightUse]
    gradient: Tensor


class _ReplayMode(TorchFunctionMode):
    """Record the operations that use a layer's own tensors, or tensors computed from them."""

    def __init__(self, own: list[Tensor]) -> None:
        super().__init__()
        self.own, self.uses = own, list[_WeightUse]()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func not in _ARGUMENT_NAMES:
            return output
        arguments = dict(zip(_ARGUMENT_NAMES[func], args, strict=False), **(kwargs or {}))
        weight = arguments["weight"]
        if not (weight.requires_grad or any(weight is tensor for tensor in self.own)):
            return output
        if not output.requires_grad:
            output.requires_grad_()
        self.uses.append(_WeightUse(func, arguments, arguments["input"].detach().clone(), output))
        # A copy is returned, because the next operation may work in place.
        return output.clone()


def _own_tensors(module: nn.Module) -> _OwnTensors:
    """Find a module's own floating-point tensors.

    These are its parameters, the originals of its parametrisations, and buffers or attributes named weight and bias.
    """
    candidates: dict[str, Tensor] = dict(module.named_parameters(recurse=False))
    if isinstance(parametrizations := getattr(module, "parametrizations", None), nn.Module):
        candidates |= dict(parametrizations.named_parameters())
    attributes = {**module._buffers, **vars(module)}
    candidates |= {name: attributes[name] for name in ("weight", "bias") if isinstance(attributes.get(name), Tensor)}
    own = {name: tensor for name, tensor in candidates.items() if tensor.is_floating_point()}
    if own:
        return _OwnTensors(own, of_submodules=False)
    nested: dict[str, Tensor] = {n: t for n, t in module.named_parameters() if t.is_floating_point()}
    if not nested:
        raise NoSharedWeightError("")
    return _OwnTensors(nested, of_submodules=True)


@contextmanager
def _gradients_only_of(module: nn.Module, own: dict[str, Tensor]) -> Iterator[None]:
    """Require gradients of a module's own tensors, and of none of its others."""
    own_ids = {id(tensor) for tensor in own.values()}
    with ExitStack() as cleanup:
        cleanup.enter_context(torch.enable_grad())
        for tensor in {id(t): t for t in [*module.parameters(), *own.values()]}.values():
            required = id(tensor) in own_ids
            if tensor.is_leaf and tensor.requires_grad != required:
                cleanup.callback(tensor.requires_grad_, not required)
                tensor.requires_grad_(required)
        yield


def _run(module: nn.Module, source: Tensor, own: _OwnTensors) -> tuple[Tensor, list[_WeightUse]]:
    """Run a module's forward pass on its input, and return its output and the uses of its own weights."""
    mode = _ReplayMode(list(own.tensors.values()))
    try:
        with mode:
            # Not module(source): the hooks ran before the input was recorded, and must not run again.
            output = module.forward(source.detach().clone())
    except (RuntimeError, TypeError, ValueError) as error:
        raise NoSharedWeightError(
            f"; its forward pass cannot be run by itself ({str(error).splitlines()[0]})"
        ) from error
    if not isinstance(output, Tensor) or not output.requires_grad:
        raise NoSharedWeightError("")
    if own.of_submodules and not (len(mode.uses) == 1 and _uses_all(own.tensors, mode.uses[0])):
        raise NoSharedWeightError("")
    return output, mode.uses


def _uses_all(own: dict[str, Tensor], use: _WeightUse) -> bool:
    """Return whether one operation uses all tensors of a layer."""
    used_ids = {id(use.arguments["weight"]), id(use.arguments.get("bias"))}
    return all(id(tensor) in used_ids for tensor in own.values())


def _raw_gradient(tap: Tap, output: Tensor) -> Tensor:
    """Return a tap's gradient in the raw layout of the layer's output, which must equal the tap's activation."""
    zeros = torch.zeros_like(output).requires_grad_()
    as_map = tap.layer.layout(zeros)
    if as_map.shape != tap.gradient.shape:
        raise NoSharedWeightError("; its forward pass by itself gives another shape")
    (gradient,) = torch.autograd.grad(as_map, zeros, tap.gradient.to(output.dtype))
    if not _are_close(tap.layer.layout(output.detach()).to(tap.activation.dtype), tap.activation, output.dtype):
        raise NoSharedWeightError("; its forward pass by itself gives another output than in the network")
    return gradient


def _are_close(actual: Tensor, expected: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> bool:
    """Compare up to the rounding of a dtype, relative to the largest entry of the scale (the expected by default)."""
    tolerance = 16 * torch.finfo(dtype).eps ** 0.75
    largest = (expected if scale is None else scale).abs().max()
    return bool((actual - expected).abs().max() <= tolerance * largest)


# --- A convolution or linear map


def convolution_contribution(
    gradient: Tensor,
    source: Tensor,
    kernel: Pair,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    mode: str = "constant",
) -> Contribution:
    """Compute the contribution to a convolution's weight: each group's gradient times its patch of the input.

    Args:
        gradient: At the output, [B,C',h,w].
        source: The input, [B,C,h',w'].
        kernel: Height and width.
        stride: As of the convolution, and so are the next three.
        padding: Numbers, "same" or "valid".
        dilation: Step between the entries of a patch.
        groups: Number of groups.
        mode: Padding mode of `torch.nn.functional.pad`.

    Returns:
        The contribution at each location of the output.

    Example:
        >>> contribution = convolution_contribution(torch.ones(1, 2, 4, 4), torch.ones(1, 3, 4, 4), (3, 3), padding=1)
        >>> contribution.total[0, 0, 0].tolist()
        [24.0, 36.0, 36.0, 24.0]
    """
    steps = _pair(dilation)
    patches = Patches(Dense(source, groups), kernel, _pair(stride), _padding(padding, kernel, steps), steps, mode)
    return Outer(Dense(gradient, groups), patches)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _padding(padding: Any, kernel: Pair, dilation: Pair) -> tuple[int, int, int, int]:
    """Return a convolution's padding as left, right, top, bottom; "same" puts an odd one at the end."""
    if padding == "valid":
        return (0, 0, 0, 0)
    if padding == "same":
        rows, columns = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
        return (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2)
    rows, columns = _pair(padding)
    return (columns, columns, rows, rows)


def _matrix_contribution(tap: Tap, replayed: _ReplayedLayer, use: _WeightUse, parameter: str) -> Contribution:
    """Compute the contribution to the weight or bias of the layer's one convolution or linear map."""
    if use.arguments.get(parameter) is None:
        raise NoSharedWeightError("")
    (raw_gradient,) = torch.autograd.grad(replayed.output, use.output, replayed.gradient)
    gradient = precise(_as_map(tap, replayed, use, raw_gradient))
    source = precise(_as_map(tap, replayed, use, use.source))
    batch, _, *grid = tap.gradient.shape
    if gradient.shape[0] != batch or list(gradient.shape[2:]) != grid:
        raise NoSharedWeightError(" at the same locations as its output")
    if parameter == "bias":
        return Dense(gradient)
    if use.operation is F.linear:
        return Outer(Dense(gradient), Dense(source))
    options = {name: value for name, value in use.arguments.items() if name not in ("input", "weight", "bias")}
    rows, columns = use.arguments["weight"].shape[2:]
    return convolution_contribution(gradient, source, (rows, columns), **options)


def _as_map(tap: Tap, replayed: _ReplayedLayer, use: _WeightUse, tensor: Tensor) -> Tensor:
    """Bring the input or output of an operation inside a layer to [B,C,h,w]."""
    if use.operation is F.conv2d and tensor.ndim == 4:
        return tensor
    if use.operation is F.linear and tensor.ndim == 4:
        return tensor.movedim(-1, 1)
    if tensor.ndim == replayed.output.ndim == 3 and tensor.shape[1] == replayed.output.shape[1]:
        return tap.layer.layout(tensor)
    rows, columns = tap.gradient.shape[2:]
    if tensor.ndim == 3 and tensor.shape[1] == rows * columns:
        as_map: Tensor = tensor.movedim(-1, 1).unflatten(2, (rows, columns))
        return as_map
    raise NoSharedWeightError(" at the same locations as its output")


# --- A scale or shift per channel


def _scale_contribution(tap: Tap, replayed: _ReplayedLayer, parameter: str) -> Contribution:
    """Compute the contribution to a parameter with one entry per channel: gradient times slope."""
    channels = tap.gradient.shape[1]
    slopes = {
        name: slope
        for name, tensor in replayed.own.items()
        if tensor.numel() == channels and (slope := _slope(tap, replayed.output, tensor)) is not None
    }
    name = _choose_parameter(slopes, parameter)
    products = tap.gradient * slopes[name]
    (total,) = torch.autograd.grad(replayed.output, replayed.own[name], replayed.gradient, retain_graph=True)
    summed, scale = products.sum((0, 2, 3)), products.abs().sum((0, 2, 3))
    if not _are_close(summed, total.flatten().to(summed.dtype), replayed.output.dtype, scale):
        raise NoSharedWeightError(f"; its {name} does not act on each channel by itself")
    return Dense(products)


def _slope(tap: Tap, output: Tensor, tensor: Tensor) -> Tensor | None:
    """Differentiate a layer's output [B,C,h,w] by a tensor with one entry per channel; None if it does not enter.

    Two backward passes make a forward derivative: the gradient is linear in the vector that it is taken for, and its
    slope by that vector is the derivative.
    """
    vector = torch.zeros_like(output).requires_grad_()
    gradient = _differentiable_gradient(output, tensor, vector)
    slope = None if gradient is None else _differentiable_gradient(gradient, vector, torch.ones_like(gradient))
    if slope is None:
        return None
    as_map = precise(tap.layer.layout(slope.detach()))
    return as_map if bool(as_map.any()) else None


def _differentiable_gradient(result: Tensor, tensor: Tensor, vector: Tensor) -> Tensor | None:
    """Compute a vector-Jacobian product that can be differentiated again; None if the tensor does not enter."""
    if not result.requires_grad:
        return None
    gradients: tuple[Tensor | None, ...]
    gradients = torch.autograd.grad(result, tensor, vector, create_graph=True, allow_unused=True)
    return gradients[0]


def _choose_parameter(slopes: dict[str, Tensor], parameter: str) -> str:
    """Choose the scale or shift of a layer: by torch's own two names, else a shift by its slope of 1 everywhere."""
    if parameter in slopes:
        return parameter
    unnamed = {name: slope for name, slope in slopes.items() if name not in ("weight", "bias")}
    fitting = [name for name, slope in unnamed.items() if bool((slope == 1).all()) == (parameter == "bias")]
    if len(fitting) > 1:
        raise NoSharedWeightError(f"; it has several, {', '.join(map(repr, fitting))}")
    if not fitting:
        raise NoSharedWeightError("")
    return fitting[0]
