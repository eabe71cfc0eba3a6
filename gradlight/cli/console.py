"""Tables on standard output, notices on standard error, and the check for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["is_interactive", "print_notice", "print_table"]

_PIPE_WIDTH = 10_000


def is_interactive() -> bool:
    """Return whether standard error is a terminal, where progress bars are shown."""
    return sys.stderr.isatty()


def print_notice(message: str) -> None:
    """Print a message on standard error, on one line, after the name of the program.

    Args:
        message: the text; line breaks in it become spaces.
    """
    print(f"gradlight: {' '.join(message.split())}", file=sys.stderr)


def print_table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table on standard output.

    In a pipe the table is as wide as its contents, so that no cell is cut.

    Args:
        headings: the heading of each column.
        rows: the cells of each row, one per column.

    Example:
        >>> print_table(["layer", "channels"], [("layer1", 16)])
        layer   channels
        layer1  16
    """
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(drawn)
