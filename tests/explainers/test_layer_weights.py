"""How much layers tell: spread and probe against slow ones, where weights are kept, and which networks use which."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError, GradlightWarning
from gradlight.explainers import layer_weights as measuring
from gradlight.explainers import layer_weights_store as kept
from gradlight.explainers.combination import check_weights, layer_weights
from gradlight.explainers.layer_weights import accuracy, average_precision, averaged_features, spread
from gradlight.explainers.layer_weights_store import PUBLISHED, LayerMeasure, MeasuredWeights
from gradlight.models.scenes import classifier as network_of_scenes

SHA = "ab" * 32
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GRADLIGHT_LAYER_WEIGHTS", str(tmp_path / "weights"))
    return tmp_path / "weights"


def measured(**changes: Any) -> MeasuredWeights:
    layers = {name: LayerMeasure(1.0 + number, (1 + number) / 8) for number, name in enumerate(LAYERS)}
    return replace(MeasuredWeights("scenes", SHA, "scenes", 20, layers, "mean average precision"), **changes)


def clusters(count: int, classes: int, noise: float) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    centres = torch.randn(classes, 6, generator=random)
    return centres[labels] + noise * torch.randn(count, 6, generator=random), labels


class Overwriting(nn.Module):
    """Its first activation is overwritten in place, and one of its modules runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.ReLU(inplace=True)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.relu(self.second(self.relu(self.first(pixels)))).mean((2, 3))


def test_features_are_the_spatial_means_even_of_what_is_overwritten_afterwards() -> None:
    network = Overwriting().double()
    model, pixels = gl.classifier(network), torch.rand(2, 3, 12, 12, dtype=torch.float64)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = averaged_features(model, pixels, model.layers((12, 12)))
    first = network.first(pixels)
    second = network.second(first.relu())
    wanted = {"input": pixels, "first": first, "relu": first.relu(), "second": second, "relu:1": second.relu()}
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        torch.testing.assert_close(found[name], values.detach().mean((2, 3)), rtol=1e-12, atol=1e-14)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


@given(arrays(np.float64, (5, 3), elements=st.floats(-100, 100)))
def test_the_spread_is_the_mean_absolute_deviation(features: np.ndarray) -> None:
    total = 0.0
    for channel in range(3):
        mean = sum(features[image, channel] for image in range(5)) / 5
        total += sum(abs(features[image, channel] - mean) for image in range(5)) / 5
    assert spread(torch.from_numpy(features)) == pytest.approx(total / 3, abs=1e-10)


def test_one_image_has_no_spread() -> None:
    with pytest.raises(GradlightError, match="over at least two images, not 1"):
        spread(torch.ones(1, 4))


@settings(deadline=None)
@given(arrays(np.float64, 12, elements=st.integers(0, 5).map(float)), arrays(np.bool_, 12))
def test_average_precision_is_the_one_of_the_bundled_classifier(scores: np.ndarray, present: np.ndarray) -> None:
    found = average_precision(torch.from_numpy(scores), torch.from_numpy(present))
    assert found == pytest.approx(network_of_scenes.average_precision(scores, present), nan_ok=True)


def test_a_probe_knows_what_can_be_known_and_nothing_more() -> None:
    features, labels = clusters(200, 4, noise=0.05)
    assert accuracy(features, labels) == 1.0
    assert accuracy(features * torch.tensor([1e-3, 1, 1, 1e4, 1, 1]) + 7, labels) == 1.0  # standardised
    shuffled = labels[torch.randperm(200, generator=torch.Generator().manual_seed(1))]
    assert accuracy(features, shuffled) < 0.5
    assert accuracy(torch.zeros(200, 6), labels) == pytest.approx(0.25)


def test_a_probe_of_several_labels_gives_their_mean_average_precision() -> None:
    features, labels = clusters(200, 4, noise=0.05)
    several = torch.stack([labels < 2, labels % 2 == 0, labels == 3], 1)
    assert accuracy(features, several) == 1.0
    nobody = several.clone()
    nobody[:, 2] = False  # a class that no image shows is left out
    assert accuracy(features, nobody) == 1.0
    noise = torch.rand(200, 6, generator=torch.Generator().manual_seed(0))
    assert accuracy(noise, several) < 0.75


def test_the_probe_is_at_the_minimum_of_its_loss() -> None:
    features, labels = clusters(60, 3, noise=2.0)
    weights, biases = measuring._fit(features.double(), labels, 0.1, measuring._zero_probe(features.double(), labels))
    x, one_hot = features.double().numpy(), np.eye(3)[labels.numpy()]
    logits = x @ weights.numpy() + biases.numpy()
    surprise = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) - one_hot
    assert np.abs(x.T @ surprise / 60 + 0.1 * weights.numpy()).max() < 1e-5
    assert np.abs(surprise.mean(0)).max() < 1e-5


def test_images_are_dealt_out_evenly_and_by_the_seed() -> None:
    labels = torch.arange(100) % 4
    folds = measuring._assign_folds(labels, 0)
    assert all(int(((labels == c) & (folds == fold)).sum()) == 5 for c in range(4) for fold in range(5))
    assert torch.equal(folds, measuring._assign_folds(labels, 0))
    assert not torch.equal(folds, measuring._assign_folds(labels, 1))


@pytest.mark.parametrize("labels", [torch.zeros(20, dtype=torch.long), torch.arange(9) % 2])
def test_a_probe_needs_images_and_classes(labels: Tensor) -> None:
    with pytest.raises(GradlightError, match="at least 10 images with labels, of at least 2 classes"):
        accuracy(torch.rand(len(labels), 3), labels)


def test_what_was_measured_is_kept_and_found(own_folder: Path) -> None:
    assert kept.find(SHA) is None
    place = kept.keep(measured())
    assert place == own_folder / f"{SHA}.json"
    assert kept.find(SHA) == measured()
    assert kept.find(SHA).weights("spread") == dict(zip(LAYERS, (1.0, 2.0, 3.0, 4.0), strict=True))  # type: ignore[union-attr]
    assert kept.find("cd" * 32) is None
    assert kept.find("") is None
    with pytest.raises(GradlightError, match="64 hexadecimal digits, not ''"):
        kept.keep(measured(weights_sha256=""))


def test_layers_measured_on_the_same_data_stay_beside_the_new_ones() -> None:
    kept.keep(measured())
    more = {"input": LayerMeasure(9.0, None)}
    kept.keep(measured(layers=more))
    assert set(kept.find(SHA).layers) == {*LAYERS, "input"}  # type: ignore[union-attr]
    kept.keep(measured(layers=more, data="photos"))
    assert set(kept.find(SHA).layers) == {"input"}  # type: ignore[union-attr]


def test_a_file_of_ones_own_is_written_as_it_is(tmp_path: Path, own_folder: Path) -> None:
    place = kept.keep(measured(), tmp_path / "w.json")
    assert kept.read(place) == measured()
    assert not own_folder.exists()
    with pytest.raises(GradlightError, match="cannot be written"):
        kept.keep(measured(), tmp_path / "none" / "w.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "its format is not 'gradlight-layer-weights'"),
        ({"format_version": 2}, "version 2; this gradlight reads 1"),
        ({"layers": [1, 2]}, "not a file of layer weights"),
        ({"layers": {"a": {"spread": -1, "accuracy": None}}}, "-1 is not a finite number"),
        ({"layers": {"a": {"spread": True, "accuracy": None}}}, "True is not a finite number"),
        ({"layers": {"a": {}}}, "'spread'"),
        ({"count": "many"}, "'many' is not a whole number"),
        ({"weights_sha256": None}, "None is not a text"),
        ({"weights_sha256": "cd" * 32}, "another network than its name says"),
    ],
)
def test_a_damaged_file_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    place = kept.keep(measured())
    place.write_text(json.dumps(measured().to_json() | change))
    with pytest.raises(GradlightError, match=message):
        kept.find(SHA)


def test_a_file_that_is_no_json_says_so() -> None:
    kept.keep(measured()).write_text("{")
    with pytest.raises(GradlightError, match="not a file of layer weights"):
        layer_weights("spread", LAYERS, {}, SHA)


def slow(maps: list[np.ndarray], weights: list[float], how: str) -> np.ndarray:
    """Combine maps [h,w] place by place."""
    shares = [weight / sum(weights) for weight in weights]
    bounds = [(float(m.min()), float(m.max())) for m in maps]
    joined = np.zeros(maps[0].shape)
    for place in np.ndindex(joined.shape):
        values = [(float(m[place]) - low) / (high - low) for m, (low, high) in zip(maps, bounds, strict=True)]
        terms = zip(shares, values, strict=True)
        joined[place] = sum(s * v for s, v in terms) if how == "sum" else math.prod(v**s for s, v in terms)
    return joined


@pytest.mark.parametrize("how", ["sum", "product"])
@pytest.mark.parametrize("kind", ["spread", "accuracy"])
def test_maps_are_combined_with_what_was_measured_of_their_network(kind: str, how: str) -> None:
    model = gl.classifier("scenes")
    model.network.double()  # float32's rounding at the least value of a map would be large under a small power
    maps = gl.explain(model, "scenes:20000066", methods="linear_approx")
    kept.keep(measured(weights_sha256=model.weights_sha256()))
    joined = maps.combine(weights=kind, how=how)
    layers = [maps.upsampled("linear_approx", layer)[0, 0].numpy() for layer in LAYERS]
    found = joined["linear_approx", f"{how}({kind})"][0, 0].numpy()
    np.testing.assert_allclose(found, slow(layers, [1, 2, 3, 4], how), atol=1e-9)


def test_without_a_measurement_it_is_told_how_to_measure() -> None:
    maps = gl.explain(gl.classifier("scenes"), "scenes:20000066", layers=["layer1", "layer3"])
    wanted = "none were measured.*`gradlight evaluate layer_weights --model scenes --data D --layers layer1,layer3`"
    with pytest.raises(GradlightError, match=wanted):
        maps.combine(weights="accuracy")


def test_layers_that_were_not_measured_are_named() -> None:
    kept.keep(measured())
    assert layer_weights("spread", ["layer2", "layer4"], {}, SHA) == pytest.approx([1 / 3, 2 / 3])
    with pytest.raises(GradlightError, match="measured, but not at input, layer9"):
        layer_weights("spread", ["input", "layer2", "layer9"], {}, SHA)
    kept.keep(measured(layers={"layer1": LayerMeasure(1.0, None)}))
    kept.keep(measured(layers={"layer1": LayerMeasure(1.0, None)}, seed=1))
    with pytest.raises(GradlightError, match="none were measured"):
        layer_weights("accuracy", ["layer1"], {}, SHA)


def described(name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "pretrained": True, "num_classes": 1000, **changes}


@pytest.mark.parametrize("kind", ["spread", "accuracy"])
def test_published_weights_are_those_of_the_paper(shared: Path, kind: str) -> None:
    figures = json.loads((shared / "reference" / "published_figures.json").read_text())["layer_weights"]
    asked = "spread (at layer output; 'activation')" if kind == "spread" else kind
    for network in ("resnet50", "vgg16"):
        assert PUBLISHED[network][kind] == figures[asked][network]


@pytest.mark.parametrize("name", ["torchvision/vgg16", "timm/vgg16", "timm/vgg16.tv_in1k", "timm/resnet50.tv_in1k"])
def test_the_papers_networks_take_the_published_weights(name: str) -> None:
    weights = PUBLISHED["vgg16" if "vgg" in name else "resnet50"]["spread"]
    found = layer_weights("spread", list(weights), described(name))
    assert found == pytest.approx(list(weights.values()))
    assert sum(found) == pytest.approx(1)


@pytest.mark.parametrize("name", ["torchvision/resnet50", "timm/resnet50", "timm/resnet50.a1_in1k"])
def test_other_weights_of_the_architecture_take_them_with_a_warning(name: str) -> None:
    with pytest.warns(GradlightWarning, match="which had other weights than"):
        found = layer_weights("accuracy", LAYERS, described(name))
    assert found == pytest.approx(list(PUBLISHED["resnet50"]["accuracy"].values()))


def test_measured_weights_go_before_published_ones() -> None:
    kept.keep(measured())
    assert layer_weights("spread", LAYERS, described("torchvision/resnet50"), SHA) == pytest.approx(
        [0.1, 0.2, 0.3, 0.4]
    )


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (described("torchvision/resnet50"), LAYERS[1:]),
        (described("torchvision/resnet50"), ["input", *LAYERS]),
        (described("torchvision/resnet50", pretrained=False), LAYERS),
        (described("torchvision/resnet50", num_classes=20), LAYERS),
        (described("torchvision/resnet18"), LAYERS),
        (described("timm/resnet50_gn"), LAYERS),
        (described("timm/resnet50.untold"), LAYERS),
        (described("resnet50"), LAYERS),
        (described("ResNet", pretrained=None), LAYERS),
        ({}, LAYERS),
    ],
)
def test_no_other_network_takes_the_published_weights(model: dict[str, Any], layers: list[str]) -> None:
    with pytest.raises(GradlightError, match="must be measured on a data set for this network; none were measured"):
        layer_weights("spread", layers, model)


def test_the_names_of_weights_are_checked_before_any_are_looked_for() -> None:
    for name in ("uniform", "linear", "spread", "accuracy"):
        check_weights(name)
    with pytest.raises(GradlightError, match="Did you mean 'spread'"):
        check_weights("spred")
