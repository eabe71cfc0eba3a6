"""What every caption decoder is: a recurrent network that takes features in, then words, and predicts the next word.

The log-probability of a caption: of each of its words given those before, and of END.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "KEPT",
    "LEAVES",
    "PADDING",
    "REPLACED",
    "Decoder",
    "EndRule",
    "Features",
    "SpecialTokens",
    "State",
    "step_log_probs",
]

Features = Mapping[str, Tensor]
"""What an encoder tells of B images: "fc" [B,F], their vector, "att" [B,N,D], their places, or both; "mask" [B,N]."""

State = dict[str, Tensor]
"""A decoder between two words: every tensor has a row per caption; the next word is read from "h" [B,R]."""

PADDING = -1
"""The token behind the last word of the shorter captions of a batch."""


@dataclass(frozen=True)
class SpecialTokens:
    """Token numbers with a meaning: what comes before the first word, what ends a caption, and the unknown word."""

    bos: int
    end: int
    unk: int | None = None


@dataclass(frozen=True)
class EndRule:
    """What happens to a beam that has said END.

    price: taken off its running sum, so that others take its place (1000), or it keeps it and goes on behind END (0).
    shrinks: its place is not given to another. keeps_cut: beams that the length limit cut compete with finished ones.
    """

    price: float
    shrinks: bool = False
    keeps_cut: bool = True


REPLACED = EndRule(1000.0)
"""ImageCaptioning.pytorch."""
KEPT = EndRule(0.0)
"""DiscCaptioning."""
LEAVES = EndRule(math.inf, shrinks=True, keeps_cut=False)
"""The soft-attention tutorial."""


class Decoder(nn.Module):
    """Predict captions word by word; a family writes `start` and `advance`.

    specials: the numbers of BOS, END and UNK. max_length: the most tokens (END counts) that `search.generate` makes unless
    told otherwise. finishing: what its project's beam search does with a finished beam. logit reads the words off "h".
    """

    logit: nn.Linear

    def __init__(self, specials: SpecialTokens, max_length: int, finishing: EndRule, dropout: float = 0.5) -> None:
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
