"""A captioner as one network: its eye and its tongue."""

from __future__ import annotations

from torch import Tensor, nn

from .decoder import Decoder
from .reading import Reading

__all__ = ["CaptionNetwork"]


class CaptionNetwork(nn.Module):
    """An encoder from pixels to a map [B,C,h,w], how features are read off it, and a decoder from these to words."""

    def __init__(self, encoder: nn.Module, decoder: Decoder, reading: Reading | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.reading = encoder, decoder, reading or Reading()

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Give what the decoder reads of pixels [B,3,H,W]: "fc" [B,C] and "att" [B,N,C]."""
        return self.reading(self.encoder(pixels))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Give the log-probabilities [B,T+1,V] of captions [B,T] under teacher forcing (`Decoder.log_probs`)."""
        return self.decoder.log_probs(self.features(pixels), tokens)
