"""The weights in files of captioner projects: a state dict, or the modules that a tutorial saves whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ...errors import GradlightError
from ...files import shown
from ..checkpoints import PathLike
from .archives import REBUILDERS, Piece, open_archive
from .inert import PYTHON2, Foreign, Inert, Ordered, known
from .pickles import guarded, opened

__all__ = ["read_modules", "read_weights"]

_MEMBERS = ("encoder", "decoder")
_NESTS = ("state_dict", "model", "model_state_dict")
_MOST_PARTS = 100_000
_LONGEST_NAME = 1000

# What an object that was saved whole may hold of the standard library.
_HARMLESS = {
    "collections": {"Counter", "deque"},
    "builtins": {
        "dict",
        "set",
        "frozenset",
        "list",
        "tuple",
        "int",
        "float",
        "bool",
        "str",
        "bytes",
        "long",
        "unicode",
    },
    "datetime": {"date", "datetime", "timedelta"},
    "functools": {"partial"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"},
}


def read_weights(path: PathLike) -> dict[str, Tensor]:
    """Read a state dict, also one under "state_dict" or "model", in the zip or the old format.

    Raises GradlightError for every other file, one that holds more than tensors and plain data included.
    """
    with opened(path) as (stream, size), guarded(path, "a PyTorch file of weights"):
        archive = open_archive(path, stream, size, _of_weights)
        content = archive.content
        for nest in _NESTS:
            if isinstance(content, dict) and isinstance(content.get(nest), dict):
                content = content[nest]
        found = _pieces(content) if isinstance(content, dict) else {}
        if not found:
            raise GradlightError(
                f"{shown(path)}: holds no state dict. Save one with torch.save(network.state_dict(), path)."
            )
        return archive.tensors(found)


def read_modules(path: PathLike) -> dict[str, dict[str, Tensor]]:
    """Read the state dicts of the members "encoder" and "decoder" of a file, modules saved whole or state dicts.

    No class of theirs is needed and none is imported. Raises GradlightError for every other file.
    """
    with opened(path) as (stream, size), guarded(path, "a PyTorch file of an encoder and a decoder"):
        archive = open_archive(path, stream, size, _of_modules)
        members = archive.content if isinstance(archive.content, dict) else {}
        found = {name: _pieces(members.get(name)) for name in _MEMBERS}
        missing = [name for name, pieces in found.items() if not pieces]
        if missing:
            raise GradlightError(
                f"{shown(path)}: the weights of {' and of '.join(missing)} are not in it, so it is no captioner's."
            )
        both = {f"{name} {key}": piece for name, pieces in found.items() for key, piece in pieces.items()}
        tensors = archive.tensors(both)
        return {name: {key: tensors[f"{name} {key}"] for key in pieces} for name, pieces in found.items()}


def _of_weights(module: str, name: str) -> type[Inert]:
    """Give the stand-in of what a state dict names, and of nothing else."""
    full = f"{PYTHON2.get(module, module)}.{name}"
    return REBUILDERS.get(full) or known(module, name)


def _of_modules(module: str, name: str) -> type[Inert]:
    """Give the stand-in of what a whole module names: any class, but programs of the standard library have no place."""
    try:
        return _of_weights(module, name)
    except Foreign:
        module = PYTHON2.get(module, module)
        root = module.partition(".")[0]
        if (root in sys.stdlib_module_names or root == "commands") and name not in _HARMLESS.get(module, ()):
            raise
        return Ordered if f"{module}.{name}" == "builtins.dict" else Inert


def _pieces(thing: Any) -> dict[str, Piece]:
    """Give the tensors of a state dict, or of a module and all modules in it, by name."""
    if isinstance(thing, dict):
        return {name: piece for name, piece in thing.items() if isinstance(name, str) and isinstance(piece, Piece)}
    found: dict[str, Piece] = {}
    waiting: list[tuple[str, Any]] = [("", thing)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        for group in ("_parameters", "_buffers"):
            found.update((prefix + name, item) for name, item in _items(module, group) if isinstance(item, Piece))
        waiting += [(f"{prefix}{name}.", inner) for name, inner in _items(module, "_modules")]
        seen += 1
        if seen + len(waiting) + len(found) > _MOST_PARTS or len(prefix) > _LONGEST_NAME:
            raise ValueError("modules without end")
    return found


def _items(module: Any, group: str) -> Iterator[tuple[str, Any]]:
    members = module.state.get(group) if isinstance(module, Inert) else None
    for name, value in members.items() if isinstance(members, dict) else ():
        if isinstance(name, str):
            yield name, value
