"""The objective of a captioner: the log-probability of a caption, or of some of its words given the words before."""

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

_Features = dict[str, Tensor]


class CaptionObjective(Objective):
    """Score captions, and parts of them, by their log-probability under teacher forcing: one run of the decoder.

    Args:
        network: the encoder and the decoder.
        vocabulary: the captioner's words.
        target_specs: one row of targets per image, or one row for all (`targets.parse`).
        decoding: how the captioner generates its own caption where a target has none.
        count_end: whether END counts in the log-probability of a whole caption.
    """

    network: CaptionNetwork

    def __init__(
        self,
        network: CaptionNetwork,
        vocabulary: Vocabulary,
        target_specs: Sequence[Sequence[CaptionTargetSpec]],
        *,
        decoding: DecodingOptions,
        count_end: bool = True,
    ) -> None:
        super().__init__(network)
        self.vocabulary, self.decoding, self.count_end = vocabulary, decoding, count_end
        self.target_specs = [list(row) for row in target_specs]

    @property
    def trunk(self) -> torch.nn.Module:
        """The encoder: what follows it is not spatial."""
        return self.network.encoder

    def outputs(self, pixels: Tensor) -> _Features:
        """Run the encoder once and pool its features."""
        return self.network.features(pixels)

    def choose(self, outputs: _Features) -> list[list[CaptionTarget]]:
        """Resolve the targets of every image, with their present log-probabilities as scores."""
        count = len(outputs["fc"])
        check_row_count(self.target_specs, count)
        rows = [self.target_specs[image % len(self.target_specs)] for image in range(count)]
        with torch.no_grad():
            needs_decoding = any(spec.tokens is None for row in rows for spec in row)
            hypotheses = self.decoding.decode(self.network.decoder, outputs) if needs_decoding else [None] * count
            targets = [
                [target for spec in row for target in resolve(spec, hypothesis, self.vocabulary, self.count_end)]
                for row, hypothesis in zip(rows, hypotheses, strict=True)
            ]
            scores = self.scores(outputs, pad_targets(targets)).tolist()
        return [
            [replace(target, score=score) for target, score in zip(row, values[: len(row)], strict=True)]
            for row, values in zip(targets, scores, strict=True)
        ]

    def scores(self, outputs: _Features, targets: Targets) -> Tensor:
        """Compute the log-probabilities [B,K] of the targets."""
        steps, caption_rows = self._steps(outputs, targets)
        spans = [(t.start, t.stop, t.counts_end) for row in _caption_targets(targets) for t in row]
        return _sum_spans(steps[caption_rows], targets, spans)

    def losses(self, outputs: _Features, targets: Targets) -> Tensor:
        """Compute the negative log-probability [B,K] of each target's whole caption."""
        steps, caption_rows = self._steps(outputs, targets)
        spans = [(0, len(t.tokens), t.ended) for row in _caption_targets(targets) for t in row]
        return -_sum_spans(steps[caption_rows], targets, spans)

    def _steps(self, outputs: _Features, targets: Targets) -> tuple[Tensor, list[int]]:
        """Run the decoder once over the U different captions: log-probabilities [U,T+1], and each target's row."""
        keys = [(image, target.tokens) for image, row in enumerate(_caption_targets(targets)) for target in row]
        captions = list(dict.fromkeys(keys))
        device = outputs["fc"].device
        token_rows = [torch.tensor(tokens, dtype=torch.long, device="cpu") for _, tokens in captions]
        tokens = pad_sequence(token_rows, batch_first=True, padding_value=PADDING).to(device)
        images = torch.tensor([image for image, _ in captions], device=device)
        features = {name: tensor.index_select(0, images) for name, tensor in outputs.items()}
        log_probs = self.network.decoder.log_probs(features, tokens)
        steps, _ = step_log_probs(log_probs, tokens, self.vocabulary.special_tokens.end)
        row_of = {key: row for row, key in enumerate(captions)}
        return steps, [row_of[key] for key in keys]

    def rows(self, start: int, stop: int, total: int) -> CaptionObjective:
        """Return the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        check_row_count(self.target_specs, total)
        specs = self.target_specs if len(self.target_specs) == 1 else self.target_specs[start:stop]
        return type(self)(self.network, self.vocabulary, specs, decoding=self.decoding, count_end=self.count_end)

    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types; an empty text is the caption that the captioner generates."""
        targets = [[{"text": spec.text, "words": spec.per_word} for spec in row] for row in self.target_specs]
        return {"kind": "caption", "targets": targets, "count_end": self.count_end, **self.decoding.describe()}


def _caption_targets(targets: Targets) -> list[list[CaptionTarget]]:
    """Tell the type checker that `choose` makes caption targets."""
    return cast(list[list[CaptionTarget]], targets)


def _sum_spans(steps: Tensor, targets: Targets, spans: list[tuple[int, int, bool]]) -> Tensor:
    """Sum steps [B·K,T+1] over the span (start, stop, whether END counts) of each target: [B,K]."""
    lengths = [len(target.tokens) for row in _caption_targets(targets) for target in row]
    mask = torch.zeros_like(steps)
    for row, length, (start, stop, counts_end) in zip(mask, lengths, spans, strict=True):
        row[start:stop] = 1
        row[length] = float(counts_end)
    return (steps * mask).sum(1).view(len(targets), -1)
