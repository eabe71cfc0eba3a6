"""Decoders that look again at the places of an image before each word: `att2in2` and the soft attention with a gate."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import Decoder, Features, Specials, State
from .recurrent import MaxoutLSTM
from .search import LEAVES, REPLACED, Finishing

__all__ = ["Att2in2", "SoftAttention"]


class Att2in2(Decoder):
    """A maxout LSTM whose candidates see the attended places (`att2in2`; Rennie et al., 2017, with the paper's names).

    places: [D] of the features of a place. embed: [E]. size: [R]. attention: [A]. norm: batch normalisation of the
    places before (1) and also after (2) their embedding, as the project's `use_bn`.
    """

    def __init__(
        self,
        specials: Specials,
        *,
        places: int,
        embed: int,
        size: int,
        attention: int,
        rows: int,
        columns: int,
        norm: int = 0,
        max_length: int = 16,
        finishing: Finishing = REPLACED,
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
        specials: Specials,
        *,
        places: int,
        embed: int,
        size: int,
        attention: int,
        rows: int,
        columns: int,
        max_length: int = 51,
        finishing: Finishing = LEAVES,
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
