"""From the keys of a project's state dict to one of our decoders: its family, its names, its sizes, and its weights.

The weights in files of captioner projects: a state dict, or the modules that a tutorial saves whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import GradlightError
from ...files import format_path
from ..checkpoints import PathLike
from .decoder import Decoder, EndRule, SpecialTokens
from .rnn_decoders import FC, Att2in2, ShowTell, SoftAttention
from .safe_pickle import PYTHON2, Foreign, InertStandIn, Ordered, guarded, known, opened
from .torch_archive import REBUILDERS, TensorReference, open_archive

__all__ = [
    "FAMILIES",
    "Recognised",
    "build_decoder",
    "load_strictly",
    "read_modules",
    "read_weights",
    "recognise",
    "width_of",
]

_LISTED = 8
_WITHIN = "caption_generator."
_BESIDE = "vse."

_Sizes = Callable[[Mapping[str, Tensor]], dict[str, int]]


@dataclass(frozen=True)
class _DecoderFamily:
    """A kind of decoder: the keys it is known by, new names for old (by pattern), and its sizes by the new names."""

    make: Callable[..., Decoder]
    marks: tuple[str, ...]
    renames: Mapping[str, str]
    sizes: _Sizes


@dataclass(frozen=True)
class Recognised:
    """A project's decoder: its family, its weights under our names, and whether it lay in DiscCaptioning's model."""

    family: str
    state: dict[str, Tensor]
    joint: bool = False


def _shape(state: Mapping[str, Tensor], name: str, axes: int = 2) -> tuple[int, ...]:
    tensor = state.get(name)
    if tensor is None or tensor.ndim != axes:
        raise GradlightError(f"{name} {'is missing' if tensor is None else f'has the shape {list(tensor.shape)}'}.")
    return tuple(tensor.shape)


def _words(state: Mapping[str, Tensor]) -> dict[str, int]:
    (rows, embed), (columns, _) = _shape(state, "embed.weight"), _shape(state, "logit.weight")
    return {"rows": rows, "embed": embed, "columns": columns}


def _fc_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        **_words(state),
        "features": _shape(state, "img_embed.weight")[1],
        "size": _shape(state, "core.h2h.weight")[1],
    }


def _show_tell_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    gates, size = _shape(state, "core.0.weight_hh")
    if gates in (size, 3 * size):
        kind = "gru" if gates == 3 * size else "rnn"
        raise GradlightError(f"It is of the family show_tell with a {kind}, and only one with an lstm can be read.")
    layers = sum(bool(re.fullmatch(r"core\.\d+\.weight_hh", name)) for name in state)
    return {**_words(state), "features": _shape(state, "img_embed.weight")[1], "size": size, "layers": layers}


def _att2in2_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    norm = (2 if "norm_after.weight" in state else 1) if "norm_before.weight" in state else 0
    size, places = _shape(state, "att_embed.weight")
    attention = _shape(state, "h2att.weight")[0]
    return {**_words(state), "places": places, "size": size, "attention": attention, "norm": norm}


def _soft_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    attention, places = _shape(state, "encoder_att.weight")
    return {**_words(state), "places": places, "size": _shape(state, "decoder_att.weight")[1], "attention": attention}


FAMILIES: Mapping[str, _DecoderFamily] = {
    "fc": _DecoderFamily(FC, ("img_embed.weight", "core.i2h.weight"), {}, _fc_sizes),
    "newfc": _DecoderFamily(
        FC,
        ("fc_embed.weight", "_core.i2h.weight"),
        {r"fc_embed\.": "img_embed.", r"_core\.": "core."},
        _fc_sizes,
    ),
    "show_tell": _DecoderFamily(
        ShowTell,
        ("img_embed.weight", "core.weight_ih_l0"),
        {r"core\.weight_(ih|hh)_l(\d+)$": r"core.\2.weight_\1"},
        _show_tell_sizes,
    ),
    "att2in2": _DecoderFamily(
        Att2in2,
        ("core.a2c.weight", "embed.0.weight"),
        {
            r"embed\.0\.": "embed.",
            r"core\.attention\.": "",
            r"core\.(h2att|alpha_net|a2c)\.": r"\1.",
            r"att_embed\.0\.": "att_embed.",
        },
        _att2in2_sizes,
    ),
    "soft attention": _DecoderFamily(
        SoftAttention,
        ("attention.encoder_att.weight", "decode_step.weight_ih"),
        {r"attention\.": "", r"decode_step\.": "core.", r"embedding\.": "embed.", r"fc\.": "logit."},
        _soft_sizes,
    ),
}
"""The decoders that can be built, by the names that their projects give them."""

_NORMED = {r"att_embed\.0\.": "norm_before.", r"att_embed\.1\.": "att_embed.", r"att_embed\.4\.": "norm_after."}

_OTHERS = {
    "updown (topdown)": r"core\.att_lstm\.",
    "adaatt": r"core\.lstm\.(w2h|v2h|r_w2h|r_v2h)",
    "denseatt": r"core\.fusion\d\.",
    "stackatt": r"core\.(att\d|emb2)\.",
    "att2all2": r"core\.a2h\.",
    "att2in": r"core\.a2c\.",
    "aoa": r"refiner\.|core\.att2ctx\.|ctx2att\.\d",
    "transformer": r"model\.(encoder|decoder|generator|tgt_embed)\.|(encoder|decoder)\.layers?\.\d",
    "bert": r"model\.bert\.|bert\.",
    "language_model": r"_core\.i2h\.",
}


def recognise(state: Mapping[str, Tensor]) -> Recognised:
    """Recognise a project's decoder by its keys and give its weights our names.

    Raises GradlightError for other families, by name where it is known, and for weights that are no captioner's.
    """
    keys = dict(state)
    if all(name.startswith("module.") for name in keys):
        keys = {name.removeprefix("module."): value for name, value in keys.items()}
    joint = any(name.startswith(_WITHIN) for name in keys)
    if joint:
        # The retrieval network beside it has no part in captions.
        keys = {name.removeprefix(_WITHIN): value for name, value in keys.items() if not name.startswith(_BESIDE)}
    if any(re.match(r"logit\.\d+\.", name) for name in keys):
        raise GradlightError(f"Its output has several layers (logit_layers > 1), which cannot be read. {_supported()}")
    for name, family in FAMILIES.items():
        if all(mark in keys for mark in family.marks):
            normed = name == "att2in2" and "att_embed.0.running_mean" in keys
            renames = {**family.renames, **(_NORMED if normed else {})}
            return Recognised(name, _renamed(keys, renames), joint)
    for name, pattern in _OTHERS.items():
        if any(re.match(pattern, key) for key in keys):
            raise GradlightError(f"It is a captioner of the family {name}, which cannot be read. {_supported()}")
    raise GradlightError(f"These are the weights of no known captioner ({_listed(list(keys))}). {_supported()}")


def _supported() -> str:
    return f"The families that can: {', '.join(FAMILIES)}."


def _renamed(state: Mapping[str, Tensor], renames: Mapping[str, str]) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for old, tensor in state.items():
        new = old
        for pattern, replacement in renames.items():
            new, count = re.subn(f"^{pattern}", replacement, old)
            if count:
                break
        if new in named:
            raise GradlightError(f"It holds both {old} and another name of the same weights.")
        named[new] = tensor
    return named


def build_decoder(
    family: str, state: Mapping[str, Tensor], specials: SpecialTokens, max_length: int, finishing: EndRule
) -> Decoder:
    """Build the decoder of a family with weights under our names, in eval mode; the sizes follow from their shapes.

    Raises GradlightError for an unknown family and for weights that do not fit together.
    """
    if family not in FAMILIES:
        raise GradlightError(f"The family {family!r} is unknown. {_supported()}")
    sizes = FAMILIES[family].sizes(state)
    if not all(size > 0 for name, size in sizes.items() if name != "norm"):
        raise GradlightError("One of its weights is empty.")
    # Without memory, because sizes that do not belong together could ask for any amount of it.
    with torch.device("meta"):
        decoder = FAMILIES[family].make(specials, **sizes, max_length=max_length, finishing=finishing)
    load_strictly(decoder, state)
    return decoder.eval()


def load_strictly(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give a network that was built on the meta device all its weights, float32, and count no batches where none were.

    Raises GradlightError unless every weight fits.
    """
    own: dict[str, Any] = network.state_dict()
    counts = {name: torch.tensor(0) for name in own if name.endswith("num_batches_tracked")}
    given = {**counts, **state}
    problems = {
        "missing": [name for name in own if name not in given],
        "not expected": [name for name in given if name not in own],
        "of another shape": [
            f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in given and own[name].shape != given[name].shape
        ],
        "not of floating-point numbers": [
            name for name in own if name in state and name not in counts and not state[name].is_floating_point()
        ],
    }
    wrong = [f"{what}: {_listed(names)}" for what, names in problems.items() if names]
    if wrong:
        raise GradlightError(f"Its weights do not fit together; {'; '.join(wrong)}.")
    network.load_state_dict({n: t if n in counts else t.float() for n, t in given.items()}, assign=True)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(name[:80] for name in names[:_LISTED]) + more


def width_of(decoder: Decoder) -> int:
    """Tell how many channels of an encoder a decoder reads."""
    if isinstance(decoder, FC | ShowTell):
        return decoder.img_embed.in_features
    if isinstance(decoder, Att2in2):
        return decoder.att_embed.in_features
    if isinstance(decoder, SoftAttention):
        return decoder.encoder_att.in_features
    raise GradlightError(f"{type(decoder).__name__} is no decoder whose width is known.")


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
                f"{format_path(path)}: holds no state dict. Save one with torch.save(network.state_dict(), path)."
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
                f"{format_path(path)}: the weights of {' and of '.join(missing)} are not in it, so it is no captioner's."
            )
        both = {f"{name} {key}": piece for name, pieces in found.items() for key, piece in pieces.items()}
        tensors = archive.tensors(both)
        return {name: {key: tensors[f"{name} {key}"] for key in pieces} for name, pieces in found.items()}


def _of_weights(module: str, name: str) -> type[InertStandIn]:
    """Give the stand-in of what a state dict names, and of nothing else."""
    full = f"{PYTHON2.get(module, module)}.{name}"
    return REBUILDERS.get(full) or known(module, name)


def _of_modules(module: str, name: str) -> type[InertStandIn]:
    """Give the stand-in of what a whole module names: any class, but programs of the standard library have no place."""
    try:
        return _of_weights(module, name)
    except Foreign:
        module = PYTHON2.get(module, module)
        root = module.partition(".")[0]
        if (root in sys.stdlib_module_names or root == "commands") and name not in _HARMLESS.get(module, ()):
            raise
        return Ordered if f"{module}.{name}" == "builtins.dict" else InertStandIn


def _pieces(thing: Any) -> dict[str, TensorReference]:
    """Give the tensors of a state dict, or of a module and all modules in it, by name."""
    if isinstance(thing, dict):
        return {
            name: piece for name, piece in thing.items() if isinstance(name, str) and isinstance(piece, TensorReference)
        }
    found: dict[str, TensorReference] = {}
    waiting: list[tuple[str, Any]] = [("", thing)]
    seen = 0
    while waiting:
        prefix, module = waiting.pop()
        for group in ("_parameters", "_buffers"):
            found.update(
                (prefix + name, item) for name, item in _items(module, group) if isinstance(item, TensorReference)
            )
        waiting += [(f"{prefix}{name}.", inner) for name, inner in _items(module, "_modules")]
        seen += 1
        if seen + len(waiting) + len(found) > _MOST_PARTS or len(prefix) > _LONGEST_NAME:
            raise ValueError("modules without end")
    return found


def _items(module: Any, group: str) -> Iterator[tuple[str, Any]]:
    members = module.state.get(group) if isinstance(module, InertStandIn) else None
    for name, value in members.items() if isinstance(members, dict) else ():
        if isinstance(name, str):
            yield name, value
