"""The objective of a captioner: the log-probability of a caption, or of some of its words given those before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..class_objective import check_row_count
from ..objective import Objective, Targets, pad_targets
from .decoder import PADDING, step_log_probs
from .encoder import CaptionNetwork
from .search import DecodingOptions
from .targets import CaptionTarget, CaptionTargetSpec, resolve
from .vocabulary import Vocabulary

__all__ = ["CaptionObjective"]

Features = dict[str, Tensor]


class CaptionObjective(Objective):
    """Score captions, and parts of them, by their log-probability under teacher forcing: one run of the decoder.

    rows: what is asked of each image, or one row for all (`targets.parse`). saying: how the captioner makes its own
    caption where none is given. count_end: whether END counts in the log-probability of a whole caption.
    """

    network: CaptionNetwork

    def __init__(
        self,
        network: CaptionNetwork,
        vocabulary: Vocabulary,
        rows: Sequence[Sequence[CaptionTargetSpec]],
        *,
        saying: DecodingOptions,
        count_end: bool = True,
    ) -> None:
        super().__init__(network)
        self.vocabulary, self.saying, self.count_end = vocabulary, saying, count_end
        self.asked = [list(row) for row in rows]

    @property
    def trunk(self) -> torch.nn.Module:
        """The encoder: what comes after it has no place in the image."""
        return self.network.encoder

    def outputs(self, pixels: Tensor) -> Features:
        """Run the encoder once and read its features."""
        return self.network.features(pixels)

    def choose(self, outputs: Features) -> list[list[CaptionTarget]]:
        """Fix the captions of every image and their parts, with their present log-probabilities as scores."""
        count = len(outputs["fc"])
        check_row_count(self.asked, count)
        rows = [self.asked[image % len(self.asked)] for image in range(count)]
        with torch.no_grad():
            open_ended = any(asked.tokens is None for row in rows for asked in row)
            found = self.saying.say(self.network.decoder, outputs) if open_ended else [None] * count
            targets = [
                [target for asked in row for target in resolve(asked, said, self.vocabulary, self.count_end)]
                for row, said in zip(rows, found, strict=True)
            ]
            scores = self.scores(outputs, pad_targets(targets)).tolist()
        return [
            [replace(target, score=score) for target, score in zip(row, values[: len(row)], strict=True)]
            for row, values in zip(targets, scores, strict=True)
        ]

    def scores(self, outputs: Features, targets: Targets) -> Tensor:
        """Give the log-probabilities [B,K] of the targets."""
        steps, place = self._steps(outputs, targets)
        parts = [(t.start, t.stop, t.counts_end) for row in _own(targets) for t in row]
        return _summed(steps[place], targets, parts)

    def losses(self, outputs: Features, targets: Targets) -> Tensor:
        """Give the negative log-probability [B,K] of each target's whole caption."""
        steps, place = self._steps(outputs, targets)
        parts = [(0, len(t.tokens), t.ended) for row in _own(targets) for t in row]
        return -_summed(steps[place], targets, parts)

    def _steps(self, outputs: Features, targets: Targets) -> tuple[Tensor, list[int]]:
        """Run the decoder once over the U different captions: log-probabilities [U,T+1], and each target's row."""
        keys = [(image, target.tokens) for image, row in enumerate(_own(targets)) for target in row]
        captions = list(dict.fromkeys(keys))
        device = outputs["fc"].device
        said = [torch.tensor(tokens, dtype=torch.long) for _, tokens in captions]
        tokens = pad_sequence(said, batch_first=True, padding_value=PADDING).to(device)
        images = torch.tensor([image for image, _ in captions], device=device)
        features = {name: tensor.index_select(0, images) for name, tensor in outputs.items()}
        log_probs = self.network.decoder.log_probs(features, tokens)
        steps, _ = step_log_probs(log_probs, tokens, self.vocabulary.specials.end)
        number = {key: row for row, key in enumerate(captions)}
        return steps, [number[key] for key in keys]

    def rows(self, start: int, stop: int, total: int) -> CaptionObjective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        check_row_count(self.asked, total)
        rows = self.asked if len(self.asked) == 1 else self.asked[start:stop]
        return CaptionObjective(self.network, self.vocabulary, rows, saying=self.saying, count_end=self.count_end)

    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types; an empty text is the caption that the captioner makes."""
        targets = [[{"text": asked.text, "words": asked.each} for asked in row] for row in self.asked]
        return {"kind": "caption", "targets": targets, "count_end": self.count_end, **self.saying.describe()}


def _own(targets: Targets) -> list[list[CaptionTarget]]:
    """Tell the type checker what `choose` has made."""
    return cast(list[list[CaptionTarget]], targets)


def _summed(steps: Tensor, targets: Targets, parts: list[tuple[int, int, bool]]) -> Tensor:
    """Sum steps [B·K,T+1] over the part (start, stop, whether END too) of each target: [B,K]."""
    lengths = [len(target.tokens) for row in _own(targets) for target in row]
    mask = torch.zeros_like(steps)
    for row, length, (start, stop, end) in zip(mask, lengths, parts, strict=True):
        row[start:stop] = 1
        row[length] = float(end)
    return (steps * mask).sum(1).view(len(targets), -1)
