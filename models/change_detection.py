"""Notice that tensors were written to without reading them all: marks, sums and samples of their numbers.

Say in words what a Python value is made of: values that act alike get the same text, in every process.
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

__all__ = ["HOOKS", "MODULE_FIELDS", "Describer", "Probe", "hooks_of", "is_plain", "own_names", "raw"]

Array = npt.NDArray[Any]
Read = Callable[[], Array]

_WHOLE = 32 << 20
_SMALL = 32 << 10
_STEP = 256
# A prime: a row of weights put in the place of another then falls on other columns.
_COLUMNS = 1021
_UNITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Probe:
    """What a list of tensors looked like, to compare with later.

    Noticed for certain: another tensor, memory, shape, dtype, and every change that moves a version counter
    (optimizers, everything in place under autograd or no_grad). Writes that move none (through `.data`, through NumPy,
    under inference_mode) are noticed by looking at the numbers. Up to 32 MiB of tensors are looked at whole: each below
    32 KiB by its bytes, the others by 1021 column sums of their 64-bit words, which change with any one number. Of
    more than that, tensors below 32 KiB are looked at whole; of the others the last number, every 256th, the first
    of every row (filter) and that of every input of the first row. So what changes a whole filter, a whole input
    channel or 256 consecutive numbers is noticed for certain, and what changes one number, through `.data`, with a
    probability of 1 in 256.

    The memory of the tensors is held until the probe is gone. Raises TypeError for tensors that are not plain memory
    (sparse, quantised, of a class of their own, on the meta device).
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._marks = _marks(tensors)
        with torch.no_grad():
            self._reads = _reads(tensors)
            self._found = [read().copy() for read in self._reads]

    def same(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these tensors look as they did then."""
        if _marks(tensors) != self._marks:
            return False
        with torch.no_grad():
            pairs = zip(self._reads, self._found, strict=True)
            return all(np.array_equal(read(), found) for read, found in pairs)


def _marks(tensors: Sequence[Tensor]) -> list[tuple[Any, ...]]:
    try:
        return [(t.data_ptr(), t._version, t.shape, t.stride(), t.dtype) for t in tensors]
    except RuntimeError:  # tensors made under inference_mode have no version
        versions = [-1 if t.is_inference() else t._version for t in tensors]
        return [
            (t.data_ptr(), version, t.shape, t.stride(), t.dtype) for t, version in zip(tensors, versions, strict=True)
        ]


def _reads(tensors: Sequence[Tensor]) -> list[Read]:
    """Sort memory by how it is looked at: whole, by sums, by samples."""
    reads: list[Read] = []
    whole: list[Tensor] = []
    folded: list[Tensor] = []
    sampled: list[Tensor] = []
    unique = {(t.data_ptr(), t.shape): t for t in tensors if t.numel()}.values()
    few = sum(t.numel() * t.element_size() for t in unique) <= _WHOLE
    for tensor in unique:
        flat = _flat(tensor)
        if flat is None:
            reads.append(_copying(tensor))
            continue
        if len(flat) <= _SMALL:
            whole.append(flat)
        elif few and flat.storage_offset() % 8 == 0 and flat.data_ptr() % 8 == 0:
            size = len(flat) // (8 * _COLUMNS) * (8 * _COLUMNS)
            folded.append(flat[:size].view(torch.int64).view(-1, _COLUMNS))
            whole.append(flat[size:])
        else:
            numbers = flat.view(_UNITS[min(tensor.element_size(), 8)])
            sampled += [numbers[::_STEP], numbers[-1:], *_edges(tensor)]
    reads += [_joining(group) for group in _alike(whole)]
    reads += [_folding(group) for group in _alike(folded)]
    return reads + [_joining(group) for group in _alike(sampled)]


def _edges(tensor: Tensor) -> list[Tensor]:
    """Give the first number of every filter, and of every input channel of the first filter."""
    if tensor.ndim < 2 or tensor.element_size() not in _UNITS:
        return []
    numbers = tensor.detach().view(_UNITS[tensor.element_size()])
    while numbers.ndim > 2:
        numbers = numbers.select(-1, 0)
    return [numbers[:, 0], numbers[0]]


def _flat(tensor: Tensor) -> Tensor | None:
    """Give the bytes of a tensor as they lie in memory, or None if other numbers lie between them."""
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


def _alike(views: Sequence[Tensor]) -> list[list[Tensor]]:
    """Group views by device and kind of number."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for view in views:
        groups.setdefault((view.device, view.dtype), []).append(view)
    return list(groups.values())


def _copying(tensor: Tensor) -> Read:
    return lambda: tensor.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy()


def _joining(views: Sequence[Tensor]) -> Read:
    if views[0].device.type != "cpu":
        return lambda: torch.cat(list(views)).cpu().numpy()
    # NumPy gathers many strided views twice as fast, and into the same memory every time.
    arrays = [view.numpy() for view in views]
    into = np.empty(sum(map(len, arrays)), arrays[0].dtype)
    return lambda: np.concatenate(arrays, out=into)


def _folding(views: Sequence[Tensor]) -> Read:
    if views[0].device.type != "cpu":
        return lambda: torch.stack([view.sum(0) for view in views]).cpu().numpy()
    arrays = [view.numpy() for view in views]
    into = np.empty((len(arrays), _COLUMNS), np.int64)

    def read() -> Array:
        for array, row in zip(arrays, into, strict=True):
            np.add.reduce(array, axis=0, out=row)
        return into

    return read


_SCALARS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.memory_format, torch.layout}
)
_MOST = 200_000
_classes: WeakKeyDictionary[type, str] = WeakKeyDictionary()
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")

MODULE_FIELDS = frozenset(vars(nn.Module()))
"""What every module has: its parts are told one by one, and its training flag is not told at all."""


def is_plain(value: Any) -> bool:
    """Tell whether a value is numbers and texts all through, so that `==` and `repr` say everything of it."""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is list or kind is tuple or kind is torch.Size:
        return _SCALARS.issuperset(map(type, value)) or all(map(is_plain, value))
    return kind is dict and is_plain([*value]) and is_plain([*value.values()])


def own_names(value: Any) -> list[str]:
    """Name the attributes that a value holds itself, without what it derives from them (`cached_property`)."""
    slots = (name for kind in type(value).__mro__ for name in _as_names(vars(kind).get("__slots__", ())))
    names = {*getattr(value, "__dict__", {}), *(name for name in slots if hasattr(value, name))}
    return sorted(name for name in names if not isinstance(_on_class(type(value), name), functools.cached_property))


def hooks_of(module: nn.Module) -> list[Any]:
    """List the hooks that somebody has put on a module."""
    return [hook for field in HOOKS if vars(module).get(field) for hook in vars(module)[field].values()]


def raw(tensor: Tensor) -> Any:
    """Give the bytes of a tensor's numbers, in the order of its indices."""
    return tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data


class Describer:
    """Describe values one after another; what was met before is named by its number, so that circles end.

    shown: texts for some objects, by their id, instead of what they hold. Told are an object's attributes, a
    function's code with its defaults and closure, a class's code, a tensor's numbers. Not told: what functions find
    in the globals of their files, the code of torch itself, and what only C can see. Raises GradlightError for a value
    that holds too much.
    """

    def __init__(self, shown: Mapping[int, str]) -> None:
        self._shown = shown
        self._met: dict[int, int] = {}
        self._alive: list[Any] = []  # so that no id is given twice
        self._left = _MOST

    def text(self, value: Any) -> str:
        """Describe a value."""
        try:
            return self._text(value)
        except RecursionError as error:
            raise GradlightError(f"{type(value).__name__} holds values nested too deep to be described.") from error

    def module(self, module: nn.Module) -> str:
        """Describe one module without its submodules and without the numbers of its weights."""
        if isinstance(module, torch.jit.ScriptModule):
            raise GradlightError("The code of a TorchScript module cannot be seen.")
        tensors = [
            (name, None if tensor is None else (str(tensor.dtype), tuple(tensor.shape)))
            for group in (module._parameters, module._buffers)
            for name, tensor in group.items()
        ]
        own = {name: getattr(module, name) for name in own_names(module) if name not in MODULE_FIELDS}
        hooks = " ".join(map(self._text, hooks_of(module)))
        return f"{_class(type(module))} {tensors} {list(module._modules)} {self._pairs(own)} {hooks}"

    def _text(self, value: Any) -> str:
        if is_plain(value):
            return repr(value)
        self._left -= 1
        if self._left < 0:
            raise GradlightError(f"There is too much to describe: more than {_MOST} values.")
        if id(value) in self._shown:
            return self._shown[id(value)]
        if id(value) in self._met:
            return f"again {self._met[id(value)]}"
        self._met[id(value)] = len(self._met)
        self._alive.append(value)
        return f"{type(value).__qualname__} {self._inside(value)}"

    def _inside(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(raw(value)).hexdigest()}"
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
        return self._acting(value)

    def _acting(self, value: Any) -> str:
        """Describe what can be called, and any other object by its attributes."""
        if isinstance(value, type):
            return _class(value)
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
            parts = {**value._parameters, **value._buffers, **value._modules}
            return f"{self.module(value)} {self._pairs(parts)}"
        if isinstance(value, (types.ModuleType, logging.Logger, types.BuiltinFunctionType)):
            return f"{getattr(value, '__module__', '')}.{value.__name__ if hasattr(value, '__name__') else ''}"
        return f"{_class(type(value))} {self._pairs({name: getattr(value, name) for name in own_names(value)})}"

    def _pairs(self, pairs: Mapping[Any, Any]) -> str:
        return "{" + ", ".join(f"{self._text(key)}: {self._text(value)}" for key, value in pairs.items()) + "}"

    def _function(self, function: types.FunctionType) -> str:
        name = f"{function.__module__}.{function.__qualname__}"
        if _of_torch(function.__module__):
            return name
        held = [cell.cell_contents for cell in function.__closure__ or () if _filled(cell)]
        parts = (function.__code__, function.__defaults__, function.__kwdefaults__, held)
        return f"{name} {' '.join(map(self._text, parts))}"


def _class(kind: type) -> str:
    """Name a class, with a checksum of its code, its constants, and the classes that it derives from."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind is object or kind.__module__ == "builtins" or _of_torch(kind.__module__):
        return name
    if kind not in _classes:
        _classes[kind] = name  # where its own code speaks of it, as super() does
        describer = Describer({})
        members = [f"{member} {describer.text(value)}" for member, value in _members(kind)]
        told = "\n".join([*map(_class, kind.__bases__), *members])
        _classes[kind] = f"{name} {hashlib.sha256(told.encode(errors='surrogatepass')).hexdigest()}"
    return _classes[kind]


def _members(kind: type) -> Iterator[tuple[str, Any]]:
    """List the functions and the plain constants of a class."""
    for name, value in sorted(vars(kind).items()):
        if isinstance(value, (staticmethod, classmethod)):
            yield name, value.__func__
        elif isinstance(value, property):
            yield name, value.fget
        elif isinstance(value, types.FunctionType) or (not name.startswith("__") and is_plain(value)):
            yield name, value


def _of_torch(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "torch"


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _on_class(kind: type, name: str) -> Any:
    return next((vars(base)[name] for base in kind.__mro__ if name in vars(base)), None)


def _as_names(slots: str | Iterable[str]) -> Iterable[str]:
    return [slots] if isinstance(slots, str) else slots
