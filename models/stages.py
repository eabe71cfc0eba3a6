"""Choose a network's stages: the last layer at each resolution, from what one run of it has shown.

A stage must be on the trunk, where everything that the network sees passes (a residual branch is not). Whether it is
is read off autograd's graph: a place is on the trunk when every path from the output to the pixels leads through it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

__all__ = ["Passage", "choose_stages", "mark_paths"]

Edge = tuple[Any, int]


@dataclass
class Passage:
    """One run of one module: where its output lies, and whether everything (trunk) or anything (reaches) passes.

    size, before: grid of its output and of its input (None if that is not spatial). weighs: a convolution or linear
    layer. node, outlet: its place in autograd's graph.
    """

    name: str
    channels: int
    size: tuple[int, int]
    before: tuple[int, ...] | None
    weighs: bool
    layout: Callable[[Tensor], Tensor]
    node: Any
    outlet: int
    reaches: bool = False
    trunk: bool = False


def mark_paths(passages: list[Passage], outputs: Sequence[Tensor], leaf: Tensor) -> list[Passage]:
    """Mark which passages lie on some path, and which on every path, from the outputs to the pixels."""
    roots = [(tensor.grad_fn, tensor.output_nr) for tensor in outputs if tensor.grad_fn is not None]
    order = _topological([node for node, _ in roots])
    down: dict[Any, int] = {}
    for node in reversed(order):
        edges = [after for after, _ in node.next_functions if after is not None]
        down[node] = int(getattr(node, "variable", None) is leaf) + sum(down[after] for after in edges)
    up: Counter[Edge] = Counter(roots)
    through: Counter[Any] = Counter(node for node, _ in roots)
    for node in order:
        for after, outlet in node.next_functions:
            if after is not None:
                up[after, outlet] += through[node]
                through[after] += through[node]
    total = sum(down[node] for node, _ in roots)
    for passage in passages:
        paths = up[passage.node, passage.outlet] * down.get(passage.node, 0)
        passage.reaches, passage.trunk = paths > 0, 0 < paths == total
    return passages


def _topological(roots: Sequence[Any]) -> list[Any]:
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
            stack.extend((after, False) for after, _ in node.next_functions if after is not None)
    return order[::-1]


def choose_stages(passages: Sequence[Passage]) -> list[Passage]:
    """Give the last trunk layer at each resolution that has at least two convolutions or linear layers.

    In a network where no resolution has two (each unpadded convolution makes a grid of its own), one is enough.
    At the seam of two stages the layer before it is preferred to one inside the block that changes resolution, and
    a stage to the container of all stages.
    """
    weights = Counter(passage.size for passage in passages if passage.weighs)
    least = min(2, max(weights.values(), default=1))
    stages = []
    for size in dict.fromkeys(passage.size for passage in passages):
        here = [p for p in passages if p.trunk and p.size == size]
        if weights[size] < least or not here:
            continue
        settled = [p for p in here if not _at_a_seam(p, passages)]
        plain = [p for p in settled if len(_sizes_within(p, passages)) <= 2]
        stages.append((plain or settled or here)[-1])
    return stages


def _sizes_within(passage: Passage, passages: Sequence[Passage]) -> set[tuple[int, int]]:
    return {p.size for p in passages if p.name.startswith(f"{passage.name}.")}


def _at_a_seam(passage: Passage, passages: Sequence[Passage]) -> bool:
    """Tell whether a passage is inside a block that takes its resolution in and gives the next one out."""
    return any(
        passage.name.startswith(f"{block.name}.")
        and block.before == passage.size != block.size
        and len(_sizes_within(block, passages)) <= 2
        for block in passages
    )
