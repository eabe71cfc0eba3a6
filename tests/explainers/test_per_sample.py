"""The meta step of a batch against the step of each image alone, network by network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.capture import record
from gradlight.explainers.layer_selection import choose_layers
from gradlight.explainers.meta import Meta, meta_step
from gradlight.explainers.per_sample import NotCoveredError, convolutions, per_sample_meta_step
from gradlight.models.objective import Objective, Targets
from gradlight.models.preserve import preserved

STEP = Meta(0.05)
Fields = dict[str, tuple[Tensor, Tensor]]


class FunctionNetwork(nn.Module):
    """A network of submodules and parameters, and the function that runs them."""

    def __init__(self, run_block: Callable[[Any, Tensor], Tensor], **parts: nn.Module | nn.Parameter) -> None:
        super().__init__()
        self.run_block = run_block
        self.begin = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        for name, part in parts.items():
            setattr(self, name, part)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.head(self.run_block(self, self.begin(pixels)))
        return out


def tokens(field: Tensor) -> Tensor:
    return field.flatten(2).mT


def pooled(field: Tensor) -> Tensor:
    return field.mean((2, 3))


def class_token(net: Any, x: Tensor) -> Tensor:
    x = torch.cat([net.token.expand(len(x), -1, -1), tokens(x)], 1) + net.places
    return (net.norm(x) * net.gamma).tanh().mean(1)


def windows(net: Any, x: Tensor) -> Tensor:
    parts = x.unflatten(2, (4, 2)).unflatten(4, (4, 2)).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, 8)
    scores = parts @ parts.mT + net.table[torch.arange(16).view(4, 4) % 6].unsqueeze(0)
    return (net.mix(scores.softmax(-1) @ parts)).reshape(len(x), -1, 8).mean(1)


def shared_thrice(net: Any, x: Tensor) -> Tensor:
    for _ in range(3):
        x = x + net.block(x)
    return pooled(x)


def in_place(net: Any, x: Tensor) -> Tensor:
    x = net.norm(x).add_(1)
    x *= net.gamma
    return pooled(net.more(x).relu_())


def looked_up(net: Any, x: Tensor) -> Tensor:
    said = torch.arange(12, device=x.device).view(1, 3, 4).expand(len(x), 3, 4) % 5
    places = net.place(torch.arange(4, device=x.device))
    return pooled(x) + (net.embed(said).mean(1) + places).mean(1) + net.embed.weight.mean(0)


def words_first(net: Any, x: Tensor) -> Tensor:
    x = tokens(x).transpose(0, 1)
    return (net.attend(x, x, x, need_weights=False)[0] + net.run(x)[0]).mean(0)


def last_state(net: Any, x: Tensor) -> Tensor:
    h = c = x.new_zeros(len(x), 8)
    for part in tokens(x).unbind(1)[:4]:
        h, c = net.cell(part, (h, c))
    return h + net.gru(tokens(x))[0][:, -1]


def odd_layers(net: Any, x: Tensor) -> Tensor:
    return pooled(net.back(net.slope(net.groups(net.instance(x)))))


def one_weight_twice(net: Any, x: Tensor) -> Tensor:
    return nn.functional.linear(pooled(x), net.twice) + nn.functional.conv2d(x, net.twice[:, :, None, None]).amax(
        (2, 3)
    )


def constants(net: Any, x: Tensor) -> Tensor:
    bias = net.mlp(torch.linspace(-1, 1, 64, dtype=x.dtype).unsqueeze(1))
    return (tokens(x) + bias).tanh().mean(1)


FUNCTION_NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "class token, positions, layer scale": lambda: FunctionNetwork(
        class_token,
        token=nn.Parameter(torch.randn(1, 1, 8)),
        places=nn.Parameter(torch.randn(1, 65, 8)),
        norm=nn.LayerNorm(8),
        gamma=nn.Parameter(torch.randn(8)),
    ),
    "windows": lambda: FunctionNetwork(windows, table=nn.Parameter(torch.randn(6)), mix=nn.Linear(8, 8)),
    "shared modules": lambda: FunctionNetwork(
        shared_thrice, block=nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Tanh())
    ),
    "in place": lambda: FunctionNetwork(
        in_place, norm=nn.BatchNorm2d(8), gamma=nn.Parameter(torch.rand(8, 1, 1)), more=nn.Conv2d(8, 8, 1, bias=False)
    ),
    "embeddings": lambda: FunctionNetwork(looked_up, embed=nn.Embedding(5, 8, padding_idx=0), place=nn.Embedding(4, 8)),
    "words first": lambda: FunctionNetwork(words_first, attend=nn.MultiheadAttention(8, 2), run=nn.LSTM(8, 8)),
    "recurrent": lambda: FunctionNetwork(last_state, cell=nn.LSTMCell(8, 8), gru=nn.GRU(8, 8, batch_first=True)),
    "odd layers": lambda: FunctionNetwork(
        odd_layers,
        instance=nn.InstanceNorm2d(8, affine=True),
        groups=nn.GroupNorm(2, 8),
        slope=nn.PReLU(8),
        back=nn.ConvTranspose2d(8, 8, 2, stride=2),
    ),
    "weight normalisation": lambda: FunctionNetwork(
        lambda net, x: pooled(net.normed(x)), normed=nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 3))
    ),
    "one weight in two layers": lambda: FunctionNetwork(one_weight_twice, twice=nn.Parameter(torch.randn(8, 8))),
    "standardised weights": lambda: FunctionNetwork(
        lambda net, x: pooled(net.even(x)), even=timm.layers.StdConv2d(8, 8, 3, bias=True)
    ),
    "weights of constants": lambda: FunctionNetwork(
        constants, mlp=nn.Sequential(nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 8))
    ),
}

KNOWN: dict[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "vgg": lambda: nn.Sequential(
        torchvision.models.vgg.make_layers([8, "M", 16, "M", 16, 16, "M"], batch_norm=False),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(),
        nn.Linear(256, 32), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(32, 5),
    ),
    "mobilenet": lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
    "convnext": lambda: timm.create_model("convnext_atto", num_classes=5, depths=(1, 1, 1, 1)),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", num_classes=5, img_size=64, depth=2),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=5, img_size=64, window_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 4),
    ),
    "torchvision vit": lambda: torchvision.models.VisionTransformer(64, 16, 2, 2, 32, 64, num_classes=5),
}  # fmt: skip


def awake(network: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Module:
    """Move every weight away from zero and one, where parts of a network have no effect."""
    torch.manual_seed(1)
    network = network.to(dtype).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return network


def in_one(objective: Objective, pixels: Tensor, layers: Any, targets: Targets, meta: Meta = STEP) -> Fields:
    with preserved(objective.network), per_sample_meta_step(objective, pixels, targets, meta):
        return {n: (t.activation, t.gradient) for n, t in record(objective, pixels, layers, targets).taps(0).items()}


def one_by_one(objective: Objective, pixels: Tensor, layers: Any, targets: Targets, meta: Meta = STEP) -> Fields:
    found: dict[str, list[tuple[Tensor, Tensor]]] = {}
    with preserved(objective.network):
        for image, row in zip(pixels.split(1), targets, strict=True):
            with meta_step(objective, image, row[0], meta):
                for name, tap in record(objective, image, layers, [row]).taps(0).items():
                    found.setdefault(name, []).append((tap.activation, tap.gradient))
    return {name: tuple(torch.cat(side) for side in zip(*taps, strict=True)) for name, taps in found.items()}  # type: ignore[misc]


def assert_same(network: nn.Module, pixels: Tensor, rtol: float, meta: Meta = STEP, layers: Any = "stages") -> None:
    model = gl.classifier(network)
    objective = model.objective([index % 5 for index in range(len(pixels))])
    layer_list = choose_layers(model, layers, tuple(pixels.shape[2:]))  # type: ignore[arg-type]
    with preserved(network), torch.no_grad():
        targets = objective.choose(objective.outputs(pixels.clone()))
    found = in_one(objective, pixels, layer_list, targets, meta)
    assert_fields(found, one_by_one(objective, pixels, layer_list, targets, meta), rtol)


def assert_fields(found: Fields, wanted: Fields, rtol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, sides in wanted.items():
        for side, (one, other) in enumerate(zip(found[name], sides, strict=True)):
            distance = (one - other).flatten(1).norm(dim=1) / other.flatten(1).norm(dim=1)
            assert distance.max() <= rtol, (name, side, distance)


@pytest.mark.parametrize("name", KNOWN)
def test_known_networks_step_as_one_by_one(name: str) -> None:
    assert_same(awake(KNOWN[name]()), torch.randn(3, 3, 64, 64, dtype=torch.float64), 1e-12)


@pytest.mark.parametrize("name", FUNCTION_NETWORKS)
def test_every_kind_of_weight_steps_as_one_by_one(name: str) -> None:
    assert_same(awake(FUNCTION_NETWORKS[name]()), torch.randn(3, 3, 16, 16, dtype=torch.float64), 1e-12, layers="begin")


@pytest.mark.parametrize("direction", ["descent", "ascent"])
@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_float32_both_ways(name: str, direction: str) -> None:
    pixels = torch.randn(4, 3, 64, 64)
    assert_same(awake(KNOWN[name](), torch.float32), pixels, 1e-5, Meta(0.002, direction))


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.integers(1, 2),
    padding=st.one_of(st.integers(0, 2), st.just("valid")),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2, 4, 8]),
    bias=st.booleans(),
    size=st.sampled_from([20, 40]),
    wide=st.sampled_from([8, 64]),
)
def test_convolutions_of_every_setting(
    kernel: tuple[int, int], stride: int, padding: Any, dilation: int, groups: int, bias: bool, size: int, wide: int
) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Tanh(),
        nn.Conv2d(8, wide, kernel, stride, padding, dilation, groups, bias), nn.Tanh(), nn.AdaptiveAvgPool2d(6),
        nn.Conv2d(wide, wide, kernel, stride, padding, dilation, groups, bias), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide, 5),
    )  # fmt: skip
    network[2].weight.data.mul_(2)
    assert_same(network.double(), torch.randn(2, 3, size, size, dtype=torch.float64), 1e-11, Meta(0.5), layers="1")


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("kernel", [(2, 3), (3, 3)])
def test_padding_the_same(kernel: tuple[int, int]) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 64, kernel, padding="same"), nn.Tanh(), nn.MaxPool2d(3),
        nn.Conv2d(64, 64, kernel, padding="same"), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 5),
    )  # fmt: skip
    assert_same(awake(network), torch.randn(3, 3, 9, 9, dtype=torch.float64), 1e-12, layers="1")


@pytest.mark.parametrize("room", [2**27, 10_000])
def test_products_of_patches_in_portions(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """What a GPU does for every kernel, and a processor for pointwise ones only."""
    monkeypatch.setattr(
        convolutions._ConvolutionSettings, "uses_matrix_product", lambda settings, _: settings.groups == 1
    )
    monkeypatch.setattr(convolutions, "_MAX_PATCH_ENTRIES", room)
    network = nn.Sequential(
        nn.Conv2d(3, 8, (3, 2), 2, (1, 0)), nn.Tanh(), nn.Conv2d(8, 8, 3, dilation=2, bias=False), nn.Tanh(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    assert_same(awake(network), torch.randn(5, 3, 20, 20, dtype=torch.float64), 1e-12, layers="1")


@pytest.mark.parametrize(
    "texts", [None, ["a red circle", "a small blue square above a red circle", "a circle"]], ids=["its own", "given"]
)
def test_captions_of_different_lengths(texts: list[str] | None) -> None:
    model = gl.captioner("scenes")
    model.network.double()
    objective = model.objective(texts)
    pixels = torch.rand(3, 3, *model.size, dtype=torch.float64)
    layers = choose_layers(model, "stages", model.size)
    with preserved(model.network):
        with per_sample_meta_step(objective, pixels, None, STEP) as targets:
            pass
        with torch.no_grad():
            assert targets == objective.choose(objective.outputs(pixels.clone()))
    assert_fields(in_one(objective, pixels, layers, targets), one_by_one(objective, pixels, layers, targets), 1e-11)


def test_a_longer_caption_is_probed_again() -> None:
    model = gl.captioner("scenes")
    pixels = torch.rand(2, 3, *model.size)
    with preserved(model.network):
        for text in ("a circle", "a large green triangle above a small red circle"):
            with per_sample_meta_step(model.objective(text), pixels, None, STEP) as targets:
                assert [len(row) for row in targets] == [1, 1]


def test_targets_are_chosen_at_the_weights_as_they_are() -> None:
    network = awake(KNOWN["vgg"]())
    objective = gl.classifier(network).objective("min")
    pixels = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with preserved(network):
        wanted = objective.choose(objective.outputs(pixels))
        for some in (pixels, pixels[:1]):
            with per_sample_meta_step(objective, some, None, Meta(5.0)) as targets:
                assert [row[0].index for row in targets] == [row[0].index for row in wanted[: len(some)]]
                assert not torch.allclose(objective(some), objective.scores(objective.outputs(some), targets) + 1)


def interrupted(objective: Objective, pixels: Tensor) -> None:
    with preserved(objective.network), per_sample_meta_step(objective, pixels, None, STEP):
        objective(pixels)
        raise KeyboardInterrupt("enough")


@pytest.mark.parametrize("name", ["resnet18", "vit"])
def test_the_network_is_left_bit_for_bit(name: str) -> None:
    network = awake(KNOWN[name]()).train()
    for parameter in list(network.parameters())[::2]:
        parameter.requires_grad_(False)
    weights, asked = copy.deepcopy(network.state_dict()), [p.requires_grad for p in network.parameters()]
    held = [p.data_ptr() for p in network.parameters()]
    objective = gl.classifier(network).objective(1)
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with pytest.raises(KeyboardInterrupt, match="enough"):
        interrupted(objective, pixels)
    assert all(torch.equal(weights[name], tensor) for name, tensor in network.state_dict().items())
    assert [p.requires_grad for p in network.parameters()] == asked
    assert [p.data_ptr() for p in network.parameters()] == held
    assert all(p.grad is None for p in network.parameters())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in network.modules())


def test_a_network_whose_weights_were_exchanged_is_probed_again() -> None:
    network = awake(FUNCTION_NETWORKS["shared modules"]())
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert_same(network, pixels, 1e-12, layers="begin")
    network.head = nn.Sequential(nn.Linear(8, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    assert_same(network, pixels, 1e-12, layers="begin")


class Hidden(torch.autograd.Function):
    """A product that no torch function can intercept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradients[0] @ weight.T, x.T @ gradients[0]


UNCOVERED: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "hidden": (
        "differs from that of the image alone",
        lambda: FunctionNetwork(
            lambda net, x: Hidden.apply(pooled(x), net.hidden), hidden=nn.Parameter(torch.randn(8, 8))
        ),
    ),
    "statistics of the batch": (
        "mixes the images of a batch",
        lambda: FunctionNetwork(lambda net, x: pooled(net.norm(x)), norm=nn.BatchNorm2d(8, track_running_stats=False)),
    ),
    "difference to the batch": (
        "mixes the images of a batch",
        lambda: FunctionNetwork(lambda net, x: net.more(pooled(x) - pooled(x).mean(0)), more=nn.Linear(8, 8)),
    ),
    "a loop over the images": (
        "the network calls",
        lambda: FunctionNetwork(
            lambda net, x: pooled(torch.stack([net.more(row[None])[0] for row in x])), more=nn.Conv2d(8, 8, 1)
        ),
    ),
    "a weight overwritten": (
        "writes into a weight",
        lambda: FunctionNetwork(
            lambda net, x: pooled(x) * net.scale.clone().clamp_(min=-1), scale=nn.Parameter(torch.randn(8))
        ),
    ),
    "a weight as a number": (
        "takes a weight and returns float",
        lambda: FunctionNetwork(lambda net, x: pooled(x) * net.scale.sum().item(), scale=nn.Parameter(torch.randn(8))),
    ),
}


@pytest.mark.parametrize("case", UNCOVERED)
def test_a_network_without_a_batched_form_is_refused(case: str) -> None:
    reason, make = UNCOVERED[case]
    network = awake(make())
    before = copy.deepcopy(network.state_dict())
    objective = gl.classifier(network).objective(1)
    pixels = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for why in (reason, "no batched form"):
        with (
            preserved(network),
            pytest.raises(NotCoveredError, match=why),
            per_sample_meta_step(objective, pixels, None, STEP),
        ):
            pass
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_bfloat16_runs_batched() -> None:
    network = awake(KNOWN["vit"](), torch.float32)
    objective = gl.classifier(network).objective(1)
    pixels = torch.randn(3, 3, 64, 64)
    with preserved(network):
        plain = objective(pixels)
        with per_sample_meta_step(objective, pixels, None, STEP):
            wanted = objective(pixels)
        with torch.autocast("cpu", torch.bfloat16), per_sample_meta_step(objective, pixels, None, STEP):
            found = objective(pixels)
    assert (found - wanted).norm() <= 0.05 * (wanted - plain).norm()


def test_another_number_of_images_is_refused() -> None:
    network = awake(KNOWN["vgg"]())
    objective = gl.classifier(network).objective(1)
    pixels = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with (
        preserved(network),
        per_sample_meta_step(objective, pixels, None, STEP),
        pytest.raises(NotCoveredError, match="1 rows for 2 images"),
    ):
        objective(pixels[:1])
