"""Lists of photos that people write: text with a path a line, or CSV, each with targets if they like."""

from __future__ import annotations

import csv
import io
import os

from ..data.scenes.generator import seed_of
from ..errors import GradlightError
from ..files import read_whole, shown

__all__ = ["SUFFIXES", "Listed", "read_list"]

SUFFIXES = (".txt", ".csv")

Listed = tuple[str, tuple[str, ...] | None]
"""A path, and its targets as they are written; None where there are none."""

_MOST_BYTES = 1 << 28
_HOW = 'One path a line, and after a TAB its targets with "|" between them; or CSV with the columns path and target'


def read_list(path: str | os.PathLike[str]) -> list[Listed]:
    """Read a list of photos in its order; relative paths are relative to the list's folder.

    Text, UTF-8, of a path a line, then optionally a TAB and targets separated by "|"; lines that begin with "#" and
    empty lines are passed over. A path may hold blanks anywhere, and bytes that are no UTF-8. A name such as
    "scenes:5" is a scene. A file NAME.csv has a header with the columns path and, optionally, target, which is
    separated in the same way. Raises GradlightError for what cannot be read, is no text, or lists nothing.
    """
    source = shown(path)
    content = read_whole(path, _MOST_BYTES, "Split the list")
    if b"\0" in content:
        utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        found = "UTF-16: save it as UTF-8" if utf16 else f"not text. A list is expected. {_HOW}"
        raise GradlightError(f"{source}: {found}.")
    text = content.decode("utf-8-sig", "surrogateescape")
    rows = _table(source, text) if os.fspath(path).lower().endswith(".csv") else _lines(text)
    if not rows:
        raise GradlightError(f"{source}: this list is empty. {_HOW}.")
    folder = os.path.dirname(os.fspath(path))
    return [(_placed(folder, name), _targets(targets)) for name, targets in rows]


def _lines(text: str) -> list[tuple[str, str]]:
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    wanted = (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return [(name, targets) for name, _, targets in (line.partition("\t") for line in wanted) if name]


def _table(source: str, text: str) -> list[tuple[str, str]]:
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise GradlightError(f"{source}: not CSV: {error}. {_HOW}.") from error
    header = [title.strip().lower() for title in rows[0]] if rows else []
    if "path" not in header:
        titles = ", ".join(map(repr, header[:8])) or "nothing"
        raise GradlightError(f'{source}: no column "path": its first line has {titles}. {_HOW}, separated by commas.')
    place = header.index("path")
    target = header.index("target") if "target" in header else len(header)
    cells = ([*row, *[""] * (len(header) + 1 - len(row))] for row in rows[1:])
    return [(row[place], row[target] if target < len(header) else "") for row in cells if row[place].strip()]


def _placed(folder: str, name: str) -> str:
    """Place a path beside its list; a blank at an end of a line belongs to the name only if there is such a file."""
    if seed_of(name.strip()) is not None:
        return name.strip()
    exact, stripped = (os.path.join(folder, written) for written in (name, name.strip()))
    return exact if exact == stripped or os.path.lexists(exact) else stripped


def _targets(written: str) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in written.split("|") if part.strip()) or None
