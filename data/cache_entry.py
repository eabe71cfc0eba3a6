"""One entry of the cache as bytes: a plain HDF5 file that can be read, and trusted, without opening it as one.

Inside, /facts is JSON text (the key, the facts, the name, dtype and shape of every array) and /numbers the bytes of all
arrays, each from a multiple of eight on. Both lie in one piece, and the user block of 512 bytes before the HDF5 says
where, and gives the SHA-256 of the file from there on. So an entry is read by cutting two pieces out of checked bytes:
several times as fast as through the HDF5 library, which never sees a file that somebody has tampered with.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import h5py
import numpy as np
import numpy.typing as npt

__all__ = ["KEPT", "Arrays", "Entry", "decode", "encode"]

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
