"""Combining layers, against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from gradlight.errors import GradlightError, GradlightWarning
from gradlight.explainers.combination import are_flat, combine, layer_weights, normalised, upsample

VALUES = st.floats(-1e6, 1e6, width=64)


@given(arrays(np.float64, (2, 3, 4, 5), elements=VALUES))
@pytest.mark.filterwarnings("ignore::gradlight.errors.GradlightWarning")
def test_normalised_maps_run_from_zero_to_one_or_are_zero(values: np.ndarray) -> None:
    found = normalised(torch.from_numpy(values)).numpy()
    assert np.isfinite(found).all()
    for one, given_map in zip(found.reshape(6, -1), values.reshape(6, -1), strict=True):
        if np.ptp(given_map) > 1e-12 * np.abs(given_map).max():
            np.testing.assert_allclose(one, (given_map - given_map.min()) / np.ptp(given_map), atol=1e-12)
        else:
            assert not one.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_within_the_rounding_of_a_sum_is_flat(dtype: torch.dtype) -> None:
    for spread, flat in ((80, True), (1000, False)):
        maps = torch.ones(1, 1, 4, 4, dtype=dtype)
        maps[..., 0, 0] += spread * torch.finfo(dtype).eps
        assert bool(are_flat(maps)) is flat
        assert bool(are_flat(-maps)) is flat


def test_a_flat_map_becomes_zeros_with_a_warning_and_no_nan() -> None:
    maps = torch.full((1, 1, 7, 7), 0.3)
    with pytest.warns(GradlightWarning, match="1 of 1 maps are flat"):
        assert torch.equal(normalised(upsample(maps, (224, 224))), torch.zeros(1, 1, 224, 224))


@pytest.mark.parametrize(
    ("weights", "expected"),
    [("uniform", [1 / 3] * 3), ("linear", [1 / 6, 2 / 6, 3 / 6]), ({"a": 1, "b": 0, "c": 3}, [0.25, 0.0, 0.75])],
)
def test_layer_weights_are_divided_by_their_sum(weights: object, expected: list[float]) -> None:
    assert layer_weights(weights, ["a", "b", "c"]) == pytest.approx(expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("linaer", "Did you mean 'linear'"),
        ("spread", "must be measured on a data set"),
        ("accuracy", "must be measured on a data set"),
        ({"a": 1.0}, "without a weight: b"),
        ({"a": 1.0, "b": 1.0, "z": 1.0}, "not among the layers: z"),
        ({"a": 0.0, "b": 0.0}, "not all zero"),
        ({"a": -1.0, "b": 2.0}, "zero or more"),
        ({"a": float("nan"), "b": 2.0}, "must be finite"),
    ],
)
def test_weights_that_do_not_fit_say_why(weights: object, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        layer_weights(weights, ["a", "b"])  # type: ignore[arg-type]


def test_sum_and_product_are_the_papers_formulas() -> None:
    random = np.random.default_rng(0)
    one, two = random.random((2, 1, 6, 6)), random.random((2, 1, 6, 6))
    scaled = [(m - m.min((2, 3), keepdims=True)) / np.ptp(m, axis=(2, 3), keepdims=True) for m in (one, two)]
    tensors = [torch.from_numpy(one), torch.from_numpy(two)]
    np.testing.assert_allclose(combine(tensors, [0.3, 0.7], "sum"), 0.3 * scaled[0] + 0.7 * scaled[1], atol=1e-12)
    np.testing.assert_allclose(combine(tensors, [0.3, 0.7], "product"), scaled[0] ** 0.3 * scaled[1] ** 0.7, atol=1e-12)


def test_another_way_to_combine_is_an_error() -> None:
    with pytest.raises(GradlightError, match="by 'product' or 'sum', not 'mean'"):
        combine([torch.rand(1, 1, 2, 2)], [1.0], "mean")
