"""Capture activations and gradients: record one forward pass, then run one backward pass per target.

    pixels ─▶ conv1 ─▶ [layer1] ─▶ layer2 ─▶ [layer4] ─▶ head ─▶ scores [B,K]
                          x₁                    x₄                  │ backward(k): autograd.grad of Σ_b scores[b,k]
                          g₁ ◀───────────────── g₄ ◀────────────────┘
    1. A forward hook at each layer in brackets keeps its activation x; the graph starts at x₁, conv1 has none.
    2. A tensor hook at x₄, then one at x₁, makes the tap (x, g) as soon as g is there, and hands it on.
    3. g₄ is dropped before g₁ is computed; the pass of the last target also drops x₄ and its part of the graph.

A tensor that the network overwrites in place after its hook is cloned, that one alone; which ones these are is learnt
from the tensors' version counters. Taps are kept by layer name, and every hook is removed, also after an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Layer
from ..models.layers.recorder import first_tensor
from ..models.objective import Objective, Targets, needs_gradient, pad_targets
from .contributions import Dense, Product
from .layer_selection import LayerName

__all__ = ["Receive", "Recording", "Tap", "TapOf", "precise", "record"]


def precise(tensor: Tensor) -> Tensor:
    """Detach a tensor and cast it to float32 at least.

    Squares of float16 overflow, and sums of bfloat16 lose half their digits.

    Args:
        tensor: An activation or a gradient in the network's precision.

    Returns:
        The tensor in float32, or as it is in float32 and float64.

    Example:
        >>> precise(torch.ones(1, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    tensor = tensor.detach()
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


@dataclass(frozen=True)
class Tap:
    """Activation x and gradient g of a layer: what the `extract` function of a method reads.

    The three fields are shared by all methods, so that a statistic of them is computed once.

    Args:
        layer: The layer: its name, size and stride.
        module: The module that made the activation; None at the input.
        activation: x [B,C,h,w], in the network's precision but at least float32.
        gradient: g [B,C,h,w], of the score of one target per image.
        raw_source: The module's own first input as it lies in memory; None if it was no tensor.

    Example:
        >>> from gradlight.models.base import Layer
        >>> x, g = torch.tensor([[[[2.0]], [[3.0]]]]), torch.tensor([[[[1.0]], [[-1.0]]]])
        >>> tap = gl.Tap(Layer("conv", 1, 2, (1, 1)), None, x, g, None)
        >>> (tap.gradient * tap.activation).sum(1)
        tensor([[[-1.]]])
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
        """The activation x, as a field of vectors."""
        return Dense(self.activation)

    @cached_property
    def gradient_field(self) -> Dense:
        """The gradient g, as a field of vectors."""
        return Dense(self.gradient)

    @cached_property
    def product_field(self) -> Product:
        """Gradient times activation g ⊙ x, as a field of vectors."""
        return Product(self.gradient, self.activation)

    def toward(self, gradient: Tensor) -> Tap:
        """Make the tap of another target: another gradient at the same activation, whose statistics are kept."""
        tap = Tap(self.layer, self.module, self.activation, gradient, self.raw_source)
        tap.__dict__["activation_field"] = self.activation_field
        return tap

    def parts(self, size: int) -> Iterator[Tap]:
        """Cut the tap into taps of at most `size` images each."""
        for start in range(0, len(self.activation), size):
            images = slice(start, start + size)
            x, g = self.activation[images], self.gradient[images]
            yield _PartOfTap(self.layer, self.module, x, g, self.raw_source, self, images)


@dataclass(frozen=True)
class _PartOfTap(Tap):
    """The tap of some images of a batch; its module's input may not be laid out image by image in memory."""

    batch: Tap
    images: slice

    @property
    def source(self) -> Tensor:
        return self.batch.source[self.images]


# --- one recorded forward pass, and its backward passes

TapOf = Callable[[Tensor], Tap]
"""From the gradient that a tensor hook receives to the tap of its layer."""

Receive = Callable[[TapOf, Tensor], None]
"""Called by autograd with the gradient of a layer: `receive(tap_of, gradient)`, where `tap_of(gradient)` is the tap."""


class Recording:
    """One forward pass: the scores of fixed targets, and what their gradients at the layers need.

    Backward passes may be run for any target, in any order and more than once, until that of the last target, number
    K − 1. It frees the forward pass while it runs, layer by layer; afterwards every call raises GradlightError.

    Args:
        scores: [B,K]. Where the images have different numbers of targets, the last one of an image is repeated.
        targets: The fixed targets of each image.
        outputs: What each layer gave, by its name.

    Example:
        >>> from gradlight.explainers.layer_selection import choose_layers
        >>> from gradlight.models.preserve import preserved
        >>> model = gl.classifier("scenes")
        >>> layers = choose_layers(model, "layer4", model.size)
        >>> with preserved(model.network):
        ...     recording = record(model.objective("star"), torch.zeros(1, 3, *model.size), layers)
        ...     tap = recording.taps(0)["layer4"]
        >>> tap.gradient.shape == tap.activation.shape
        True
    """

    def __init__(self, scores: Tensor, targets: Targets, outputs: dict[str, _LayerOutput]) -> None:
        self.scores, self.targets, self._outputs = scores, targets, outputs
        self._shared: dict[str, Tap] = {}
        self._freed = False

    def taps(self, target: int) -> dict[str, Tap]:
        """Run the backward pass of one target of every image, and keep the taps of all layers.

        Args:
            target: Number of the target, 0…K−1.

        Returns:
            The taps by the name of their layer, in the order in which the layers were asked for.

        Raises:
            GradlightError: As `backward` does.
        """
        names, taps = list(self._outputs), dict[str, Tap]()

        def keep(tap_of: TapOf, gradient: Tensor) -> None:
            tap = tap_of(gradient)
            taps[tap.layer.name] = tap

        self.backward(target, keep)
        return {name: taps[name] for name in names}

    def backward(self, target: int, receive: Receive) -> None:
        """Run the backward pass of one target of every image; each gradient is handed on as soon as it is computed.

        The deepest layer comes first. A gradient is dropped when `receive` returns, unless it is kept there, so that
        the next one finds its memory free.

        Args:
            target: Number of the target, 0…K−1; the last one frees the forward pass.
            receive: The hook at each layer, called as `receive(tap_of, gradient)`; it must call `tap_of(gradient)`.

        Raises:
            GradlightError: There is no such target, the forward pass is freed already, or the score does not depend
                on a layer.
        """
        self._check_target(target)
        if not self.scores.requires_grad:
            raise _no_gradient(self._outputs)
        self._freed = last = target == self.scores.shape[1] - 1
        missing = set(self._outputs)
        with ExitStack() as undo:
            for name in missing.copy():
                hook = partial(receive, partial(self._tap, name, missing))
                undo.callback(self._outputs[name].tensor.register_hook(hook).remove)
            torch.autograd.grad(self.scores[:, target].sum(), self._ends(), retain_graph=not last, allow_unused=True)
        if missing:
            raise _no_gradient(missing)

    def _check_target(self, target: int) -> None:
        count = self.scores.shape[1]
        if not 0 <= target < count:
            raise GradlightError(f"There is no target {target}: there are {count}, counted from 0.")
        if self._freed:
            raise GradlightError(
                f"The gradients of target {target} cannot be computed because the backward pass of the last target,"
                f" {count - 1}, has freed this recording. Keep its taps, or record the forward pass again."
            )

    def _ends(self) -> list[Tensor]:
        """Give the tensors at which the backward pass ends: the leaves where the graph starts, or else all.

        All other layers lead to those leaves, unless the network holds a tensor of its own that requires a gradient.
        """
        tensors = [output.tensor for output in self._outputs.values()]
        return [tensor for tensor in tensors if tensor.is_leaf] if tensors[0].is_leaf else tensors

    def _tap(self, name: str, missing: set[str], gradient: Tensor) -> Tap:
        """Make the tap of a layer from its gradient; for the last target, only the tap still holds the activation."""
        missing.discard(name)
        output = self._outputs.pop(name) if self._freed else self._outputs[name]
        tap = self._shared.pop(name, None) or output.tap()
        if not self._freed:
            self._shared[name] = tap
        return tap.toward(precise(output.layer.layout(gradient)))


def _no_gradient(names: Iterable[str]) -> GradlightError:
    return GradlightError(
        f"The score does not depend on {', '.join(map(repr, sorted(names)))} through anything that has a gradient."
        " Ask for a layer that reaches the score (`model.layers()` lists them); a network that runs under no_grad or"
        " detaches its features cannot be explained by its gradient."
    )


# --- the forward pass

_overwritten: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()
"""What each network overwrites in place, as far as it was seen: the forward pass is repeated only the first time."""


_differentiable_throughout: WeakSet[nn.Module] = WeakSet()
"""The networks with a hook of the user's that needs a gradient before the first tap: the graph starts at the pixels."""


def record(objective: Objective, pixels: Tensor, layers: Sequence[Layer], targets: Targets | None = None) -> Recording:
    """Run the network once with a hook at each layer, inside `preserved`.

    Args:
        objective: What is scored.
        pixels: [B,3,H,W]; they are copied, and never written to.
        layers: The layers to tap.
        targets: Fixed targets of each image; None lets the objective choose them from this very pass.

    Returns:
        The recording, from which `taps` and `backward` take gradients.

    Raises:
        GradlightError: A layer does not run, or its output is not one tensor.

    Example:
        See `Recording`.
    """
    clone = _overwritten.setdefault(objective.network, set())
    while True:
        try:
            result, outputs = _run(objective, pixels, layers, clone)
        except RuntimeError as error:
            if objective.network in _differentiable_throughout or not needs_gradient(error):
                raise
            _differentiable_throughout.add(objective.network)
            continue
        overwritten = set().union(*(output.overwritten() for output in outputs.values()))
        if not overwritten:
            break
        clone |= overwritten
    targets = objective.choose(result) if targets is None else targets
    scores = objective.scores(result, pad_targets(targets))
    return Recording(scores, targets, {layer.name: outputs[layer.name] for layer in layers})


@dataclass
class _LayerOutput:
    """The output of a layer and the input of its module, with version counters that show a later change in place."""

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

    def tap(self) -> Tap:
        """Make the tap that all targets share, without a gradient."""
        source = None if self.source is None else self.source.detach()
        x = precise(self.layer.layout(self.tensor))
        return Tap(self.layer, self.module, x, x[:0], source)


def _source_of(name: str) -> str:
    return f"source of {name}"


def _run(
    objective: Objective, pixels: Tensor, layers: Sequence[Layer], clone: set[str]
) -> tuple[Any, dict[str, _LayerOutput]]:
    """Run the network once with a hook at each layer; the layers in `clone` are copied before they are handed on."""
    outputs: dict[str, _LayerOutput] = {}
    with ExitStack() as undo:
        for name, runs in _by_module(layers).items():
            module = objective.trunk.get_submodule(name)
            inputs: list[_ModuleInput] = []
            clone_input = any(_source_of(layer.name) in clone for layer in runs.values())
            before = partial(_note_input, inputs=inputs, clone=clone_input)
            after = partial(_note_output, outputs=outputs, inputs=inputs, runs=runs, clone=clone, count=Counter[str]())
            undo.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            undo.callback(module.register_forward_hook(after).remove)
        copied = _tap_pixels(pixels, layers, outputs)
        if objective.network in _differentiable_throughout and not copied.requires_grad:
            # A copy again: the network's first operation may be in place.
            copied = copied.requires_grad_().clone()
        result = objective.outputs(copied)
    silent = [layer.name for layer in layers if layer.name not in outputs]
    if silent:
        raise GradlightError(
            f"{', '.join(map(repr, silent))} did not run in this forward pass. `model.layers()` lists the layers that"
            " do; hooks on the inside of a compiled network never fire, so give the network before torch.compile."
        )
    return result, outputs


def _by_module(layers: Sequence[Layer]) -> dict[str, dict[int, Layer]]:
    """Sort layers by the module that makes them, and by which of its runs."""
    modules: dict[str, dict[int, Layer]] = {}
    for layer in layers:
        name = LayerName.parse(layer.name)
        if not name.is_input:
            modules.setdefault(name.module, {})[name.run] = layer
    return modules


def _tap_pixels(pixels: Tensor, layers: Sequence[Layer], outputs: dict[str, _LayerOutput]) -> Tensor:
    """Copy the pixels for the network, and tap them if the layer "input" is among the layers."""
    layer = next((layer for layer in layers if layer.name == "input"), None)
    # A copy: the caller's pixels may be made under inference_mode, and the network's first operation may be in place.
    leaf = pixels.detach().clone()
    if layer is None:
        return leaf
    leaf.requires_grad_()
    outputs["input"] = _LayerOutput(layer, None, leaf, leaf._version, None, 0)
    return leaf.clone()


_ModuleInput = tuple[Tensor | None, int]
"""A module's first input, and its version counter before the module ran."""


def _note_input(
    module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], *, inputs: list[_ModuleInput], clone: bool
) -> None:
    """Note the first input of a module, before the module itself can overwrite it."""
    source = first_tensor(module, args, keywords)
    if source is not None and clone:
        source = source.detach().clone()
    inputs.append((source, 0 if source is None else source._version))


def _note_output(
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
    *,
    outputs: dict[str, _LayerOutput],
    inputs: list[_ModuleInput],
    runs: dict[int, Layer],
    clone: set[str],
    count: Counter[str],
) -> Tensor | None:
    """Note the output of a module, if this run of it is tapped; return what the network must go on with instead."""
    source, source_version = inputs.pop()
    layer = runs.get(count["runs"])
    count["runs"] += 1
    if layer is None:
        return None
    if not isinstance(output, Tensor) or not output.is_floating_point():
        raise GradlightError(
            f"{layer.name!r} gives a {type(output).__name__}, not one tensor of numbers; tap inside it."
        )
    if source is not None and next(module.parameters(), None) is None and next(module.buffers(), None) is None:
        source_version = source._version  # no weight of its own needs its input, so that is not copied
    starts_graph, overwritten = not output.requires_grad, layer.name in clone
    # Its own copy, too: the output may be a view of something else that is overwritten.
    kept = output.clone() if overwritten else output
    tensor = kept.detach().requires_grad_() if starts_graph else kept
    outputs[layer.name] = _LayerOutput(layer, module, tensor, tensor._version, source, source_version)
    # A leaf must not be overwritten at all, so where the graph starts a copy is handed on in any case.
    return tensor.clone() if starts_graph or overwritten else None
