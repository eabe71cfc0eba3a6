"""Which layers a network has, which of them are its stages, and where CAM is defined."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torchvision
from torch import Tensor, nn

import gradlight as gl
from gradlight.models.layers.discovery import Discovery, Layer, discover


@cache
def found_in(name: str, size: int = 224) -> Discovery:
    options = {"init_weights": False} if name == "googlenet" else {}
    return discover(torchvision.models.get_model(name, weights=None, **options).eval(), torch.randn(1, 3, size, size))


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


STAGES = {
    "resnet18": ["layer1", "layer2", "layer3", "layer4"],
    "resnet50": ["layer1", "layer2", "layer3", "layer4"],
    "vgg16": ["features.3", "features.8", "features.15", "features.22", "features.29"],
    "mobilenet_v3_large": ["features.1", "features.3", "features.6", "features.12", "features.16"],
    "efficientnet_b0": ["features.1", "features.2", "features.3", "features.5", "features.8"],
    "convnext_tiny": ["features.1", "features.3", "features.5", "features.7"],
    "densenet121": ["features.denseblock1", "features.denseblock2", "features.denseblock3", "features.norm5"],
    "googlenet": ["conv3", "inception3b", "inception4e", "inception5b"],
}


@pytest.mark.parametrize("name", STAGES)
def test_stages_of_well_known_networks(name: str):
    assert names(found_in(name).stages) == STAGES[name]


@pytest.mark.parametrize("name", STAGES)
def test_layers_lie_in_the_order_of_execution(name: str):
    """Depth counts them, every size is more than one location, and strides are the pixels by it."""
    layers = found_in(name).layers
    assert [layer.depth for layer in layers] == list(range(len(layers)))
    assert (layers[0].name, layers[0].channels, layers[0].size) == ("input", 3, (224, 224))
    assert len(set(names(layers))) == len(layers)
    for layer in layers:
        assert layer.size[0] * layer.size[1] > 1
        assert layer.stride == (224 / layer.size[0], 224 / layer.size[1])
    assert names(found_in(name).stages) == [layer.name for layer in layers if layer in found_in(name).stages]


POOLED = {
    "resnet50": {"layer4", "layer4.2", "layer4.2.relu:2"},
    "densenet121": set(),  # its last ReLU is a function, so the mean is of no module's output
    "vgg16": set(),
    "mobilenet_v3_large": set(),
    "convnext_tiny": set(),
}


@pytest.mark.parametrize("name", POOLED)
def test_cam_is_defined_where_one_linear_layer_reads_the_mean(name: str):
    """Not before VGG's or MobileNet's two linear layers, nor before ConvNeXt's last norm."""
    assert {layer.name for layer in found_in(name).layers if layer.pooled} == POOLED[name]


@pytest.mark.parametrize("name", ["efficientnet_b0", "googlenet"])
def test_cam_through_dropout(name: str):
    pooled = {layer.name for layer in found_in(name).layers if layer.pooled}
    assert found_in(name).stages[-1].name in pooled


def test_sizes_and_strides_of_a_tall_image():
    layers = {layer.name: layer for layer in discover(small().eval(), torch.randn(1, 3, 48, 20)).layers}
    assert (layers["2"].size, layers["2"].channels, layers["2"].stride) == ((24, 10), 4, (2.0, 2.0))
    assert (layers["5"].size, layers["5"].channels) == ((12, 5), 8)


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(4, 8, 3, padding=1), nn.Identity(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.Dropout2d(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


def test_a_small_network_of_ones_own():
    """Identity and dropout repeat a place that has a name; 32×32 and 16×16 have one convolution each."""
    found = discover(small(), torch.randn(1, 3, 32, 32))
    assert names(found.layers) == ["input", "0", "1", "2", "3", "4", "5", "7", "8"]
    assert names(found.stages) == ["8"]
    assert [layer.name for layer in found.layers if layer.pooled] == ["8"]


class TwoBranches(nn.Module):
    """Two branches that are added; nothing in them is passed by everything."""

    def __init__(self, joined: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.left = nn.Sequential(nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Conv2d(4, 4, 3, padding=1))
        self.right = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
        self.join = nn.ReLU() if joined else None
        self.head = nn.Linear(4, 5)
        self.unused = nn.Conv2d(3, 3, 1)
        self.dead_end = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        self.dead_end(x)
        x = self.left(x) + self.right(x)
        return self.head((x if self.join is None else self.join(x)).mean((2, 3)))


def test_a_network_of_two_branches():
    found = discover(TwoBranches(joined=True), torch.randn(1, 3, 16, 16))
    assert set(names(found.layers)) == {
        "input", "stem", "stem.0", "stem.1", "left", "left.0", "left.1", "right", "right.0", "right.1", "join",
    }  # fmt: skip
    assert names(found.stages) == ["stem", "join"]
    assert [layer.name for layer in found.layers if layer.pooled] == ["join"]
    apart = discover(TwoBranches(joined=False), torch.randn(1, 3, 16, 16))
    assert names(apart.stages) == ["stem"]
    assert not any(layer.pooled for layer in apart.layers)


class ChannelsLast(nn.Module):
    """Patches, then blocks of linear layers and norms on [B,h,w,C]."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.blocks = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.patches(x).permute(0, 2, 3, 1)).mean((1, 2)))


def test_a_network_with_channels_last():
    found = discover(ChannelsLast(), torch.randn(1, 3, 32, 48))
    layers = {layer.name: layer for layer in found.layers}
    assert {name: (layer.channels, layer.size) for name, layer in layers.items() if name != "input"} == {
        "patches": (6, (8, 12)),
        "blocks.0": (6, (8, 12)),
        "blocks.1": (12, (8, 12)),
        "blocks.2": (12, (8, 12)),
        "blocks.3": (6, (8, 12)),
        "blocks": (6, (8, 12)),
    }
    assert names(found.stages) == ["blocks"]
    raw = torch.randn(2, 8, 12, 6)
    assert torch.equal(layers["blocks"].layout(raw)[1, :, 3, 7], raw[1, 3, 7])


class Tokens(nn.Module):
    """A small vision transformer without attention, with learnt tokens before those of the image."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, 4)
        self.extra = nn.Parameter(torch.randn(1, extra, 6))
        self.block = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = torch.cat([self.extra.expand(len(x), -1, -1), self.patches(x).flatten(2).mT], 1)
        return self.head(self.block(tokens).mean(1))


@pytest.mark.parametrize("extra", [0, 1, 5])
@pytest.mark.parametrize("size", [(32, 32), (32, 48), (48, 32)])
def test_tokens_are_laid_out_as_the_image(extra: int, size: tuple[int, int]):
    """Token n of the image is at row n // columns, column n % columns, after the learnt ones."""
    rows, columns = size[0] // 4, size[1] // 4
    layers = {layer.name: layer for layer in discover(Tokens(extra), torch.randn(1, 3, *size)).layers}
    assert (layers["block.1"].channels, layers["block.1"].size) == (12, (rows, columns))
    raw = torch.randn(2, extra + rows * columns, 12)
    grid = layers["block.1"].layout(raw)
    assert torch.equal(grid[1, :, 2, 5], raw[1, extra + 2 * columns + 5])
    assert (layers["block"].pooled, layers["patches"].pooled) == (extra == 0, False)


def test_a_vision_transformer():
    found = discover(torchvision.models.vit_b_16(weights=None).eval(), torch.randn(1, 3, 224, 224))
    layers = {layer.name: layer for layer in found.layers}
    for block in (0, 10):
        layer = layers[f"encoder.layers.encoder_layer_{block}"]
        assert (layer.channels, layer.size, layer.stride) == (768, (14, 14), (16.0, 16.0))
    assert names(found.stages) == [f"encoder.layers.encoder_layer_{block}" for block in (2, 5, 8, 10)]


def test_tokens_that_the_head_does_not_read_are_no_layer():
    """After its last attention a ViT reads its class token alone: the grid has no gradient there, but before it has."""
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5)
    with pytest.raises(gl.GradlightError, match=r"'encoder' is not read where it is spatial: .*zero.*encoder_layer_1'"):
        gl.explain(gl.classifier(with_head(network)), torch.randn(1, 3, 32, 32), 0, layers="encoder")
    maps = gl.explain(gl.classifier(network), torch.randn(1, 3, 32, 32), 0, methods="normgrad")
    assert maps.layers == ["encoder.layers.encoder_layer_1"]
    assert maps["normgrad", maps.layers[0]].min() > 0
    untrained = torchvision.models.VisionTransformer(32, 8, 3, 2, 16, 32, num_classes=5)
    assert "encoder" not in names(discover(untrained, torch.randn(1, 3, 32, 32)).layers), "nor under a head of zeros"


def with_head(network: torchvision.models.VisionTransformer) -> nn.Module:
    """Give the head weights: torchvision makes it of zeros."""
    nn.init.normal_(network.heads[0].weight)
    return network


def test_a_network_that_refuses_the_size():
    network = torchvision.models.vit_b_16(weights=None).eval()
    with pytest.raises(gl.GradlightError, match=r"The network refused pixels of shape \[1, 3, 64, 64\].*preprocess="):
        discover(network, torch.randn(1, 3, 64, 64))
    with pytest.raises(gl.GradlightError, match=r"The network refused pixels of shape \[1, 3, 4, 4\]"):
        discover(nn.Sequential(nn.Conv2d(3, 3, 5), nn.Flatten()), torch.randn(1, 3, 4, 4))


def test_the_search_leaves_no_hook_and_no_flag_behind():
    network = small().train()
    discover(network, torch.randn(1, 3, 16, 16))
    assert all(module.training and not module._forward_hooks for module in network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_layers_are_found_by_name_by_glob_and_by_kind():
    model = gl.classifier(small())
    pixels = torch.randn(1, 3, 32, 32)

    def asked(layers: str | list[str]) -> list[str]:
        return gl.explain(model, pixels, 0, layers=layers).layers

    assert asked("all") == names(model.layers((32, 32)))
    assert asked("stages") == ["8"]
    assert asked(["8", "input", "2", "8"]) == ["input", "2", "8"]
    assert asked("[02]") == ["0", "2"]
    assert asked("8:0") == ["8"]
    for wrong, message in {
        "relu": r"No layer is called 'relu'. `model.layers\(\)` lists the 9",
        "1*0": r"No spatial layer.* matches '1\*0'",
        "11": r"The output of '11' is not spatial.* The nearest spatial layer before it is '8'",
        "6": r"The output of '6' is that of '5', passed on unchanged. The nearest spatial layer before it is '5'",
    }.items():
        with pytest.raises(gl.GradlightError, match=message):
            asked(wrong)


def test_a_mistyped_name_is_told_its_nearest():
    with pytest.raises(gl.GradlightError, match=r"No layer is called 'left.3'. Did you mean 'left"):
        gl.explain(gl.classifier(TwoBranches(joined=True)), torch.randn(1, 3, 16, 16), 0, layers="left.3")


def test_a_network_without_stages():
    network = nn.Sequential(nn.Sigmoid(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    with pytest.raises(gl.GradlightError, match=r"'stages' finds none. Name the layers"):
        gl.explain(gl.classifier(network), torch.randn(1, 3, 16, 16), 0)


def test_a_network_whose_every_convolution_makes_a_grid_of_its_own_has_stages_too():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1))
    assert names(discover(network, torch.randn(1, 3, 20, 20)).stages) == ["1", "3"]
