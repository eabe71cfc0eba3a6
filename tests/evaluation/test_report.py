"""The report: a folder that can be read, resumed to the same bytes, and conclusions that follow from the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from tiny_networks import LAYERS, tiny

from gradlight.errors import GradlightError
from gradlight.evaluation.class_sensitivity import class_sensitivity
from gradlight.evaluation.identity_trick import identity_trick
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.pointing_game import pointing_game
from gradlight.evaluation.report import Experiment, conclusions, write_report
from gradlight.evaluation.samples import open_samples
from gradlight.evaluation.tables import Result, Table
from gradlight.evaluation.weight_randomisation import weight_randomisation

ABOUT = {"model": "tiny", "seed": 1}


def drawn() -> Figure:
    drawing = Figure(figsize=(1, 1))
    drawing.subplots().plot([1, 2])
    return drawing


def counting(name: str, work: list[str], stop: str = "") -> Experiment:
    """Make an experiment of three units of work, which tells what it does and stops at one of them."""

    def unit(key: str) -> float:
        work.append(key)
        if key == stop:
            raise KeyboardInterrupt
        return len(key) / 3

    def run(ledger: Ledger) -> Result:
        values = [
            ledger.once(key, lambda key=key: unit(key)) for key in (f"{name} one", f"{name} two", f"{name} three")
        ]
        table = Table(f"All of {name}", ["value"], [[value] for value in values])
        return Result(name, {"values": values}, [table], {name: drawn, "closer": drawn})

    return Experiment(name, run, {"steps": 3})


def test_a_report_holds_every_table_figure_and_picture(tmp_path: Path) -> None:
    told: list[str] = []
    results = write_report(
        [counting(name, []) for name in ("first_one", "other")], tmp_path / "report", settings=ABOUT, notify=told.append
    )
    assert [result.name for result in results] == ["first_one", "other"]
    assert told == ["1 of 2: first_one", "2 of 2: other"]
    text = (tmp_path / "report" / "README.md").read_text()
    for part in (
        "model: tiny, seed: 1.",
        "## First one",
        "**All of other**",
        "| 3.667 |",
        "steps: 3.",
    ):
        assert part in text
    for picture in ("first_one.png", "first_one_closer.png", "other.png", "other_closer.png"):
        assert f"(figures/{picture})" in text
        assert (tmp_path / "report" / "figures" / picture).read_bytes().startswith(b"\x89PNG")
    kept = json.loads((tmp_path / "report" / "results.json").read_text())
    assert kept["experiments"]["other"]["figures"] == {"values": [9 / 3, 9 / 3, 11 / 3]}
    assert kept["experiments"]["other"]["tables"][0]["rows"] == [[3.0], [3.0], [11 / 3]]
    assert len(kept["conclusions"]) == 5


def test_a_stopped_report_goes_on_and_ends_as_one_that_was_not(tmp_path: Path) -> None:
    work: list[str] = []
    names = ("first", "other")
    with pytest.raises(KeyboardInterrupt):
        write_report([counting(name, work, stop="other two") for name in names], tmp_path / "report", settings=ABOUT)
    assert "## First" in (tmp_path / "report" / "README.md").read_text()
    work.clear()
    write_report([counting(name, work) for name in names], tmp_path / "report", settings=ABOUT)
    assert work == ["other two", "other three"]
    write_report([counting(name, []) for name in names], tmp_path / "whole", settings=ABOUT)
    files = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole").rglob("*") if path.is_file())
    assert len(files) == 2 + 2 + 4
    for path in files:
        assert (tmp_path / "report" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def test_other_settings_and_other_peoples_folders_are_refused(tmp_path: Path) -> None:
    write_report([counting("first", [])], tmp_path / "report", settings=ABOUT)
    with pytest.raises(GradlightError, match="seed was 1, is 2"):
        write_report([counting("first", [])], tmp_path / "report", settings={**ABOUT, "seed": 2})
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(GradlightError, match="would be overwritten"):
        write_report([counting("first", [])], tmp_path, settings=ABOUT)
    assert (tmp_path / "README.md").read_text() == "mine"
    with pytest.raises(GradlightError, match="cannot be created"):
        write_report([counting("first", [])], tmp_path / "no" / "where", settings=ABOUT)
    with pytest.raises(GradlightError, match="each once; asked: first, first"):
        write_report([counting("first", []), counting("first", [])], tmp_path / "twice", settings=ABOUT)


def test_the_experiments_own_figures_are_understood(tmp_path: Path) -> None:
    model, samples = tiny(), open_samples("scenes", 3)
    methods = ["grad_cam", "linear_approx"]
    experiments = [
        Experiment("pointing_game", lambda ledger: pointing_game(model, samples, methods, LAYERS, ledger=ledger)),
        Experiment(
            "class_sensitivity", lambda ledger: class_sensitivity(model, samples, methods, LAYERS, ledger=ledger)
        ),
        Experiment("identity_trick", lambda ledger: identity_trick(model, samples, ["first"], ledger=ledger)),
        Experiment(
            "weight_randomisation", lambda ledger: weight_randomisation(model, samples, methods, LAYERS, ledger=ledger)
        ),
    ]
    found = conclusions(write_report(experiments, tmp_path / "report", settings={}))
    assert all(conclusion.holds is not None for conclusion in found)
    told = " ".join(conclusion.figures for conclusion in found)
    for part in ("grad_cam: first ", ": sum(", "lr 0.002", "first 0.", "maps at the end"):
        assert part in told


def made(name: str, **figures: Any) -> Result:
    return Result(name, figures, [])


def holds(*results: Result) -> list[bool | None]:
    return [conclusion.holds for conclusion in conclusions(results)]


def test_nothing_is_concluded_from_nothing() -> None:
    assert holds() == [None] * 5
    assert [conclusion.figures for conclusion in conclusions([])] == ["not measured"] * 5


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [({"a": 0.2, "b": 0.3, "c": 0.9}, True), ({"a": 0.2, "b": 0.9, "c": 0.9}, False), ({"c": 0.9}, None)],
)
def test_grad_cam_is_best_at_its_last_layer_or_not(accuracies: dict[str, float], expected: bool | None) -> None:
    played = {f"grad_cam / {layer}": {"all": value} for layer, value in accuracies.items()}
    others = {"grad_cam / sum(linear)": {"all": 1.0}, "centre": {"all": 1.0}, "random": {"all": 0.1}}
    assert holds(made("pointing_game", accuracy={**played, **others}))[0] is expected


@pytest.mark.parametrize(("joined", "expected"), [(0.8, True), (0.7, False), (0.6, False)])
def test_a_combination_beats_the_best_layer_or_not(joined: float, expected: bool) -> None:
    played = {"linear_approx / a": 0.5, "linear_approx / b": 0.7, "gradient / a": 0.9}
    found = conclusions([made("layer_weights", pointing={**played, "linear_approx / product(spread)": joined})])[1]
    assert found.holds is expected
    assert f"product(spread) {joined:.1%}, best single layer b 70.0%" in found.figures
    assert holds(made("layer_weights", pointing=played))[1] is None
    # Equal weights are no weighting.
    assert holds(made("layer_weights", pointing={**played, "linear_approx / sum(uniform)": 0.9}))[1] is None


def test_it_is_said_what_chance_may_do() -> None:
    played = {"linear_approx / a": {"all": 0.5}, "linear_approx / sum(linear)": {"all": 0.6}}
    found = conclusions([made("pointing_game", accuracy=played, pairs={"all": 100})])[1]
    # √(0.25/100 + 0.24/100) = 0.07
    assert found.figures.endswith("; +10.0 points, where two standard errors of 100 pairs are 14.0")


@pytest.mark.parametrize(("stepped", "expected"), [([0.1, 0.3], True), ([0.0, 0.6], False), ([0.5, 0.6], False)])
def test_meta_saliency_lowers_rho_or_not(stepped: list[float], expected: bool) -> None:
    rows = [
        {"method": "m", "layer": layer, "lr": lr, "mean_absolute": value}
        for lr, values in ((0.0, [0.4, 0.5]), (0.002, stepped))
        for layer, value in zip("ab", values, strict=True)
    ]
    assert holds(made("class_sensitivity", correlations=rows))[2] is expected
    assert holds(made("class_sensitivity", correlations=rows[:2]))[2] is None


@pytest.mark.parametrize(("least", "expected"), [(0.9, True), (0.899, False), (None, True)])
def test_the_identity_is_the_real_convolution_or_not(least: float | None, expected: bool) -> None:
    rows = {"a": {"mean": 0.99}, "b": {"mean": least}}
    assert holds(made("identity_trick", correlations=rows))[3] is expected


@pytest.mark.parametrize(
    ("before", "after", "rho", "expected"),
    [(4.0, 1.2, 0.9, True), (1.1, 1.2, 0.1, False), (None, None, 0.3, True), (None, None, 0.6, False)],
)
def test_focus_is_lost_or_not(before: float | None, after: float | None, rho: float, expected: bool) -> None:
    def at(*values: float | None) -> dict[str, Any]:
        return {"plain": {"m": {"a": list(values)}}}

    cascade = {"focus": at(9.0, after), "rho": at(1.0, rho)}
    assert holds(made("weight_randomisation", focus=at(before), modes={"cascading": cascade}))[4] is expected
    assert holds(made("weight_randomisation", focus=at(before), modes={"independent": cascade}))[4] is None
