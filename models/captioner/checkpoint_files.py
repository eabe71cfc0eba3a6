"""Which files make up a captioner: found from a folder, or from any one of them."""

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

__all__ = ["Sources", "locate"]

_MODEL = re.compile(r"model(-best|-\d+)?(\.[\w-]+)*\.pth")
_INFOS = re.compile(r"infos_.+\.pkl")
_WORDMAP = re.compile(r"WORDMAP_.+\.json")
_CAFFE = "resnet101.pth"
_NOT_OPENED = re.compile(r"(optimizer|histories_|model_vse).*")
_WANTED = (
    "Give a folder with infos_<id>.pkl and model.pth or model-best.pth (ImageCaptioning.pytorch, DiscCaptioning), with"
    f" a .pth.tar and its WORDMAP_*.json (the soft-attention tutorial), or with {RECORD} (gradlight), or one of these"
    " files."
)


@dataclass(frozen=True)
class Sources:
    """The files of a captioner. kind: "gradlight" (weights is the folder), "trained" or "tutorial".

    words: the pickle, or the word map. encoder: of a CNN apart; finetuned, or as it was before.
    """

    kind: str
    weights: Path
    words: Path
    encoder: Path | None = None
    finetuned: bool = False


def locate(path: PathLike) -> Sources:
    """Find the files of a captioner from its folder or one of its files.

    Of several states of one training the best is taken. Raises GradlightError where a file is missing, or where the
    names leave open which files belong together.
    """
    format_path(path)  # refuses what is no path
    place = Path(os.fsdecode(path))
    if place.is_dir():
        return _in_folder(place)
    _check_there(place)
    name, names = place.name, _names(place.parent)
    if name in (RECORD, WEIGHTS):
        return Sources("gradlight", place.parent, place)
    if name.endswith(".ckpt"):
        raise GradlightError(
            f"{format_path(place)}: a Lightning checkpoint. Its vocabulary and options are pickles inside tensors (_vocab,"
            " _opt), which could run programs, and are not opened. Give model.pth and infos_<id>.pkl of the training."
        )
    if name.endswith(".tar"):
        return Sources("tutorial", place, _word_map(place, names))
    if _WORDMAP.fullmatch(name):
        return Sources("tutorial", _tar(place.parent, _tars(names), [name]), place)
    if _INFOS.fullmatch(name):
        return _with_encoder(place.parent / _model(place.parent, names, _suffix(name)), place, names)
    if name.startswith("model-cnn") or name == _CAFFE:
        raise GradlightError(f"{format_path(place)}: the encoder of a captioner alone. {_WANTED}")
    if name.endswith((".pth", ".pt", ".bin")) and not _NOT_OPENED.fullmatch(name):
        return _with_encoder(place, _infos(place, names), names)
    raise GradlightError(f"{format_path(place)}: no file that a captioner is read from. {_WANTED}")


def _in_folder(folder: Path) -> Sources:
    names = _names(folder)
    if RECORD in names:
        return Sources("gradlight", folder, folder / RECORD)
    infos, tars = any(map(_INFOS.fullmatch, names)), _tars(names)
    if infos:
        model = folder / _model(folder, names, "-best")
        return _with_encoder(model, _infos(model, names), names)
    if tars:
        weights = _tar(folder, tars, names)
        return Sources("tutorial", weights, _word_map(weights, names))
    there = f" It holds {', '.join(names[:8])}{' and more' if len(names) > 8 else ''}." if names else " It is empty."
    raise GradlightError(f"{format_path(folder)}: no captioner is in this folder. {_WANTED}{there}")


def _check_there(place: Path) -> None:
    try:
        open_regular(place).close()
    except GradlightError as error:
        known = _names(place.parent) if place.parent.is_dir() and not place.exists() else []
        raise GradlightError(f"{error}{nearest(place.name, known)}") from error


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be opened: {error.strerror or error}.") from error


def _tars(names: Sequence[str]) -> list[str]:
    return [name for name in names if name.endswith(".pth.tar")]


def _suffix(name: str) -> str:
    """Tell which state of a training a file is of: "-best", "-3000" (iterations), or "" for the last."""
    found = re.search(r"(-best|-\d+)?(\.[\w-]+)*\.(pth|pkl)$", name)
    return (found[1] if found else None) or ""


def _model(folder: Path, names: Sequence[str], suffix: str) -> str:
    """Choose the weights of a state, or else the best, the last, or the latest by its number."""
    models = [name for name in names if _MODEL.fullmatch(name)]
    for wanted in (f"model{suffix}.pth", "model-best.pth", "model.pth"):
        if wanted in models:
            return wanted
    if not models:
        raise GradlightError(f"{format_path(folder)}: no model.pth or model-best.pth lies beside the infos. {_WANTED}")
    numbered = [name for name in models if re.fullmatch(r"model-\d+\.pth", name)]
    if numbered:
        return max(numbered, key=lambda name: int(name[len("model-") : -len(".pth")]))
    return _only(folder, models, "model").name


def _infos(model: Path, names: Sequence[str]) -> Path:
    """Find the pickle beside a model, of the same state if there is one; the words of all states are the same."""
    infos = [name for name in names if _INFOS.fullmatch(name)]
    suffix = _suffix(model.name)
    best = [name for name in infos if name.endswith("-best.pkl")]
    stems = {name.removesuffix("-best.pkl").removesuffix(".pkl") for name in infos}
    # infos_fc-3000.pkl is a state of infos_fc.pkl, but infos_fc-2018.pkl alone is a name.
    states = [name for name in infos if re.sub(r"-\d+\.pkl$", "", name) in stems and re.search(r"-\d+\.pkl$", name)]
    last = [name for name in infos if name not in best and name not in states]
    same = [name for name in infos if suffix and name.endswith(f"{suffix}.pkl")] if suffix else last
    found = same or (last or best if suffix else best) or infos
    if not found:
        raise GradlightError(
            f"{format_path(model)}: the words are missing; no infos_<id>.pkl lies beside it. {_WANTED}"
        )
    return _only(model.parent, found, "infos_<id>.pkl")


def _tar(folder: Path, tars: Sequence[str], names: Sequence[str]) -> Path:
    """Choose the best state among those that a word map is named after."""
    named = [name for name in tars if _map_of(name) in names] or list(tars)
    best = [name for name in named if name.startswith("BEST_")]
    return _only(folder, best or named, "checkpoint (.pth.tar)")


def _map_of(name: str) -> str:
    data = re.sub(r"^(BEST_)?(checkpoint_)?|(\.pth)?\.tar$", "", name)
    return f"WORDMAP_{data}.json"


def _word_map(weights: Path, names: Sequence[str]) -> Path:
    maps = [name for name in names if _WORDMAP.fullmatch(name)]
    own = _map_of(weights.name)
    if own in maps:
        return weights.with_name(own)
    if not maps:
        raise GradlightError(f"{format_path(weights)}: the words are missing; no {own} lies beside it.")
    return _only(weights.parent, maps, "WORDMAP_*.json")


def _only(folder: Path, names: Sequence[str], what: str) -> Path:
    if len(names) == 1:
        return folder / names[0]
    if not names:
        raise GradlightError(f"{format_path(folder)}: no {what} is in this folder.")
    raise GradlightError(
        f"{format_path(folder)}: which {what} is meant is open: {', '.join(names)}. Give one of them as the path, or leave"
        " only those in the folder that belong together."
    )


def _with_encoder(model: Path, infos: Path, names: Sequence[str]) -> Sources:
    for name in (f"model-cnn{_suffix(model.name)}.pth", "model-cnn.pth"):
        if name in names:
            return Sources("trained", model, infos, model.with_name(name), finetuned=True)
    return Sources("trained", model, infos, model.with_name(_CAFFE) if _CAFFE in names else None)
