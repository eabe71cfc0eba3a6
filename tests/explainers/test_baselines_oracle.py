"""Baselines held against the classifier oracle: TorchRay's maps, Captum's and zennit's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from oracle import Oracle, error_max
from torch import Tensor

from gradlight.explainers.baselines import BASELINES
from gradlight.explainers.baselines.captum_methods import integrated_gradients
from gradlight.explainers.layer_selection import choose_layers
from gradlight.models.preserve import preserved

FLOAT64 = 2e-6  # the oracle's own advice; its arrays are stored in float32
ZENNIT = 2e-2  # what leaks through its stabiliser, as the oracle's README says

CASES = ["resnet18_A_t18", "resnet18_B_t5", pytest.param("vgg11_A_t17", marks=pytest.mark.slow)]


def compare(
    oracle: Oracle, case: str, attribute: Callable[..., Tensor], wanted: dict[str, Tensor], near: float
) -> None:
    """Compare the maps at all layers (layer → map)."""
    model, pixels, asked = oracle.asked(case)
    objective = model.objective(asked)
    with torch.no_grad():
        ((target,),) = objective.choose(objective.outputs(pixels))
    assert wanted
    for name, expected in wanted.items():
        (layer,) = choose_layers(model, name, (112, 112))
        with preserved(model.network):
            found = attribute(objective, pixels, target, layer)
        assert found.shape[0] == 1
        assert error_max(found[0], expected) <= near, f"{case} {name}"


def raw_maps(oracle: Oracle, case: str, file: str, peer: str) -> dict[str, Tensor]:
    keys = oracle.read(f"maps/{case}/{file}").items()
    parts = [(key.split("/"), value) for key, value in keys if "@" not in key]
    return {layer: value for (method, layer, kind), value in parts if method == peer and kind == "raw"}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_rectifiers_at_every_layer_are_torchrays(oracle: Oracle, case: str, name: str):
    compare(oracle, case, BASELINES[name].attribute, raw_maps(oracle, case, "torchray.npz", name), FLOAT64)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", ["excitation_backprop", "contrastive_excitation_backprop"])
def test_excitation_at_every_layer_is_torchrays(oracle: Oracle, case: str, name: str):
    """Where there are skip connections, TorchRay's with its own split of them."""
    peer = name if case.startswith("vgg") else f"{name}_eltwise"
    compare(oracle, case, BASELINES[name].attribute, raw_maps(oracle, case, "torchray.npz", peer), FLOAT64)


@pytest.mark.parametrize("case", [CASES[0], CASES[2]])
def test_excitation_is_zennits_up_to_its_leak(oracle: Oracle, case: str):
    wanted = raw_maps(oracle, case, "zennit.npz", "zennit_excitation_backprop")
    compare(oracle, case, BASELINES["excitation_backprop"].attribute, wanted, ZENNIT)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(
    ("name", "peer"), [("guided_backprop", "captum_guided_backprop"), ("deconvnet", "captum_deconvolution")]
)
def test_rectifiers_at_the_pixels_are_captums(oracle: Oracle, case: str, name: str, peer: str):
    signed = oracle.read(f"maps/{case}/cams.npz")[f"{peer}/input/full"]
    compare(oracle, case, BASELINES[name].attribute, {"input": signed.abs().amax(0)}, FLOAT64)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "rule"),
    [
        ("resnet18_A_t18", "gausslegendre"),
        ("resnet18_A_t18", "riemann_trapezoid"),
        ("resnet18_B_t5", "gausslegendre"),
        ("resnet18_B_t5", "riemann_trapezoid"),
        ("vgg11_A_t17", "gausslegendre"),
    ],
)
def test_integrated_gradients_are_captums(oracle: Oracle, case: str, rule: str):
    """Where the gradients are defined: the trapezoid rule takes one at the black reference image.

    There all locations of a VGG's layers are equal, and which of them its max pooling chooses is rounding, which
    another processor does otherwise: a change of the reference by 1e-10 changes that gradient by its own size.
    """
    pytest.importorskip("captum.attr")
    signed = oracle.read(f"maps/{case}/cams.npz")[f"captum_integrated_gradients32_{rule}/input/full"]

    def attribute(*about: Any) -> Tensor:
        return integrated_gradients(*about, steps=32, rule=rule)

    compare(oracle, case, attribute, {"input": signed.sum(0)}, FLOAT64)
