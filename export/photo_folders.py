"""The photos of a folder: every ordinary file that is not evidently something else."""

from __future__ import annotations

import os
import stat
from collections import Counter
from dataclasses import dataclass

from ..data.images import IMAGE_SUFFIXES
from ..errors import GradlightError
from ..files import shown

__all__ = ["Walked", "walk"]

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
            raise GradlightError(f"{shown(where)}: cannot be listed: {why}. Check the folder.") from error
        found.failures.append((where, f"{shown(where)}: this folder cannot be listed: {why}. Check its permissions."))

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
        found.notes.append(f"{others.total()} other files of {shown(folder)} are passed over: {kinds}{more}.")
    if links:
        found.notes.append(f"Links to folders are not followed: {len(links)}, such as {shown(links[0])}.")
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
