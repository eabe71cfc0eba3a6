"""The one error that every room raises, and the help it gives with names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["GradlightError", "GradlightWarning", "nearest"]


class GradlightError(ValueError):
    """What was asked, what was found, and what to do; the base of every error of this library."""


class GradlightWarning(UserWarning):
    """A result that is sound but probably not what was meant (a flat map, a score that is not a number)."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names come closest to a mistyped one.

    Returns a sentence with a leading space ("" when nothing is near), to be put after what was asked.
    """
    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(candidate.casefold(), candidate)
    wanted = name.casefold()
    found = [folded[key] for key in folded if wanted and wanted in key][:count]
    found += [folded[key] for key in difflib.get_close_matches(wanted, folded, n=count, cutoff=0.5)]
    names = list(dict.fromkeys(found))[:count]
    return f" Did you mean {' or '.join(repr(n) for n in names)}?" if names else ""
