"""The pointing game as a whole: against itself played by hand, on scenes, VOC and COCO, killed and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.metrics import COMBINED, is_hit
from gradlight.evaluation.pointing_game import PairHits, class_indices, pointing_game, pointing_measure, pointing_result
from gradlight.evaluation.samples import Sample, Samples, Truth, open_samples
from gradlight.evaluation.tables import Result
from gradlight.evaluation.whole_photo import GridObjective, whole_photos
from gradlight.models.captioner import Captioner, CaptionNetwork, Vocabulary
from gradlight.models.captioner.decoder import SpecialTokens
from gradlight.models.captioner.encoder import ResNetPlan, build_resnet
from gradlight.models.captioner.rnn_decoders import FC
from gradlight.models.class_objective import ClassLabels, parse
from gradlight.models.classifiers import Classifier
from gradlight.models.preprocessing import Preprocessing

METHODS = ["normgrad", "gradient"]
SIDE = 64
STEPS = Preprocessing(size=(SIDE, SIDE), resize=(72, 72))


def ledger() -> Ledger:
    return Ledger(None, {})


def resnet(labels: list[str]) -> Classifier:
    torch.manual_seed(0)
    network = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=len(labels))
    return Classifier(network.eval(), STEPS, name="resnet10", labels=labels)


def photo_of(width: int, height: int) -> Samples:
    """A photo with two classes, one of them in a corner."""
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (height // 10, width // 10, 3), np.uint8)).resize((width, height))
    corner, band = np.zeros((2, height, width), bool)
    corner[: height // 2, : width // 3] = True
    band[:, width // 2 :] = True
    truths = (Truth("cat", corner, (), subset=True), Truth("dog", band, ()))
    return Samples([Sample("one", picture, width, height, truths)], ("cat", "dog"))


def by_hand(model: Classifier, picture: Image.Image, index: int, layer: str) -> tuple[Tensor, Tensor]:
    """Do what TorchRay does, with a head of our own: the map's place (row, column), by normgrad and by gradient."""
    network: Any = model.network
    width, height = picture.size
    size = (int(SIDE * height / min(picture.size)), int(SIDE * width / min(picture.size)))
    levels = torchvision.transforms.functional.to_tensor(torchvision.transforms.functional.resize(picture, list(size)))
    pixels = torchvision.transforms.functional.normalize(levels, STEPS.mean, STEPS.std).unsqueeze(0)
    taken: list[Tensor] = [pixels.requires_grad_()]
    handle = None
    if layer != "input":
        module = network.get_submodule(layer)
        handle = module.register_forward_hook(lambda module, args, output: taken.append(output.retain_grad() or output))
    features: list[Tensor] = []
    last = network.layer4.register_forward_hook(lambda module, args, output: features.append(output))
    network(pixels)
    last.remove()
    if handle is not None:
        handle.remove()
    pooled = F.avg_pool2d(features[0], 2, stride=1)
    grid = torch.einsum("chw,kc->khw", pooled[0], network.fc.weight) + network.fc.bias.view(-1, 1, 1)
    sent = torch.zeros_like(grid)
    sent[index] = grid[index].exp() / grid[index].exp().sum()
    grid.backward(sent.detach())
    x, g = taken[-1].detach(), taken[-1].grad
    assert g is not None
    return x.norm(dim=1) * g.norm(dim=1), g.abs().amax(1)


def place_of(found: Tensor, width: int, height: int, smooth: bool) -> tuple[int, int]:
    over = F.interpolate(found.unsqueeze(0), (height, width), mode="bilinear", align_corners=False)[0, 0]
    if smooth:
        deviation = 0.02 * max(width, height)
        reach = int(np.ceil(4 * deviation))
        weights = [np.exp(-0.5 * (step / deviation) ** 2) for step in range(-reach, reach + 1)]
        for axis, length in ((0, height), (1, width)):
            places = torch.arange(length)
            moved = [over.index_select(axis, (places + s).clamp(0, length - 1)) for s in range(-reach, reach + 1)]
            over = torch.stack([w * m for w, m in zip(weights, moved, strict=True)]).sum(0) / sum(weights)
    place = int(over.argmax())
    return place // width, place % width


@pytest.mark.parametrize(("size", "layer"), [((100, 70), "layer1"), ((70, 110), "layer3"), ((90, 70), "input")])
def test_a_map_points_where_one_made_by_hand_does(size: tuple[int, int], layer: str) -> None:
    """The truth is the one pixel where the map made by hand is largest, and nothing beside it counts."""
    width, height = size
    model, sample = resnet(["dog", "cat"]), photo_of(width, height)[0]
    assert isinstance(sample.image, Image.Image)
    for number, method in enumerate(METHODS):
        truths = []
        for index, label in enumerate(model.labels):
            found = by_hand(model, sample.image, index, layer)[number].detach()
            spot = np.zeros((height, width), bool)
            spot[place_of(found, width, height, smooth=layer == "input")] = True
            truths.append(Truth(label, spot, ()))
        there = Samples([Sample("one", sample.image, width, height, tuple(truths))], ("cat", "dog"))
        played = pointing_game(model, there, method, layer, ledger=ledger(), tolerance=0.5)
        assert played.figures["classes"][f"{method} / {layer}"] == {"cat": [1, 0], "dog": [1, 0]}
        assert played.figures["accuracy"]["centre"]["all"] == 0


def test_the_gradient_sent_back_is_the_spatial_softmax() -> None:
    generator = torch.Generator().manual_seed(0)
    grid = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=generator, requires_grad=True)

    class Grid(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return grid

    objective = GridObjective(Grid(), ClassLabels(list("abc")), parse("b"))
    pixels = torch.zeros(2, 3, 8, 8)
    objective(pixels).sum().backward()
    wanted = torch.zeros_like(grid)
    exponents = grid.detach()[:, 1].exp()
    wanted[:, 1] = exponents / exponents.sum((1, 2), keepdim=True)
    assert grid.grad is not None
    assert torch.allclose(grid.grad, wanted, rtol=1e-12, atol=1e-15)
    assert objective.loss(pixels).shape == (2,)
    parts = GridObjective(Grid(), ClassLabels(list("abc")), parse(["a", "b"])).rows(1, 2, 2)
    assert parts.target_specs == [["b"]]
    assert isinstance(parts, GridObjective)


def test_layers_keep_their_names_and_targets_their_meaning() -> None:
    model = resnet(["dog", "cat"])
    whole = whole_photos(model)
    own = [layer.name for layer in model.layers()]
    assert [layer.name for layer in whole.layers((SIDE, 96))][: len(own) - 1] == own[:-1]
    assert [layer.name for layer in whole.stages()] == [layer.name for layer in model.stages()]
    assert whole.weights_sha256() == model.weights_sha256()
    assert whole.notes == ()
    pixels, photos = whole.read([Image.new("RGB", (90, 60))])
    assert pixels.shape == (1, 3, SIDE, 96)
    assert photos[0].view.box == (0, 0, 90, 60)
    maps = gl.explain(whole, Image.new("RGB", (SIDE, SIDE)), "cat", methods="normgrad", layers="layer3")
    plain = gl.explain(model, maps.images[0].picture(), "cat", methods="normgrad", layers="layer3")
    assert maps.targets[0][0].index == plain.targets[0][0].index == 1


def test_every_player_plays_every_pair() -> None:
    result = pointing_game(resnet(["cat", "dog"]), photo_of(120, 80), METHODS, ledger=ledger())
    single = ["layer1", "layer2", "layer3", "layer4"]
    assert set(result.figures["accuracy"]) == {
        *(f"{method} / {layer}" for method in METHODS for layer in [*single, *COMBINED]),
        "centre",
        "random",
    }
    assert result.figures["pairs"] == {"all": 2, "difficult": 1}
    json.dumps(result.figures, allow_nan=False)
    for counts in result.figures["classes"].values():
        assert [sum(each) for each in counts.values()] == [1, 1]
    corner = photo_of(120, 80)[0].truths[0].mask
    assert result.figures["classes"]["centre"]["cat"] == ([1, 0] if is_hit(corner, 40, 60) else [0, 1])
    assert result.pictures["pointing_game"]().axes


def test_the_bundled_network_points_better_than_chance() -> None:
    """And Grad-CAM falls off away from the last layer, as in the paper."""
    played = pointing_game(
        gl.classifier("scenes"),
        open_samples("scenes", 16),
        ["selective_normgrad", "grad_cam"],
        ["layer1", "layer4"],
        ledger=ledger(),
    )
    accuracy = {name: row["all"] for name, row in played.figures["accuracy"].items()}
    assert accuracy["selective_normgrad / layer4"] > 0.9
    assert accuracy["grad_cam / layer1"] < accuracy["grad_cam / layer4"] - 0.1
    assert accuracy["centre"] < 0.6
    assert accuracy["random"] < 0.6


def test_meta_changes_the_maps_and_not_the_network() -> None:
    model, samples = resnet(["cat", "dog"]), photo_of(120, 80)
    before = model.weights_sha256()
    played = pointing_game(model, samples, "normgrad", "layer3", ledger=ledger(), meta=gl.Meta(lr=0.01))
    assert set(played.figures["accuracy"]) == {"normgrad / layer3", "centre", "random"}
    assert model.weights_sha256() == before


def test_killed_and_resumed_gives_the_same(tmp_path: Path) -> None:
    model, samples = gl.classifier("scenes"), open_samples("scenes", 4)
    whole = pointing_game(model, samples, METHODS, ["layer3", "layer4"], ledger=ledger(), seed=3)
    path = tmp_path / "ledger.jsonl"
    pointing_game(
        model, Samples(samples[:2], samples.labels), METHODS, ["layer3", "layer4"], ledger=Ledger(path, {}), seed=3
    )
    kept = path.read_bytes().splitlines()
    with path.open("ab") as stream:
        stream.write(b'{"key": "torn')
    again = pointing_game(model, samples, METHODS, ["layer3", "layer4"], ledger=Ledger(path, {}), seed=3)
    assert again.figures == whole.figures
    other = pointing_game(model, samples, METHODS, ["layer3", "layer4"], ledger=Ledger(path, {}), seed=4)
    # The finished photos stay as they are, the others follow; another seed is other work.
    lines = path.read_bytes().splitlines()
    assert lines[: len(kept)] == kept
    assert (len(kept), len(lines)) == (1 + 2, 1 + 4 + 4)
    assert other.figures["pairs"] == whole.figures["pairs"]


def test_other_experiments_can_play() -> None:
    play = pointing_measure(gl.classifier("scenes"), open_samples("scenes", 2), ledger=ledger(), name="weights")
    found = play(["normgrad"], ["layer3", "layer4"], lambda maps: maps.joined(maps.combine("uniform", "sum")))
    assert set(found) == {("normgrad", layer) for layer in ("layer3", "layer4", "sum(uniform)")}
    assert all(0 <= share <= 1 for share in found.values())


def test_voc_skips_classes_that_are_flagged_difficult(shared: Path, tmp_path: Path) -> None:
    script = shared / "voc_like" / "make_voc_layout.py"
    subprocess.run([sys.executable, script, shared / "coco128", tmp_path], check=True, capture_output=True)
    rows = open_samples(str(tmp_path), split="test")
    first = next(sample for sample in rows if len(sample.truths) > 1)
    path = tmp_path / "VOCdevkit" / "VOC2007" / "Annotations" / f"{first.key}.xml"
    tree = ElementTree.parse(path)
    for thing in tree.iter("object"):
        if thing.findtext("name") == first.truths[0].label:
            thing.find("difficult").text = "1"  # type: ignore[union-attr]
    tree.write(path)
    everything = open_samples(str(tmp_path), split="test")
    samples = Samples([sample for sample in everything if sample.key == first.key], everything.labels)
    assert [truth.difficult for truth in samples[0].truths] == [True] + [False] * (len(first.truths) - 1)
    played = pointing_game(resnet(list(everything.labels)), samples, "normgrad", "layer3", ledger=ledger())
    truths = [truth for sample in samples for truth in sample.truths]
    assert played.figures["pairs"]["all"] == sum(not truth.difficult for truth in truths) < len(truths)
    # Most classes are not on these photos: TorchRay counts them as 0.
    centre = played.figures["classes"]["centre"]
    wanted = sum(hit / (hit + missed) for hit, missed in centre.values() if hit + missed)
    assert played.figures["torchray_accuracy"]["centre"]["all"] == pytest.approx(wanted / len(everything.labels))
    assert "all, TorchRay's mean" in played.tables[0].columns


def test_coco_is_played_with_its_own_names(shared: Path) -> None:
    samples = open_samples(str(shared / "coco128" / "images"), 3, shared / "coco128" / "instances.json")
    model = resnet([label.replace(" ", "_").title() for label in samples.labels])
    played = pointing_game(model, samples, "normgrad", "layer3", ledger=ledger())
    assert played.figures["pairs"]["all"] == sum(len(sample.truths) for sample in samples)


@pytest.mark.parametrize("kind", ["photo", "own"])
def test_other_networks_play_and_it_is_said(kind: str) -> None:
    torch.manual_seed(0)
    if kind == "photo":
        network = timm.create_model("vit_tiny_patch16_224", num_classes=2, img_size=SIDE, depth=2).eval()
        model = Classifier(network, STEPS, name="tiny", labels=["cat", "dog"])
        said = ["not made fully convolutional", f"photos were squashed to {SIDE} x {SIDE}"]
    else:
        transform = torchvision.transforms.Compose(
            [torchvision.transforms.Resize((SIDE, SIDE)), torchvision.transforms.ToTensor()]
        )
        network = torchvision.models.resnet18(num_classes=2).eval()
        model = gl.classifier(network, labels=["cat", "dog"], preprocess=transform)
        said = ["preprocessing is the user's own"]
    layer = [layer.name for layer in model.layers()][-3]
    played = pointing_game(model, photo_of(120, 80), "normgrad", layer, ledger=ledger())
    notes = " ".join(played.tables[0].notes)
    assert all(part in notes for part in said)
    assert played.figures["pairs"]["all"] == 2


def test_the_published_figures_stand_beside() -> None:
    answers = [PairHits("cat", True, {"grad_cam / layer4": True, "centre": False, "random": False})]
    result: Result = pointing_result(answers, ["cat"], "timm/resnet50", [])
    beside = result.tables[1]
    rows = {str(row[0]): dict(zip(beside.columns, row, strict=True)) for row in beside.rows}
    assert rows["grad_cam"]["best layer, all"] == 100
    assert rows["grad_cam"]["published VOC07 single, all"] == 90.3
    assert rows["grad_cam"]["published COCO difficult"] == 52.3
    assert rows["centre"]["published VOC07 all"] == 69.6
    vgg = pointing_result(answers, ["cat"], "torchvision/vgg16", []).tables[1]
    assert dict(zip(vgg.columns, vgg.rows[0], strict=True))["published VOC07 single, all"] == 86.6


def test_classes_are_found_by_name() -> None:
    assert class_indices(["dining table", "cat"], ["Cat", "dining_table", "cat"]) == {"dining table": 1, "cat": 2}
    with pytest.raises(
        GradlightError, match=r"2 of the 3 classes .* not among the 2 .*: dogs, tv\. Did you mean 'dog'"
    ):
        class_indices(["cat", "dogs", "tv"], ["cat", "dog"])
    with pytest.raises(GradlightError, match="1 of the 1 classes"):
        class_indices(["cat"], ["Cat", "CAT"])


def test_what_cannot_be_played_is_said(shared: Path) -> None:
    samples, model = photo_of(120, 80), resnet(["cat", "dog"])
    with pytest.raises(GradlightError, match="The objects on these photos are unknown"):
        pointing_game(model, open_samples(str(shared / "photos")), METHODS, ledger=ledger())
    with pytest.raises(GradlightError, match="are not among the 1 of the network: dog"):
        pointing_game(resnet(["cat"]), samples, METHODS, ledger=ledger())
    only = pointing_game(resnet(["cat"]), samples, "normgrad", "layer3", ledger=ledger(), classes=["cat"])
    assert only.figures["pairs"]["all"] == 1
    with pytest.raises(GradlightError, match="has no class 'cow'"):
        pointing_game(model, samples, METHODS, ledger=ledger(), classes=["cow"])
    sample = samples[0]
    turned = Samples([Sample("x.jpg", sample.image, 80, 120, sample.truths)], samples.labels)
    with pytest.raises(GradlightError, match=r"x\.jpg: the photo has 120 x 80 pixels, its annotation is of 80 x 120"):
        pointing_game(model, turned, "normgrad", "layer3", ledger=ledger())
    empty = Samples([Sample("x", sample.image, 120, 80)], samples.labels)
    with pytest.raises(GradlightError, match="On 1 photos there is no object to point at"):
        pointing_game(model, empty, "normgrad", "layer3", ledger=ledger())


def test_captioners_are_sent_to_their_own_game() -> None:
    words = Vocabulary({1: "a"}, SpecialTokens(0, 0))
    decoder = FC(SpecialTokens(0, 0), features=16, embed=6, size=7, rows=2, columns=2)
    network = CaptionNetwork(build_resnet(ResNetPlan("basic", (1, 1), (8, 16), 8, "padded")), decoder)
    captioner = Captioner(network.eval(), words, STEPS)
    with pytest.raises(GradlightError, match=r"is no classifier\. Captioners play word_pointing"):
        pointing_game(captioner, photo_of(120, 80), METHODS, ledger=ledger())


def test_progress_is_shown_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    model, samples = resnet(["cat", "dog"]), photo_of(120, 80)
    pointing_game(model, samples, "normgrad", "layer3", ledger=ledger())
    assert capsys.readouterr().err == ""
    pointing_game(model, samples, "normgrad", "layer3", ledger=ledger(), progress=True)
    assert "1/1" in capsys.readouterr().err
