"""The identity trick: which convolutions, ρ as scipy has it, the paper's figures, the game, the same after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.evaluation import identity_trick as module
from gradlight.evaluation.identity_trick import convolutions, identity_trick
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.samples import open_samples
from gradlight.evaluation.tables import Result, published
from gradlight.explainers.maps import SaliencyMaps

LAYERS = [f"layer{number}.0.conv1" for number in (1, 2, 3, 4)]
COUNT = 3


@pytest.fixture(scope="module")
def result() -> Result:
    return run(Ledger(None, {}))


def run(ledger: Ledger) -> Result:
    return identity_trick(gl.classifier("scenes"), open_samples("scenes", COUNT), ledger=ledger)


@pytest.mark.parametrize("architecture", ["resnet50", "vgg16"])
def test_the_papers_networks_have_the_papers_convolutions(architecture: str) -> None:
    assert convolutions(gl.classifier(f"torchvision/{architecture}", pretrained=False)) == list(
        published("identity_correlation")[architecture]
    )


def test_other_networks_have_their_last_convolution_of_each_stage_that_is_not_grouped() -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    assert convolutions(gl.classifier(network)) == ["1", "4"]


class Mixer(nn.Module):
    """No convolution, but linear layers at every place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(pixels.movedim(1, -1)).relu())
        return out.mean((1, 2))


def test_a_network_without_convolutions_is_refused_unless_layers_are_named() -> None:
    model, samples = gl.classifier(Mixer()), open_samples("scenes", 1)
    with pytest.raises(GradlightError, match="no convolution with a spatial output"):
        identity_trick(model, samples, ledger=Ledger(None, {}))
    found = identity_trick(model, samples, ["first", "second"], ledger=Ledger(None, {}))
    assert list(found.figures["correlations"]) == ["first", "second"]


def test_the_correlations_are_scipys(result: Result) -> None:
    model, found = gl.classifier("scenes"), {}
    for sample in open_samples("scenes", COUNT):
        maps = gl.explain(model, sample.image, methods=["normgrad", "normgrad_real"], layers=LAYERS)
        for layer in LAYERS:
            pair = [maps.upsampled(name, layer, (160, 160)).double().flatten() for name in maps.methods]
            found.setdefault(layer, []).append(float(stats.spearmanr(*pair).statistic))
    for layer, wanted in found.items():
        row = result.figures["correlations"][layer]
        assert row["mean"] == pytest.approx(np.mean(wanted), abs=2e-4)
        assert row["std"] == pytest.approx(np.std(wanted), abs=2e-4)
        assert (row["maps"], row["constant"]) == (COUNT, 0)
    assert [row[0] for row in result.tables[0].rows] == LAYERS


def test_the_identity_stands_for_the_real_convolution(result: Result) -> None:
    """What the paper finds, on scenes: ρ of 0.9 and more."""
    assert all(row["mean"] >= 0.9 for row in result.figures["correlations"].values())


def test_the_papers_figures_stand_beside_ours() -> None:
    network = gl.classifier("torchvision/resnet50", pretrained=False)
    found = identity_trick(network, open_samples("scenes", 1), ["layer4.0.conv1"], ledger=Ledger(None, {}))
    assert list(found.tables[0].columns[-2:]) == ["paper: ρ", "paper: ± std"]
    assert list(found.tables[0].rows[0][-2:]) == pytest.approx([0.9835, 0.0105])


def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(
    tmp_path: Path, result: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(Ledger(tmp_path / "whole.jsonl", {})).figures == result.figures
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:20])
    keys: list[str] = []
    correlate = module._correlate
    monkeypatch.setattr(module, "_correlate", lambda *args: keys.append(args[1].key) or correlate(*args))
    assert run(Ledger(tmp_path / "torn.jsonl", {})).figures == result.figures
    assert keys == [sample.key for sample in open_samples("scenes", COUNT)][1:]


def test_the_game_is_played_with_both() -> None:
    played: list[tuple[Sequence[str], Sequence[str]]] = []

    def play(
        methods: Sequence[str], layers: Sequence[str], finish: Callable[[SaliencyMaps], SaliencyMaps]
    ) -> Mapping[tuple[str, str], float]:
        played.append((methods, layers))
        scores = {"normgrad_real": [0.8, 0.75], "normgrad": [0.7, 0.775]}
        return {(method, layer): scores[method][number] for method in methods for number, layer in enumerate(layers)}

    found = identity_trick(
        gl.classifier("scenes"), open_samples("scenes", 1), LAYERS[:2], ledger=Ledger(None, {}), measure_pointing=play
    )
    assert played == [(["normgrad", "normgrad_real"], LAYERS[:2])]
    assert found.figures["pointing_difference"] == pytest.approx({"mean": 0.0625, "std": 0.0375})
    assert [list(row) for row in found.tables[1].rows] == [
        [LAYERS[0], 0.8, 0.7, pytest.approx(0.1)],
        [LAYERS[1], 0.75, 0.775, pytest.approx(-0.025)],
    ]
    assert "6.25% ± 3.75%" in found.tables[1].notes[0]


def test_no_images_are_refused() -> None:
    with pytest.raises(GradlightError, match="no image to compare"):
        identity_trick(gl.classifier("scenes"), [], ledger=Ledger(None, {}))
