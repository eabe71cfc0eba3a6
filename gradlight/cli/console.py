"""Tables and notices of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["interactive", "notice", "table"]


def interactive() -> bool:
    """Tell whether standard error is a terminal, where a progress bar belongs."""
    return sys.stderr.isatty()


def notice(message: str) -> None:
    """Tell the user something beside the results, on standard error, on one line."""
    print(f"gradlight: {' '.join(message.split())}", file=sys.stderr)


def table(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print a table; in a pipe it is as wide as its contents, so that no cell is cut."""
    drawn = Table(box=None, pad_edge=False, header_style="bold")
    for heading in headings:
        drawn.add_column(heading, overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(str(cell)) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=10_000)
    console.print(drawn)
