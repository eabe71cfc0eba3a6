"""Figures that were published, to hold one's own against; each section says in `about` what it is of."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import Any

from ..errors import GradlightError, nearest

__all__ = ["about", "published", "sources"]


def published(section: str) -> dict[str, Any]:
    """Give a section of the published figures, in JSON types. Raises GradlightError for one that is not there."""
    known = _document()["about"]
    if section not in known:
        raise GradlightError(
            f"There are no published figures {section!r}.{nearest(section, known)} Known: {', '.join(known)}."
        )
    found: dict[str, Any] = _document()[section]
    return found


def about() -> dict[str, str]:
    """Say what each section holds: of which data and networks, in which unit."""
    return dict(_document()["about"])


def sources() -> dict[str, str]:
    """Name the papers that the figures are from."""
    return dict(_document()["sources"])


@cache
def _document() -> dict[str, Any]:
    text = files("gradlight.evaluation").joinpath("published.json").read_text(encoding="utf-8")
    read: dict[str, Any] = json.loads(text)
    return read
