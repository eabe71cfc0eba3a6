"""One forward, one backward: the activation and the gradient of every asked layer.

The graph starts at the earliest tapped layer (what comes before needs no gradient), one `torch.autograd.grad` passes
all taps, where each gradient is used while it is hot and then dropped, and taps are kept by name. A tensor that the
network overwrites in place after its tap is met by a clone, of that tap alone; which ones these are is learnt from the
tensors' version counters.

Activation and gradient at a layer, with the statistics that all methods and all targets share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Layer
from ..models.objective import Objective, Targets, pad_targets
from .contributions import Dense, Product

__all__ = ["Recording", "Tap", "precise", "record"]


def precise(tensor: Tensor) -> Tensor:
    """Compute statistics in float32 at least: squares of float16 overflow, sums of bfloat16 lose half their digits."""
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class Tap:
    """Activation x and gradient g at a layer, [B,C,h,w] in the network's precision but at least float32.

    module: the layer's module, None at the input. raw_source: that module's own first input as it lay in memory, None
    if it was no tensor. The three fields are shared by every method, so that a statistic is computed once.
    """

    layer: Layer
    module: nn.Module | None
    activation: Tensor
    gradient: Tensor
    raw_source: Tensor | None

    @property
    def source(self) -> Tensor:
        """The module's own input as a map [B,C',h',w']. Raises GradlightError if it had none."""
        if self.raw_source is None:
            raise GradlightError(f"{self.layer.name!r} takes no tensor as its first input; real methods need one.")
        return precise(self.layer.layout(self.raw_source))

    @cached_property
    def activation_field(self) -> Dense:
        """The activation, as vectors."""
        return Dense(self.activation)

    @cached_property
    def gradient_field(self) -> Dense:
        """The gradient, as vectors."""
        return Dense(self.gradient)

    @cached_property
    def product_field(self) -> Product:
        """Gradient times activation, as vectors."""
        return Product(self.gradient, self.activation)

    def toward(self, gradient: Tensor) -> Tap:
        """Give the tap of another target: another gradient at the same activation, whose statistics are kept."""
        other = Tap(self.layer, self.module, self.activation, gradient, self.raw_source)
        other.__dict__["activation_field"] = self.activation_field
        return other

    def parts(self, size: int) -> Iterator[Tap]:
        """Cut the tap into those of at most `size` images each."""
        for at in range(0, len(self.activation), size):
            these = slice(at, at + size)
            x, g = self.activation[these], self.gradient[these]
            yield _PartOfTap(self.layer, self.module, x, g, self.raw_source, self, these)


@dataclass(frozen=True)
class _PartOfTap(Tap):
    """The tap of some images of a batch; in memory, its module's input may be cut otherwise than by images."""

    whole: Tap
    these: slice

    @property
    def source(self) -> Tensor:
        return self.whole.source[self.these]


@dataclass
class _Mark:
    """A tensor seen at a layer, with the version counters that tell whether it was overwritten afterwards."""

    layer: Layer
    module: nn.Module | None
    tensor: Tensor
    version: int
    source: Tensor | None
    source_version: int

    def overwritten(self) -> set[str]:
        """Name what was overwritten: the layer itself, or its source."""
        names = {self.layer.name} if self.tensor._version != self.version else set()
        if self.source is not None and self.source._version != self.source_version:
            names.add(_source_of(self.layer.name))
        return names


def _source_of(name: str) -> str:
    return f"source of {name}"


See = Callable[[Tap], object]
"""What is done with a tap while its gradient is at hand."""


class Recording:
    """One forward pass: the scores [B,K] of fixed targets, and what is needed to take gradients at the layers.

    Where the images have different numbers of targets, the last one of an image is repeated in its scores.
    """

    def __init__(self, scores: Tensor, targets: Targets, marks: dict[str, _Mark]) -> None:
        self.scores, self.targets, self._marks = scores, targets, marks
        self._places: dict[str, Tap] = {}

    def taps(self, target: int) -> dict[str, Tap]:
        """Go back once from target number `target` of every image to all layers at once, and keep every gradient."""
        names, found = list(self._marks), dict[str, Tap]()
        self.visit(target, lambda tap: found.update({tap.layer.name: tap}))
        return {name: found[name] for name in names}

    def visit(self, target: int, see: See) -> None:
        """Go back once from target number `target` of every image, and show each tap as soon as it has its gradient.

        The deepest comes first; a gradient is dropped when `see` returns, unless it is kept there. The last target
        frees what the pass has held, layer by layer on the way back, so that gradients find memory that is at hand.
        Raises GradlightError for a layer that the score does not depend on.
        """
        if not self.scores.requires_grad:
            raise _no_gradient(self._marks)
        last = target == self.scores.shape[1] - 1
        missing = set(self._marks)
        take = self._marks.pop if last else self._marks.__getitem__
        with ExitStack() as undo:
            for name in missing:
                show = partial(self._show, name, see, missing, take)
                undo.callback(self._marks[name].tensor.register_hook(show).remove)
            torch.autograd.grad(self.scores[:, target].sum(), self._ends(), retain_graph=not last, allow_unused=True)
        if missing:
            raise _no_gradient(missing)

    def _ends(self) -> list[Tensor]:
        """Give the taps at which the way back ends: the leaves, where the graph begins, since all others lead there.

        All taps, where the network holds a tensor of its own that wants a gradient: then others may lead to that.
        """
        tensors = [mark.tensor for mark in self._marks.values()]
        return [tensor for tensor in tensors if tensor.is_leaf] if tensors[0].is_leaf else tensors

    def _show(self, name: str, see: See, missing: set[str], take: Callable[[str], _Mark], gradient: Tensor) -> None:
        missing.discard(name)
        mark = take(name)
        tap = self._places.pop(name, None) or _place(mark)
        if name in self._marks:
            self._places[name] = tap
        see(tap.toward(precise(mark.layer.layout(gradient))))


def _place(mark: _Mark) -> Tap:
    """Make the tap of a layer that all targets share, without a gradient."""
    source = None if mark.source is None else mark.source.detach()
    x = precise(mark.layer.layout(mark.tensor))
    return Tap(mark.layer, mark.module, x, x[:0], source)


def _no_gradient(names: Any) -> GradlightError:
    return GradlightError(
        f"The score does not depend on {', '.join(map(repr, sorted(names)))} through anything that has a gradient."
        " Ask for a layer that reaches the score (`model.layers()` lists them); a network that runs under no_grad or"
        " detaches its features cannot be explained by its gradient."
    )


_overwritten: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""What each network is known to overwrite in place, so that the forward pass is repeated only the first time."""


def record(objective: Objective, pixels: Tensor, layers: Sequence[Layer], targets: Targets | None = None) -> Recording:
    """Run the network once on pixels [B,3,H,W] with taps at the layers, inside `preserved`.

    targets: fixed ones; None lets the objective choose from this very pass. Raises GradlightError when a layer does
    not exist or does not run.
    """
    known = _overwritten.setdefault(objective.network, set())
    while True:
        outputs, marks = _run(objective, pixels, layers, known)
        overwritten = set().union(*(mark.overwritten() for mark in marks.values()))
        if not overwritten:
            break
        known |= overwritten
    targets = objective.choose(outputs) if targets is None else targets
    scores = objective.scores(outputs, pad_targets(targets))
    return Recording(scores, targets, {layer.name: marks[layer.name] for layer in layers})


def _run(
    objective: Objective, pixels: Tensor, layers: Sequence[Layer], clone: set[str]
) -> tuple[Any, dict[str, _Mark]]:
    """Run the network once with a tap at each layer; those of `clone` are copied before they are handed on."""
    marks: dict[str, _Mark] = {}
    with ExitStack() as undo:
        for name, turns in _by_module(layers).items():
            module = objective.trunk.get_submodule(name)
            given: list[_Given] = []
            take = partial(_take, given=given, clone=any(_source_of(layer.name) in clone for layer in turns.values()))
            undo.callback(module.register_forward_pre_hook(take).remove)
            hook = partial(_tap, marks=marks, given=given, turns=turns, clone=clone, count=Counter[str]())
            undo.callback(module.register_forward_hook(hook).remove)
        outputs = objective.outputs(_tap_pixels(pixels, layers, marks))
    silent = [layer.name for layer in layers if layer.name not in marks]
    if silent:
        raise GradlightError(
            f"{', '.join(map(repr, silent))} did not run in this forward pass. `model.layers()` lists the layers that"
            " do; hooks on the inside of a compiled network never fire, so give the network before torch.compile."
        )
    return outputs, marks


def _by_module(layers: Sequence[Layer]) -> dict[str, dict[int, Layer]]:
    """Sort layers by the module that makes them, and by the time it runs: "relu:2" is relu's third."""
    found: dict[str, dict[int, Layer]] = {}
    for layer in layers:
        if layer.name != "input":
            name, _, turn = layer.name.partition(":")
            found.setdefault(name, {})[int(turn or 0)] = layer
    return found


def _tap_pixels(pixels: Tensor, layers: Sequence[Layer], marks: dict[str, _Mark]) -> Tensor:
    asked = next((layer for layer in layers if layer.name == "input"), None)
    # A copy: the caller's pixels may be made under inference_mode, and the network's first operation may be in place.
    leaf = pixels.detach().clone()
    if asked is None:
        return leaf
    leaf.requires_grad_()
    marks["input"] = _Mark(asked, None, leaf, leaf._version, None, 0)
    return leaf.clone()


_Given = tuple[Tensor | None, int]
"""A module's first input, and its version counter before the module ran."""


def _take(module: nn.Module, args: tuple[Any, ...], *, given: list[_Given], clone: bool) -> None:
    """Note what a module is given, before the module itself can overwrite it."""
    source = args[0] if args and isinstance(args[0], Tensor) else None
    if source is not None and clone:
        source = source.detach().clone()
    given.append((source, 0 if source is None else source._version))


def _tap(
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
    *,
    marks: dict[str, _Mark],
    given: list[_Given],
    turns: dict[int, Layer],
    clone: set[str],
    count: Counter[str],
) -> Tensor | None:
    """Note the output of an asked run of a module, and hand on what keeps the note true."""
    source, source_version = given.pop()
    turn = count["runs"]
    count["runs"] += 1
    layer = turns.get(turn)
    if layer is None:
        return None
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise GradlightError(
            f"{layer.name!r} gives a {type(output).__name__}, not one tensor of numbers; tap inside it."
        )
    if source is not None and next(module.parameters(), None) is None and next(module.buffers(), None) is None:
        source_version = source._version  # no weight of its own needs what it was given, so it is not copied
    begins, overwritten = not output.requires_grad, layer.name in clone
    # Its own copy, too: the output may be a view of something else that is overwritten.
    kept = output.clone() if overwritten else output
    tensor = kept.detach().requires_grad_() if begins else kept
    marks[layer.name] = _Mark(layer, module, tensor, tensor._version, source, source_version)
    # A leaf must not be overwritten at all, so where the graph begins a copy is handed on in any case.
    return tensor.clone() if begins or overwritten else None
