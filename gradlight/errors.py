"""The error and the warning of this library, and suggestions for mistyped names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["GradlightError", "GradlightWarning", "nearest"]


class GradlightError(ValueError):
    """The base class of every error of this library.

    Its message says what was asked, what was found, and what to do.

    Example:
        >>> gl.Meta(lr=-1)
        Traceback (most recent call last):
        gradlight.errors.GradlightError: ...
        >>> issubclass(gl.GradlightError, ValueError)
        True
    """


class GradlightWarning(UserWarning):
    """A result that is valid but probably not what was meant, such as a flat map or a score that is NaN.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", gl.GradlightWarning)  # turns every such warning into an exception
    """


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Suggest the existing names that are closest to a mistyped one.

    Args:
        name: The name that was given.
        names: The names that exist.
        count: The largest number of suggestions.

    Returns:
        A sentence with a leading space, to be appended to an error message, or "" where no name is close.

    Example:
        >>> nearest("norm_grad", ["normgrad", "grad_cam", "gradient"])
        " Did you mean 'normgrad'?"
        >>> nearest("normgrad", ["cat", "dog"])
        ''
    """
    folded: dict[str, str] = {}
    for candidate in names:
        folded.setdefault(candidate.casefold(), candidate)
    wanted = name.casefold()
    matches = [folded[key] for key in folded if wanted and wanted in key][:count]
    matches += [folded[key] for key in difflib.get_close_matches(wanted, folded, n=count, cutoff=0.5)]
    suggestions = list(dict.fromkeys(matches))[:count]
    return f" Did you mean {' or '.join(map(repr, suggestions))}?" if suggestions else ""
