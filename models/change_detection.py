"""Change detection: whether tensors were written to, and a stable text of what a Python value is made of.

`Probe` notices in-place writes to tensors without reading all their numbers, by version counters, column sums and
samples. `Describer` turns values into text, the same in every process for values that behave alike, for checksums.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from pathlib import PurePath
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..errors import GradlightError

__all__ = [
    "HOOKS",
    "MODULE_FIELDS",
    "Describer",
    "Probe",
    "hooks_of",
    "is_filled",
    "is_plain",
    "own_names",
    "raw_bytes",
]

# --- in-place writes to tensors ---

_Array = npt.NDArray[Any]
_Read = Callable[[], _Array]

_FULLY_READ_BYTES = 32 << 20
_SMALL_BYTES = 32 << 10
_SAMPLE_STEP = 256
# A prime, so that a row of weights put in the place of another falls on other columns.
_COLUMNS = 1021
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Probe:
    """What a list of tensors looked like, to compare with later.

    Noticed with certainty: another tensor, memory, shape or dtype, and every write that increases a version counter
    (optimizers, everything in place under autograd or no_grad). Writes that increase none (through `.data`, through
    NumPy, under inference_mode) are noticed by reading numbers. Up to 32 MiB of tensors are read completely: each below
    32 KiB by its bytes, the others by 1021 column sums of their 64-bit words, which change with any one number. Of
    more than that, tensors below 32 KiB are read completely; of the others the last number, every 256th, the first of
    every row (filter) and that of every input of the first row. So a write to a whole filter, a whole input channel or
    256 consecutive numbers is noticed with certainty, and one to a single number, through `.data`, with a probability
    of 1 in 256.

    The memory of the tensors is kept alive until the probe is gone.

    Args:
        tensors: The tensors.

    Raises:
        TypeError: If a tensor is not plain memory (sparse, quantised, of a class of its own, on the meta device).

    Example:
        >>> import torch
        >>> from gradlight.models.change_detection import Probe
        >>> weight = torch.zeros(4, 4)
        >>> probe = Probe([weight])
        >>> weight.data[2, 3] = 1.0
        >>> probe.same([weight])
        False
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._identities = _identities(tensors)
        with torch.no_grad():
            self._reads = _reads(tensors)
            self._numbers = [read().copy() for read in self._reads]

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether tensors are those of the probe, and unchanged.

        Args:
            tensors: The tensors, in the same order.

        Returns:
            False if a change is noticed.
        """
        if _identities(tensors) != self._identities:
            return False
        with torch.no_grad():
            pairs = zip(self._reads, self._numbers, strict=True)
            return all(np.array_equal(read(), numbers) for read, numbers in pairs)


def _identities(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    """Give what changes with another tensor, or with a write that increases the version counter."""
    try:
        return [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in tensors]
    except RuntimeError:  # tensors made under inference_mode have no version
        versions = [-1 if t.is_inference() else t._version for t in tensors]
        return [
            (t.data_ptr(), version, t.shape, t.stride(), t.dtype) for t, version in zip(tensors, versions, strict=True)
        ]


def _reads(tensors: Sequence[Tensor]) -> list[_Read]:
    """Choose how each tensor is read: completely, by sums, by samples."""
    reads: list[_Read] = []
    complete: list[Tensor] = []
    summed: list[Tensor] = []
    sampled: list[Tensor] = []
    unique = {(t.data_ptr(), t.shape): t for t in tensors if t.numel()}.values()
    few = sum(t.numel() * t.element_size() for t in unique) <= _FULLY_READ_BYTES
    for tensor in unique:
        flat = _flat_bytes(tensor)
        if flat is None:
            reads.append(_read_copy(tensor))
            continue
        if len(flat) <= _SMALL_BYTES:
            complete.append(flat)
        elif few and flat.storage_offset() % 8 == 0 and flat.data_ptr() % 8 == 0:
            size = len(flat) // (8 * _COLUMNS) * (8 * _COLUMNS)
            summed.append(flat[:size].view(torch.int64).view(-1, _COLUMNS))
            complete.append(flat[size:])
        else:
            numbers = flat.view(_INTEGERS[min(tensor.element_size(), 8)])
            sampled += [numbers[::_SAMPLE_STEP], numbers[-1:], *_edges(tensor)]
    reads += [_read_joined(group) for group in _grouped(complete)]
    reads += [_read_sums(group) for group in _grouped(summed)]
    return reads + [_read_joined(group) for group in _grouped(sampled)]


def _edges(tensor: Tensor) -> list[Tensor]:
    """Give the first number of every filter, and of every input channel of the first filter."""
    if tensor.ndim < 2 or tensor.element_size() not in _INTEGERS:
        return []
    numbers = tensor.detach().view(_INTEGERS[tensor.element_size()])
    while numbers.ndim > 2:
        numbers = numbers.select(-1, 0)
    return [numbers[:, 0], numbers[0]]


def _flat_bytes(tensor: Tensor) -> Tensor | None:
    """Give the bytes of a tensor in their order in memory; None if other numbers lie between them."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided or tensor.is_quantized:
        raise TypeError(f"{type(tensor).__name__} is not plain memory")
    if tensor.device.type == "meta" or tensor.is_conj() or tensor.is_neg():
        raise TypeError("there are no numbers in memory")
    step = 1
    for stride, side in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if side > 1 and stride != step:
            return None
        step *= side
    flat = tensor.detach().as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.view(torch.uint8)


def _grouped(views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group views by device and dtype."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for view in views:
        groups.setdefault((view.device, view.dtype), []).append(view)
    return list(groups.values())


def _read_copy(tensor: Tensor) -> _Read:
    return lambda: tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()


def _read_joined(views: Sequence[Tensor]) -> _Read:
    if views[0].device.type != "cpu":
        return lambda: torch.cat(list(views)).cpu().numpy()
    # NumPy gathers many strided views twice as fast, and into the same memory every time.
    arrays = [view.numpy() for view in views]
    buffer = np.empty(sum(map(len, arrays)), arrays[0].dtype)
    return lambda: np.concatenate(arrays, out=buffer)


def _read_sums(views: Sequence[Tensor]) -> _Read:
    if views[0].device.type != "cpu":
        return lambda: torch.stack([view.sum(0) for view in views]).cpu().numpy()
    arrays = [view.numpy() for view in views]
    buffer = np.empty((len(arrays), _COLUMNS), np.int64)

    def read() -> _Array:
        for array, row in zip(arrays, buffer, strict=True):
            np.add.reduce(array, axis=0, out=row)
        return buffer

    return read


# --- a stable text of Python values ---

_SCALARS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.layout}
)
_MAX_VALUES = 200_000
_class_texts: WeakKeyDictionary[type, str] = WeakKeyDictionary()

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
"""The attributes of a module that hold its hooks."""

MODULE_FIELDS = frozenset(vars(nn.Module()))
"""What every module has: parameters, buffers and hooks are described one by one, the training flag not at all."""


class Describer:
    """Describe values one after another; a value met before is named by its number, so that circles end.

    The text holds an object's attributes, a function's code with its defaults and closure, a class's code, a tensor's
    numbers. It does not hold the globals that functions read, the code of torch itself, and what only C can see.

    Args:
        names: Texts for some objects, by their id, instead of their contents.

    Example:
        >>> from gradlight.models.change_detection import Describer
        >>> Describer({}).text([1, {"a": 2.5}])
        "[1, {'a': 2.5}]"
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self._names = names
        self._numbers: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no id is given twice
        self._remaining = _MAX_VALUES

    def text(self, value: Any) -> str:
        """Describe a value.

        Args:
            value: Any value.

        Returns:
            Its text.

        Raises:
            GradlightError: If it holds too many values, too deep nesting, or TorchScript.
        """
        try:
            return self._text(value)
        except RecursionError as error:
            raise GradlightError(f"{type(value).__name__} holds values nested too deep to be described.") from error

    def module(self, module: nn.Module) -> str:
        """Describe one module without its submodules and without the numbers of its weights.

        Args:
            module: The module.

        Returns:
            The text of its class, the shapes of its weights, its attributes and its hooks.

        Raises:
            GradlightError: If it is TorchScript, or holds too many values.
        """
        if isinstance(module, torch.jit.ScriptModule):
            raise GradlightError("The code of a TorchScript module cannot be seen.")
        tensors = [
            (name, None if tensor is None else (str(tensor.dtype), tuple(tensor.shape)))
            for group in (module._parameters, module._buffers)
            for name, tensor in group.items()
        ]
        own = {name: getattr(module, name) for name in own_names(module) if name not in MODULE_FIELDS}
        hooks = " ".join(map(self._text, hooks_of(module)))
        return f"{self._class(type(module))} {tensors} {list(module._modules)} {self._pairs(own)} {hooks}"

    def _text(self, value: Any) -> str:
        if is_plain(value):
            return repr(value)
        self._remaining -= 1
        if self._remaining < 0:
            raise GradlightError(f"There is too much to describe: more than {_MAX_VALUES} values.")
        if id(value) in self._names:
            return self._names[id(value)]
        if id(value) in self._numbers:
            return f"again {self._numbers[id(value)]}"
        self._numbers[id(value)] = len(self._numbers)
        self._alive.append(value)
        return f"{type(value).__qualname__} {self._contents(value)}"

    def _contents(self, value: Any) -> str:
        """Describe data: tensors, arrays, containers; anything else as an object."""
        if isinstance(value, Tensor):
            return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw_bytes(value)).hexdigest()}"
        if isinstance(value, np.ndarray) and value.dtype != object:
            return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}"
        if isinstance(value, (np.generic, PurePath)):
            return repr(value)
        if isinstance(value, Enum):
            return value.name
        if isinstance(value, Mapping):
            return self._pairs(value)
        if isinstance(value, (set, frozenset)):
            return " ".join(sorted(map(self._text, value)))
        if isinstance(value, (list, tuple)):
            return f"[{' '.join(map(self._text, value))}]"
        return self._object(value)

    def _object(self, value: Any) -> str:
        """Describe what can be called, and any other object by its attributes."""
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return f"{self._text(value.__func__)} of {self._text(value.__self__)}"
        if isinstance(value, functools.partial):
            return f"{self._text(value.func)} {self._text(value.args)} {self._pairs(value.keywords)}"
        if isinstance(value, types.CodeType):
            constants = " ".join(map(self._text, value.co_consts))
            return f"{value.co_code.hex()} {value.co_names} ({constants})"
        if isinstance(value, nn.Module):
            contents = {**value._parameters, **value._buffers, **value._modules}
            return f"{self.module(value)} {self._pairs(contents)}"
        if isinstance(value, (types.ModuleType, logging.Logger, types.BuiltinFunctionType)):
            return f"{getattr(value, '__module__', '')}.{value.__name__ if hasattr(value, '__name__') else ''}"
        return f"{self._class(type(value))} {self._pairs({name: getattr(value, name) for name in own_names(value)})}"

    def _class(self, kind: type) -> str:
        return _class_text(kind)

    def _pairs(self, pairs: Mapping[Any, Any]) -> str:
        return "{" + ", ".join(f"{self._text(key)}: {self._text(value)}" for key, value in pairs.items()) + "}"

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        if _is_of_torch(function.__module__):
            return name
        closure = [cell.cell_contents for cell in function.__closure__ or () if is_filled(cell)]
        contents = (function.__code__, function.__defaults__, function.__kwdefaults__, closure)
        return f"{name} {' '.join(map(self._text, contents))}"


def is_plain(value: Any) -> bool:
    """Tell whether a value is numbers and texts throughout, so that `==` and `repr` say everything about it.

    Args:
        value: Any value.

    Returns:
        Whether it is a scalar, or lists, tuples and dicts of such.

    Example:
        >>> from gradlight.models.change_detection import is_plain
        >>> is_plain([1, {"a": 2.5}]), is_plain([print])
        (True, False)
    """
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is list or kind is tuple or kind is torch.Size:
        return _SCALARS.issuperset(map(type, value)) or all(map(is_plain, value))
    return kind is dict and is_plain([*value]) and is_plain([*value.values()])


def own_names(value: Any) -> list[str]:
    """Name the attributes that a value holds itself, without what it derives from them (`cached_property`).

    Args:
        value: Any value.

    Returns:
        The names, sorted.
    """
    slots = (name for kind in type(value).__mro__ for name in _as_names(vars(kind).get("__slots__", ())))
    names = {*getattr(value, "__dict__", {}), *(name for name in slots if hasattr(value, name))}
    derived = {n for n in names if isinstance(_class_attribute(type(value), n), functools.cached_property)}
    return sorted(names - derived)


def hooks_of(module: nn.Module) -> list[Any]:
    """List the hooks that are registered on a module.

    Args:
        module: The module.

    Returns:
        Its forward and backward hooks.
    """
    return [hook for field in HOOKS if vars(module).get(field) for hook in vars(module)[field].values()]


def raw_bytes(tensor: Tensor) -> Any:
    """Give the bytes of a tensor's numbers, in the order of its indices.

    Args:
        tensor: A tensor of any device and strides.

    Returns:
        A buffer, as hashlib takes it.
    """
    # A tensor that is distributed over processes (FSDP2) is gathered first.
    gather = getattr(tensor, "full_tensor", None)
    tensor = tensor if gather is None else gather().clone()
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


def _class_text(kind: type) -> str:
    """Name a class, with a checksum of its code, its constants, and the classes that it derives from."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is object or kind.__module__ == "builtins" or _is_of_torch(kind.__module__):
        return name
    if kind not in _class_texts:
        _class_texts[kind] = name  # for where its own code refers to it, as super() does
        describer = Describer({})
        members = [f"{member} {describer.text(value)}" for member, value in _members(kind)]
        text = "\n".join([*map(_class_text, kind.__bases__), *members])
        _class_texts[kind] = f"{name} {hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()}"
    return _class_texts[kind]


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """List the functions and the plain constants of a class."""
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, (staticmethod, classmethod)):
            yield name, value.__func__
        elif isinstance(value, property):
            yield name, value.fget
        elif isinstance(value, types.FunctionType) or (not name.startswith("__") and is_plain(value)):
            yield name, value


def _is_of_torch(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "torch"


def is_filled(cell: types.CellType) -> bool:
    """Tell whether a cell of a closure has a value."""
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _class_attribute(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _as_names(slots: str | Iterable[str]) -> Iterable[str]:
    return [slots] if isinstance(slots, str) else slots
