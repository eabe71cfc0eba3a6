"""`explain`: what `explain` takes, what it gives, what it refuses."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.explainers.aggregation import AGGREGATES
from gradlight.explainers.contributions import Contribution


def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 7),
    ).double()  # fmt: skip


@pytest.fixture(scope="module")
def model() -> object:
    return gl.classifier(network())


PIXELS = torch.rand(4, 3, 16, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_layers_come_from_shallow_to_deep_whatever_the_order_asked(model: object) -> None:
    maps = gl.explain(model, PIXELS, 2, layers=["8", "input", "3"])
    assert maps.layers == ["input", "3", "8"]
    assert [tuple(maps["selective_normgrad", layer].shape) for layer in maps.layers] == [
        (4, 1, 16, 20),
        (4, 1, 16, 20),
        (4, 1, 8, 10),
    ]


def test_stages_all_and_globs(model: object) -> None:
    assert gl.explain(model, PIXELS, 2).layers == ["3", "8"]
    assert gl.explain(model, PIXELS, 2, layers="all").layers == ["input", "0", "1", "2", "3", "4", "5", "6", "7", "8"]
    assert gl.explain(model, PIXELS, 2, layers="[35]").layers == ["3", "5"]
    assert gl.explain(model, PIXELS, 2, layers=["", "3:0"]).layers == ["input", "3"]


def test_the_words_win_over_modules_of_the_same_name() -> None:
    inner = network()
    named = nn.Sequential()
    named.add_module("stages", inner[:9])
    named.add_module("head", inner[9:])
    assert gl.explain(gl.classifier(named), PIXELS, 2).layers == ["stages.3", "stages"]


def test_batches_make_no_difference(model: object) -> None:
    whole = gl.explain(model, PIXELS, [0, 1, 2, 3], methods=["normgrad", "conv3x3+max"])
    for size in (1, 3):
        parts = gl.explain(model, PIXELS, [0, 1, 2, 3], methods=["normgrad", "conv3x3+max"], batch_size=size)
        assert parts.targets[2][0].index == 2
        for key in whole.pairs:
            torch.testing.assert_close(parts[key], whole[key], rtol=1e-12, atol=1e-15)


def test_one_image_in_every_form_it_comes_in(tmp_path: Path) -> None:
    values = np.random.default_rng(2).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    picture.save(tmp_path / "one.png")
    model = gl.classifier(network())
    forms = [tmp_path / "one.png", str(tmp_path / "one.png"), picture, values, [values], model.pixels(picture)]
    found = [gl.explain(model, form, 3, layers="3")["selective_normgrad", "3"] for form in forms]
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert found[0].shape == (1, 1, 224, 224)


def test_none_is_the_top_class(model: object) -> None:
    maps = gl.explain(model, PIXELS)
    with torch.no_grad():
        logits = network().eval()(PIXELS)
    assert [row[0].index for row in maps.targets] == logits.argmax(1).tolist()
    assert [row[0].score for row in maps.targets] == pytest.approx(logits.amax(1).tolist())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": [1, 2, 3]}, "3 targets for 4 images"),
        ({"target": 7}, "7"),
        ({"methods": "nromgrad"}, "Did you mean 'normgrad'"),
        ({"layers": "layer4"}, "No layer is called 'layer4'"),
        ({"layers": "x*"}, "No spatial layer.* matches 'x\\*'"),
        ({"layers": "11"}, "'11' is not spatial.*nearest spatial layer before it is '8'"),
        ({"layers": "3:2"}, "runs 1 times"),
        ({"layers": []}, "No layer was asked for"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"meta": 0.01}, r"meta=0\.01 is no meta step"),
        ({"methods": 5}, "5 is no method"),
        ({"layers": 4}, "Layers are given by name"),
        ({"methods": "cam", "layers": "3"}, "grad_cam"),
        ({"methods": "normgrad_real", "layers": "3"}, "real contributions were asked at '3'.*ReLU"),
    ],
)
def test_what_cannot_be_done_says_why(model: object, given: dict[str, object], message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        gl.explain(model, PIXELS, **{"target": 1, **given})


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (network(), r"this is a Sequential\. Wrap it first: gradlight\.classifier\(network\)"),
        ("timm/resnet50", r"this is 'timm/resnet50'\. Wrap it first: gradlight\.classifier\('timm/resnet50'\)"),
        (None, "this is a NoneType"),
    ],
)
def test_what_is_no_model_says_how_to_make_one(given: object, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        gl.explain(given, PIXELS, 1)


def test_no_image_is_an_error(model: object) -> None:
    with pytest.raises(GradlightError, match="no image to explain"):
        gl.explain(model, [])


@pytest.mark.parametrize("images", [5, None])
def test_what_is_no_image_is_told(model: object, images: object) -> None:
    with pytest.raises(GradlightError, match=f"or a list of these; this is {images!r}"):
        gl.explain(model, images)


def test_a_score_that_is_no_number_is_told() -> None:
    class Odd(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) / 0.0

    with pytest.warns(gl.GradlightWarning, match="2 scores are not finite, the first of 'class_1'"):
        gl.explain(gl.classifier(Odd()), torch.rand(2, 3, 8, 8), 1, layers="input")


def test_a_model_built_under_inference_mode_can_be_explained() -> None:
    with torch.inference_mode():
        maps = gl.explain(gl.classifier("scenes"), np.zeros((160, 160, 3), np.uint8), "star")
    assert maps["selective_normgrad", "layer4"].isfinite().all()


def test_the_way_to_a_map_is_short_and_without_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the comment at the head of explain.py says: seven functions in five files."""
    stack: list[traceback.FrameSummary] = []

    def noting(contribution: Contribution) -> torch.Tensor:
        stack[:] = traceback.extract_stack()
        return contribution.norm[:, 0]

    monkeypatch.setitem(sys.modules, "gradlight.explainers.cache", None)
    monkeypatch.setitem(AGGREGATES, "norm", noting)
    gl.explain(gl.classifier(network()), PIXELS, 2, methods="normgrad")
    ours = [frame for frame in stack if Path(frame.filename).parent.name == "explainers"]
    steps = [
        (Path(frame.filename).stem, frame.name) for frame in ours if Path(frame.filename).name != "test_explain.py"
    ]
    assert steps == [
        ("explain", "explain"),
        ("batch", "run"),
        ("batch", "_from_taps"),
        ("capture", "backward"),
        ("batch", "_receive"),
        ("methods", "__call__"),
    ]


def test_cam_is_the_class_weights_times_the_features(model: object) -> None:
    given = network().eval()
    maps = gl.explain(model, PIXELS, 4, methods="cam", layers="8")
    with torch.no_grad():
        wanted = torch.einsum("k,bkhw->bhw", given[11].weight[4], given[:9](PIXELS))
    torch.testing.assert_close(maps["cam", "8"][:, 0], wanted)


def test_the_origin_tells_what_made_the_maps(model: object) -> None:
    maps = gl.explain(model, PIXELS, 1, meta=gl.Meta(0.01, "ascent"))
    assert maps.origin.meta == {"lr": 0.01, "direction": "ascent"}
    assert len(maps.origin.weights_sha256) == 64
    other = network()
    with torch.no_grad():
        other[0].bias[0] += 1e-9
    assert gl.explain(gl.classifier(other), PIXELS, 1).origin.weights_sha256 != maps.origin.weights_sha256


def test_progress_writes_to_standard_error_only_when_asked(model: object, capsys: pytest.CaptureFixture[str]) -> None:
    gl.explain(model, PIXELS, 1)
    assert capsys.readouterr().err == ""
    gl.explain(model, PIXELS, 1, progress=True)
    assert "4/4" in capsys.readouterr().err
