"""Captioners of other projects, and our own, read from their files without running anything of them.

Which encoder a captioner's decoder sees with: that of its file, a given one, or torchvision's ResNet101.
"""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import GradlightError, GradlightWarning
from ...files import format_path
from ..checkpoints import PathLike, load_checkpoint, read_state
from ..preprocessing import Preprocessing
from ..zoo import LIBRARIES
from .checkpoint_files import Sources, locate
from .decoder import KEPT, LEAVES, REPLACED, SpecialTokens
from .encoder import FeaturePooling, ResNetPlan, build_resnet, plan_of, trunk_of
from .format import Checkpoint, about, check_encoder, read_folder, read_json
from .safe_pickle import Namespace, read_pickle
from .state_dicts import Recognised, build_decoder, read_modules, read_weights, recognise
from .vocabulary import Vocabulary

__all__ = ["Checkpoint", "build_encoder", "find_encoder", "read_checkpoint"]

_LABELS = 16
_MASTER = 20
_LONGEST = 1000
_SOFT = 51
_GRID = 14
_SOFT_SIZE = 256
_FINETUNED_SIZE = 224
_STAGES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Read a captioner from its folder or from one of its files (`folders.locate`); nothing of a file is executed.

    ImageCaptioning.pytorch and DiscCaptioning: infos_<id>.pkl, model.pth, and, where they are there, model-cnn.pth or
    resnet101.pth. The soft-attention tutorial: a .pth.tar and its WORDMAP_*.json. gradlight: captioner.json and
    captioner.safetensors. Raises GradlightError, which names the file, for every other file, for families that cannot
    be built, and where words and weights do not belong together.
    """
    sources = locate(path)
    if sources.kind == "gradlight":
        return read_folder(sources.weights)
    return _tutorial(sources) if sources.kind == "tutorial" else _trained(sources)


def _trained(sources: Sources) -> Checkpoint:
    """Read a captioner of ImageCaptioning.pytorch or DiscCaptioning."""
    state = read_weights(sources.weights)
    with about(sources.weights):
        if {"_vocab", "_opt"} & set(state):
            raise GradlightError("It holds pickles inside tensors (_vocab, _opt), which could run programs.")
        found = recognise(state)
    infos = read_pickle(sources.words)
    if not isinstance(infos, dict) or "vocab" not in infos:
        raise GradlightError(
            f"{format_path(sources.words)}: no infos_<id>.pkl of a training, which is a dict with a vocab."
        )
    options = _options(infos.get("opt"))
    rows, columns = (len(found.state.get(name, ())) for name in ("embed.weight", "logit.weight"))
    disc = found.joint or rows == columns + 1
    with about(sources.words):
        words = _words(infos["vocab"], columns - 1)
        _compare(found, options)
    specials = SpecialTokens(columns, 0, _unknown(words)) if disc else _specials(found, options, words)
    limit = _length(options.get("seq_length"), _LABELS) if disc else _limit(found.family, options, infos)
    with about(sources.weights):
        decoder = build_decoder(found.family, found.state, specials, limit, KEPT if disc else REPLACED)
    reading = _reading(found.family, options, sources.finetuned)
    encoder: dict[str, Tensor] | None = None
    plan: ResNetPlan | None = None
    if sources.encoder is not None:
        state = read_weights(sources.encoder)
        with about(sources.encoder):
            state = _staged(state, "") if sources.finetuned else _headless(state)
            plan = plan_of(state, "ceil")
            encoder = check_encoder(state, plan, reading, decoder)
    return Checkpoint(
        found.family,
        "DiscCaptioning" if disc else "ImageCaptioning.pytorch",
        decoder,
        Vocabulary(words, specials),
        encoder,
        plan,
        reading,
        Preprocessing(size=(_FINETUNED_SIZE,) * 2, fit="squash") if sources.finetuned else None,
        {**_facts(sources), **_numbers(infos)},
    )


def _tutorial(sources: Sources) -> Checkpoint:
    """Read a captioner of the soft-attention tutorial."""
    modules = read_modules(sources.weights)
    numbers = read_json(sources.words)
    with about(sources.weights):
        found = recognise(modules["decoder"])
        if found.family != "soft attention":
            raise GradlightError(f"Its decoder is of the family {found.family}, which this kind of file never holds.")
    with about(sources.words):
        specials = _map_specials(numbers, len(found.state.get("logit.weight", ())))
    words = {number: word for word, number in numbers.items() if number not in (specials.bos, specials.end)}
    with about(sources.weights):
        decoder = build_decoder(found.family, found.state, specials, _SOFT, LEAVES)
        state = _staged(modules["encoder"], "resnet.")
        plan = plan_of(state)
        encoder = check_encoder(state, plan, FeaturePooling(_GRID), decoder)
    preprocessing = Preprocessing(size=(_SOFT_SIZE,) * 2, resize=(_SOFT_SIZE,) * 2, fit="squash")
    return Checkpoint(
        found.family,
        "soft attention tutorial",
        decoder,
        Vocabulary(words, specials),
        encoder,
        plan,
        FeaturePooling(_GRID),
        preprocessing,
        _facts(sources),
    )


def _facts(sources: Sources) -> dict[str, Any]:
    files: list[Path] = [sources.weights, sources.words, *([sources.encoder] if sources.encoder else [])]
    return {"files": [file.name for file in files]}


def _numbers(infos: Mapping[Any, Any]) -> dict[str, float]:
    """Give what the infos tell of the training, where it is a plain number."""
    found = {name: infos.get(name) for name in ("iter", "epoch", "best_val_score")}
    return {name: n for name, n in found.items() if isinstance(n, int | float) and math.isfinite(n)}


def _options(opt: Any) -> Mapping[Any, Any]:
    return opt.state if isinstance(opt, Namespace) else opt if isinstance(opt, dict) else {}


def _words(vocab: Any, count: int) -> dict[int, str]:
    """Give the words 1…count of a vocab, number (as text) to word."""
    try:
        words = {int(number): _mended(word) for number, word in vocab.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise GradlightError(f"Its vocab is no dict from numbers to words ({type(error).__name__}).") from error
    if set(words) != set(range(1, count + 1)):
        raise GradlightError(
            f"It knows {len(words)} words and the weights {count}: the two files are not of the same training."
        )
    return words


def _mended(word: Any) -> str:
    """Give a word whose UTF-8 Python 2 had left as bytes."""
    if not isinstance(word, str):
        raise TypeError("no word")
    try:
        return word.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return word


def _unknown(words: Mapping[int, str]) -> int | None:
    """Find UNK, which is the last word in every file of the projects that has one."""
    return next((number for number in sorted(words, reverse=True) if words[number].casefold() == "unk"), None)


def _specials(found: Recognised, options: Mapping[Any, Any], words: Mapping[int, str]) -> SpecialTokens:
    """Give the numbers of BOS and END, both 0 unless the options of an attention model say otherwise."""
    own = found.family in ("newfc", "att2in2")
    bos, end = (_index(options.get(name), len(words)) if own else 0 for name in ("bos_idx", "eos_idx"))
    return SpecialTokens(bos, end, _unknown(words))


def _index(value: Any, last: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last else 0


def _limit(family: str, options: Mapping[Any, Any], infos: Mapping[Any, Any]) -> int:
    """Tell the most tokens of a caption: the labels' length, or `max_length` where the project already had that."""
    labels = _length(options.get("seq_length"), _LABELS)
    if family in ("newfc", "att2in2") and ("max_length" in options or "loader_state_dict" in infos):
        return _length(options.get("max_length", _MASTER), labels)
    return labels


def _length(value: Any, otherwise: int) -> int:
    sound = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LONGEST
    return value if sound else otherwise


def _compare(found: Recognised, options: Mapping[Any, Any]) -> None:
    """Warn where the options speak of another family, or of features that are not those of a grid."""
    said = options.get("caption_model")
    if isinstance(said, str) and said != found.family:
        _warn(
            f"The options say caption_model={said[:40]!r}, but the weights are those of {found.family}, and go first."
        )
    attends = found.family == "att2in2"
    folder = options.get("input_att_dir" if attends else "input_fc_dir")
    name = re.split(r"[/\\]", folder.rstrip("/\\"))[-1] if isinstance(folder, str) else ""
    if "bu" in name or (attends and (options.get("use_box") or "box" in name)):
        _warn(
            f"It was trained on features of regions that a detector found ({name[:40]}); features of the image's grid"
            " are used in their place, so its captions are not those of its project."
        )
    if attends and (options.get("norm_att_feat") or options.get("norm_box_feat")):
        _warn("It was trained on features of length 1 (norm_att_feat, norm_box_feat), and here their lengths differ.")


def _reading(family: str, options: Mapping[Any, Any], finetuned: bool) -> FeaturePooling:
    return FeaturePooling(None if finetuned else _GRID, family == "att2in2" and bool(options.get("use_box")))


def _warn(words: str) -> None:
    warnings.warn(words, GradlightWarning, stacklevel=2)


def _map_specials(numbers: Mapping[str, Any], count: int) -> SpecialTokens:
    """Check a word map against the number of words of the weights; give the numbers of <start>, <end> and <unk>."""
    missing = [word for word in ("<start>", "<end>") if word not in numbers]
    whole = all(isinstance(number, int) and not isinstance(number, bool) for number in numbers.values())
    if missing or not whole:
        raise GradlightError(f"It is no word map: {' and '.join(missing) or 'a number for every word'} is missing.")
    if set(numbers.values()) != set(range(count)) or len(numbers) != count:
        raise GradlightError(
            f"It numbers {len(numbers)} words and the weights know {count}: the two files are not of the same training."
        )
    return SpecialTokens(numbers["<start>"], numbers["<end>"], numbers.get("<unk>"))


def _staged(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Give torchvision's names to the parts of a ResNet that went by their places in a row."""
    named: dict[str, Tensor] = {}
    for name, tensor in state.items():
        number, _, rest = name.removeprefix(prefix).partition(".")
        named[f"{_STAGES[number]}.{rest}" if number in _STAGES else name] = tensor
    return named


def _headless(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


_CAFFE = ("ImageCaptioning.pytorch", "DiscCaptioning")
"""Projects whose own ResNet was converted from Caffe."""
_PROBE = 64


def find_encoder(
    found: Checkpoint, given: str | PathLike | nn.Module | None, pretrained: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Find the encoder of a checkpoint, with a record of where it comes from.

    given: "timm/NAME", "torchvision/NAME", a file of ResNet weights under torchvision's names, or a ResNet; it wins
    over the one in the checkpoint. pretrained: of torchvision's ResNet101, or of the named one. Raises GradlightError
    for what is no ResNet.
    """
    if isinstance(given, nn.Module):
        return trunk_of(given), {"source": type(given).__name__}
    if given is not None:
        name = os.fspath(given)
        library, _, rest = name.partition("/")
        if library in LIBRARIES and rest and not os.path.exists(name):
            return _named(name, pretrained)
        return _from_file(found, name)
    if found.encoder_state is not None:
        plan = found.plan or plan_of(found.encoder_state)
        encoder = build_resnet(plan)
        _fill(encoder, found.encoder_state, "the checkpoint's encoder")
        return encoder, {"source": "checkpoint", **plan.to_json()}
    return _named("torchvision/resnet101", pretrained)


def _named(name: str, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    library, _, rest = name.partition("/")
    try:
        network = LIBRARIES[library](rest, pretrained=pretrained).network
    except GradlightError as error:
        raise GradlightError(
            f"The captioner's encoder: {error} For a captioner: encoder=PATH names a file of ResNet weights."
        ) from error
    return trunk_of(network), {"source": name, "pretrained": pretrained}


def _from_file(found: Checkpoint, path: str) -> tuple[nn.Module, dict[str, Any]]:
    state = read_state(path)
    caffe = found.project in _CAFFE and not _torchvision_made(path, state)
    plan = plan_of(state, "ceil" if caffe else "padded")
    encoder = build_resnet(plan)
    _fill(encoder, {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, format_path(path))
    return encoder, {"source": Path(path).name, **plan.to_json()}


def _torchvision_made(path: str, state: Mapping[str, Tensor]) -> bool:
    """Tell torchvision's files from those converted from Caffe, whose strides lie elsewhere: the keys are the same."""
    counted = any(name.endswith("num_batches_tracked") for name in state)
    return counted or re.fullmatch(r"resnet\d+-[0-9a-f]{8}\.pth", Path(path).name) is not None


def _fill(encoder: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        missing, unexpected = encoder.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise GradlightError(f"{where}: does not fit a ResNet: {' '.join(str(error).split())[:300]}") from error
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise GradlightError(f"{where}: is no plain ResNet; missing or unknown: {', '.join(wrong[:8])}.")


def build_encoder(name: str, pretrained: bool) -> tuple[nn.Sequential, ResNetPlan]:
    """Build the encoder of a name or a file from a plan, since the plan is what is written."""
    library, _, rest = name.partition("/")
    if library in LIBRARIES and rest and not os.path.exists(name):
        return _rebuilt(name, trunk_of(LIBRARIES[library](rest, pretrained=pretrained).network))
    state = read_state(name)
    with about(name):
        plan = plan_of(state)
    eye = build_resnet(plan)
    load_checkpoint(eye, name, ignore=("fc.",))
    return eye, plan


def _rebuilt(name: str, trunk: nn.Sequential) -> tuple[nn.Sequential, ResNetPlan]:
    """Build a network's likeness from its plan, and see that it is one."""
    state = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    # Normalisations that begin at zero hide what lies before them; without them only a batch's own statistics fit.
    bare = {key: torch.ones_like(t) if t.ndim == 1 and key.endswith("weight") else t for key, t in state.items()}
    try:
        plan = plan_of(state)
        eye = build_resnet(plan)
        alike = all(_alike(eye.train(own), trunk.train(own), each) for own, each in ((True, bare), (False, state)))
        why = "" if alike else "the same weights give other maps there"
    except (GradlightError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
    if why:
        raise GradlightError(
            f"The encoder {name} is no plain ResNet ({why}), and no other can be written. Give a ResNet such as"
            " torchvision/resnet101 or timm/resnet50."
        )
    return eye, plan


def _alike(one: nn.Module, other: nn.Module, state: dict[str, Tensor]) -> bool:
    """Tell whether two networks make the same of noise by the same weights."""
    noise = torch.rand(2, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    maps = []
    for network in (one, other):
        network.load_state_dict(state)
        with torch.no_grad():
            maps.append(network(noise))
    same = maps[0].shape == maps[1].shape
    return same and float((maps[0] - maps[1]).abs().max()) <= 1e-3 * float(maps[1].abs().max())
