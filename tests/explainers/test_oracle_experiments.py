"""The classifier oracle's experiments: the paper's grid, real convolutions, meta-saliency, combined layers."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest
import torch
from by_definition import summed, taps_of
from oracle import METHODS, Oracle, error_max
from torch import Tensor

import gradlight as gl
from gradlight.explainers.extraction import EXTRACTS
from gradlight.explainers.meta import meta_step
from gradlight.models.class_objective import ClassObjective
from gradlight.models.preserve import preserved

FLOAT64 = 2e-6  # the oracle's own advice; its arrays are stored in float32

GRID_LAYERS = ["layer2.0", "layer3.0", "layer4.0", "layer4"]
GRID_EXTRACTS = ["bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise"]
GRID_AGGREGATES = ["sum", "max", "norm", "filter_norm"]
REAL = {"resnet18": "normgrad_resnet18_A_t18", "vgg11": "normgrad_vgg11_A_t17"}
METAS = ["meta_resnet18_A_t5", "meta_resnet18_B_t18"]
COMBINED = ["combine_resnet18_A", "combine_resnet18_B"]


@cache
def grid(oracle: Oracle, case: str) -> gl.SaliencyMaps:
    cells = [gl.Method(extract, aggregate) for extract in GRID_EXTRACTS for aggregate in GRID_AGGREGATES]
    return gl.explain(*oracle.asked(case), methods=cells, layers=GRID_LAYERS)


@pytest.mark.parametrize("case", ["paper_resnet18_B_t5", pytest.param("paper_resnet50_A_t6", marks=pytest.mark.slow)])
@pytest.mark.parametrize("extract", GRID_EXTRACTS)
@pytest.mark.parametrize("aggregate", GRID_AGGREGATES)
def test_the_papers_grid(oracle: Oracle, case: str, extract: str, aggregate: str):
    """`exact`: the authors' script in float64. It has no bias at layer4, whose gradient is constant."""
    wanted = oracle.read(f"paper_grid/{case}.npz")
    layers = GRID_LAYERS[:3] if extract == "bias" else GRID_LAYERS
    for layer in layers:
        found = grid(oracle, case)[f"{extract}+{aggregate}", layer][0, 0]
        assert error_max(found, wanted[f"{extract}|{aggregate}/{layer}/exact"]) <= FLOAT64, layer


def test_the_whole_grid_is_compared(oracle: Oracle):
    for case in ("paper_resnet18_B_t5", "paper_resnet50_A_t6"):
        exact = {key for key in oracle.read(f"paper_grid/{case}.npz") if key.endswith("/exact")}
        cells = {f"{e}|{a}/{at}/exact" for e in GRID_EXTRACTS for a in GRID_AGGREGATES for at in GRID_LAYERS}
        assert exact == {cell for cell in cells if not re.fullmatch(r"bias\|.*/layer4/exact", cell)}


@pytest.mark.parametrize("network", REAL)
def test_maps_of_real_convolutions(oracle: Oracle, network: str):
    """All `real|…` and `virtual|…` keys: maps of a convolution's own weight, and of virtual layers on its output."""
    wanted = oracle.read(f"normgrad_real/{REAL[network]}.npz")
    keys = [key for key in wanted if key.startswith(("real|", "virtual|"))]
    methods = {key.partition("/")[0]: key.partition("/")[0].removeprefix("virtual|").replace("|", "+") for key in keys}
    layers = sorted({key.partition("/")[2] for key in keys})
    maps = gl.explain(*oracle.asked(REAL[network]), methods=methods.values(), layers=layers)
    for key in keys:
        name, _, layer = key.partition("/")
        assert error_max(maps[methods[name], layer][0, 0], wanted[key]) <= FLOAT64, key
    assert len(methods) == 8


@pytest.mark.parametrize("network", REAL)
def test_real_contributions_sum_to_the_weights_gradient(oracle: Oracle, network: str):
    wanted = oracle.read(f"normgrad_real/{REAL[network]}.npz")
    model, pixels, target = oracle.asked(REAL[network])
    layers = [key.partition("/")[2] for key in wanted if key.startswith("weight_grad_head/")]
    for layer, tap in taps_of(model, pixels, layers, target).items():
        gradient = summed(EXTRACTS["real"](tap))
        norm = float(wanted[f"weight_grad_norm/{layer}"])
        assert error_max(gradient[:256], wanted[f"weight_grad_head/{layer}"]) <= FLOAT64
        assert float(gradient.norm()) == pytest.approx(norm, rel=1e-6)
        assert float(gradient.sum()) == pytest.approx(
            float(wanted[f"weight_grad_sum/{layer}"]), rel=1e-6, abs=1e-6 * norm
        )
    assert layers


def keys_of_step(wanted: dict[str, Tensor], step: str, objectives: tuple[str, ...]) -> dict[tuple[str, str, str], str]:
    """Find (objective, method, layer) → key at the weights "base", "descent_eps0.001" …"""
    parts = {key: tuple(re.split(r"[|/]", key)) for key in wanted if "/" in key}
    return {p[1:]: key for key, p in parts.items() if p[0] == step and p[1] in objectives}  # type: ignore[misc]


def meta_of(step: str) -> gl.Meta | None:
    direction, _, epsilon = step.partition("_eps")
    return None if step == "base" else gl.Meta(lr=2 * float(epsilon), direction=direction)


SMALLER = ["descent_eps0.0001", "ascent_eps0.0001"]
STEPS = [
    "base",
    "descent_eps0.001",
    "ascent_eps0.001",
    *(pytest.param(step, marks=pytest.mark.slow) for step in SMALLER),
]
META_METHODS = ["linear_approx", "norm_grad_selective", "norm_grad", "gradient", "gradient_sum", "grad_cam_norelu"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("case", METAS)
@pytest.mark.parametrize("step", STEPS)
def test_maps_after_a_meta_step(oracle: Oracle, case: str, step: str, dtype: torch.dtype):
    """The logit's maps at θ ± 2ε∇CE, also as TorchRay's own `meta_saliency` gives them ("peer")."""
    wanted = oracle.read(f"meta/{case}.npz")
    noise = oracle.json(f"meta/{case}.json")["float32_relative_error"]
    methods = [METHODS[name] for name in META_METHODS]
    maps = gl.explain(*oracle.asked(case, dtype), methods=methods, layers=["layer3", "layer4"], meta=meta_of(step))
    keys = keys_of_step(wanted, step, ("logit", "peer"))
    for (_, name, layer), key in keys.items():
        error = error_max(maps[METHODS[name], layer][0, 0], wanted[key])
        assert error <= (FLOAT64 if dtype == torch.float64 else max(1e-5, 5 * noise[key])), key
    assert {(name, layer) for _, name, layer in keys} >= {(n, at) for n in META_METHODS for at in ("layer3", "layer4")}


class LogProbability(ClassObjective):
    """Another objective of the same classifier: the logarithm of the class's probability, which is minus its loss."""

    def scores(self, outputs: Tensor, targets: Any) -> Tensor:
        return -self.losses(outputs, targets)

    def rows(self, start: int, stop: int, total: int) -> LogProbability:
        return self


@pytest.mark.parametrize("case", METAS)
@pytest.mark.parametrize("step", STEPS)
def test_any_objective_is_explained(oracle: Oracle, case: str, step: str, monkeypatch: pytest.MonkeyPatch):
    """`minusloss` is the gradient of the log-probability; `loss`, the paper's equations, has the opposite sign."""
    wanted = oracle.read(f"meta/{case}.npz")
    model, pixels, target = oracle.asked(case)
    objective = model.objective(target)
    other = LogProbability(model.network, objective.labels, objective.target_specs)
    monkeypatch.setattr(model, "objective", lambda target: other)
    signed = ["linear_approx", "gradient_sum", "grad_cam_norelu"]
    methods = [METHODS[name] for name in META_METHODS]
    maps = gl.explain(model, pixels, target, methods=methods, layers=["layer3", "layer4"], meta=meta_of(step))
    keys = keys_of_step(wanted, step, ("loss", "minusloss"))
    compared = [key for key in keys if key[0] == "minusloss" or key[1] != "norm_grad_selective"]
    for kind, name, layer in compared:
        sign = -1 if kind == "loss" and name in signed else 1
        found = sign * maps[METHODS[name], layer][0, 0]
        assert error_max(found, wanted[keys[kind, name, layer]]) <= FLOAT64, (kind, name, layer)
    assert len(compared) == 12


@pytest.mark.parametrize("case", METAS)
@pytest.mark.parametrize("step", STEPS)
def test_logits_after_a_meta_step(oracle: Oracle, case: str, step: str):
    model, pixels, target = oracle.asked(case)
    objective = model.objective(target)
    (chosen,) = objective.choose(torch.zeros(1, 20))[0]
    with preserved(model.network), torch.no_grad():
        meta = meta_of(step)
        if meta is None:
            logits = objective.outputs(pixels)
        else:
            with torch.enable_grad(), meta_step(objective, pixels, chosen, meta):
                logits = objective.outputs(pixels)
    assert error_max(logits[0], oracle.read(f"meta/{case}.npz")[f"logits_{step}"]) <= FLOAT64


@cache
def combined(oracle: Oracle, case: str) -> gl.SaliencyMaps:
    """Ask for the largest, the smallest and the middle class in one call."""
    about = oracle.json(f"combine/{case}.json")
    model, pixels, _ = oracle.asked(case)
    names = ["linear_approx", "norm_grad_selective", "norm_grad", "grad_cam", "gradient", "gradient_sum"]
    methods = [METHODS[name] for name in names]
    return gl.explain(model, pixels, [["top", "min", about["middle_class"]]], methods=methods, layers=about["layers"])


@pytest.mark.parametrize("case", COMBINED)
def test_maps_of_the_largest_and_the_smallest_logit(oracle: Oracle, case: str):
    about = oracle.json(f"combine/{case}.json")
    maps = combined(oracle, case)
    assert [target.index for target in maps.targets[0][:2]] == [about["max_class"], about["min_class"]]
    wanted = {key: w for key, w in oracle.read(f"combine/{case}.npz").items() if key.endswith("/raw")}
    for key, raw in wanted.items():
        name, _, rest = key.partition("|")
        which, layer, _ = rest.split("/")
        found = maps[METHODS[name], layer][0, ["maxclass", "minclass"].index(which)]
        assert error_max(found, raw) <= FLOAT64, key
    assert len(wanted) == 48


@pytest.mark.filterwarnings("ignore:.* maps are flat:gradlight.GradlightWarning")
@pytest.mark.parametrize("case", COMBINED)
@pytest.mark.parametrize("how", ["sum", "product"])
@pytest.mark.parametrize("weights", ["uniform", "linear", "accuracy"])
def test_combined_layers(oracle: Oracle, case: str, how: str, weights: str):
    """The weights of "accuracy" are given as numbers; a gradient that is flat at layer4 belongs to another method."""
    about = oracle.json(f"combine/{case}.json")
    given = dict(zip(about["layers"], about["given_weights"], strict=True))
    maps = combined(oracle, case).combine(weights=given if weights == "accuracy" else weights, how=how)
    wanted = {
        key.partition("|")[0]: w
        for key, w in oracle.read(f"combine/{case}.npz").items()
        if f"|{weights}|{how}/combined_up112" in key
    }
    for name, joined in wanted.items():
        assert error_max(maps[METHODS[name], maps.layers[0]][0, 2], joined) <= FLOAT64, name
    assert len(wanted) == (3 if weights == "accuracy" else 2)
