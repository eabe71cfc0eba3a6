"""Greedy search and beam search over a decoder's tokens, all images of a batch at once."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...errors import GradlightError
from .decoder import Decoder, Features, State

__all__ = [
    "DecodingOptions",
    "Hypothesis",
    "beam_search",
    "check_decoding",
    "generate",
    "length_score",
    "select_rows",
]

_UNK_PENALTY = 1000.0


@dataclass(frozen=True)
class Hypothesis:
    """A caption that the search has decoded.

    Args:
        tokens: without END.
        log_prob: the sum of the tokens' log-probabilities, END included if it was decoded.
        ended: whether END was decoded; if not, the length limit truncated the caption.
        rank: the score that the search compares hypotheses by.
    """

    tokens: tuple[int, ...]
    log_prob: float
    ended: bool
    rank: float


@dataclass(frozen=True)
class DecodingOptions:
    """How captions are decoded.

    Args:
        beam_size: the number of beams; 1 is greedy search.
        max_length: the maximal number of tokens, END included; None: the decoder's own limit.
        suppress_unk: whether UNK is never decoded.
        length_penalty: None, "avg" or "wu_ALPHA" (`length_score`).
    """

    beam_size: int = 3
    max_length: int | None = None
    suppress_unk: bool = False
    length_penalty: str | None = None

    def decode(self, decoder: Decoder, features: Features) -> list[Hypothesis]:
        """Search the best caption of each image; raises GradlightError for options out of range."""
        limit = decoder.max_length if self.max_length is None else self.max_length
        return beam_search(
            decoder, features, self.beam_size, limit, suppress_unk=self.suppress_unk, penalty=self.length_penalty
        )

    def describe(self) -> dict[str, Any]:
        """Describe the options in JSON types."""
        return asdict(self)


def length_score(penalty: str | None) -> Callable[[float, int], float]:
    """Make the function that scores a beam by its sum of log-probabilities and its length, END included.

    Args:
        penalty: None: the sum. "avg": sum / length. "wu_ALPHA": sum / ((5 + length) / 6)^ALPHA (Wu et al., 2016,
            equation 14).

    Returns:
        The function from (sum, length) to the score.

    Raises:
        GradlightError: for every other penalty.

    Example:
        >>> length_score("avg")(-6.0, 3)
        -2.0
    """
    if penalty is None:
        return lambda total, _: total
    if penalty == "avg":
        return lambda total, length: total / length
    if match := re.fullmatch(r"wu_([0-9]*\.?[0-9]+)", penalty):
        alpha = float(match[1])
        return lambda total, length: total / ((5 + length) / 6) ** alpha
    raise GradlightError(f'length_penalty={penalty!r} is unknown: give None, "avg" or "wu_ALPHA", such as "wu_0.9".')


def beam_search(
    decoder: Decoder, features: Features, beam_size: int, limit: int, *, suppress_unk: bool, penalty: str | None
) -> list[Hypothesis]:
    """Search the best caption of each image; a beam of 1 is greedy search. No gradients are recorded.

    Args:
        decoder: predicts the tokens.
        features: the encoder's features of the images.
        beam_size: the number of beams.
        limit: the maximal number of tokens, END included.
        suppress_unk: whether UNK is never decoded.
        penalty: the length penalty (`length_score`).

    Returns:
        One hypothesis per image.

    Raises:
        GradlightError: if a number is not 1 or more, or if the log-probabilities are not finite.
    """
    check_decoding(beam_size, limit)
    with torch.no_grad():
        beams = _Beams(decoder, features, beam_size, length_score(penalty), stops_early=penalty is None)
        for step in range(limit):
            beams.extend(suppress_unk)
            if step == limit - 1:
                beams.add_truncated()
            if beams.finished():
                break
    return beams.best()


def check_decoding(beam_size: Any, limit: Any) -> None:
    """Raise GradlightError unless the number of beams and the maximal length are whole numbers, 1 or more."""
    for name, value in (("beam_size", beam_size), ("max_length", limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise GradlightError(f"{name} must be a whole number, 1 or more; it is {value!r}.")


def generate(
    decoder: Decoder,
    features: Features,
    beam_size: int = 1,
    max_length: int | None = None,
    suppress_unk: bool = False,
    length_penalty: str | None = None,
) -> list[tuple[list[int], float]]:
    """Generate the caption of each image that greedy search or beam search scores highest.

    Args:
        decoder: predicts the tokens.
        features: the encoder's features of the images.
        beam_size: the number of beams; 1 is greedy search.
        max_length: the maximal number of tokens, END included; None: the decoder's own limit.
        suppress_unk: whether UNK is never decoded.
        length_penalty: "avg" or "wu_ALPHA" compares ended beams per length (`length_score`); None by their sums.

    Returns:
        Per image the tokens without END, and the sum of their log-probabilities, END included if it was decoded.

    Raises:
        GradlightError: if beam_size or max_length is below 1, or if the length penalty is unknown.

    Example:
        >>> network = gl.captioner("scenes", device="cpu").network
        >>> tokens, log_prob = generate(network.decoder, network.features(torch.zeros(1, 3, 160, 160)), max_length=4)[0]
        >>> len(tokens) <= 4, log_prob < 0
        (True, True)
    """
    hypotheses = beam_search(
        decoder,
        features,
        beam_size,
        decoder.max_length if max_length is None else max_length,
        suppress_unk=suppress_unk,
        penalty=length_penalty,
    )
    return [(list(hypothesis.tokens), hypothesis.log_prob) for hypothesis in hypotheses]


class _Beams:
    """The beams of every image of a batch, B × k rows, and the hypotheses that are complete so far."""

    def __init__(
        self, decoder: Decoder, features: Features, size: int, score: Callable[[float, int], float], stops_early: bool
    ) -> None:
        state = decoder.start(features)
        self.count, self.size = len(state["h"]), size
        self.decoder, self.score, self.stops_early = decoder, score, stops_early
        device = state["h"].device
        self.state = select_rows(state, torch.arange(self.count, device=device).repeat_interleave(size))
        self.last_tokens = torch.full((self.count * size,), decoder.special_tokens.bos, device=device)
        # All beams are equal before the first token, so one of them is enough.
        self.sums = torch.full((self.count, size), -math.inf, device=device, dtype=torch.float64)
        self.sums[:, 0] = 0
        self.history = torch.empty((self.count, size, 0), dtype=torch.long, device=device)
        self.hypotheses: list[list[Hypothesis]] = [[] for _ in range(self.count)]

    @property
    def _end(self) -> int:
        return self.decoder.special_tokens.end

    def extend(self, suppress_unk: bool) -> None:
        """Extend every beam by one token, and keep the best beams."""
        self.state = self.decoder.advance(self.state, self.last_tokens)
        log_probs = self.decoder.predict(self.state["h"]).double()
        if suppress_unk and self.decoder.special_tokens.unk is not None:
            log_probs[:, self.decoder.special_tokens.unk] -= _UNK_PENALTY
        columns = log_probs.shape[1]
        totals = (self.sums.flatten()[:, None] + log_probs).view(self.count, -1)
        self.sums, indices = totals.topk(self.size, 1)
        rows, tokens = indices // columns, indices % columns
        self.history = torch.cat([self.history.gather(1, _expand(rows, self.history)), tokens[..., None]], 2)
        first = torch.arange(self.count, device=rows.device)[:, None] * self.size
        self.state = select_rows(self.state, (first + rows).flatten())
        self.last_tokens = tokens.flatten()
        self._end_beams(tokens == self._end)

    def _end_beams(self, ended: Tensor) -> None:
        """Record the beams [B,k] that have just decoded END, and apply the end rule to them."""
        rule = self.decoder.end_rule
        if rule.shrinks:
            removed = torch.tensor([len(hypotheses) for hypotheses in self.hypotheses], device=ended.device)
            positions = torch.arange(self.size, device=ended.device)
            self.sums[positions[None, :] >= self.size - removed[:, None]] = -math.inf
        for image, beam in (ended & self.sums.isfinite()).nonzero().tolist():
            self._record(image, beam, ended=True)
        self.sums[ended] -= rule.penalty

    def add_truncated(self) -> None:
        """Record the beams that the length limit truncates."""
        for image in range(self.count):
            if self.hypotheses[image] and not self.decoder.end_rule.keeps_truncated:
                continue
            for beam in range(self.size):
                if math.isfinite(self.sums[image, beam]) and self.last_tokens[image * self.size + beam] != self._end:
                    self._record(image, beam, ended=False)

    def _record(self, image: int, beam: int, ended: bool) -> None:
        """Add the hypothesis of a beam."""
        tokens = self.history[image, beam].tolist()
        total = float(self.sums[image, beam])
        if self._end in tokens[:-1]:
            return  # a beam that goes on behind END is no other caption
        caption = tokens[:-1] if ended else tokens
        self.hypotheses[image].append(Hypothesis(tuple(caption), total, ended, self.score(total, len(tokens))))

    def finished(self) -> bool:
        """Return whether no beam can become better than the recorded hypotheses: sums only fall."""
        if not self.stops_early:
            return bool((self.sums == -math.inf).all())
        return all(
            bool(hypotheses) and max(hypothesis.rank for hypothesis in hypotheses) >= float(sums.max())
            for hypotheses, sums in zip(self.hypotheses, self.sums, strict=True)
        )

    def best(self) -> list[Hypothesis]:
        """Return the best hypothesis of each image."""
        if not all(self.hypotheses):
            raise GradlightError(
                "The captioner's log-probabilities are not finite (NaN), so no caption can be decoded. Check its"
                " weights, and the encoder that it was given."
            )
        return [max(hypotheses, key=lambda hypothesis: hypothesis.rank) for hypotheses in self.hypotheses]


def select_rows(state: State, rows: Tensor) -> State:
    """Return the rows of a decoder's state."""
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}


def _expand(rows: Tensor, history: Tensor) -> Tensor:
    return rows[..., None].expand(-1, -1, history.shape[2])
