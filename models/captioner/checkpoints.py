"""Read captioners from checkpoints of other projects, and our own, without executing them; and find their encoder."""

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
from .checkpoint_files import CheckpointFiles, find_checkpoint_files
from .decoder import KEPT, REMOVED, REPLACED, SpecialTokens
from .encoder import FeaturePooling, ResNetPlan, build_resnet, infer_plan, resnet_trunk
from .format import MAX_LENGTH, Checkpoint, naming_file, read_folder, read_json, validated_encoder
from .safe_pickle import InertNamespace, read_pickle
from .state_dicts import RecognisedDecoder, build_decoder, read_modules, read_weights, recognise
from .vocabulary import Vocabulary

__all__ = ["Checkpoint", "build_encoder", "find_encoder", "read_checkpoint"]

_DEFAULT_LABEL_LENGTH = 16
_DEFAULT_MAX_LENGTH = 20
_GRID = 14
_FINETUNED_SIZE = 224
_TUTORIAL_LENGTH = 51
_TUTORIAL_SIZE = 256
_PROBE_SIZE = 64
_SEQUENTIAL_NAMES = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
"""Where torchvision's modules are in an nn.Sequential of a ResNet."""
_CAFFE_PROJECTS = ("ImageCaptioning.pytorch", "DiscCaptioning")
"""Projects whose own ResNet was converted from Caffe."""


def read_checkpoint(path: PathLike) -> Checkpoint:
    """Read a captioner from its folder or from one of its files; nothing of a file is executed.

    Args:
        path: ImageCaptioning.pytorch and DiscCaptioning: infos_<id>.pkl, model.pth, and, where they exist,
            model-cnn.pth or resnet101.pth. The soft-attention tutorial: a .pth.tar and its WORDMAP_*.json. gradlight:
            captioner.json and captioner.safetensors.

    Returns:
        The decoder with its weights, its vocabulary, and the weights of its encoder if the files have any.

    Raises:
        GradlightError: with the name of the file, for every other file, for families that cannot be built, and where
            vocabulary and weights do not belong together.

    Example:
        >>> from importlib.resources import files
        >>> checkpoint = read_checkpoint(files("gradlight.data") / "bundled" / "captioner")
        >>> checkpoint.family, checkpoint.project
        ('att2in2', 'gradlight')
        >>> checkpoint.vocabulary.decode(checkpoint.vocabulary.encode("A red star"))
        ['a', 'red', 'star']
    """
    files = find_checkpoint_files(path)
    if files.kind == "gradlight":
        return read_folder(files.weights)
    return _read_tutorial(files) if files.kind == "tutorial" else _read_trained(files)


# --- ImageCaptioning.pytorch and DiscCaptioning


def _read_trained(files: CheckpointFiles) -> Checkpoint:
    """Read a captioner of ImageCaptioning.pytorch or DiscCaptioning."""
    weights = read_weights(files.weights)
    with naming_file(files.weights):
        if {"_vocab", "_opt"} & set(weights):
            raise GradlightError("It holds pickles inside tensors (_vocab, _opt), which could run programs.")
        recognised = recognise(weights)
    infos = read_pickle(files.vocabulary)
    if not isinstance(infos, dict) or "vocab" not in infos:
        raise GradlightError(
            f"{format_path(files.vocabulary)}: no infos_<id>.pkl of a training, which is a dict with a vocab."
        )
    options = _options(infos.get("opt"))
    rows, columns = (len(recognised.state.get(name, ())) for name in ("embed.weight", "logit.weight"))
    is_disc = recognised.joint or rows == columns + 1
    with naming_file(files.vocabulary):
        words = _vocab_words(infos["vocab"], columns - 1)
        _warn_of_differences(recognised, options)
    if is_disc:
        special_tokens = SpecialTokens(columns, 0, _find_unk(words))
        max_length = _length(options.get("seq_length"), _DEFAULT_LABEL_LENGTH)
    else:
        special_tokens = _special_tokens(recognised, options, words)
        max_length = _max_length(recognised.family, options, infos)
    with naming_file(files.weights):
        end_rule = KEPT if is_disc else REPLACED
        decoder = build_decoder(recognised.family, recognised.state, special_tokens, max_length, end_rule)
    pooling = FeaturePooling(
        None if files.finetuned else _GRID, recognised.family == "att2in2" and bool(options.get("use_box"))
    )
    encoder: dict[str, Tensor] | None = None
    plan: ResNetPlan | None = None
    if files.encoder is not None:
        weights = read_weights(files.encoder)
        with naming_file(files.encoder):
            weights = _rename_sequential(weights, "") if files.finetuned else _without_head(weights)
            plan = infer_plan(weights, "ceil")
            encoder = validated_encoder(weights, plan, pooling, decoder)
    return Checkpoint(
        recognised.family,
        "DiscCaptioning" if is_disc else "ImageCaptioning.pytorch",
        decoder,
        Vocabulary(words, special_tokens),
        encoder,
        plan,
        pooling,
        Preprocessing(size=(_FINETUNED_SIZE,) * 2, fit="squash") if files.finetuned else None,
        {**_file_facts(files), **_training_facts(infos)},
    )


def _options(opt: Any) -> Mapping[Any, Any]:
    """Return the options of a training, which are a namespace or a dict."""
    return opt.state if isinstance(opt, InertNamespace) else opt if isinstance(opt, dict) else {}


def _vocab_words(vocab: Any, count: int) -> dict[int, str]:
    """Return the words 1…count of a vocab, which maps numbers (as text) to words."""
    try:
        words = {int(number): _repair_utf8(word) for number, word in vocab.items()}
    except (AttributeError, TypeError, ValueError) as error:
        raise GradlightError(f"Its vocab is no dict from numbers to words ({type(error).__name__}).") from error
    if set(words) != set(range(1, count + 1)):
        raise GradlightError(
            f"It has {len(words)} words and the weights {count}: the two files are not of the same training."
        )
    return words


def _repair_utf8(word: Any) -> str:
    """Decode the UTF-8 of a word that Python 2 pickled as bytes."""
    if not isinstance(word, str):
        raise TypeError("no word")
    try:
        return word.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return word


def _find_unk(words: Mapping[int, str]) -> int | None:
    """Return the number of UNK, which is the last word in every file of the projects that has one."""
    return next((number for number in sorted(words, reverse=True) if words[number].casefold() == "unk"), None)


def _special_tokens(
    recognised: RecognisedDecoder, options: Mapping[Any, Any], words: Mapping[int, str]
) -> SpecialTokens:
    """Return the numbers of BOS and END: 0, unless the options of a later family have others."""
    has_own = recognised.family in ("newfc", "att2in2")
    bos, end = (_index(options.get(name), len(words)) if has_own else 0 for name in ("bos_idx", "eos_idx"))
    return SpecialTokens(bos, end, _find_unk(words))


def _index(value: Any, last: int) -> int:
    """Return a value if it is an integer from 0 to last, and 0 otherwise."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= last else 0


def _max_length(family: str, options: Mapping[Any, Any], infos: Mapping[Any, Any]) -> int:
    """Return the maximal number of tokens: the labels' length, or `max_length` if the project already had that."""
    label_length = _length(options.get("seq_length"), _DEFAULT_LABEL_LENGTH)
    if family in ("newfc", "att2in2") and ("max_length" in options or "loader_state_dict" in infos):
        return _length(options.get("max_length", _DEFAULT_MAX_LENGTH), label_length)
    return label_length


def _length(value: Any, default: int) -> int:
    """Return a value if it can be a length, and the default otherwise."""
    is_length = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_LENGTH
    return value if is_length else default


def _warn_of_differences(recognised: RecognisedDecoder, options: Mapping[Any, Any]) -> None:
    """Warn where the options name another family, or features that are not those of a grid."""
    model = options.get("caption_model")
    if isinstance(model, str) and model != recognised.family:
        _warn(
            f"The options say caption_model={model[:40]!r}, but the weights are those of {recognised.family}, which is"
            " used."
        )
    attends = recognised.family == "att2in2"
    folder = options.get("input_att_dir" if attends else "input_fc_dir")
    name = re.split(r"[/\\]", folder.rstrip("/\\"))[-1] if isinstance(folder, str) else ""
    if "bu" in name or (attends and (options.get("use_box") or "box" in name)):
        _warn(
            f"It was trained on features of regions that a detector found ({name[:40]}); features of the image's grid"
            " are used in their place, so its captions are not those of its project."
        )
    if attends and (options.get("norm_att_feat") or options.get("norm_box_feat")):
        _warn("It was trained on features of length 1 (norm_att_feat, norm_box_feat), and here their lengths differ.")


def _warn(message: str) -> None:
    warnings.warn(message, GradlightWarning, stacklevel=2)


def _file_facts(files: CheckpointFiles) -> dict[str, Any]:
    paths: list[Path] = [files.weights, files.vocabulary, *([files.encoder] if files.encoder else [])]
    return {"files": [path.name for path in paths]}


def _training_facts(infos: Mapping[Any, Any]) -> dict[str, float]:
    """Return the numbers that the infos have about the training."""
    facts = {name: infos.get(name) for name in ("iter", "epoch", "best_val_score")}
    return {name: n for name, n in facts.items() if isinstance(n, int | float) and math.isfinite(n)}


# --- The soft-attention tutorial


def _read_tutorial(files: CheckpointFiles) -> Checkpoint:
    """Read a captioner of the soft-attention tutorial."""
    modules = read_modules(files.weights)
    word_map = read_json(files.vocabulary)
    with naming_file(files.weights):
        recognised = recognise(modules["decoder"])
        if recognised.family != "soft attention":
            raise GradlightError(
                f"Its decoder is of the family {recognised.family}, which this kind of file never holds."
            )
    with naming_file(files.vocabulary):
        special_tokens = _word_map_special_tokens(word_map, len(recognised.state.get("logit.weight", ())))
    start_and_end = (special_tokens.bos, special_tokens.end)
    words = {number: word for word, number in word_map.items() if number not in start_and_end}
    with naming_file(files.weights):
        decoder = build_decoder(recognised.family, recognised.state, special_tokens, _TUTORIAL_LENGTH, REMOVED)
        state = _rename_sequential(modules["encoder"], "resnet.")
        plan = infer_plan(state)
        encoder = validated_encoder(state, plan, FeaturePooling(_GRID), decoder)
    return Checkpoint(
        recognised.family,
        "soft attention tutorial",
        decoder,
        Vocabulary(words, special_tokens),
        encoder,
        plan,
        FeaturePooling(_GRID),
        Preprocessing(size=(_TUTORIAL_SIZE,) * 2, resize=(_TUTORIAL_SIZE,) * 2, fit="squash"),
        _file_facts(files),
    )


def _word_map_special_tokens(word_map: Mapping[str, Any], count: int) -> SpecialTokens:
    """Check a word map against the weights' number of words; return the numbers of <start>, <end> and <unk>."""
    missing = [word for word in ("<start>", "<end>") if word not in word_map]
    all_numbers = all(isinstance(number, int) and not isinstance(number, bool) for number in word_map.values())
    if missing or not all_numbers:
        raise GradlightError(f"It is no word map: {' and '.join(missing) or 'a number for every word'} is missing.")
    if set(word_map.values()) != set(range(count)) or len(word_map) != count:
        raise GradlightError(
            f"It numbers {len(word_map)} words and the weights have {count}: the two files are not of the same"
            " training."
        )
    return SpecialTokens(word_map["<start>"], word_map["<end>"], word_map.get("<unk>"))


# --- The encoder of a checkpoint


def find_encoder(
    checkpoint: Checkpoint, encoder: str | PathLike | nn.Module | None, pretrained: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Find the encoder of a captioner.

    Args:
        checkpoint: its own encoder is used if no other is given.
        encoder: "timm/NAME", "torchvision/NAME", a file of ResNet weights with torchvision's names, or a ResNet; None:
            that of the checkpoint, or else torchvision's ResNet101.
        pretrained: whether a named encoder, or torchvision's ResNet101, gets its pretrained weights.

    Returns:
        The encoder, and a record of its origin in JSON types.

    Raises:
        GradlightError: for what is no ResNet.
    """
    if isinstance(encoder, nn.Module):
        return resnet_trunk(encoder), {"source": type(encoder).__name__}
    if encoder is not None:
        name = os.fspath(encoder)
        return _named_encoder(name, pretrained) if _is_library_name(name) else _encoder_from_file(checkpoint, name)
    if checkpoint.encoder_state is not None:
        plan = checkpoint.plan or infer_plan(checkpoint.encoder_state)
        resnet = build_resnet(plan)
        _load_encoder(resnet, checkpoint.encoder_state, "the checkpoint's encoder")
        return resnet, {"source": "checkpoint", **plan.to_json()}
    return _named_encoder("torchvision/resnet101", pretrained)


def build_encoder(name: str, pretrained: bool) -> tuple[nn.Sequential, ResNetPlan]:
    """Build an encoder from its plan, as a checkpoint stores it.

    Args:
        name: "timm/NAME", "torchvision/NAME", or a file of ResNet weights.
        pretrained: whether a named encoder gets its pretrained weights.

    Returns:
        The encoder, and its plan.

    Raises:
        GradlightError: for what is no plain ResNet.
    """
    if _is_library_name(name):
        library, _, model = name.partition("/")
        return _rebuild(name, resnet_trunk(LIBRARIES[library](model, pretrained=pretrained).network))
    state = read_state(name)
    with naming_file(name):
        plan = infer_plan(state)
    encoder = build_resnet(plan)
    load_checkpoint(encoder, name, ignore=("fc.",))
    return encoder, plan


def _is_library_name(name: str) -> bool:
    """Return whether a name is "timm/NAME" or "torchvision/NAME", and not a file."""
    library, _, model = name.partition("/")
    return library in LIBRARIES and bool(model) and not os.path.exists(name)


def _named_encoder(name: str, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    library, _, model = name.partition("/")
    try:
        network = LIBRARIES[library](model, pretrained=pretrained).network
    except GradlightError as error:
        raise GradlightError(
            f"The captioner's encoder: {error} For a captioner: encoder=PATH names a file of ResNet weights."
        ) from error
    return resnet_trunk(network), {"source": name, "pretrained": pretrained}


def _encoder_from_file(checkpoint: Checkpoint, path: str) -> tuple[nn.Module, dict[str, Any]]:
    state = read_state(path)
    is_caffe = checkpoint.project in _CAFFE_PROJECTS and not _is_from_torchvision(path, state)
    plan = infer_plan(state, "ceil" if is_caffe else "padded")
    encoder = build_resnet(plan)
    _load_encoder(encoder, _without_head(state), format_path(path))
    return encoder, {"source": Path(path).name, **plan.to_json()}


def _is_from_torchvision(path: str, state: Mapping[str, Tensor]) -> bool:
    """Tell torchvision's files from those converted from Caffe: the keys are the same, but the strides differ."""
    has_counters = any(name.endswith("num_batches_tracked") for name in state)
    return has_counters or re.fullmatch(r"resnet\d+-[0-9a-f]{8}\.pth", Path(path).name) is not None


def _rename_sequential(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Give torchvision's names to the modules of a ResNet in an nn.Sequential."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        number, _, rest = name.removeprefix(prefix).partition(".")
        renamed[f"{_SEQUENTIAL_NAMES[number]}.{rest}" if number in _SEQUENTIAL_NAMES else name] = tensor
    return renamed


def _without_head(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}


def _load_encoder(encoder: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Load weights into an encoder; batch counters may be missing."""
    try:
        missing, unexpected = encoder.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise GradlightError(f"{source}: does not fit a ResNet: {' '.join(str(error).split())[:300]}") from error
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise GradlightError(f"{source}: is no plain ResNet; missing or unknown: {', '.join(wrong[:8])}.")


def _rebuild(name: str, trunk: nn.Sequential) -> tuple[nn.Sequential, ResNetPlan]:
    """Rebuild a network from its plan, and check that the two agree."""
    state = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    # Normalisations that begin at zero hide what precedes them; without them only a batch's own statistics fit.
    ones = {key: torch.ones_like(t) if t.ndim == 1 and key.endswith("weight") else t for key, t in state.items()}
    try:
        plan = infer_plan(state)
        encoder = build_resnet(plan)
        agrees = all(
            _agree(encoder.train(training), trunk.train(training), weights)
            for training, weights in ((True, ones), (False, state))
        )
        reason = "" if agrees else "the same weights give other maps there"
    except (GradlightError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
    if reason:
        raise GradlightError(
            f"The encoder {name} is no plain ResNet ({reason}), and no other can be written. Give a ResNet such as"
            " torchvision/resnet101 or timm/resnet50."
        )
    return encoder, plan


def _agree(first: nn.Module, second: nn.Module, state: dict[str, Tensor]) -> bool:
    """Return whether two networks map noise to the same values with the same weights."""
    noise = torch.rand(2, 3, _PROBE_SIZE, _PROBE_SIZE, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
    maps = []
    for network in (first, second):
        network.load_state_dict(state)
        with torch.no_grad():
            maps.append(network(noise))
    same = maps[0].shape == maps[1].shape
    return same and float((maps[0] - maps[1]).abs().max()) <= 1e-3 * float(maps[1].abs().max())
