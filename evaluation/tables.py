"""Results of experiments: figures, tables in Markdown, CSV and JSON, and the published figures to compare with."""

from __future__ import annotations

import csv as csv_module
import io
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from ..errors import GradlightError, nearest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "Cell",
    "Result",
    "Table",
    "as_json",
    "csv",
    "markdown",
    "published",
    "published_sections",
    "published_sources",
]

Cell = str | float | int | None
"""None, and a float that is not finite, mean that there is no figure."""

_EMPTY = "–"


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Args:
        title: The title.
        columns: The column headings.
        rows: Rows with one cell for each column.
        notes: Notes on what the figures are.
        digits: Digits after the decimal point of a float.

    Raises:
        GradlightError: A row has another number of cells than there are columns.
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


@dataclass(frozen=True)
class Result:
    """The result of an experiment.

    Args:
        name: The experiment's name.
        figures: Every number, in JSON types and full precision.
        tables: The tables for readers.
        pictures: File name without suffix → function that draws the picture.
    """

    name: str
    figures: dict[str, Any]
    tables: list[Table]
    pictures: dict[str, Callable[[], Figure]] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------------------------------
# Formats


def markdown(table: Table) -> str:
    """Format a table as Markdown, with its title in bold above it and its notes below.

    Args:
        table: The table.

    Returns:
        Markdown text.

    Example:
        >>> print(markdown(Table("Depths", ["layer", "depth"], [["layer1", 0.25]])))
        **Depths**
        <BLANKLINE>
        | layer | depth |
        | --- | ---: |
        | layer1 | 0.250 |
        <BLANKLINE>
    """
    body = [[_format_cell(cell, table.digits) for cell in row] for row in table.rows]
    alignments = [_alignment(table, column) for column in range(len(table.columns))]
    lines = [_markdown_row(cells) for cells in [table.columns, alignments, *body]]
    return "\n\n".join([f"**{table.title}**", "\n".join(lines), *table.notes]) + "\n"


def csv(table: Table) -> str:
    r"""Format a table as CSV with a header row, floats in full precision; cells without a figure are empty.

    Args:
        table: The table.

    Returns:
        CSV text.

    Example:
        >>> csv(Table("Depths", ["layer", "depth"], [["layer1", 0.25], ["layer2", None]]))
        'layer,depth\nlayer1,0.25\nlayer2,\n'
    """
    stream = io.StringIO()
    writer = csv_module.writer(stream, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows([_finite(cell) for cell in row] for row in table.rows)
    return stream.getvalue()


def as_json(table: Table) -> dict[str, Any]:
    """Convert a table to JSON types, floats in full precision; cells without a figure are None.

    Args:
        table: The table.

    Returns:
        A dictionary with "title", "columns", "rows" and "notes".

    Example:
        >>> as_json(Table("Depths", ["layer", "depth"], [["layer1", math.nan]]))["rows"]
        [['layer1', None]]
    """
    return {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [[_finite(cell) for cell in row] for row in table.rows],
        "notes": list(table.notes),
    }


def _finite(cell: Cell) -> Cell:
    """Replace a float that is not finite by None."""
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _format_cell(cell: Cell, digits: int) -> str:
    value = _finite(cell)
    if value is None:
        return _EMPTY
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)


def _alignment(table: Table, column: int) -> str:
    """Align columns of figures to the right."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return "---:" if cells and not any(isinstance(cell, str) for cell in cells) else "---"


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escape, cells))} |"


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


# ---------------------------------------------------------------------------------------------------------------------
# Published figures


def published(section: str) -> dict[str, Any]:
    """Give a section of the published figures.

    Args:
        section: A name of `published_sections`.

    Returns:
        The figures, in JSON types.

    Raises:
        GradlightError: The section is unknown.

    Example:
        >>> sorted(published("pointing_best")["normgrad"])
        ['resnet50', 'vgg16']
    """
    sections = published_sections()
    if section not in sections:
        raise GradlightError(
            f"There are no published figures {section!r}.{nearest(section, sections)} Known: {', '.join(sections)}."
        )
    figures: dict[str, Any] = _published_document()[section]
    return figures


def published_sections() -> dict[str, str]:
    """Describe each section of the published figures: data, networks and unit.

    Returns:
        Section → description.

    Example:
        >>> list(published_sections())
        ['pointing_layers', 'pointing_best', 'pointing_benchmark', 'identity_correlation']
    """
    return dict(_published_document()["about"])


def published_sources() -> dict[str, str]:
    """Give the papers that the published figures are from.

    Returns:
        Short name → citation.

    Example:
        >>> sorted(published_sources())
        ['paper', 'torchray']
    """
    return dict(_published_document()["sources"])


@cache
def _published_document() -> dict[str, Any]:
    text = resources.files("gradlight.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    document: dict[str, Any] = json.loads(text)
    return document
