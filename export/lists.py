"""Lists of images to export: the images and targets of a source, list files (text or CSV), and folders of photos."""

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

__all__ = [
    "LIST_SUFFIXES",
    "FolderListing",
    "ImageList",
    "Item",
    "ListEntry",
    "SourceSpec",
    "list_folder",
    "read_list",
]


@dataclass(frozen=True)
class Item:
    """An image and its own targets.

    Args:
        path: The image.
        targets: Indices or names of classes, or captions; None for the target of the export.
    """

    path: str
    targets: tuple[int | str, ...] | None


@dataclass(frozen=True)
class ImageList:
    """The images of a source.

    Args:
        kind: The kind of the source.
        items: The images, in an order that does not change.
        failures: Images that cannot be exported, each with the reason.
        notes: What a reader should know.
    """

    kind: str
    items: list[Item]
    failures: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class SourceSpec:
    """A source and its options, as a user gave them.

    Args:
        source: A path, or a range of scenes.
        annotations: The file of annotations.
        split: The split.
        labels: The model's classes; None for a captioner.
        with_targets: Whether the source's own targets are used.
    """

    source: str
    annotations: Path | None
    split: str | None
    labels: Sequence[str] | None
    with_targets: bool


# ---------------------------------------------------------------------------------------------------------------------
# List files

LIST_SUFFIXES = (".txt", ".csv")

ListEntry = tuple[str, tuple[str, ...] | None]
"""A path, and its targets as they are written; None if there are none."""

_MAX_BYTES = 1 << 28
_LIST_FORMAT = (
    'One path per line, and after a TAB its targets with "|" between them; or CSV with the columns path and target'
)


def read_list(path: str | os.PathLike[str]) -> list[ListEntry]:
    r"""Read a list of photos in its order; relative paths are relative to the list's folder.

    Text, UTF-8, has one path per line, then optionally a TAB and targets separated by "|"; lines that begin with "#",
    and empty lines, are ignored. A path may contain blanks anywhere, and bytes that are not UTF-8. A name such as
    "scenes:5" is a scene. A file NAME.csv has a header with the columns path and, optionally, target, which is
    separated in the same way.

    Args:
        path: The list.

    Returns:
        Paths with their targets.

    Raises:
        GradlightError: The list cannot be read, is not text, or is empty.

    Example:
        >>> from pathlib import Path
        >>> _ = Path("list.txt").write_text("# two scenes\nscenes:5\tred|circle\nscenes:6\n")
        >>> read_list("list.txt")
        [('scenes:5', ('red', 'circle')), ('scenes:6', None)]
    """
    source = format_path(path)
    content = read_whole(path, _MAX_BYTES, "Split the list")
    if b"\0" in content:
        is_utf16 = content[:2] in (b"\xff\xfe", b"\xfe\xff")
        reason = "UTF-16: save it as UTF-8" if is_utf16 else f"not text. A list is expected. {_LIST_FORMAT}"
        raise GradlightError(f"{source}: {reason}.")
    text = content.decode("utf-8-sig", "surrogateescape")
    rows = _parse_csv(source, text) if os.fspath(path).lower().endswith(".csv") else _parse_lines(text)
    if not rows:
        raise GradlightError(f"{source}: this list is empty. {_LIST_FORMAT}.")
    folder = os.path.dirname(os.fspath(path))
    return [(_resolve_path(folder, name), _split_targets(targets)) for name, targets in rows]


def _parse_lines(text: str) -> list[tuple[str, str]]:
    """Parse text into paths and targets."""
    lines = (line.removesuffix("\r") for line in text.split("\n"))
    entries = (line for line in lines if line.strip() and not line.lstrip().startswith("#"))
    return [(name, targets) for name, _, targets in (line.partition("\t") for line in entries) if name]


def _parse_csv(source: str, text: str) -> list[tuple[str, str]]:
    """Parse CSV into paths and targets."""
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
    except csv.Error as error:
        raise GradlightError(f"{source}: not CSV: {error}. {_LIST_FORMAT}.") from error
    header = [title.strip().lower() for title in rows[0]] if rows else []
    if "path" not in header:
        titles = ", ".join(map(repr, header[:8])) or "nothing"
        raise GradlightError(
            f'{source}: no column "path": its first line has {titles}. {_LIST_FORMAT}, separated by commas.'
        )
    path = header.index("path")
    target = header.index("target") if "target" in header else len(header)
    cells = ([*row, *[""] * (len(header) + 1 - len(row))] for row in rows[1:])
    return [(row[path], row[target] if target < len(header) else "") for row in cells if row[path].strip()]


def _resolve_path(folder: str, name: str) -> str:
    """Join a path to its list's folder; a blank at an end of a line belongs to the name only if such a file exists."""
    if SOURCES.named_image(name.strip()) is not None:
        return name.strip()
    exact, stripped = (os.path.join(folder, written) for written in (name, name.strip()))
    return exact if exact == stripped or os.path.lexists(exact) else stripped


def _split_targets(written: str) -> tuple[str, ...] | None:
    return tuple(target.strip() for target in written.split("|") if target.strip()) or None


# ---------------------------------------------------------------------------------------------------------------------
# Folders of photos

# Suffixes of files that lie beside photos; files with any other suffix, or none, are opened to see what they are.
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
_MAX_NOTED_SUFFIXES = 4


@dataclass(frozen=True)
class FolderListing:
    """The photos of a folder.

    Args:
        paths: The files to try, sorted.
        failures: Folders that cannot be listed, each with the reason.
        notes: What a reader should know.
    """

    paths: list[str]
    failures: list[tuple[str, str]]
    notes: list[str]


def list_folder(folder: str) -> FolderListing:
    """Find the photos of a folder and of all folders in it.

    A file counts if its suffix is an image's, whatever it is; if it is a regular file with an unknown suffix; and if it
    has the suffix of data or text, but begins as JPEG, PNG or GIF does. Hidden files and folders are ignored. Links to
    files count; links to folders are not followed, so there are no loops. A folder inside that cannot be listed is a
    failure.

    Args:
        folder: The folder.

    Returns:
        The photos.

    Raises:
        GradlightError: The folder itself cannot be listed.

    Example:
        >>> from pathlib import Path
        >>> for name in ("b.png", "a.jpg", "notes.md"):
        ...     Path(name).touch()
        >>> list_folder(".").paths
        ['./a.jpg', './b.png']
    """
    listing = FolderListing([], [], [])
    other_suffixes: Counter[str] = Counter()
    links: list[str] = []

    def record_error(error: OSError) -> None:
        path, reason = os.fspath(error.filename), error.strerror or str(error)
        if path == folder:
            raise GradlightError(f"{format_path(path)}: cannot be listed: {reason}. Check the folder.") from error
        listing.failures.append(
            (path, f"{format_path(path)}: this folder cannot be listed: {reason}. Check its permissions.")
        )

    for parent, folders, names in os.walk(folder, onerror=record_error):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links += [path for path in (os.path.join(parent, name) for name in folders) if os.path.islink(path)]
        for name in names:
            path, suffix = os.path.join(parent, name), os.path.splitext(name)[1].lower()
            if name.startswith("."):
                continue
            if suffix in IMAGE_SUFFIXES or _may_be_photo(path, suffix):
                listing.paths.append(path)
            else:
                other_suffixes[suffix or "special files"] += 1
    listing.paths.sort()
    listing.failures.sort()
    if other_suffixes:
        counts = ", ".join(f"{suffix} {count}" for suffix, count in other_suffixes.most_common(_MAX_NOTED_SUFFIXES))
        more = " …" if len(other_suffixes) > _MAX_NOTED_SUFFIXES else ""
        listing.notes.append(
            f"{other_suffixes.total()} other files of {format_path(folder)} are left out: {counts}{more}."
        )
    if links:
        listing.notes.append(f"Links to folders are not followed: {len(links)}, such as {format_path(links[0])}.")
    return listing


def _may_be_photo(path: str, suffix: str) -> bool:
    """Tell whether a regular file may be a photo; special files are not opened and do not count."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return False
        if suffix not in _OTHER_SUFFIXES:
            return True
        with open(path, "rb") as stream:
            return stream.read(8).startswith(_SIGNATURES)
    except OSError:
        return False
