"""Files on disk: reading regular files safely, replacing files atomically, and sealing them with a SHA-256.

A file is replaced atomically: it is written under a temporary name beside the target, flushed to the disk, and then
renamed. So the target is always either the old file or the complete new one.

The seal is a SHA-256 of the complete file, appended behind its end, where the HDF5 library ignores it. HDF5 protects
most of its structures and the maps by checksums, but not texts, numbers in columns, or the sources of virtual datasets;
damage there can make the library hang or crash. Therefore the seal is checked before the library opens an index,
which consists of texts and sources only, and by functions that read all bytes of a file anyway. Another program that
writes to the file later removes the seal, because the HDF5 library truncates the file at its own end.
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
    "FILE_MARK",
    "INDEX_MARK",
    "FaultTolerantFile",
    "PathLike",
    "check_seal",
    "format_path",
    "open_regular",
    "read_whole",
    "replace_file",
    "replacing",
    "replacing_large",
    "seal",
]

PathLike = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_SPECIAL_FILES = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a named pipe (fifo)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

FILE_MARK, INDEX_MARK = b"gradlight-sha256", b"gradlight-shards"  # the first bytes of the seals
_SEAL_BYTES = len(FILE_MARK) + 32
_BLOCK_BYTES = 2**20


# --- Reading


def format_path(path: PathLike) -> str:
    r"""Format a path for a message: unchanged, or quoted with escapes where it contains unprintable characters.

    Args:
        path: A path as text, bytes or path object.

    Returns:
        The text for the message, always on one line.

    Raises:
        GradlightError: The argument is not a path.

    Example:
        >>> format_path("maps/cat.h5")
        'maps/cat.h5'
        >>> print(format_path("two\nlines.h5"))
        'two\nlines.h5'
    """
    if not isinstance(path, str | bytes | os.PathLike):
        raise GradlightError(f"the path of a file was expected, got {type(path).__name__}: {path!r}")
    text = os.fsdecode(path)
    return text if text and text.isprintable() else repr(text)


def open_regular(path: PathLike) -> BinaryIO:
    """Open a regular file for reading bytes; links to files are followed.

    A pipe, socket or device is never read from and never waited for.

    Args:
        path: The file.

    Returns:
        The open binary file.

    Raises:
        GradlightError: The file is missing, is not readable or is not a regular file. The message names it.

    Example:
        >>> replace_file(Path("a.bin"), b"abc")
        >>> with open_regular("a.bin") as stream:
        ...     stream.read()
        b'abc'
    """
    name = format_path(path)
    try:
        # Checked before opening, because opening a device can already have an effect.
        _check_regular(name, os.stat(path).st_mode)
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except GradlightError:
        raise
    except OSError as error:
        why = error.strerror or str(error)
        raise GradlightError(f"{name}: cannot be opened: {why}. Check the path and its permissions.") from error
    except ValueError as error:
        raise GradlightError(f"{name}: not a valid path: {error}.") from error
    try:
        # Checked again on the open file, because another file may have been put under the name in between.
        _check_regular(name, os.fstat(descriptor).st_mode)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_whole(path: PathLike, max_bytes: int, advice: str) -> bytes:
    """Read a complete regular file of limited size.

    Args:
        path: The file.
        max_bytes: The largest size that is read.
        advice: What to do with a larger file, for the error message.

    Returns:
        The bytes of the file.

    Raises:
        GradlightError: The file is larger or cannot be read. The message names it.

    Example:
        >>> replace_file(Path("a.txt"), b"abc")
        >>> read_whole("a.txt", 1024, "Split it")
        b'abc'
    """
    with open_regular(path) as stream:
        try:
            content = stream.read(max_bytes + 1)
        except OSError as error:
            raise GradlightError(f"{format_path(path)}: cannot be read: {error.strerror}. Check the disk.") from error
    if len(content) > max_bytes:
        limit = f"{max_bytes >> 20} MiB" if max_bytes >= 1 << 20 else f"{max_bytes >> 10} KiB"
        raise GradlightError(f"{format_path(path)}: larger than {limit}. {advice}.")
    return content


def _check_regular(name: str, mode: int) -> None:
    """Raise GradlightError unless the mode is that of a regular file."""
    if not stat.S_ISREG(mode):
        kind = _SPECIAL_FILES.get(stat.S_IFMT(mode), "something special")
        raise GradlightError(f"{name}: {kind}, not a regular file. Give the path of one file.")


# --- Replacing


def replace_file(target: Path, content: bytes | memoryview) -> None:
    """Write a file atomically and flush it to the disk.

    Args:
        target: The file to write or to replace.
        content: Its bytes.

    Raises:
        OSError: The file cannot be written; an older file of that name is unchanged.

    Example:
        >>> replace_file(Path("a.txt"), b"abc")
        >>> Path("a.txt").read_bytes()
        b'abc'
    """
    with replacing(target) as temporary, open(temporary, "xb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


@contextlib.contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """Replace a file by the one that the block writes under a temporary name beside it.

    The block must flush the file to the disk. Where it fails, the target is unchanged and the temporary file removed.

    Args:
        target: The file to write or to replace.

    Yields:
        The temporary path, where no file exists yet.

    Example:
        >>> with replacing(Path("a.txt")) as temporary:
        ...     _ = temporary.write_text("abc")
        >>> Path("a.txt").read_text()
        'abc'
    """
    # Not derived from the target's name, which may already have the largest length that is allowed.
    temporary = target.with_name(f".gradlight-{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    with contextlib.suppress(OSError):  # flushes the new name too, where the system supports it
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class FaultTolerantFile(io.FileIO):
    """A file for the HDF5 library, which crashes the process where a write fails: it reports every write as done.

    After the first failure, all further bytes are kept in memory instead, from where `readinto` returns them; the
    caller should stop soon.

    Attributes:
        failure: The first error, None while there was none.

    Args:
        path: The file, which is created or emptied.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.failure: OSError | None = None
        self._unwritten: list[tuple[int, bytes]] = []  # (offset, bytes) of every write since the failure

    def write(self, data: Any) -> int:
        """Write all bytes, or keep them in memory; returns their number."""
        view = memoryview(data).cast("B")
        start, done = self.tell(), 0
        try:
            while self.failure is None and done < len(view):
                done += super().write(view[done:])
        except OSError as error:
            self.failure = error
        if self.failure:
            self._unwritten.append((start, bytes(view)))
            self.seek(start + len(view))
        return len(view)

    def readinto(self, buffer: Any) -> int:
        """Read bytes from the current offset, as if every write had been successful; returns their number."""
        view = memoryview(buffer).cast("B")
        start = self.tell()
        end = start + super().readinto(view)
        for offset, data in self._unwritten:
            first, last = max(offset, start), min(offset + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - offset : last - offset]
                end = max(end, last)
        self.seek(end)
        return end - start

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file; a failure is recorded."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.failure = self.failure or error
            return size or 0


@contextlib.contextmanager
def replacing_large(target: Path, max_bytes: int) -> Iterator[FaultTolerantFile]:
    """Replace a file, too large for memory, by what the block writes to a stream.

    Args:
        target: The file to write or to replace.
        max_bytes: An upper bound of its size; the disk must have room for so many bytes.

    Yields:
        The stream. It records failures instead of raising them.

    Raises:
        OSError: The disk has no room, found before anything is written or while the block writes.

    Example:
        >>> with replacing_large(Path("a.bin"), max_bytes=100) as stream:
        ...     _ = stream.write(b"abc")
        >>> Path("a.bin").read_bytes()
        b'abc'
    """
    with replacing(target) as temporary:
        _check_space(temporary, max_bytes)
        with FaultTolerantFile(temporary) as stream:
            try:
                yield stream
            except Exception as error:
                # An error of the HDF5 library after a failed write is only a consequence of it.
                if stream.failure:
                    raise stream.failure from error
                raise
            if stream.failure:
                raise stream.failure
            os.fsync(stream.fileno())


def _check_space(temporary: Path, size: int) -> None:
    """Raise OSError where so many bytes cannot be allocated; limits and quotas may forbid what the disk could hold."""
    allocate = getattr(os, "posix_fallocate", None)
    with open(temporary, "xb") as stream:
        try:
            if allocate is None:
                raise OSError(errno.EOPNOTSUPP, "not on this system")
            allocate(stream.fileno(), 0, size)
        except OSError as error:
            unsupported = error.errno in (errno.EOPNOTSUPP, errno.EINVAL)
            if not unsupported or shutil.disk_usage(temporary.parent).free < size:
                number = errno.ENOSPC if unsupported else error.errno or errno.ENOSPC
                raise OSError(number, f"{os.strerror(number)}: up to {size:,} bytes are needed") from error
    temporary.unlink()


# --- Sealing


def seal(stream: BinaryIO | io.RawIOBase, mark: bytes = FILE_MARK) -> None:
    """Append the seal to a stream that holds a complete file.

    Args:
        stream: A binary stream that can be read, written and sought.
        mark: FILE_MARK, or INDEX_MARK for an index over shards.

    Example:
        >>> content = io.BytesIO(b"abc")
        >>> seal(content)
        >>> content.getvalue()[:19]
        b'abcgradlight-sha256'
    """
    digest = _digest(stream, stream.seek(0, os.SEEK_END))
    stream.seek(0, os.SEEK_END)
    stream.write(mark + digest)


def check_seal(path: PathLike, marks: tuple[bytes, ...] = (FILE_MARK, INDEX_MARK)) -> None:
    """Check that a sealed file is unchanged since it was sealed; a file without a seal passes.

    Args:
        path: The file.
        marks: The kinds of seal that are checked.

    Raises:
        GradlightError: The bytes of the file do not match its seal.

    Example:
        >>> content = io.BytesIO(b"abc")
        >>> seal(content)
        >>> replace_file(Path("a.bin"), content.getvalue().replace(b"abc", b"abX"))
        >>> check_seal("a.bin")
        Traceback (most recent call last):
        gradlight.errors.GradlightError: a.bin: damaged or truncated: ...
    """
    with open_regular(path) as stream:
        end = stream.seek(0, os.SEEK_END) - _SEAL_BYTES
        if end < 0:
            return
        stream.seek(end)
        stored_seal = stream.read(_SEAL_BYTES)
        if stored_seal.startswith(marks) and not stored_seal.endswith(_digest(stream, end)):
            raise GradlightError(
                f"{format_path(path)}: damaged or truncated: its bytes are not those that were written. Get a whole"
                " copy."
            )


def _digest(stream: BinaryIO | io.RawIOBase, size: int) -> bytes:
    """Compute the SHA-256 of the first bytes of a stream."""
    sha = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK_BYTES, size))):
        sha.update(block)
        size -= len(block)
    return sha.digest()
