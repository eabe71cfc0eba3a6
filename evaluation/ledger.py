"""The ledger of an experiment: it keeps finished units of work, so that a stopped run can be resumed."""

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

_MAX_VALUE_LENGTH = 60  # characters of a setting that an error shows


class Ledger:
    """Keep the results of finished units of work in a file, so that a run that was killed can be resumed.

    Args:
        path: A file of JSON lines that is only appended to. It is created if it is missing, its folder is not. None
            keeps the results in memory.
        settings: Everything that decides the results (settings, checksums), in JSON types; the file's first line. An
            incomplete last line is dropped.

    Raises:
        GradlightError: The file has other settings (the error names the differences), or is not a ledger.

    Example:
        >>> ledger = Ledger(None, {"seed": 0})
        >>> ledger.once("one third", lambda: 1 / 3)
        0.3333333333333333
        >>> "one third" in ledger
        True
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self.path = path
        self.settings: dict[str, Any] = _json_round_trip(dict(settings))
        self._values: dict[str, Any] = {}
        if path is not None:
            self._open(path)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def once(self, key: str, compute: Callable[[], Any]) -> Any:
        """Give the kept value of a key; without one, compute the value and keep it.

        Args:
            key: The name of the unit of work.
            compute: Gives its value, in JSON types.

        Returns:
            The value as a file gives it, also at the first call: floats exactly, a float that is not finite as None,
            tuples as lists.

        Raises:
            GradlightError: The file cannot be written.
        """
        if key not in self._values:
            value = _json_round_trip(compute())
            if self.path is not None:
                _append(self.path, _json_line({"key": key, "value": value}))
            self._values[key] = value
        return self._values[key]

    def _open(self, path: Path) -> None:
        header = _json_line({"about": self.settings})
        content = b""
        if path.exists():
            with open_regular(path) as stream:
                content = stream.read()
        if b"\n" not in content and header.startswith(content):
            _append(path, header[len(content) :])
            return
        lines = content.splitlines(keepends=True)
        _check_settings(path, _parse_line(lines[0]), self.settings)
        valid_bytes = len(lines[0])
        for number, line in enumerate(lines[1:], 2):
            entry = _parse_line(line)
            if entry is None or not entry.keys() >= {"key", "value"}:
                if number < len(lines):
                    raise GradlightError(
                        f"{format_path(path)}: line {number} of the ledger is damaged. Move the file away, and start"
                        " again."
                    )
                break
            self._values.setdefault(entry["key"], entry["value"])
            valid_bytes += len(line)
        if valid_bytes < len(content):
            os.truncate(path, valid_bytes)


def _json_round_trip(value: Any) -> Any:
    """Convert a value to what JSON gives back."""
    return json.loads(json.dumps(_finite_values(value)))


def _finite_values(value: Any) -> Any:
    """Replace floats that are not finite by None, also inside lists and dictionaries."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite_values(item) for item in value]
    return value


def _json_line(entry: Mapping[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"


def _parse_line(line: bytes) -> dict[str, Any] | None:
    """Parse a line; None if it is incomplete or not a line of a ledger."""
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


def _check_settings(path: Path, header: dict[str, Any] | None, settings: Mapping[str, Any]) -> None:
    previous = None if header is None else header.get("about")
    if not isinstance(previous, dict):
        raise GradlightError(f"{format_path(path)}: not the ledger of an experiment. Name another file or folder.")
    names = [name for name in {**previous, **settings} if previous.get(name) != settings.get(name)]
    if names:
        changes = "; ".join(
            f"{name} was {_format_value(previous.get(name))}, is {_format_value(settings.get(name))}" for name in names
        )
        raise GradlightError(
            f"{format_path(path)}: the ledger of another run: {changes}. Give the same settings to resume it, or"
            " another folder to start again."
        )


def _format_value(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= _MAX_VALUE_LENGTH else f"{text[: _MAX_VALUE_LENGTH - 1]}…"
