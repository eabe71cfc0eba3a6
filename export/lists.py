"""Lists of photos that people write: text with a path a line, or CSV, each with targets if they like.

The words of a source: an image and what it is asked, all of them, and what a person gave to name them.

The photos of a folder: every ordinary file that is not evidently something else.
"""

from __future__ import annotations

import csv
import io
import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..data.images import IMAGE_SUFFIXES
from ..errors import GradlightError
from ..files import format_path, read_whole
from ..models.registry import SOURCES

__all__ = ["SUFFIXES", "ImageList", "Item", "Listed", "SourceSpec", "Walked", "read_list", "walk"]

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
    source = format_path(path)
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
    if SOURCES.named_image(name.strip()) is not None:
        return name.strip()
    exact, stripped = (os.path.join(folder, written) for written in (name, name.strip()))
    return exact if exact == stripped or os.path.lexists(exact) else stripped


def _targets(written: str) -> tuple[str, ...] | None:
    return tuple(part.strip() for part in written.split("|") if part.strip()) or None


@dataclass(frozen=True)
class Item:
    """An image and its own targets: indices or names of classes, or captions; None leaves them to the export."""

    path: str
    targets: tuple[int | str, ...] | None


@dataclass(frozen=True)
class ImageList:
    """The images of a source, in an order that stays; those that are out already, with reasons; what was noticed."""

    kind: str
    items: list[Item]
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SourceSpec:
    """What a person gave; labels is None for a captioner, wanted is False where the source's targets do not matter."""

    source: str
    annotations: Path | None
    split: str | None
    labels: Sequence[str] | None
    wanted: bool


# What lies beside photos and is none; any other suffix, or none, is left to the reading of its content.
_OTHER_SUFFIXES = frozenset(
    {".cfg", ".css", ".csv", ".db", ".htm", ".html", ".ini", ".js", ".json", ".jsonl", ".lock", ".log", ".md", ".rst"}
    | {".tex", ".toml", ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml"}  # text
    | {".bat", ".c", ".cpp", ".ipynb", ".m", ".py", ".pyc", ".sh"}  # programs
    | {".bin", ".h5", ".hdf5", ".mat", ".npy", ".npz", ".onnx", ".parquet", ".pickle", ".pkl", ".pt", ".pth", ".rec"}
    | {".idx", ".lmdb", ".mdb", ".safetensors", ".sqlite", ".tfrecord"}  # arrays and data bases
    | {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip"}  # archives
    | {".avi", ".m4a", ".mkv", ".mov", ".mp3", ".mp4", ".wav", ".webm"}  # films and sounds
)
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")
_LISTED = 4


@dataclass(frozen=True)
class Walked:
    """The files to try, sorted; what could not be listed, with the reason; and what a person should know."""

    paths: list[str]
    failures: list[tuple[str, str]]
    notes: list[str]


def walk(folder: str) -> Walked:
    """Find the photos of a folder and of all folders in it.

    A file counts if its suffix is an image's, whatever it is; if it is an ordinary file with a suffix that is not
    known; and if it has the suffix of data or text, but begins as JPEG, PNG or GIF does. Hidden files and folders are
    passed over. Links to files count; links to folders are not followed, so loops end. A folder inside that cannot be
    listed is a failure. Raises GradlightError for a folder that cannot be listed itself.
    """
    found = Walked([], [], [])
    others: Counter[str] = Counter()
    links: list[str] = []

    def refuse(error: OSError) -> None:
        where, why = os.fspath(error.filename), error.strerror or str(error)
        if where == folder:
            raise GradlightError(f"{format_path(where)}: cannot be listed: {why}. Check the folder.") from error
        found.failures.append(
            (where, f"{format_path(where)}: this folder cannot be listed: {why}. Check its permissions.")
        )

    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [path for path in (os.path.join(parent, name) for name in folders) if os.path.islink(path)]
        for name in names:
            path, suffix = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES or _may_be_photo(path, suffix):
                found.paths.append(path)
            else:
                others[suffix or "special files"] += 1
    found.paths.sort()
    found.failures.sort()
    if others:
        kinds = ", ".join(f"{suffix} {count}" for suffix, count in others.most_common(_LISTED))
        more = " …" if len(others) > _LISTED else ""
        found.notes.append(f"{others.total()} other files of {format_path(folder)} are passed over: {kinds}{more}.")
    if links:
        found.notes.append(f"Links to folders are not followed: {len(links)}, such as {format_path(links[0])}.")
    return found


def _may_be_photo(path: str, suffix: str) -> bool:
    """Tell whether an ordinary file may be a photo; special files are neither opened nor counted."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        if suffix not in _OTHER_SUFFIXES:
            return True
        with open(path, "rb") as stream:
            return stream.read(8).startswith(_SIGNATURES)
    except OSError:
        return False
