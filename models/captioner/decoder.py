"""The decoder interface: features in, then one token at a time; and the log-probability of every step of a caption."""

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
    "PADDING",
    "REMOVED",
    "REPLACED",
    "Decoder",
    "EndRule",
    "Features",
    "SpecialTokens",
    "State",
    "step_log_probs",
]

Features = Mapping[str, Tensor]
"""The encoder's features of B images: "fc" [B,F], one vector per image; "att" [B,N,D], one per location; "mask" [B,N].

A decoder needs "fc" or "att"; "mask" is optional and says which locations exist.
"""

State = dict[str, Tensor]
"""The decoder's state between two tokens: every tensor has one row per caption; "h" [B,R] predicts the next token."""

PADDING = -1
"""Fills the shorter captions of a batch at the right."""

_HALF_PRECISION = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class SpecialTokens:
    """The token numbers with a meaning.

    Args:
        bos: the token before the first word.
        end: the token that ends a caption; it may have the number of BOS.
        unk: the token of every unknown word; None where the vocabulary has none.
    """

    bos: int
    end: int
    unk: int | None = None


@dataclass(frozen=True)
class EndRule:
    """What a project's beam search does with a beam that has decoded END.

    Args:
        penalty: is subtracted from the beam's sum of log-probabilities. 1000 makes another beam replace it; with 0 it
            keeps its rank and is extended behind END.
        shrinks: whether the number of open beams shrinks by one, so that no other beam replaces it.
        keeps_truncated: whether beams that the length limit truncates compete with the ended ones.
    """

    penalty: float
    shrinks: bool = False
    keeps_truncated: bool = True


REPLACED = EndRule(1000.0)
"""ImageCaptioning.pytorch: another beam replaces an ended one."""
KEPT = EndRule(0.0)
"""DiscCaptioning: an ended beam keeps its rank."""
REMOVED = EndRule(math.inf, shrinks=True, keeps_truncated=False)
"""The soft-attention tutorial: the beam shrinks by every ended one."""


class Decoder(nn.Module):
    """Predict captions token by token; a decoder family writes `start` and `advance`.

    The linear layer `logit` maps the state's "h" to one logit per token.

    Args:
        special_tokens: the numbers of BOS, END and UNK.
        max_length: the default limit of `search.generate`, in tokens, END included.
        end_rule: what the beam search of the decoder's project does with an ended beam.
        dropout: the probability of dropout in training mode.
    """

    logit: nn.Linear

    def __init__(self, special_tokens: SpecialTokens, max_length: int, end_rule: EndRule, dropout: float = 0.5) -> None:
        super().__init__()
        self.special_tokens, self.max_length, self.end_rule = special_tokens, max_length, end_rule
        self.dropout = nn.Dropout(dropout)

    @abstractmethod
    def start(self, features: Features) -> State:
        """Read the features; the returned state has seen no token."""

    @abstractmethod
    def advance(self, state: State, tokens: Tensor) -> State:
        """Read one token [B] of each caption (the first is BOS) and return the next state."""

    def predict(self, hidden: Tensor) -> Tensor:
        """Return the log-probabilities [...,V] of the next token from "h" [...,R], at least float32."""
        logits = self.logit(self.dropout(hidden))
        return functional.log_softmax(logits.float() if logits.dtype in _HALF_PRECISION else logits, -1)

    def log_probs(self, features: Features, tokens: Tensor) -> Tensor:
        """Run the decoder over captions under teacher forcing.

        Args:
            features: the encoder's features of B images.
            tokens: [B,T], the project's own token numbers without BOS and END, padded at the right with −1.

        Returns:
            The log-probabilities [B,T+1,V]: step t predicts token t, step T what follows the last one. The values
            behind the END step of a shorter caption have no meaning.
        """
        state = self.start(features)
        hidden = []
        for step_tokens in (tokens.new_full((len(tokens),), self.special_tokens.bos), *tokens.clamp(min=0).unbind(1)):
            state = self.advance(state, step_tokens)
            hidden.append(state["h"])
        return self.predict(torch.stack(hidden, 1))


def step_log_probs(log_probs: Tensor, tokens: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """Select the log-probability of the token that each step of a caption has.

    Args:
        log_probs: [B,T+1,V], from `Decoder.log_probs`.
        tokens: [B,T], padded with −1.
        end: the number of END, which is the last step of each caption.

    Returns:
        The log-probabilities [B,T+1], zero behind END, and a mask [B,T+1] of the steps that exist.

    Example:
        >>> uniform = torch.full((1, 3, 4), 0.25).log()
        >>> picked, exists = step_log_probs(uniform, torch.tensor([[2, -1]]), end=0)
        >>> picked.exp().tolist(), exists.tolist()
        ([[0.25, 0.25, 1.0]], [[True, True, False]])
    """
    lengths = (tokens >= 0).sum(1)
    steps = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    targets = torch.cat([tokens, tokens.new_full((len(tokens), 1), end)], 1)
    targets = torch.where(steps == lengths[:, None], end, targets).clamp(min=0)
    exists = steps <= lengths[:, None]
    picked = log_probs.gather(2, targets[..., None])[..., 0]
    return picked.masked_fill(~exists, 0.0), exists
