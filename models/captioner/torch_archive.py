"""PyTorch's two file formats, zip and legacy, read without PyTorch's loader: the pickle first, storages on demand.

PyTorch's own loader imports the classes of modules that were saved whole, and trusts the sizes that a file claims.
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
from .safe_pickle import InertStandIn, PickleReader, RestrictedUnpickler, is_size

__all__ = ["REBUILDERS", "Archive", "TensorReference", "open_archive"]

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_MAX_AXES = 8


# --- The stand-ins of what a pickle names for tensors


class _StorageClass(InertStandIn):
    """Stands for the class of a storage."""

    dtype = torch.uint8


class _StorageReference(InertStandIn):
    """A view of a storage, from its element `first` on."""

    key: str | int
    dtype: torch.dtype
    first: int


class TensorReference(InertStandIn):
    """A tensor whose storage has not been read yet."""

    arguments: tuple[Any, ...]

    def __new__(cls, *args: Any) -> Any:
        """Keep the storage, offset, sizes and strides; the further arguments of a rebuild function are not needed."""
        made = super().__new__(cls)
        made.arguments = args[:4]
        return made

    def layout(self) -> tuple[_StorageReference, int, tuple[int, ...], tuple[int, ...]]:
        """Return the storage, offset, sizes and strides; raises ValueError if they are invalid."""
        storage, first, sizes, strides = self.arguments
        are_sizes = all(isinstance(axes, tuple) and all(map(is_size, axes)) for axes in (sizes, strides))
        if not (
            isinstance(storage, _StorageReference)
            and is_size(first)
            and are_sizes
            and len(sizes) == len(strides) <= _MAX_AXES
        ):
            raise ValueError("a tensor is described wrongly")
        return storage, storage.first + first, sizes, strides


class _InertParameter(InertStandIn):
    """Stands for a parameter: the tensor in it."""

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
    "torch._utils._rebuild_parameter": _InertParameter,
    "torch._utils._rebuild_parameter_with_state": _InertParameter,
    "torch.nn.parameter.Parameter": _InertParameter,
    **{
        f"{module}.{name}Storage": type(name, (_StorageClass,), {"dtype": dtype})
        for name, dtype in _DTYPES.items()
        for module in ("torch", "torch.cuda")
    },
}
"""The stand-ins of what a pickle names for tensors, by full name."""


# --- The two formats


def open_archive(
    path: PathLike, stream: BinaryIO, size: int, find: Callable[[str, str], type[InertStandIn]]
) -> Archive:
    """Open a PyTorch file.

    Args:
        path: the file's name, for errors.
        stream: the open file.
        size: of the file, in bytes.
        find: returns the stand-in of a module and a name.

    Returns:
        The archive, with its unpickled content.

    Raises:
        GradlightError: for TorchScript; any other exception for a damaged file (`safe_pickle.reading_as`).
    """
    is_zip = stream.read(4) == b"PK\x03\x04"
    stream.seek(0)
    return _ZipArchive(path, stream, size, find) if is_zip else _LegacyArchive(stream, size, find)


class Archive:
    """The content of a PyTorch file; each format sets `content` and reads the bytes of storages."""

    content: Any

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self.stream, self.size = stream, size
        self.dtypes: dict[str | int, torch.dtype] = {}
        self._storages: dict[tuple[str | int, torch.dtype], Tensor] = {}

    def storage_bytes(self, key: str | int) -> bytearray:
        """Read the bytes of a storage."""
        raise NotImplementedError

    def load_persistent(self, pid: Any) -> Any:
        """Return the stand-in of a storage, or of a class whose source is beside it in the legacy format."""
        if pid[0] == "module":
            return pid[1]
        _, kind, key, _, _, *view = pid
        first = view[0][1] if view and view[0] is not None else 0
        is_storage = pid[0] == "storage" and issubclass(kind, _StorageClass)
        if not (is_storage and isinstance(key, str | int) and is_size(first)):
            raise ValueError("a storage is described wrongly")
        reference: _StorageReference = _StorageReference()
        reference.key, reference.dtype, reference.first = key, self.dtypes.setdefault(key, kind.dtype), first
        return reference

    def tensors(self, references: Mapping[str, TensorReference]) -> dict[str, Tensor]:
        """Read tensors; raises ValueError if they would be larger than twice the file."""
        total = 0
        for reference in references.values():
            storage, _, sizes, _ = reference.layout()
            total += math.prod(sizes) * storage.dtype.itemsize
        if total > 2 * self.size:
            raise ValueError("its tensors are larger than the file")
        return {name: self._tensor(reference) for name, reference in references.items()}

    def _tensor(self, reference: TensorReference) -> Tensor:
        source, first, sizes, strides = reference.layout()
        storage = self._storages.get((source.key, source.dtype))
        if storage is None:
            data = self.storage_bytes(source.key)
            storage = (
                torch.frombuffer(data, dtype=source.dtype) if data else torch.empty(0, dtype=source.dtype, device="cpu")
            )
            self._storages[source.key, source.dtype] = storage
        last = first + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if math.prod(sizes) and last >= len(storage):
            raise ValueError("a tensor lies outside of its storage")
        return storage.as_strided(sizes, strides, first) if math.prod(sizes) else storage.new_empty(sizes)

    def _read_at(self, start: int, count: int) -> bytearray:
        if start + count > self.size:
            raise EOFError("the end is missing")
        self.stream.seek(start)
        return bytearray(self.stream.read(count))


class _ZipArchive(Archive):
    """The format since PyTorch 1.6: a zip file with one record for the pickle and one per storage."""

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
        # PyTorch stores its records uncompressed, one behind the other; a compressed one could be a zip bomb.
        infos = self._records.values()
        compressed = any(
            info.compress_type or info.flag_bits & 1 or info.file_size != info.compress_size for info in infos
        )
        if compressed or sum(info.file_size for info in infos) > size:
            raise ValueError("its records are compressed, or larger than the file")
        if "byteorder" in self._records and self._record("byteorder") != b"little":
            raise ValueError("its numbers are big-endian")
        pickled = bytes(self._record("data.pkl"))
        reader = PickleReader(io.BytesIO(pickled), len(pickled))
        self.content = RestrictedUnpickler(reader, find, self.load_persistent).load()

    def storage_bytes(self, key: str | int) -> bytearray:
        return self._record(f"data/{key}")

    def _record(self, name: str) -> bytearray:
        info = self._records.get(name)
        if info is None:
            raise EOFError(f"the record {name[:20]} is missing")
        lengths = struct.unpack("<HH", self._read_at(info.header_offset + 26, 4))
        data = self._read_at(info.header_offset + 30 + sum(lengths), info.file_size)
        # PyTorch can leave the checksums out, and they are 0 then.
        if info.CRC not in (0, zlib.crc32(data)):
            raise ValueError(f"the record {name[:20]} is damaged")
        return data


class _LegacyArchive(Archive):
    """The format before PyTorch 1.6: pickles in a row, then the storages."""

    def __init__(self, stream: BinaryIO, size: int, find: Callable[[str, str], type[InertStandIn]]) -> None:
        super().__init__(stream, size)
        reader = PickleReader(stream, size)
        for expected in (_LEGACY_MAGIC, _LEGACY_PROTOCOL):
            number = RestrictedUnpickler(reader, find).load()
            if not isinstance(number, int) or number != expected:
                raise ValueError("it does not begin as one")
        system = RestrictedUnpickler(reader, find).load()
        if not system["little_endian"]:
            raise ValueError("its numbers are big-endian")
        self.content = RestrictedUnpickler(reader, find, self.load_persistent).load()
        self._extents: dict[str | int, tuple[int, int]] = {}
        keys = RestrictedUnpickler(reader, find).load()
        position = stream.tell()
        for key in keys:
            (count,) = struct.unpack("<q", self._read_at(position, 8))
            length = count * self.dtypes[key].itemsize
            if not 0 <= length <= size - position - 8:
                raise EOFError("the end is missing")
            self._extents[key] = (position + 8, length)
            position += 8 + length

    def storage_bytes(self, key: str | int) -> bytearray:
        return self._read_at(*self._extents[key])
