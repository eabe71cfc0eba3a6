"""PyTorch's two file formats, zip and old: what was pickled, and the storages, read when a tensor asks for them.

PyTorch's own loader imports the classes of whole modules, and believes the sizes that a file claims.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ...errors import GradlightError
from ...files import format_path
from ..checkpoints import PathLike
from .safe_pickle import InertStandIn, PickleReader, RestrictedUnpickler, whole

__all__ = ["REBUILDERS", "Archive", "TensorReference", "open_archive"]

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_MOST_AXES = 8


class _Kind(InertStandIn):
    """Stands for the class of a storage."""

    dtype = torch.uint8


class _StorageReference(InertStandIn):
    """A part of a storage: it begins `first` elements behind the storage's start."""

    key: str | int
    dtype: torch.dtype
    first: int


class TensorReference(InertStandIn):
    """A tensor whose storage was not read yet."""

    parts: tuple[Any, ...]

    def __new__(cls, *args: Any) -> Any:
        """Take what rebuilds a tensor: its part of a storage, offset, sizes and strides; what follows says nothing."""
        made = super().__new__(cls)
        made.parts = args[:4]
        return made

    def checked(self) -> tuple[_StorageReference, int, tuple[int, ...], tuple[int, ...]]:
        """Give the parts; raises ValueError for those that cannot be."""
        stored, first, sizes, strides = self.parts
        numbers = all(isinstance(axes, tuple) and all(map(whole, axes)) for axes in (sizes, strides))
        if not (
            isinstance(stored, _StorageReference)
            and whole(first)
            and numbers
            and len(sizes) == len(strides) <= _MOST_AXES
        ):
            raise ValueError("a tensor is described wrongly")
        return stored, stored.first + first, sizes, strides


class _Parameter(InertStandIn):
    def __new__(cls, data: Any = None, *_: Any) -> Any:
        return data if isinstance(data, TensorReference) else super().__new__(cls)


_DTYPES = {
    "Float": torch.float32,
    "Double": torch.float64,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}

REBUILDERS: Mapping[str, type[InertStandIn]] = {
    "torch._utils._rebuild_tensor": TensorReference,
    "torch._utils._rebuild_tensor_v2": TensorReference,
    "torch._utils._rebuild_parameter": _Parameter,
    "torch._utils._rebuild_parameter_with_state": _Parameter,
    "torch.nn.parameter.Parameter": _Parameter,
    **{
        f"{module}.{name}Storage": type(name, (_Kind,), {"dtype": dtype})
        for name, dtype in _DTYPES.items()
        for module in ("torch", "torch.cuda")
    },
}
"""The stand-ins of what a pickle names for tensors."""


def open_archive(
    path: PathLike, stream: BinaryIO, size: int, find: Callable[[str, str], type[InertStandIn]]
) -> Archive:
    """Open a PyTorch file; find gives the stand-ins. Raises GradlightError for TorchScript, anything for damage."""
    zipped = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    return _Zipped(path, stream, size, find) if zipped else _Old(stream, size, find)


class Archive:
    """What a file holds; a format sets the content and reads the bytes of its storages."""

    content: Any

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.dtypes: dict[str | int, torch.dtype] = {}
        self._storages: dict[tuple[str | int, torch.dtype], Tensor] = {}

    def raw(self, key: str | int) -> bytearray:
        """Read a storage."""
        raise NotImplementedError

    def persistent(self, pid: Any) -> Any:
        """Give what stands for a storage, and for a class whose source is beside it in the old format."""
        if pid[0] == "module":
            return pid[1]
        _, kind, key, _, _, *view = pid
        first = view[0][1] if view and view[0] is not None else 0
        if not (pid[0] == "storage" and issubclass(kind, _Kind) and isinstance(key, str | int) and whole(first)):
            raise ValueError("a storage is described wrongly")
        stored: _StorageReference = _StorageReference()
        stored.key, stored.dtype, stored.first = key, self.dtypes.setdefault(key, kind.dtype), first
        return stored

    def tensors(self, pieces: Mapping[str, TensorReference]) -> dict[str, Tensor]:
        """Read tensors; raises ValueError where they would be larger than twice the file."""
        total = 0
        for piece in pieces.values():
            stored, _, sizes, _ = piece.checked()
            total += math.prod(sizes) * stored.dtype.itemsize
        if total > 2 * self.size:
            raise ValueError("its tensors are larger than the file")
        return {name: self._tensor(piece) for name, piece in pieces.items()}

    def _tensor(self, piece: TensorReference) -> Tensor:
        stored, first, sizes, strides = piece.checked()
        storage = self._storages.get((stored.key, stored.dtype))
        if storage is None:
            data = self.raw(stored.key)
            storage = torch.frombuffer(data, dtype=stored.dtype) if data else torch.empty(0, dtype=stored.dtype)
            self._storages[stored.key, stored.dtype] = storage
        last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if math.prod(sizes) and last >= len(storage):
            raise ValueError("a tensor lies outside of its storage")
        return storage.as_strided(sizes, strides, first) if math.prod(sizes) else storage.new_empty(sizes)

    def _bytes(self, start: int, count: int) -> bytearray:
        if start + count > self.size:
            raise EOFError("the end is missing")
        self.stream.seek(start)
        return bytearray(self.stream.read(count))


class _Zipped(Archive):
    def __init__(
        self, path: PathLike, stream: BinaryIO, size: int, find: Callable[[str, str], type[InertStandIn]]
    ) -> None:
        super().__init__(stream, size)
        with zipfile.ZipFile(stream) as listing:
            self._records = {info.filename.partition("/")[2]: info for info in listing.infolist()}
        if "constants.pkl" in self._records or any(name.startswith("code/") for name in self._records):
            raise GradlightError(
                f"{format_path(path)}: a TorchScript program, not weights, and it was not run. Save the weights with"
                " torch.save(network.state_dict(), path)."
            )
        # PyTorch stores its records as they are, one behind the other; one that is packed could be a bomb.
        infos = self._records.values()
        packed = any(info.compress_type or info.flag_bits & 1 or info.file_size != info.compress_size for info in infos)
        if packed or sum(info.file_size for info in infos) > size:
            raise ValueError("its records are compressed, or larger than the file")
        if "byteorder" in self._records and self._record("byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        pickled = bytes(self._record("data.pkl"))
        self.content = RestrictedUnpickler(
            PickleReader(io.BytesIO(pickled), len(pickled)), find, self.persistent
        ).load()

    def raw(self, key: str | int) -> bytearray:
        return self._record(f"data/{key}")

    def _record(self, name: str) -> bytearray:
        info = self._records.get(name)
        if info is None:
            raise EOFError(f"the record {name[:20]} is missing")
        lengths = struct.unpack("<HH", self._bytes(info.header_offset + 26, 4))
        data = self._bytes(info.header_offset + 30 + sum(lengths), info.file_size)
        # PyTorch can be told to leave the checksums out, and they are 0 then.
        if info.CRC not in (0, zlib.crc32(data)):
            raise ValueError(f"the record {name[:20]} is damaged")
        return data


class _Old(Archive):
    def __init__(self, stream: BinaryIO, size: int, find: Callable[[str, str], type[InertStandIn]]) -> None:
        super().__init__(stream, size)
        reader = PickleReader(stream, size)
        for expected in (_MAGIC, _PROTOCOL):
            number = RestrictedUnpickler(reader, find).load()
            if not isinstance(number, int) or number != expected:
                raise ValueError("it does not begin as one")
        system = RestrictedUnpickler(reader, find).load()
        if not system["little_endian"]:
            raise ValueError("its numbers are big-endian")
        self.content = RestrictedUnpickler(reader, find, self.persistent).load()
        self._places: dict[str | int, tuple[int, int]] = {}
        keys = RestrictedUnpickler(reader, find).load()
        position = stream.tell()
        for key in keys:
            (count,) = struct.unpack("<q", self._bytes(position, 8))
            length = count * self.dtypes[key].itemsize
            if not 0 <= length <= size - position - 8:
                raise EOFError("the end is missing")
            self._places[key] = (position + 8, length)
            position += 8 + length

    def raw(self, key: str | int) -> bytearray:
        return self._bytes(*self._places[key])
