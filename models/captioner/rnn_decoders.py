"""Decoders that look again at the places of an image before each word: `att2in2` and the soft attention with a gate.

Decoders that see an image once, as one vector before the first word: `fc`, `newfc` and `show_tell`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import LEAVES, REPLACED, Decoder, EndRule, Features, SpecialTokens, State

__all__ = ["FC", "Att2in2", "MaxoutLSTM", "ShowTell", "SoftAttention"]


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
        specials: SpecialTokens,
        *,
        features: int,
        embed: int,
        size: int,
        rows: int,
        columns: int,
        max_length: int = 16,
        finishing: EndRule = REPLACED,
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
        specials: SpecialTokens,
        *,
        features: int,
        embed: int,
        size: int,
        rows: int,
        columns: int,
        layers: int = 1,
        max_length: int = 16,
        finishing: EndRule = REPLACED,
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


class Att2in2(Decoder):
    """A maxout LSTM whose candidates see the attended places (`att2in2`; Rennie et al., 2017, with the paper's names).

    places: [D] of the features of a place. embed: [E]. size: [R]. attention: [A]. norm: batch normalisation of the
    places before (1) and also after (2) their embedding, as the project's `use_bn`.
    """

    def __init__(
        self,
        specials: SpecialTokens,
        *,
        places: int,
        embed: int,
        size: int,
        attention: int,
        rows: int,
        columns: int,
        norm: int = 0,
        max_length: int = 16,
        finishing: EndRule = REPLACED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(specials, max_length, finishing, dropout)
        self.norm_before = nn.BatchNorm1d(places) if norm else None
        self.att_embed = nn.Linear(places, size)
        self.norm_after = nn.BatchNorm1d(size) if norm == 2 else None
        self.ctx2att = nn.Linear(size, attention)
        self.h2att = nn.Linear(size, attention)
        self.alpha_net = nn.Linear(attention, 1)
        self.embed = nn.Embedding(rows, embed)
        self.core = MaxoutLSTM(embed, size)
        self.a2c = nn.Linear(size, 2 * size)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Embed the places [B,N,D]; the hidden state begins at zero."""
        values = self._embedded(features["att"])
        zero = values.new_zeros(len(values), self.core.h2h.in_features)
        state = {"h": zero, "c": zero, "values": values, "keys": self.ctx2att(values)}
        return {**state, "mask": features["mask"].to(values)} if "mask" in features else state

    def advance(self, state: State, tokens: Tensor) -> State:
        """Attend by the last hidden state, then take one word [B] in."""
        energies = self.alpha_net((state["keys"] + self.h2att(state["h"])[:, None]).tanh())[..., 0]
        shares = energies.softmax(1)
        if "mask" in state:
            shares = shares * state["mask"]
            shares = shares / shares.sum(1, keepdim=True)
        attended = (shares[:, None] @ state["values"])[:, 0]
        x = self.dropout(self.embed(tokens).relu())
        h, c = self.core(x, state["h"], state["c"], self.a2c(attended))
        return {**state, "h": h, "c": c}

    def _embedded(self, places: Tensor) -> Tensor:
        rows = places.flatten(0, 1)
        rows = rows if self.norm_before is None else self.norm_before(rows)
        rows = self.dropout(self.att_embed(rows).relu())
        rows = rows if self.norm_after is None else self.norm_after(rows)
        unfolded: Tensor = rows.unflatten(0, places.shape[:2])
        return unfolded


class SoftAttention(Decoder):
    """An LSTM whose input is the word beside the gated, attended places (Xu et al., 2015, with the f_beta gate).

    places: [C] of the features of a place. embed: [E]. size: [D]. attention: [M].
    """

    def __init__(
        self,
        specials: SpecialTokens,
        *,
        places: int,
        embed: int,
        size: int,
        attention: int,
        rows: int,
        columns: int,
        max_length: int = 51,
        finishing: EndRule = LEAVES,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(specials, max_length, finishing, dropout)
        self.encoder_att = nn.Linear(places, attention)
        self.decoder_att = nn.Linear(size, attention)
        self.full_att = nn.Linear(attention, 1)
        self.init_h = nn.Linear(places, size)
        self.init_c = nn.Linear(places, size)
        self.f_beta = nn.Linear(size, places)
        self.embed = nn.Embedding(rows, embed)
        self.core = nn.LSTMCell(embed + places, size)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Begin at linear maps of the mean over the places [B,N,C]."""
        places = features["att"]
        mean = places.mean(1)
        return {"h": self.init_h(mean), "c": self.init_c(mean), "values": places, "keys": self.encoder_att(places)}

    def advance(self, state: State, tokens: Tensor) -> State:
        """Attend and gate by the last hidden state, then take one word [B] in."""
        energies = self.full_att((state["keys"] + self.decoder_att(state["h"])[:, None]).relu())[..., 0]
        attended = (energies.softmax(1)[:, None] @ state["values"])[:, 0]
        gated = self.f_beta(state["h"]).sigmoid() * attended
        h, c = self.core(torch.cat([self.embed(tokens), gated], 1), (state["h"], state["c"]))
        return {**state, "h": h, "c": c}
