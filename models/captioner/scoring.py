"""The log-probability of a caption: of each of its words given those before, and of END."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["step_log_probs"]


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
