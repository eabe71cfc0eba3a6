"""What the code of a network reads from outside of it: globals, helper functions, closures, members of its classes.

Code of libraries is known by their version; the user's own code by all that it reads.
"""

from __future__ import annotations

import dis
import functools
import sys
import sysconfig
import types
from typing import Any, NamedTuple

from .change_detection import is_filled

__all__ = ["NamesRead", "at_hand", "functions_of", "library_of", "members_of", "module_of", "names_read"]

_LIBRARIES = frozenset({"builtins", "gradlight", "torch", "torchvision", "timm", "transformers"})
_STDLIB = sysconfig.get_path("stdlib")


class NamesRead(NamedTuple):
    """The names in a function's code: globals that it reads, all others, and modules that it imports."""

    read: list[str]
    others: list[str]
    imports: list[str]


@functools.lru_cache(4096)
def names_read(code: types.CodeType) -> NamesRead:
    """Find the names in a function's code, and in the functions inside it."""
    steps = [step for step in dis.get_instructions(code) if isinstance(step.argval, str)]
    inner = [names_read(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    read = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    imports = {step.argval for step in steps if step.opname == "IMPORT_NAME"}
    return NamesRead(
        sorted(read.union(*(each.read for each in inner))),
        sorted({*code.co_names}.union(*(each.others for each in inner))),
        sorted(imports.union(*(each.imports for each in inner))),
    )


def at_hand(function: types.FunctionType) -> list[Any]:
    """List what a function has at hand when it runs: its code and defaults, its closure, and the globals it reads."""
    space, cells = function.__globals__, function.__closure__ or ()
    closure = [cell.cell_contents for cell in cells if is_filled(cell)]
    own = [function.__code__, function.__defaults__, function.__kwdefaults__]
    return [*own, *closure, *map(space.get, names_read(function.__code__).read)]


@functools.lru_cache(4096)
def library_of(module: str) -> str:
    """Return the name and version of the library that a module belongs to; "" for the user's own modules."""
    top = module.partition(".")[0]
    found = sys.modules.get(top)
    file = getattr(found, "__file__", None) or ""
    is_standard = top in sys.stdlib_module_names and (not file or file.startswith(_STDLIB))
    is_installed = "site-packages" in file or "dist-packages" in file
    if top == "__main__" or not (top in _LIBRARIES or is_standard or is_installed):
        return ""
    return f"{top} {getattr(found, '__version__', '')}"


def module_of(function: types.FunctionType) -> str:
    """Return the name of the module whose globals a function reads."""
    return str(function.__globals__.get("__name__", ""))


def functions_of(kind: type) -> dict[str, types.FunctionType]:
    """List the functions that a class has itself."""
    return {name: value for name, value in vars(kind).items() if type(value) is types.FunctionType}


def members_of(kind: type) -> dict[str, Any]:
    """List the functions of a class, and all other attributes that are not Python's own."""
    bare = {name: getattr(value, "__func__", value) for name, value in vars(kind).items()}
    bare = {name: value.fget if isinstance(value, property) else value for name, value in bare.items()}
    slots = (types.GetSetDescriptorType, types.MemberDescriptorType)
    return {
        name: value
        for name, value in bare.items()
        if isinstance(value, types.FunctionType)
        or not (name.startswith("__") or name == "_abc_impl" or isinstance(value, slots))
    }
