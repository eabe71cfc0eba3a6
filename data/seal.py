"""The seal: a SHA-256 of the whole file, behind its end, where the HDF5 library neither reads nor minds it.

HDF5 protects most of its structures and our maps, but not texts, numbers in columns, and the sources of virtual
datasets; damage there can make the library hang or crash. So the seal is looked at before it opens the file: always
that of an index, which is all texts and sources, and that of another file by what reads all its bytes anyway. A file
that another program has written to afterwards has no seal any more: the library cuts it off.
"""

from __future__ import annotations

import hashlib
import io
import os
from typing import BinaryIO

from ..errors import GradlightError
from .files import PathLike, open_regular, shown

__all__ = ["FILE", "INDEX", "refuse_broken_seal", "seal"]

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
                f"{shown(path)}: damaged or truncated: its bytes are not those that were written. Get a whole copy."
            )


def _digest(stream: BinaryIO | io.RawIOBase, size: int) -> bytes:
    sha = hashlib.sha256()
    stream.seek(0)
    while size > 0 and (block := stream.read(min(_BLOCK, size))):
        sha.update(block)
        size -= len(block)
    return sha.digest()
