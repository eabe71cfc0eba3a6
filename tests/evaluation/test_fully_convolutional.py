"""Networks made fully convolutional: the same scores as a grid, from the same weights; the user's own untouched."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from gradlight.evaluation.whole_photo import fully_convolutional

SIDE = 64


def noise(height: int = SIDE, width: int = SIDE) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))


class Flattening(nn.Module):
    """A small network whose head is that of VGG: features of 4 x 4, flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, 4, 2), nn.ReLU(), nn.Conv2d(6, 5, 3, 4, 1))
        self.avgpool = nn.AdaptiveAvgPool2d((4, 4))
        self.classifier = nn.Sequential(nn.Linear(80, 9), nn.ReLU(True), nn.Dropout(), nn.Linear(9, 7))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.avgpool(self.features(pixels)), 1))


def resnet() -> nn.Module:
    return torchvision.models.resnet18(num_classes=7)


def timm_resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=7)


def timm_mobilenet() -> nn.Module:
    return timm.create_model("mobilenetv3_small_050", num_classes=7)


BUILDS: list[Callable[[], nn.Module]] = [resnet, timm_resnet, timm_mobilenet, Flattening]


@pytest.mark.parametrize("build", BUILDS)
def test_the_grid_is_the_network_at_every_place(build: Callable[[], nn.Module]) -> None:
    """Each place of the grid is what the head says of the window of features there."""
    torch.manual_seed(0)
    network = build().double().eval()
    converted = fully_convolutional(network, noise().double())
    assert converted is not None
    with torch.no_grad():
        assert_close(converted(noise().double()).flatten(1), network(noise().double()))
        grid = converted(noise(SIDE, 2 * SIDE).double())
    assert grid.shape[:3] == (1, 7, 1)
    assert grid.shape[3] > 1


def test_a_resnet_slides_its_average() -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=7).double().eval()
    converted = fully_convolutional(network, noise().double())
    assert converted is not None
    features: list[Tensor] = []
    handle = network.layer4.register_forward_hook(lambda module, args, output: features.append(output))
    wide = noise(96, 128).double()
    with torch.no_grad():
        network(wide)
        found = converted(wide)
    handle.remove()
    pooled = F.avg_pool2d(features[0], 2, stride=1)  # 64 pixels give 2 x 2 features
    wanted = torch.einsum("bchw,kc->bkhw", pooled, network.fc.weight) + network.fc.bias.view(1, -1, 1, 1)
    assert_close(found, wanted.detach())


def test_flattened_features_become_a_convolution() -> None:
    torch.manual_seed(0)
    network = Flattening().double().eval()
    converted = fully_convolutional(network, noise().double())
    assert converted is not None
    wide = noise(SIDE, 96).double()
    with torch.no_grad():
        features = network.features(wide)
        windows = [features[:, :, :, start : start + 4].flatten(1) for start in range(features.shape[3] - 3)]
        wanted = torch.stack([network.classifier(window) for window in windows], 2).unsqueeze(2)
        assert_close(converted(wide), wanted)


@pytest.mark.parametrize("build", BUILDS)
def test_names_and_weights_are_the_networks_own(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    network = build().train()
    modules = {name: id(module) for name, module in network.named_modules()}
    before = {name: value.clone() for name, value in network.state_dict().items()}
    hooked = nn.Module.register_forward_hook(network, lambda module, args, output: None)
    converted = fully_convolutional(network, noise())
    assert converted is not None
    own, new = network.state_dict(), converted.state_dict()
    assert list(own) == list(new)
    assert all(own[name].data_ptr() == new[name].data_ptr() for name in own)
    assert all(left is right for left, right in zip(network.parameters(), converted.parameters(), strict=True))
    # The user's network is what it was, to the last hook.
    assert {name: id(module) for name, module in network.named_modules()} == modules
    assert all(torch.equal(before[name], own[name]) for name in own)
    assert all(module.training for module in network.modules())
    assert [len(module._forward_hooks) for module in network.modules()].count(1) == 1
    hooked.remove()
    assert set(dict(converted.named_modules())) <= {*modules}
    converted.register_forward_hook(lambda module, args, output: None)
    assert not network._forward_hooks


class Averaging(nn.Module):
    """It pools without a module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 4, 8, 8), nn.Linear(4, 7)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.fc(self.body(pixels).mean((2, 3)))


class Doubling(nn.Module):
    """Its head is more than its linear layer says."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool, self.fc = nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Linear(4, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        pooled = self.pool(self.body(pixels)).flatten(1)
        return torch.cat([self.fc(pooled), pooled], 1)


@pytest.mark.parametrize(
    "network",
    [
        Averaging(),
        Doubling(),
        torchvision.models.squeezenet1_1(num_classes=7),
        timm.create_model("vit_tiny_patch16_224", num_classes=7, img_size=SIDE, depth=1),
    ],
    ids=["averaging", "doubling", "squeezenet", "transformer"],
)
def test_another_head_is_found_out(network: nn.Module) -> None:
    assert fully_convolutional(network.eval(), noise()) is None
