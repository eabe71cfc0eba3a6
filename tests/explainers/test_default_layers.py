"""Every method runs with the default layers: those are the layers at which it is defined."""

from __future__ import annotations

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import gradlight as gl

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 8, 3, 1, 1),
        nn.Conv2d(8, 8, 1),
        nn.GELU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    )


NETWORKS = {
    "resnet": (
        lambda: torchvision.models.resnet18(weights=None, num_classes=5),
        ["layer1.1.conv2", "layer2.1.conv2", "layer3.1.conv2", "layer4.1.conv2"],
    ),
    "plain": (plain, ["2", "7"]),
    "vit": (
        lambda: timm.create_model("vit_tiny_patch16_224", img_size=64, num_classes=5, depth=4, global_pool="avg"),
        ["blocks.0.mlp.fc2", "blocks.1.mlp.fc2", "blocks.2.mlp.fc2", "blocks.3.mlp.fc2"],
    ),
    "densenet": (lambda: torchvision.models.densenet121(weights=None, num_classes=5), None),
    "convnext": (lambda: timm.create_model("convnext_atto", num_classes=5), None),
    "regnet": (lambda: timm.create_model("regnety_002", num_classes=5), None),
}


def made(name: str) -> gl.Explainable:
    torch.manual_seed(0)
    return gl.classifier(NETWORKS[name][0]().eval())


@pytest.mark.parametrize("name", NETWORKS)
def test_real_methods_run_at_the_last_weight_layer_of_each_stage(name: str) -> None:
    model = made(name)
    maps = gl.explain(model, PIXELS, 1, methods=["normgrad_real", "selective_normgrad", "real_bias+norm"])
    stages = [stage.name for stage in model.stages((64, 64))]
    of = {method: [layer for each, layer in maps.pairs if each == method] for method in maps.methods}
    assert of["selective_normgrad"] == stages
    assert len(of["normgrad_real"]) == len(of["real_bias+norm"]) == len(stages)
    assert NETWORKS[name][1] in (None, of["normgrad_real"])
    assert set(maps.layers) == {layer for _, layer in maps.pairs}
    for layer, stage in zip(of["normgrad_real"], stages, strict=True):
        module = model.network.get_submodule(layer)
        assert isinstance(module, (nn.Conv2d, nn.Linear)), layer
        assert layer.startswith(f"{stage}.") or name in ("plain", "densenet", "convnext", "regnet")
        assert maps["normgrad_real", layer].shape == maps["selective_normgrad", stage].shape


def test_the_default_map_is_the_norm_of_the_weights_gradient_at_each_location() -> None:
    """At layer2.1.conv2, by autograd alone: one location of the output at a time."""
    network = torchvision.models.resnet18(weights=None, num_classes=5).eval().double()
    torch.manual_seed(0)
    conv = network.layer2[1].conv2
    kept: list[Tensor] = []
    hook = conv.register_forward_hook(lambda module, args, output: kept.append(output))
    pixels = PIXELS[:1].double()
    score = network(pixels)[0, 1]
    hook.remove()
    (gradient,) = torch.autograd.grad(score, kept[0], retain_graph=True)
    expected = torch.zeros(gradient.shape[2:], dtype=torch.float64)
    for row in range(gradient.shape[2]):
        for column in range(gradient.shape[3]):
            single = torch.zeros_like(gradient)
            single[..., row, column] = gradient[..., row, column]
            (weight,) = torch.autograd.grad(kept[0], conv.weight, single, retain_graph=True)
            expected[row, column] = weight.norm()
    maps = gl.explain(gl.classifier(network), pixels, 1, methods="normgrad_real")
    torch.testing.assert_close(maps["normgrad_real", "layer2.1.conv2"][0, 0], expected, rtol=1e-9, atol=0)


def test_one_call_of_mixed_methods_gives_what_single_calls_give() -> None:
    model = made("resnet")
    names = ["normgrad_real", "cam", "grad_cam", "occlusion"]
    mixed = gl.explain(model, PIXELS[:1], ["top2"], methods=names, meta=gl.Meta(lr=0.001))
    for name in names:
        alone = gl.explain(model, PIXELS[:1], ["top2"], methods=name, meta=gl.Meta(lr=0.001))
        assert alone.pairs
        for pair in alone.pairs:
            largest = float(alone[pair].abs().max())
            torch.testing.assert_close(mixed[pair], alone[pair], rtol=1e-4, atol=1e-5 * largest)
        assert [pair for pair in mixed.pairs if pair[0] == name] == list(alone.pairs)


def test_cam_is_made_at_the_pooled_layer_and_refused_where_there_is_none() -> None:
    assert gl.explain(made("resnet"), PIXELS, 1, methods="cam").layers == ["layer4"]
    with pytest.raises(gl.GradlightError, match="Ask for grad_cam"):
        gl.explain(
            gl.classifier(nn.Sequential(*plain()[:9], nn.Flatten(), nn.Linear(2048, 5)).eval()),
            PIXELS,
            1,
            methods="cam",
        )


def test_named_layers_are_taken_as_they_are_named() -> None:
    with pytest.raises(gl.GradlightError, match="real contributions were asked at 'layer4'"):
        gl.explain(made("resnet"), PIXELS, 1, methods="normgrad_real", layers="layer4")
    maps = gl.explain(made("resnet"), PIXELS, 1, methods="normgrad_real", layers=["stages", "conv1"])
    assert maps.layers == ["conv1", *NETWORKS["resnet"][1]]


def test_maps_of_the_pixels_need_no_stage() -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 5)).eval()
    assert gl.explain(gl.classifier(network), PIXELS[:1], 1, methods="occlusion").layers == ["input"]
