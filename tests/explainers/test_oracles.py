"""Maps of the classifier oracle: TorchRay's, the CAM libraries', and plain autograd's."""

from __future__ import annotations

from fnmatch import fnmatchcase

import pytest
import torch
from by_definition import taps_of
from oracle import METHODS, Oracle, error_l2, error_max
from torch import Tensor

import gradlight as gl

FLOAT64 = 2e-6  # the oracle's own advice; its arrays are stored in float32

CASES = ["resnet18_A_t18", "resnet18_B_t5", "vgg11_A_t17"]

COMPARED: dict[str, dict[str, str]] = {
    "brute.npz": {name: name for name in METHODS if name != "grad_cam"},
    "torchray.npz": {
        name: name
        for name in ("gradient", "gradient_sum", "linear_approx", "grad_cam", "norm_grad", "norm_grad_selective")
    },
    "cams.npz": {
        "captum_layer_gradcam": "grad_cam_norelu",
        "captum_layer_gradcam_relu": "grad_cam",
        "captum_layer_grad_x_act": "linear_approx",
        "pgc_gradcam": "grad_cam_norelu",
        "pgc_hirescam": "linear_approx",
        "pgc_layercam": "layercam",
        "torchcam_gradcam": "grad_cam",
    },
}
"""File → the peer's name of a method → the oracle's own name of it."""

REAL = "norm_grad_proper"
"""NormGrad of a convolution's own weight, which not every layer has."""

TENSORS = {
    "torchray.npz:act/*/full": "activation",
    "torchray.npz:grad/*/full": "gradient",
    "cams.npz:captum_saliency/input/full": "gradient's magnitude",
    "cams.npz:captum_layer_grad_x_act/*/full": "product",
}
"""Keys that hold whole tensors [C,h,w], and which of a tap they are."""

NOT_TARGETS = {
    "*@inplace": "what the peer gives after an in-place operation has overwritten the layer",
    "cams.npz:pgc_*/layer2.0.bn2/*": "recorded after the block's in-place addition (README, 'In place')",
    "cams.npz:torchcam_*/layer2.0.bn2/*": "recorded after the block's in-place addition (README, 'In place')",
    "cams.npz:*/final": "the peer's own normalisation and resizing of a map that is compared raw",
    "cams.npz:*/norm": "the peer's own normalisation of a map that is compared raw",
    "cams.npz:captum_layer_gradcam/*/up": "nearest-neighbour resizing; up_bilinear is compared",
    "torchray.npz:guided_backprop*": "not one of the methods of extract and aggregate",
    "torchray.npz:deconvnet/*": "not one of the methods of extract and aggregate",
    "torchray.npz:*excitation_backprop*": "not one of the methods of extract and aggregate",
    "torchray.npz:gradient_smooth*": "a smoothed map; gradient itself is compared",
    "cams.npz:captum_guided_backprop/*": "not one of the methods of extract and aggregate",
    "cams.npz:captum_deconvolution/*": "not one of the methods of extract and aggregate",
    "cams.npz:captum_integrated_gradients*": "not one of the methods of extract and aggregate",
    "cams.npz:pgc_gradcampp/*": "Grad-CAM++ is not one of the methods of extract and aggregate",
}
"""Keys that are not compared, and why."""


def why_not(file: str, key: str) -> str | None:
    return next((why for pattern, why in NOT_TARGETS.items() if fnmatchcase(f"{file}:{key}", pattern)), None)


def tensor_of(file: str, key: str) -> str | None:
    return next((part for pattern, part in TENSORS.items() if fnmatchcase(f"{file}:{key}", pattern)), None)


def keys_of(oracle: Oracle, case: str, file: str, peer: str) -> dict[str, Tensor]:
    """Find the maps of one peer's method that are to be compared."""
    found = {
        key: wanted
        for key, wanted in oracle.read(f"maps/{case}/{file}").items()
        if key.partition("/")[0] == peer and not why_not(file, key) and not tensor_of(file, key)
    }
    assert found, f"{file} has no map of {peer}"
    return found


def our_map(maps: gl.SaliencyMaps, key: str, name: str) -> Tensor:
    _, layer, kind = key.split("/")
    method = METHODS[name]
    assert kind in ("raw", "sum", "up", "up_bilinear"), key
    return (maps[method, layer] if kind in ("raw", "sum") else maps.upsampled(method, layer))[0, 0]


every_method = pytest.mark.parametrize(
    ("file", "peer"), [(file, peer) for file, names in COMPARED.items() for peer in names]
)


@pytest.mark.parametrize("case", CASES)
def test_the_networks_are_the_oracles(oracle: Oracle, case: str):
    about = oracle.cases[case]
    model, pixels, _ = oracle.asked(case)
    state = model.network.state_dict().values()
    total = sum(float(tensor.double().sum()) for tensor in state if tensor.is_floating_point())
    assert total == pytest.approx(oracle.networks[about["net"]]["sum_float64"], rel=1e-9)
    with torch.no_grad():
        logits = model.network(pixels)
    assert error_max(logits[0], torch.tensor(about["logits"], dtype=torch.float64)) < FLOAT64


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("file", COMPARED)
def test_every_key_is_compared_or_declared(oracle: Oracle, case: str, file: str):
    for key in oracle.read(f"maps/{case}/{file}"):
        compared = key.partition("/")[0] in {*COMPARED[file], REAL} or tensor_of(file, key)
        assert compared or why_not(file, key), f"{file}:{key}"


@pytest.mark.parametrize("case", CASES)
@every_method
def test_maps_in_float64(oracle: Oracle, case: str, file: str, peer: str):
    maps = oracle.maps(case, torch.float64)
    for key, wanted in keys_of(oracle, case, file, peer).items():
        assert error_max(our_map(maps, key, COMPARED[file][peer]), wanted) <= FLOAT64, key


@pytest.mark.parametrize("case", [*CASES[:2], pytest.param(CASES[2], marks=pytest.mark.slow)])
@every_method
def test_maps_in_float32(oracle: Oracle, case: str, file: str, peer: str):
    maps = oracle.maps(case, torch.float32)
    noise = oracle.json(f"maps/{case}/f32_error.json")
    for key, wanted in keys_of(oracle, case, file, peer).items():
        listed = noise[f"brute/{key}" if file == "brute.npz" else key]["rel_l2"]
        assert error_l2(our_map(maps, key, COMPARED[file][peer]), wanted) <= max(1e-5, 5 * listed), key


@pytest.mark.parametrize("case", CASES)
def test_the_real_convolutions_of_torchray(oracle: Oracle, case: str):
    wanted = {key.split("/")[1]: w for key, w in keys_of(oracle, case, "torchray.npz", REAL).items()}
    maps = gl.explain(*oracle.asked(case), methods="normgrad_real", layers=wanted)
    for layer, normgrad in wanted.items():
        assert error_max(maps["normgrad_real", layer][0, 0], normgrad) <= FLOAT64, layer


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("file", ["torchray.npz", "cams.npz"])
def test_activations_and_gradients(oracle: Oracle, case: str, file: str):
    wanted = {key: w for key, w in oracle.read(f"maps/{case}/{file}").items() if tensor_of(file, key)}
    model, pixels, target = oracle.asked(case)
    taps = taps_of(model, pixels, {key.split("/")[1] for key in wanted}, target)
    for key, tensor in wanted.items():
        tap = taps[key.split("/")[1]]
        found = {
            "activation": tap.activation,
            "gradient": tap.gradient,
            "gradient's magnitude": tap.gradient.abs(),
            "product": tap.gradient * tap.activation,
        }[str(tensor_of(file, key))]
        assert error_max(found[0], tensor) <= FLOAT64, key
    assert wanted


@pytest.mark.parametrize("name", [name for name in METHODS if name != "grad_cam"])
def test_both_photos_in_one_call(oracle: Oracle, name: str):
    """Each image is asked about its own class, and its maps are those that it has alone."""
    maps = oracle.both_photos()
    for row, case in enumerate(CASES[:2]):
        for key, wanted in keys_of(oracle, case, "brute.npz", name).items():
            assert error_max(maps[METHODS[name], key.split("/")[1]][row, 0], wanted) <= FLOAT64, key


@pytest.mark.parametrize("case", CASES)
def test_grad_cam_is_its_unrectified_map_rectified(oracle: Oracle, case: str):
    """Also where only the map before the ReLU is in the oracle, as at the layer that is overwritten in place."""
    maps = oracle.maps(case, torch.float64)
    for key, wanted in keys_of(oracle, case, "brute.npz", "grad_cam_norelu").items():
        found = maps["grad_cam", key.split("/")[1]][0, 0]
        assert float((found - wanted.clamp(min=0)).abs().max()) <= FLOAT64 * float(wanted.abs().max()), key
