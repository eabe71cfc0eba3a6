"""Tensors in nested tuples, lists and dicts, as functions take and give them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

__all__ = ["leaves", "rebuilt", "replaced"]


def leaves(tree: Any) -> Iterator[Tensor]:
    """Give the tensors in nested tuples, lists and dicts, in their order."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, (tuple, list)):
        for branch in tree:
            yield from leaves(branch)
    elif isinstance(tree, dict):
        yield from leaves(list(tree.values()))


def rebuilt(tree: Any, change: Callable[[Any], Any]) -> Any:
    """Change every branch of a tuple, list or dict; anything else stays."""
    if isinstance(tree, dict):
        return {name: change(branch) for name, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        branches = [change(branch) for branch in tree]
        return type(tree)(*branches) if hasattr(tree, "_fields") else type(tree)(branches)
    return tree


def replaced(tree: Any, tensors: Iterator[Tensor]) -> Any:
    """Put other tensors in the places of a tree's own, in their order."""
    if isinstance(tree, Tensor):
        return next(tensors)
    return rebuilt(tree, lambda branch: replaced(branch, tensors))
