"""How a captioner makes its own caption: the options of its search, in one place."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .decoder import Decoder, Features
from .search import Found, search

__all__ = ["Saying"]


@dataclass(frozen=True)
class Saying:
    """Options of the search: beams, the most tokens (None: the decoder's own limit), UNK suppressed, length penalty."""

    beam_size: int = 3
    max_length: int | None = None
    suppress_unk: bool = False
    length_penalty: str | None = None

    def say(self, decoder: Decoder, features: Features) -> list[Found]:
        """Find the best caption of each image."""
        limit = decoder.max_length if self.max_length is None else self.max_length
        return search(
            decoder, features, self.beam_size, limit, suppress_unk=self.suppress_unk, penalty=self.length_penalty
        )

    def describe(self) -> dict[str, Any]:
        """Describe the options in JSON types."""
        return asdict(self)
