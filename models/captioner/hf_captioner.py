"""Open captioners of transformers (ViT-GPT2 and its like, BLIP, GIT), and score their captions word by word."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import GradlightError
from ..huggingface import SOURCE, Files, ImageProcessor, of_transformers, own_preprocess, preprocess_of
from ..objective import Targets
from ..preprocessing import Preprocess
from ..preserve import Device, to_device
from .captioner import Captioner, make_caption
from .decoder import PADDING, Decoder, Features, step_log_probs
from .hf_decoder import FAMILIES, HFDecoder, HFFamily, HFNetwork, SubwordTokenizer, flatten_tokens, read_setting
from .objective import CaptionObjective
from .search import DecodingOptions, Hypothesis
from .targets import Caption, CaptionTarget, Phrase, parse, word_by_word

__all__ = ["HFCaptioner", "SubwordDecodingOptions", "SubwordObjective", "open_captioner", "word_log_probs"]

_WordTokens = tuple[int, ...]

_POSITIONS = tuple(
    f"config.{scope}{name}"
    for scope in ("decoder.", "text_config.", "")
    for name in ("max_position_embeddings", "n_positions")
)
"""Where a network's settings have the maximal number of subwords that it reads."""


def open_captioner(
    source: Any,
    *,
    tokenizer: Any = None,
    pretrained: bool = True,
    preprocess: Callable[[Image.Image], Any] | None = None,
    device: Device = None,
    unk: str = "error",
    count_end: bool = True,
) -> HFCaptioner:
    """Open a captioner of transformers.

    Args:
        source: "transformers/NAME_OR_FOLDER", or a network of the library.
        tokenizer: a tokenizer of the library, its name or its folder; None: that of the same name or folder.
        pretrained: whether a named network gets its pretrained weights.
        preprocess: an image processor of the library, or a callable as for other captioners; None: that of the name or
            folder, or the one that the library has for such networks.
        device: where the network goes; None: a given network stays where it is.
        unk: what is done with unknown words of a target: "error" or "allow".
        count_end: whether END counts in the log-probability of a caption.

    Returns:
        The captioner.

    Raises:
        GradlightError: for networks that are no captioners of a supported family, and for a missing tokenizer or image
            processor.
    """
    with torch.inference_mode(False):
        files: Files | None = None
        network: Any = source
        if not isinstance(source, nn.Module):
            network, files = _load_named(os.fspath(source), pretrained)
        family = _find_family(network.config, type(network).__name__)
        tokenizer = _find_tokenizer(network, tokenizer)
        bos, end = (read_setting(network, names) for names in (family.bos, family.end))
        max_subwords = read_setting(network, _POSITIONS) - 1
        caption_network = HFNetwork(network, family, SubwordTokenizer(tokenizer, bos, end, max_subwords))
    if files is not None:
        caption_network.eval()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device is not None:
        to_device(caption_network, device)
    return HFCaptioner(
        caption_network,
        caption_network.decoder.tokenizer,
        _choose_preprocess(network, files, preprocess),
        name=type(network).__name__ if files is None else files.source,
        unk=unk,
        count_end=count_end,
        record={"project": SOURCE, "family": network.config.model_type},
    )


class HFCaptioner(Captioner):
    """A captioner of transformers: like `Captioner`, with a tuple of subword numbers as the token of each word."""

    network: HFNetwork
    vocabulary: SubwordTokenizer

    def objective(self, target: Any = None, unk: str | None = None) -> SubwordObjective:
        """Make the objective of a target (see `Captioner.objective`)."""
        return self._make_objective(target, self.unk if unk is None else unk, per_word=False)

    def word_objective(self, target: Any = None) -> SubwordObjective:
        """Make the objective with one target per word of a caption (see `Captioner.objective`)."""
        return self._make_objective(target, self.unk, per_word=True)

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types; "words" is the number of subwords of its tokenizer."""
        record = super().describe()
        return {name: value for name, value in record.items() if name not in ("decoder", "reading")}

    def _make_objective(self, target: Any, unk: str, per_word: bool) -> SubwordObjective:
        specs = parse(_encode_brackets(target, self.vocabulary, unk), self.vocabulary, unk)
        return SubwordObjective(
            self.network,
            self.vocabulary,
            word_by_word(specs) if per_word else specs,
            decoding=SubwordDecodingOptions(),
            count_end=self.count_end,
        )

    def _captions(self, features: dict[str, Tensor], hypotheses: Sequence[Hypothesis]) -> Iterator[Caption]:
        captions = [self.vocabulary.group_words(hypothesis.tokens) for hypothesis in hypotheses]
        steps = word_log_probs(self.network.decoder, features, captions)
        for hypothesis, tokens, row in zip(hypotheses, captions, steps.tolist(), strict=True):
            yield make_caption(tokens, self.vocabulary.decode(tokens), row, hypothesis.ended, self.count_end)

    def _check_width(self) -> None:
        """Check nothing: the library has joined encoder and decoder, and many accept pixels of only one size."""


# --- Decoding and scoring by words


class SubwordDecodingOptions(DecodingOptions):
    """How such a captioner decodes its own caption: a search over subwords, which are then grouped into words."""

    def decode(self, decoder: Decoder, features: Features) -> list[Hypothesis]:
        """Search the best caption of each image."""
        tokenizer = cast(HFDecoder, decoder).tokenizer
        return [
            replace(hypothesis, tokens=tokenizer.group_words(hypothesis.tokens))
            for hypothesis in super().decode(decoder, features)
        ]


class SubwordObjective(CaptionObjective):
    """Score captions word by word: the log-probability of a word is the sum over its subwords."""

    def _steps(self, outputs: dict[str, Tensor], targets: Targets) -> tuple[Tensor, list[int]]:
        """Run the decoder once over the U different captions: log-probabilities [U,W+1], and each target's row."""
        keys = [(image, cast(CaptionTarget, target).tokens) for image, row in enumerate(targets) for target in row]
        row_of = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        images = torch.tensor([image for image, _ in row_of], device=outputs["fc"].device)
        features = {name: tensor.index_select(0, images) for name, tensor in outputs.items()}
        steps = word_log_probs(self.network.decoder, features, [tokens for _, tokens in row_of])
        return steps, [row_of[key] for key in keys]


def word_log_probs(decoder: Decoder, features: Features, captions: Sequence[_WordTokens]) -> Tensor:
    """Compute the log-probabilities of captions' words, given the words before, and of END. The decoder runs once.

    Args:
        decoder: predicts subwords.
        features: the encoder's features, one row per caption.
        captions: U captions, each of them a tuple of words (tuples of subword numbers).

    Returns:
        The log-probabilities [U,W+1]: of each word, of END behind the last one, and zero behind END.
    """
    device = features["fc"].device
    subword_rows = [torch.tensor(flatten_tokens(caption), dtype=torch.long, device="cpu") for caption in captions]
    tokens = pad_sequence(subword_rows, batch_first=True, padding_value=PADDING).to(device)
    steps, _ = step_log_probs(decoder.log_probs(features, tokens), tokens, decoder.special_tokens.end)
    # The number of the word that each subword belongs to; END is the word behind the last one.
    word_index = torch.zeros(steps.shape, dtype=torch.long, device="cpu")
    for row, caption in zip(word_index, captions, strict=True):
        indices = [at for at, word in enumerate(cast("Sequence[_WordTokens]", caption)) for _ in word]
        row[: len(indices)] = torch.tensor(indices, device="cpu")
        row[len(indices) :] = len(caption)
    longest = max(len(caption) for caption in captions)
    return steps.new_zeros(len(captions), longest + 1).scatter_add(1, word_index.to(device), steps)


def _encode_brackets(target: Any, vocabulary: SubwordTokenizer, unk: str) -> Any:
    """Replace "a [red star] above" by a phrase of its text: a word's subwords depend on what precedes it."""
    if isinstance(target, (list, tuple)):
        return [_encode_brackets(entry, vocabulary, unk) for entry in target]
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)", target) if type(target) is str else None
    if match is None or not (match[1].strip() or match[3].strip()):
        return target
    before, inside, after = match.groups()
    tokens = tuple(vocabulary.encode(before + inside + after, unk))
    start, stop = (len(text.split()) for text in (before, before + inside))
    return Phrase(tokens, start, stop)


# --- The parts of a captioner in the library


def _load_named(source: str, pretrained: bool) -> tuple[Any, Files]:
    """Load the network of a name or folder."""
    files = Files(source.removeprefix(f"{SOURCE}/"))
    config = files.read("AutoConfig")
    # These captioners read all locations and not the pooled one, whose weights some checkpoints therefore lack.
    return files.network(_find_family(config, files.source).kind, config, pretrained, None, unread=".pooler."), files


def _find_family(config: Any, name: str) -> HFFamily:
    """Return the family of a network's configuration; raises GradlightError where it is unsupported."""
    if config.model_type not in FAMILIES:
        kinds = ", ".join(family.kind for family in FAMILIES.values())
        raise GradlightError(
            f"{name} is a network of the kind {config.model_type!r}, which is no captioner that is supported."
            f" Supported: {kinds}. An image classifier goes into gradlight.classifier."
        )
    return FAMILIES[config.model_type]


def _find_tokenizer(network: Any, tokenizer: Any) -> Any:
    """Return the given tokenizer, the one of a given name, or the one of the network's own name."""
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        if not of_transformers(tokenizer, "PreTrainedTokenizerBase"):
            raise GradlightError(f"tokenizer= is one of transformers, or its name or folder; not {tokenizer!r}.")
        return tokenizer
    name = os.fspath(tokenizer) if tokenizer is not None else network.name_or_path
    if not name:
        raise GradlightError(
            f"This {type(network).__name__} does not say where its tokenizer is. Give tokenizer= one of transformers,"
            " or its name or folder."
        )
    return Files(name, "tokenizer_config.json").read("AutoTokenizer")


def _choose_preprocess(network: Any, files: Files | None, custom: Callable[[Image.Image], Any] | None) -> Preprocess:
    """Return the caller's own preprocessing, that of the name or folder, or the library's for such networks."""
    if custom is not None:
        return own_preprocess(custom)
    if files is not None:
        return ImageProcessor(files.read("AutoImageProcessor"))
    default = preprocess_of(network)
    if default is None:
        raise GradlightError(
            f"No image processor is known for this {type(network).__name__}. Give preprocess= one of transformers, or a"
            " callable from an RGB Pillow image to a tensor [3,H,W]."
        )
    return default
