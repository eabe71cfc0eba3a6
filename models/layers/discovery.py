"""Find a network's spatial layers by running it once: their names, order, grids and memory layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from ...errors import GradlightError
from ..preserve import preserved
from .coordinates import CoordinateTracker
from .layout import AS_IS, Layout
from .recorder import Recorder
from .stages import Passage, choose_stages, mark_paths

__all__ = ["Discovery", "Layer", "Layout", "discover"]


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
    layout: Layout = field(default=AS_IS, repr=False, compare=False)


@dataclass
class Discovery:
    """What one run of a network shows: every spatial layer in the order of execution, and the stages among them.

    left_out: the modules that ran and are no layer, each with what its output is, and the layer to ask for instead.
    """

    layers: list[Layer]
    stages: list[Layer]
    left_out: dict[str, str] = field(default_factory=dict)


def discover(network: nn.Module, pixels: Tensor) -> Discovery:
    """Run the network once on pixels [1,3,H,W] and list its spatial layers, leaving it as it was.

    A layer is listed when its output is a grid of places in the image and these reach the network's output (after its
    last attention, a transformer may read its class token alone). Raises GradlightError when the network refuses such
    pixels.
    """
    with ExitStack() as undo:
        undo.enter_context(preserved(network))
        leaf = pixels.clone().requires_grad_()
        positions = CoordinateTracker(leaf)
        recorder = Recorder(positions, height=pixels.shape[2], width=pixels.shape[3])
        for name, module in network.named_modules():
            if name:
                undo.callback(module.register_forward_hook(partial(recorder.see, name)).remove)
        with positions:
            outputs = _tensors(_run(network, leaf))
        unread = recorder.unread(outputs)
    passages = mark_paths(recorder.passages, outputs, leaf)
    read = [passage for passage in passages if passage.name not in unread]
    layers = [Layer("input", 0, pixels.shape[1], (pixels.shape[2], pixels.shape[3]))]
    layers += _listed([passage for passage in read if passage.reaches], layers[0].size, recorder.pooled(outputs))
    named = {layer.name: layer for layer in layers}
    stages = [named[passage.name] for passage in choose_stages(read)]
    return Discovery(layers, stages, _left_out(recorder, unread, named, stages))


def _left_out(
    recorder: Recorder, unread: set[str], named: Mapping[str, Layer], stages: Sequence[Layer]
) -> dict[str, str]:
    """Say of everything that is no layer what it is, and which layer to ask for instead."""
    before = ["input"]
    found = {}
    for passage in recorder.passages:
        if passage.name in unread:
            found[passage.name] = (
                "is not read where it is spatial: its gradient there is exactly zero, for what follows reads another"
                f" token alone. The deepest stage that the score reads is {(stages or [*named.values()])[-1].name!r}"
            )
        elif not passage.reaches:
            found[passage.name] = f"does not reach the score. The nearest spatial layer before it is {before[-1]!r}"
        before.append(passage.name if passage.name in named else before[-1])
    for name, (why, count) in recorder.left_out.items():
        found[name] = f"{why}. The nearest spatial layer before it is {before[count]!r}"
    return found


def _listed(passages: list[Passage], pixels: tuple[int, int], pooled: set[str]) -> list[Layer]:
    found = []
    for depth, passage in enumerate(passages, start=1):
        stride = (pixels[0] / passage.size[0], pixels[1] / passage.size[1])
        mean = passage.name in pooled
        found.append(Layer(passage.name, depth, passage.channels, passage.size, stride, mean, passage.layout))
    return found


def _run(network: nn.Module, leaf: Tensor) -> Any:
    try:
        return network(leaf.clone())
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise GradlightError(
            f"The network refused pixels of shape {list(leaf.shape)}: {error}. Give preprocess= that makes the size"
            " which it was built for."
        ) from error


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return [tensor for tensor in getattr(output, "__dict__", {}).values() if isinstance(tensor, Tensor)]
