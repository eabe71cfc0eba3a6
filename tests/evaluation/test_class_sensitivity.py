"""Class sensitivity: ρ as scipy has it and as the peers found it, constant maps left out, the same after a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.evaluation import class_sensitivity as module
from gradlight.evaluation.class_sensitivity import class_sensitivity, correlations
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.metrics import map_correlation
from gradlight.evaluation.samples import open_samples
from gradlight.evaluation.tables import Result

METHODS = ["linear_approx", "normgrad", "gradient"]
LAYERS = ["layer2", "layer4"]
COUNT = 3


@pytest.fixture(scope="module")
def result() -> Result:
    return run(Ledger(None, {}))


def run(ledger: Ledger) -> Result:
    model = gl.classifier("scenes")
    return class_sensitivity(model, open_samples("scenes", COUNT), METHODS, LAYERS, ledger=ledger, rates=[0.002, 0.01])


def slowly(method: str, layer: str, rate: float) -> list[float]:
    """Correlate image by image, each class in a call of its own."""
    model, found = gl.classifier("scenes"), []
    for sample in open_samples("scenes", COUNT):
        ranked = model.predict(sample.image, top=16)[0]
        pair = [
            gl.explain(
                model, sample.image, at.index, methods=method, layers=layer, meta=gl.Meta(rate) if rate else None
            )
            for at in (ranked[0], ranked[-1])
        ]
        flat = [maps.upsampled(method, layer, (160, 160)).double().flatten().numpy() for maps in pair]
        found.append(float(stats.spearmanr(*flat).statistic))
    return found


@pytest.mark.parametrize("method", METHODS[:2])
@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_the_means_are_scipys(result: Result, method: str, rate: float) -> None:
    rows = {(row["method"], row["layer"], row["lr"]): row for row in result.figures["correlations"]}
    for layer in LAYERS:
        wanted, row = slowly(method, layer, rate), rows[method, layer, rate]
        # Ranks of values that interpolation brings close together hang on the last bit.
        assert row["mean"] == pytest.approx(np.mean(wanted), abs=2e-4)
        assert row["mean_absolute"] == pytest.approx(np.abs(wanted).mean(), abs=2e-4)
        assert row["std"] == pytest.approx(np.std(wanted), abs=2e-4)
        assert (row["images"], row["constant"]) == (COUNT, 0)


def test_constant_maps_are_counted_and_left_out(result: Result) -> None:
    """The gradient before global average pooling is the same everywhere."""
    rows = [row for row in result.figures["correlations"] if (row["method"], row["layer"]) == ("gradient", "layer4")]
    assert [(row["lr"], row["images"], row["constant"], row["mean"]) for row in rows] == [
        (rate, 0, COUNT, None) for rate in (0.0, 0.002, 0.01)
    ]
    table = {(row[0], row[1]): row for row in result.tables[0].rows}
    assert table["gradient", "layer4"][2:] == [*[None] * 6, 3 * COUNT]
    assert table["gradient", "layer2"][-1] == 0


def test_rounding_is_no_map() -> None:
    """Before the mean over the image a gradient is one number; its sum over channels rounds otherwise at each place."""
    samples = open_samples("scenes", 8)
    found = class_sensitivity(
        gl.classifier("scenes"), samples, ["gradient_sum"], LAYERS, ledger=Ledger(None, {}), rates=[0.002]
    )
    plain = {row["layer"]: row for row in found.figures["correlations"] if not row["lr"]}
    assert plain["layer4"]["mean"] is None
    assert plain["layer2"]["mean"] is not None


def test_a_constant_map_is_judged_before_it_is_made_larger() -> None:
    flat, other = torch.full((1, 1, 7, 7), 0.3), torch.rand(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    assert map_correlation(flat, other, (224, 224)).isnan().all()
    assert map_correlation(other, flat, (224, 224)).isnan().all()
    assert float(map_correlation(other, other, (224, 224))) == pytest.approx(1)


@pytest.mark.parametrize("case", ["combine_resnet18_A", "combine_resnet18_B"])
def test_correlations_are_the_peers(shared: Path, case: str) -> None:
    folder = shared / "oracles" / "classifiers" / "combine"
    about, arrays = json.loads((folder / f"{case}.json").read_text()), np.load(folder / f"{case}.npz")
    compared = 0
    for key, wanted in about["similarity"].items():
        name, layer = key.split("/")
        known = key not in ("gradient/layer4", "gradient_sum/layer4", "norm_grad/layer4")
        if known and wanted["spearman_up112"] is not None:
            pair = [
                torch.from_numpy(arrays[f"{name}|{which}/{layer}/raw"]).reshape(
                    1, 1, *arrays[f"{name}|{which}/{layer}/raw"].shape[-2:]
                )
                for which in ("maxclass", "minclass")
            ]
            assert float(map_correlation(*pair, (112, 112))) == pytest.approx(wanted["spearman_up112"], abs=1e-4), key
            compared += 1
    assert compared >= 15


def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(Ledger(tmp_path / "whole.jsonl", {})).figures == result.figures
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:20])
    asked: list[float] = []
    correlate = module._correlate
    monkeypatch.setattr(module, "_correlate", lambda *args: asked.append(args[-1]) or correlate(*args))
    assert run(Ledger(tmp_path / "torn.jsonl", {})).figures == result.figures
    assert asked == [0.002, 0.01, 0.0, 0.002, 0.01]  # of 3 images × 3 steps, 4 were done


def test_pictures_show_the_means_with_and_without_the_inner_step(result: Result) -> None:
    assert set(result.pictures) == {"class_sensitivity", "meta_saliency_lr0.002", "meta_saliency_lr0.01"}
    rows = {(row["method"], row["layer"], row["lr"]): row["mean"] for row in result.figures["correlations"]}
    lines = result.pictures["meta_saliency_lr0.01"]().axes[0].get_lines()
    drawn = {str(line.get_label()): (line.get_linestyle(), np.asarray(line.get_ydata())) for line in lines}
    for method in METHODS:
        for rate, style, label in ((0.0, "-", method), (0.01, "--", f"{method}, meta lr 0.01")):
            wanted = [np.nan if rows[method, layer, rate] is None else rows[method, layer, rate] for layer in LAYERS]
            assert drawn[label][0] == style
            np.testing.assert_array_equal(drawn[label][1], wanted)
    assert not any(
        "meta" in str(line.get_label()) for line in result.pictures["class_sensitivity"]().axes[0].get_lines()
    )


def test_correlations_are_of_the_two_targets() -> None:
    maps = gl.explain(gl.classifier("scenes"), "scenes:20000066", [["top", "top"]], methods="normgrad", layers="layer2")
    assert correlations(maps)["normgrad", "layer2"] == pytest.approx(1)


def test_a_captioner_and_no_images_are_refused() -> None:
    samples = open_samples("scenes", 1)
    with pytest.raises(GradlightError, match="needs a classifier, and 'scenes' is none"):
        class_sensitivity(gl.captioner("scenes"), samples, METHODS, ledger=Ledger(None, {}))
    with pytest.raises(GradlightError, match="no image to compare"):
        class_sensitivity(gl.classifier("scenes"), [], METHODS, ledger=Ledger(None, {}))
