"""From the weights in a project's file to a decoder: read a state dict, recognise its family, rename it, build it."""

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
from .safe_pickle import (
    PYTHON2_MODULES,
    ForbiddenGlobal,
    InertDict,
    InertStandIn,
    find_stand_in,
    open_untrusted,
    reading_as,
)
from .torch_archive import REBUILDERS, TensorReference, open_archive

__all__ = [
    "FAMILIES",
    "RecognisedDecoder",
    "build_decoder",
    "feature_width",
    "load_strictly",
    "read_modules",
    "read_weights",
    "recognise",
]

_MAX_LISTED = 8
_DISC_DECODER = "caption_generator."
_DISC_RETRIEVAL = "vse."

_MODULES = ("encoder", "decoder")
_NESTED_KEYS = ("state_dict", "model", "model_state_dict")
_MAX_ENTRIES = 100_000
_MAX_NAME = 1000

# What an object that was saved whole may name of the standard library.
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


# --- Read the tensors of a file


def read_weights(path: PathLike) -> dict[str, Tensor]:
    """Read a state dict, or one under "state_dict" or "model", in the zip or the legacy format.

    Args:
        path: the file.

    Returns:
        The tensors by name.

    Raises:
        GradlightError: for every other file, such as one with more than tensors and plain data.
    """
    with open_untrusted(path) as (stream, size), reading_as(path, "a PyTorch file of weights"):
        archive = open_archive(path, stream, size, _find_in_weights)
        content = archive.content
        for key in _NESTED_KEYS:
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        references = _tensor_references(content) if isinstance(content, dict) else {}
        if not references:
            raise GradlightError(
                f"{format_path(path)}: holds no state dict. Save one with torch.save(network.state_dict(), path)."
            )
        return archive.tensors(references)


def read_modules(path: PathLike) -> dict[str, dict[str, Tensor]]:
    """Read the state dicts of the entries "encoder" and "decoder" of a file: modules saved whole, or state dicts.

    The classes of the modules are not needed, and none is imported.

    Args:
        path: the file.

    Returns:
        The tensors by name, of "encoder" and of "decoder".

    Raises:
        GradlightError: for every other file.
    """
    with open_untrusted(path) as (stream, size), reading_as(path, "a PyTorch file of an encoder and a decoder"):
        archive = open_archive(path, stream, size, _find_in_modules)
        content = archive.content if isinstance(archive.content, dict) else {}
        references = {module: _tensor_references(content.get(module)) for module in _MODULES}
        missing = [module for module, names in references.items() if not names]
        if missing:
            raise GradlightError(
                f"{format_path(path)}: the weights of {' and of '.join(missing)} are not in it, so it is no"
                " captioner's."
            )
        flat = {
            f"{module} {name}": reference for module, names in references.items() for name, reference in names.items()
        }
        tensors = archive.tensors(flat)
        return {module: {name: tensors[f"{module} {name}"] for name in names} for module, names in references.items()}


def _find_in_weights(module: str, name: str) -> type[InertStandIn]:
    """Return the stand-in of a global that a state dict may name."""
    full = f"{PYTHON2_MODULES.get(module, module)}.{name}"
    return REBUILDERS.get(full) or find_stand_in(module, name)


def _find_in_modules(module: str, name: str) -> type[InertStandIn]:
    """Return the stand-in of a global that a saved module may name: any class, but nothing that runs."""
    try:
        return _find_in_weights(module, name)
    except ForbiddenGlobal:
        module = PYTHON2_MODULES.get(module, module)
        root = module.partition(".")[0]
        if (root in sys.stdlib_module_names or root == "commands") and name not in _HARMLESS.get(module, ()):
            raise
        return InertDict if f"{module}.{name}" == "builtins.dict" else InertStandIn


def _tensor_references(value: Any) -> dict[str, TensorReference]:
    """Return the tensors of a state dict, or of a module and its submodules, by name."""
    if isinstance(value, dict):
        return {
            name: entry for name, entry in value.items() if isinstance(name, str) and isinstance(entry, TensorReference)
        }
    references: dict[str, TensorReference] = {}
    stack: list[tuple[str, Any]] = [("", value)]
    visited = 0
    while stack:
        prefix, module = stack.pop()
        for group in ("_parameters", "_buffers"):
            references.update(
                (prefix + name, item) for name, item in _state_items(module, group) if isinstance(item, TensorReference)
            )
        stack += [(f"{prefix}{name}.", submodule) for name, submodule in _state_items(module, "_modules")]
        visited += 1
        # A module can hold itself.
        if visited + len(stack) + len(references) > _MAX_ENTRIES or len(prefix) > _MAX_NAME:
            raise ValueError("modules nested without end")
    return references


def _state_items(module: Any, group: str) -> Iterator[tuple[str, Any]]:
    """List the entries of a group of a saved module's state, such as "_parameters"."""
    entries = module.state.get(group) if isinstance(module, InertStandIn) else None
    for name, value in entries.items() if isinstance(entries, dict) else ():
        if isinstance(name, str):
            yield name, value


# --- The families of decoders


@dataclass(frozen=True)
class _DecoderFamily:
    """A kind of decoder.

    Args:
        make: its class.
        marker_keys: the keys of a state dict that identify it.
        renames: patterns of the project's names, and our names.
        sizes: the keyword arguments of its class, from a state dict with our names.
    """

    make: Callable[..., Decoder]
    marker_keys: tuple[str, ...]
    renames: Mapping[str, str]
    sizes: Callable[[Mapping[str, Tensor]], dict[str, int]]


def _shape(state: Mapping[str, Tensor], name: str, axes: int = 2) -> tuple[int, ...]:
    """Return the shape of a weight; raises GradlightError if it is missing or has another number of axes."""
    tensor = state.get(name)
    if tensor is None or tensor.ndim != axes:
        raise GradlightError(f"{name} {'is missing' if tensor is None else f'has the shape {list(tensor.shape)}'}.")
    return tuple(tensor.shape)


def _word_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    (rows, embed), (columns, _) = _shape(state, "embed.weight"), _shape(state, "logit.weight")
    return {"rows": rows, "embed": embed, "columns": columns}


def _fc_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    return {
        **_word_sizes(state),
        "features": _shape(state, "img_embed.weight")[1],
        "size": _shape(state, "core.h2h.weight")[1],
    }


def _show_tell_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    gates, size = _shape(state, "core.0.weight_hh")
    if gates in (size, 3 * size):
        kind = "gru" if gates == 3 * size else "rnn"
        raise GradlightError(f"It is of the family show_tell with a {kind}, and only one with an lstm can be read.")
    layers = sum(bool(re.fullmatch(r"core\.\d+\.weight_hh", name)) for name in state)
    return {**_word_sizes(state), "features": _shape(state, "img_embed.weight")[1], "size": size, "layers": layers}


def _att2in2_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    norm = (2 if "norm_after.weight" in state else 1) if "norm_before.weight" in state else 0
    size, width = _shape(state, "att_embed.weight")
    attention = _shape(state, "h2att.weight")[0]
    return {**_word_sizes(state), "location_features": width, "size": size, "attention": attention, "norm": norm}


def _soft_attention_sizes(state: Mapping[str, Tensor]) -> dict[str, int]:
    attention, width = _shape(state, "encoder_att.weight")
    size = _shape(state, "decoder_att.weight")[1]
    return {**_word_sizes(state), "location_features": width, "size": size, "attention": attention}


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
        _soft_attention_sizes,
    ),
}
"""The decoders that can be built, by the names that their projects give them."""

_NORM_RENAMES = {r"att_embed\.0\.": "norm_before.", r"att_embed\.1\.": "att_embed.", r"att_embed\.4\.": "norm_after."}
"""The names of att2in2 with batch normalisation, which moves the linear layer by one."""

_UNSUPPORTED = {
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
"""Families that are recognised for the error, by a pattern of their keys."""


@dataclass(frozen=True)
class RecognisedDecoder:
    """The decoder of a project's state dict.

    Args:
        family: a key of `FAMILIES`.
        state: its weights with our names.
        joint: whether it was a part of DiscCaptioning's joint model.
    """

    family: str
    state: dict[str, Tensor]
    joint: bool = False


def recognise(state: Mapping[str, Tensor]) -> RecognisedDecoder:
    """Recognise a project's decoder by the keys of its state dict, and rename its weights.

    Args:
        state: the state dict with the project's names.

    Returns:
        The family, and the weights with our names.

    Raises:
        GradlightError: for other families, by name where it is known, and for weights that are no captioner's.
    """
    keys = dict(state)
    if all(name.startswith("module.") for name in keys):
        keys = {name.removeprefix("module."): value for name, value in keys.items()}
    joint = any(name.startswith(_DISC_DECODER) for name in keys)
    if joint:
        # The retrieval network beside it is not needed for captions.
        keys = {
            name.removeprefix(_DISC_DECODER): value
            for name, value in keys.items()
            if not name.startswith(_DISC_RETRIEVAL)
        }
    if any(re.match(r"logit\.\d+\.", name) for name in keys):
        raise GradlightError(
            f"Its output has several layers (logit_layers > 1), which cannot be read. {_format_supported()}"
        )
    for name, family in FAMILIES.items():
        if all(key in keys for key in family.marker_keys):
            has_norm = name == "att2in2" and "att_embed.0.running_mean" in keys
            renames = {**family.renames, **(_NORM_RENAMES if has_norm else {})}
            return RecognisedDecoder(name, _rename(keys, renames), joint)
    for name, pattern in _UNSUPPORTED.items():
        if any(re.match(pattern, key) for key in keys):
            raise GradlightError(f"It is a captioner of the family {name}, which cannot be read. {_format_supported()}")
    raise GradlightError(
        f"These are the weights of no known captioner ({_format_names(list(keys))}). {_format_supported()}"
    )


def _rename(state: Mapping[str, Tensor], renames: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename the weights by the first pattern that matches; raises GradlightError if two get the same name."""
    renamed: dict[str, Tensor] = {}
    for old, tensor in state.items():
        new = old
        for pattern, replacement in renames.items():
            new, count = re.subn(f"^{pattern}", replacement, old)
            if count:
                break
        if new in renamed:
            raise GradlightError(f"It holds both {old} and another name of the same weights.")
        renamed[new] = tensor
    return renamed


def build_decoder(
    family: str, state: Mapping[str, Tensor], special_tokens: SpecialTokens, max_length: int, end_rule: EndRule
) -> Decoder:
    """Build a decoder with its weights, in eval mode; its sizes follow from the shapes of the weights.

    Args:
        family: a key of `FAMILIES`.
        state: the weights with our names.
        special_tokens: the numbers of BOS, END and UNK.
        max_length: the default limit of the search, in tokens.
        end_rule: what the beam search does with an ended beam.

    Returns:
        The decoder.

    Raises:
        GradlightError: for an unknown family, and for weights that do not fit together.
    """
    if family not in FAMILIES:
        raise GradlightError(f"The family {family!r} is unknown. {_format_supported()}")
    sizes = FAMILIES[family].sizes(state)
    if not all(size > 0 for name, size in sizes.items() if name != "norm"):
        raise GradlightError("One of its weights is empty.")
    # Without memory, because sizes that do not belong together could need any amount of it.
    with torch.device("meta"):
        decoder = FAMILIES[family].make(special_tokens, **sizes, max_length=max_length, end_rule=end_rule)
    load_strictly(decoder, state)
    return decoder.eval()


def load_strictly(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load all weights, as float32, into a network on the meta device; missing batch counters are zero.

    Args:
        network: gets the weights.
        state: the state dict; it must have every weight, and no other.

    Raises:
        GradlightError: unless every weight fits.
    """
    own: dict[str, Any] = network.state_dict()
    counters = {name: torch.tensor(0, device="cpu") for name in own if name.endswith("num_batches_tracked")}
    new = {**counters, **state}
    problems = {
        "missing": [name for name in own if name not in new],
        "not expected": [name for name in new if name not in own],
        "of another shape": [
            f"{name} {list(new[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in new and own[name].shape != new[name].shape
        ],
        "not of floating-point numbers": [
            name for name in own if name in state and name not in counters and not state[name].is_floating_point()
        ],
    }
    wrong = [f"{problem}: {_format_names(names)}" for problem, names in problems.items() if names]
    if wrong:
        raise GradlightError(f"Its weights do not fit together; {'; '.join(wrong)}.")
    network.load_state_dict({n: t if n in counters else t.float() for n, t in new.items()}, assign=True)


def feature_width(decoder: Decoder) -> int:
    """Return the number of features that a decoder reads, per image or per location."""
    if isinstance(decoder, FC | ShowTell):
        return decoder.img_embed.in_features
    if isinstance(decoder, Att2in2):
        return decoder.att_embed.in_features
    if isinstance(decoder, SoftAttention):
        return decoder.encoder_att.in_features
    raise GradlightError(f"{type(decoder).__name__} is no decoder whose width is known.")


def _format_supported() -> str:
    return f"Supported families: {', '.join(FAMILIES)}."


def _format_names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(name[:80] for name in names[:_MAX_LISTED]) + more
