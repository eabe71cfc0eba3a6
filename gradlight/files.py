"""Files on disk: ordinary ones opened without hanging, with plain errors, and replaced whole or not at all.

The seal: a SHA-256 of the whole file, behind its end, where the HDF5 library neither reads nor minds it.

HDF5 protects most of its structures and our maps, but not texts, numbers in columns, and the sources of virtual
datasets; damage there can make the library hang or crash. So the seal is looked at before it opens the file: always
that of an index, which is all texts and sources, and that of another file by what reads all its bytes anyway. A file
that another program has written to afterwards has no seal any more: the library cuts it off.

Writing HDF5 files too large for memory: whole or not at all, and with a plain error where the disk is full.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import GradlightError

__all__ = [
    "FILE",
    "INDEX",
    "PathLike",
    "Spill",
    "format_path",
    "open_regular",
    "read_whole",
    "refuse_broken_seal",
    "replace_file",
    "replacing",
    "seal",
    "spilling",
]

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe (fifo)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def format_path(path: PathLike) -> str:
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
    name = format_path(path)
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
            raise GradlightError(f"{format_path(path)}: cannot be read: {error.strerror}. Check the disk.") from error
    if len(content) > most:
        limit = f"{most >> 20} MiB" if most >= 1 << 20 else f"{most >> 10} KiB"
        raise GradlightError(f"{format_path(path)}: larger than {limit}. {advice}.")
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


FILE, INDEX = b"gradlight-sha256", b"gradlight-shards"  # how the seals begin
_SIZE = len(FILE) + 32
_BLOCK = 2**20


def seal(stream: BinaryIO | io.RawIOBase, mark: bytes = FILE) -> None:
    """Append the seal to a stream that holds a whole file."""
    digest = _digest(stream, stream.seek(0, os.SEEK_END))
    stream.seek(0, os.SEEK_END)
    stream.write(mark + digest)


def refuse_broken_seal(path: PathLike, marks: tuple[bytes, ...] = (FILE, INDEX)) -> None:
    """Raise GradlightError where a file has a seal of these and is not as it was when it was sealed."""
    with open_regular(path) as stream:
        end = stream.seek(0, os.SEEK_END) - _SIZE
        if end < 0:
            return
        stream.seek(end)
        found = stream.read(_SIZE)
        if found.startswith(marks) and not found.endswith(_digest(stream, end)):
            raise GradlightError(
                f"{format_path(path)}: damaged or truncated: its bytes are not those that were written. Get a whole copy."
            )


def _digest(stream: BinaryIO | io.RawIOBase, size: int) -> bytes:
    sha = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        sha.update(block)
        size -= len(block)
    return sha.digest()


class Spill(io.FileIO):
    """A file for the HDF5 library, which crashes the process where it cannot write: it is never told.

    After the first failure, which `failure` keeps, nothing more is written but to memory: stop soon.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None
        self._kept: list[tuple[int, bytes]] = []  # what should have been written, for the library to read again

    def write(self, data: Any) -> int:
        """Take all the bytes."""
        view = memoryview(data).cast("B")
        start, done = self.tell(), 0
        try:
            while self.failure is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.failure = error
        if self.failure:
            self._kept.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Give the bytes at this place as they should be."""
        view = memoryview(buffer).cast("B")
        start = self.tell()
        end = start + super().readinto(view)
        for place, data in self._kept:
            first, last = max(place, start), min(place + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - place : last - place]
                end = max(end, last)
        self.seek(end)
        return end - start

    def truncate(self, size: int | None = None) -> int:
        """Set the length."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


@contextlib.contextmanager
def spilling(target: Path, most: int) -> Iterator[Spill]:
    """Give a stream whose file, of at most so many bytes, gets the target's name when the block ends well.

    Raises OSError where the disk has no room for it, before anything is written and also later.
    """
    with replacing(target) as temporary:
        _reserve(temporary, most)
        with Spill(temporary) as stream:
            try:
                yield stream
            except Exception as error:
                # What HDF5 met after a failed write is not the reason.
                if stream.failure:
                    raise stream.failure from error
                raise
            if stream.failure:
                raise stream.failure
            os.fsync(stream.fileno())


def _reserve(temporary: Path, size: int) -> None:
    """Try whether so many bytes fit, which limits and quotas may forbid although the disk has them."""
    allocate = getattr(os, "posix_fallocate", None)
    with open(temporary, "xb") as stream:
        try:
            if allocate is None:
                raise OSError(errno.EOPNOTSUPP, "not on this system")
            allocate(stream.fileno(), 0, size)
        except OSError as error:
            unknown = error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
            if not unknown or shutil.disk_usage(temporary.parent).free < size:
                number = errno.ENOSPC if unknown else error.errno or errno.ENOSPC
                raise OSError(number, f"{os.strerror(number)}: up to {size:,} bytes are needed") from error
    temporary.unlink()
