"""Run a network on a batch so that every image meets its own version of the weights.

Every call of a torch function that takes a weight is caught. Layers have rules of their own (`layers`); any
other call is made once for each image, with that image's part of the batch and its version of the weights. What a
network makes of weights alone is itself a weight in B versions, and caught in turn.

Tensors in nested tuples, lists and dicts, as functions take and give them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .weights import Derived, NotCoveredError, Version, Weight

__all__ = [
    "BatchLayout",
    "BatchLayouts",
    "PerImage",
    "PerSampleCall",
    "asks",
    "key_of",
    "leaves",
    "named",
    "overwrites",
    "rebuilt",
    "replaced",
]


def leaves(tree: Any) -> Iterator[Tensor]:
    """Give the tensors in nested tuples, lists and dicts, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))


def rebuilt(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Change every branch of a tuple, list or dict; anything else stays."""
    if isinstance(tree, dict):
        return {name: change(branch) for name, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        branches = [change(branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return tree


def replaced(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """Put other tensors in the places of a tree's own, in their order."""
    if isinstance(tree, Tensor):
        return next(tensors)
    return rebuilt(tree, lambda branch: replaced(branch, tensors))


Note = Callable[[Tensor], None]
Rule = Callable[..., Any]


@dataclass(frozen=True)
class BatchLayout:
    """Where the batch lies in the tensors of a call, given and returned; None where it does not."""

    given: tuple[int | None, ...]
    returned: tuple[int | None, ...]


BatchLayouts = dict[Any, BatchLayout]
"""What is known of a network's calls, by function, origin of the weights, and number of axes of each tensor."""

_QUESTIONS = frozenset(
    [
        "size",
        "dim",
        "ndimension",
        "numel",
        "nelement",
        "stride",
        "storage_offset",
        "element_size",
        "is_contiguous",
        "is_floating_point",
        "is_complex",
        "get_device",
        "type",
        "__len__",
        "__hash__",
        "__repr__",
        "__format__",
        "is_same_size",
        "data_ptr",
    ]
)
_TENSORS_OF_TENSORS = frozenset(["T", "mT", "H", "mH", "data", "real", "imag"])


def named(function: Any) -> str:
    """Name a function; an attribute by its own name."""
    name = str(getattr(function, "__name__", function))
    return f"{name} {function.__self__.__name__}" if name in {"__get__", "__set__"} else name


def asks(function: Any) -> bool:
    """Tell whether a call only asks what a tensor is, not what it holds."""
    name, _, attribute = named(function).partition(" ")
    return name in _QUESTIONS or (name == "__get__" and attribute not in _TENSORS_OF_TENSORS)


def overwrites(function: Any) -> bool:
    """Tell whether a call writes into its first argument."""
    name = named(function)
    return (name.endswith("_") and not name.endswith("__")) or (
        name.startswith(("__i", "__set")) and name != "__invert__"
    )


def key_of(function: Any, given: tuple[Any, ...], known: dict[int, Version]) -> Any:
    """Recognise a call in another run of the network."""
    tensors = list(leaves(given))
    origins = tuple(known[id(tensor)].origin if id(tensor) in known else None for tensor in tensors)
    return named(function), origins, tuple(tensor.ndim for tensor in tensors)


class PerImage(TorchFunctionMode):
    """While entered, `count` images that run together meet their own versions of the weights.

    settled: whether the step is taken. starts: where the graph began; the gradient there sets off the notes of a step
    that is still to be taken.
    """

    def __init__(
        self, weights: Iterable[Weight], layouts: BatchLayouts, rules: dict[Any, Rule], count: int, *, settled: bool
    ) -> None:
        super().__init__()
        self.known: dict[int, Version] = {id(weight.tensor): weight for weight in weights}
        self.layouts, self.rules, self.count, self.settled = layouts, rules, count, settled
        self.starts: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(id(tensor) in self.known for tensor in leaves((args, kwargs))) or asks(func):
            return func(*args, **kwargs)
        call = PerSampleCall(self, func, args, kwargs)
        rule = self.rules.get(func)
        result = NotImplemented if rule is None else rule(call, *args, **kwargs)
        return call.one_by_one() if result is NotImplemented else result


class _Begin(torch.autograd.Function):
    """Let the graph begin at a tensor that needs no gradient, without a copy, and so that it may be overwritten."""

    @staticmethod
    def forward(ctx: Any, result: Tensor, start: Tensor) -> Tensor:
        ctx.mark_dirty(result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        return None, gradients[0].new_empty(0)


class PerSampleCall:
    """One call of a torch function with at least one tensor that differs by image."""

    def __init__(self, run: PerImage, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.run, self.function, self.args, self.kwargs, self.count = run, function, args, kwargs, run.count
        self.key = key_of(function, (args, kwargs), run.known)
        layout = run.layouts.get(self.key)
        if layout is None:
            raise NotCoveredError(f"{named(function)} was not seen when the network was looked at")
        self.layout = layout
        self._axes = {id(t): axis for t, axis in zip(leaves((args, kwargs)), layout.given, strict=True)}

    def version(self, tensor: Tensor | None) -> Version | None:
        """Give the versions of a tensor, None if it is the same for every image."""
        return None if tensor is None else self.run.known.get(id(tensor))

    def weight(self, tensor: Tensor | None) -> Weight | None:
        """Give the versions of a tensor that is itself a parameter."""
        found = self.version(tensor)
        return found if isinstance(found, Weight) else None

    @property
    def settled(self) -> bool:
        """Tell whether the step is taken."""
        return self.run.settled

    def leads(self, tensor: Tensor) -> bool:
        """Tell whether the batch is the first axis of a given tensor."""
        return self._axes.get(id(tensor)) == 0 and self._share(tensor, 0) > 0

    def direct(self, batched: Tensor, *others: Tensor | None) -> bool:
        """Tell whether the batch leads in the first tensor, and the others are parameters or the same for all."""
        return self.leads(batched) and not any(
            isinstance(self.version(other), Derived) or (other is not None and self._axes[id(other)] is not None)
            for other in others
        )

    def copies(self, tensor: Tensor | None, rows: int) -> Tensor | None:
        """Give a tensor's versions, each repeated so that there are as many as rows: [rows,*shape]."""
        if tensor is None:
            return None
        found = self.version(tensor)
        if found is None:
            return tensor.expand(rows, *tensor.shape)
        versions, times = found.versions(), rows // self.count
        return versions if times == 1 else versions.repeat_interleave(times, 0)

    def track(self, result: Tensor, note: Note) -> Tensor:
        """Have the gradient of a fresh result noted, on the way to the step."""
        if not torch.is_grad_enabled():
            return result
        if not result.requires_grad:
            start = result.new_empty(0, requires_grad=True)
            self.run.starts.append(start)
            result = _Begin.apply(result, start)
        result.register_hook(note)
        return result

    def one_by_one(self) -> Any:
        """Make the call once for each image."""
        inplace = overwrites(self.function)
        if "out" in self.kwargs or (inplace and self.version(self.args[0]) is not None):
            raise NotCoveredError(f"{named(self.function)} writes into a weight")
        if inplace and self._axes[id(self.args[0])] is None:
            raise NotCoveredError(f"{named(self.function)} writes weights into something that the images share")
        answers = [
            self.function(*self._part(self.args, image), **self._part(self.kwargs, image))
            for image in range(self.count)
        ]
        return self.args[0] if inplace else self._joined(answers)

    def _part(self, tree: Any, image: int) -> Any:
        if isinstance(tree, Tensor):
            found, axis = self.run.known.get(id(tree)), self._axes[id(tree)]
            if found is not None:
                return found.each()[image]
            if axis is None:
                return tree
            size = self._share(tree, axis)
            return tree.narrow(axis, image * size, size)
        return rebuilt(tree, lambda branch: self._part(branch, image))

    def _share(self, tensor: Tensor, axis: int) -> int:
        if tensor.shape[axis] % self.count:
            raise NotCoveredError(f"{named(self.function)} has {tensor.shape[axis]} rows for {self.count} images")
        return tensor.shape[axis] // self.count

    def _joined(self, answers: list[Any]) -> Any:
        """Put the images' answers together: along the batch, or as a weight in versions where there is none."""
        columns = list(zip(*(list(leaves(answer)) for answer in answers), strict=True))
        if len(columns) != len(self.layout.returned) or not columns:
            raise NotCoveredError(f"{named(self.function)} takes a weight and gives {type(answers[0]).__name__}")
        joined = iter([self._column(*item) for item in enumerate(zip(columns, self.layout.returned, strict=True))])
        return replaced(answers[0], joined)

    def _column(self, number: int, item: tuple[tuple[Tensor, ...], int | None]) -> Tensor:
        values, axis = item
        if axis is None:
            derived = Derived(values, (self.key[0], self.key[1], number))
            self.run.known[id(derived.tensor)] = derived
            return derived.tensor
        if all(given is None for given in self.layout.given):
            # Weights that were spread over the batch, as a class token is: each image's own part of its own version.
            size = self._share(values[0], axis)
            values = tuple(value.narrow(axis, image * size, size) for image, value in enumerate(values))
        return torch.cat(values, axis)
