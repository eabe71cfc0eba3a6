"""What every reader of a data set's JSON needs: the document itself, and its photos found under one folder."""

from __future__ import annotations

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import GradlightError
from .files import read_whole, shown

__all__ = ["PhotoFolder", "read_document"]

_MOST_BYTES = 1 << 30  # several times the largest file that is known
_FOLDERS = ("train2014", "val2014", "train2017", "val2017")
_LOOKS_LIKE = (
    (b"version https://git-lfs", "a Git LFS pointer: run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive: unpack it and give the JSON file in it"),
    (b"\x1f\x8b", "gzip-compressed data: unpack it first"),
    (b"<", "a web page or XML: download the file again"),
)


def read_document(path: str | os.PathLike[str], expected: str) -> Any:
    """Read a JSON file of at most 1 GiB.

    expected: sentences for the errors, saying which layouts are known. Raises GradlightError, which names the file,
    for what cannot be read, is too large or is not JSON.
    """
    source = shown(path)
    content = read_whole(path, _MOST_BYTES, f"No such file is so large. {expected}")
    if not content.strip():
        raise GradlightError(f"{source}: empty file. Get a whole copy of it.")
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        what = [f"it looks like {what}" for start, what in _LOOKS_LIKE if content.lstrip().startswith(start)]
        reason = what[0] if what else f"{error}. Get a whole copy of it, in UTF-8"
        raise GradlightError(f"{source}: not JSON: {reason}.") from error


class PhotoFolder:
    """Finds photos under a folder; all of it is listed at most once, and only if a photo is not where it should be.

    Raises GradlightError for what is no folder.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        if not os.path.isdir(self.root):  # Path.is_dir fails on names that are too long
            raise GradlightError(f"{shown(root)}: not a folder. Give the folder that holds the photos.")

    def find(self, name: str) -> list[Path]:
        """Give the one photo that is meant, or all that could be.

        A photo is looked for by its whole name, then in train2014, val2014, train2017 and val2017, then by its base
        name in every sub-folder that is neither hidden nor a link; never outside.
        """
        whole = Path(name)
        inside = [] if whole.is_absolute() or ".." in whole.parts else [whole]
        likely = (self.root / path for path in [*inside, *(Path(folder, whole.name) for folder in _FOLDERS)])
        near = next(filter(os.path.isfile, likely), None)
        return [near] if near else self._index.get(whole.name, [])

    @cached_property
    def _index(self) -> dict[str, list[Path]]:
        index: dict[str, list[Path]] = {}
        for parent, folders, names in os.walk(self.root):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                index.setdefault(name, []).append(Path(parent, name))
        return index
