"""The format of our own captioners: a folder with `captioner.json` and `captioner.safetensors`."""

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
from .decoder import KEPT, LEAVES, REPLACED, Decoder
from .encoder import FeaturePooling, ResNetPlan, build_resnet
from .state_dicts import build_decoder, load_strictly, width_of
from .vocabulary import Vocabulary

__all__ = ["RECORD", "WEIGHTS", "Checkpoint", "about", "check_encoder", "read_folder", "read_json", "write_folder"]

RECORD = "captioner.json"
WEIGHTS = "captioner.safetensors"

_FORMAT = "gradlight-captioner"
_VERSION = 1
_LARGEST = 64 << 20
_LONGEST = 1000
_BOX = 5
_FINISHINGS = {"replaced": REPLACED, "kept": KEPT, "leaves": LEAVES}
_FITS = ("shorter", "longer", "squash")
_MOST_PIXELS = 1 << 14


@dataclass(frozen=True)
class Checkpoint:
    """A captioner that was read from files, or is to be written.

    encoder_state: the weights of `build_resnet(plan)`; None, as is the plan, where the files hold no encoder. reading:
    how the decoder's features are read off the encoder's last map. preprocessing: None means the photo's own size.
    facts: whatever else is known, in JSON types.
    """

    family: str
    project: str
    decoder: Decoder
    vocabulary: Vocabulary
    encoder_state: dict[str, Tensor] | None = None
    plan: ResNetPlan | None = None
    reading: FeaturePooling = field(default_factory=FeaturePooling)
    preprocessing: Preprocessing | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def check_encoder(
    state: Mapping[str, Tensor], plan: ResNetPlan, reading: FeaturePooling, decoder: Decoder
) -> dict[str, Tensor]:
    """Give the weights, whole and float32, of a ResNet whose channels a decoder can read; else GradlightError."""
    with torch.device("meta"):
        network = build_resnet(plan)
    load_strictly(network, state)
    wanted = width_of(decoder) - (_BOX if reading.boxes else 0)
    channels = plan.widths[-1] * (4 if plan.block == "bottleneck" else 1)
    if channels != wanted:
        raise GradlightError(f"The encoder gives {channels} channels, and the decoder reads {wanted}.")
    return {name: tensor.detach() for name, tensor in network.state_dict().items()}


@contextlib.contextmanager
def about(path: PathLike) -> Iterator[None]:
    """Name a file in the GradlightErrors about what it holds."""
    try:
        yield
    except GradlightError as error:
        raise GradlightError(f"{format_path(path)}: {error}") from error


def read_json(path: PathLike) -> dict[str, Any]:
    """Read a JSON object of at most 64 MB; raises GradlightError for every other file."""
    with open_regular(path) as stream:
        raw = stream.read(_LARGEST + 1)
    try:
        content = json.loads(raw.decode("utf-8")) if len(raw) <= _LARGEST else None
    # Nested too deep, not UTF-8, a number without end, and what JSON itself refuses.
    except (ValueError, RecursionError) as error:
        raise GradlightError(f"{format_path(path)}: not a JSON file, or damaged ({type(error).__name__}).") from error
    if not isinstance(content, dict):
        raise GradlightError(f"{format_path(path)}: {'no JSON object' if len(raw) <= _LARGEST else 'too large'}.")
    return content


def write_folder(folder: PathLike, checkpoint: Checkpoint, facts: Mapping[str, Any] | None = None) -> None:
    """Write a captioner as `captioner.safetensors` and then `captioner.json`, each of them whole or not at all.

    facts: in place of the checkpoint's own. Raises GradlightError where the folder cannot be written.
    """
    decoder, plan, preprocessing = checkpoint.decoder, checkpoint.plan, checkpoint.preprocessing
    names = [name for name, finishing in _FINISHINGS.items() if finishing == decoder.finishing]
    if not names or (plan is None) != (checkpoint.encoder_state is None):
        raise GradlightError(f"{format_path(folder)}: this captioner cannot be written: {decoder.finishing}, {plan}.")
    record = {
        "format": _FORMAT,
        "format_version": _VERSION,
        "family": checkpoint.family,
        "project": checkpoint.project,
        "vocabulary": checkpoint.vocabulary.to_json(),
        "max_length": decoder.max_length,
        "finishing": names[0],
        "encoder": None if plan is None else plan.to_json(),
        "reading": checkpoint.reading.to_json(),
        "preprocessing": None if preprocessing is None else preprocessing.to_json(),
        "facts": dict(checkpoint.facts if facts is None else facts),
    }
    parts = {"decoder": decoder.state_dict(), "encoder": checkpoint.encoder_state or {}}
    state = {f"{part}.{name}": tensor.cpu() for part, tensors in parts.items() for name, tensor in tensors.items()}
    try:
        text = json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False)
        # A copy each, because the format refuses tensors that share their memory.
        weights = safetensors.torch.save({name: tensor.contiguous().clone() for name, tensor in state.items()})
        Path(os.fspath(folder)).mkdir(parents=True, exist_ok=True)
        replace_file(Path(os.fspath(folder)) / WEIGHTS, weights)
        replace_file(Path(os.fspath(folder)) / RECORD, text.encode())
    except (OSError, TypeError, ValueError) as error:
        raise GradlightError(f"{format_path(folder)}: the captioner cannot be written there: {error}.") from error


def read_folder(folder: PathLike) -> Checkpoint:
    """Read a captioner that `write_folder` wrote; raises GradlightError for one that is not whole, or newer."""
    path = Path(os.fspath(folder)) / RECORD
    record = read_json(path)
    with about(path):
        _check_version(record)
        vocabulary = Vocabulary.from_json(_get(record, "vocabulary", dict))
        plan = ResNetPlan.from_json(_get(record, "encoder", dict)) if record.get("encoder") is not None else None
        preprocessing = None if record.get("preprocessing") is None else _preprocessing(record["preprocessing"])
        family, project = _get(record, "family", str), _get(record, "project", str)
        finishing = _FINISHINGS.get(_get(record, "finishing", str))
        reading = FeaturePooling.from_json(_get(record, "reading", dict))
        limit = _get(record, "max_length", int)
        facts = _get(record, "facts", dict)
        if finishing is None or not 1 <= limit <= _LONGEST:
            raise GradlightError(f"finishing={record['finishing']!r} or max_length={limit!r} is none that there is.")
    weights = path.with_name(WEIGHTS)
    state = read_state(weights)
    with about(weights):
        parts = {name.partition(".")[0] for name in state}
        if parts != {"decoder"} | ({"encoder"} if plan else set()):
            raise GradlightError(f"It holds {', '.join(sorted(parts))}, which is not what {RECORD} says.")
        decoder = build_decoder(family, _part(state, "decoder."), vocabulary.specials, limit, finishing)
        _check_words(vocabulary, decoder)
        encoder = None if plan is None else check_encoder(_part(state, "encoder."), plan, reading, decoder)
    return Checkpoint(family, project, decoder, vocabulary, encoder, plan, reading, preprocessing, facts)


def _check_version(record: Mapping[str, Any]) -> None:
    if record.get("format") != _FORMAT:
        raise GradlightError(f"This is no record of a captioner (format {record.get('format')!r}).")
    version = _get(record, "format_version", int)
    if version > _VERSION:
        raise GradlightError(f"It is of format {version}, and this gradlight knows {_VERSION}: use a newer gradlight.")


def _check_words(vocabulary: Vocabulary, decoder: Decoder) -> None:
    specials, columns = vocabulary.specials, decoder.logit.out_features
    numbers = [*vocabulary.words, specials.end, *(() if specials.unk is None else (specials.unk,))]
    rows = int(decoder.get_parameter("embed.weight").shape[0])
    if not (all(0 <= number < min(columns, rows) for number in numbers) and 0 <= specials.bos < rows):
        raise GradlightError(f"It knows {columns} words, and {RECORD} speaks of others.")


def _get(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise GradlightError(f"{name!r} is missing or no {kind.__name__}.")
    return value


def _part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST_PIXELS


def _preprocessing(record: Any) -> Preprocessing:
    """Make a preprocessing again from what its to_json gave."""
    try:
        known = {each.name for each in fields(Preprocessing)}
        if set(record) != known:
            raise ValueError(f"it needs {', '.join(sorted(known))}")
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
        }
        made = Preprocessing(**values)
        InterpolationMode(made.interpolation)
        good = (
            all(len(pair) == 2 and all(map(_is_length, pair)) for pair in (made.size, made.resize)),
            all(len(rgb) == 3 and all(isinstance(n, int | float) for n in rgb) for rgb in (made.mean, made.std)),
            all(n > 0 for n in made.std),
            len(made.fill) == 3 and all(isinstance(n, int) and 0 <= n < 256 for n in made.fill),
            made.fit in _FITS,
        )
        if not all(good):
            raise ValueError("a value is out of range")
    except (TypeError, ValueError) as error:
        raise GradlightError(f"This is no record of a preprocessing: {error}.") from error
    return made
