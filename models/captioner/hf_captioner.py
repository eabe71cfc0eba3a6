"""Open captioners of transformers (ViT-GPT2 and its like, BLIP, GIT), and score their captions word by word."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ...errors import GradlightError, GradlightWarning
from ..huggingface import SOURCE, Files, ImageProcessor, of_transformers, own_preprocess, preprocess_of
from ..objective import Targets
from ..preprocessing import Preprocess
from ..preserve import Device, to_device
from .captioner import Captioner, make_caption
from .decoder import PADDING, Decoder, Features, step_log_probs
from .hf_decoder import FAMILIES, HFDecoder, HFFamily, HFNetwork, SubwordTokenizer, flatten_tokens, read_setting
from .objective import CaptionObjective
from .search import DecodingOptions, Hypothesis, check_decoding, select_rows
from .targets import Caption, CaptionTarget, Phrase, parse, word_by_word

__all__ = [
    "GenerateOptions",
    "HFCaptioner",
    "SubwordDecodingOptions",
    "SubwordObjective",
    "open_captioner",
    "word_log_probs",
]

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


# --- Decoding


class GenerateOptions(DecodingOptions):
    """How subwords are decoded: as the network's own `generate` does, by its generation_config.

    The number of beams, and the limit if it is given, are those of the options. A length penalty by its name replaces
    that of the network, and with it the search.
    """

    def decode(self, decoder: Decoder, features: Features) -> list[Hypothesis]:
        """Search the best caption of each image; warns of settings that are not followed."""
        if self.length_penalty is not None:
            return super().decode(decoder, features)
        check_decoding(self.beam_size, limit := decoder.max_length if self.max_length is None else self.max_length)
        settings = cast(HFDecoder, decoder).settings
        if ignored := [name for name in _NOT_FOLLOWED if _is_set(settings, name)]:
            warnings.warn(
                f"The caption is not that of the network's generate(): {', '.join(ignored)} of its generation_config"
                " cannot be followed here. Decode with generate() and give its text as the target.",
                GradlightWarning,
                stacklevel=2,
            )
        with torch.no_grad():
            search = _Generation(decoder, features, self.beam_size, limit, self.suppress_unk)
            return search.greedy() if self.beam_size == 1 else search.beams()


class SubwordDecodingOptions(GenerateOptions):
    """How such a captioner decodes its own caption: a search over subwords, which are then grouped into words."""

    def decode(self, decoder: Decoder, features: Features) -> list[Hypothesis]:
        """Search the best caption of each image."""
        tokenizer = cast(HFDecoder, decoder).tokenizer
        return [
            replace(hypothesis, tokens=tokenizer.group_words(hypothesis.tokens))
            for hypothesis in super().decode(decoder, features)
        ]


_FACTORS = ("repetition_penalty", "encoder_repetition_penalty", "guidance_scale", "num_beam_groups")
"""Settings that change nothing where they are 1."""
_NOT_FOLLOWED: tuple[str, ...] = (
    "do_sample",
    "penalty_alpha",
    "num_beam_groups",
    "diversity_penalty",
    "constraints",
    "force_words_ids",
)
_NOT_FOLLOWED += (
    "guidance_scale",
    "renormalize_logits",
    "stop_strings",
    "max_time",
    "watermarking_config",
    "dola_layers",
)
_NOT_FOLLOWED += (
    "encoder_repetition_penalty",
    "encoder_no_repeat_ngram_size",
    "token_healing",
    "prompt_lookup_num_tokens",
)
_NEVER = -1e9


class _Generation:
    """The search of transformers' `generate` over a decoder's subwords."""

    def __init__(self, decoder: Decoder, features: Features, size: int, limit: int, suppress_unk: bool) -> None:
        self.decoder, self.size, self.limit = decoder, size, limit
        self.settings, self.end = cast(HFDecoder, decoder).settings, decoder.special_tokens.end
        self.unk = decoder.special_tokens.unk if suppress_unk else None
        start = decoder.start(features)
        self.count, device = len(start["h"]), start["h"].device
        self.state = select_rows(start, torch.arange(self.count, device=device).repeat_interleave(size))
        self.tokens = torch.full((self.count * size, 1), decoder.special_tokens.bos, device=device)
        self.processors = _processors(self.settings, self.end, limit, device)

    def greedy(self) -> list[Hypothesis]:
        """Take the highest score at every step."""
        ended = torch.zeros(self.count, dtype=torch.bool, device=self.tokens.device)
        for _ in range(self.limit):
            tokens = self._scores(torch.Tensor.float).argmax(-1).masked_fill(ended, self.end)
            self.tokens = torch.cat([self.tokens, tokens[:, None]], 1)
            ended |= tokens == self.end
            if ended.all():
                break
        return [self._hypothesis(row, 0.0) for row in self.tokens[:, 1:].tolist()]

    def beams(self) -> list[Hypothesis]:
        """Search with beams: those that end are set aside, at most as many as there are beams."""
        size, device = self.size, self.tokens.device
        running = torch.full((self.count, size), _NEVER, device=device)
        running[:, 0] = 0
        best: list[list[tuple[float, list[int]]]] = [[] for _ in range(self.count)]
        is_open = [True] * self.count
        for length in range(1, self.limit + 1):
            log_probs = self._scores(_log_softmax)
            columns = log_probs.shape[1]
            totals, indices = (running.flatten()[:, None] + log_probs).view(self.count, -1).topk(2 * size)
            first = torch.arange(self.count, device=device)[:, None] * size
            rows, tokens = first + indices // columns, indices % columns
            history = torch.cat([self.tokens[rows], tokens[..., None]], 2)
            ends = (tokens == self.end) | (length == self.limit)
            for image, beam in ends[:, :size].nonzero().tolist():
                if is_open[image]:
                    score = float(totals[image, beam]) / length**self._penalty
                    best[image].append((score, history[image, beam, 1:].tolist()))
            running, kept = (totals + ends * _NEVER).topk(size)
            rows = rows.gather(1, kept).flatten()
            self.state = select_rows(self.state, rows)
            self.tokens = history[torch.arange(self.count, device=device)[:, None], kept].flatten(0, 1)
            for image, highest in enumerate(running[:, 0].tolist()):
                best[image] = sorted(best[image], key=lambda found: -found[0])[:size]
                is_open[image] &= self._can_improve(best[image], highest, length)
            if not any(is_open):
                break
        if not all(best) or any(score != score for found in best for score, _ in found):
            raise GradlightError(
                "The captioner's log-probabilities are not finite (NaN), so no caption can be decoded. Check its"
                " weights."
            )
        return [self._hypothesis(found[0][1], found[0][0]) for found in best]

    @property
    def _penalty(self) -> float:
        penalty = self.settings.length_penalty
        return 1.0 if penalty is None else float(penalty)

    def _can_improve(self, best: Sequence[tuple[float, list[int]]], highest: float, length: int) -> bool:
        """Return whether a running beam may still become better than those that have ended."""
        if len(best) < self.size:
            return True
        early = self.settings.early_stopping
        reached = self.limit if early == "never" and self._penalty > 0 else length
        return early is not True and highest / reached**self._penalty > best[-1][0]

    def _scores(self, normalise: Callable[[Tensor], Tensor]) -> Tensor:
        """Read the last subwords; return the scores of the next, as the network's settings change them."""
        self.state = self.decoder.advance(self.state, self.tokens[:, -1])
        scores: Tensor = self.processors(self.tokens, normalise(self.state["h"]))
        if self.unk is not None:
            scores[:, self.unk] = _NEVER
        return scores

    def _hypothesis(self, tokens: list[int], score: float) -> Hypothesis:
        ended = self.end in tokens
        return Hypothesis(tuple(tokens[: tokens.index(self.end)] if ended else tokens), score, ended, score)


def _log_softmax(logits: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), -1)


def _is_set(settings: Any, name: str) -> bool:
    value = getattr(settings, name, None)
    return value is not None if name.startswith("forced") else bool(value) and not (name in _FACTORS and value == 1)


def _processors(settings: Any, end: int, limit: int, device: torch.device) -> Any:
    """Make what changes the scores of subwords, in the order of the library."""
    from transformers.generation import logits_process as lp

    made: dict[str, Callable[[Any], Any]] = {
        "sequence_bias": lp.SequenceBiasLogitsProcessor,
        "repetition_penalty": lp.RepetitionPenaltyLogitsProcessor,
        "no_repeat_ngram_size": lp.NoRepeatNGramLogitsProcessor,
        "bad_words_ids": lambda words: lp.NoBadWordsLogitsProcessor(words, torch.tensor([end], device=device)),
        "min_length": lambda least: lp.MinLengthLogitsProcessor(least, end, device=str(device)),
        "min_new_tokens": lambda least: lp.MinNewTokensLengthLogitsProcessor(1, least, end, device=str(device)),
        "forced_bos_token_id": lp.ForcedBOSTokenLogitsProcessor,
        "forced_eos_token_id": lambda forced: lp.ForcedEOSTokenLogitsProcessor(limit + 1, forced, device=str(device)),
        "remove_invalid_values": lambda _: lp.InfNanRemoveLogitsProcessor(),
        "exponential_decay_length_penalty": lambda decay: lp.ExponentialDecayLengthPenalty(decay, end, 1),
        "suppress_tokens": lambda tokens: lp.SuppressTokensLogitsProcessor(tokens, device=str(device)),
        "begin_suppress_tokens": lambda t: lp.SuppressTokensAtBeginLogitsProcessor(t, 1, device=str(device)),
    }
    return lp.LogitsProcessorList(
        [make(getattr(settings, name)) for name, make in made.items() if _is_set(settings, name)]
    )


# --- The captioner


class HFCaptioner(Captioner):
    """A captioner of transformers: like `Captioner`, with a tuple of subword numbers as the token of each word."""

    network: HFNetwork
    vocabulary: SubwordTokenizer
    _options = GenerateOptions

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


# --- Scoring by words


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
    tokens, start, stop = vocabulary.encode_phrase(before, inside, after, unk)
    return Phrase(tuple(tokens), start, stop)


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
