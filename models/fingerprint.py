"""Checksums that tell whether maps would come out the same: of a network, of an objective, of pixels.

What functions read from outside of them counts: globals, helper functions, attributes of modules, class attributes. It
is followed through all code that is not installed as a library; libraries are trusted by their version.
"""

from __future__ import annotations

import hashlib
import operator
import re
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from ..data import images as pictures
from ..errors import GradlightError
from .change_detection import MODULE_FIELDS, Describer, Probe, hooks_of, is_plain, own_names, raw_bytes
from .class_objective import ClassLabels
from .code_reading import at_hand, functions_of, library_of, members_of, module_of, names_read
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

    The checksums are kept as for `weights_sha256`. Included is what its functions read from outside of them. Not
    included is what lies outside Python; of libraries, their version counts.

    Args:
        network: The network.

    Returns:
        The checksums of the weights and of everything.

    Raises:
        GradlightError: If the network cannot be described, or if its code reads what cannot be seen.
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
        return _hash_text(_CodeDescriber(names).text(objective))


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
        return _hash_text(_CodeDescriber({}).text(value))


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


# --- what code reads from outside of it ---

_UNSEEN, _ENVIRONMENT = frozenset({"eval", "exec", "globals", "open", "input"}), frozenset({"environ", "getenv"})
_CODE = (type, types.FunctionType, types.ModuleType, types.BuiltinFunctionType, types.CodeType)
_BESIDES = re.compile(
    "__(init|new|repr|str|del|reduce|reduce_ex|getstate|setstate|init_subclass)__|extra_repr"
    "|_?(training|validation|test|predict|configure|on|load|save|reset|init)(_.+)?"
)
"""Methods that run before or beside `forward`; what they read counts only where other methods name them."""


class _Reading:
    """What one piece of code had at hand, to compare with later."""

    def __init__(self, read: Callable[[], list[Any]], names: Mapping[int, str]) -> None:
        self.read, self.values, self.names = read, read(), names
        plain = {at for at, value in enumerate(self.values) if is_plain(value)}
        self.copies = [
            (at, deepcopy(self.values[at])) for at in plain if isinstance(self.values[at], (list, tuple, dict))
        ]
        others = [at for at, value in enumerate(self.values) if at not in plain and not isinstance(value, _CODE)]
        self.texts = [(at, self.describe(self.values[at])) for at in others]

    def same(self) -> bool:
        values = self.read()
        return (
            len(values) == len(self.values)
            and all(map(operator.is_, values, self.values))
            and all(values[at] == copy for at, copy in self.copies)
            and all(self.describe(values[at]) == text for at, text in self.texts)
        )

    def describe(self, value: Any) -> str:
        try:
            return _CodeDescriber(self.names).text_read(value)
        except GradlightError:
            return _CodeDescriber(self.names).text(value)


class _CodeDescriber(Describer):
    """Describe values with all that their code reads from outside of it.

    Args:
        names: Texts for some objects, by their id.
        readings: Where what was read is noted, to compare with later; None: nowhere.
        classes: Texts of classes that are known to be valid.
    """

    def __init__(
        self,
        names: Mapping[int, str],
        readings: list[_Reading] | None = None,
        classes: dict[type, str] | None = None,
    ) -> None:
        super().__init__(names)
        self._readings, self._classes = readings, {} if classes is None else classes
        self._is_read = False
        self._modules_read: set[int] = set()

    def text_read(self, value: Any) -> str:
        """Describe a value that code reads; raises GradlightError for what cannot be seen."""
        before, self._is_read = self._is_read, True
        try:
            return self.text(value)
        finally:
            self._is_read = before

    def _object(self, value: Any) -> str:
        if not self._is_read or hasattr(value, "__dict__") or own_names(value) or isinstance(value, _CODE):
            return super()._object(value)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:
            raise GradlightError(f"a {type(value).__qualname__} cannot be described") from error
        parts = [reduced] if isinstance(reduced, str) else [*reduced[:3], *map(list, filter(None, reduced[3:5]))]
        return " ".join(map(self._text, parts))

    def _class(self, kind: type) -> str:
        """Describe a class of the user's by all that it has, one of a library by its code."""
        if kind in self._classes:
            return self._classes[kind]
        self._classes[kind] = name = f"{kind.__module__}.{kind.__qualname__}"
        if library_of(kind.__module__):
            patches = {name: value for name, value in functions_of(kind).items() if not library_of(module_of(value))}
            self._classes[kind] = super()._class(kind) + (self._pairs(patches) if patches else "")
            self._note(lambda: [*functions_of(kind).values()])
            return self._classes[kind]
        members = members_of(kind)
        followed = {member for member in members if not _BESIDES.fullmatch(member)}
        code = [value.__code__ for value in members.values() if isinstance(value, types.FunctionType)]
        named = {name for each in code if each.co_name in followed for name in names_read(each).others}
        followed |= named & members.keys()
        bare = Describer({id(kind): name})
        texts = [self._class(base) for base in kind.__bases__]
        texts += [f"{m} {self._text(value) if m in followed else bare.text(value)}" for m, value in members.items()]
        self._classes[kind] = f"{name} {_hash_text(' '.join(texts))}"
        self._note(lambda: [*members_of(kind).values()])
        return self._classes[kind]

    def _function(self, function: types.FunctionType) -> str:
        text, space = super()._function(function), function.__globals__
        if library := library_of(module_of(function)):
            return f"{text} {library}"
        names = names_read(function.__code__)
        if unseen := sorted({*names.read} & _UNSEEN - space.keys() | {*names.others} & _ENVIRONMENT):
            raise GradlightError(f"{function.__qualname__} uses {unseen[0]!r}, and what it reads there cannot be seen.")
        values = {name: space[name] for name in names.read if name in space}
        values |= {name: sys.modules[name] for name in names.imports if name in sys.modules}
        text += self._values_read(values, names.others, function.__qualname__)
        self._note(lambda: at_hand(function))
        return text

    def _values_read(self, values: Mapping[str, Any], attributes: Sequence[str], reader: str) -> str:
        """Describe what a function reads from outside; of a module of the user's, the attributes that it names."""
        texts = []
        for name, value in values.items():
            if isinstance(value, types.ModuleType):
                texts.append(f"{name}: {library_of(value.__name__) or self._module_read(value, attributes, reader)}")
                continue
            try:
                texts.append(f"{name}: {self.text_read(value)}")
            except GradlightError as error:
                raise GradlightError(f"{reader} reads {name!r}: {error}") from error
        return f" {{{', '.join(texts)}}}"

    def _module_read(self, module: types.ModuleType, attributes: Sequence[str], reader: str) -> str:
        def read() -> dict[str, Any]:
            return {name: vars(module)[name] for name in attributes if name in vars(module)}

        values = {name: v for name, v in read().items() if id(v) not in self._modules_read}
        self._modules_read |= {id(value) for value in values.values() if isinstance(value, types.ModuleType)}
        text = f"{module.__name__}{self._values_read(values, attributes, reader)}"
        self._note(lambda: [*read().values()])
        return text

    def _note(self, read: Callable[[], list[Any]]) -> None:
        if self._readings is not None:
            self._readings.append(_Reading(read, self._names))


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
        self.readings: list[_Reading] = []
        classes: dict[type, str] = {}
        describer = _CodeDescriber(names, self.readings, classes)
        texts = [f"{name} {describer.module(module)}" for name, module in network.named_modules()]
        digest = hashlib.sha256("\n".join([self.weights_sha256, *texts]).encode(errors="surrogatepass"))
        for name, tensor in _not_in_state_dict(network):
            digest.update(f"\n{name}\n".encode())
            digest.update(raw_bytes(tensor))
        self.sha256 = digest.hexdigest()
        self.module_states = [_ModuleState(module, names, classes) for module in modules]

    def same(self, modules: Sequence[nn.Module]) -> bool:
        if len(modules) != len(self.module_states) or not all(map(_Reading.same, self.readings)):
            return False
        return all(map(_ModuleState.same, self.module_states, modules))


class _ModuleState:
    """What one module was like, apart from its weights: plain attributes are compared, others described again."""

    __slots__ = ("classes", "count", "forward", "get", "identity", "kind", "names", "others", "plain", "text")

    def __init__(self, module: nn.Module, names: Mapping[int, str], classes: dict[type, str]) -> None:
        attributes = vars(module)
        own = [name for name in own_names(module) if name in attributes and name not in MODULE_FIELDS]
        plain = [name for name in own if is_plain(attributes[name])]
        self.names, self.classes, self.others = names, classes, [name for name in own if name not in plain]
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
        return _CodeDescriber(self.names, None, self.classes).text(
            [[attributes.get(name) for name in self.others], hooks_of(module)]
        )


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
