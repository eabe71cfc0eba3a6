"""Names of methods: published ones, cells of the grid, typos."""

from __future__ import annotations

import pytest
import torch

from gradlight.errors import GradlightError
from gradlight.explainers.aggregation import AGGREGATES, total
from gradlight.explainers.capture import Tap
from gradlight.explainers.contributions import Contribution, Dense
from gradlight.explainers.extraction import EXTRACTS
from gradlight.explainers.methods import METHODS, Method, method, methods_of
from gradlight.models.base import Layer


def test_the_published_names_are_all_there() -> None:
    assert list(METHODS) == [
        "gradient",
        "gradient_sum",
        "linear_approx",
        "grad_cam",
        "cam",
        "normgrad",
        "selective_normgrad",
        "normgrad_real",
    ]


@pytest.mark.parametrize("extract", EXTRACTS)
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_every_cell_of_the_grid_is_a_method(extract: str, aggregate: str) -> None:
    made = method(f"{extract}+{aggregate}")
    assert made == Method(extract, aggregate)
    assert made.name == f"{extract}+{aggregate}"


def test_a_method_of_ones_own_functions() -> None:
    def halved(tap: Tap) -> Contribution:
        return Dense(tap.gradient / 2)

    made = Method(halved, total)
    ones = torch.ones(1, 3, 2, 2)
    tap = Tap(Layer("a", 1, 3, (2, 2)), None, ones, ones, None)
    assert made.name == "halved+total"
    assert torch.equal(made(tap), torch.full((1, 2, 2), 1.5))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("normgard", "Did you mean 'normgrad'"),
        ("conv5x5+norm", "No extract is called 'conv5x5'"),
        ("conv3x3+nrom", "No aggregate is called 'nrom'. Did you mean 'norm'"),
        ("", "No method is called ''"),
    ],
)
def test_a_typo_names_what_is_near(asked: str, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        method(asked)


def test_several_methods_are_kept_once_and_in_order() -> None:
    assert [m.name for m in methods_of(["normgrad", "bias+sum", "normgrad"])] == ["normgrad", "bias+sum"]
    with pytest.raises(GradlightError, match="No method was asked for"):
        methods_of([])
    with pytest.raises(GradlightError, match="must not hold '/'"):
        Method("bias", "sum", "a/b")
