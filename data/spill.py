"""Writing HDF5 files too large for memory: whole or not at all, and with a plain error where the disk is full."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .files import replacing

__all__ = ["Spill", "spilling"]


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
