"""What is on show, pane by pane, derived from the viewer's traits; the page has the same few lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .payload import Part

__all__ = ["COMPARED", "MOST_PANES", "Pane", "panes_of"]

MOST_PANES = 4
COMPARED = ("off", "method", "layer", "target", "meta")


class Pane(NamedTuple):
    """One pane: a target, a method, a layer or a combination of all, and the inner step."""

    target: str
    method: str
    layer: str
    meta: str
    combine: str

    def part(self, image: int, lr: float) -> Part:
        """Give what its maps are of."""
        return Part(image, self.target, self.meta, 0.0 if self.meta == "off" else lr)


def panes_of(first: Pane, compare: str, others: Sequence[str]) -> list[Pane]:
    """List the panes: the first shows what the controls say, the others differ in the one thing that is compared.

    Beside a combination single layers can be compared.
    """
    if compare == "off":
        return [first]
    base = first._replace(combine="off") if compare == "layer" else first
    return [first, *(base._replace(**{compare: value}) for value in others[: MOST_PANES - 1])]
