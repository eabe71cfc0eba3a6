"""Weight randomisation: ρ as it comes out by hand, the network untouched, the same numbers after a stop."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats
from tiny_networks import LAYERS, Tiny, pixels_of, tiny
from torch import nn

import gradlight as gl
from gradlight.data.scenes.generator import HELD_OUT, draw
from gradlight.errors import GradlightError, GradlightWarning
from gradlight.evaluation import weight_randomisation as module
from gradlight.evaluation.fixed_targets import FixedTargetModel, copy_model
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.metrics import focus
from gradlight.evaluation.samples import open_samples
from gradlight.evaluation.tables import Result
from gradlight.evaluation.weight_randomisation import (
    StepMaps,
    draw_strip,
    randomise,
    weight_randomisation,
    weighted_modules,
)
from gradlight.models.classifiers import Classifier

METHODS = ["linear_approx", "normgrad"]
COUNT = 9
SAMPLES = [
    replace(sample, image=np.asarray(draw(seed).image))
    for seed, sample in zip(HELD_OUT, open_samples("scenes", COUNT), strict=False)
]
STEPS = ["(the network)", "head", "second", "norm", "first"]


def run(model: Classifier, ledger: Ledger | None = None, **options: Any) -> Result:
    kept = Ledger(None, {}) if ledger is None else ledger
    return weight_randomisation(model, SAMPLES, METHODS, LAYERS, ledger=kept, seed=4, **options)


@pytest.fixture(scope="module")
def result() -> Result:
    return run(tiny(), meta=gl.Meta(0.01))


def slowly(changed: Classifier, meta: gl.Meta | None) -> tuple[float, float]:
    """Hold the maps of a changed network against the trained one's, photo by photo; and their absolute values."""
    found = []
    for sample in SAMPLES:
        top = tiny().predict(sample.image)[0][0].index
        maps = [
            gl.explain(each, sample.image, top, methods=METHODS[0], layers=LAYERS[1], meta=meta)
            for each in (tiny(), changed)
        ]
        flat = [each.upsampled(METHODS[0], LAYERS[1]).double().flatten().numpy() for each in maps]
        found.append([stats.spearmanr(*each).statistic for each in (flat, np.abs(flat))])
    plain, absolute = np.mean(found, 0).tolist()
    return plain, absolute


@pytest.mark.parametrize("mode", ["cascading", "independent"])
@pytest.mark.parametrize("variant", ["plain", "meta"])
def test_rho_is_what_comes_out_by_hand(result: Result, mode: str, variant: str) -> None:
    found = result.figures["modes"][mode]
    changed = tiny()
    for step, name in enumerate(STEPS):
        if mode == "independent":
            changed = tiny()
        key = "" if name == STEPS[0] else name
        randomise(changed.network.get_submodule(key), key, seed=4)
        wanted = slowly(changed, gl.Meta(0.01) if variant == "meta" else None)
        given = [found[kind][variant][METHODS[0]][LAYERS[1]][step] for kind in ("rho", "rho_abs")]
        # Ranks of values that interpolation brings close together hang on the last bit.
        assert given == pytest.approx(wanted, abs=2e-3)


def test_every_module_has_its_turn_from_the_last_to_the_first(result: Result) -> None:
    for found in result.figures["modes"].values():
        assert found["steps"] == STEPS
        lengths = {len(rho) for layers in found["rho"]["plain"].values() for rho in layers.values()}
        assert lengths == {len(STEPS)}


def test_the_model_is_left_bit_for_bit_as_it_was() -> None:
    model = tiny()
    before = copy.deepcopy(model.network.state_dict())
    torch.manual_seed(11)
    numbers = torch.get_rng_state()
    run(model)
    after = model.network.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(module._forward_hooks for module in model.network.modules())
    assert torch.equal(torch.get_rng_state(), numbers)


def test_a_stopped_run_gives_the_numbers_of_one_that_was_not(
    result: Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, done = tmp_path / "ledger.jsonl", 0

    def stops(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done > 17:
            raise KeyboardInterrupt
        return gl.explain(*arguments, **options)

    monkeypatch.setattr(module, "explain", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), Ledger(path, {}), meta=gl.Meta(0.01))
    kept = path.read_bytes()
    done = -10_000
    again = run(tiny(), Ledger(path, {}), meta=gl.Meta(0.01))
    assert path.read_bytes().startswith(kept)
    assert len(kept.splitlines()) > 2
    assert json.dumps(again.figures) == json.dumps(result.figures)


def test_the_tables_and_pictures_tell_the_figures(result: Result) -> None:
    cascading, independent, focused = result.tables
    found = result.figures["modes"]["cascading"]
    assert [row[:3] for row in cascading.rows][:2] == [["linear_approx", layer, "plain"] for layer in LAYERS]
    assert cascading.rows[0][7] == found["rho"]["plain"]["linear_approx"]["first"][-1]
    lows = result.figures["modes"]["independent"]["rho"]["plain"]["linear_approx"]["first"]
    assert independent.rows[0][-2:] == [min(lows), STEPS[lows.index(min(lows))]]
    assert focused.rows[0][3] == result.figures["focus"]["plain"]["linear_approx"]["first"][0]
    assert set(result.pictures) == {"cascading_curves", "independent_curves", "strip"}
    strip = result.pictures["strip"]()
    assert isinstance(strip, Figure)
    # Two methods with and without the step; photo, trained, five steps.
    assert len(strip.axes) == 4 * 7
    assert len(result.pictures["cascading_curves"]().axes) == len(LAYERS)


def test_the_strip_shows_each_method_where_its_map_says_something() -> None:
    """Before a mean over the image every gradient is one number, or rounding; at the pixels there are other methods."""
    methods = ["gradient", "gradient_sum", "linear_approx", "occlusion"]
    maps = gl.explain(
        gl.classifier("scenes"), f"scenes:{HELD_OUT[0]}", methods=methods, layers=["input", "layer3", "layer4"]
    )
    drawing = draw_strip([StepMaps("trained", {"plain": maps})])
    titles = [panel.get_title() for panel in drawing.axes[::2]]
    assert titles == ["gradient\nlayer3", "gradient_sum\nlayer3", "linear_approx\nlayer4", "occlusion\ninput"]
    assert {panel.get_title() for panel in drawing.axes[1::2]} == {"trained"}


@pytest.mark.parametrize(
    ("count", "modes", "message"), [(0, ["cascading"], "no sample"), (1, ["cascade"], "Did you mean 'cascading'")]
)
def test_what_cannot_be_is_refused(count: int, modes: list[str], message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        weight_randomisation(tiny(), open_samples("scenes", 1)[:count], METHODS, ledger=Ledger(None, {}), modes=modes)


def test_modules_are_found_in_the_order_in_which_they_run() -> None:
    network = nn.Sequential(nn.Flatten(2), nn.Linear(16, 8), nn.MultiheadAttention(8, 2))
    model = tiny()
    maps = gl.explain(model, open_samples("scenes", 1)[0].image, layers="second")
    pixels = model.pixels([open_samples("scenes", 1)[0].image])
    found = weighted_modules(FixedTargetModel(model).objective(maps.targets), pixels, maps.targets)
    assert found == ["first", "norm", "second", "head", ""]
    attending = gl.classifier(_Attending(network), preprocess=pixels_of)
    with pytest.warns(GradlightWarning, match="other images of its batch"):  # its first axis is the sequence
        maps = gl.explain(attending, pixels, layers="input")
    found = weighted_modules(FixedTargetModel(attending).objective(maps.targets), pixels, maps.targets)
    assert found == ["parts.1", "parts.2.out_proj", "parts.2"]


class _Attending(nn.Module):
    def __init__(self, parts: nn.Sequential) -> None:
        super().__init__()
        self.parts = parts

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        tokens = self.parts[1](self.parts[0](pixels[..., :4, :4]))
        return self.parts[2](tokens, tokens, tokens, need_weights=False)[0].mean(1)


def test_weights_are_those_of_the_name_and_seed_whenever_their_turn_is() -> None:
    made = []
    for others in ([], ["first", ""]):
        network = tiny().network
        for name in [*others, "second"]:
            randomise(network.get_submodule(name), name, seed=1)
        made.append(network.second.weight.detach().clone())
    assert torch.equal(*made)
    assert not torch.equal(made[0], tiny().network.second.weight)
    other = tiny().network
    randomise(other.second, "second", seed=2)
    assert not torch.equal(made[0], other.second.weight)


def test_norms_lose_their_statistics_and_loose_parameters_keep_theirs() -> None:
    network = tiny().network
    assert isinstance(network, Tiny)
    randomise(network.norm, "norm", 0)
    assert torch.equal(network.norm.running_mean, torch.zeros(8))
    loose = nn.Module()
    loose.weight = nn.Parameter(torch.randn(4000) * 3 + 5)
    before = loose.weight.detach().clone()
    randomise(loose, "loose", 0)
    assert abs(float(torch.corrcoef(torch.stack([before, loose.weight.detach()]))[0, 1])) < 0.1
    assert float(loose.weight.detach().mean()) == pytest.approx(5, abs=0.3)
    assert float(loose.weight.detach().std()) == pytest.approx(3, abs=0.3)


def test_a_pinned_captioner_is_asked_for_the_very_caption_of_another() -> None:
    model = gl.captioner("scenes")
    images = [sample.image for sample in open_samples("scenes", 2)]
    first = gl.explain(model, images, layers="layer4")
    changed = copy_model(model)
    randomise(changed.network.get_submodule("decoder.logit"), "decoder.logit", 0)
    assert changed.caption(images[0])[0].text != model.caption(images[0])[0].text
    again = gl.explain(FixedTargetModel(changed), images, first.targets, layers="layer4")
    assert [row[0].tokens for row in again.targets] == [row[0].tokens for row in first.targets]
    same = gl.explain(FixedTargetModel(model), images, first.targets, layers="layer4")
    key = ("selective_normgrad", "layer4")
    assert torch.equal(same[key], first[key])
    assert again.targets[0][0].score < first.targets[0][0].score
    with pytest.raises(GradlightError, match="2 rows of targets for 1 images"):
        gl.explain(FixedTargetModel(model), images[:1], first.targets, layers="layer4")


def test_focus_is_one_by_chance() -> None:
    mask = np.zeros((10, 10), bool)
    mask[:5, :5] = True
    values = torch.rand(10, 10, dtype=torch.float64)
    assert focus(torch.ones(10, 10), mask) == pytest.approx(1)
    assert focus(torch.from_numpy(mask).float() - 5 * torch.from_numpy(~mask).float(), mask) == pytest.approx(4)
    assert focus(values, mask) == pytest.approx(float(values[:5, :5].sum() / values.sum()) * 4)
    assert np.isnan(focus(-torch.ones(10, 10), mask))
    assert np.isnan(focus(torch.ones(10, 10), np.zeros((10, 10), bool)))


@pytest.mark.slow
def test_the_bundled_network_loses_its_focus() -> None:
    result = weight_randomisation(
        gl.classifier("scenes"),
        open_samples("scenes", 4),
        METHODS,
        "layer4",
        ledger=Ledger(None, {}),
        modes=["cascading"],
    )
    for method in METHODS:
        before = result.figures["focus"]["plain"][method]["layer4"][0]
        after = result.figures["modes"]["cascading"]["focus"]["plain"][method]["layer4"][-1]
        assert after < before - 1 / 2
