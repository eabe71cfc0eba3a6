"""The analysis of meta-saliency: a training that can be stopped anywhere, and ρ as it comes out by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats

import gradlight as gl
from gradlight.data.scenes.generator import HELD_OUT, TRAINING, draw
from gradlight.errors import GradlightError
from gradlight.evaluation import meta_analysis as module
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.meta_analysis import EpochTraining, classifier_at_epoch, meta_analysis, train_epochs
from gradlight.evaluation.tables import Result
from gradlight.models.scenes.classifier import Training, build, draw_many

TRAINING_RUN = EpochTraining(epochs=2, scenes=64, seed=3)
METHODS = ["normgrad", "selective_normgrad"]
LAYERS = ["layer3", "layer4"]
IMAGES = 2


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw in this process, and few scenes: the processes that draw are the training's own test's matter."""
    drawn = draw_many(TRAINING[:64])
    monkeypatch.setattr(module, "draw_in_parallel", lambda seeds, workers, progress: drawn)
    monkeypatch.setattr(module, "_PRECISION", 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        drawn = draw_many(TRAINING[:64])
        patch.setattr(module, "draw_in_parallel", lambda seeds, workers, progress: drawn)
        other_folder = tmp_path_factory.mktemp("kept") / "epochs"
        train_epochs(other_folder, TRAINING_RUN)
    return other_folder


def run(folder: Path, ledger: Ledger) -> Result:
    return meta_analysis(folder, METHODS, LAYERS, ledger=ledger, training=TRAINING_RUN, images=IMAGES, lr=0.01)


def test_the_weights_before_and_after_every_epoch_are_kept(folder: Path) -> None:
    weights = [load_file(TRAINING_RUN.weights(folder, epoch)) for epoch in range(3)]
    torch.manual_seed(3)
    untrained = build().state_dict()
    assert all(torch.equal(untrained[name], weights[0][name]) for name in untrained)
    assert not torch.equal(weights[1]["fc.weight"], weights[0]["fc.weight"])
    assert not torch.equal(weights[2]["fc.weight"], weights[1]["fc.weight"])
    assert torch.equal(
        classifier_at_epoch(folder, TRAINING_RUN, 2).network.state_dict()["fc.weight"], weights[2]["fc.weight"]
    )


@pytest.mark.parametrize("stop", ["before epoch 0", "before epoch 2", "in epoch 2", "after the weights of epoch 1"])
def test_a_stopped_training_goes_on_to_the_same_weights(
    folder: Path, tmp_path: Path, stop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other_folder = tmp_path / "epochs"
    with monkeypatch.context() as patch:
        _stopping(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train_epochs(other_folder, TRAINING_RUN)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    train_epochs(other_folder, TRAINING_RUN)
    assert torch.equal(torch.get_rng_state(), before)
    for epoch in range(3):
        one, two = (load_file(TRAINING_RUN.weights(each, epoch)) for each in (folder, other_folder))
        assert all(torch.equal(one[name], two[name]) for name in one)


def _stopping(patch: pytest.MonkeyPatch, stop: str) -> None:
    """Raise KeyboardInterrupt at a point of the training."""
    keep, learn, replacing = module._keep_epoch, Training.epoch, module.replacing
    passes = 0

    def interrupted(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    def kept(folder: Path, run: EpochTraining, epoch: int, trainer: Training) -> None:
        if stop == f"before epoch {epoch}":
            raise KeyboardInterrupt
        if stop == f"after the weights of epoch {epoch}":
            patch.setattr(module, "replacing", interrupted)
        keep(folder, run, epoch, trainer)
        patch.setattr(module, "replacing", replacing)

    def passed(self: Training, *arguments: Any) -> None:
        nonlocal passes
        passes += 1
        if stop == f"in epoch {passes}":
            raise KeyboardInterrupt
        learn(self, *arguments)

    patch.setattr(module, "_keep_epoch", kept)
    patch.setattr(Training, "epoch", passed)


def test_a_finished_training_is_not_begun_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Training, "__init__", None)
    before = (folder / "training.pt").stat().st_mtime_ns
    train_epochs(folder, TRAINING_RUN)
    assert (folder / "training.pt").stat().st_mtime_ns == before


def test_another_training_and_what_is_none_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="seed 3, not 4"):
        train_epochs(folder, EpochTraining(2, 64, 4))
    (tmp_path / "training.pt").write_text("a note of mine")
    with pytest.raises(GradlightError, match="not the state of a training"):
        train_epochs(tmp_path, TRAINING_RUN)
    with pytest.raises(GradlightError, match="cannot be created"):
        train_epochs(tmp_path / "no" / "where", TRAINING_RUN)
    with pytest.raises(GradlightError, match="at least 1 epoch and 64 scenes"):
        EpochTraining(epochs=1, scenes=63)
    with pytest.raises(GradlightError, match="give 1 to 64"):
        meta_analysis(folder, training=TRAINING_RUN, images=65, ledger=Ledger(None, {}))


def test_rho_is_what_comes_out_by_hand(folder: Path) -> None:
    figures = run(folder, Ledger(None, {})).figures
    model, last = classifier_at_epoch(folder, TRAINING_RUN, 1), classifier_at_epoch(folder, TRAINING_RUN, 2)
    for split, seeds in (("training", TRAINING), ("validation", HELD_OUT)):
        with_step, against = [], []
        for seed in seeds[:IMAGES]:
            scene = draw(seed)
            shape = max(scene.objects, key=lambda thing: thing.mask.sum()).kind
            plain, up, end = (
                gl.explain(each, scene.image, shape, methods="normgrad", layers="layer3", meta=meta)
                .upsampled("normgrad", "layer3")
                .double()
                .flatten()
                .numpy()
                for each, meta in ((model, None), (model, gl.Meta(0.01, "ascent")), (last, None))
            )
            with_step.append(stats.spearmanr(plain, up).statistic)
            against.append(stats.spearmanr(plain, end).statistic)
        found = figures["with_and_without"][split]["ascent"]["normgrad"]["layer3"][1]
        # Ranks of values that interpolation brings close together hang on the last bit.
        assert found == pytest.approx(np.mean(with_step), abs=2e-3)
        assert figures["against_last"][split]["plain"]["normgrad"]["layer3"][1] == pytest.approx(
            np.mean(against), abs=2e-3
        )


def test_the_last_epoch_agrees_with_itself_and_a_step_changes_maps(folder: Path) -> None:
    result = run(folder, Ledger(None, {}))
    for variants in result.figures["against_last"].values():
        for values in (
            values for methods in variants.values() for layers in methods.values() for values in layers.values()
        ):
            assert len(values) == 3
            assert values[-1] == pytest.approx(1)
            assert values[0] < 1
    assert result.figures["with_and_without"]["validation"]["descent"]["normgrad"]["layer4"][-1] < 1
    changes, settling = result.tables
    assert len(changes.rows) == 2 * 2 * 2 * 2
    assert [row[2] for row in settling.rows[::4]] == ["plain", "descent", "ascent"]
    assert len(result.pictures["with_and_without"]().axes) == 4
    assert len(result.pictures["positive_and_negative"]().axes) == 4 * IMAGES


def test_a_stopped_analysis_gives_the_numbers_of_one_that_was_not(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(folder, Ledger(None, {}))
    done = 0

    def stops(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        done += 1
        if done > 14:
            raise KeyboardInterrupt
        return gl.explain(*arguments, **options)

    path = tmp_path / "ledger.jsonl"
    monkeypatch.setattr(module, "explain", stops)
    with pytest.raises(KeyboardInterrupt):
        run(folder, Ledger(path, {}))
    assert len(path.read_bytes().splitlines()) > 2
    done = -10_000
    assert json.dumps(run(folder, Ledger(path, {})).figures) == json.dumps(whole.figures)
