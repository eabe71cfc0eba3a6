"""Spearman's ρ equals scipy's, ties and constant rows included."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hn
from scipy import stats

from gradlight.errors import GradlightError
from gradlight.evaluation.metrics import average_ranks, spearman

PAIRS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        *[
            hn.arrays(np.float64, n, elements=st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6)))
            for _ in range(2)
        ]
    )
)


def _scipy(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 3:
        a, b = (stats.rankdata(each) for each in (a, b))
        with np.errstate(all="ignore"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return float(np.corrcoef(a, b)[0, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        return float(stats.spearmanr(a, b).statistic)


@settings(max_examples=200, deadline=None)
@given(PAIRS)
def test_spearman_equals_scipys(pair):
    a, b = pair
    np.testing.assert_allclose(float(spearman(torch.tensor(a), torch.tensor(b))), _scipy(a, b), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(hn.arrays(np.float32, st.integers(1, 60), elements=st.integers(-4, 4).map(float)))
def test_average_ranks_equal_scipys(values):
    np.testing.assert_array_equal(average_ranks(torch.tensor(values)).numpy() + 1, stats.rankdata(values))


def test_rows_are_compared_each_alone():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 9, (2, 3, 50), generator=generator).float() for _ in range(2))
    found = spearman(a, b)
    assert found.shape == (2, 3)
    for row in np.ndindex(2, 3):
        assert float(found[row]) == pytest.approx(_scipy(a[row].numpy(), b[row].numpy()), abs=1e-12)


def test_a_monotone_change_leaves_rho_at_one_and_its_reverse_at_minus_one():
    a = torch.rand(1000, generator=torch.Generator().manual_seed(1))
    assert float(spearman(a, a.exp())) == pytest.approx(1)
    assert float(spearman(a, -(a**3))) == pytest.approx(-1)
    assert spearman(a, a).abs() <= 1


def test_a_constant_row_and_a_nan_have_no_rho():
    a = torch.tensor([[1.0, 2, 3], [5, 5, 5], [1, float("nan"), 2]])
    assert spearman(a, torch.tensor([1.0, 2, 3]).expand(3, 3)).isnan().tolist() == [False, True, True]


@pytest.mark.parametrize(("left", "right"), [((3,), (4,)), ((), ()), ((2, 0), (2, 0))])
def test_rows_that_cannot_be_compared_are_refused(left, right):
    with pytest.raises(GradlightError, match="rows of one shape"):
        spearman(torch.zeros(left), torch.zeros(right))
