"""Choose a network's stages: the last layer at each resolution, from what one run of the network has shown.

A stage must be on the trunk, through which everything passes. This is read off autograd's graph: a layer is on the
trunk if every path from the output to the pixels leads through it. With the number of paths through each layer:

    pixels ── conv1 2 ─┬─ conv2 1 ── relu 1 ─┬─ block1 2 ── pool 2 ── conv3 2 ── conv4 2 ── output
                       └─────────────────────┘
              resolution 1: two weight layers    │        resolution 2: two weight layers

Of 2 paths in all, both lead through conv1 and block1, but only one through conv2 and relu, which are on a residual
branch. The last layer on the trunk at each resolution is a stage: block1 and conv4.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .layout import Axes, Layout

__all__ = ["ModuleRun", "choose_stages", "count_paths"]

_Edge = tuple[Any, int]


@dataclass
class ModuleRun:
    """One run of one module with a spatial output.

    Args:
        name: The layer's name.
        channels: Channels of its output.
        size: Grid (h, w) of its output.
        input_size: Grid of its input; None if that is not spatial.
        has_weights: Whether the module is a convolution or a linear layer.
        kind: The module's class.
        layout: Brings its output to [B,C,h,w].
        axes: The coordinates of its rows and columns; None if they are unknown.
        node: The node of its output in autograd's graph.
        output_number: Which of the node's outputs it is.
        paths: How many paths from the network's output to the pixels lead through this run.
        level_paths: How many lead through any run of the same resolution.
        reaches_output: Whether there is such a path.
        on_trunk: Whether all of them lead through this run.
        level_on_trunk: Whether all of them lead through some run of the same resolution.
    """

    name: str
    channels: int
    size: tuple[int, int]
    input_size: tuple[int, ...] | None
    has_weights: bool
    kind: type
    layout: Layout
    axes: Axes | None
    node: Any
    output_number: int
    paths: int = 0
    level_paths: int = 0
    reaches_output: bool = False
    on_trunk: bool = False
    level_on_trunk: bool = False


# --- counting paths in autograd's graph ---


def count_paths(runs: list[ModuleRun], outputs: Sequence[Tensor], leaf: Tensor) -> list[ModuleRun]:
    """Count the paths from the outputs to the pixels that lead through each run, and through its resolution.

    Args:
        runs: The runs of the network's modules; their last five attributes are set.
        outputs: The network's output tensors.
        leaf: The pixels.

    Returns:
        The same runs.
    """
    roots = [(tensor.grad_fn, tensor.output_nr) for tensor in outputs if tensor.grad_fn is not None]
    order = _topological_order([node for node, _ in roots])
    to_leaf = _paths_to_leaf(order, leaf, set())
    from_output: Counter[_Edge] = Counter(roots)
    through_node: Counter[Any] = Counter(node for node, _ in roots)
    for node in order:
        for next_node, output_number in node.next_functions:
            if next_node is not None:
                from_output[next_node, output_number] += through_node[node]
                through_node[next_node] += through_node[node]
    total = sum(to_leaf[node] for node, _ in roots)
    for run in runs:
        run.paths = from_output[run.node, run.output_number] * to_leaf.get(run.node, 0)
        run.reaches_output, run.on_trunk = run.paths > 0, 0 < run.paths == total
    for size in {run.size for run in runs}:
        level = [run for run in runs if run.size == size and run.reaches_output]
        around = _paths_to_leaf(order, leaf, {run.node for run in level})
        avoiding = sum(around[node] for node, _ in roots)
        for run in level:
            run.level_paths, run.level_on_trunk = total - avoiding, avoiding == 0
    return runs


def _paths_to_leaf(order: Sequence[Any], leaf: Tensor, blocked: set[Any]) -> dict[Any, int]:
    """Count the paths from each node to the pixels that lead through no blocked node."""
    paths: dict[Any, int] = {}
    for node in reversed(order):
        next_nodes = [next_node for next_node, _ in node.next_functions if next_node is not None]
        open_paths = int(getattr(node, "variable", None) is leaf) + sum(paths[next_node] for next_node in next_nodes)
        paths[node] = 0 if node in blocked else open_paths
    return paths


def _topological_order(roots: Sequence[Any]) -> list[Any]:
    """Order autograd's nodes so that each comes before those that its gradient flows on to."""
    order: list[Any] = []
    seen = set()
    stack = [(node, False) for node in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack.extend((next_node, False) for next_node, _ in node.next_functions if next_node is not None)
    return order[::-1]


# --- choosing ---


def choose_stages(runs: Sequence[ModuleRun]) -> list[ModuleRun]:
    """Give the last trunk layer at each resolution that has at least two convolutions or linear layers.

    Exceptions, each met in published networks:

    - Where no resolution has two weight layers (each unpadded convolution makes its own grid), one is enough.
    - Where all paths cross a resolution but no single layer of it (cells that read the last two), and for resolutions
      side by side behind the trunk, the last layer that most paths of this resolution lead through.
    - The same where the trunk layers come before most weights of the resolution (blocks that pass on two tensors).
    - A network that keeps one resolution and repeats a block four times or more has four stages, a quarter of the depth
      apart.

    Args:
        runs: The runs of the network's modules in the order of execution, with their paths counted.

    Returns:
        The stages in the order of execution.
    """
    weight_count = Counter(run.size for run in runs if run.has_weights)
    least = min(2, max(weight_count.values(), default=1))
    levels: dict[tuple[int, int], list[int]] = {}
    for index, run in enumerate(runs):
        if run.reaches_output and weight_count[run.size] >= least:
            levels.setdefault(run.size, []).append(index)
    stages = []
    for indices in levels.values():
        candidates = _main_layers(indices, runs)
        inner = [index for index in candidates if not _in_transition(runs[index], runs)]
        plain = [index for index in inner if len(_sizes_within(runs[index], runs)) <= 2]
        stages += (plain or inner or candidates)[-1:]
    last = max((index for index in stages if runs[index].on_trunk), default=-1)
    chosen = [runs[i] for i in sorted(stages) if runs[i].on_trunk or runs[i].level_on_trunk or i > last]
    return _quarters(chosen[0], runs) if len(chosen) == 1 else chosen


def _main_layers(indices: Sequence[int], runs: Sequence[ModuleRun]) -> list[int]:
    """Give the trunk layers of a level; those that most paths lead through, where these are none or too early."""
    trunk = [index for index in indices if runs[index].on_trunk]
    weighted = [index for index in indices if runs[index].has_weights]
    if trunk and 2 * sum(index > trunk[-1] for index in weighted) <= len(weighted):
        return trunk
    return [index for index in indices if 2 * runs[index].paths > runs[index].level_paths]


def _quarters(stage: ModuleRun, runs: Sequence[ModuleRun]) -> list[ModuleRun]:
    """Give four layers of the longest chain of like blocks that lead to a stage, the stage itself as the last."""
    weighted_blocks = {run.name.rpartition(".")[0] for run in runs if run.has_weights}
    chains: dict[tuple[str, type], list[ModuleRun]] = {}
    for run in runs[: runs.index(stage) + 1]:
        has_weights = any(f"{block}.".startswith(f"{run.name}.") for block in weighted_blocks)
        alike = run.on_trunk and has_weights if stage.on_trunk else _without_numbers(run) == _without_numbers(stage)
        if run.size == stage.size and alike:
            chains.setdefault((_without_numbers(run), run.kind), []).append(run)
    chain = max(chains.values(), key=len, default=[])
    if len(chain) < 4:
        return [stage]
    return [chain[-(-len(chain) * quarter // 4) - 1] for quarter in (1, 2, 3)] + [stage]


def _without_numbers(run: ModuleRun) -> str:
    """Give a name without its numbers, which the like blocks of a chain share."""
    return re.sub(r"\d+", "*", run.name)


def _sizes_within(run: ModuleRun, runs: Sequence[ModuleRun]) -> set[tuple[int, int]]:
    """Give the resolutions inside a module."""
    return {inner.size for inner in runs if inner.name.startswith(f"{run.name}.")}


def _in_transition(run: ModuleRun, runs: Sequence[ModuleRun]) -> bool:
    """Tell whether a run is inside a block that takes its resolution in and gives the next one out.

    One with more than half of its resolution's weights is a stage itself, and the block holds several stages.
    """
    inside = any(
        run.name.startswith(f"{block.name}.")
        and block.input_size == run.size != block.size
        and len(_sizes_within(block, runs)) <= 2
        for block in runs
    )
    if not inside:
        return False
    weighted = [each.name.startswith(f"{run.name}.") for each in runs if each.has_weights and each.size == run.size]
    return 2 * sum(weighted) <= len(weighted)
