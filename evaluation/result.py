"""What every experiment gives: its figures, tables of them, and pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Result"]


@dataclass(frozen=True)
class Result:
    """The outcome of an experiment.

    name: the experiment's. figures: every number, in JSON types and full precision. tables: what people read.
    pictures: by file name without a suffix, each drawn when it is called.
    """

    name: str
    figures: dict[str, Any]
    tables: list[Table]
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)
