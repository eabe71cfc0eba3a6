"""Note what passes through every module of a network during one run, and why some of it is no map."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from .coordinates import CoordinateTracker
from .layout import Layout, by_places, by_shape
from .stages import Passage

__all__ = ["Recorder"]


class Recorder:
    """What one run of a network on pixels [1,3,H,W] shows, as forward hooks see it.

    passages: every spatial output, in the order of execution. left_out: the other modules that ran, each with what
    its output is and how many passages came before. tokens: those whose grid may not be read although the tensor is.
    """

    def __init__(self, positions: CoordinateTracker, height: int, width: int) -> None:
        self.positions, self.height, self.width = positions, height, width
        self.turns: Counter[str] = Counter()
        self.passages: list[Passage] = []
        self.left_out: dict[str, tuple[str, int]] = {}
        self.tokens: dict[str, tuple[Tensor, Layout]] = {}
        self._places: dict[tuple[Any, int], str] = {}
        self._means: dict[str, Tensor] = {}
        self._layouts: Any = WeakTensorKeyDictionary()
        self._linear: tuple[Tensor, Tensor, Tensor] | None = None

    def see(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Note one run of a module, as its forward hook."""
        with _disable_current_modes():  # nobody asks for the places of what is computed here
            self._note(name, module, args, output)

    def _note(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        key = f"{name}:{self.turns[name]}" if self.turns[name] else name
        self.turns[name] += 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            self._leave_out(key, f"is a {type(output).__name__}, not one tensor of numbers")
            return
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(module, nn.Linear) and output.ndim == 2 and source is not None:
            self._linear = (source, source.detach().clone(), output)
        layout = self._layout(module, output)
        place = (output.grad_fn, output.output_nr)
        if layout is None:
            self._leave_out(key, f"is not spatial: {list(output.shape)} is no grid of places in the image")
        elif output.grad_fn is None:
            self._leave_out(key, "has no gradient: it does not depend on the pixels through anything differentiable")
        elif place in self._places and not any(module.children()):
            # Identity, or dropout in eval mode: the place is known under the name of what made it.
            self._leave_out(key, f"is what {self._places[place]!r} made, handed on")
        else:
            self._places.setdefault(place, key)
            self._pass(key, module, source, output, layout)

    def _leave_out(self, key: str, why: str) -> None:
        self.left_out[key] = (why, len(self.passages))

    def _pass(self, key: str, module: nn.Module, source: Tensor | None, output: Tensor, layout: Layout) -> None:
        grid = layout(output.detach())
        self._means[key] = grid.mean((2, 3))
        if output.ndim == 3:
            self.tokens[key] = (output, layout)
        before = None if source is None else self._layout(module, source)
        self.passages.append(
            Passage(
                name=key,
                channels=grid.shape[1],
                size=(grid.shape[2], grid.shape[3]),
                before=None if source is None or before is None else tuple(before(source.detach()).shape[2:]),
                weighs=isinstance(module, (nn.Conv2d, nn.Linear)),
                kind=type(module),
                layout=layout,
                node=output.grad_fn,
                outlet=output.output_nr,
            )
        )

    def _layout(self, module: nn.Module, tensor: Tensor) -> Layout | None:
        field = self.positions.of(tensor)
        if field is None:
            return by_shape(module, tensor, self.height, self.width)
        if field not in self._layouts:
            self._layouts[field] = by_places(field)
        found: Layout | None = self._layouts[field]
        return found

    def unread(self, outputs: list[Tensor]) -> set[str]:
        """Name the layers of tokens whose grid has no gradient at all: what follows reads only the other tokens."""
        unread = self._without_gradient(outputs)
        if len(unread) == len(self.tokens) and self._linear is not None:
            # An untrained head whose weights are zero, which tells nothing of the network before it.
            unread = self._without_gradient([self._linear[0]])
        return unread if len(unread) < len(self.tokens) else set()

    def _without_gradient(self, outputs: list[Tensor]) -> set[str]:
        scores = [tensor for tensor in outputs if tensor.requires_grad]
        if not self.tokens or not scores:
            return set()
        # Noise, because the sum of a softmax has no gradient either.
        noise = [torch.randn(s.shape, generator=torch.Generator().manual_seed(0)).to(s) for s in scores]
        tensors = [tensor for tensor, _ in self.tokens.values()]
        found = torch.autograd.grad(scores, tensors, noise, retain_graph=True, allow_unused=True)
        layouts = [layout for _, layout in self.tokens.values()]
        return {
            name
            for name, layout, gradient in zip(self.tokens, layouts, found, strict=True)
            if gradient is None or not layout(gradient).any()
        }

    def pooled(self, outputs: list[Tensor]) -> set[str]:
        """Name the place whose spatial mean is what the last linear layer reads, if that makes the network's output."""
        if self._linear is None:
            return set()
        _, read, answer = self._linear
        # By value: a full backward hook of the user's on that layer hands on another tensor.
        if not any(tensor.dtype == answer.dtype and torch.equal(tensor, answer) for tensor in outputs):
            return set()
        near = 1e-5 * float(read.abs().max())
        for passage in reversed(self.passages):
            mean = self._means[passage.name]
            if mean.shape == read.shape and torch.allclose(mean, read, rtol=1e-3, atol=near):
                place = (passage.node, passage.outlet)
                return {p.name for p in self.passages if (p.node, p.outlet) == place}
        return set()
