"""The bundled classifier: its size, its score, its training."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

import gradlight as gl
from gradlight.data.scenes.generator import CLASSES, HELD_OUT, SAMPLES, draw
from gradlight.errors import GradlightError
from gradlight.models.scenes.classifier import (
    MEAN,
    STD,
    average_precision,
    build,
    bundled_path,
    load_bundled,
    mean_average_precision,
    train,
)

BUNDLED = bundled_path().parent


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30), st.randoms())
def test_average_precision_is_its_definition(rows: list[tuple[int, bool]], random: Random) -> None:
    """The sum over all thresholds, from the highest, of the precision times the gain in recall."""
    total, recall, expected = sum(p for _, p in rows), 0.0, 0.0
    for threshold in sorted({s for s, _ in rows}, reverse=True):
        let_in = [p for s, p in rows if s >= threshold]
        gained = sum(let_in) / total - recall if total else float("nan")
        recall += gained
        expected += gained * sum(let_in) / len(let_in)
    random.shuffle(rows)
    found = average_precision(np.array([float(s) for s, _ in rows]), np.array([p for _, p in rows]))
    assert found == pytest.approx(expected, nan_ok=True)


def test_average_precision_of_a_known_ranking() -> None:
    present = np.array([True, False, True, False])
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), present) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision(np.zeros(4), present) == pytest.approx(0.5), "of equal scores none is better"


def test_mean_average_precision_is_of_the_networks_logits_on_the_drawn_scenes() -> None:
    torch.manual_seed(0)
    network = build().train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    mean, each = mean_average_precision(network, HELD_OUT[:70])
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    drawn = [draw(seed) for seed in HELD_OUT[:70]]
    pixels = torch.stack([torch.from_numpy(np.array(scene.image)) for scene in drawn]).permute(0, 3, 1, 2) / 255
    pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    with torch.no_grad():
        scores = network.eval()(pixels).double().numpy()
    for column, name in enumerate(CLASSES):
        present = np.array([name in scene.classes for scene in drawn])
        assert each[name] == pytest.approx(average_precision(scores[:, column], present), abs=0.02)
    assert mean == pytest.approx(np.mean(list(each.values())))


def test_the_network_is_a_plain_timm_resnet_with_sharp_stages() -> None:
    network: Any = build().eval()
    assert isinstance(network.fc, torch.nn.Linear)
    assert network.fc.out_features == len(CLASSES)
    sizes, x = [], network.maxpool(network.act1(network.bn1(network.conv1(torch.zeros(1, 3, 160, 160)))))
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = network.get_submodule(name)(x)
        sizes.append(x.shape[-1])
    assert sizes == [80, 40, 20, 10]


def test_the_weights_are_small_and_say_what_they_are() -> None:
    assert bundled_path().stat().st_size <= 3_000_000
    with safe_open(bundled_path(), "pt") as file:
        facts = {key: json.loads(value) for key, value in file.metadata().items()}
    assert facts["classes"] == CLASSES
    assert facts["size"] == 160
    assert facts["mean_average_precision"] >= 0.97


def test_it_knows_held_out_scenes() -> None:
    mean, each = mean_average_precision(load_bundled(), HELD_OUT[5000:5300])
    assert mean >= 0.97
    assert list(each) == CLASSES


@pytest.mark.slow
def test_the_score_in_the_file_is_reproduced() -> None:
    with safe_open(bundled_path(), "pt") as file:
        facts = file.metadata()
    mean, _ = mean_average_precision(load_bundled(), HELD_OUT[: json.loads(facts["held_out_scenes"])])
    assert mean == pytest.approx(json.loads(facts["mean_average_precision"]), abs=2e-3)


def test_the_samples_are_scenes_bit_for_bit() -> None:
    samples = json.loads((BUNDLED / "scenes.json").read_text())["scenes"]
    assert tuple(sample["seed"] for sample in samples) == SAMPLES
    for sample in samples:
        scene = draw(sample["seed"])
        assert Image.open(BUNDLED / sample["file"]).tobytes() == scene.image.tobytes()
        assert sample["classes"] == scene.classes
        assert sample["captions"] == scene.captions


def test_maps_of_the_samples_lie_on_the_objects() -> None:
    """The strongest place of the combined map lies, nearly always, on an object of the class that was asked."""
    model, hits = gl.classifier("scenes"), []
    for scene in map(draw, HELD_OUT[:12]):
        maps = gl.explain(model, scene.image, [scene.classes]).combine()["selective_normgrad", "product(linear)"][0]
        for name, saliency in zip(scene.classes, maps, strict=True):
            row, column = divmod(int(saliency.argmax()), 160)
            hits.append(scene.mask(name)[row, column])
    assert np.mean(hits) >= 0.8, f"{sum(hits)} of {len(hits)}"


@pytest.mark.slow
def test_training_learns(tmp_path: Path) -> None:
    untrained, _ = mean_average_precision(build(), HELD_OUT[:200])
    report = train(tmp_path / "scenes.safetensors", epochs=2, count=640, held_out=200)
    assert report.mean_average_precision > untrained + 0.2


def test_a_short_training_writes_what_loads_and_comes_out_the_same_again(tmp_path: Path) -> None:
    path = tmp_path / "scenes.safetensors"
    report = train(path, epochs=1, count=64, held_out=32, workers=1)
    assert "1 epochs of 64 scenes" in str(report)
    network = gl.classifier("scenes", checkpoint=path).network
    assert network.state_dict().keys() == build().state_dict().keys()
    assert not torch.equal(network.state_dict()["fc.weight"], load_bundled().state_dict()["fc.weight"])
    again = tmp_path / "again.safetensors"
    assert train(again, epochs=1, count=64, held_out=32, workers=2) == report
    one, two = load_file(path), load_file(again)
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()))


def test_training_leaves_the_random_numbers_of_others_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(tmp_path / "scenes.safetensors", epochs=1, count=64, held_out=1, workers=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        ("missing/scenes.safetensors", {}, "there is no folder"),
        (".", {}, "is a folder"),
        ("scenes.safetensors", {"epochs": 0}, "at least 1 epoch"),
        ("scenes.safetensors", {"count": 63}, "64 scenes"),
        ("scenes.safetensors", {"held_out": 0}, "1 held-out scene"),
    ],
)
def test_a_training_that_cannot_end_well_is_refused_at_once(
    tmp_path: Path, file: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(GradlightError, match=message):
        train(tmp_path / file, **options)
    assert not list(tmp_path.iterdir())
