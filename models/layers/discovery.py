"""Find a network's spatial layers by running it once: their names, order, grids and memory layouts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...errors import GradlightError
from ..preserve import preserved
from .coordinates import CoordinateTracker
from .layout import AS_IS, Extent, Layout, grid_extent
from .recorder import Recorder
from .stages import ModuleRun, choose_stages, count_paths

__all__ = ["Discovery", "Layer", "Layout", "discover"]


@dataclass(frozen=True)
class Layer:
    """A layer of a network: a module, or one of its runs, whose output is spatial.

    Args:
        name: The module's dotted name; "input" for the pixels; "relu:2" for the third run of that module.
        depth: Its position in the order of execution; 0 is the pixels.
        channels: Channels of its map.
        size: Grid of its map, (height, width).
        stride: Pixels per location, (vertical, horizontal).
        pooled: Whether its spatial mean is what the network's one last linear layer reads, so that CAM is defined.
        layout: Brings the module's own output to [B,C,h,w].
        extent: Where its grid lies in the pixels, (top, left, bottom, right); None where it covers the whole image.

    Example:
        >>> layer = gl.classifier("scenes").stages()[-1]
        >>> layer.name, layer.channels, layer.size, layer.stride, layer.pooled
        ('layer4', 128, (10, 10), (16.0, 16.0), True)
    """

    name: str
    depth: int
    channels: int
    size: tuple[int, int]
    stride: tuple[float, float] = (1.0, 1.0)
    pooled: bool = field(default=False, repr=False)
    layout: Layout = field(default=AS_IS, repr=False, compare=False)
    extent: Extent | None = field(default=None, repr=False)


@dataclass
class Discovery:
    """What one run of a network shows.

    Args:
        layers: Every spatial layer in the order of execution, "input" first.
        stages: The stages among them.
        left_out: The modules that ran and are no layer: what their output is, and the layer to ask for instead.
    """

    layers: list[Layer]
    stages: list[Layer]
    left_out: dict[str, str] = field(default_factory=dict)


def _whole_output(output: Any) -> Any:
    return output


def discover(network: nn.Module, pixels: Tensor, scored: Callable[[Any], Any] = _whole_output) -> Discovery:
    """Run the network and list its spatial layers; it is left as it was.

    A layer is listed when its output is a grid of locations in the image and these reach what is scored of the
    network's output (after its last attention, a transformer may read its class token alone). A network that may put
    its locations in another order for each image or by chance is run twice, and the layers where it does are left out.

    Args:
        network: The network.
        pixels: [1,3,H,W].
        scored: Picks the tensors that are scored from the network's output.

    Returns:
        The layers, the stages, and what is left out.

    Raises:
        GradlightError: If the network does not accept such pixels.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gradlight.models.layers.discovery import discover
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 6 * 6, 2))
        >>> [layer.name for layer in discover(network, torch.zeros(1, 3, 8, 8)).layers]
        ['input', '0', '1']
    """
    with preserved(network):
        leaf = pixels.clone().requires_grad_()
        drawn = _random_states()
        recorder, output = _record(network, leaf)
        if recorder.tracker.may_vary or drawn != _random_states():
            recorder.leave_out_varying(_second_record(network, pixels))
        outputs = _tensors(scored(output))
        unread = recorder.unread(outputs)
    recorder.leave_out_uneven()
    runs = count_paths([run for run in recorder.runs if run.name not in recorder.misplaced], outputs, leaf)
    read_runs = [run for run in runs if run.name not in unread]
    layers = [Layer("input", 0, pixels.shape[1], (pixels.shape[2], pixels.shape[3]))]
    layers += _as_layers([run for run in read_runs if run.reaches_output], layers[0].size, recorder.pooled(outputs))
    layer_by_name = {layer.name: layer for layer in layers}
    stages = [layer_by_name[run.name] for run in choose_stages(read_runs)]
    return Discovery(layers, stages, _left_out(recorder, unread, layer_by_name, stages))


def _record(network: nn.Module, leaf: Tensor) -> tuple[Recorder, Any]:
    """Run the network once; give what its modules have shown, and its output."""
    tracker = CoordinateTracker(leaf)
    recorder = Recorder(tracker, height=leaf.shape[2], width=leaf.shape[3])
    with ExitStack() as undo:
        for name, module in network.named_modules():
            if name:
                undo.callback(module.register_forward_hook(partial(recorder.hook, name), with_kwargs=True).remove)
        with tracker:
            return recorder, _run(network, leaf)


def _second_record(network: nn.Module, pixels: Tensor) -> Recorder:
    """Run the network on other pixels, and with other random numbers."""
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(1)).to(pixels)
    states, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            return _record(network, noise.requires_grad_())[0]
    finally:
        random.setstate(states)
        np.random.set_state(numpy_state)


def _random_states() -> tuple[Any, ...]:
    """Give the states of Python's and NumPy's random numbers, which no operation of torch shows."""
    name, keys, *position = np.random.get_state(legacy=True)
    return random.getstate(), name, np.asarray(keys).tobytes(), position


def _left_out(
    recorder: Recorder, unread: set[str], layer_by_name: Mapping[str, Layer], stages: Sequence[Layer]
) -> dict[str, str]:
    """Say of everything that is no layer what its output is, and which layer to ask for instead."""
    nearest_before = ["input"]
    reasons = {}
    for run in recorder.runs:
        if run.name in recorder.misplaced:
            where = f"The nearest spatial layer before it is {nearest_before[-1]!r}"
            reasons[run.name] = f"{recorder.misplaced[run.name]}. {where}"
        elif run.name in unread:
            deepest = (stages or [*layer_by_name.values()])[-1].name
            reasons[run.name] = (
                "is not read where it is spatial: its gradient there is exactly zero, for what follows reads another"
                f" token alone. The deepest stage that the score reads is {deepest!r}"
            )
        elif not run.reaches_output:
            reasons[run.name] = (
                f"does not reach the score. The nearest spatial layer before it is {nearest_before[-1]!r}"
            )
        nearest_before.append(run.name if run.name in layer_by_name else nearest_before[-1])
    for name, (reason, count) in recorder.left_out.items():
        reasons[name] = f"{reason}. The nearest spatial layer before it is {nearest_before[count]!r}"
    return reasons


def _as_layers(runs: list[ModuleRun], pixels: tuple[int, int], pooled: set[str]) -> list[Layer]:
    layers = []
    for depth, run in enumerate(runs, start=1):
        stride = (pixels[0] / run.size[0], pixels[1] / run.size[1])
        place = None if run.axes is None else grid_extent(run.axes, pixels)
        extent, stride = place or (None, stride)
        layers.append(Layer(run.name, depth, run.channels, run.size, stride, run.name in pooled, run.layout, extent))
    return layers


def _run(network: nn.Module, leaf: Tensor) -> Any:
    """Run the network on a copy of the pixels, which a first in-place operation may overwrite."""
    try:
        return network(leaf.clone())
    except (RuntimeError, TypeError, ValueError, AssertionError, IndexError) as error:
        raise GradlightError(
            f"The network refused pixels of shape {list(leaf.shape)}: {error}. Give preprocess= that makes the size"
            " which it was built for."
        ) from error


def _tensors(output: Any) -> list[Tensor]:
    """List the tensors in a network's output."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, dict):
        output = list(output.values())
    if isinstance(output, (list, tuple)):
        return [tensor for entry in output for tensor in _tensors(entry)]
    return [tensor for tensor in getattr(output, "__dict__", {}).values() if isinstance(tensor, Tensor)]
