"""Tables of figures, and how they are told: Markdown for people, CSV for spreadsheets, JSON for programs.

What every experiment gives: its figures, tables of them, and pictures.

Figures that were published, to hold one's own against; each section says in `about` what it is of.
"""

from __future__ import annotations

import csv as files
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..errors import GradlightError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Cell", "Result", "Table", "about", "as_json", "csv", "markdown", "published", "sources"]

Cell = str | float | int | None
"""None, and a float that is not a number, say that there is no figure."""

_NONE = "–"


@dataclass(frozen=True)
class Table:
    """A title, columns, rows of as many cells each, notes on what the figures are, and digits after a float's point.

    Raises GradlightError for a row with another number of cells than there are columns.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    notes: Sequence[str] = ()
    digits: int = 3

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise GradlightError(
                    f"A row of the table {self.title!r} has {len(row)} cells for {len(self.columns)} columns: {row!r}."
                )


def markdown(table: Table) -> str:
    """Write a table as Markdown, its title in bold above and its notes below."""
    body = [[_shown(cell, table.digits) for cell in row] for row in table.rows]
    lines = [_line(table.columns), _line(_rule(table, column) for column in range(len(table.columns)))]
    parts = [f"**{table.title}**", "\n".join([*lines, *map(_line, body)]), *table.notes]
    return "\n\n".join(parts) + "\n"


def csv(table: Table) -> str:
    """Write a table as CSV with a row of headings, floats in full precision; cells without a figure are empty."""
    stream = io.StringIO()
    writer = files.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_known(cell) for cell in row] for row in table.rows)
    return stream.getvalue()


def as_json(table: Table) -> dict[str, Any]:
    """Bring a table to JSON types, floats in full precision; cells without a figure are None."""
    return {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [[_known(cell) for cell in row] for row in table.rows],
        "notes": list(table.notes),
    }


def _known(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _shown(cell: Cell, digits: int) -> str:
    known = _known(cell)
    if known is None:
        return _NONE
    return f"{known:.{digits}f}" if isinstance(known, float) else str(known)


def _rule(table: Table, column: int) -> str:
    """Align columns of figures to the right."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return "---:" if cells and not any(isinstance(cell, str) for cell in cells) else "---"


def _line(cells: Any) -> str:
    return f"| {' | '.join(_escaped(cell) for cell in cells)} |"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


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


def published(section: str) -> dict[str, Any]:
    """Give a section of the published figures, in JSON types. Raises GradlightError for one that is not there."""
    known = _document()["about"]
    if section not in known:
        raise GradlightError(
            f"There are no published figures {section!r}.{nearest(section, known)} Known: {', '.join(known)}."
        )
    found: dict[str, Any] = _document()[section]
    return found


def about() -> dict[str, str]:
    """Say what each section holds: of which data and networks, in which unit."""
    return dict(_document()["about"])


def sources() -> dict[str, str]:
    """Name the papers that the figures are from."""
    return dict(_document()["sources"])


@cache
def _document() -> dict[str, Any]:
    text = resources.files("gradlight.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    read: dict[str, Any] = json.loads(text)
    return read
