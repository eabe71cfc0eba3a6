"""Propagation rules: replace the backward pass of single operations during one forward pass.

The rules intercept the operations themselves (`relu`, `conv2d`, `add` …) as the network calls them, not its modules. So
it makes no difference whether an operation is a module's, a function's or in place, nor whether a module runs twice,
and no weight, hook or flag of the network is touched.

Proportional propagation rules, shared by excitation backpropagation and relevance propagation.

Each distributes the signal at an operation's output among its inputs, in proportion to what each contributes.
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
    "ADDITIONS",
    "ALLOWED",
    "AVERAGES",
    "RECTIFIERS",
    "SCALINGS",
    "STRUCTURAL",
    "BackwardRules",
    "OperationRule",
    "Quotient",
    "check_constant_factor",
    "depends_on_pixels",
    "distribute",
    "multiply_by_constant",
    "out_of_place",
    "pass_constant_factor",
    "pass_unchanged",
    "replace_backward",
    "split_addition",
    "tap_under_rules",
    "unsupported_operation",
]

OperationRule = Callable[..., Any]
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
"""Operations that only move or copy values (dropout, in eval mode): their own gradient is right for every rule."""

AVERAGES = ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "mean")

RECTIFIERS = ("relu", "relu6")
"""An nn.ReLU6 counts as relu6, though it runs as hardtanh from 0 to 6."""


# --- Intercepting operations


class BackwardRules(TorchFunctionMode):
    """Apply propagation rules to the operations of a forward pass on every tensor that requires a gradient.

    Args:
        method: The baseline that the rules belong to, for error messages.
        table: Operation → rule. An operation's name has no underscores at its ends: "relu" is also relu_ and nn.ReLU,
            and "add" also add_.
        allowed: The operations that may run without a rule, with their own gradient; None allows all.

    Attributes:
        operations_met: The operations with rules that ran, with or without a gradient.

    Raises:
        GradlightError: While entered, for an operation that has neither a rule nor a permission.
    """

    def __init__(self, method: str, table: Mapping[str, OperationRule], allowed: frozenset[str] | None = None) -> None:
        super().__init__()
        self.method, self.table, self.allowed = method, table, allowed
        self.operations_met: set[str] = set()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one operation, by its rule if it has one."""
        kwargs = dict(kwargs or {})
        if not args and "input" in kwargs:
            args = (kwargs.pop("input"),)
        name = _operation_name(func, args, kwargs)
        if name in self.table:
            self.operations_met.add(name)
        if name in self.table and any(isinstance(value, Tensor) and value.requires_grad for value in args[:2]):
            return self.table[name](func, *args, **kwargs)
        result = func(*args, **kwargs)
        if self.allowed is not None and name not in self.allowed and depends_on_pixels(result):
            raise unsupported_operation(self.method, name)
        return result


def _operation_name(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    name = str(getattr(func, "__name__", func)).strip("_")
    if name == "hardtanh" and (args[1:2] == (0,) or kwargs.get("min_val") == 0):
        return "relu6"
    return name


def depends_on_pixels(value: Any) -> bool:
    """Return whether an operation's argument or result carries a gradient: only the pixels and what follows do."""
    if isinstance(value, (tuple, list)):
        return any(map(depends_on_pixels, value))
    return isinstance(value, Tensor) and value.requires_grad


def unsupported_operation(method: str, operation: str) -> GradlightError:
    """Make the error for an operation that a method has no rule for."""
    return GradlightError(
        f"{method} has no rule for {operation!r}, which this network uses between the pixels and its score. It is"
        " defined for convolutions, linear layers, batch norms, ReLUs, pooling and skip connections;"
        " integrated_gradients, smoothgrad and the perturbations (occlusion, rise, lime) work with every network."
    )


def tap_under_rules(
    rules: BackwardRules,
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    from_pixels: bool = True,
) -> Tap:
    """Run one forward and one backward pass under rules, and return the tap of a layer.

    Args:
        rules: The rules; the tap's gradient is what they propagate to the layer.
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: The layer.
        from_pixels: Whether the graph starts at the pixels, so that a rule can tell what depends on them; otherwise it
            starts at the layer.
    """
    pixel_layer = Layer("input", 0, pixels.shape[1], (pixels.shape[2], pixels.shape[3]))
    layers = [pixel_layer, layer] if from_pixels and layer.name != "input" else [layer]
    with rules:
        recording = record(objective, pixels, layers, [[target]])
    return recording.taps(0)[layer.name]


# --- For writing rules


class _ReplacedBackward(torch.autograd.Function):
    """An operation with another function as its backward pass."""

    @staticmethod
    def forward(
        ctx: Any, run: Callable[..., Tensor], backward: Callable[..., Any], call: Any, *inputs: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.replacement, ctx.call = backward, call
        return run(*inputs)

    @staticmethod
    def backward(ctx: Any, *signals: Tensor) -> Any:
        return None, None, None, *ctx.replacement(signals[0], *ctx.saved_tensors)


def replace_backward(
    run: Callable[..., Tensor], backward: Callable[..., tuple[Tensor, ...]], *inputs: Tensor, call: Any = None
) -> Tensor:
    """Run an operation on its inputs, and replace its backward pass.

    Args:
        run: The operation; it must not overwrite its inputs.
        backward: Called as backward(signal, *inputs); returns the signal of each input.
        *inputs: The tensors that the operation depends on.
        call: Kept on the result's grad_fn, for the operation that comes next.

    Returns:
        The operation's result.

    Example:
        >>> import torch
        >>> x = torch.tensor([1.0, -2.0], requires_grad=True)
        >>> y = replace_backward(torch.relu, lambda signal, x: (10 * signal,), x)
        >>> torch.autograd.grad(y.sum(), x)[0].tolist()
        [10.0, 10.0]
    """
    result: Tensor = _ReplacedBackward.apply(run, backward, call, *inputs)
    return result


def out_of_place(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[Tensor], Tensor]:
    """Make a function of an operation's first tensor that does not overwrite it, even if the operation does."""

    def run(x: Tensor) -> Tensor:
        result: Tensor = func(x.clone(), *args, **kwargs)
        return result

    return run


def multiply_by_constant(method: str, func: Callable[..., Any], first: Any, second: Any, **kwargs: Any) -> Any:
    """Multiply or divide by a factor that does not depend on the pixels; raises GradlightError where both do."""
    check_constant_factor(method, func, first, second)
    return func(first, second, **kwargs)


def check_constant_factor(method: str, func: Callable[..., Any], first: Any, second: Any) -> None:
    """Raise GradlightError for a product of two parts of the network, or a division by one."""
    name = func.__name__.strip("_")
    if depends_on_pixels(second) and (depends_on_pixels(first) or "div" in name):
        raise unsupported_operation(method, f"{name} of two parts of the network" if depends_on_pixels(first) else name)


Quotient = Callable[[Tensor, Tensor], Tensor]
"""Divides a signal by the total that it is distributed over, and defines the result for a total of zero."""

ADDITIONS = ("add", "iadd", "radd")
SCALINGS = ("mul", "imul", "rmul", "div", "idiv", "truediv", "itruediv")
ALLOWED = STRUCTURAL | {"max_pool1d", "max_pool2d", "adaptive_max_pool2d"}
"""Operations without a rule: their own gradient propagates the signal, that of a maximum to its winner."""


def distribute(quotient: Quotient, run: Callable[[Tensor], Tensor], x: Tensor, signal: Tensor) -> Tensor:
    """Distribute a signal over x in proportion to what each entry contributes to a piecewise linear function.

    Example:
        >>> import torch
        >>> distribute(torch.div, lambda x: x.sum(), torch.tensor([1.0, 3.0]), torch.tensor(8.0)).tolist()
        [2.0, 6.0]
    """
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        result = run(leaf)
    (gradient,) = torch.autograd.grad(result, leaf, quotient(signal, result.detach()))
    return leaf.detach() * gradient


def pass_unchanged(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Run an operation of one tensor, and propagate the signal unchanged."""
    return replace_backward(out_of_place(func, args, kwargs), lambda signal, x: (signal,), x)


def pass_constant_factor(method: str, func: Any, first: Any, second: Any, **kwargs: Any) -> Any:
    """Multiply or divide by a constant, and propagate the signal unchanged; two parts of the network are an error."""
    check_constant_factor(method, func, first, second)
    if depends_on_pixels(first):
        return replace_backward(lambda x: func(x.clone(), second, **kwargs), _summed_to_shape, first)
    return replace_backward(lambda x: func(first, x, **kwargs), _summed_to_shape, second)


def split_addition(quotient: Quotient, func: Any, first: Any, second: Any, *, alpha: float = 1) -> Tensor:
    """Split the signal at a sum of two parts of the network; an addend that does not depend on the pixels is a bias."""
    if not depends_on_pixels(first):
        return replace_backward(lambda x: first + alpha * x, _summed_to_shape, second)
    if not depends_on_pixels(second):
        return replace_backward(lambda x: x + alpha * second, _summed_to_shape, first)

    def backward(signal: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        per_unit = quotient(signal, a + alpha * b)
        return (per_unit * a).sum_to_size(a.shape), (per_unit * alpha * b).sum_to_size(b.shape)

    return replace_backward(lambda a, b: torch.add(a, b, alpha=alpha), backward, first, second)


def _summed_to_shape(signal: Tensor, x: Tensor) -> tuple[Tensor]:
    return (signal.sum_to_size(x.shape),)
