"""Phase 1 by its definition: real layers against autograd, virtual ones against layers that are really put in."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from by_definition import AGGREGATIONS, entries, relative, summed, tap_at, taps_of
from layer_networks import PIXELS, network_with
from oracle import Oracle
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.aggregation import AGGREGATES
from gradlight.explainers.extraction import EXTRACTS


class LayerScale(nn.Module):
    """As in ConvNeXt and timm."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


REAL_LAYERS: dict[str, tuple[Callable[[], nn.Module], str, int]] = {
    "convolution": (lambda: nn.Conv2d(6, 8, 3, padding=1), "nchw", 8),
    "strided": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), "nchw", 8),
    "same": (lambda: nn.Conv2d(6, 8, (3, 5), padding="same", dilation=(1, 2)), "nchw", 8),
    "valid": (lambda: nn.Conv2d(6, 8, 3, padding="valid"), "nchw", 8),
    "reflect": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), "nchw", 8),
    "circular": (lambda: nn.Conv2d(6, 8, 3, padding=(2, 1), padding_mode="circular"), "nchw", 8),
    "replicate": (lambda: nn.Conv2d(6, 8, 3, padding=1, padding_mode="replicate"), "nchw", 8),
    "grouped": (lambda: nn.Conv2d(6, 9, 3, padding=1, groups=3), "nchw", 9),
    "depthwise": (lambda: nn.Conv2d(6, 12, 3, padding=1, groups=6), "nchw", 12),
    "batch norm": (lambda: nn.BatchNorm2d(6), "nchw", 6),
    "group norm": (lambda: nn.GroupNorm(3, 6), "nchw", 6),
    "linear on channels last": (lambda: nn.Linear(6, 7), "nhwc", 7),
    "layer norm on channels last": (lambda: nn.LayerNorm(6), "nhwc", 6),
    "linear on tokens": (lambda: nn.Linear(6, 7), "tokens", 7),
    "layer norm on tokens": (lambda: nn.LayerNorm(6), "tokens", 6),
}


@pytest.mark.parametrize("name", REAL_LAYERS)
def test_real_contributions_sum_to_autograds_gradient(name: str):
    """Over images and locations, of the weight and of the bias, for the score of class 2."""
    build, memory, channels = REAL_LAYERS[name]
    network = network_with(build(), memory, channels)
    weight, bias = torch.autograd.grad(network(PIXELS)[:, 2].sum(), [network[3].weight, network[3].bias])
    tap = taps_of(gl.classifier(network), PIXELS, "3", 2)["3"]
    assert relative(summed(EXTRACTS["real"](tap)), weight.flatten()) < 1e-9
    assert relative(summed(EXTRACTS["real_bias"](tap)), bias) < 1e-9


@pytest.mark.parametrize(("memory", "shape"), [("nchw", (6, 1, 1)), ("nhwc", (6,)), ("tokens", (6,))])
def test_layer_scales_sum_to_autograds_gradient(memory: str, shape: tuple[int, ...]):
    network = network_with(LayerScale(*shape), memory, 6)
    (weight,) = torch.autograd.grad(network(PIXELS)[:, 2].sum(), [network[3].weight])
    tap = taps_of(gl.classifier(network), PIXELS, "3", 2)["3"]
    assert relative(summed(EXTRACTS["real"](tap)), weight.flatten()) < 1e-9


def test_tokens_outside_the_grid_are_left_out():
    """Class and register tokens contribute to the weight too, but have no place in the image."""
    network = network_with(nn.Linear(6, 7), "prefixed", 7)
    source = network[:3](PIXELS).detach()
    out = network[3](source)
    weight, gradient = torch.autograd.grad(network[4:](out)[:, 2].sum(), [network[3].weight, out])
    outside = torch.einsum("bno,bni->oi", gradient[:, :2], source[:, :2])
    tap = taps_of(gl.classifier(network), PIXELS, "3", 2)["3"]
    assert tap.activation.shape == (2, 7, 8, 8)
    assert relative(summed(EXTRACTS["real"](tap)), (weight - outside).flatten()) < 1e-9
    assert float(outside.abs().max()) > 1e-3 * float(weight.abs().max())


class Inserted(nn.Module):
    """An identity layer with its own parameters at every location: their gradients are the contributions."""

    def __init__(self, kind: str, batch: int, channels: int, rows: int, columns: int) -> None:
        super().__init__()
        self.kind, self.channels = kind, channels
        one = torch.eye(channels, dtype=torch.float64)
        middle = torch.zeros(9, dtype=torch.float64)
        middle[4] = 1
        identity = {
            "bias": torch.zeros(channels),
            "scaling": torch.ones(channels),
            "conv1x1": one,
            "conv3x3": one[:, :, None] * middle,
            "conv3x3_depthwise": middle.expand(channels, 9),
        }[kind].double()
        places = (batch, *[1] * identity.ndim, rows, columns)
        self.weight = nn.Parameter(identity[None, ..., None, None].repeat(places))

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "bias":
            return x + self.weight
        if self.kind == "scaling":
            return x * self.weight
        if self.kind == "conv1x1":
            return torch.einsum("boihw,bihw->bohw", self.weight, x)
        patches = F.unfold(x, 3, padding=1).unflatten(1, (self.channels, 9)).unflatten(3, x.shape[2:])
        pattern = "boikhw,bikhw->bohw" if self.kind == "conv3x3" else "bikhw,bikhw->bihw"
        return torch.einsum(pattern, self.weight, patches)


@pytest.mark.parametrize("aggregate", AGGREGATES)
@pytest.mark.parametrize("extract", ["bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise"])
def test_a_virtual_identity_is_a_layer_that_is_really_put_in(extract: str, aggregate: str):
    network = network_with(nn.Conv2d(6, 4, 3, stride=2, padding=1), "nchw", 4)
    changed = copy.deepcopy(network)
    inserted = Inserted(extract, 2, 4, 4, 4)
    changed[3] = nn.Sequential(changed[3], inserted)
    assert relative(changed(PIXELS).detach(), network(PIXELS).detach()) < 1e-12
    (gradient,) = torch.autograd.grad(changed(PIXELS)[:, 2].sum(), inserted.weight)
    wanted = AGGREGATIONS[aggregate](gradient.flatten(1, -3))
    maps = gl.explain(gl.classifier(network), PIXELS, 2, methods=f"{extract}+{aggregate}", layers="3")
    assert relative(maps[f"{extract}+{aggregate}", "3"][:, 0], wanted) < 1e-9


@pytest.mark.parametrize(
    ("layers", "method", "message"),
    [
        ("1", "real+norm", r"real contributions were asked at '1', but this is a Tanh"),
        ("1", "real_bias+sum", r"asked at '1', but this is a Tanh, without a bias"),
        ("3", "real_bias+sum", r"this is a Conv2d, without a bias"),
        ("input", "real+norm", r"this is the pixels themselves, without a weight"),
        ("input", "normgrad_real", r"use a virtual identity method such as normgrad"),
        ("3", "cam", r"cam was asked at '3'.* Ask for grad_cam"),
        ("input", "cam", r"cam was asked at 'input'.* Ask for grad_cam"),
    ],
)
def test_what_a_place_does_not_have_is_an_error(layers: str, method: str, message: str):
    network = network_with(nn.Conv2d(6, 8, 3, bias=False), "nchw", 8)
    with pytest.raises(gl.GradlightError, match=message):
        gl.explain(gl.classifier(network), PIXELS, 2, methods=method, layers=layers)


@pytest.mark.filterwarnings("ignore:The network's answer for an image depends on the other images")
@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.BatchNorm2d(6, track_running_stats=False), "keeps no running statistics"),
        (nn.LayerNorm((6, 8, 8)), "without a weight that is shared over space"),
        (nn.GroupNorm(2, 6, affine=False), "without a weight that is shared over space"),
        (nn.BatchNorm2d(6, affine=False), "without a weight that is shared over space"),
        (nn.LayerNorm((6, 8, 8), elementwise_affine=False), "without a weight that is shared over space"),
    ],
    ids=["batch statistics", "weights per location", "group norm", "batch norm", "layer norm"],
)
def test_norms_without_a_shared_weight(module: nn.Module, message: str):
    network = network_with(module, "nchw", 6)
    with pytest.raises(gl.GradlightError, match=message):
        gl.explain(gl.classifier(network), PIXELS, 2, methods="real+sum", layers="3")


def test_weights_per_location_have_no_shared_bias():
    network = network_with(nn.LayerNorm((6, 8, 8)), "nchw", 6)
    with pytest.raises(gl.GradlightError, match="without a bias that is shared over space"):
        gl.explain(gl.classifier(network), PIXELS, 2, methods="real_bias+sum", layers="3")


def test_cam_and_grad_cam_where_a_network_pools():
    """CAM is Σ w_k x_k; Grad-CAM's ḡ is w divided by the number of locations, and its ReLU comes last."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7).double().eval()
    pixels = torch.randn(2, 3, 96, 64, dtype=torch.float64)
    model = gl.classifier(network)
    maps = gl.explain(model, pixels, [3, 5], methods=["cam", "grad_cam"], layers="layer4")
    activation = taps_of(model, pixels, "layer4")["layer4"].activation
    weights = network.fc.weight.detach()[[3, 5]]
    wanted = torch.einsum("bk,bkhw->bhw", weights, activation)
    assert relative(maps["cam", "layer4"][:, 0], wanted) < 1e-12
    assert relative(maps["grad_cam", "layer4"][:, 0], wanted.clamp(min=0) / (3 * 2)) < 1e-12
    with pytest.raises(gl.GradlightError, match="Ask for grad_cam"):
        gl.explain(model, pixels, 3, methods="cam", layers="layer3")


LAYERS = ["bias", "scaling", "conv1x1", "conv1x1_stride2", "conv3x3_pad1", "conv3x3_stride2", "conv3x3_dilation2"]
LAYERS += ["conv3x3_groups2", "depthwise3x3", "batchnorm_eval"]


def oracle_layer(name: str, arrays: dict[str, Tensor], about: dict[str, Any]) -> nn.Module:
    """Build a stand-alone layer of the oracle; the virtual ones are identities."""
    if name in ("bias", "scaling"):
        return nn.Identity()
    module: nn.Module = nn.BatchNorm2d(6)
    if name != "batchnorm_eval":
        sizes = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias")
        module = nn.Conv2d(**{key: tuple(v) if isinstance(v := about[key], list) else v for key in sizes})
    state = {key: arrays[f"{name}/{key}"] for key in module.state_dict() if f"{name}/{key}" in arrays}
    module.load_state_dict(state, strict=False)
    return module.double().eval()


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_the_oracle(oracle: Oracle, name: str):
    arrays, about = oracle.read("layers/layers.npz"), oracle.json("layers/layers.json")
    assert sorted(about) == sorted(LAYERS)
    module = oracle_layer(name, arrays, about[name])
    tap = tap_at(module, arrays[f"{name}/x"], arrays[f"{name}/g"])
    assert relative(tap.activation, arrays[f"{name}/out"]) < 2e-6
    contribution = EXTRACTS[name if name in ("bias", "scaling") else "real"](tap)
    wanted = arrays[f"{name}/contributions"]
    assert relative(entries(contribution).flatten(1, 2), wanted.flatten(1, -3)) < 2e-6
    assert relative(summed(contribution), arrays[f"{name}/weight_grad"].flatten()) < 2e-6
    for aggregate, function in AGGREGATES.items():
        assert relative(function(contribution), arrays[f"{name}/{aggregate}"]) < 2e-6, aggregate
