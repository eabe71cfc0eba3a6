"""The format of our own captioners: a folder with `captioner.json` (the record) and `captioner.safetensors` (weights).

The record's keys are a file format: "reading" is the pooling of features, "finishing" the end rule of the beam search.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode

from ...errors import GradlightError
from ...files import format_path, open_regular, replace_file
from ..checkpoints import PathLike, read_state
from ..preprocessing import Preprocessing
from .decoder import KEPT, REMOVED, REPLACED, Decoder
from .encoder import FeaturePooling, ResNetPlan, build_resnet
from .state_dicts import build_decoder, feature_width, load_strictly
from .vocabulary import Vocabulary

__all__ = [
    "MAX_LENGTH",
    "RECORD",
    "WEIGHTS",
    "Checkpoint",
    "naming_file",
    "read_folder",
    "read_json",
    "validated_encoder",
    "write_folder",
]

RECORD = "captioner.json"
WEIGHTS = "captioner.safetensors"
MAX_LENGTH = 1000
"""The largest `max_length` of a decoder, in tokens."""

_FORMAT = "gradlight-captioner"
_VERSION = 1
_MAX_BYTES = 64 << 20
_MAX_SIDE = 1 << 14
_BOX_FEATURES = 5
_END_RULES = {"replaced": REPLACED, "kept": KEPT, "leaves": REMOVED}
_FITS = ("shorter", "longer", "squash")


@dataclass(frozen=True)
class Checkpoint:
    """A captioner that was read from files, or that is written to a folder.

    Args:
        family: the kind of its decoder, a key of `state_dicts.FAMILIES`.
        project: where it comes from, such as "ImageCaptioning.pytorch".
        decoder: with its weights, in eval mode.
        vocabulary: the decoder's words.
        encoder_state: the weights of `build_resnet(plan)`; None where the files have no encoder.
        plan: the architecture of the encoder; None where the files have no encoder.
        pooling: how the encoder's last map becomes features.
        preprocessing: None means that photos keep their own size.
        facts: what else is known, in JSON types.
    """

    family: str
    project: str
    decoder: Decoder
    vocabulary: Vocabulary
    encoder_state: dict[str, Tensor] | None = None
    plan: ResNetPlan | None = None
    pooling: FeaturePooling = field(default_factory=FeaturePooling)
    preprocessing: Preprocessing | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


# --- Write and read a folder


def write_folder(folder: PathLike, checkpoint: Checkpoint, facts: Mapping[str, Any] | None = None) -> None:
    """Write a captioner as `captioner.safetensors` and then `captioner.json`; each file is replaced atomically.

    Args:
        folder: is made if it does not exist.
        checkpoint: the captioner.
        facts: replace the checkpoint's own.

    Raises:
        GradlightError: if the folder or the captioner cannot be written.
    """
    decoder, plan, preprocessing = checkpoint.decoder, checkpoint.plan, checkpoint.preprocessing
    rule_names = [name for name, rule in _END_RULES.items() if rule == decoder.end_rule]
    if not rule_names or (plan is None) != (checkpoint.encoder_state is None):
        raise GradlightError(f"{format_path(folder)}: this captioner cannot be written: {decoder.end_rule}, {plan}.")
    record = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "family": checkpoint.family,
        "project": checkpoint.project,
        "vocabulary": checkpoint.vocabulary.to_json(),
        "max_length": decoder.max_length,
        "finishing": rule_names[0],
        "encoder": None if plan is None else plan.to_json(),
        "reading": checkpoint.pooling.to_json(),
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "facts": dict(checkpoint.facts if facts is None else facts),
    }
    states = {"decoder": decoder.state_dict(), "encoder": checkpoint.encoder_state or {}}
    tensors = {f"{network}.{name}": tensor.cpu() for network, state in states.items() for name, tensor in state.items()}
    try:
        text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
        # A copy each, because the format refuses tensors that share their memory.
        weights = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in tensors.items()})
        Path(os.fspath(folder)).mkdir(parents=True, exist_ok=True)
        replace_file(Path(os.fspath(folder)) / WEIGHTS, weights)
        replace_file(Path(os.fspath(folder)) / RECORD, text.encode())
    except (OSError, TypeError, ValueError) as error:
        raise GradlightError(f"{format_path(folder)}: the captioner cannot be written there: {error}.") from error


def read_folder(folder: PathLike) -> Checkpoint:
    """Read a captioner that `write_folder` wrote.

    Args:
        folder: with the two files.

    Returns:
        The captioner.

    Raises:
        GradlightError: for an incomplete or damaged captioner, and for a newer format.
    """
    path = Path(os.fspath(folder)) / RECORD
    record = read_json(path)
    with naming_file(path):
        _check_version(record)
        vocabulary = Vocabulary.from_json(_get(record, "vocabulary", dict))
        plan = ResNetPlan.from_json(_get(record, "encoder", dict)) if record.get("encoder") is not None else None
        preprocessing = None if record.get("preprocessing") is None else _restore_preprocessing(record["preprocessing"])
        family, project = _get(record, "family", str), _get(record, "project", str)
        end_rule = _END_RULES.get(_get(record, "finishing", str))
        pooling = FeaturePooling.from_json(_get(record, "reading", dict))
        max_length = _get(record, "max_length", int)
        facts = _get(record, "facts", dict)
        if end_rule is None or not 1 <= max_length <= MAX_LENGTH:
            raise GradlightError(f"finishing={record['finishing']!r} or max_length={max_length!r} is out of range.")
    weights = path.with_name(WEIGHTS)
    tensors = read_state(weights)
    with naming_file(weights):
        networks = {name.partition(".")[0] for name in tensors}
        if networks != {"decoder"} | ({"encoder"} if plan else set()):
            raise GradlightError(f"It holds {', '.join(sorted(networks))}, which is not what {RECORD} says.")
        decoder_state = _with_prefix(tensors, "decoder.")
        decoder = build_decoder(family, decoder_state, vocabulary.special_tokens, max_length, end_rule)
        _check_vocabulary(vocabulary, decoder)
        encoder = None
        if plan is not None:
            encoder = validated_encoder(_with_prefix(tensors, "encoder."), plan, pooling, decoder)
    return Checkpoint(family, project, decoder, vocabulary, encoder, plan, pooling, preprocessing, facts)


def validated_encoder(
    state: Mapping[str, Tensor], plan: ResNetPlan, pooling: FeaturePooling, decoder: Decoder
) -> dict[str, Tensor]:
    """Validate the weights of an encoder.

    Args:
        state: the state dict, without a head.
        plan: the architecture that it must fit.
        pooling: how features are made of the map.
        decoder: must read as many features as the encoder has channels.

    Returns:
        The complete state dict, as float32.

    Raises:
        GradlightError: if the weights do not fit the plan, or the encoder does not fit the decoder.
    """
    with torch.device("meta"):
        network = build_resnet(plan)
    load_strictly(network, state)
    expected = feature_width(decoder) - (_BOX_FEATURES if pooling.boxes else 0)
    channels = plan.widths[-1] * (4 if plan.block == "bottleneck" else 1)
    if channels != expected:
        raise GradlightError(f"The encoder gives {channels} channels, and the decoder reads {expected}.")
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


@contextlib.contextmanager
def naming_file(path: PathLike) -> Iterator[None]:
    """Prefix the GradlightErrors inside the block with the name of the file that they are raised for.

    Example:
        >>> with naming_file("captioner.json"):
        ...     raise GradlightError("It is damaged.")
        Traceback (most recent call last):
        gradlight.errors.GradlightError: captioner.json: It is damaged.
    """
    try:
        yield
    except GradlightError as error:
        raise GradlightError(f"{format_path(path)}: {error}") from error


# --- The record


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON object of at most 64 MB; raises GradlightError for every other file."""
    with open_regular(path) as stream:
        raw = stream.read(_MAX_BYTES + 1)
    try:
        content = json.loads(raw.decode("utf-8")) if len(raw) <= _MAX_BYTES else None
    # Nested too deep, not UTF-8, a number with too many digits, and what JSON itself refuses.
    except (ValueError, RecursionError) as error:
        raise GradlightError(f"{format_path(path)}: not a JSON file, or damaged ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise GradlightError(f"{format_path(path)}: {'no JSON object' if len(raw) <= _MAX_BYTES else 'too large'}.")
    return content


def _check_version(record: Mapping[str, Any]) -> None:
    if record.get("format") != _FORMAT:
        raise GradlightError(f"This is not a record of a captioner (format {record.get('format')!r}).")
    version = _get(record, "format_version", int)
    if version > _VERSION:
        raise GradlightError(f"It is of format {version}, and this gradlight reads {_VERSION}: use a newer gradlight.")


def _check_vocabulary(vocabulary: Vocabulary, decoder: Decoder) -> None:
    """Raise GradlightError if a word or special token has a number that the decoder does not have."""
    special_tokens, columns = vocabulary.special_tokens, decoder.logit.out_features
    unk = () if special_tokens.unk is None else (special_tokens.unk,)
    numbers = [*vocabulary.words, special_tokens.end, *unk]
    rows = int(decoder.get_parameter("embed.weight").shape[0])
    if not (all(0 <= number < min(columns, rows) for number in numbers) and 0 <= special_tokens.bos < rows):
        raise GradlightError(f"It has {columns} words, and {RECORD} numbers others.")


def _get(record: Mapping[str, Any], name: str, kind: type) -> Any:
    """Return a value of the record; raises GradlightError if it has another type."""
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise GradlightError(f"{name!r} is missing or no {kind.__name__}.")
    return value


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _restore_preprocessing(record: Any) -> Preprocessing:
    """Restore a preprocessing from the value of its `to_json`; raises GradlightError for every other value."""
    try:
        names = {each.name for each in fields(Preprocessing)}
        if set(record) != names:
            raise ValueError(f"it needs {', '.join(sorted(names))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        preprocessing = Preprocessing(**values)
        InterpolationMode(preprocessing.interpolation)
        if not _is_in_range(preprocessing):
            raise ValueError("a value is out of range")
    except (TypeError, ValueError) as error:
        raise GradlightError(f"This is not a record of a preprocessing: {error}.") from error
    return preprocessing


def _is_in_range(preprocessing: Preprocessing) -> bool:
    """Return whether all values of a preprocessing are possible; raises TypeError for values without a length."""
    # A tuple and not `and`: every value is examined, whatever the others are.
    conditions = (
        all(len(pair) == 2 and all(map(_is_side, pair)) for pair in (preprocessing.size, preprocessing.resize)),
        all(
            len(rgb) == 3 and all(isinstance(n, int | float) for n in rgb)
            for rgb in (preprocessing.mean, preprocessing.std)
        ),
        all(n > 0 for n in preprocessing.std),
        len(preprocessing.fill) == 3 and all(isinstance(n, int) and 0 <= n < 256 for n in preprocessing.fill),
        preprocessing.fit in _FITS,
    )
    return all(conditions)


def _is_side(value: Any) -> bool:
    """Return whether a value can be a height or width in pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MAX_SIDE
