"""The experiments from the command line: tables, files, reports that go on, refusals in one line."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from gradlight.cli.experiments import EXPERIMENTS

Run = Callable[..., tuple[int, str, str]]


def test_a_game_is_written_as_a_table_of_any_kind(run: Run, tmp_path: Path) -> None:
    few = ["evaluate", "pointing-game", "--count", 2, "--methods", "normgrad,guided_backprop", "--layers", "layer4"]
    status, shown, _ = run(*few, "-o", tmp_path / "game.json")
    assert status == 0
    assert "| guided_backprop | layer4 |" in shown
    found = json.loads((tmp_path / "game.json").read_text())
    assert found["experiment"] == "pointing_game"
    assert 0 <= found["figures"]["accuracy"]["normgrad / layer4"]["all"] <= 1
    for suffix, begins in ((".md", "**Pointing game: accuracy**"), (".csv", "method,layer,all")):
        assert run(*few, "-o", tmp_path / f"game{suffix}")[0] == 0
        assert (tmp_path / f"game{suffix}").read_text().startswith(begins)


def test_a_report_goes_on_where_it_was(run: Run, tmp_path: Path) -> None:
    few = ["evaluate", "class_sensitivity", "--count", 2, "--methods", "normgrad", "--layers", "layer3"]
    assert run(*few, "--lr", "0.002,0.01", "--out", tmp_path / "whole")[0] == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "torn")
    ledger = tmp_path / "torn" / "ledgers" / "class_sensitivity.jsonl"
    ledger.write_bytes(ledger.read_bytes()[:-20])
    (tmp_path / "torn" / "results.json").unlink()
    assert run(*few, "--lr", "0.002,0.01", "--out", tmp_path / "torn")[0] == 0
    whole, torn = ((tmp_path / name / "results.json").read_bytes() for name in ("whole", "torn"))
    assert whole == torn
    assert "Class sensitivity" in (tmp_path / "torn" / "README.md").read_text()
    status, _, told = run(*few, "--lr", "0.01", "--out", tmp_path / "whole")
    assert status == 2
    assert "lr was" in told


def test_methods_that_a_network_does_not_allow_are_left_out_and_told_of(run: Run) -> None:
    asked = ["evaluate", "class_sensitivity", "--model", "timm/test_vit", "--no-pretrained", "--count", 1]
    status, shown, told = run(*asked, "--layers", "blocks.0")
    assert status == 0
    assert "| normgrad | blocks.0 |" in shown
    assert "guided_backprop |" not in shown
    assert "left out: guided_backprop changes how the gradient passes ReLUs" in told


def test_layer_weights_are_kept_and_used(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLIGHT_LAYER_WEIGHTS", str(tmp_path))
    picture, scene = tmp_path / "out.png", "scenes:20000066"
    status, _, told = run("explain", scene, "--combine", "product:spread", "-o", picture)
    assert status == 2
    assert "gradlight evaluate layer_weights --model scenes" in told
    assert run("evaluate", "layer_weights", "--count", 20, "--methods", "normgrad")[0] == 0
    assert run("explain", scene, "--combine", "product:spread", "-o", picture)[0] == 0
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 500


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pointing_gam"], "Did you mean 'pointing_game'"),
        (["pointing_game", "-o", "table.doc"], ".json, .md or .csv"),
        (["pointing_game", "--data", "nowhere"], "there is no such folder"),
        (["pointing_game", "--count", 1, "--methods", "normgard"], "Did you mean 'normgrad'"),
        (["class_sensitivity", "--lr", "fast"], "'fast' is not a number"),
        (["pointing_game", "--count", 1, "--split", "test"], "takes no split"),
    ],
)
def test_what_cannot_be_evaluated_is_one_line(run: Run, arguments: list[object], message: str) -> None:
    status, shown, told = run("evaluate", *arguments)
    assert (status, shown) == (2, "")
    assert message in told
    assert len(told.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in ("baselines", "meta_analysis")])
def test_every_experiment_runs_on_a_few_scenes(
    run: Run, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GRADLIGHT_LAYER_WEIGHTS", str(tmp_path))
    count = 20 if name == "layer_weights" else 3
    methods = [] if name == "caption_truth" else ["--methods", "selective_normgrad"]
    status, shown, _ = run("evaluate", name, "--count", count, *methods, "-o", tmp_path / "found.json")
    assert status == 0
    assert shown.startswith("**")
    assert _numbers(json.loads((tmp_path / "found.json").read_text())["figures"])


def _numbers(found: object) -> list[float]:
    """List every number in figures, which holds no NaN."""
    if isinstance(found, dict):
        return [number for value in found.values() for number in _numbers(value)]
    if isinstance(found, list):
        return [number for value in found for number in _numbers(value)]
    assert not isinstance(found, float) or math.isfinite(found)
    return [found] if isinstance(found, float) else []
