"""What every caption decoder is: a recurrent network that takes features in, then words, and predicts the next word.

The log-probability of a caption: of each of its words given those before, and of END.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .search import Finishing, search

__all__ = ["PADDING", "Decoder", "Features", "Specials", "State", "step_log_probs"]

Features = Mapping[str, Tensor]
"""What an encoder tells of B images: "fc" [B,F], their vector, "att" [B,N,D], their places, or both; "mask" [B,N]."""

State = dict[str, Tensor]
"""A decoder between two words: every tensor has a row per caption; the next word is read from "h" [B,R]."""

PADDING = -1
"""The token behind the last word of the shorter captions of a batch."""


@dataclass(frozen=True)
class Specials:
    """Token numbers with a meaning: what comes before the first word, what ends a caption, and the unknown word."""

    bos: int
    end: int
    unk: int | None = None


class Decoder(nn.Module):
    """Predict captions word by word; a family writes `start` and `advance`.

    specials: the numbers of BOS, END and UNK. max_length: the most tokens (END counts) that `generate` makes unless
    told otherwise. finishing: what its project's beam search does with a finished beam. logit reads the words off "h".
    """

    logit: nn.Linear

    def __init__(self, specials: Specials, max_length: int, finishing: Finishing, dropout: float = 0.5) -> None:
        super().__init__()
        self.specials, self.max_length, self.finishing = specials, max_length, finishing
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def start(self, features: Features) -> State:
        """Take the features in; no word has been said yet."""

    @abstractmethod
    def advance(self, state: State, tokens: Tensor) -> State:
        """Take one word [B] of each caption in (BOS is the first)."""

    def predict(self, hidden: Tensor) -> Tensor:
        """Give the log-probabilities [...,V] of the next word from "h" [...,R], float32 at least."""
        logits = self.logit(self.dropout(hidden))
        return functional.log_softmax(logits.float() if logits.dtype in _HALVES else logits, -1)

    def log_probs(self, features: Features, tokens: Tensor) -> Tensor:
        """Give the log-probabilities [B,T+1,V] that teacher forcing predicts: row t of word t, row T of what follows.

        tokens: [B,T], the project's own word numbers without BOS and END, padded at the right with −1; what stands at
        the rows behind a shorter caption's END says nothing.
        """
        state = self.start(features)
        hidden = []
        for said in (tokens.new_full((len(tokens),), self.specials.bos), *tokens.clamp(min=0).unbind(1)):
            state = self.advance(state, said)
            hidden.append(state["h"])
        return self.predict(torch.stack(hidden, 1))

    def generate(
        self,
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
            self,
            features,
            beam_size,
            self.max_length if max_length is None else max_length,
            suppress_unk=suppress_unk,
            penalty=length_penalty,
        )
        return [(list(caption.tokens), caption.log_prob) for caption in found]


_HALVES = (torch.float16, torch.bfloat16)


def step_log_probs(log_probs: Tensor, tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Pick what each step of a caption says: ([B,T+1] log-probabilities, [B,T+1] which steps exist).

    log_probs: [B,T+1,V] (`Decoder.log_probs`). tokens: [B,T], padded with −1. The last step of each caption is END;
    the steps behind it are zero.
    """
    lengths = (tokens >= 0).sum(1)
    steps = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    said = torch.cat([tokens, tokens.new_full((len(tokens), 1), end)], 1)
    said = torch.where(steps == lengths[:, None], end, said).clamp(min=0)
    exists = steps <= lengths[:, None]
    picked = log_probs.gather(2, said[..., None])[..., 0]
    return picked.masked_fill(~exists, 0.0), exists
