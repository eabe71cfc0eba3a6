"""Decoders that see an image once, as one vector before the first word: `fc`, `newfc` and `show_tell`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import Decoder, Features, Specials, State
from .search import REPLACED, Finishing

__all__ = ["FC", "MaxoutLSTM", "ShowTell"]


class MaxoutLSTM(nn.Module):
    """An LSTM cell whose candidate is the larger of two linear maps and has no tanh (ImageCaptioning.pytorch)."""

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(inputs, 5 * size)
        self.h2h = nn.Linear(size, 5 * size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Give (h', c') [B,R] for the input x [B,E]; context [B,2R] is added to the two candidates."""
        gates, candidates = (self.i2h(x) + self.h2h(h)).split([3 * h.shape[1], 2 * h.shape[1]], 1)
        if context is not None:
            candidates = candidates + context
        into, forget, out = gates.sigmoid().chunk(3, 1)
        one, other = candidates.chunk(2, 1)
        cell = forget * c + into * torch.maximum(one, other)
        return out * cell.tanh(), cell


class FC(Decoder):
    """A maxout LSTM whose input before BOS is the embedded image; nothing is rectified (`fc`, and as `newfc`).

    features: [F] of the image's vector. embed: [E]. size: [R]. rows of the embedding; columns of the output.
    """

    def __init__(
        self,
        specials: Specials,
        *,
        features: int,
        embed: int,
        size: int,
        rows: int,
        columns: int,
        max_length: int = 16,
        finishing: Finishing = REPLACED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(specials, max_length, finishing, dropout)
        self.img_embed = nn.Linear(features, embed)
        self.core = MaxoutLSTM(embed, size)
        self.embed = nn.Embedding(rows, embed)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Take the image's vector [B,F] in as if it were the first word."""
        x = self.img_embed(features["fc"])
        zero = x.new_zeros(len(x), self.core.h2h.in_features)
        h, c = self.core(x, zero, zero)
        return {"h": h, "c": c}

    def advance(self, state: State, tokens: Tensor) -> State:
        """Take one word [B] in."""
        h, c = self.core(self.embed(tokens), state["h"], state["c"])
        return {"h": h, "c": c}


class ShowTell(Decoder):
    """Layers of LSTM without biases whose input before BOS is the embedded image (`show_tell`).

    Built of cells, because cuDNN's LSTM has no gradient in eval mode. features [F], embed [E], size [R] as in `FC`.
    """

    def __init__(
        self,
        specials: Specials,
        *,
        features: int,
        embed: int,
        size: int,
        rows: int,
        columns: int,
        layers: int = 1,
        max_length: int = 16,
        finishing: Finishing = REPLACED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(specials, max_length, finishing, dropout)
        self.img_embed = nn.Linear(features, embed)
        self.core = nn.ModuleList(nn.LSTMCell(size if n else embed, size, bias=False) for n in range(layers))
        self.embed = nn.Embedding(rows, embed)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Take the image's vector [B,F] in as if it were the first word."""
        x = self.img_embed(features["fc"])
        zero = x.new_zeros(len(x), len(self.core), self.logit.in_features)
        return self._run(x, {"hidden": zero, "cell": zero})

    def advance(self, state: State, tokens: Tensor) -> State:
        """Take one word [B] in."""
        return self._run(self.embed(tokens), state)

    def _run(self, x: Tensor, state: State) -> State:
        hidden, cells = [], []
        for number, core in enumerate(self.core):
            before = state["hidden"][:, number], state["cell"][:, number]
            x, cell = core(self.dropout(x) if number else x, before)
            hidden.append(x)
            cells.append(cell)
        return {"h": x, "hidden": torch.stack(hidden, 1), "cell": torch.stack(cells, 1)}
