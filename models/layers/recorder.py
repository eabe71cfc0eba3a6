"""Record the output of every module during one run of a network, and why some outputs are no maps."""

from __future__ import annotations

import inspect
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from .coordinates import CoordinateTracker
from .layout import Axes, Layout, grid_extent, layout_from_coordinates, layout_from_shape, read_axes
from .stages import ModuleRun

__all__ = ["Recorder", "first_tensor"]


def first_tensor(module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any]) -> Tensor | None:
    """Give the first input of a module if it is a tensor, whether it is given by position or by keyword.

    Args:
        module: The module.
        args: What it was called with by position.
        keywords: What it was called with by keyword.

    Returns:
        The tensor, or None.

    Example:
        >>> first_tensor(nn.Conv2d(3, 4, 1), (), {"input": torch.zeros(1, 3, 8, 8)}).shape
        torch.Size([1, 3, 8, 8])
    """
    if args:
        return args[0] if isinstance(args[0], Tensor) else None
    if not keywords:
        return None
    try:
        parameters = inspect.signature(module.forward).parameters.values()
    except (TypeError, ValueError):
        parameters = {}.values()
    # A forward that passes all on, as a wrapper does with **kwargs, is followed by the order of the call.
    first = next((each.name for each in parameters if each.name in keywords), next(iter(keywords)))
    value = keywords[first]
    return value if isinstance(value, Tensor) else None


class Recorder:
    """What one run of a network on pixels [1,3,H,W] shows, as forward hooks see it.

    Args:
        tracker: Knows the coordinates of the tensors of this run.
        height: Height of the pixels.
        width: Width of the pixels.

    Attributes:
        runs: Every spatial output, in the order of execution.
        left_out: Every other module that ran: what its output is, and how many runs came before.
        misplaced: Of the runs whose locations are no map of the image, the reason.
        tokens: Of the runs whose output is tokens, the output and its layout.
    """

    def __init__(self, tracker: CoordinateTracker, height: int, width: int) -> None:
        self.tracker, self.height, self.width = tracker, height, width
        self.run_counts: Counter[str] = Counter()
        self.runs: list[ModuleRun] = []
        self.left_out: dict[str, tuple[str, int]] = {}
        self.misplaced: dict[str, str] = {}
        self.tokens: dict[str, tuple[Tensor, Layout]] = {}
        self._name_by_output: dict[tuple[Any, int], str] = {}
        self._spatial_means: dict[str, Tensor] = {}
        self._layout_by_field: Any = WeakTensorKeyDictionary()
        # Input of the last linear layer, a copy of it, and its output.
        self._last_linear: tuple[Tensor, Tensor, Tensor] | None = None

    def hook(self, name: str, module: nn.Module, args: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> None:
        """Record one run of a module, as its forward hook."""
        with _disable_current_modes():  # what is computed here needs no coordinates
            self._record(name, module, first_tensor(module, args, keywords), output)

    def _record(self, name: str, module: nn.Module, source: Tensor | None, output: Any) -> None:
        key = f"{name}:{self.run_counts[name]}" if self.run_counts[name] else name
        self.run_counts[name] += 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            self._leave_out(key, f"is a {type(output).__name__}, not one tensor of numbers")
            return
        if isinstance(module, nn.Linear) and output.ndim == 2 and source is not None:
            self._last_linear = (source, source.detach().clone(), output)
        layout, axes = self._layout(module, output)
        graph_output = (output.grad_fn, output.output_nr)
        if layout is None:
            why = self.tracker.reason_of(output)
            reason = f"is not spatial: {list(output.shape)} is no grid of locations in the image"
            self._leave_out(key, reason if why is None else f"{reason}, because {why}")
        elif output.grad_fn is None:
            self._leave_out(key, "has no gradient: it does not depend on the pixels through anything differentiable")
        elif graph_output in self._name_by_output and not any(module.children()):
            # Identity, or dropout in eval mode: the layer is listed under the name of the module that computed it.
            self._leave_out(key, f"is that of {self._name_by_output[graph_output]!r}, passed on unchanged")
        else:
            self._name_by_output.setdefault(graph_output, key)
            self._add_run(key, module, source, output, layout, axes)

    def _leave_out(self, key: str, reason: str) -> None:
        self.left_out[key] = (reason, len(self.runs))

    def _add_run(
        self, key: str, module: nn.Module, source: Tensor | None, output: Tensor, layout: Layout, axes: Axes | None
    ) -> None:
        grid = layout(output.detach())
        self._spatial_means[key] = grid.mean((2, 3))
        if output.ndim == 3:
            self.tokens[key] = (output, layout)
        input_layout = None if source is None else self._layout(module, source)[0]
        input_size = None if source is None or input_layout is None else input_layout(source.detach()).shape[2:]
        self.runs.append(
            ModuleRun(
                name=key,
                channels=grid.shape[1],
                size=(grid.shape[2], grid.shape[3]),
                input_size=None if input_size is None else tuple(input_size),
                has_weights=isinstance(module, (nn.Conv2d, nn.Linear)),
                kind=type(module),
                layout=layout,
                axes=axes,
                node=output.grad_fn,
                output_number=output.output_nr,
            )
        )

    def _layout(self, module: nn.Module, tensor: Tensor) -> tuple[Layout | None, Axes | None]:
        field = self.tracker.field_of(tensor)
        if field is None:
            return layout_from_shape(module, tensor, self.height, self.width), None
        if field not in self._layout_by_field:
            layout = layout_from_coordinates(field)
            self._layout_by_field[field] = layout, None if layout is None else read_axes(field, layout)
        known: tuple[Layout | None, Axes | None] = self._layout_by_field[field]
        return known

    def leave_out_varying(self, other: Recorder) -> None:
        """Leave out the runs whose locations are not where they are in another run of the network.

        Args:
            other: What a run on other pixels, with other random numbers, has shown.
        """
        others = {run.name: run for run in other.runs}
        for run in self.runs:
            if run.name not in others or not _lies_alike(run, others[run.name]):
                self.misplaced[run.name] = (
                    "is not spatial: where its locations lie differs from run to run, by the image or by chance"
                )

    def leave_out_uneven(self) -> None:
        """Leave out the runs whose rows or columns lie too unevenly in the pixels for a map."""
        for run in self.runs:
            if run.axes is not None and grid_extent(run.axes, (self.height, self.width)) is None:
                self.misplaced[run.name] = "is not spatial: its rows or columns lie unevenly in the image"

    def unread(self, outputs: list[Tensor]) -> set[str]:
        """Find the layers of tokens whose grid has no gradient at all: what follows reads only the other tokens.

        Args:
            outputs: The network's output tensors.

        Returns:
            The names of these layers.
        """
        unread = self._without_gradient(outputs)
        if len(unread) == len(self.tokens) and self._last_linear is not None:
            # An untrained head whose weights are zero says nothing about the network before it.
            unread = self._without_gradient([self._last_linear[0]])
        return unread if len(unread) < len(self.tokens) else set()

    def _without_gradient(self, outputs: list[Tensor]) -> set[str]:
        scores = [tensor for tensor in outputs if tensor.requires_grad]
        if not self.tokens or not scores:
            return set()
        # Noise, because the sum of a softmax has no gradient either.
        noise = [
            torch.randn(s.shape, generator=torch.Generator("cpu").manual_seed(0), device="cpu").to(s) for s in scores
        ]
        tensors = [tensor for tensor, _ in self.tokens.values()]
        gradients = torch.autograd.grad(scores, tensors, noise, retain_graph=True, allow_unused=True)
        layouts = [layout for _, layout in self.tokens.values()]
        return {
            name
            for name, layout, gradient in zip(self.tokens, layouts, gradients, strict=True)
            if gradient is None or not layout(gradient).any()
        }

    def pooled(self, outputs: list[Tensor]) -> set[str]:
        """Find the layer whose spatial mean the last linear layer reads, if that makes the network's output.

        Args:
            outputs: The network's output tensors.

        Returns:
            The layer's names, several where modules pass one tensor on; empty if there is no such layer.
        """
        if self._last_linear is None:
            return set()
        _, features, logits = self._last_linear
        # By value: a full backward hook of the user's on that layer passes on another tensor.
        if not any(torch.equal(tensor, logits.to(tensor.dtype)) for tensor in outputs):
            return set()
        tolerance = 1e-5 * float(features.abs().max())
        for run in reversed(self.runs):
            mean = self._spatial_means[run.name]
            if mean.shape == features.shape and torch.allclose(mean, features, rtol=1e-3, atol=tolerance):
                same = (run.node, run.output_number)
                return {each.name for each in self.runs if (each.node, each.output_number) == same}
        return set()


def _lies_alike(run: ModuleRun, other: ModuleRun) -> bool:
    """Tell whether two runs of a module have the same layout and coordinates."""
    if (run.axes is None) != (other.axes is None) or run.size != other.size:
        return False
    order, other_order = run.layout.order, other.layout.order
    same_order = order is other_order or (order is not None and other_order is not None and order.equal(other_order))
    pairs = zip(run.axes or (), other.axes or (), strict=True)
    return same_order and run.layout.start == other.layout.start and all(torch.allclose(a, b) for a, b in pairs)
