"""Files on disk: ordinary ones opened without hanging, with plain errors, and replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from ..errors import GradlightError

__all__ = ["PathLike", "open_regular", "read_whole", "replace_file", "replacing", "shown"]

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe (fifo)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def shown(path: PathLike) -> str:
    """Show a path in a message: as it is, or quoted with escapes where it would break the line or cannot be printed.

    Raises GradlightError for what is no path at all.
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise GradlightError(f"the path of a file was expected, got {type(path).__name__}: {path!r}")
    text = os.fsdecode(path)
    return text if text and text.isprintable() else repr(text)


def open_regular(path: PathLike) -> BinaryIO:
    """Open an ordinary file for reading bytes, following links to files.

    Raises GradlightError, naming the file, for whatever is missing, not readable or not an ordinary file; a pipe,
    socket or device is never read and never waited for.
    """
    name = shown(path)
    try:
        # Looked at before it is opened, because opening a device can already do something.
        _refuse_special(name, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except GradlightError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise GradlightError(f"{name}: cannot be opened: {why}. Check the path and its permissions.") from error
    except ValueError as error:
        raise GradlightError(f"{name}: not a valid path: {error}.") from error
    try:
        # And once more on what was really opened: the name may have come to mean something else.
        _refuse_special(name, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_whole(path: PathLike, most: int, advice: str) -> bytes:
    """Read an ordinary file of at most so many bytes.

    advice: what to do with a larger one. Raises GradlightError, naming the file, for that and for what cannot be read.
    """
    with open_regular(path) as stream:
        try:
            content = stream.read(most + 1)
        except OSError as error:
            raise GradlightError(f"{shown(path)}: cannot be read: {error.strerror}. Check the disk.") from error
    if len(content) > most:
        limit = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise GradlightError(f"{shown(path)}: larger than {limit}. {advice}.")
    return content


def replace_file(target: Path, content: bytes | memoryview) -> None:
    """Write a file whole or not at all: beside it, down to the disk, then under its name; raises OSError."""
    with replacing(target) as temporary, open(temporary, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Give a name beside a file, under which the block puts what shall have the file's name when it ends well.

    The block brings it down to the disk. Where it fails, the file stays as it was, and what was begun is removed.
    """
    # Not named after the target, whose name may already be as long as a name can be.
    temporary = target.with_name(f".gradlight-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # makes the new name safe too, where the system offers it
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _refuse_special(name: str, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something special")
        raise GradlightError(f"{name}: {kind}, not a regular file. Give the path of one file.")
