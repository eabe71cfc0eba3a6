"""Real contributions of layers that torch does not know: their own forward pass, run once more and watched.

Nothing is read off a layer's class or name. A convolution or linear map that uses the layer's own weight is seen as it
is called, with the input, padding and groups it is called with; the gradient at its output is what autograd carries
there from the layer's own output. A parameter with one entry for each channel is a scale if the layer's output depends
on it channel by channel; its derivative is autograd's own, and the sum over all places is checked against autograd's
gradient of the parameter, so that what cannot be taken apart by location is refused and never guessed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .contributions import Contribution, Dense, Outer, Patches
from .tap import Tap, precise
from .watching import Own, RefusedError, Use, gradients_of, own_tensors, run

__all__ = ["convolution", "replayed"]

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
