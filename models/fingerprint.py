"""Checksums that tell whether maps would come out the same: of a network, of an objective, of pixels."""

from __future__ import annotations

import hashlib
import operator
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..data import images as pictures
from .change_detection import MODULE_FIELDS, Describer, Probe, hooks_of, is_plain, own_names, raw_bytes
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
    """Two checksums of a network.

    Args:
        weights: Of its weights and buffers alone.
        everything: Of all that decides what it computes.
    """

    weights: str
    everything: str


def weights_sha256(network: nn.Module) -> str:
    """Hash every parameter and buffer, with its name, shape and dtype, in the order of `state_dict()`.

    The checksum is kept until the weights change; `change_detection.Probe` says which writes around torch's version
    counters are noticed. Weights that cannot be probed in that way are hashed every time.

    Args:
        network: The network.

    Returns:
        The SHA-256 as 64 hexadecimal digits.

    Example:
        >>> from torch import nn
        >>> from gradlight.models.fingerprint import weights_sha256
        >>> linear = nn.Linear(2, 2)
        >>> before = weights_sha256(linear)
        >>> nn.init.zeros_(linear.weight).sum().item(), weights_sha256(linear) == before
        (0.0, False)
    """
    with _lock:
        state = _weight_state(network, _modules(network))
        return state.sha256 if state else _hash_weights(network)


def fingerprint(network: nn.Module) -> Fingerprint:
    """Hash a network's weights, and with them all that decides what it computes: classes, attributes, code and hooks.

    The checksums are kept as for `weights_sha256`. Not included are the globals that its functions read, and what lies
    outside Python.

    Args:
        network: The network.

    Returns:
        The checksums of the weights and of everything.

    Raises:
        GradlightError: If the network cannot be described.
    """
    with _lock:
        modules = _modules(network)
        weights = _weight_state(network, modules)
        structure = _structures.get(network)
        current = structure is not None and weights is not None and structure.weights is weights
        if structure is None or not current or not structure.same(modules):
            structure = _structures[network] = _Structure(network, modules, weights)
        return Fingerprint(structure.weights_sha256, structure.sha256)


def objective_sha256(objective: Objective) -> str:
    """Hash the targets of an objective and how it scores them: all that it holds besides the network.

    Generated labels (class_0, class_1 …) count as nothing, whether they are generated already or not.

    Args:
        objective: The objective.

    Returns:
        The SHA-256 as 64 hexadecimal digits.

    Raises:
        GradlightError: If it holds too much to be described.
    """
    names = {id(objective.network): "network"}
    labels = getattr(objective, "labels", None)
    with _lock:
        if isinstance(labels, ClassLabels):
            names[id(labels)] = _describe_labels(labels)
        return _hash_text(Describer(names).text(objective))


def value_sha256(value: Any) -> str:
    """Hash what a value is made of: its attributes, its code.

    Args:
        value: Any value.

    Returns:
        The SHA-256 as 64 hexadecimal digits, the same in every process.

    Raises:
        GradlightError: If it holds too much to be described.

    Example:
        >>> from gradlight.models.fingerprint import value_sha256
        >>> value_sha256({"lr": 0.1}) == value_sha256({"lr": 0.1})
        True
    """
    with _lock:
        return _hash_text(Describer({}).text(value))


def pixels_sha256(pixels: Tensor) -> str:
    """Hash the pixels of one image, with their shape and dtype.

    Args:
        pixels: [3,H,W].

    Returns:
        The SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)}\n".encode())
    digest.update(raw_bytes(pixels))
    return digest.hexdigest()


# --- what is kept for each network, for as long as the network itself ---


class _WeightState:
    """The checksum of a network's weights, valid as long as the probe notices no change."""

    def __init__(self, network: nn.Module, tensors: Sequence[Tensor]) -> None:
        self.probe = Probe(tensors)
        state = [value for value in network.state_dict().values() if isinstance(value, Tensor)]
        addresses = {tensor.data_ptr() for tensor in tensors}
        if any(value.data_ptr() not in addresses for value in state):
            raise TypeError("the network's state_dict makes tensors that its modules do not hold")
        self.sha256 = _hash_weights(network)


class _Structure:
    """The checksum of everything about a network, and what to compare to see that it is still valid."""

    def __init__(self, network: nn.Module, modules: Sequence[nn.Module], weights: _WeightState | None) -> None:
        names = {id(module): f"module {name!r}" for name, module in network.named_modules()}
        self.weights = weights
        self.weights_sha256 = weights.sha256 if weights else _hash_weights(network)
        describer = Describer(names)
        texts = [f"{name} {describer.module(module)}" for name, module in network.named_modules()]
        digest = hashlib.sha256("\n".join([self.weights_sha256, *texts]).encode(errors="surrogatepass"))
        for name, tensor in _not_in_state_dict(network):
            digest.update(f"\n{name}\n".encode())
            digest.update(raw_bytes(tensor))
        self.sha256 = digest.hexdigest()
        self.module_states = [_ModuleState(module, names) for module in modules]

    def same(self, modules: Sequence[nn.Module]) -> bool:
        return len(modules) == len(self.module_states) and all(map(_ModuleState.same, self.module_states, modules))


class _ModuleState:
    """What one module was like, apart from its weights: plain attributes are compared, others described again."""

    __slots__ = ("count", "forward", "get", "identity", "kind", "names", "others", "plain", "text")

    def __init__(self, module: nn.Module, names: Mapping[int, str]) -> None:
        attributes = vars(module)
        own = [name for name in own_names(module) if name in attributes and name not in MODULE_FIELDS]
        plain = [name for name in own if is_plain(attributes[name])]
        self.names, self.others = names, [name for name in own if name not in plain]
        self.identity, self.kind, self.forward = id(module), type(module), type(module).forward
        # itemgetter is the fastest way to read many attributes; two extra names make it give a tuple always.
        self.get: Callable[[Mapping[str, Any]], Any] = operator.itemgetter("training", *plain, "training")
        self.count, self.plain = len(attributes), deepcopy(self.get(attributes)[1:-1])
        self.text = self.describe(module)

    def same(self, module: nn.Module) -> bool:
        attributes = module.__dict__
        try:
            return (
                id(module) == self.identity
                and type(module) is self.kind
                and self.kind.forward is self.forward
                and len(attributes) == self.count
                and self.get(attributes)[1:-1] == self.plain
                and self.describe(module) == self.text
            )
        except KeyError:  # one attribute has gone and another one come
            return False

    def describe(self, module: nn.Module) -> str:
        attributes = module.__dict__
        hooks = attributes["_forward_hooks"] or attributes["_forward_pre_hooks"]
        if not (self.others or hooks or attributes["_backward_hooks"] or attributes["_backward_pre_hooks"]):
            return ""
        return Describer(self.names).text([[attributes.get(name) for name in self.others], hooks_of(module)])


# Weak, so that an entry goes with its network: a checksum reads every weight, which is too slow for each call.
_lock = threading.Lock()
_weight_states: WeakKeyDictionary[nn.Module, _WeightState] = WeakKeyDictionary()
_structures: WeakKeyDictionary[nn.Module, _Structure] = WeakKeyDictionary()
_label_texts: WeakKeyDictionary[ClassLabels, tuple[list[str], str]] = WeakKeyDictionary()


def _modules(network: nn.Module) -> list[nn.Module]:
    """List every module once, as `modules()` does but in less time."""
    modules, seen = [network], {id(network)}
    for module in modules:
        for child in module._modules.values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                modules.append(child)
    return modules


def _weight_state(network: nn.Module, modules: Sequence[nn.Module]) -> _WeightState | None:
    """Give the kept checksum of the weights, computed again if they have changed; None if they cannot be probed."""
    if any(hasattr(type(module), "unshard") for module in modules):
        return None  # FSDP2 frees and resizes the memory of its weights, which a probe would keep
    slots: list[Tensor | None] = []
    for module in modules:
        slots += module._parameters.values()
        slots += module._buffers.values()
    tensors = [tensor for tensor in slots if tensor is not None]
    state = _weight_states.get(network)
    try:
        if state is None or not state.probe.same(tensors):
            _weight_states.pop(network, None)
            state = _weight_states[network] = _WeightState(network, tensors)
    except (TypeError, RuntimeError, NotImplementedError):
        return None  # tensors that are not plain memory
    return state


def _hash_weights(network: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            digest.update(raw_bytes(tensor))
    return digest.hexdigest()


def _not_in_state_dict(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """List the parameters and buffers that `state_dict()` leaves out, such as buffers that are not persistent."""
    addresses = {value.data_ptr() for value in network.state_dict().values() if isinstance(value, Tensor)}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.data_ptr() not in addresses:
            yield name, tensor


def _hash_text(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def _describe_labels(labels: ClassLabels) -> str:
    """Describe labels, which may be many thousands, once for as long as they stay the same."""
    names = labels.names
    if names is None:
        return "labels made up"
    kept = _label_texts.get(labels)
    if kept is None or kept[0] != names:
        generated = names == labels.likely or all(name == f"class_{index}" for index, name in enumerate(names))
        kept = _label_texts[labels] = ([*names], f"labels {'made up' if generated else _hash_text(repr(names))}")
    return kept[1]
