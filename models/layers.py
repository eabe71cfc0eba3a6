"""Find a network's spatial layers by running it once: their names, order, grids and memory layouts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import GradlightError
from .preserve import preserved
from .stages import Passage, choose_stages, mark_paths

__all__ = ["Layer", "Layout", "discover"]

Layout = Callable[[Tensor], Tensor]


def _as_is(tensor: Tensor) -> Tensor:
    return tensor


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.movedim(-1, 1)


def _tokens(tensor: Tensor, prefix: int, aspect: float) -> Tensor:
    grid = _grid(tensor.shape[1] - prefix, aspect)
    if grid is None:
        raise GradlightError(f"{tensor.shape[1]} tokens, {prefix} of them not of the grid, form no grid of the pixels.")
    laid: Tensor = tensor[:, prefix:].movedim(-1, 1).unflatten(2, grid)
    return laid


@dataclass(frozen=True)
class Layer:
    """A place in the network whose output is spatial.

    name: the module's dotted name, "input" for the pixels, "relu:2" for the third time that module ran.
    depth: its position in the order of execution (0 = the pixels). channels, size: of its map, (height, width).
    stride: pixels per location, (vertical, horizontal). pooled: its spatial mean is what the network's one last
    linear layer reads, so that CAM is defined there. layout: brings the module's raw output to [B,C,h,w].
    """

    name: str
    depth: int
    channels: int
    size: tuple[int, int]
    stride: tuple[float, float] = (1.0, 1.0)
    pooled: bool = field(default=False, repr=False)
    layout: Layout = field(default=_as_is, repr=False, compare=False)


@dataclass
class Discovery:
    """What one run of a network shows: every spatial layer in the order of execution, and the stages among them."""

    layers: list[Layer]
    stages: list[Layer]


def discover(network: nn.Module, pixels: Tensor) -> Discovery:
    """Run the network once on pixels [1,3,H,W] and list its spatial layers, leaving it as it was.

    A layer is listed when its output has more than one location and these reach the network's output (after its last
    attention, a transformer may read its class token alone). Raises GradlightError when the network refuses such
    pixels.
    """
    recorder = _Recorder(height=pixels.shape[2], width=pixels.shape[3])
    with ExitStack() as undo:
        undo.enter_context(preserved(network))
        for name, module in network.named_modules():
            if name:
                undo.callback(module.register_forward_hook(partial(recorder.see, name)).remove)
        leaf = pixels.clone().requires_grad_()
        outputs = _tensors(_run(network, leaf))
        unread = _unread(recorder, outputs)
    passages = [p for p in mark_paths(recorder.passages, outputs, leaf) if p.name not in unread]
    pooled = _pooled(recorder, outputs)
    layers = [Layer("input", 0, pixels.shape[1], (pixels.shape[2], pixels.shape[3]))]
    named = {}
    for depth, passage in enumerate((p for p in passages if p.reaches), start=1):
        height, width = passage.size
        stride = (pixels.shape[2] / height, pixels.shape[3] / width)
        layer = Layer(
            passage.name, depth, passage.channels, passage.size, stride, passage.name in pooled, passage.layout
        )
        layers.append(layer)
        named[passage.name] = layer
    return Discovery(layers, [named[passage.name] for passage in choose_stages(passages)])


def _run(network: nn.Module, leaf: Tensor) -> Any:
    try:
        return network(leaf.clone())
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise GradlightError(
            f"The network refused pixels of shape {list(leaf.shape)}: {error}. Give preprocess= that makes the size"
            " which it was built for."
        ) from error


class _Recorder:
    """Note what passes through every module during one run."""

    def __init__(self, height: int, width: int) -> None:
        self.height, self.width = height, width
        self.turns: Counter[str] = Counter()
        self.passages: list[Passage] = []
        self.places: set[tuple[Any, int]] = set()
        self.means: dict[str, Tensor] = {}
        self.tokens: dict[str, tuple[Tensor, Layout]] = {}
        self.linear: tuple[Tensor, Tensor] | None = None

    def see(self, name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        turn = self.turns[name]
        self.turns[name] += 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if isinstance(module, nn.Linear) and output.ndim == 2 and source is not None:
            self.linear = (source.detach().clone(), output)
        layout = _layout(module, output, self.height, self.width)
        if layout is None or output.grad_fn is None:
            return
        place = (output.grad_fn, output.output_nr)
        if place in self.places and not any(module.children()):
            return  # Identity, or dropout in eval mode: the place is known under the name of what made it
        self.places.add(place)
        grid = layout(output.detach())
        key = f"{name}:{turn}" if turn else name
        self.means[key] = grid.mean((2, 3))
        if output.ndim == 3:
            self.tokens[key] = (output, layout)
        before = None if source is None else _layout(module, source, self.height, self.width)
        self.passages.append(
            Passage(
                name=key,
                channels=grid.shape[1],
                size=(grid.shape[2], grid.shape[3]),
                before=None if source is None or before is None else tuple(before(source.detach()).shape[2:]),
                weighs=isinstance(module, (nn.Conv2d, nn.Linear)),
                layout=layout,
                node=output.grad_fn,
                outlet=output.output_nr,
            )
        )


_LAST = (nn.Linear.forward, nn.LayerNorm.forward)


def _layout(module: nn.Module, tensor: Tensor, height: int, width: int) -> Layout | None:
    """Tell how a tensor lies in memory, or None if it has no grid of more than one location like the pixels'."""
    aspect = height / width
    if tensor.ndim == 4:
        last = isinstance(module, (nn.Linear, nn.LayerNorm)) and type(module).forward in _LAST
        if not last and _like(tensor.shape[2:], aspect):
            return _as_is
        if last or _like(tensor.shape[1:3], aspect):
            return _channels_last if tensor.shape[1] * tensor.shape[2] > 1 else None
        return _as_is if tensor.shape[2] * tensor.shape[3] > 1 else None
    if tensor.ndim == 3:
        for prefix in range(9):
            if _grid(tensor.shape[1] - prefix, aspect):
                return partial(_tokens, prefix=prefix, aspect=aspect)
    return None


def _like(grid: tuple[int, ...] | torch.Size, aspect: float) -> bool:
    """Tell whether a grid has more than one location and the pixels' proportions, up to rounding."""
    rows, columns = grid
    return rows * columns > 1 and abs(rows - columns * aspect) <= max(1.0, aspect)


def _grid(count: int, aspect: float) -> tuple[int, int] | None:
    """Lay `count` tokens out as rows × columns of the pixels' proportions, or None."""
    if count < 4:
        return None
    rows = round((count * aspect) ** 0.5)
    if rows < 1 or count % rows or abs(rows - (count // rows) * aspect) > 1e-6 * rows:
        return None
    return rows, count // rows


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return [tensor for tensor in getattr(output, "__dict__", {}).values() if isinstance(tensor, Tensor)]


def _unread(recorder: _Recorder, outputs: list[Tensor]) -> set[str]:
    """Name the layers of tokens whose grid has no gradient at all: what follows reads only the other tokens."""
    scores = [tensor for tensor in outputs if tensor.requires_grad]
    if not recorder.tokens or not scores:
        return set()
    # Noise, because the sum of a softmax has no gradient either.
    noise = [torch.randn(s.shape, generator=torch.Generator().manual_seed(0)).to(s) for s in scores]
    tensors = [tensor for tensor, _ in recorder.tokens.values()]
    found = torch.autograd.grad(scores, tensors, noise, allow_unused=True)
    layouts = [layout for _, layout in recorder.tokens.values()]
    unread = {
        name
        for name, layout, gradient in zip(recorder.tokens, layouts, found, strict=True)
        if gradient is None or not layout(gradient).any()
    }
    # All of them: an untrained head whose weights are zero, which tells nothing of the network.
    return unread if len(unread) < len(recorder.tokens) else set()


def _pooled(recorder: _Recorder, outputs: list[Tensor]) -> set[str]:
    """Name the place whose spatial mean is what the last linear layer reads, if its result is the network's output."""
    if recorder.linear is None:
        return set()
    read, answer = recorder.linear
    # By value: a full backward hook of the user's on that layer hands on another tensor.
    if not any(tensor.dtype == answer.dtype and torch.equal(tensor, answer) for tensor in outputs):
        return set()
    near = 1e-5 * float(read.abs().max())
    for passage in reversed(recorder.passages):
        mean = recorder.means[passage.name]
        if mean.shape == read.shape and torch.allclose(mean, read, rtol=1e-3, atol=near):
            place = (passage.node, passage.outlet)
            return {p.name for p in recorder.passages if (p.node, p.outlet) == place}
    return set()
