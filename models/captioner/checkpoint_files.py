"""Find the files of a captioner's checkpoint, from its folder or from any one of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ...errors import GradlightError, nearest
from ...files import format_path, open_regular
from ..checkpoints import PathLike
from .format import RECORD, WEIGHTS

__all__ = ["CheckpointFiles", "find_checkpoint_files"]

_MODEL = re.compile(r"model(-best|-\d+)?(\.[\w-]+)*\.pth")
_INFOS = re.compile(r"infos_.+\.pkl")
_WORD_MAP = re.compile(r"WORDMAP_.+\.json")
_CAFFE_ENCODER = "resnet101.pth"
_NEVER_WEIGHTS = re.compile(r"(optimizer|histories_|model_vse).*")
_EXPECTED = (
    "Give a folder with infos_<id>.pkl and model.pth or model-best.pth (ImageCaptioning.pytorch, DiscCaptioning), with"
    f" a .pth.tar and its WORDMAP_*.json (the soft-attention tutorial), or with {RECORD} (gradlight), or one of these"
    " files."
)


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a captioner.

    Args:
        kind: "gradlight", "trained" (ImageCaptioning.pytorch, DiscCaptioning) or "tutorial" (soft attention).
        weights: the file of the weights; of "gradlight" the folder.
        vocabulary: the file of the words: the infos pickle, the word map, or gradlight's record.
        encoder: the file of an encoder with weights of its own.
        finetuned: whether this encoder was trained together with the decoder.
    """

    kind: str
    weights: Path
    vocabulary: Path
    encoder: Path | None = None
    finetuned: bool = False


def find_checkpoint_files(path: PathLike) -> CheckpointFiles:
    """Find the files of a captioner.

    Args:
        path: its folder, or one of its files. Of several states of one training the best is taken.

    Returns:
        The files.

    Raises:
        GradlightError: where a file is missing, or where the names do not say which files belong together.
    """
    format_path(path)  # raises for what is no path
    file = Path(os.fsdecode(path))
    if file.is_dir():
        return _find_in_folder(file)
    _check_readable(file)
    name, names = file.name, _file_names(file.parent)
    if name in (RECORD, WEIGHTS):
        return CheckpointFiles("gradlight", file.parent, file)
    if name.endswith(".ckpt"):
        raise GradlightError(
            f"{format_path(file)}: a Lightning checkpoint. Its vocabulary and options are pickles inside tensors"
            " (_vocab, _opt), which could run programs, and are not opened. Give model.pth and infos_<id>.pkl of the"
            " training."
        )
    if name.endswith(".tar"):
        return CheckpointFiles("tutorial", file, _find_word_map(file, names))
    if _WORD_MAP.fullmatch(name):
        return CheckpointFiles("tutorial", _choose_tar(file.parent, _tar_names(names), [name]), file)
    if _INFOS.fullmatch(name):
        return _with_encoder(file.parent / _choose_model(file.parent, names, _state_suffix(name)), file, names)
    if name.startswith("model-cnn") or name == _CAFFE_ENCODER:
        raise GradlightError(f"{format_path(file)}: the encoder of a captioner alone. {_EXPECTED}")
    if name.endswith((".pth", ".pt", ".bin")) and not _NEVER_WEIGHTS.fullmatch(name):
        return _with_encoder(file, _find_infos(file, names), names)
    raise GradlightError(f"{format_path(file)}: no file of a captioner's checkpoint. {_EXPECTED}")


def _find_in_folder(folder: Path) -> CheckpointFiles:
    names = _file_names(folder)
    if RECORD in names:
        return CheckpointFiles("gradlight", folder, folder / RECORD)
    if any(map(_INFOS.fullmatch, names)):
        model = folder / _choose_model(folder, names, "-best")
        return _with_encoder(model, _find_infos(model, names), names)
    if tars := _tar_names(names):
        weights = _choose_tar(folder, tars, names)
        return CheckpointFiles("tutorial", weights, _find_word_map(weights, names))
    content = f" It holds {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}." if names else " It is empty."
    raise GradlightError(f"{format_path(folder)}: no captioner is in this folder. {_EXPECTED}{content}")


def _check_readable(file: Path) -> None:
    """Raise GradlightError if a file cannot be opened, with the nearest names of its folder."""
    try:
        open_regular(file).close()
    except GradlightError as error:
        names = _file_names(file.parent) if file.parent.is_dir() and not file.exists() else []
        raise GradlightError(f"{error}{nearest(file.name, names)}") from error


def _file_names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be opened: {error.strerror or error}.") from error


def _only_file(folder: Path, names: Sequence[str], kind: str) -> Path:
    """Return the only file of a kind; raises GradlightError if there are none or several."""
    if len(names) == 1:
        return folder / names[0]
    if not names:
        raise GradlightError(f"{format_path(folder)}: no {kind} is in this folder.")
    raise GradlightError(
        f"{format_path(folder)}: the {kind} is ambiguous: {', '.join(names)}. Give one of them as the path, or"
        " leave only those in the folder that belong together."
    )


# --- ImageCaptioning.pytorch and DiscCaptioning


def _state_suffix(name: str) -> str:
    """Return which state of a training a file is of: "-best", "-3000" (iterations), or "" for the last."""
    match = re.search(r"(-best|-\d+)?(\.[\w-]+)*\.(pth|pkl)$", name)
    return (match[1] if match else None) or ""


def _choose_model(folder: Path, names: Sequence[str], suffix: str) -> str:
    """Choose the weights of a state, or else the best, the last, or the latest by its number."""
    models = [name for name in names if _MODEL.fullmatch(name)]
    for preferred in (f"model{suffix}.pth", "model-best.pth", "model.pth"):
        if preferred in models:
            return preferred
    if not models:
        raise GradlightError(
            f"{format_path(folder)}: no model.pth or model-best.pth is beside the infos file. {_EXPECTED}"
        )
    numbered = [name for name in models if re.fullmatch(r"model-\d+\.pth", name)]
    if numbered:
        return max(numbered, key=lambda name: int(name[len("model-") : -len(".pth")]))
    return _only_file(folder, models, "model").name


def _find_infos(model: Path, names: Sequence[str]) -> Path:
    """Find the pickle beside a model, of the same state if there is one; all states have the same words."""
    infos = [name for name in names if _INFOS.fullmatch(name)]
    suffix = _state_suffix(model.name)
    best = [name for name in infos if name.endswith("-best.pkl")]
    stems = {name.removesuffix("-best.pkl").removesuffix(".pkl") for name in infos}
    # infos_fc-3000.pkl is a state of infos_fc.pkl, but infos_fc-2018.pkl alone is a name.
    states = [name for name in infos if re.sub(r"-\d+\.pkl$", "", name) in stems and re.search(r"-\d+\.pkl$", name)]
    last = [name for name in infos if name not in best and name not in states]
    same_state = [name for name in infos if suffix and name.endswith(f"{suffix}.pkl")] if suffix else last
    candidates = same_state or (last or best if suffix else best) or infos
    if not candidates:
        raise GradlightError(
            f"{format_path(model)}: the vocabulary is missing; no infos_<id>.pkl is beside it. {_EXPECTED}"
        )
    return _only_file(model.parent, candidates, "infos_<id>.pkl")


def _with_encoder(model: Path, infos: Path, names: Sequence[str]) -> CheckpointFiles:
    """Add the encoder: the one that was trained together with the decoder, or the Caffe ResNet beside it."""
    for name in (f"model-cnn{_state_suffix(model.name)}.pth", "model-cnn.pth"):
        if name in names:
            return CheckpointFiles("trained", model, infos, model.with_name(name), finetuned=True)
    encoder = model.with_name(_CAFFE_ENCODER) if _CAFFE_ENCODER in names else None
    return CheckpointFiles("trained", model, infos, encoder)


# --- The soft-attention tutorial


def _tar_names(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith(".pth.tar")]


def _choose_tar(folder: Path, tars: Sequence[str], names: Sequence[str]) -> Path:
    """Choose the best state among those that a word map is named after."""
    with_map = [name for name in tars if _word_map_name(name) in names] or list(tars)
    best = [name for name in with_map if name.startswith("BEST_")]
    return _only_file(folder, best or with_map, "checkpoint (.pth.tar)")


def _word_map_name(tar: str) -> str:
    """Return the name of the word map that belongs to a checkpoint."""
    data = re.sub(r"^(BEST_)?(checkpoint_)?|(\.pth)?\.tar$", "", tar)
    return f"WORDMAP_{data}.json"


def _find_word_map(weights: Path, names: Sequence[str]) -> Path:
    """Find the word map beside a checkpoint, by its name, or the only one."""
    maps = [name for name in names if _WORD_MAP.fullmatch(name)]
    own = _word_map_name(weights.name)
    if own in maps:
        return weights.with_name(own)
    if not maps:
        raise GradlightError(f"{format_path(weights)}: the vocabulary is missing; no {own} is beside it.")
    return _only_file(weights.parent, maps, "WORDMAP_*.json")
