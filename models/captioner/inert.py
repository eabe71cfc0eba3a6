"""What stands for the things that a pickle names: nothing of them is imported, and nothing they do happens."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Mapping
from typing import Any

__all__ = ["PYTHON2", "Foreign", "Inert", "Namespace", "Ordered", "known", "put"]

_LONGEST_TEXT = 64


class Inert:
    """What stands for everything that a file names: it may be called and filled, and does nothing."""

    state: Mapping[str, Any]

    def __new__(cls, *_: Any) -> Any:
        """Take any arguments, as whatever is stood for would."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        # Every stand-in has this, because without it a pickle may set the attributes of the class itself.
        inner = state[0] if isinstance(state, tuple) and len(state) == 2 else state
        self.state = inner if isinstance(inner, dict) else {}


class Ordered(dict[Any, Any], Inert):
    """Stands for OrderedDict and its kin; Python 2 gives it its pairs as an argument."""

    def __new__(cls, *args: Any) -> Any:
        """Take pairs out of the list that holds them, so that naming one list often costs nothing."""
        made = super().__new__(cls)
        for key, value in args[0] if args and isinstance(args[0], list) else ():
            put(made, key, value)
        if made:
            args[0].clear()
        return made

    def __init__(self, *_: Any) -> None:
        pass


class Namespace(Inert):
    """Stands for argparse.Namespace."""


class _Reconstructor(Inert):
    def __new__(cls, kind: Any = None, *_: Any) -> Any:
        return kind() if isinstance(kind, type) and issubclass(kind, Inert) else super().__new__(cls)


class _Encode(Inert):
    def __new__(cls, text: Any = None, *_: Any) -> Any:
        return text.encode("latin-1") if _short(text) else super().__new__(cls)


class _Dtype(Inert):
    code: str

    def __new__(cls, code: Any = "", *_: Any) -> Any:
        made = super().__new__(cls)
        made.code = code if isinstance(code, str) else ""
        return made


class _Scalar(Inert):
    def __new__(cls, dtype: Any = None, raw: Any = None, *_: Any) -> Any:
        data = raw.encode("latin-1") if _short(raw) else raw
        form = _FORMS.get(dtype.code) if isinstance(dtype, _Dtype) else None
        if form and isinstance(data, bytes) and len(data) == struct.calcsize(form):
            return struct.unpack(form, data)[0]
        return super().__new__(cls)


_FORMS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}

_PLAIN: dict[str, type[Inert]] = {
    "argparse.Namespace": Namespace,
    "copyreg._reconstructor": _Reconstructor,
    "builtins.object": Inert,
    "collections.OrderedDict": Ordered,
    "collections.defaultdict": Ordered,
    "_codecs.encode": _Encode,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": Inert,
    **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": Inert for core in ("core", "_core")},
}

PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that Python 3 calls otherwise."""


class Foreign(pickle.UnpicklingError):
    """A file names something that has no place in it."""


def known(module: str, name: str) -> type[Inert]:
    """Give the stand-in of what an `infos` pickle names; raises Foreign for everything that has no place in one."""
    found = _PLAIN.get(f"{PYTHON2.get(module, module)}.{name}")
    if found is None:
        raise Foreign(f"{module[:_LONGEST_TEXT]}.{name[:_LONGEST_TEXT]}")
    return found


def put(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Put one item in; a tuple is no key, because the hash of nested tuples can take for ever."""
    if isinstance(key, tuple):
        raise pickle.UnpicklingError("a tuple is a key in it")
    target[key] = value


def _short(text: Any) -> bool:
    return isinstance(text, str) and len(text) <= _LONGEST_TEXT
