"""A bounded folder of results by key, shared by several processes; it never makes a computation fail.

An entry is one small HDF5 file, KE/Y….h5. Beside the entries are `lock`, and `bytes`, their total size as far as it is
known, so that they need not be counted whenever one is added.

The bytes of an entry are a plain HDF5 file that can be read and trusted without the HDF5 library. /facts is JSON text
(the key, the facts, the name, dtype and shape of every array) and /numbers the bytes of all arrays, each from a
multiple of eight on. Both are contiguous; the user block of 512 bytes before the HDF5 has their offsets, and the
SHA-256 of the file from there on. So an entry is read by slicing two ranges of checked bytes: several times as fast
as through the HDF5 library, which never reads a file that somebody has tampered with.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt
from filelock import FileLock
from platformdirs import user_cache_path

from ..errors import GradlightError, GradlightWarning
from ..files import PathLike, format_path, open_regular, replace_file

__all__ = ["KEPT", "MAX_BYTES", "Arrays", "Cache", "CacheInfo", "Entry", "decode", "encode", "open_cache"]

# --- The bytes of an entry

_USER_BLOCK = 512
_MAGIC = b"gradlight cache 1 "
_CHECKSUM_START = 128  # the checksum is that of the file from here on

KEPT = {name: np.dtype(name) for name in ("float16", "float32", "float64", "int64")}
"""The dtypes that an entry can hold."""

Arrays = Mapping[str, npt.NDArray[Any]]


class Entry(NamedTuple):
    """What is stored under one key: arrays by name, and facts in JSON types."""

    arrays: dict[str, npt.NDArray[Any]]
    facts: dict[str, Any]


def encode(key: str, arrays: Arrays, facts: Mapping[str, Any]) -> memoryview:
    """Encode an entry as the bytes of a file.

    Args:
        key: The entry's key.
        arrays: Arrays by name, of the dtypes in KEPT.
        facts: Facts in JSON types.

    Returns:
        The bytes of the file.

    Example:
        >>> content = bytes(encode("ab12", {"map": np.zeros((2, 3), "float32")}, {"layer": "conv1"}))
        >>> entry = decode("ab12", content)
        >>> entry.arrays["map"].shape, entry.facts
        ((2, 3), {'layer': 'conv1'})
    """
    headers = [(name, str(array.dtype), array.shape) for name, array in arrays.items()]
    header_json = json.dumps({"key": key, "facts": facts, "arrays": headers}).encode()
    numbers = b"".join(array.tobytes() + bytes(-array.nbytes % 8) for array in arrays.values())
    stream, offsets = io.BytesIO(), []
    with h5py.File(stream, "w", libver=("v110", "v110"), userblock_size=_USER_BLOCK) as file:
        file.attrs["format"] = "gradlight-cache"
        for name, data in (("facts", header_json), ("numbers", numbers)):
            dataset = file.create_dataset(name, data=np.frombuffer(data or bytes(8), np.uint8))
            offsets += [dataset.id.get_offset(), len(data)]
    content = stream.getbuffer()
    offset_line = " ".join(map(str, offsets)).encode() + b"\n"
    content[_CHECKSUM_START : _CHECKSUM_START + len(offset_line)] = offset_line
    checksum_line = _checksum_line(content)
    content[: len(checksum_line)] = checksum_line
    return content


def decode(key: str, content: bytes) -> Entry:
    """Decode the bytes of a file.

    Args:
        key: The key that the entry must have.
        content: The bytes.

    Returns:
        The entry.

    Raises:
        Exception: Of any kind, for bytes that are not a sound entry of this key.
    """
    if not content.startswith(_checksum_line(memoryview(content))):
        raise ValueError("its checksum is wrong")
    offsets = content[_CHECKSUM_START:_USER_BLOCK].split(b"\n")[0].split()
    header_start, header_size, numbers_start, numbers_size = (int(offset) for offset in offsets)
    header = json.loads(content[header_start : header_start + header_size])
    numbers = np.frombuffer(bytearray(memoryview(content)[numbers_start : numbers_start + numbers_size]), np.uint8)
    if header["key"] != key or not isinstance(header["facts"], dict):
        raise ValueError("it belongs to another key")
    arrays, start = {}, 0
    for name, dtype, shape in header["arrays"]:
        if dtype not in KEPT or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("its arrays are of an unknown kind")
        size = math.prod(shape) * KEPT[dtype].itemsize
        if start + size > len(numbers):
            raise ValueError("its arrays are longer than its numbers")
        arrays[str(name)] = numbers[start : start + size].view(KEPT[dtype]).reshape(shape)
        start += size + -size % 8
    return Entry(arrays, header["facts"])


def _checksum_line(content: memoryview) -> bytes:
    return _MAGIC + hashlib.sha256(content[_CHECKSUM_START:]).hexdigest().encode() + b"\n"


# --- The folder

MAX_BYTES = 2 << 30

_MAX_ENTRY_BYTES = 256 << 20  # an entry is read at once
_FOLDER_NAME, _FILE_NAME = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{62}\.h5")
_LOCK_SECONDS = 30.0
_TRIM_TO = 0.9  # share of max_bytes left after entries were removed, so that this is not needed for every new entry


class CacheInfo(NamedTuple):
    """How full a cache is: the number of `entries` and their `bytes` on disk."""

    folder: Path
    entries: int
    bytes: int
    max_bytes: int


class Cache:
    """Results in a folder, each under a key of 64 hexadecimal digits.

    Many processes may share a folder: an entry is written in one atomic replacement, and only one process at a time
    writes or removes. A damaged entry is removed with a GradlightWarning, and a folder that cannot be written is
    reported once and then not written again.

    Args:
        folder: The folder, made when the first entry is written.
        max_bytes: The most that the files may take together; the least recently used ones are removed first.

    Raises:
        GradlightError: For a `max_bytes` that is not a whole number, 1 or more.

    Example:
        >>> cache, key = Cache("cache"), 64 * "a"
        >>> cache.put(key, {"map": np.ones(3)}, {"layer": "conv1"})
        >>> cache.get(key).arrays["map"].tolist(), cache.info().entries
        ([1.0, 1.0, 1.0], 1)
    """

    def __init__(self, folder: PathLike, max_bytes: int = MAX_BYTES) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise GradlightError(f"max_bytes must be a whole number of bytes, 1 or more, not {max_bytes!r}.")
        self.folder, self.max_bytes = Path(os.fsdecode(folder)).expanduser(), max_bytes
        self._max_entry_bytes = min(self.max_bytes, _MAX_ENTRY_BYTES)
        self._reported: set[str] = set()
        self._is_writable = True

    def get(self, key: str) -> Entry | None:
        """Return an entry and mark it as used; None if there is none, or only a damaged one, which is removed."""
        path = self._path(key)
        try:
            with open_regular(path) as stream:
                content = stream.read(self._max_entry_bytes + 1)
            entry = decode(key, content)
        # The file may be anything, and fail in any way.
        except Exception as error:
            if not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                self.drop(key, str(error))
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def put(self, key: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Store an entry if possible.

        Args:
            key: The entry's key.
            arrays: Arrays by name, of the dtypes in KEPT.
            facts: Facts in JSON types.
        """
        content = encode(key, arrays, facts)
        if len(content) > self._max_entry_bytes:
            self._warn_once(
                f"Results of more than {self._max_entry_bytes} bytes for an image are not kept in the cache."
            )
            return
        if not self._is_writable:
            return
        try:
            path = self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._make_room(len(content))
                replace_file(path, content)
        except (OSError, NotImplementedError) as error:
            self._is_writable = False
            self._warn_once(f"The cache {format_path(self.folder)} cannot be written ({error}); going on without it.")

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that cannot be used, with a warning that gives the reason."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.unlink()
        warnings.warn(
            f"An entry of the cache is damaged and was removed ({format_path(path)}: {reason}).",
            GradlightWarning,
            stacklevel=3,
        )

    def info(self) -> CacheInfo:
        """Count the entries and their bytes."""
        sizes = [file.stat().st_size for file in self._files() if _FILE_NAME.fullmatch(file.name)]
        return CacheInfo(self.folder, len(sizes), sum(sizes), self.max_bytes)

    def clear(self) -> CacheInfo:
        """Remove every entry, and nothing else.

        Returns:
            How full the cache was before.

        Raises:
            GradlightError: If the folder's permissions forbid it.
        """
        before = self.info()
        if not self.folder.is_dir():
            return before
        try:
            with self._lock():
                for file in self._files():
                    _remove(file.path)
                self._total_file.write_text("0")
        except OSError as error:
            raise GradlightError(
                f"{format_path(self.folder)}: the cache cannot be cleared ({error}). Check the folder's permissions."
            ) from error
        return before

    @property
    def _total_file(self) -> Path:
        return self.folder / "bytes"

    def _path(self, key: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", key):
            raise GradlightError(f"A key of the cache must be 64 hexadecimal digits, not {key!r}.")
        return self.folder / key[:2] / f"{key[2:]}.h5"

    def _lock(self) -> FileLock:
        return FileLock(self.folder / "lock", timeout=_LOCK_SECONDS)

    def _make_room(self, size: int) -> None:
        """Remove what is too much, and record that `size` bytes more will be there; the lock is held."""
        try:
            total = int(self._total_file.read_text())
        except (OSError, ValueError):
            total = -1
        if total < 0 or total + size > self.max_bytes:
            total = self._trim(self.max_bytes - size)
        # Recorded before it is true: a process killed in between leaves too high a number, which causes a new count.
        self._total_file.write_text(str(total + size))

    def _trim(self, limit: int) -> int:
        """Count the bytes there are, and remove the oldest entries if they are above the limit; the lock is held."""
        entries = []
        for file in self._files():
            if not _FILE_NAME.fullmatch(file.name):
                _remove(file.path)  # what a process that was killed had begun to write
                continue
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                entries.append((status.st_mtime_ns, status.st_size, file.path))
        total = sum(size for _, size, _ in entries)
        goal = total if total <= limit else min(limit, int(_TRIM_TO * self.max_bytes))
        for _, size, path in sorted(entries):
            if total <= goal:
                break
            _remove(path)
            total -= size
        return total

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """List the entries and unfinished entries, and none of the other files in the folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for folder in list(os.scandir(self.folder)):
                if _FOLDER_NAME.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
                    for file in list(os.scandir(folder)):
                        is_ours = _FILE_NAME.fullmatch(file.name) or file.name.startswith(".gradlight-")
                        if is_ours and file.is_file(follow_symlinks=False):
                            yield file

    def _warn_once(self, message: str) -> None:
        if message not in self._reported:
            self._reported.add(message)
            warnings.warn(message, GradlightWarning, stacklevel=4)


def open_cache(where: bool | PathLike | Cache) -> Cache:
    """Open the cache of a folder.

    Args:
        where: A folder, a Cache, or True for "maps" in gradlight's own folder among the user's caches.

    Returns:
        The cache.

    Raises:
        GradlightError: For anything else.
    """
    if isinstance(where, Cache):
        return where
    if where is True:
        return Cache(user_cache_path("gradlight", appauthor=False) / "maps")
    if not where or not isinstance(where, (str, bytes, os.PathLike)):
        raise GradlightError(f"cache={where!r} is no cache; pass True (the user's cache folder) or a folder's path.")
    return Cache(where)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
