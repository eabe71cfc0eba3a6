"""The objective of captioners whose words are made of pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..objective import Targets
from ..targets import rows_for
from .decoder import PADDING, Decoder, Features
from .objective import CaptionObjective
from .pieces import flat
from .saying import Saying
from .scoring import step_log_probs
from .search import Found
from .targets import CaptionTarget
from .tongues import Tongue

__all__ = ["PieceObjective", "PieceSaying", "word_log_probs"]

Said = tuple[int, ...]


class PieceSaying(Saying):
    """How such a captioner makes its own caption: a search over pieces, brought to words."""

    def say(self, decoder: Decoder, features: Features) -> list[Found]:
        """Find the best caption of each image."""
        pieces = cast(Tongue, decoder).pieces
        return [replace(found, tokens=pieces.grouped(found.tokens)) for found in super().say(decoder, features)]


class PieceObjective(CaptionObjective):
    """Score captions of pieces word by word: the log-probability of a word is the sum of its pieces'."""

    def rows(self, start: int, stop: int, total: int) -> PieceObjective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        rows_for(self.asked, total)
        rows = self.asked if len(self.asked) == 1 else self.asked[start:stop]
        return PieceObjective(self.network, self.vocabulary, rows, saying=self.saying, count_end=self.count_end)

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
