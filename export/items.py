"""The words of a source: an image and what it is asked, all of them, and what a person gave to name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Asked", "Item", "Source"]


@dataclass(frozen=True)
class Item:
    """An image and its own targets: indices or names of classes, or captions; None leaves them to the export."""

    path: str
    targets: tuple[int | str, ...] | None


@dataclass(frozen=True)
class Source:
    """The images of a source, in an order that stays; those that are out already, with reasons; what was noticed."""

    kind: str
    items: list[Item]
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """What a person gave; labels is None for a captioner, wanted is False where the source's targets do not matter."""

    source: str
    annotations: Path | None
    split: str | None
    labels: Sequence[str] | None
    wanted: bool
