"""Deletion and insertion: curves as they must be, probabilities as the networks say them, the same after a stop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_networks import LAYERS, pixels_of, tiny
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.evaluation import deletion_insertion as module
from gradlight.evaluation.deletion_insertion import area, curve, deletion_insertion
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.samples import Sample, open_samples
from gradlight.evaluation.tables import Result
from gradlight.models.classifiers import Classifier

METHODS = ["gradient", "normgrad"]
COUNT = 3


def run(model: Classifier, ledger: Ledger | None = None, **options: Any) -> Result:
    kept = Ledger(None, {}) if ledger is None else ledger
    return deletion_insertion(model, open_samples("scenes", COUNT), METHODS, LAYERS, ledger=kept, **options)


def test_a_curve_changes_the_first_places_first() -> None:
    order = torch.tensor([5, 0, 1, 2, 3, 4])
    start, end = torch.zeros(3, 2, 3), torch.ones(3, 2, 3)
    seen: list[Tensor] = []

    def score(pixels: Tensor) -> Tensor:
        seen.extend(pixels)
        return pixels.mean((1, 2, 3))

    assert curve(score, start, end, order, 3) == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert torch.equal(seen[1][0], torch.tensor([[1.0, 0, 0], [0, 0, 1]]))
    assert torch.equal(seen[3], end)


def test_an_area_is_that_of_trapezoids() -> None:
    points = np.random.default_rng(0).random(41).tolist()
    assert area(points) == pytest.approx(np.trapezoid(points, np.linspace(0, 1, 41)))
    assert area([1.0, 0.0]) == 0.5
    assert area([1.0, None, 0.0]) is None


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_whole_photo_has_the_classifiers_own_probability(multi_label: bool) -> None:
    model = gl.classifier("scenes") if multi_label else tiny()
    model.network.double()
    sample = open_samples("scenes", 1)
    result = deletion_insertion(model, sample, ["normgrad"], model.stages()[-1].name, ledger=Ledger(None, {}), steps=2)
    probability = model.predict(sample[0].image)[0][0].probability
    for curves in result.figures["curves"].values():
        assert curves["deletion"][0] == pytest.approx(probability, rel=1e-9)
        assert curves["insertion"][-1] == pytest.approx(probability, rel=1e-9)


@pytest.mark.parametrize("part", ["caption", "word"])
def test_the_whole_photo_has_the_captioners_own_probability(part: str) -> None:
    model, sample = gl.captioner("scenes"), open_samples("scenes", 1)
    model.network.double()
    caption = model.caption(sample[0].image)[0]
    target = None if part == "caption" else caption.words[1]
    log = caption.log_prob if part == "caption" else caption.word_log_probs[1]
    result = deletion_insertion(model, sample, ["normgrad"], "layer4", ledger=Ledger(None, {}), target=target, steps=1)
    found = result.figures["curves"]["normgrad / layer4"]
    assert found["deletion"][0] == pytest.approx(math.exp(log), rel=1e-9)
    assert found["insertion"][-1] == pytest.approx(math.exp(log), rel=1e-9)


def test_a_map_of_what_matters_wins_both_games() -> None:
    class Corner(nn.Module):
        """Sees the upper left quarter only."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Conv2d(3, 2, 1, bias=False)
            self.weight.weight.data = torch.tensor([[2.0] * 3, [-2.0] * 3]).view(2, 3, 1, 1)

        def forward(self, pixels: Tensor) -> Tensor:
            found: Tensor = self.weight(pixels.abs()[..., :8, :8]).mean((2, 3))
            return found

    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    model, small = gl.classifier(Corner(), preprocess=pixels_of), [Sample("noise", noise, 32, 32)]
    result = deletion_insertion(model, small, ["gradient"], "input", ledger=Ledger(None, {}), steps=16)
    areas = result.figures["areas"]
    for other in ("random", "centre"):
        assert areas["gradient / input"]["deletion"] < areas[other]["deletion"] - 0.02
        assert areas["gradient / input"]["insertion"] > areas[other]["insertion"] + 0.005


def test_the_photo_to_insert_into_is_blurred_as_much_as_asked() -> None:
    pixels = torch.randn(3, 40, 60, generator=torch.Generator().manual_seed(1))
    spreads = [float(module._blur(pixels, share).std()) for share in (0, 0.02, 0.1, 0.5)]
    assert spreads[0] == pytest.approx(float(pixels.std()))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.1


def test_the_figures_are_means_over_the_images_and_the_seed_decides_chance() -> None:
    result, model = run(tiny(), steps=4), tiny()
    alone = [
        deletion_insertion(model, [sample], METHODS, LAYERS, ledger=Ledger(None, {}), steps=4).figures
        for sample in open_samples("scenes", COUNT)
    ]
    player = "gradient / first"
    wanted = np.mean([figures["areas"][player]["deletion"] for figures in alone])
    assert result.figures["areas"][player]["deletion"] == pytest.approx(wanted)
    again, other = run(tiny(), steps=4, seed=0).figures, run(tiny(), steps=4, seed=1).figures
    assert json.dumps(again) == json.dumps(result.figures)
    assert other["curves"]["random"] != again["curves"]["random"]
    assert other["curves"][player] == again["curves"][player]


def test_a_stopped_run_gives_the_numbers_of_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, calls = tmp_path / "ledger.jsonl", []

    def stops(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return gl.explain(*arguments, **options)

    whole = run(tiny(), steps=4)
    monkeypatch.setattr(module, "explain", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), Ledger(path, {}), steps=4)
    assert len(path.read_bytes().splitlines()) == 3
    assert json.dumps(run(tiny(), Ledger(path, {}), steps=4).figures) == json.dumps(whole.figures)
    assert len(calls) == 4


def test_the_table_and_the_picture_tell_the_figures() -> None:
    result = run(tiny(), steps=2)
    (table,) = result.tables
    assert [row[:2] for row in table.rows] == [
        ["random", None],
        ["centre", None],
        *([method, layer] for method in METHODS for layer in LAYERS),
    ]
    assert table.rows[0][2] == result.figures["areas"]["random"]["deletion"]
    deletion, insertion = result.pictures["deletion_insertion"]().axes
    assert [len(panel.lines) for panel in (deletion, insertion)] == [4, 4]
    best = min((f"gradient / {layer}" for layer in LAYERS), key=lambda name: result.figures["areas"][name]["deletion"])
    assert best in [line.get_label() for line in deletion.lines]


@pytest.mark.parametrize(("count", "steps"), [(0, 4), (1, 0)])
def test_nothing_to_do_is_refused(count: int, steps: int) -> None:
    samples = open_samples("scenes", 1)[:count]
    with pytest.raises(GradlightError, match="at least 1 of each"):
        deletion_insertion(tiny(), samples, METHODS, ledger=Ledger(None, {}), steps=steps)
