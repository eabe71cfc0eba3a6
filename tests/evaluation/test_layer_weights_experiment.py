"""Layer weights as an experiment: the same numbers after a stop, and every weighting in the pointing game."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.evaluation import layer_weights as module
from gradlight.evaluation.layer_weights import layer_weights, measure, weightings, with_weightings
from gradlight.evaluation.ledger import Ledger
from gradlight.evaluation.samples import Sample, open_samples
from gradlight.evaluation.tables import markdown
from gradlight.explainers import layer_weights_store as kept
from gradlight.explainers.layer_weights import accuracy, spread
from gradlight.explainers.maps import SaliencyMaps

LAYERS = ["layer1", "layer2", "layer3", "layer4"]
NAMES = [f"{how}({name})" for how in ("sum", "product") for name in ("uniform", "linear", "spread", "accuracy")]


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADLIGHT_LAYER_WEIGHTS", str(tmp_path / "weights"))


def samples(count: int = 20) -> Sequence[Sample]:
    return open_samples("scenes", count)


def test_what_is_measured_is_what_the_formulas_say() -> None:
    model = gl.classifier("scenes")
    found = measure(model, samples(), data="scenes", ledger=Ledger(None, {}))
    labels = torch.tensor([[name in {t.label for t in s.truths} for name in model.labels] for s in samples()])
    pixels = model.pixels([sample.image for sample in samples()])
    for layer in LAYERS:
        kept_features: list[torch.Tensor] = []
        hook = model.network.get_submodule(layer).register_forward_hook(
            lambda _, __, out, seen=kept_features: seen.append(out.mean((2, 3)))
        )
        with torch.no_grad():
            model.network(pixels)
        hook.remove()
        assert found.layers[layer].spread == pytest.approx(spread(kept_features[0]), rel=1e-5)
        wanted = accuracy(kept_features[0], labels[:, labels.any(0)])
        assert found.layers[layer].accuracy == pytest.approx(wanted, abs=0.02)
    assert (found.count, found.accuracy_is) == (20, "mean average precision")
    assert found.weights_sha256 == model.weights_sha256()


def test_a_run_that_was_stopped_goes_on_with_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, whole = gl.classifier("scenes"), Ledger(tmp_path / "whole.jsonl", {})
    wanted = measure(model, samples(), data="scenes", ledger=whole)
    lines = (tmp_path / "whole.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "torn.jsonl").write_bytes(b"".join(lines[:8]) + lines[8][:100])
    keys: list[str] = []
    row = module._features_row
    monkeypatch.setattr(module, "_features_row", lambda *args: keys.append(args[1].key) or row(*args))
    assert measure(model, samples(), data="scenes", ledger=Ledger(tmp_path / "torn.jsonl", {})) == wanted
    assert keys == [sample.key for sample in samples()][7:]


def test_one_class_for_each_image_is_judged_by_the_most_probable() -> None:
    class OneEach(list[Sample]):
        pass

    one = OneEach(Sample(s.key, s.image, s.width, s.height, s.truths[:1]) for s in samples())
    model = gl.classifier("scenes")
    assert measure(model, one, "layer4", data="d", ledger=Ledger(None, {})).accuracy_is == "top-1 accuracy"
    none = [Sample(s.key, s.image, s.width, s.height) for s in samples(4)]
    found = measure(model, none, ["layer4", "layer1"], data="d", ledger=Ledger(None, {}))
    assert found.accuracy_is is None
    assert [(name, layer.accuracy) for name, layer in found.layers.items()] == [("layer1", None), ("layer4", None)]
    assert list(weightings(found)) == ["uniform", "linear", "spread"]


def test_the_experiment_keeps_what_combine_then_uses() -> None:
    model = gl.classifier("scenes")
    result = layer_weights(model, samples(), data="scenes", ledger=Ledger(None, {}))
    found = kept.find(model.weights_sha256())
    assert found is not None
    assert result.figures["measured"] == json.loads(json.dumps(found.to_json()))
    maps = gl.explain(model, "scenes:20000066")
    by_hand = maps.combine(weights=found.weights("accuracy"), how="sum")["selective_normgrad", "sum(given)"]
    assert torch.equal(maps.combine(weights="accuracy", how="sum")["selective_normgrad", "sum(accuracy)"], by_hand)
    (table,) = result.tables
    assert [row[0] for row in table.rows] == LAYERS
    assert sum(row[-1] for row in table.rows) == pytest.approx(1)  # type: ignore[misc]
    assert "mean average precision of a linear probe" in markdown(table)
    (axes,) = result.pictures["layer_weights"]().axes
    heights = {line.get_label(): list(line.get_ydata()) for line in axes.get_lines()}  # type: ignore[arg-type]
    assert heights["linear"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert heights["spread"] == pytest.approx([row[-2] for row in table.rows])


def test_every_weighting_plays_beside_the_single_layers(tmp_path: Path) -> None:
    """A game in which a map's accuracy is its value at one place."""
    model, place = gl.classifier("scenes"), (40, 50)
    seen: list[SaliencyMaps] = []

    def play(
        methods: Sequence[str], layers: Sequence[str], finish: Callable[[SaliencyMaps], SaliencyMaps]
    ) -> Mapping[tuple[str, str], float]:
        maps = finish(gl.explain(model, "scenes:20000066", methods=methods, layers=layers))
        seen.append(maps)
        return {pair: float(maps.upsampled(*pair)[(0, 0, *place)]) for pair in maps.pairs}

    path = tmp_path / "own.json"
    methods = ["linear_approx", "normgrad"]
    result = layer_weights(
        model,
        samples(),
        methods,
        ["layer2", "layer4"],
        data="scenes",
        ledger=Ledger(None, {}),
        measure_pointing=play,
        path=path,
    )
    table, values = result.tables[1], result.figures["pointing"]
    assert list(table.columns) == ["method", "best layer", "best single", *NAMES]
    for row, method in zip(table.rows, methods, strict=True):
        single = {layer: values[f"{method} / {layer}"] for layer in ("layer2", "layer4")}
        assert (row[1], row[2]) == (max(single, key=single.__getitem__), max(single.values()))
        assert list(row[3:]) == [values[f"{method} / {name}"] for name in NAMES]
    spreads = kept.read(path).weights("spread")
    plain = gl.explain(model, "scenes:20000066", methods=methods, layers=["layer2", "layer4"])
    wanted = plain.combine(weights=spreads, how="product")["normgrad", "product(given)"]
    assert torch.equal(seen[0]["normgrad", "product(spread)"], wanted)


def test_flat_maps_are_joined_without_a_word() -> None:
    maps = gl.explain(gl.classifier("scenes"), "scenes:20000066", methods="gradient")
    joined = with_weightings(maps, {"uniform": "uniform", "mine": dict.fromkeys(LAYERS, 1.0)})
    np.testing.assert_array_equal(joined["gradient", "sum(mine)"], joined["gradient", "sum(uniform)"])


def test_one_image_is_not_enough() -> None:
    with pytest.raises(GradlightError, match="over several images; 1 were given"):
        measure(gl.classifier("scenes"), samples(1), data="scenes", ledger=Ledger(None, {}))
