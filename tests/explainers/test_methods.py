"""Names of methods: published ones, cells of the grid, typos."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.explainers.aggregation import AGGREGATES, total
from gradlight.explainers.capture import Tap
from gradlight.explainers.contributions import Contribution, Dense
from gradlight.explainers.extraction import EXTRACTS
from gradlight.explainers.methods import METHODS, Method, method, methods_of
from gradlight.models.base import Layer
from gradlight.models.preserve import preserved


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


def a_tap() -> Tap:
    x, g = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return Tap(Layer("a", 1, 3, (4, 5)), None, x, g, None)


def test_functions_that_return_plain_tensors() -> None:
    tap = a_tap()
    layer_cam = Method(lambda tap: tap.gradient.clamp(min=0) * tap.activation, "sum", "layer_cam")
    assert torch.equal(layer_cam(tap), (tap.gradient.clamp(min=0) * tap.activation).sum(1))
    rectified = Method("scaling", lambda contribution: contribution.total.sum(1).clamp(min=0), "rectified")
    assert torch.equal(rectified(tap), (tap.gradient * tap.activation).sum(1).clamp(min=0))


@pytest.mark.parametrize(
    ("extract", "aggregate", "message"),
    [
        (lambda tap: None, "sum", "The extract function of the method 'mine' returned a NoneType at layer 'a'"),
        (lambda tap: [1.0], "sum", r"returned a list.*must return a Contribution or a floating-point tensor"),
        (lambda tap: tap.gradient.sum(1), "sum", r"tensor of shape \[2, 4, 5\].*\[images, channels, height, width\]"),
        (lambda tap: tap.gradient[:1], "sum", r"shape \[1, 3, 4, 5\].*here with 2 images, height 4 and width 5"),
        (lambda tap: tap.gradient.long(), "sum", r"type int64.*floating-point"),
        (
            "bias",
            lambda c: c.total,
            r"aggregate function.*shape \[2, 1, 4, 5\].*return a floating-point tensor \[images, h",
        ),
        ("bias", lambda c: 1.0, "The aggregate function of the method 'mine' returned a float"),
        ("bias", lambda c: c.total[:, 0] > 0, "type bool"),
    ],
)
def test_functions_that_return_something_else(extract: Any, aggregate: Any, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        Method(extract, aggregate, "mine")(a_tap())


def test_any_callable_has_a_name() -> None:
    def power(tap: Tap, exponent: int) -> Tensor:
        return tap.gradient**exponent

    assert Method(partial(power, exponent=2), "sum").name == "partial+sum"


def test_every_published_method_has_a_formula_and_a_reference() -> None:
    for name, published in METHODS.items():
        assert published.formula, name
        assert any(word.isdecimal() and len(word) == 4 for word in published.reference.replace(",", " ").split()), name
    plain = Method("conv1x1", "norm", "normgrad")
    assert plain == METHODS["normgrad"]
    assert hash(plain) == hash(METHODS["normgrad"])


def test_one_image_alone_is_the_batch() -> None:
    model = gl.classifier("scenes")
    batch = gl.explain(model, "scenes:3", "star", methods="normgrad", layers="layer4")
    target, layer = batch.targets[0][0], next(layer for layer in model.layers() if layer.name == "layer4")
    with preserved(model.network):
        alone = METHODS["normgrad"].attribute(model.objective("star"), model.pixels("scenes:3"), target, layer)
    assert torch.equal(alone, batch.rows("normgrad", "layer4"))


class Halved:
    """Somebody's method: three members, and neither a Method nor a Baseline."""

    name = "halved"

    def places(self, layers: Any) -> Any:
        return layers[:1]

    def attribute(self, objective: Any, pixels: Tensor, target: gl.Target, layer: Layer) -> Tensor:
        return pixels.mean(1) / 2


class HalvedOfTap(Halved):
    name = "halved_of_tap"

    def places(self, layers: Any) -> Any:
        return layers

    def __call__(self, tap: Tap) -> Tensor:
        return tap.activation.mean(1) / 2


@pytest.mark.parametrize("make", [Halved, HalvedOfTap])
def test_any_object_with_the_three_members_is_a_method(make: Callable[[], Halved]) -> None:
    model, own = gl.classifier("scenes"), make()
    maps = gl.explain(model, ["scenes:1", "scenes:2"], "star", methods=[own, "normgrad"], layers=["input", "layer4"])
    pixels = model.pixels(["scenes:1", "scenes:2"])
    torch.testing.assert_close(
        maps.rows(own, "input"), pixels.mean(1) / 2, rtol=0, atol=1e-6 * float(pixels.abs().max())
    )
    assert ((own.name, "layer4") in maps.pairs) is (make is HalvedOfTap)


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
