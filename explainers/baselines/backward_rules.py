"""Other rules for the way back: operations of one forward pass whose gradient is replaced.

The rules take hold of the operations themselves (`relu`, `conv2d`, `add` …) as the network calls them, not of its
modules. So it makes no difference whether an operation is a module's, a function's or in place, nor whether a module
runs twice, and neither a weight, a hook nor a flag of the network is touched.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ...errors import GradlightError
from ...models.base import Layer
from ...models.objective import Objective, Target
from ..capture import Tap, record

__all__ = [
    "AVERAGES",
    "RECTIFIERS",
    "STRUCTURAL",
    "Rule",
    "Rules",
    "check_constant",
    "constant",
    "copying",
    "one_tap",
    "steered",
    "unsupported",
]

Rule = Callable[..., Any]
"""Called in an operation's place with (the operation, its first tensor, its other arguments)."""

STRUCTURAL = frozenset(
    (
        *("clone", "detach", "requires_grad", "contiguous", "float", "double", "half", "bfloat16", "to", "type"),
        *("type_as", "view", "view_as", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "expand"),
        *("permute", "transpose", "t", "movedim", "swapaxes", "flip", "roll", "pad", "getitem", "get", "narrow"),
        *("select", "index_select", "gather", "chunk", "split", "tensor_split", "unbind", "cat", "concat", "stack"),
        *("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout"),
    )
)
"""Operations that hand numbers on as they are (dropout, in eval mode): their own gradient serves every rule."""

AVERAGES = ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean")

RECTIFIERS = ("relu", "relu6")
"""An nn.ReLU6 counts as relu6, though it runs as hardtanh from 0 to 6."""


class Rules(TorchFunctionMode):
    """Hold rules over the operations of a forward pass on anything that has a gradient.

    method: whose rules they are. table: operation → rule; an operation's name is without underscores at its ends, so
    that "relu" is also relu_ and nn.ReLU, and "add" also add_. known: what else may be met; None lets anything pass
    with its own gradient, otherwise an operation without a rule raises GradlightError. met: the operations with rules
    that ran, with or without a gradient.
    """

    def __init__(self, method: str, table: Mapping[str, Rule], known: frozenset[str] | None = None) -> None:
        super().__init__()
        self.method, self.table, self.known = method, table, known
        self.met: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, by its rule if it has one."""
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        name = _name(func, args, kwargs)
        if name in self.table:
            self.met.add(name)
        if name in self.table and any(isinstance(value, Tensor) and value.requires_grad for value in args[:2]):
            return self.table[name](func, *args, **kwargs)
        result = func(*args, **kwargs)
        if self.known is not None and name not in self.known and _has_gradient(result):
            raise unsupported(self.method, name)
        return result


def _name(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    name = str(getattr(func, "__name__", func)).strip("_")
    if name == "hardtanh" and (args[1:2] == (0,) or kwargs.get("min_val") == 0):
        return "relu6"
    return name


def _has_gradient(result: Any) -> bool:
    if isinstance(result, (tuple, list)):
        return any(map(_has_gradient, result))
    return isinstance(result, Tensor) and result.requires_grad


def unsupported(method: str, operation: str) -> GradlightError:
    """Make the error of an operation that a method has no rule for."""
    return GradlightError(
        f"{method} has no rule for {operation!r}, which this network uses on the way to its score. It is defined for"
        " convolutions, linear layers, batch norms, ReLUs, pooling and skip connections; integrated_gradients,"
        " smoothgrad and the perturbations (occlusion, rise, lime) take every network."
    )


class _Steered(torch.autograd.Function):
    """An operation with another way back."""

    @staticmethod
    def forward(ctx: Any, run: Callable[..., Tensor], back: Callable[..., Any], call: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.back, ctx.call = back, call
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        return None, None, None, *ctx.back(signals[0], *ctx.saved_tensors)


def steered(
    run: Callable[..., Tensor], back: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, call: Any = None
) -> Tensor:
    """Run an operation on its inputs; on the way back `back(signal, *inputs)` gives what each of them receives.

    run must not overwrite its inputs. call: kept on the result's grad_fn, for the operation that comes next.
    """
    result: Tensor = _Steered.apply(run, back, call, *inputs)
    return result


def copying(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Give an operation that leaves its first tensor as it is, though it may be an in-place one."""

    def run(x: Tensor) -> Tensor:
        result: Tensor = func(x.clone(), *args, **kwargs)
        return result

    return run


def constant(method: str, func: Callable[..., Any], first: Any, second: Any, **kwargs: Any) -> Any:
    """Multiply or divide by what does not depend on the pixels; raises GradlightError where both factors do."""
    check_constant(method, func, first, second)
    return func(first, second, **kwargs)


def check_constant(method: str, func: Callable[..., Any], first: Any, second: Any) -> None:
    """Raise GradlightError for a product of two parts of the network, or a division by one."""
    name = func.__name__.strip("_")
    if _has_gradient(second) and (_has_gradient(first) or "div" in name):
        raise unsupported(method, f"{name} of two parts of the network" if _has_gradient(first) else name)


def one_tap(
    rules: Rules, objective: Objective, pixels: Tensor, target: Target, layer: Layer, *, whole: bool = True
) -> Tap:
    """Go forward and back once under rules and give the tap of a layer, whose gradient is what the rules made of it.

    whole: the graph starts at the pixels, so that a rule can tell what depends on them.
    """
    start = Layer("input", 0, pixels.shape[1], (pixels.shape[2], pixels.shape[3]))
    layers = [start, layer] if whole and layer.name != "input" else [layer]
    with rules:
        recording = record(objective, pixels, layers, [[target]])
    return recording.taps(0)[layer.name]
