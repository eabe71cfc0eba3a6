"""Reading pickles that others wrote without running anything of them: whatever a file names becomes an inert thing.

What stands for the things that a pickle names: nothing of them is imported, and nothing they do happens.
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
    "PYTHON2",
    "Foreign",
    "InertStandIn",
    "Namespace",
    "Ordered",
    "PickleReader",
    "RestrictedUnpickler",
    "guarded",
    "known",
    "opened",
    "put",
    "read_pickle",
    "whole",
]

_LONGEST_TEXT = 64


class InertStandIn:
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


class Ordered(dict[Any, Any], InertStandIn):
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


class Namespace(InertStandIn):
    """Stands for argparse.Namespace."""


class _Reconstructor(InertStandIn):
    def __new__(cls, kind: Any = None, *_: Any) -> Any:
        return kind() if isinstance(kind, type) and issubclass(kind, InertStandIn) else super().__new__(cls)


class _Encode(InertStandIn):
    def __new__(cls, text: Any = None, *_: Any) -> Any:
        return text.encode("latin-1") if _short(text) else super().__new__(cls)


class _Dtype(InertStandIn):
    code: str

    def __new__(cls, code: Any = "", *_: Any) -> Any:
        made = super().__new__(cls)
        made.code = code if isinstance(code, str) else ""
        return made


class _Scalar(InertStandIn):
    def __new__(cls, dtype: Any = None, raw: Any = None, *_: Any) -> Any:
        data = raw.encode("latin-1") if _short(raw) else raw
        form = _FORMS.get(dtype.code) if isinstance(dtype, _Dtype) else None
        if form and isinstance(data, bytes) and len(data) == struct.calcsize(form):
            return struct.unpack(form, data)[0]
        return super().__new__(cls)


_FORMS = {"f8": "<d", "f4": "<f", "i8": "<q", "i4": "<i", "b1": "<?"}

_PLAIN: dict[str, type[InertStandIn]] = {
    "argparse.Namespace": Namespace,
    "copyreg._reconstructor": _Reconstructor,
    "builtins.object": InertStandIn,
    "collections.OrderedDict": Ordered,
    "collections.defaultdict": Ordered,
    "_codecs.encode": _Encode,
    "numpy.dtype": _Dtype,
    "numpy.ndarray": InertStandIn,
    **{f"numpy.{core}.multiarray.scalar": _Scalar for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray._reconstruct": InertStandIn for core in ("core", "_core")},
}

PYTHON2 = {"__builtin__": "builtins", "copy_reg": "copyreg"}
"""Modules that Python 3 calls otherwise."""


class Foreign(pickle.UnpicklingError):
    """A file names something that has no place in it."""


def known(module: str, name: str) -> type[InertStandIn]:
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


_LARGEST = 64 << 20
_MOST_READS = 5_000_000
_MOST_ARGUMENTS = 64
# Buffers that lie outside of the pickle, and classes that go by a number.
_UNHEARD = (
    pickle.EXT1,
    pickle.EXT2,
    pickle.EXT4,
    pickle.NEXT_BUFFER,
    pickle.READONLY_BUFFER,
    pickle.BYTEARRAY8,
)


class PickleReader:
    """The rest of a stream for a machine: no more bytes than there are are asked for, and not without end."""

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._stream = stream
        self._left = size - stream.tell()
        self._bytes, self._calls = min(self._left, _LARGEST), _MOST_READS

    def read(self, count: int) -> bytes:
        """Read so many bytes; raises EOFError where they are not there."""
        if count > self._left:
            raise EOFError("the end is missing")
        return self._counted(self._stream.read(count))

    def readline(self) -> bytes:
        """Read up to the end of a line."""
        return self._counted(self._stream.readline(_LARGEST))

    def _counted(self, data: bytes) -> bytes:
        self._left -= len(data)
        self._bytes -= len(data)
        self._calls -= 1
        if self._bytes < 0 or self._calls < 0:
            raise pickle.UnpicklingError("it is too large")
        return data


class RestrictedUnpickler(pickle._Unpickler):
    """Python's own unpickler, written in Python, that can call nothing but stand-ins, and has bounded time and memory.

    The one written in C would do as a memo says that it is 2^32 long. find: the stand-in of a module and a name.
    persistent: what stands for a persistent id. Strings of Python 2 are read as Latin-1.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    if TYPE_CHECKING:
        # Not in the declarations of the standard library.
        def pop_mark(self) -> list[Any]: ...  # noqa: D102

    def __init__(
        self,
        reader: PickleReader,
        find: Callable[[str, str], type[InertStandIn]] = known,
        persistent: Callable[[Any], Any] | None = None,
    ) -> None:
        super().__init__(reader, fix_imports=False, encoding="latin-1")
        self._reader, self._find, self._persistent = reader, find, persistent

    def find_class(self, module: str, name: str) -> type[InertStandIn]:
        """Give the stand-in; nothing is imported."""
        return self._find(module, name)

    def persistent_load(self, pid: Any) -> Any:
        """Give what stands for a persistent id."""
        return super().persistent_load(pid) if self._persistent is None else self._persistent(pid)

    def _call(self, kind: Any, args: Any) -> Any:
        stands = isinstance(kind, type) and issubclass(kind, InertStandIn)
        if not (stands and isinstance(args, tuple) and len(args) <= _MOST_ARGUMENTS):
            raise pickle.UnpicklingError("it calls what cannot be called")
        return kind(*args)

    def _instantiate(self, kind: Any, args: list[Any]) -> None:
        self.append(self._call(kind, tuple(args)))

    def _reduce(self) -> None:
        args, kind = self.stack.pop(), self.stack.pop()
        self.append(self._call(kind, args))

    def _with_names(self) -> None:
        self.stack.pop()
        self._reduce()

    def _frame(self) -> None:
        # Frames only say how much may be read at once.
        self._reader.read(8)

    def _list(self) -> None:
        self.append(self.pop_mark())

    def _add(self) -> None:
        items = self.pop_mark()
        self.stack[-1].extend(items)

    def _dict(self) -> None:
        items = self.pop_mark()
        self.append({})
        self._fill(items)

    def _set_items(self) -> None:
        self._fill(self.pop_mark())

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _fill(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise pickle.UnpicklingError("it fills what is no dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            put(target, key, value)

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        **{code: step for code, step in pickle._Unpickler.dispatch.items() if bytes([code]) not in _UNHEARD},
        pickle.REDUCE[0]: _reduce,
        pickle.NEWOBJ[0]: _reduce,
        pickle.NEWOBJ_EX[0]: _with_names,
        pickle.FRAME[0]: _frame,
        # Sets become lists: nothing needs them, and what is in one would have to be hashed.
        pickle.EMPTY_SET[0]: pickle._Unpickler.dispatch[pickle.EMPTY_LIST[0]],
        pickle.FROZENSET[0]: _list,
        pickle.ADDITEMS[0]: _add,
        pickle.DICT[0]: _dict,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
    }


def whole(value: Any) -> bool:
    """Tell whether something is a whole number, 0 or more, that can be a size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 60


@contextmanager
def opened(path: PathLike) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file with its size; raises GradlightError for an empty one and what is often saved in place of a file."""
    with open_regular(path) as stream:
        start = stream.read(512)
        if not start:
            raise GradlightError(f"{format_path(path)}: an empty file (0 bytes). Get a whole copy of it.")
        if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
            raise GradlightError(
                f"{format_path(path)}: a web page, perhaps an error page saved in its place. Download it again."
            )
        if start.startswith(b"version https://git-lfs"):
            raise GradlightError(f"{format_path(path)}: a Git LFS pointer, not the file itself. Run `git lfs pull`.")
        stream.seek(0)
        yield stream, os.fstat(stream.fileno()).st_size


@contextmanager
def guarded(path: PathLike, what: str) -> Iterator[None]:
    """Turn whatever goes wrong with a file's bytes into one GradlightError that names it, and what it was taken for."""
    try:
        yield
    except GradlightError:
        raise
    except Foreign as error:
        raise GradlightError(
            f"{format_path(path)}: the file names {str(error)!r}, which has no place in {what}; nothing of it was run."
        ) from error
    # Broken bytes make any step fail in any way: KeyError, EOFError, struct.error, RecursionError, MemoryError …
    except Exception as error:
        words = str(error).splitlines()
        detail = words[0] if words and len(words[0]) < 120 else type(error).__name__
        raise GradlightError(
            f"{format_path(path)}: not {what}, or damaged or truncated ({detail}). Get a whole copy of it."
        ) from error


def read_pickle(path: PathLike) -> Any:
    """Read an `infos` pickle of Python 2 or 3: plain data, numbers of numpy, and Namespace, and nothing is executed.

    Raises GradlightError for any other file, a larger one than 64 MB included.
    """
    with opened(path) as (stream, size), guarded(path, "the pickle of a captioner's vocabulary and options"):
        if size > _LARGEST:
            raise GradlightError(
                f"{format_path(path)}: {size >> 20} MB, and no vocabulary with its options is so large."
            )
        return RestrictedUnpickler(PickleReader(stream, size)).load()
