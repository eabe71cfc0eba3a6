"""Choose a network's stages: the last layer at each resolution, from what one run of it has shown.

A stage must be on the trunk, where everything that the network sees passes (a residual branch is not). Whether it is
is read off autograd's graph: a place is on the trunk when every path from the output to the pixels leads through it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .layout import Layout

__all__ = ["Passage", "choose_stages", "mark_paths"]

Edge = tuple[Any, int]


@dataclass
class Passage:
    """One run of one module: where its output lies, and whether everything (trunk) or anything (reaches) passes.

    cuts: everything passes some place of its resolution. paths, crossing: how many paths lead through this place,
    and through any of its resolution.

    size, before: grid of its output and of its input (None if that is not spatial). weighs: a convolution or linear
    layer. kind: its module's class. node, outlet: its place in autograd's graph.
    """

    name: str
    channels: int
    size: tuple[int, int]
    before: tuple[int, ...] | None
    weighs: bool
    kind: type
    layout: Layout
    node: Any
    outlet: int
    paths: int = 0
    crossing: int = 0
    reaches: bool = False
    trunk: bool = False
    cuts: bool = False


def mark_paths(passages: list[Passage], outputs: Sequence[Tensor], leaf: Tensor) -> list[Passage]:
    """Count the paths from the outputs to the pixels that lead through each passage, and through its resolution."""
    roots = [(tensor.grad_fn, tensor.output_nr) for tensor in outputs if tensor.grad_fn is not None]
    order = _topological([node for node, _ in roots])
    down = _down(order, leaf, set())
    up: Counter[Edge] = Counter(roots)
    through: Counter[Any] = Counter(node for node, _ in roots)
    for node in order:
        for after, outlet in node.next_functions:
            if after is not None:
                up[after, outlet] += through[node]
                through[after] += through[node]
    total = sum(down[node] for node, _ in roots)
    for passage in passages:
        passage.paths = up[passage.node, passage.outlet] * down.get(passage.node, 0)
        passage.reaches, passage.trunk = passage.paths > 0, 0 < passage.paths == total
    for size in {passage.size for passage in passages}:
        here = [passage for passage in passages if passage.size == size and passage.reaches]
        around = _down(order, leaf, {passage.node for passage in here})
        passed_by = sum(around[node] for node, _ in roots)
        for passage in here:
            passage.crossing, passage.cuts = total - passed_by, passed_by == 0
    return passages


def _down(order: Sequence[Any], leaf: Tensor, walls: set[Any]) -> dict[Any, int]:
    """Count the paths from each node to the pixels that do not lead through walls."""
    down: dict[Any, int] = {}
    for node in reversed(order):
        edges = [after for after, _ in node.next_functions if after is not None]
        open_paths = int(getattr(node, "variable", None) is leaf) + sum(down[after] for after in edges)
        down[node] = 0 if node in walls else open_paths
    return down


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
    A resolution that everything passes, though no one place of it (cells that read the last two), and those that run
    side by side behind the trunk, give the last of the places that most paths of that resolution lead through; so does
    one whose trunk places come before most of its weights (blocks that hand on two tensors). A network that keeps one
    resolution and repeats a block four times or more gives four of these, a quarter of the depth apart.
    """
    weights = Counter(passage.size for passage in passages if passage.weighs)
    least = min(2, max(weights.values(), default=1))
    levels: dict[tuple[int, int], list[int]] = {}
    for turn, passage in enumerate(passages):
        if passage.reaches and weights[passage.size] >= least:
            levels.setdefault(passage.size, []).append(turn)
    stages = []
    for turns in levels.values():
        here = _passed_by_all(turns, passages)
        settled = [turn for turn in here if not _at_a_seam(passages[turn], passages)]
        plain = [turn for turn in settled if len(_sizes_within(passages[turn], passages)) <= 2]
        stages += (plain or settled or here)[-1:]
    last = max((turn for turn in stages if passages[turn].trunk), default=-1)
    chosen = [passages[t] for t in sorted(stages) if passages[t].trunk or passages[t].cuts or t > last]
    return _quarters(chosen[0], passages) if len(chosen) == 1 else chosen


def _passed_by_all(turns: Sequence[int], passages: Sequence[Passage]) -> list[int]:
    """Give the trunk places of a level, or those that most take where there are none, or none but at its beginning."""
    trunk = [turn for turn in turns if passages[turn].trunk]
    weighing = [turn for turn in turns if passages[turn].weighs]
    if trunk and 2 * sum(turn > trunk[-1] for turn in weighing) <= len(weighing):
        return trunk
    return [turn for turn in turns if 2 * passages[turn].paths > passages[turn].crossing]


def _quarters(stage: Passage, passages: Sequence[Passage]) -> list[Passage]:
    """Give four places of the longest chain of like blocks that lead to a stage, the stage itself as the last."""
    weighty = {p.name.rpartition(".")[0] for p in passages if p.weighs}
    chains: dict[tuple[str, type], list[Passage]] = {}
    for p in passages[: passages.index(stage) + 1]:
        holds = any(f"{inner}.".startswith(f"{p.name}.") for inner in weighty)
        if p.size == stage.size and (p.trunk and holds if stage.trunk else _numberless(p) == _numberless(stage)):
            chains.setdefault((_numberless(p), p.kind), []).append(p)
    chain = max(chains.values(), key=len, default=[])
    if len(chain) < 4:
        return [stage]
    return [chain[-(-len(chain) * quarter // 4) - 1] for quarter in (1, 2, 3)] + [stage]


def _numberless(passage: Passage) -> str:
    """Give a name without its numbers, which the like parts of a chain share."""
    return re.sub(r"\d+", "*", passage.name)


def _sizes_within(passage: Passage, passages: Sequence[Passage]) -> set[tuple[int, int]]:
    return {p.size for p in passages if p.name.startswith(f"{passage.name}.")}


def _at_a_seam(passage: Passage, passages: Sequence[Passage]) -> bool:
    """Tell whether a passage is inside a block that takes its resolution in and gives the next one out.

    One that holds more than half of its resolution's weights is a stage itself, and the block holds several of them.
    """
    inside = any(
        passage.name.startswith(f"{block.name}.")
        and block.before == passage.size != block.size
        and len(_sizes_within(block, passages)) <= 2
        for block in passages
    )
    if not inside:
        return False
    weighing = [p.name.startswith(f"{passage.name}.") for p in passages if p.weighs and p.size == passage.size]
    return 2 * sum(weighing) <= len(weighing)
