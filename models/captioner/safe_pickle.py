"""Read untrusted pickles without executing them: every global that a file names becomes an inert stand-in.

A pickle is a program for a stack machine, which can import any function and call it. Example, in its opcodes:

    GLOBAL 'os system', 'rm -rf ~', TUPLE1, REDUCE      would run the command
    GLOBAL 'argparse Namespace', EMPTY_DICT, BUILD      is an options object

Here `find_class` imports nothing. It looks a name up in a table of stand-ins, and raises `ForbiddenGlobal` for names
that are not in it. REDUCE and NEWOBJ can call stand-ins only, and `PickleReader` bounds time and memory.
"""

from __future__ import annotations

import os
import pickle
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, ClassVar

from ...errors import GradlightError
from ...files import format_path, open_regular
from ..checkpoints import PathLike

__all__ = [
    "PYTHON2_MODULES",
    "ForbiddenGlobal",
    "InertDict",
    "InertNamespace",
    "InertStandIn",
    "PickleReader",
    "RestrictedUnpickler",
    "find_stand_in",
    "is_size",
    "open_untrusted",
    "read_pickle",
    "reading_as",
    "set_item",
]

_MAX_TEXT = 64
_MAX_BYTES = 64 << 20
_MAX_READS = 5_000_000
_MAX_ARGUMENTS = 64


def read_pickle(path: PathLike) -> Any:
    """Read an `infos` pickle of Python 2 or 3: plain data, numbers of numpy, and namespaces. Nothing is executed.

    Args:
        path: the file, at most 64 MB.

    Returns:
        The data; every object in it is an inert stand-in.

    Raises:
        GradlightError: for every other file.

    Example:
        >>> from pathlib import Path
        >>> size = Path("infos_a.pkl").write_bytes(pickle.dumps({"vocab": {"1": "star"}}))
        >>> read_pickle("infos_a.pkl")
        {'vocab': {'1': 'star'}}
        >>> size = Path("infos_b.pkl").write_bytes(pickle.dumps({"vocab": print}))
        >>> read_pickle("infos_b.pkl")
        Traceback (most recent call last):
        gradlight.errors.GradlightError: infos_b.pkl: the file names 'builtins.print', which must not be in ...
    """
    with open_untrusted(path) as (stream, size), reading_as(path, "the pickle of a captioner's vocabulary and options"):
        if size > _MAX_BYTES:
            raise GradlightError(
                f"{format_path(path)}: {size >> 20} MB, and no vocabulary with its options is so large."
            )
        return RestrictedUnpickler(PickleReader(stream, size)).load()


@contextmanager
def open_untrusted(path: PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file, with its size; raises GradlightError for an empty file, a web page, and a Git LFS pointer."""
    with open_regular(path) as stream:
        start = stream.read(512)
        if not start:
            raise GradlightError(f"{format_path(path)}: an empty file (0 bytes). Get a complete copy of it.")
        if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
            raise GradlightError(
                f"{format_path(path)}: a web page, perhaps an error page saved in its place. Download it again."
            )
        if start.startswith(b"version https://git-lfs"):
            raise GradlightError(f"{format_path(path)}: a Git LFS pointer, not the file itself. Run `git lfs pull`.")
        stream.seek(0)
        yield stream, os.fstat(stream.fileno()).st_size


@contextmanager
def reading_as(path: PathLike, kind: str) -> Iterator[None]:
    """Turn every error over a file's bytes into a GradlightError that names the file and what it was read as."""
    try:
        yield
    except GradlightError:
        raise
    except ForbiddenGlobal as error:
        raise GradlightError(
            f"{format_path(path)}: the file names {str(error)!r}, which must not be in {kind}; nothing of it was run."
        ) from error
    # Broken bytes make any step fail in any way: KeyError, EOFError, struct.error, RecursionError, MemoryError …
    except Exception as error:
        lines = str(error).splitlines()
        detail = lines[0] if lines and len(lines[0]) < 120 else type(error).__name__
        raise GradlightError(
            f"{format_path(path)}: not {kind}, or damaged or truncated ({detail}). Get a complete copy of it."
        ) from error


def is_size(value: Any) -> bool:
    """Return whether a value of an untrusted file is an integer that can be a size: 0 or more, and below 2^60.

    Example:
        >>> [is_size(value) for value in (3, -1, True, 2.0)]
        [True, False, False, False]
    """
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


# --- The inert stand-ins


class ForbiddenGlobal(pickle.UnpicklingError):
    """A file names a global that has no stand-in."""


class InertStandIn:
    """Stands for a global that a file names: it can be called and filled with state, and does nothing."""

    state: Mapping[str, Any]

    def __new__(cls, *_: Any) -> Any:
        """Accept any arguments, as the global would."""
        made = super().__new__(cls)
        made.state = {}
        return made

    def __setstate__(self, state: Any) -> None:
        # Every stand-in has this, because without it a pickle may set the attributes of the class itself.
        inner = state[0] if isinstance(state, tuple) and len(state) == 2 else state
        self.state = inner if isinstance(inner, dict) else {}


class InertDict(dict[Any, Any], InertStandIn):
    """Stands for OrderedDict and its kin; Python 2 passes the pairs as an argument."""

    def __new__(cls, *args: Any) -> Any:
        """Move the pairs out of the list that holds them, so that naming one list often costs nothing."""
        made = super().__new__(cls)
        for key, value in args[0] if args and isinstance(args[0], list) else ():
            set_item(made, key, value)
        if made:
            args[0].clear()
        return made

    def __init__(self, *_: Any) -> None:
        pass


class InertNamespace(InertStandIn):
    """Stands for argparse.Namespace."""


class _InertReconstructor(InertStandIn):
    """Stands for copyreg._reconstructor: makes a stand-in of the class that is its first argument."""

    def __new__(cls, kind: Any = None, *_: Any) -> Any:
        return kind() if isinstance(kind, type) and issubclass(kind, InertStandIn) else super().__new__(cls)


class _InertEncode(InertStandIn):
    """Stands for _codecs.encode, by which Python 3 writes bytes in old protocols."""

    def __new__(cls, text: Any = None, *_: Any) -> Any:
        return text.encode("latin-1") if _is_short_text(text) else super().__new__(cls)


class _InertDtype(InertStandIn):
    """Stands for numpy.dtype."""

    code: str

    def __new__(cls, code: Any = "", *_: Any) -> Any:
        made = super().__new__(cls)
        made.code = code if isinstance(code, str) else ""
        return made


class _InertScalar(InertStandIn):
    """Stands for a number of numpy, and becomes a number of Python."""

    def __new__(cls, dtype: Any = None, raw: Any = None, *_: Any) -> Any:
        data = raw.encode("latin-1") if _is_short_text(raw) else raw
        form = _STRUCT_FORMATS.get(dtype.code) if isinstance(dtype, _InertDtype) else None
        if form and isinstance(data, bytes) and len(data) == struct.calcsize(form):
            return struct.unpack(form, data)[0]
        return super().__new__(cls)


_STRUCT_FORMATS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}

_STAND_INS: dict[str, type[InertStandIn]] = {
    "argparse.Namespace": InertNamespace,
    "copyreg._reconstructor": _InertReconstructor,
    "builtins.object": InertStandIn,
    "collections.OrderedDict": InertDict,
    "collections.defaultdict": InertDict,
    "_codecs.encode": _InertEncode,
    "numpy.dtype": _InertDtype,
    "numpy.ndarray": InertStandIn,
    **{f"numpy.{core}.multiarray.scalar": _InertScalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": InertStandIn for core in ("core", "_core")},
}

PYTHON2_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Names of modules in Python 2 and in Python 3."""


def find_stand_in(module: str, name: str) -> type[InertStandIn]:
    """Return the stand-in of a global of an `infos` pickle; raises ForbiddenGlobal if there is none."""
    stand_in = _STAND_INS.get(f"{PYTHON2_MODULES.get(module, module)}.{name}")
    if stand_in is None:
        raise ForbiddenGlobal(f"{module[:_MAX_TEXT]}.{name[:_MAX_TEXT]}")
    return stand_in


def set_item(target: dict[Any, Any], key: Any, value: Any) -> None:
    """Set an item of a dict; a tuple as key is refused, because the hash of nested tuples can take for ever."""
    if isinstance(key, tuple):
        raise pickle.UnpicklingError("a tuple is a key in it")
    target[key] = value


def _is_short_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= _MAX_TEXT


# --- The unpickler


class PickleReader:
    """The remaining stream for an unpickler, with a limit on the bytes and on the number of reads.

    Args:
        stream: is read from its present position.
        size: of the whole stream, in bytes.
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size - stream.tell()
        self._bytes_left, self._reads_left = min(self._left, _MAX_BYTES), _MAX_READS

    def read(self, count: int) -> bytes:
        """Read bytes; raises EOFError if there are not so many left."""
        if count > self._left:
            raise EOFError("the end is missing")
        return self._count(self._stream.read(count))

    def readline(self) -> bytes:
        """Read up to the end of a line."""
        return self._count(self._stream.readline(_MAX_BYTES))

    def _count(self, data: bytes) -> bytes:
        self._left -= len(data)
        self._bytes_left -= len(data)
        self._reads_left -= 1
        if self._bytes_left < 0 or self._reads_left < 0:
            raise pickle.UnpicklingError("it is too large")
        return data


# Buffers outside of the pickle, and classes by number.
_REFUSED_OPCODES = (
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.BYTEARRAY8,
)


class RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler, written in Python, that can call only stand-ins and needs bounded time and memory.

    The unpickler written in C would allocate 2^32 entries where a file says that its memo is so long. Strings of
    Python 2 are read as Latin-1.

    Args:
        reader: the stream.
        find: returns the stand-in of a module and a name.
        persistent: returns the stand-in of a persistent id; None refuses them.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    if TYPE_CHECKING:
        # Not in the declarations of the standard library.
        def pop_mark(self) -> list[Any]: ...  # noqa: D102

    def __init__(
        self,
        reader: PickleReader,
        find: Callable[[str, str], type[InertStandIn]] = find_stand_in,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(reader, fix_imports=False, encoding="latin-1")
        self._reader, self._find, self._persistent = reader, find, persistent

    def find_class(self, module: str, name: str) -> type[InertStandIn]:
        """Return the stand-in of a global; nothing is imported."""
        return self._find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Return the stand-in of a persistent id."""
        return super().persistent_load(pid) if self._persistent is None else self._persistent(pid)

    def _call(self, kind: Any, args: Any) -> Any:
        is_stand_in = isinstance(kind, type) and issubclass(kind, InertStandIn)
        if not (is_stand_in and isinstance(args, tuple) and len(args) <= _MAX_ARGUMENTS):
            raise pickle.UnpicklingError("it calls what cannot be called")
        return kind(*args)

    def _instantiate(self, kind: Any, args: list[Any]) -> None:
        self.append(self._call(kind, tuple(args)))

    def _reduce(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.append(self._call(kind, args))

    def _newobj_ex(self) -> None:
        self.stack.pop()
        self._reduce()

    def _frame(self) -> None:
        # A frame only says how much may be read at once.
        self._reader.read(8)

    def _frozenset(self) -> None:
        self.append(self.pop_mark())

    def _additems(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill_dict(items)

    def _setitems(self) -> None:
        self._fill_dict(self.pop_mark())

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill_dict([key, value])

    def _fill_dict(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("it fills what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            set_item(target, key, value)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: step for code, step in pickle._Unpickler.dispatch.items() if bytes([code]) not in _REFUSED_OPCODES},
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _newobj_ex,
        pickle.FRAME[0]: _frame,
        # Sets become lists: nothing needs them, and their elements would have to be hashed.
        pickle.EMPTY_SET[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.FROZENSET[0]: _frozenset,
        pickle.ADDITEMS[0]: _additems,
        pickle.DICT[0]: _dict,
        pickle.SETITEM[0]: _setitem,
        pickle.SETITEMS[0]: _setitems,
    }
