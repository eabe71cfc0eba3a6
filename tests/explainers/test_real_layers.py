"""Real layers that are not torch's own: whatever computes with its own weight, against autograd's gradient of it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm.layers as timm_layers
import torch
import torch.nn.functional as F
import torchvision
from by_definition import relative, summed, taps_of
from layer_networks import PIXELS, network_with
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torchvision.models.convnext import CNBlock
from torchvision.ops import FrozenBatchNorm2d

import gradlight as gl
from gradlight.explainers.extraction import EXTRACTS


def trained(norm: nn.Module) -> nn.Module:
    """Give a norm statistics and, where it is frozen, weights that are not those of the first day."""
    generator = torch.Generator().manual_seed(1)
    for buffer in norm.buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return norm


class RootMeanSquare(nn.Module):
    """A norm over channels first, of nobody's library."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight[:, None, None] * x * x.square().mean(1, keepdim=True).add(1e-6).rsqrt()


class Affine(nn.Module):
    """As ResMLP's; no parameter is called weight or bias."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.ones(1, 1, 6)), nn.Parameter(torch.zeros(1, 1, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.beta, self.alpha, x)


class ConvolutionThenReLU(nn.Conv2d):
    """A convolution whose output is overwritten by what follows inside it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(super().forward(x.mul_(0.5)))


class NamedArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.zeros(8, 3, 3, 5)), nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, bias=self.shift, weight=self.kernel, groups=2, padding=(1, 2)).tanh()


class PatchEmbedding(nn.Module):
    """A strided convolution and its tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Conv2d(6, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.project(x).flatten(2).mT


class NormalizedLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x, dim=-1), self.weight, self.bias).sigmoid()


def quiet(build: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


Build = Callable[[], nn.Module]

OTHERS: dict[str, tuple[Build, str, int, str, str | None]] = {
    "timm LayerNorm2d": (lambda: timm_layers.LayerNorm2d(6), "nchw", 6, "weight", "bias"),
    "timm LayerNormAct2d": (lambda: timm_layers.LayerNormAct2d(6), "nchw", 6, "weight", "bias"),
    "timm LayerNormAct": (lambda: timm_layers.LayerNormAct(6, act_layer=nn.GELU), "tokens", 6, "weight", "bias"),
    "timm BatchNormAct2d": (
        lambda: trained(timm_layers.BatchNormAct2d(6, act_layer=nn.SiLU)), "nchw", 6, "weight", "bias"
    ),
    "timm GroupNormAct": (
        lambda: timm_layers.GroupNormAct(6, num_groups=2, act_layer=nn.SiLU), "nchw", 6, "weight", "bias"
    ),
    "timm GroupNorm1": (lambda: timm_layers.GroupNorm1(6), "nchw", 6, "weight", "bias"),
    "timm RmsNorm": (lambda: timm_layers.RmsNorm(6), "tokens", 6, "weight", None),
    "timm RmsNorm2d": (lambda: timm_layers.RmsNorm2d(6), "nchw", 6, "weight", None),
    "timm Conv2dSame": (lambda: timm_layers.Conv2dSame(6, 8, 3, stride=2), "nchw", 8, "weight", "bias"),
    "timm LayerScale": (lambda: timm_layers.LayerScale(6), "tokens", 6, "gamma", None),
    "timm LayerScale2d, in place": (lambda: timm_layers.LayerScale2d(6, inplace=True), "nchw", 6, "gamma", None),
    "timm ConvNeXtBlock": (lambda: ConvNeXtBlock(6), "nchw", 6, "gamma", None),
    "torchvision LayerNorm2d": (
        lambda: torchvision.models.convnext.LayerNorm2d(6), "nchw", 6, "weight", "bias"
    ),
    "torchvision CNBlock": (lambda: CNBlock(6, 1.0, 0.0), "nchw", 6, "layer_scale", None),
    "frozen batch norm": (lambda: trained(FrozenBatchNorm2d(6)), "nchw", 6, "weight", "bias"),
    "timm frozen batch norm": (
        lambda: trained(timm_layers.FrozenBatchNormAct2d(6, act_layer=nn.SiLU)), "nchw", 6, "weight", "bias"
    ),
    "torch RMSNorm": (lambda: nn.RMSNorm(6), "nhwc", 6, "weight", None),
    "torch InstanceNorm2d": (lambda: nn.InstanceNorm2d(6, affine=True), "nchw", 6, "weight", "bias"),
    "torch PReLU": (lambda: nn.PReLU(6), "nchw", 6, "weight", None),
    "torch SyncBatchNorm": (lambda: trained(nn.SyncBatchNorm(6)), "nchw", 6, "weight", "bias"),
    "a norm of one's own": (RootMeanSquare, "nchw", 6, "weight", None),
    "affine": (Affine, "tokens", 6, "alpha", "beta"),
    "convolution, then ReLU": (lambda: ConvolutionThenReLU(6, 8, 3, stride=2, padding=1), "nchw", 8, "weight", "bias"),
    "convolution by named arguments": (NamedArguments, "nchw", 8, "kernel", "shift"),
    "patch embedding": (PatchEmbedding, "nchw", 8, "project.weight", "project.bias"),
    "normalized linear": (lambda: NormalizedLinear(6, 7), "tokens", 7, "weight", "bias"),
    "normalized linear, channels last": (lambda: NormalizedLinear(6, 12), "nhwc", 12, "weight", "bias"),
}  # fmt: skip


def own(module: nn.Module, name: str) -> Tensor:
    inside, _, last = name.rpartition(".")
    found: Tensor = getattr(module.get_submodule(inside), last)
    return found


def axes_of(network: nn.Sequential) -> None:
    """A patch embedding hands tokens on, whatever it was given."""
    with torch.no_grad():
        dimensions = network[:4](PIXELS).ndim
    if dimensions == 3:
        network[5].axes = (1,)


@pytest.mark.parametrize("name", OTHERS)
def test_contributions_sum_to_autograds_gradient(name: str):
    build, memory, channels, weight, bias = OTHERS[name]
    network = network_with(build(), memory, channels)
    axes_of(network)
    names = [weight] if bias is None else [weight, bias]
    tensors = [own(network[3], found).requires_grad_() for found in names]
    wanted = torch.autograd.grad(network(PIXELS)[:, 2].sum(), tensors)
    for buffer in network.buffers():
        buffer.requires_grad_(False)
    assert float(wanted[0].abs().max()) > 1e-6
    before = [tensor.detach().clone() for tensor in network.state_dict().values()]
    tap = taps_of(gl.classifier(network), PIXELS, "3", 2)["3"]
    assert relative(summed(EXTRACTS["real"](tap)), wanted[0].flatten()) < 1e-9
    if bias is None:
        with pytest.raises(gl.GradlightError, match="without a bias that is shared over space"):
            EXTRACTS["real_bias"](tap)
    else:
        assert relative(summed(EXTRACTS["real_bias"](tap)), wanted[1].flatten()) < 1e-9
    assert all(map(torch.equal, before, network.state_dict().values()))
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize("name", [name for name in OTHERS if "orm" in name and "linear" not in name])
def test_each_location_is_what_autograd_gives_for_it_alone(name: str):
    """The gradient of a norm's weight where the score's gradient is zero everywhere else, for the first image."""
    build, memory, channels, weight, _ = OTHERS[name]
    network = network_with(build(), memory, channels)
    tap = taps_of(gl.classifier(network), PIXELS, "3", 2)["3"]
    parameter = own(network[3], weight).requires_grad_()
    output = tap.layer.layout(network[3](network[:3](PIXELS).detach()))
    for row, column in ((0, 0), (3, 5), (7, 2)):
        one = (output * tap.gradient)[0, :, row, column].sum()
        (wanted,) = torch.autograd.grad(one, parameter, retain_graph=True)
        assert relative(gl.Method("real", "norm")(tap)[0, row, column], wanted.norm()) < 1e-9


def effective(network: nn.Sequential, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Put a plain layer with the same weight in place of one that computes it; gradient of its weight, and scores."""
    replacement = nn.Conv2d(6, 8, 3, padding=1).double()
    replacement.weight.data.copy_(weight)
    replacement.bias.data.copy_(network[3].bias)
    plain = nn.Sequential(*network[:3], replacement, *network[4:])
    scores = plain(PIXELS)
    return torch.autograd.grad(scores[:, 2].sum(), replacement.weight)[0], scores


EFFECTIVE: dict[str, tuple[Build, Callable[[Any], Tensor]]] = {
    "StdConv2d": (lambda: timm_layers.StdConv2d(6, 8, 3, padding=1, bias=True), lambda conv: standard(conv, 1e-6)),
    "ScaledStdConv2d": (
        lambda: timm_layers.ScaledStdConv2d(6, 8, 3, padding=1),
        lambda conv: standard(conv, conv.eps) * conv.gain * conv.scale,
    ),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Conv2d(6, 8, 3, padding=1)), lambda conv: conv.weight),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv2d(6, 8, 3, padding=1)), lambda conv: conv.weight),
    "old weight_norm": (
        lambda: quiet(lambda: nn.utils.weight_norm(nn.Conv2d(6, 8, 3, padding=1))), lambda conv: conv.weight
    ),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Conv2d(6, 8, 3, padding=1)), lambda conv: conv.weight),
}  # fmt: skip


def standard(conv: Any, eps: float) -> Tensor:
    rows = conv.weight.flatten(1)
    spread = rows.var(1, unbiased=False, keepdim=True).add(eps).sqrt()
    found: Tensor = ((rows - rows.mean(1, keepdim=True)) / spread).view_as(conv.weight)
    return found


@pytest.mark.parametrize("name", EFFECTIVE)
def test_a_computed_weight_is_the_one_that_is_used(name: str):
    build, weigh = EFFECTIVE[name]
    network = network_with(build(), "nchw", 8)
    scores = network(PIXELS)
    wanted, same = effective(network, weigh(network[3]).detach())
    assert relative(scores.detach(), same.detach()) < 1e-9
    tap = taps_of(gl.classifier(network), PIXELS, "3", 2)["3"]
    assert relative(summed(EXTRACTS["real"](tap)), wanted.flatten()) < 1e-9
    assert relative(summed(EXTRACTS["real_bias"](tap)), tap.gradient.sum((0, 2, 3))) < 1e-12


class Twice(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class MixesChannels(nn.Module):
    """Each entry of the weight reaches two channels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6))

    def forward(self, x: Tensor) -> Tensor:
        scaled = x * self.weight[:, None, None]
        return scaled + 0.5 * scaled.roll(1, 1)


class TwoScales(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(6, 1, 1)), nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.first + x.tanh() * self.second


class AtEachPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 8, 8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class NeedsMore(nn.Module):
    """A layer that cannot be run on its first input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, 1, 1))

    def forward(self, x: Tensor, by: Tensor) -> Tensor:
        return x * self.scale * by


class Feeds(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = NeedsMore()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x.tanh())


class Moody(nn.Module):
    """Another forward pass, another answer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.runs = nn.Parameter(torch.ones(6, 1, 1)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return x * self.scale * self.runs


REFUSED: dict[str, tuple[Build, str, str]] = {
    "used twice": (lambda: Twice(6, 6, 3, padding=1), "3", "uses its own weights in 2 convolutions or linear maps"),
    "mixes channels": (MixesChannels, "3", "its weight does not act on each channel by itself"),
    "two scales": (TwoScales, "3", "it has several, 'first', 'second'"),
    "a weight for each place": (AtEachPlace, "3", "a AtEachPlace, without a weight that is shared over space"),
    "a transposed convolution": (lambda: nn.ConvTranspose2d(6, 6, 3, padding=1), "3", "a ConvTranspose2d, without a"),
    "two inputs": (Feeds, "3.inner", "its forward pass cannot be run by itself"),
    "another answer": (Moody, "3", "gives another output than in the network"),
    "a block": (lambda: nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6)), "3", "Ask at '3.0', '3.1'"),
    "batch statistics": (
        lambda: timm_layers.BatchNormAct2d(6, track_running_stats=False), "3", "keeps no running statistics"
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:The network's answer for an image depends on the other images")
@pytest.mark.filterwarnings("ignore:The network answers by chance")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_taken_apart_is_refused(name: str):
    build, layer, message = REFUSED[name]
    network = network_with(build(), "nchw", 6)
    with pytest.raises(gl.GradlightError, match=message):
        gl.explain(gl.classifier(network), PIXELS, 2, methods="real+norm", layers=layer)
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_an_output_that_a_hook_replaced_is_refused():
    network = network_with(timm_layers.LayerNorm2d(6), "nchw", 6)
    network[3].register_forward_hook(lambda module, args, output: 2 * output)
    with pytest.raises(gl.GradlightError, match="gives another output than in the network"):
        gl.explain(gl.classifier(network), PIXELS, 2, methods="real+norm", layers="3")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["timm LayerNorm2d", "timm BatchNormAct2d", "timm Conv2dSame", "timm LayerScale"])
def test_other_precisions(name: str, dtype: torch.dtype):
    build, memory, channels, *_ = OTHERS[name]
    network = network_with(build(), memory, channels)
    asked = {"methods": "normgrad_real", "layers": "3"}
    wanted = gl.explain(gl.classifier(network), PIXELS, 2, **asked)["normgrad_real", "3"]
    found = gl.explain(gl.classifier(network.to(dtype)), PIXELS.to(dtype), 2, **asked)["normgrad_real", "3"]
    assert found.dtype == torch.float32
    assert relative(found.double(), wanted) < {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]


def test_at_the_moved_weights():
    """The inner step moves the weights; what is watched runs on the moved ones."""
    network = network_with(timm_layers.LayerNormAct2d(6), "nchw", 6)
    maps = gl.explain(gl.classifier(network), PIXELS, 2, methods="real+sum", layers="3", meta=gl.Meta(lr=0.5))
    loss = F.cross_entropy(network(PIXELS[:1]), torch.tensor([2]))
    gradients = torch.autograd.grad(loss, list(network.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(network.parameters(), gradients, strict=True):
            parameter -= 0.5 * gradient
    wanted = torch.autograd.grad(network(PIXELS[:1])[:, 2].sum(), network[3].weight)[0].sum()
    assert relative(maps["real+sum", "3"][0].sum(), wanted) < 1e-9
