"""Greedy and beam search over a decoder's words, all images of a batch at once.

How a captioner makes its own caption: the options of its search, in one place.
"""

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

__all__ = ["DecodingOptions", "Hypothesis", "generate", "length_score", "search"]


_SUPPRESSED = 1000.0


@dataclass(frozen=True)
class Hypothesis:
    """A caption that was found: its tokens without END, the sum of their log-probabilities, whether END was said."""

    tokens: tuple[int, ...]
    log_prob: float
    ended: bool
    rank: float


def length_score(penalty: str | None) -> Callable[[float, int], float]:
    """Give the score of a beam from its sum of log-probabilities and its length, END included.

    None: the sum. "avg": sum / length. "wu_ALPHA": sum / ((5 + length) / 6)^ALPHA (Wu et al., 2016, equation 14).
    Raises GradlightError for anything else.
    """
    if penalty is None:
        return lambda total, _: total
    if penalty == "avg":
        return lambda total, length: total / length
    if match := re.fullmatch(r"wu_([0-9]*\.?[0-9]+)", penalty):
        alpha = float(match[1])
        return lambda total, length: total / ((5 + length) / 6) ** alpha
    raise GradlightError(f'length_penalty={penalty!r} is unknown: give None, "avg" or "wu_ALPHA", such as "wu_0.9".')


def search(
    decoder: Decoder, features: Features, beam_size: int, limit: int, *, suppress_unk: bool, penalty: str | None
) -> list[Hypothesis]:
    """Find the best caption of each image; a beam of 1 is greedy search. Gradients are off."""
    for name, value in (("beam_size", beam_size), ("max_length", limit)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise GradlightError(f"{name} must be a whole number, 1 or more; it is {value!r}.")
    with torch.no_grad():
        beams = _Beams(decoder, features, beam_size, length_score(penalty), early=penalty is None)
        for step in range(limit):
            beams.extend(suppress_unk)
            if step == limit - 1:
                beams.cut()
            if beams.settled():
                break
    return beams.best()


def generate(
    decoder: Decoder,
    features: Features,
    beam_size: int = 1,
    max_length: int | None = None,
    suppress_unk: bool = False,
    length_penalty: str | None = None,
) -> list[tuple[list[int], float]]:
    """Say the most probable caption of each image that greedy or beam search finds: (tokens without END, log_prob).

    log_prob is the sum over the words, and END if it was reached within max_length tokens. suppress_unk: never say
    UNK. length_penalty: "avg" or "wu_ALPHA" compares finished beams per length (`search.length_score`); None by
    their sums. Raises GradlightError for a beam_size or max_length below 1.
    """
    found = search(
        decoder,
        features,
        beam_size,
        decoder.max_length if max_length is None else max_length,
        suppress_unk=suppress_unk,
        penalty=length_penalty,
    )
    return [(list(caption.tokens), caption.log_prob) for caption in found]


class _Beams:
    """The beams of every image of a batch, B × k rows, and the captions that were finished so far."""

    def __init__(
        self, decoder: Decoder, features: Features, size: int, score: Callable[[float, int], float], early: bool
    ) -> None:
        state = decoder.start(features)
        self.count, self.size = len(state["h"]), size
        self.decoder, self.score, self.early = decoder, score, early
        device = state["h"].device
        self.state = _take(state, torch.arange(self.count, device=device).repeat_interleave(size))
        self.said = torch.full((self.count * size,), decoder.specials.bos, device=device)
        # All beams are equal before the first word, so one of them is enough.
        self.sums = torch.full((self.count, size), -math.inf, device=device, dtype=torch.float64)
        self.sums[:, 0] = 0
        self.history = torch.empty((self.count, size, 0), dtype=torch.long, device=device)
        self.found: list[list[Hypothesis]] = [[] for _ in range(self.count)]

    def extend(self, suppress_unk: bool) -> None:
        """Let every beam say one more word, and keep the best."""
        self.state = self.decoder.advance(self.state, self.said)
        words = self.decoder.predict(self.state["h"]).double()
        if suppress_unk and self.decoder.specials.unk is not None:
            words[:, self.decoder.specials.unk] -= _SUPPRESSED
        columns = words.shape[1]
        totals = (self.sums.flatten()[:, None] + words).view(self.count, -1)
        self.sums, places = totals.topk(self.size, 1)
        rows, tokens = places // columns, places % columns
        self.history = torch.cat([self.history.gather(1, _along(rows, self.history)), tokens[..., None]], 2)
        first = torch.arange(self.count, device=rows.device)[:, None] * self.size
        self.state = _take(self.state, (first + rows).flatten())
        self.said = tokens.flatten()
        self._finish(tokens == self.decoder.specials.end)

    def _finish(self, ended: Tensor) -> None:
        """Note the beams that have just said END, and charge them for it."""
        finishing = self.decoder.finishing
        if finishing.shrinks:
            gone = torch.tensor([len(found) for found in self.found], device=ended.device)
            places = torch.arange(self.size, device=ended.device)
            self.sums[places[None, :] >= self.size - gone[:, None]] = -math.inf
        for image, beam in (ended & self.sums.isfinite()).nonzero().tolist():
            self._note(image, beam, ended=True)
        self.sums[ended] -= finishing.price

    def cut(self) -> None:
        """Note the beams that the length limit cuts."""
        for image in range(self.count):
            if self.found[image] and not self.decoder.finishing.keeps_cut:
                continue
            for beam in range(self.size):
                if math.isfinite(self.sums[image, beam]) and self.said[image * self.size + beam] != self._end:
                    self._note(image, beam, ended=False)

    @property
    def _end(self) -> int:
        return self.decoder.specials.end

    def _note(self, image: int, beam: int, ended: bool) -> None:
        tokens = self.history[image, beam].tolist()
        total = float(self.sums[image, beam])
        if self._end in tokens[:-1]:
            return  # what goes on behind END is no other caption
        words = tokens[:-1] if ended else tokens
        self.found[image].append(Hypothesis(tuple(words), total, ended, self.score(total, len(tokens))))

    def settled(self) -> bool:
        """Tell whether no beam can become better than what was found: sums only fall."""
        if not self.early:
            return bool((self.sums == -math.inf).all())
        return all(
            bool(found) and max(each.rank for each in found) >= float(sums.max())
            for found, sums in zip(self.found, self.sums, strict=True)
        )

    def best(self) -> list[Hypothesis]:
        """Give the best caption of each image."""
        if not all(self.found):
            raise GradlightError(
                "The captioner's log-probabilities are not finite (NaN), so it says nothing. Check its weights, and the"
                " encoder that it was given."
            )
        return [max(found, key=lambda each: each.rank) for found in self.found]


def _take(state: State, rows: Tensor) -> State:
    return {name: tensor.index_select(0, rows) for name, tensor in state.items()}


def _along(rows: Tensor, history: Tensor) -> Tensor:
    return rows[..., None].expand(-1, -1, history.shape[2])


@dataclass(frozen=True)
class DecodingOptions:
    """Options of the search: beams, the most tokens (None: the decoder's own limit), UNK suppressed, length penalty."""

    beam_size: int = 3
    max_length: int | None = None
    suppress_unk: bool = False
    length_penalty: str | None = None

    def say(self, decoder: Decoder, features: Features) -> list[Hypothesis]:
        """Find the best caption of each image."""
        limit = decoder.max_length if self.max_length is None else self.max_length
        return search(
            decoder, features, self.beam_size, limit, suppress_unk=self.suppress_unk, penalty=self.length_penalty
        )

    def describe(self) -> dict[str, Any]:
        """Describe the options in JSON types."""
        return asdict(self)
