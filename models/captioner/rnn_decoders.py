"""The recurrent decoders: `fc`, `newfc`, `show_tell` (one vector per image), `att2in2` and soft attention (locations).

The names of the modules are the keys of the checkpoints' state dicts.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .decoder import REMOVED, REPLACED, Decoder, EndRule, Features, SpecialTokens, State

__all__ = ["FC", "Att2in2", "MaxoutLSTM", "ShowTell", "SoftAttention"]


class MaxoutLSTM(nn.Module):
    """An LSTM cell whose candidate is the maximum of two linear maps, without tanh (ImageCaptioning.pytorch).

    Args:
        inputs: [E], the size of an input.
        size: [R], the size of the hidden state and of the cell state.
    """

    def __init__(self, inputs: int, size: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(inputs, 5 * size)
        self.h2h = nn.Linear(size, 5 * size)

    def forward(self, x: Tensor, h: Tensor, c: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return (h', c') [B,R] for the input x [B,E]; context [B,2R] is added to the two candidates."""
        gates, candidates = (self.i2h(x) + self.h2h(h)).split([3 * h.shape[1], 2 * h.shape[1]], 1)
        if context is not None:
            candidates = candidates + context
        input_gate, forget_gate, output_gate = gates.sigmoid().chunk(3, 1)
        first, second = candidates.chunk(2, 1)
        cell = forget_gate * c + input_gate * torch.maximum(first, second)
        return output_gate * cell.tanh(), cell


# --- Decoders that read one vector per image, before the first word


class FC(Decoder):
    """A maxout LSTM whose input before BOS is the embedded image, without ReLU (`fc`, and `newfc` alike).

    Args:
        special_tokens: the numbers of BOS, END and UNK.
        features: [F], the size of the image's vector.
        embed: [E], the size of a word embedding.
        size: [R], the size of the hidden state.
        rows: of the word embedding.
        columns: of the output, one per token that can be decoded.
        max_length: the default limit of the search, in tokens.
        end_rule: what the beam search does with an ended beam.
        dropout: the probability of dropout in training mode.

    Example:
        >>> decoder = FC(SpecialTokens(0, 0), features=8, embed=4, size=6, rows=5, columns=5)
        >>> list(decoder.log_probs({"fc": torch.zeros(2, 8)}, torch.tensor([[1, 2], [3, -1]])).shape)
        [2, 3, 5]
    """

    def __init__(
        self,
        special_tokens: SpecialTokens,
        *,
        features: int,
        embed: int,
        size: int,
        rows: int,
        columns: int,
        max_length: int = 16,
        end_rule: EndRule = REPLACED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(special_tokens, max_length, end_rule, dropout)
        self.img_embed = nn.Linear(features, embed)
        self.core = MaxoutLSTM(embed, size)
        self.embed = nn.Embedding(rows, embed)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Read the image's vector [B,F] as if it were the first word."""
        x = self.img_embed(features["fc"])
        zero = x.new_zeros(len(x), self.core.h2h.in_features)
        h, c = self.core(x, zero, zero)
        return {"h": h, "c": c}

    def advance(self, state: State, tokens: Tensor) -> State:
        """Read one token [B] of each caption."""
        h, c = self.core(self.embed(tokens), state["h"], state["c"])
        return {"h": h, "c": c}


class ShowTell(Decoder):
    """Layers of LSTM without biases whose input before BOS is the embedded image (`show_tell`).

    Built of cells, because cuDNN's LSTM has no gradient in eval mode.

    Args:
        special_tokens: the numbers of BOS, END and UNK.
        features: [F], the size of the image's vector.
        embed: [E], the size of a word embedding.
        size: [R], the size of the hidden state of each layer.
        rows: of the word embedding.
        columns: of the output, one per token that can be decoded.
        layers: the number of LSTM layers.
        max_length: the default limit of the search, in tokens.
        end_rule: what the beam search does with an ended beam.
        dropout: the probability of dropout in training mode.
    """

    def __init__(
        self,
        special_tokens: SpecialTokens,
        *,
        features: int,
        embed: int,
        size: int,
        rows: int,
        columns: int,
        layers: int = 1,
        max_length: int = 16,
        end_rule: EndRule = REPLACED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(special_tokens, max_length, end_rule, dropout)
        self.img_embed = nn.Linear(features, embed)
        self.core = nn.ModuleList(nn.LSTMCell(size if n else embed, size, bias=False) for n in range(layers))
        self.embed = nn.Embedding(rows, embed)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Read the image's vector [B,F] as if it were the first word."""
        x = self.img_embed(features["fc"])
        zero = x.new_zeros(len(x), len(self.core), self.logit.in_features)
        return self._run_layers(x, {"hidden": zero, "cell": zero})

    def advance(self, state: State, tokens: Tensor) -> State:
        """Read one token [B] of each caption."""
        return self._run_layers(self.embed(tokens), state)

    def _run_layers(self, x: Tensor, state: State) -> State:
        """Run all layers once on the input x [B,E]."""
        hidden, cells = [], []
        for number, core in enumerate(self.core):
            previous = state["hidden"][:, number], state["cell"][:, number]
            x, cell = core(self.dropout(x) if number else x, previous)
            hidden.append(x)
            cells.append(cell)
        return {"h": x, "hidden": torch.stack(hidden, 1), "cell": torch.stack(cells, 1)}


# --- Decoders that attend to the image's locations, before each word


class Att2in2(Decoder):
    """A maxout LSTM whose candidates read the attended locations (`att2in2`; Rennie et al., 2017, and its names).

    Args:
        special_tokens: the numbers of BOS, END and UNK.
        location_features: [D], the number of features of a location.
        embed: [E], the size of a word embedding.
        size: [R], the size of the hidden state.
        attention: [A], the hidden size of the attention.
        rows: of the word embedding.
        columns: of the output, one per token that can be decoded.
        norm: batch normalisation of the locations before (1), or before and after (2) their embedding: the project's
            `use_bn`.
        max_length: the default limit of the search, in tokens.
        end_rule: what the beam search does with an ended beam.
        dropout: the probability of dropout in training mode.

    Example:
        >>> decoder = Att2in2(SpecialTokens(0, 0), location_features=8, embed=4, size=6, attention=3, rows=5, columns=5)
        >>> list(decoder.log_probs({"att": torch.zeros(2, 49, 8)}, torch.tensor([[1, 2], [3, -1]])).shape)
        [2, 3, 5]
    """

    def __init__(
        self,
        special_tokens: SpecialTokens,
        *,
        location_features: int,
        embed: int,
        size: int,
        attention: int,
        rows: int,
        columns: int,
        norm: int = 0,
        max_length: int = 16,
        end_rule: EndRule = REPLACED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(special_tokens, max_length, end_rule, dropout)
        self.norm_before = nn.BatchNorm1d(location_features) if norm else None
        self.att_embed = nn.Linear(location_features, size)
        self.norm_after = nn.BatchNorm1d(size) if norm == 2 else None
        self.ctx2att = nn.Linear(size, attention)
        self.h2att = nn.Linear(size, attention)
        self.alpha_net = nn.Linear(attention, 1)
        self.embed = nn.Embedding(rows, embed)
        self.core = MaxoutLSTM(embed, size)
        self.a2c = nn.Linear(size, 2 * size)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Embed the locations [B,N,D]; the hidden state begins at zero."""
        values = self._embed_locations(features["att"])
        zero = values.new_zeros(len(values), self.core.h2h.in_features)
        state = {"h": zero, "c": zero, "values": values, "keys": self.ctx2att(values)}
        return {**state, "mask": features["mask"].to(values)} if "mask" in features else state

    def advance(self, state: State, tokens: Tensor) -> State:
        """Attend by the last hidden state, then read one token [B] of each caption."""
        energies = self.alpha_net((state["keys"] + self.h2att(state["h"])[:, None]).tanh())[..., 0]
        weights = energies.softmax(1)
        if "mask" in state:
            weights = weights * state["mask"]
            weights = weights / weights.sum(1, keepdim=True)
        attended = (weights[:, None] @ state["values"])[:, 0]
        x = self.dropout(self.embed(tokens).relu())
        h, c = self.core(x, state["h"], state["c"], self.a2c(attended))
        return {**state, "h": h, "c": c}

    def _embed_locations(self, locations: Tensor) -> Tensor:
        """Embed locations [B,N,D] as [B,N,R]."""
        rows = locations.flatten(0, 1)
        rows = rows if self.norm_before is None else self.norm_before(rows)
        rows = self.dropout(self.att_embed(rows).relu())
        rows = rows if self.norm_after is None else self.norm_after(rows)
        embedded: Tensor = rows.unflatten(0, locations.shape[:2])
        return embedded


class SoftAttention(Decoder):
    """An LSTM whose input is the word and the gated, attended locations (Xu et al., 2015, with the f_beta gate).

    Args:
        special_tokens: the numbers of BOS, END and UNK.
        location_features: [C], the number of features of a location.
        embed: [E], the size of a word embedding.
        size: [R], the size of the hidden state.
        attention: [A], the hidden size of the attention.
        rows: of the word embedding.
        columns: of the output, one per token that can be decoded.
        max_length: the default limit of the search, in tokens.
        end_rule: what the beam search does with an ended beam.
        dropout: the probability of dropout in training mode.
    """

    def __init__(
        self,
        special_tokens: SpecialTokens,
        *,
        location_features: int,
        embed: int,
        size: int,
        attention: int,
        rows: int,
        columns: int,
        max_length: int = 51,
        end_rule: EndRule = REMOVED,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(special_tokens, max_length, end_rule, dropout)
        self.encoder_att = nn.Linear(location_features, attention)
        self.decoder_att = nn.Linear(size, attention)
        self.full_att = nn.Linear(attention, 1)
        self.init_h = nn.Linear(location_features, size)
        self.init_c = nn.Linear(location_features, size)
        self.f_beta = nn.Linear(size, location_features)
        self.embed = nn.Embedding(rows, embed)
        self.core = nn.LSTMCell(embed + location_features, size)
        self.logit = nn.Linear(size, columns)

    def start(self, features: Features) -> State:
        """Begin at linear maps of the mean over the locations [B,N,C]."""
        values = features["att"]
        mean = values.mean(1)
        return {"h": self.init_h(mean), "c": self.init_c(mean), "values": values, "keys": self.encoder_att(values)}

    def advance(self, state: State, tokens: Tensor) -> State:
        """Attend and gate by the last hidden state, then read one token [B] of each caption."""
        energies = self.full_att((state["keys"] + self.decoder_att(state["h"])[:, None]).relu())[..., 0]
        attended = (energies.softmax(1)[:, None] @ state["values"])[:, 0]
        gated = self.f_beta(state["h"]).sigmoid() * attended
        h, c = self.core(torch.cat([self.embed(tokens), gated], 1), (state["h"], state["c"]))
        return {**state, "h": h, "c": c}
