"""Run a network on a batch so that every image uses its own value of the weights.

`PerSampleMode` intercepts every torch call with a weight. For two images and `F.linear(x, weight)`, x of shape [2,C]:

    versions[id(weight)]  a PerSampleWeight whose stacked() is [2,O,C]
    layouts[key]          the batch is axis 0 of x, not in weight, and axis 0 of the result
    with a rule           rules.py computes both rows at once
    without               F.linear(x[0:1], weight of image 0), F.linear(x[1:2], weight of image 1), concatenated

`weight * 2` has no batch in its result: this is a DerivedTensor, intercepted in turn where it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_iter, tree_map_only

from .weights import DerivedTensor, NotCoveredError, PerSampleTensor, PerSampleWeight

__all__ = [
    "BatchLayout",
    "BatchLayouts",
    "GradientHook",
    "PerSampleCall",
    "PerSampleMode",
    "PerSampleRule",
    "call_key",
    "function_name",
    "is_in_place",
    "is_metadata_query",
    "tensors_in",
]

GradientHook = Callable[[Tensor], None]
"""Takes the gradient at a layer's output, and adds it to the weights."""

PerSampleRule = Callable[..., Any]
"""Called as (PerSampleCall, *the function's own arguments); returns NotImplemented where it does not apply."""


@dataclass(frozen=True)
class BatchLayout:
    """The batch axis of each tensor that a call takes and returns; None for a tensor without a batch."""

    inputs: tuple[int | None, ...]
    outputs: tuple[int | None, ...]


BatchLayouts = dict[Any, BatchLayout]
"""The layouts of a network's calls, by `call_key`."""

# --- Recognising calls

_METADATA_QUERIES = frozenset(
    [
        *("size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "element_size"),
        *("is_contiguous", "is_floating_point", "is_complex", "get_device", "type", "is_same_size", "data_ptr"),
        *("__len__", "__hash__", "__repr__", "__format__"),
    ]
)
_TENSOR_ATTRIBUTES = frozenset(["T", "mT", "H", "mH", "data", "real", "imag"])


def tensors_in(tree: Any) -> list[Tensor]:
    """List the tensors in nested tuples, lists and dicts, in their order."""
    return [leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor)]


def function_name(function: Any) -> str:
    """Name a torch function; the getter of an attribute as "__get__ ATTRIBUTE".

    Example:
        >>> import torch
        >>> function_name(torch.relu), function_name(torch.Tensor.shape.__get__)
        ('relu', '__get__ shape')
    """
    name = str(getattr(function, "__name__", function))
    return f"{name} {function.__self__.__name__}" if name in {"__get__", "__set__"} else name


def is_metadata_query(function: Any) -> bool:
    """Return whether a call only reads what kind of tensor it has (shape, dtype, device), not its values."""
    name, _, attribute = function_name(function).partition(" ")
    return name in _METADATA_QUERIES or (name == "__get__" and attribute not in _TENSOR_ATTRIBUTES)


def is_in_place(function: Any) -> bool:
    """Return whether a call overwrites its first argument."""
    name = function_name(function)
    return (name.endswith("_") and not name.endswith("__")) or (
        name.startswith(("__i", "__set")) and name != "__invert__"
    )


def call_key(function: Any, tensors: list[Tensor], versions: dict[int, PerSampleTensor]) -> Any:
    """Identify a call across runs: its function, the origins of its weights, the number of axes of its tensors."""
    origins = tuple(versions[id(tensor)].origin if id(tensor) in versions else None for tensor in tensors)
    return function_name(function), origins, tuple(tensor.ndim for tensor in tensors)


# --- Intercepting calls


class PerSampleMode(TorchFunctionMode):
    """While entered, the `count` images of a batch run with their own values of the weights.

    Args:
        weights: The weights, each with a gradient or a value per image.
        layouts: The batch axes of the network's calls, as the probe found them.
        rules: Batched forms by torch function.
        count: Number of images.
        stepped: Whether the weights have taken their step; before, their gradients are collected.

    Attributes:
        graph_starts: The tensors where the graph began; their gradients run the hooks that collect.
    """

    def __init__(
        self,
        weights: Iterable[PerSampleWeight],
        layouts: BatchLayouts,
        rules: dict[Any, PerSampleRule],
        count: int,
        *,
        stepped: bool,
    ) -> None:
        super().__init__()
        self.versions: dict[int, PerSampleTensor] = {id(weight.tensor): weight for weight in weights}
        self.layouts, self.rules, self.count, self.stepped = layouts, rules, count, stepped
        self.graph_starts: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._has_version(args, kwargs) or is_metadata_query(func):
            return func(*args, **kwargs)
        call = PerSampleCall(self, func, args, kwargs)
        rule = self.rules.get(func)
        result = NotImplemented if rule is None else rule(call, *args, **kwargs)
        return call.run_image_by_image() if result is NotImplemented else result

    def _has_version(self, args: Any, kwargs: Any) -> bool:
        """Return whether an argument differs by image; this runs at every torch call, so the usual case comes first."""
        values = [*args, *kwargs.values()]
        if any(id(value) in self.versions for value in values):
            return True
        nested = [value for value in values if isinstance(value, (tuple, list, dict))]
        return any(id(leaf) in self.versions for leaf in tree_iter(nested)) if nested else False


class _GraphStart(torch.autograd.Function):
    """Let the graph begin at a tensor that needs no gradient, without a copy, so that it may be overwritten."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, start: Tensor) -> Tensor:
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].new_empty(0)


class PerSampleCall:
    """One call of a torch function with at least one tensor that differs by image.

    Raises:
        NotCoveredError: If the probe met no such call.
    """

    def __init__(self, mode: PerSampleMode, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.mode, self.function, self.args, self.kwargs, self.count = mode, function, args, kwargs, mode.count
        tensors = tensors_in((args, kwargs))
        self.key = call_key(function, tensors, mode.versions)
        layout = mode.layouts.get(self.key)
        if layout is None:
            raise NotCoveredError(f"{function_name(function)} was not called when the network was probed")
        self.layout = layout
        self._axes = {id(t): axis for t, axis in zip(tensors, layout.inputs, strict=True)}

    @property
    def stepped(self) -> bool:
        """Whether the weights have taken their step."""
        return self.mode.stepped

    # --- For the rules

    def version_of(self, tensor: Tensor | None) -> PerSampleTensor | None:
        """Return the versions of a tensor, None if it is the same for every image."""
        return None if tensor is None else self.mode.versions.get(id(tensor))

    def weight_of(self, tensor: Tensor | None) -> PerSampleWeight | None:
        """Return the versions of a tensor that is itself a parameter."""
        version = self.version_of(tensor)
        return version if isinstance(version, PerSampleWeight) else None

    def batch_is_first(self, tensor: Tensor) -> bool:
        """Return whether the batch is the first axis of an argument."""
        return self._axes.get(id(tensor)) == 0 and self._size_per_image(tensor, 0) > 0

    def is_plain(self, batched: Tensor, *weights: Tensor | None) -> bool:
        """Return whether the batch is the first axis of `batched`, and the weights are parameters or shared by all."""
        return self.batch_is_first(batched) and not any(
            isinstance(self.version_of(weight), DerivedTensor)
            or (weight is not None and self._axes[id(weight)] is not None)
            for weight in weights
        )

    def copies(self, tensor: Tensor | None, rows: int) -> Tensor | None:
        """Return a tensor's versions, each repeated so that there are as many as rows: [rows,*shape]."""
        if tensor is None:
            return None
        version = self.version_of(tensor)
        if version is None:
            return tensor.expand(rows, *tensor.shape)
        stacked, times = version.stacked(), rows // self.count
        return stacked if times == 1 else stacked.repeat_interleave(times, 0)

    def collect(self, result: Tensor, hook: GradientHook) -> Tensor:
        """Have the gradient at a newly computed result collected by a hook in the backward pass."""
        if not torch.is_grad_enabled():
            return result
        if not result.requires_grad:
            start = result.new_empty(0, requires_grad=True)
            self.mode.graph_starts.append(start)
            result = _GraphStart.apply(result, start)
        result.register_hook(hook)
        return result

    # --- Without a rule

    def run_image_by_image(self) -> Any:
        """Make the call once for each image, with its part of the batch and its own value of the weights."""
        name, in_place = function_name(self.function), is_in_place(self.function)
        if "out" in self.kwargs or (in_place and self.version_of(self.args[0]) is not None):
            raise NotCoveredError(f"{name} writes into a weight")
        if in_place and self._axes[id(self.args[0])] is None:
            raise NotCoveredError(f"{name} writes weights into a tensor that the images share")
        results = [
            self.function(*self._arguments_of(self.args, image), **self._arguments_of(self.kwargs, image))
            for image in range(self.count)
        ]
        return self.args[0] if in_place else self._joined(results)

    def _arguments_of(self, tree: Any, image: int) -> Any:
        """Replace every tensor by one image's part of it."""

        def tensor_of(tensor: Tensor) -> Tensor:
            version, axis = self.mode.versions.get(id(tensor)), self._axes[id(tensor)]
            if version is not None:
                return version.unbound()[image]
            if axis is None:
                return tensor
            size = self._size_per_image(tensor, axis)
            return tensor.narrow(axis, image * size, size)

        return tree_map_only(Tensor, tensor_of, tree)

    def _size_per_image(self, tensor: Tensor, axis: int) -> int:
        if tensor.shape[axis] % self.count:
            raise NotCoveredError(
                f"{function_name(self.function)} has {tensor.shape[axis]} rows for {self.count} images"
            )
        return tensor.shape[axis] // self.count

    def _joined(self, results: list[Any]) -> Any:
        """Join the images' results: along the batch, or as a derived weight where there is no batch."""
        columns = list(zip(*map(tensors_in, results), strict=True))
        if len(columns) != len(self.layout.outputs) or not columns:
            raise NotCoveredError(
                f"{function_name(self.function)} takes a weight and returns {type(results[0]).__name__}"
            )
        joined = iter([self._joined_column(number, column) for number, column in enumerate(columns)])
        return tree_map_only(Tensor, lambda _: next(joined), results[0])

    def _joined_column(self, number: int, values: tuple[Tensor, ...]) -> Tensor:
        """Join the same tensor of every image's result."""
        axis = self.layout.outputs[number]
        if axis is None:
            derived = DerivedTensor(values, (self.key[0], self.key[1], number))
            self.mode.versions[id(derived.tensor)] = derived
            return derived.tensor
        if all(axis_of_input is None for axis_of_input in self.layout.inputs):
            # Weights that were expanded over the batch, as a class token is: each image's part of its own version.
            size = self._size_per_image(values[0], axis)
            values = tuple(value.narrow(axis, image * size, size) for image, value in enumerate(values))
        return torch.cat(values, axis)
