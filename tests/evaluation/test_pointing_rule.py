"""The rule of the pointing game: every one of TorchRay's own decisions, and the pieces by their definition."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from coco_half import category_names, load, named_photos

from gradlight.evaluation.metrics import HitCounts, argmax_location, distance, is_hit, lay_over_photo, smooth
from gradlight.models.view import View


def test_the_table_of_edge_cases(shared: Path) -> None:
    mask = np.zeros((40, 60), bool)
    mask[20, 30] = True
    rows = load(shared, "rule_table.json")["rows"]
    assert len(rows) > 60
    for row in rows:
        x, y = row["point_xy"]
        assert is_hit(mask, y, x, row["tolerance"]) == (row["result"] == 1), row


def test_every_decision_of_torchray_on_coco(shared: Path, tmp_path: Path) -> None:
    """Every pair, every predictor, every tolerance; and the accuracies that TorchRay makes of them."""
    oracle = load(shared, "pointing.json")
    names = category_names(shared)
    index = {names[int(key)]: value for key, value in oracle["category_id_to_class_index"].items()}
    labels = sorted(index, key=index.__getitem__)
    truths = {(sample.key, truth.label): truth for sample in named_photos(shared, tmp_path) for truth in sample.truths}
    scores: dict[str, HitCounts] = {}
    decided = 0
    for pair in oracle["pairs"]:
        label = names[pair["category_id"]]
        truth = truths[pair["file_name"], label]
        for name, (x, y) in pair["points"].items():
            for tolerance in (1, 5, 15, 30):
                hit = is_hit(truth.mask, y, x, tolerance)
                wanted = pair[f"result_tol{tolerance}"]
                assert hit == (wanted[f"{name}/all" if tolerance == 15 else name] == 1), (pair["file_name"], label)
                decided += 1
            hit = is_hit(truth.mask, y, x)
            result = pair["result_tol15"][f"{name}/difficult"]
            assert result == ((1 if hit else -1) if truth.subset else 0)
            scores.setdefault(f"{name}/tol15/all", HitCounts()).add(label, hit)
            if truth.subset:
                scores.setdefault(f"{name}/tol15/difficult", HitCounts()).add(label, hit)
    assert decided == 3 * 4 * len(oracle["pairs"])
    for key, score in scores.items():
        told = oracle["results"][key]
        assert [score.hits.get(label, 0) for label in labels] == told["hits"]
        assert [score.misses.get(label, 0) for label in labels] == told["misses"]
        found = score.accuracies(labels)
        assert [found.get(label) for label in labels] == told["class_accuracies"]
        assert score.mean(labels) == pytest.approx(told["accuracy_mean_over_present_classes"], abs=1e-12)
        wanted = told["accuracy_mean_over_all_80_classes_as_torchray"]
        assert score.torchray_mean(labels) == pytest.approx(wanted, abs=1e-12)
    assert len(scores) == 6


def test_a_hit_is_nearer_than_the_tolerance() -> None:
    random = np.random.default_rng(0)
    for _ in range(200):
        mask = random.random((30, 41)) < 0.003
        row, column = random.integers(-10, 55, 2) / random.choice([1, 2])
        tolerance = int(random.integers(0, 12))
        wanted = distance(mask, row, column) < tolerance
        assert is_hit(mask, row, column, tolerance) == wanted
    assert distance(np.zeros((3, 3), bool), 1, 1) == math.inf
    assert not is_hit(np.zeros((3, 3), bool), 1, 1)


def test_the_first_of_equal_values_counts_row_by_row() -> None:
    maps = torch.zeros(2, 4, 5)
    maps[0, 1, 3] = maps[0, 2, 0] = 1
    maps[1] = 7
    assert argmax_location(maps).tolist() == [[1, 3], [0, 0]]
    assert argmax_location(maps.view(1, 2, 4, 5)).tolist() == [[[1, 3], [0, 0]]]


def test_maps_are_laid_over_the_photo_as_interpolation_does() -> None:
    maps = torch.randn(3, 7, 9, generator=torch.Generator().manual_seed(0))
    whole = View.whole((64, 45), (224, 318))
    wanted = F.interpolate(maps.unsqueeze(0), size=(45, 64), mode="bilinear", align_corners=False)[0]
    assert torch.equal(lay_over_photo(maps, whole), wanted)


def test_a_map_never_points_outside_what_the_network_saw() -> None:
    maps = -torch.ones(1, 2, 2)
    cropped = lay_over_photo(maps, View((20, 10), (5, 0, 15, 10), (8, 8)))
    assert torch.isneginf(cropped[0, :, :5]).all()
    assert torch.isneginf(cropped[0, :, 15:]).all()
    assert torch.equal(cropped[0, :, 5:15], -torch.ones(10, 10))
    assert argmax_location(cropped).tolist() == [[0, 5]]


def test_smoothing_is_the_gaussian_of_the_oracle(shared: Path) -> None:
    """TorchRay's own map of the gradient at the input, made in float32, smoothed by 2 % of the larger side."""
    place = shared / "oracles" / "classifiers" / "maps" / "resnet18_A_t18" / "torchray.npz"
    with np.load(place) as stored:
        plain = torch.from_numpy(stored["gradient/input/raw"]).double()
        wanted = torch.from_numpy(stored["gradient_smooth0.02/input/up"]).double()
    found = smooth(plain.view(1, *plain.shape[-2:]))
    assert found.shape[1:] == wanted.shape[-2:]
    assert (found[0] - wanted.view(wanted.shape[-2:])).abs().max() <= 1e-5 * wanted.abs().max()


def test_smoothing_keeps_a_constant_and_the_sum_of_a_distant_spot() -> None:
    assert torch.allclose(smooth(torch.ones(1, 30, 50)), torch.ones(1, 30, 50))
    spot = torch.zeros(1, 61, 81, dtype=torch.float64)
    spot[0, 30, 40] = 1
    found = smooth(spot)
    assert float(found.sum()) == pytest.approx(1, abs=1e-5)
    deviation = 0.02 * 81
    assert float(found[0, 30, 42] / found[0, 30, 40]) == pytest.approx(math.exp(-2 / deviation**2), rel=1e-4)


def test_accuracy_is_the_mean_over_the_classes_that_were_asked_for() -> None:
    score = HitCounts()
    for label, hit in (("a", True), ("a", False), ("a", False), ("a", False), ("b", True)):
        score.add(label, hit)
    assert score.total == 5
    assert score.accuracies("abc") == {"a": 0.25, "b": 1.0}
    assert score.mean("abc") == 0.625
    assert score.torchray_mean("abc") == pytest.approx(1.25 / 3)
    assert HitCounts().mean("abc") is None
    assert HitCounts().torchray_mean("abc") == 0
