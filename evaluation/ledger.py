"""The ledger of an experiment: units of work that are done stay done, whatever stops the run."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..errors import GradlightError
from ..files import format_path, open_regular

__all__ = ["Ledger"]

_LONGEST = 60


class Ledger:
    """Keep the results of finished units of work in a file, so that a run that was killed goes on where it was.

    path: of a file of JSON lines, which only ever grows; it is made if it is missing, its folder is not. None keeps
    the results in memory. about: what decides the results (settings, checksums), in JSON types; the file's first line.
    A line that was cut off by the end of a run is dropped. Raises GradlightError for a file of another `about`, naming
    what differs, and for one that is no ledger.
    """

    def __init__(self, path: Path | None, about: Mapping[str, Any]) -> None:
        self.path = path
        self.about: dict[str, Any] = _plain(dict(about))
        self._values: dict[str, Any] = {}
        if path is not None:
            self._open(path)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Give the value of a key: the kept one, or else the computed one, which is kept from then on.

        The value comes back as a file gives it, on the first call too: floats exactly, a float that is no finite number
        as None, tuples as lists.
        """
        if key not in self._values:
            value = _plain(compute())
            if self.path is not None:
                _append(self.path, _line({"key": key, "value": value}))
            self._values[key] = value
        return self._values[key]

    def _open(self, path: Path) -> None:
        head = _line({"about": self.about})
        content = b""
        if path.exists():
            with open_regular(path) as stream:
                content = stream.read()
        if b"\n" not in content and head.startswith(content):
            _append(path, head[len(content) :])
            return
        lines = content.splitlines(keepends=True)
        _check_about(path, _parsed(lines[0]), self.about)
        good = len(lines[0])
        for number, line in enumerate(lines[1:], 2):
            entry = _parsed(line)
            if entry is None or not entry.keys() >= {"key", "value"}:
                if number < len(lines):
                    raise GradlightError(
                        f"{format_path(path)}: line {number} of the ledger is damaged. Move the file away and start anew."
                    )
                break
            self._values.setdefault(entry["key"], entry["value"])
            good += len(line)
        if good < len(content):
            os.truncate(path, good)


def _plain(value: Any) -> Any:
    """Bring a value to what JSON gives back."""
    return json.loads(json.dumps(_finite(value)))


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parsed(line: bytes) -> dict[str, Any] | None:
    """Read a line; None for one that was cut off, or is none of a ledger."""
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    return entry if isinstance(entry, dict) else None


def _append(path: Path, line: bytes) -> None:
    try:
        with open(path, "ab") as stream:
            stream.write(line)
    except OSError as error:
        raise GradlightError(
            f"{format_path(path)}: cannot be written: {error.strerror}. Check folder and disk."
        ) from error


def _check_about(path: Path, entry: dict[str, Any] | None, about: Mapping[str, Any]) -> None:
    found = None if entry is None else entry.get("about")
    if not isinstance(found, dict):
        raise GradlightError(f"{format_path(path)}: not the ledger of an experiment. Name another file or folder.")
    names = [name for name in {**found, **about} if found.get(name) != about.get(name)]
    if names:
        changes = "; ".join(f"{name} was {_told(found.get(name))}, is {_told(about.get(name))}" for name in names)
        raise GradlightError(
            f"{format_path(path)}: the ledger of another run: {changes}. Give the same settings to go on with it, or another"
            " folder to start anew."
        )


def _told(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"
