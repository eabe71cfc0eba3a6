"""Decoders from the keys of state dicts: their arithmetic against plain numpy, and what cannot be read."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioner_projects import (
    WORDS,
    A,
    D,
    E,
    F,
    R,
    Slowly,
    State,
    V,
    att2in2_state,
    fc_state,
    filled,
    infos,
    joint,
    linear,
    newfc_state,
    show_tell_state,
    written,
)
from torch import Tensor

from gradlight.errors import GradlightError, GradlightWarning
from gradlight.models.captioner.checkpoints import Checkpoint, read_checkpoint
from gradlight.models.captioner.decoder import KEPT, REPLACED, SpecialTokens
from gradlight.models.captioner.encoder import FeaturePooling
from gradlight.models.captioner.rnn_decoders import FC, Att2in2
from gradlight.models.captioner.search import generate
from gradlight.models.captioner.state_dicts import build_decoder, feature_width, load_strictly, recognise

SAID = [3, 6, 1, V]


def read(folder: Path, state: State, model: str, old: bool = True, **options: Any) -> Checkpoint:
    return read_checkpoint(written(folder, state, infos(model, **options), old=old))


def log_probs(found: Checkpoint, features: dict[str, Tensor]) -> np.ndarray:
    with torch.no_grad():
        rows: np.ndarray = found.decoder.log_probs(features, torch.tensor([SAID]))[0].numpy()
    return rows


def slow_beam(step: Callable[[list[int]], np.ndarray], size: int, limit: int, price: float) -> tuple[list[int], float]:
    """Search with beams as the projects do: the best of what was finished; a finished beam pays a price and stays."""
    beams, done = [([], 0.0)], []
    for time in range(limit):
        grown = [
            ([*said, word], total + float(log_prob))
            for said, total in beams
            for word, log_prob in enumerate(step(said))
        ]
        beams = sorted(grown, key=lambda beam: -beam[1])[:size]
        done += [(said, total) for said, total in beams if said[-1] == 0 or time == limit - 1]
        beams = [(said, total - price * (said[-1] == 0)) for said, total in beams]
    said, total = max(done, key=lambda beam: beam[1])
    return said[: said.index(0)] if 0 in said else said, total


FULL: list[tuple[str, bool, int, int]] = [
    ("fc", False, V + 1, 0),
    ("newfc", False, V + 1, 0),
    ("fc", True, V + 2, 0),
    ("att2in2", False, V + 1, 0),
    ("att2in2", False, V + 1, 1),
    ("att2in2", False, V + 1, 2),
    ("att2in2", True, V + 2, 0),
]


def made(family: str, inside: bool, rows: int, norm: int) -> State:
    if family == "newfc":
        return newfc_state()
    state = fc_state(rows) if family == "fc" else att2in2_state(rows, norm)
    return joint(state) if inside else state


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("family", "inside", "rows", "norm"), FULL)
def test_the_arithmetic_is_that_of_the_equations(
    tmp_path: Path, family: str, inside: bool, rows: int, norm: int, old: bool
) -> None:
    state = made(family, inside, rows, norm)
    found = read(tmp_path, state, family, old)
    found.decoder.double()
    assert found.family == family
    assert found.project == ("DiscCaptioning" if inside else "ImageCaptioning.pytorch")
    slowly, chance = Slowly(state), np.random.default_rng(0)
    bos = V + 1 if inside else 0
    if family == "att2in2":
        places = chance.standard_normal((6, D))
        features = {"att": torch.from_numpy(places)[None]}

        def expected(said: list[int]) -> np.ndarray:
            return slowly.att2in2(places, [bos, *said], norm)
    else:
        vector = chance.standard_normal(F)
        features = {"fc": torch.from_numpy(vector)[None]}
        names = ("fc_embed", "_core") if family == "newfc" else ("img_embed", "core")

        def expected(said: list[int]) -> np.ndarray:
            return slowly.fc(vector, [bos, *said], *names)

    assert np.allclose(log_probs(found, features), expected(SAID), rtol=1e-10)
    for size in (1, 3):
        said, total = slow_beam(lambda said: expected(said)[-1], size, 5, 0.0 if inside else 1000.0)
        ((ours, log_prob),) = generate(found.decoder, features, size, max_length=5)
        assert (ours, log_prob) == (said, pytest.approx(total, rel=1e-10))


def test_stacked_lstms_are_torchs_own(tmp_path: Path) -> None:
    state = show_tell_state(layers=3)
    found = read(tmp_path, state, "show_tell")
    found.decoder.double()
    state = {name: tensor.double() for name, tensor in state.items()}
    lstm = torch.nn.LSTM(E, R, 3, bias=False).double()
    lstm.load_state_dict({name.removeprefix("core."): tensor for name, tensor in state.items() if "core." in name})
    vector = torch.randn(F, dtype=torch.float64)
    inputs = torch.stack(
        [state["img_embed.weight"] @ vector + state["img_embed.bias"], *state["embed.weight"][[0, *SAID]]]
    )
    hidden = lstm(inputs[:, None])[0][1:, 0]
    expected = (hidden @ state["logit.weight"].T + state["logit.bias"]).log_softmax(1)
    assert np.allclose(log_probs(found, {"fc": vector[None]}), expected.detach().numpy(), rtol=1e-10)


@pytest.mark.parametrize(
    ("family", "options", "old", "limit"),
    [
        ("fc", {"max_length": 20}, True, 16),
        ("newfc", {"max_length": 20}, False, 20),
        ("newfc", {"max_length": 0}, False, 16),
        ("newfc", {"max_length": 33}, False, 33),
        ("att2in2", {}, True, 16),
        ("att2in2", {"max_length": 20}, False, 20),
        ("att2in2", {"max_length": None}, False, 16),
        ("att2in2", {"max_length": "many"}, False, 16),
    ],
)
def test_the_length_limit(tmp_path: Path, family: str, options: dict[str, Any], old: bool, limit: int) -> None:
    found = read(tmp_path, made(family, False, V + 1, 0), family, old, **options)
    assert found.decoder.max_length == limit


def test_the_length_limit_without_the_option(tmp_path: Path) -> None:
    record = {**infos("newfc"), "loader_state_dict": None}
    assert read_checkpoint(written(tmp_path / "a", newfc_state(), record, old=False)).decoder.max_length == 20
    del record["opt"].seq_length
    assert read_checkpoint(written(tmp_path / "b", fc_state(), infos("fc"), old=False)).decoder.max_length == 16


def test_begin_and_end_that_the_options_name(tmp_path: Path) -> None:
    found = read(tmp_path / "a", att2in2_state(), "att2in2", False, bos_idx=V, eos_idx=0)
    assert found.decoder.special_tokens == SpecialTokens(V, 0, V)
    found = read(tmp_path / "b", att2in2_state(), "att2in2", False, bos_idx=V + 1, eos_idx=None)
    assert found.decoder.special_tokens == SpecialTokens(0, 0, V)
    assert read(tmp_path / "c", fc_state(), "fc", bos_idx=4).decoder.special_tokens.bos == 0


def test_regions_with_boxes_become_places_with_boxes(tmp_path: Path) -> None:
    with pytest.warns(GradlightWarning, match="regions that a detector found"):
        found = read(tmp_path, att2in2_state(), "att2in2", False, use_box=1)
    assert found.pooling == FeaturePooling(14, boxes=True)
    with pytest.warns(GradlightWarning, match="norm_att_feat"):
        assert not read(tmp_path, att2in2_state(), "att2in2", False, norm_att_feat=1).pooling.boxes


def test_wrapped_and_half_weights_are_read(tmp_path: Path) -> None:
    state = {f"module.{name}": tensor.half() for name, tensor in fc_state().items()}
    found = read(tmp_path, state, "fc")
    weight = found.decoder.get_parameter("embed.weight")
    assert torch.equal(weight, fc_state()["embed.weight"].half().float())
    assert weight.requires_grad


OTHERS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "att2in": ("att2in", {"core.a2c.weight": (2 * R, D), "embed.weight": (V + 1, E)}),
    "att2all2": ("att2all2", {"core.a2h.weight": (5 * R, R), "embed.0.weight": (V + 1, E)}),
    "updown": (r"updown \(topdown\)", {"core.att_lstm.weight_ih": (4 * R, E), "core.attention.h2att.weight": (A, R)}),
    "adaatt": ("adaatt", {"core.lstm.w2h.weight": (4 * R, R), "core.attention.att2h.weight": (R, R)}),
    "stackatt": ("stackatt", {"core.att1.h2att.weight": (A, R), "core.emb2.weight": (R, R)}),
    "denseatt": ("denseatt", {"core.att1.h2att.weight": (A, R), "core.fusion1.0.weight": (R, 2 * R)}),
    "transformer": ("transformer", {"model.encoder.layers.0.self_attn.linears.0.weight": (R, R)}),
    "language_model": ("language_model", {"_core.i2h.weight": (5 * R, E), "embed.weight": (V + 1, E)}),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_other_families_are_named(tmp_path: Path, name: str) -> None:
    family, shapes = OTHERS[name]
    state = filled({**shapes, **linear("logit", V + 1, R)})
    supported = "fc, newfc, show_tell, att2in2, soft attention"
    for held in (state, joint(state)):
        with pytest.raises(GradlightError, match=rf"model-best\.pth: .*the family {family}, .*{supported}"):
            read(tmp_path, held, name)


@pytest.mark.parametrize(("gates", "kind"), [(3, "gru"), (1, "rnn")])
def test_other_recurrent_networks_are_named(tmp_path: Path, gates: int, kind: str) -> None:
    with pytest.raises(GradlightError, match=rf"model-best\.pth: .*show_tell with a {kind}"):
        read(tmp_path, show_tell_state(gates=gates), "show_tell")


def test_outputs_of_several_layers(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in att2in2_state().items() if not name.startswith("logit")}
    state |= filled({**linear("logit.0", R, R), **linear("logit.3", V + 1, R)})
    with pytest.raises(GradlightError, match="logit_layers > 1"):
        read(tmp_path, state, "att2in2")


def test_weights_of_no_captioner(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"no known captioner \(a\.weight, a\.bias\)"):
        read(tmp_path, filled(linear("a", 2, 3)), "fc")


def without(*names: str) -> State:
    return {name: tensor for name, tensor in fc_state().items() if name not in names}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("core.h2h.weight"), "core.h2h.weight is missing"),
        (without("logit.bias"), "do not fit together; missing: logit.bias"),
        ({**fc_state(), "more": torch.ones(1)}, "not expected: more"),
        ({**fc_state(), "logit.bias": torch.ones(V)}, r"of another shape: logit.bias \[10\] for \[11\]"),
        ({**fc_state(), "core.h2h.weight": torch.ones(3)}, r"core.h2h.weight has the shape \[3\]"),
        ({**fc_state(), "logit.bias": torch.ones(V + 1).long()}, "not of floating-point numbers: logit.bias"),
        ({**fc_state(), "img_embed.weight": torch.ones(E, 0)}, "One of its weights is empty"),
        ({**newfc_state(), "core.i2h.bias": torch.ones(5 * R)}, "another name of the same weights"),
    ],
)
def test_weights_that_do_not_fit(tmp_path: Path, state: State, message: str) -> None:
    with pytest.raises(GradlightError, match=rf"model-best\.pth: .*{message}"):
        read(tmp_path, state, "newfc" if "_core.i2h.bias" in state else "fc")


def test_sizes_that_do_not_belong_together_take_no_memory() -> None:
    state = {
        **fc_state(),
        "img_embed.weight": torch.ones(1).expand(10**7, F),
        "core.h2h.weight": torch.ones(1).expand(5 * 10**6, 10**6),
    }
    with pytest.raises(GradlightError, match="of another shape"):
        build_decoder("fc", state, SpecialTokens(0, 0), 16, REPLACED)


def test_recognised_weights_bear_our_names() -> None:
    found = recognise(joint(att2in2_state(V + 2, 2)))
    assert (found.family, found.joint) == ("att2in2", True)
    decoder = build_decoder(found.family, found.state, SpecialTokens(V + 1, 0), 16, KEPT)
    assert isinstance(decoder, Att2in2)
    assert decoder.norm_after is not None
    assert (feature_width(decoder), decoder.h2att.out_features) == (D, A)
    assert int(decoder.state_dict()["norm_before.num_batches_tracked"]) == 7
    assert not decoder.training
    assert set(found.state) == set(decoder.state_dict())


def test_a_family_that_there_is_not() -> None:
    with pytest.raises(GradlightError, match=r"The family 'fd' is unknown.*fc, newfc"):
        build_decoder("fd", fc_state(), SpecialTokens(0, 0), 16, REPLACED)


def test_counts_of_batches_may_be_missing() -> None:
    with torch.device("meta"):
        norm = torch.nn.BatchNorm1d(3)
    load_strictly(norm, {name: torch.ones(3) for name in ("weight", "bias", "running_mean", "running_var")})
    assert int(norm.state_dict()["num_batches_tracked"]) == 0
    assert norm(torch.zeros(2, 3)).isfinite().all()


def test_the_width_of_another_decoder() -> None:
    class Other(FC):
        pass

    class Strange(torch.nn.Module):
        pass

    specials, sizes = SpecialTokens(0, 0), {"features": F, "embed": E, "size": R, "rows": V + 1, "columns": V + 1}
    assert feature_width(Other(specials, **sizes)) == F
    with pytest.raises(GradlightError, match="Strange is no decoder"):
        feature_width(Strange())  # type: ignore[arg-type]


def test_a_caption_ends_where_the_words_do(tmp_path: Path) -> None:
    found = read(tmp_path, fc_state(), "fc")
    ((tokens, log_prob),) = generate(found.decoder, {"fc": torch.ones(1, F)}, 2, suppress_unk=True)
    assert all(word in WORDS[:-1] for word in found.vocabulary.decode(tokens))
    assert math.isfinite(log_prob)
