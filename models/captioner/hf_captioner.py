"""Captioners of transformers (ViT-GPT2 and its like, BLIP, GIT), by name, from a folder, or as they are.

The objective of captioners whose words are made of pieces.
"""

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
from ..class_objective import check_row_count
from ..huggingface import SOURCE, Files, ImageProcessor, of_transformers, own_preprocess, preprocess_of
from ..objective import Targets
from ..preprocessing import Preprocess
from ..preserve import Device, to_device
from .captioner import Captioner
from .decoder import PADDING, Decoder, Features, step_log_probs
from .hf_decoder import FAMILIES, HFDecoder, HFFamily, HFNetwork, SubwordTokenizer, flat, settled
from .objective import CaptionObjective
from .search import DecodingOptions, Hypothesis
from .targets import Caption, CaptionTarget, Phrase, Word, parse, word_by_word

__all__ = ["HFCaptioner", "SubwordDecodingOptions", "SubwordObjective", "open_captioner", "word_log_probs"]

Said = tuple[int, ...]


class SubwordDecodingOptions(DecodingOptions):
    """How such a captioner makes its own caption: a search over pieces, brought to words."""

    def say(self, decoder: Decoder, features: Features) -> list[Hypothesis]:
        """Find the best caption of each image."""
        pieces = cast(HFDecoder, decoder).pieces
        return [replace(found, tokens=pieces.grouped(found.tokens)) for found in super().say(decoder, features)]


class SubwordObjective(CaptionObjective):
    """Score captions of pieces word by word: the log-probability of a word is the sum of its pieces'."""

    def rows(self, start: int, stop: int, total: int) -> SubwordObjective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        check_row_count(self.asked, total)
        rows = self.asked if len(self.asked) == 1 else self.asked[start:stop]
        return SubwordObjective(self.network, self.vocabulary, rows, saying=self.saying, count_end=self.count_end)

    def _steps(self, outputs: dict[str, Tensor], targets: Targets) -> tuple[Tensor, list[int]]:
        """Run the decoder once over the U different captions: log-probabilities [U,W+1], and each target's row."""
        keys = [(image, cast(CaptionTarget, target).tokens) for image, row in enumerate(targets) for target in row]
        number = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        images = torch.tensor([image for image, _ in number], device=outputs["fc"].device)
        features = {name: tensor.index_select(0, images) for name, tensor in outputs.items()}
        steps = word_log_probs(self.network.decoder, features, [said for _, said in number])
        return steps, [number[key] for key in keys]


def word_log_probs(decoder: Decoder, features: Features, captions: Sequence[Said]) -> Tensor:
    """Give the log-probabilities [U,W+1] of captions' words, given those before, and of END behind the last.

    The steps behind END are zero. The decoder runs once.
    """
    device = features["fc"].device
    said = [torch.tensor(flat(caption), dtype=torch.long) for caption in captions]
    tokens = pad_sequence(said, batch_first=True, padding_value=PADDING).to(device)
    steps, _ = step_log_probs(decoder.log_probs(features, tokens), tokens, decoder.specials.end)
    owners = torch.zeros(steps.shape, dtype=torch.long)
    for row, caption in zip(owners, captions, strict=True):
        words = [at for at, word in enumerate(cast("Sequence[Said]", caption)) for _ in word]
        row[: len(words)] = torch.tensor(words)
        row[len(words) :] = len(caption)
    widest = max(len(caption) for caption in captions)
    return steps.new_zeros(len(captions), widest + 1).scatter_add(1, owners.to(device), steps)


class HFCaptioner(Captioner):
    """A captioner of transformers: `Captioner`, with words that are made of pieces."""

    network: HFNetwork
    vocabulary: SubwordTokenizer

    def objective(self, target: Any = None, unk: str | None = None) -> SubwordObjective:
        """Make the objective of a target: None (its own caption), a text, a Caption, words … (`targets.parse`).

        unk: what is done with unknown words here, if not what the captioner does with them.
        """
        return self._objective(target, self.unk if unk is None else unk, each=False)

    def word_objective(self, target: Any = None) -> SubwordObjective:
        """Make the objective of every word of a target apart."""
        return self._objective(target, self.unk, each=True)

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types; words: the pieces of words that it knows."""
        described = super().describe()
        return {name: value for name, value in described.items() if name not in ("decoder", "reading")}

    def _objective(self, target: Any, unk: str, each: bool) -> SubwordObjective:
        rows = parse(_in_context(target, self.vocabulary, unk), self.vocabulary, unk)
        return SubwordObjective(
            self.network,
            self.vocabulary,
            word_by_word(rows) if each else rows,
            saying=SubwordDecodingOptions(),
            count_end=self.count_end,
        )

    def _captions(self, features: dict[str, Tensor], found: Sequence[Hypothesis]) -> Iterator[Caption]:
        captions = [self.vocabulary.grouped(each.tokens) for each in found]
        steps = word_log_probs(self.network.decoder, features, captions)
        for each, tokens, row in zip(found, captions, steps.tolist(), strict=True):
            said, count = self.vocabulary.decode(tokens), len(tokens)
            words = [Word.at(word, tokens, position, each.ended) for position, word in enumerate(said)]
            total = sum(row[: count + 1] if each.ended and self.count_end else row[:count])
            yield Caption(" ".join(said), words, list(tokens), total, row[:count], each.ended)

    def _check_width(self) -> None:
        """Check nothing: the library has put encoder and decoder together, and many take pixels of one size only."""


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
    """Make a captioner of "transformers/NAME_OR_FOLDER", or of a network of that library.

    tokenizer: one of transformers, or the name or folder of one; None: that of the same name or folder. preprocess: an
    image processor of transformers, or a callable as for other captioners; None: that of the name or folder, or the
    one that the library has for such networks. A network stays where it is unless a device is given. For the other
    keywords see `captioner`. Raises GradlightError for networks that are no such captioners, and for missing parts.
    """
    with torch.inference_mode(False):
        files: Files | None = None
        network: Any = source
        if not isinstance(source, nn.Module):
            network, files = _named(os.fspath(source), pretrained)
        family = _family(network.config, type(network).__name__)
        tokenizer = _tokenizer(network, tokenizer)
        bos, end = (settled(network, where) for where in (family.bos, family.end))
        most = settled(network, _POSITIONS) - 1
        whole = HFNetwork(network, family, SubwordTokenizer(tokenizer, bos, end, most))
    if files is not None:
        whole.eval()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device is not None:
        to_device(whole, device)
    return HFCaptioner(
        whole,
        whole.decoder.pieces,
        _preprocess(network, files, preprocess),
        name=type(network).__name__ if files is None else files.source,
        unk=unk,
        count_end=count_end,
        record={"project": SOURCE, "family": network.config.model_type},
    )


_POSITIONS = tuple(
    f"config.{part}{name}"
    for part in ("decoder.", "text_config.", "")
    for name in ("max_position_embeddings", "n_positions")
)


def _named(source: str, pretrained: bool) -> tuple[Any, Files]:
    files = Files(source.removeprefix(f"{SOURCE}/"))
    config = files.read("AutoConfig")
    # These captioners read every place and not the pooled one, which some checkpoints therefore do not have.
    return files.network(_family(config, files.source).kind, config, pretrained, None, unread=".pooler."), files


def _family(config: Any, name: str) -> HFFamily:
    if config.model_type not in FAMILIES:
        known = ", ".join(family.kind for family in FAMILIES.values())
        raise GradlightError(
            f"{name} is a network of the kind {config.model_type!r}, which is no captioner that is known here. Known:"
            f" {known}. An image classifier goes into gradlight.classifier."
        )
    return FAMILIES[config.model_type]


def _tokenizer(network: Any, given: Any) -> Any:
    """Give the tokenizer: the given one, that of a given name, or that of the network's own."""
    if given is not None and not isinstance(given, (str, os.PathLike)):
        if not of_transformers(given, "PreTrainedTokenizerBase"):
            raise GradlightError(f"tokenizer= is one of transformers, or its name or folder; not {given!r}.")
        return given
    name = os.fspath(given) if given is not None else network.name_or_path
    if not name:
        raise GradlightError(
            f"This {type(network).__name__} does not say where its tokenizer is. Give tokenizer= one of transformers,"
            " or its name or folder."
        )
    return Files(name, "tokenizer_config.json").read("AutoTokenizer")


def _preprocess(network: Any, files: Files | None, given: Callable[[Image.Image], Any] | None) -> Preprocess:
    if given is not None:
        return own_preprocess(given)
    if files is not None:
        return ImageProcessor(files.read("AutoImageProcessor"))
    found = preprocess_of(network)
    if found is None:
        raise GradlightError(
            f"No image processor is known for this {type(network).__name__}. Give preprocess= one of transformers, or a"
            " callable from an RGB Pillow image to a tensor [3,H,W]."
        )
    return found


def _in_context(target: Any, words: SubwordTokenizer, unk: str) -> Any:
    """Bring "a [red star] above" to a phrase of its text: the pieces of a word depend on what stands before it."""
    if isinstance(target, (list, tuple)):
        return [_in_context(part, words, unk) for part in target]
    match = re.fullmatch(r"([^\[\]]*)\[([^\[\]]+)\]([^\[\]]*)", target) if type(target) is str else None
    if match is None or not (match[1].strip() or match[3].strip()):
        return target
    before, inside, after = match.groups()
    tokens = tuple(words.encode(before + inside + after, unk))
    start, stop = (len(text.split()) for text in (before, before + inside))
    return Phrase(tokens, start, stop)
