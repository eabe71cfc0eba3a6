"""A folder of results by their key: bounded, for several processes at once, and never a reason to fail.

An entry is one small HDF5 file, KE/Y….h5 (see `cache_entry`). Beside the entries lie `lock`, and in `bytes` their
size as far as it is known, so that they need not be counted for every one that is added.

One entry of the cache as bytes: a plain HDF5 file that can be read, and trusted, without opening it as one.

Inside, /facts is JSON text (the key, the facts, the name, dtype and shape of every array) and /numbers the bytes of all
arrays, each from a multiple of eight on. Both lie in one piece, and the user block of 512 bytes before the HDF5 says
where, and gives the SHA-256 of the file from there on. So an entry is read by cutting two pieces out of checked bytes:
several times as fast as through the HDF5 library, which never sees a file that somebody has tampered with.
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

_BLOCK = 512
_MAGIC = b"gradlight cache 1 "
_SUMMED = 128  # where the part of the file begins that the checksum is of

KEPT = {name: np.dtype(name) for name in ("float16", "float32", "float64", "int64")}
"""The kinds of numbers that an entry can hold."""

Arrays = Mapping[str, npt.NDArray[Any]]


class Entry(NamedTuple):
    """What is kept under one key: arrays by name, and facts in JSON types."""

    arrays: dict[str, npt.NDArray[Any]]
    facts: dict[str, Any]


def encode(key: str, arrays: Arrays, facts: Mapping[str, Any]) -> memoryview:
    """Give the bytes of the whole file of arrays, of the dtypes in KEPT, and facts, in JSON types."""
    rows = [(name, str(array.dtype), array.shape) for name, array in arrays.items()]
    told = json.dumps({"key": key, "facts": facts, "arrays": rows}).encode()
    numbers = b"".join(array.tobytes() + bytes(-array.nbytes % 8) for array in arrays.values())
    stream, places = io.BytesIO(), []
    with h5py.File(stream, "w", libver=("v110", "v110"), userblock_size=_BLOCK) as file:
        file.attrs["format"] = "gradlight-cache"
        for name, content in (("facts", told), ("numbers", numbers)):
            data = file.create_dataset(name, data=np.frombuffer(content or bytes(8), np.uint8))
            places += [data.id.get_offset(), len(content)]
    whole = stream.getbuffer()
    line = " ".join(map(str, places)).encode() + b"\n"
    whole[_SUMMED : _SUMMED + len(line)] = line
    head = _head(whole)
    whole[: len(head)] = head
    return whole


def decode(key: str, content: bytes) -> Entry:
    """Read the bytes of a file; raises an exception of any kind for what is no sound entry of this key."""
    if not content.startswith(_head(memoryview(content))):
        raise ValueError("its checksum is wrong")
    places = content[_SUMMED:_BLOCK].split(b"\n")[0].split()
    facts_at, facts_size, numbers_at, numbers_size = (int(place) for place in places)
    told = json.loads(content[facts_at : facts_at + facts_size])
    numbers = np.frombuffer(bytearray(memoryview(content)[numbers_at : numbers_at + numbers_size]), np.uint8)
    if told["key"] != key or not isinstance(told["facts"], dict):
        raise ValueError("it belongs to another key")
    arrays, start = {}, 0
    for name, dtype, shape in told["arrays"]:
        if dtype not in KEPT or not all(type(side) is int and side >= 0 for side in shape):
            raise ValueError("its arrays are of an unknown kind")
        size = math.prod(shape) * KEPT[dtype].itemsize
        if start + size > len(numbers):
            raise ValueError("its arrays are longer than its numbers")
        arrays[str(name)] = numbers[start : start + size].view(KEPT[dtype]).reshape(shape)
        start += size + -size % 8
    return Entry(arrays, told["facts"])


def _head(content: memoryview) -> bytes:
    return _MAGIC + hashlib.sha256(content[_SUMMED:]).hexdigest().encode() + b"\n"


MAX_BYTES = 2 << 30

_LARGEST = 256 << 20  # of one entry, which is read as a whole
_FOLDER, _FILE = re.compile(r"[0-9a-f]{2}"), re.compile(r"[0-9a-f]{62}\.h5")
_PATIENCE = 30.0
_ROOM = 0.9  # of max_bytes is left after room had to be made, so that it need not be made for every entry


class CacheInfo(NamedTuple):
    """How full a cache is: `entries` and their `bytes` on disk."""

    folder: Path
    entries: int
    bytes: int
    max_bytes: int


class Cache:
    """Results in a folder, each under a key of 64 hexadecimal digits.

    max_bytes: what the files may take together; those that were not used for longest go first. Many processes may
    share a folder: entries appear whole or not at all, and only one process at a time writes or removes. A damaged
    entry is removed with a GradlightWarning, and a folder that cannot be written is told once and then left alone.
    """

    def __init__(self, folder: PathLike, max_bytes: int = MAX_BYTES) -> None:
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes < 1:
            raise GradlightError(f"max_bytes must be a whole number of bytes, 1 or more, not {max_bytes!r}.")
        self.folder, self.max_bytes = Path(os.fsdecode(folder)).expanduser(), max_bytes
        self._largest = min(self.max_bytes, _LARGEST)
        self._refused: set[str] = set()

    def get(self, key: str) -> Entry | None:
        """Find an entry and mark it as used; None if there is none, or only a damaged one, which is removed."""
        path = self._path(key)
        try:
            with open_regular(path) as stream:
                content = stream.read(self._largest + 1)
            entry = decode(key, content)
        # What lies under a name may be anything, and fail in any way.
        except Exception as error:
            if not isinstance(error.__cause__, (FileNotFoundError, NotADirectoryError)):
                self.drop(key, str(error))
            return None
        with contextlib.suppress(OSError):
            os.utime(path)
        return entry

    def put(self, key: str, arrays: Arrays, facts: Mapping[str, Any]) -> None:
        """Keep arrays, of the dtypes in KEPT, and facts, in JSON types, under a key, if that can be done."""
        content = encode(key, arrays, facts)
        if len(content) > self._largest:
            self._tell_once(f"Results of more than {self._largest} bytes for an image are not kept in the cache.")
            return
        if "write" in self._refused:
            return
        try:
            path = self._path(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._lock():
                self._make_room(len(content))
                replace_file(path, content)
        except (OSError, NotImplementedError) as error:
            self._refused.add("write")
            self._tell_once(f"The cache {format_path(self.folder)} cannot be written ({error}); going on without it.")

    def drop(self, key: str, reason: str) -> None:
        """Remove an entry that cannot be used, with a warning that says why."""
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
        sizes = [found.stat().st_size for found in self._files() if _FILE.fullmatch(found.name)]
        return CacheInfo(self.folder, len(sizes), sum(sizes), self.max_bytes)

    def clear(self) -> CacheInfo:
        """Remove every entry, and nothing else; tell what there was. Raises GradlightError where that is forbidden."""
        before = self.info()
        if not self.folder.is_dir():
            return before
        try:
            with self._lock():
                for found in self._files():
                    _remove(found.path)
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
            raise GradlightError(f"A key of the cache is 64 hexadecimal digits, not {key!r}.")
        return self.folder / key[:2] / f"{key[2:]}.h5"

    def _lock(self) -> FileLock:
        return FileLock(self.folder / "lock", timeout=_PATIENCE)

    def _make_room(self, size: int) -> None:
        """Note that `size` bytes more will be there, after removing what is too much; the lock is held."""
        try:
            total = int(self._total_file.read_text())
        except (OSError, ValueError):
            total = -1
        if total < 0 or total + size > self.max_bytes:
            total = self._trim(self.max_bytes - size)
        # Noted before it is true: a process that dies in between leaves too high a number, which is soon counted again.
        self._total_file.write_text(str(total + size))

    def _trim(self, most: int) -> int:
        """Count the bytes there are and remove the oldest entries if they are more than `most`; the lock is held."""
        found = []
        for file in self._files():
            if not _FILE.fullmatch(file.name):
                _remove(file.path)  # what a process that was killed had begun to write
                continue
            with contextlib.suppress(FileNotFoundError):
                about = file.stat()
                found.append((about.st_mtime_ns, about.st_size, file.path))
        total = sum(size for _, size, _ in found)
        goal = total if total <= most else min(most, int(_ROOM * self.max_bytes))
        for _, size, path in sorted(found):
            if total <= goal:
                break
            _remove(path)
            total -= size
        return total

    def _files(self) -> Iterator[os.DirEntry[str]]:
        """List the entries, and what was to become one; nothing that somebody else keeps in the folder."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for folder in list(os.scandir(self.folder)):
                if _FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False):
                    for file in list(os.scandir(folder)):
                        ours = _FILE.fullmatch(file.name) or file.name.startswith(".gradlight-")
                        if ours and file.is_file(follow_symlinks=False):
                            yield file

    def _tell_once(self, message: str) -> None:
        if message not in self._refused:
            self._refused.add(message)
            warnings.warn(message, GradlightWarning, stacklevel=4)


def open_cache(where: bool | PathLike | Cache) -> Cache:
    """Open the cache of a folder; True: "maps" in gradlight's own folder among the user's caches."""
    if isinstance(where, Cache):
        return where
    if where is True:
        return Cache(user_cache_path("gradlight", appauthor=False) / "maps")
    if not where or not isinstance(where, (str, bytes, os.PathLike)):
        raise GradlightError(f"cache={where!r} is no cache; give True (the user's cache folder) or a folder's path.")
    return Cache(where)


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
