"""Checksums that say whether maps would come out the same: of a network, of an objective, of pixels."""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..data import images as pictures
from .change_detection import MODULE_FIELDS, Describer, Probe, hooks_of, is_plain, own_names, raw
from .class_objective import ClassLabels
from .objective import Objective

__all__ = [
    "Fingerprint",
    "file_sha256",
    "fingerprint",
    "objective_sha256",
    "pixels_sha256",
    "value_sha256",
    "weights_sha256",
]

file_sha256 = pictures.sha256


class Fingerprint(NamedTuple):
    """Two checksums of a network: of its weights and buffers alone, and of all that decides what it answers."""

    weights: str
    everything: str


class _Weights:
    """The checksum of a network's weights, for as long as they look the same."""

    def __init__(self, network: nn.Module, tensors: Sequence[Tensor]) -> None:
        self.probe = Probe(tensors)
        state = [value for value in network.state_dict().values() if isinstance(value, Tensor)]
        places = {tensor.data_ptr() for tensor in tensors}
        if any(value.data_ptr() not in places for value in state):
            raise TypeError("the network's state_dict makes tensors that its modules do not hold")
        self.sha256 = _weights_sha256(network)


class _Structure:
    """The checksum of everything about a network, and what to look at to see that it is still so."""

    def __init__(self, network: nn.Module, modules: Sequence[nn.Module], weights: _Weights | None) -> None:
        names = {id(module): f"module {name!r}" for name, module in network.named_modules()}
        self.weights = weights
        self.weights_sha256 = weights.sha256 if weights else _weights_sha256(network)
        describer = Describer(names)
        told = [f"{name} {describer.module(module)}" for name, module in network.named_modules()]
        digest = hashlib.sha256("\n".join([self.weights_sha256, *told]).encode(errors="surrogatepass"))
        for name, tensor in _outside(network):
            digest.update(f"\n{name}\n".encode())
            digest.update(raw(tensor))
        self.sha256 = digest.hexdigest()
        self.parts = [_ModulePart(module, names) for module in modules]

    def same(self, modules: Sequence[nn.Module]) -> bool:
        return len(modules) == len(self.parts) and all(map(_ModulePart.same, self.parts, modules))


class _ModulePart:
    """What one module was like, apart from its weights: compared where it is plain, else told again."""

    __slots__ = ("count", "forward", "get", "identity", "kind", "names", "others", "plain", "told")

    def __init__(self, module: nn.Module, names: Mapping[int, str]) -> None:
        held = vars(module)
        own = [name for name in own_names(module) if name in held and name not in MODULE_FIELDS]
        plain = [name for name in own if is_plain(held[name])]
        self.names, self.others = names, [name for name in own if name not in plain]
        self.identity, self.kind, self.forward = id(module), type(module), type(module).forward
        self.get: Callable[[Mapping[str, Any]], Any] = operator.itemgetter("training", *plain, "training")
        self.count, self.plain = len(held), deepcopy(self.get(held)[1:-1])
        self.told = self.tell(module)

    def same(self, module: nn.Module) -> bool:
        held = module.__dict__
        try:
            return (
                id(module) == self.identity
                and type(module) is self.kind
                and self.kind.forward is self.forward
                and len(held) == self.count
                and self.get(held)[1:-1] == self.plain
                and self.tell(module) == self.told
            )
        except KeyError:  # another name has come in the place of one that has gone
            return False

    def tell(self, module: nn.Module) -> str:
        held = module.__dict__
        hooks = held["_forward_hooks"] or held["_forward_pre_hooks"]
        if not (self.others or hooks or held["_backward_hooks"] or held["_backward_pre_hooks"]):
            return ""
        return Describer(self.names).text([[held.get(name) for name in self.others], hooks_of(module)])


_lock = threading.Lock()
_weights: WeakKeyDictionary[nn.Module, _Weights] = WeakKeyDictionary()
_structures: WeakKeyDictionary[nn.Module, _Structure] = WeakKeyDictionary()
_labels: WeakKeyDictionary[ClassLabels, tuple[list[str], str]] = WeakKeyDictionary()


def weights_sha256(network: nn.Module) -> str:
    """Hash every parameter and buffer, with its name, shape and dtype, in the order of `state_dict()`.

    The answer is kept until the weights change; see `probing.Probe` for what is noticed of writes that go around
    torch's version counters. Weights that cannot be looked at in that way are hashed every time.
    """
    with _lock:
        known = _known_weights(network, _modules(network))
        return known.sha256 if known else _weights_sha256(network)


def fingerprint(network: nn.Module) -> Fingerprint:
    """Hash a network's weights, and with them all that decides what it answers: classes, attributes, code and hooks.

    Kept in the same way. Not seen: globals that its functions read, and what lies outside Python. Raises
    GradlightError for a network that cannot be described.
    """
    with _lock:
        modules = _modules(network)
        weights = _known_weights(network, modules)
        known = _structures.get(network)
        if known is None or weights is None or known.weights is not weights or not known.same(modules):
            known = _structures[network] = _Structure(network, modules, weights)
        return Fingerprint(known.weights_sha256, known.sha256)


def objective_sha256(objective: Objective) -> str:
    """Hash what an objective asks and how it scores: all that it holds besides the network.

    Labels that were made up (class_0, class_1 …) say nothing, known or not yet.
    """
    shown = {id(objective.network): "network"}
    labels = getattr(objective, "labels", None)
    with _lock:
        if isinstance(labels, ClassLabels):
            shown[id(labels)] = _told_labels(labels)
        return _sha256(Describer(shown).text(objective))


def value_sha256(value: Any) -> str:
    """Hash what a value is made of: its attributes, its code. Raises GradlightError for one that holds too much."""
    with _lock:
        return _sha256(Describer({}).text(value))


def pixels_sha256(pixels: Tensor) -> str:
    """Hash the pixels [3,H,W] of one image, with their shape and dtype."""
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}\n".encode())
    digest.update(raw(pixels))
    return digest.hexdigest()


def _modules(network: nn.Module) -> list[nn.Module]:
    """List every module once, as `modules()` does but in less time."""
    found, seen = [network], {id(network)}
    for module in found:
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                found.append(child)
    return found


def _known_weights(network: nn.Module, modules: Iterable[nn.Module]) -> _Weights | None:
    slots: list[Tensor | None] = []
    for module in modules:
        slots += module._parameters.values()
        slots += module._buffers.values()
    tensors = [tensor for tensor in slots if tensor is not None]
    known = _weights.get(network)
    try:
        if known is None or not known.probe.same(tensors):
            _weights.pop(network, None)
            known = _weights[network] = _Weights(network, tensors)
    except (TypeError, RuntimeError, NotImplementedError):
        return None  # tensors that are not plain memory
    return known


def _weights_sha256(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(raw(tensor))
    return digest.hexdigest()


def _outside(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List the parameters and buffers that `state_dict()` leaves out, as it does buffers that are not persistent."""
    inside = {value.data_ptr() for value in network.state_dict().values() if isinstance(value, Tensor)}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.data_ptr() not in inside:
            yield name, tensor


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _told_labels(labels: ClassLabels) -> str:
    """Describe labels, which may be many thousands, once for as long as they stay the same."""
    names = labels.names
    if names is None:
        return "labels made up"
    known = _labels.get(labels)
    if known is None or known[0] != names:
        made_up = all(name == f"class_{index}" for index, name in enumerate(names))
        known = _labels[labels] = ([*names], f"labels {'made up' if made_up else _sha256(repr(names))}")
    return known[1]
