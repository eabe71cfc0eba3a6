"""The meta step against one written out by hand on a copied network, and per image."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3),
        nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).double()  # fmt: skip


def by_hand(given: nn.Sequential, image: Tensor, target: int, lr: float, sign: float) -> Tensor:
    """Selective NormGrad at layer "4" after one step of torch's own SGD."""
    stepped = copy.deepcopy(given).eval()
    optimiser = torch.optim.SGD(stepped.parameters(), lr=lr)
    (-sign * nn.functional.cross_entropy(stepped(image), torch.tensor([target]))).backward()
    optimiser.step()
    x = stepped[:5](image).detach().requires_grad_()
    (g,) = torch.autograd.grad(stepped[5:](x)[0, target], x)
    return (g * x).clamp(min=0).square().sum(1).sqrt()


@pytest.mark.parametrize(("direction", "sign"), [("descent", -1.0), ("ascent", 1.0)])
def test_the_step_is_sgd_on_each_image_alone(direction: str, sign: float) -> None:
    given = network()
    before = copy.deepcopy(given.state_dict())
    pixels, targets = torch.rand(3, 3, 12, 12, dtype=torch.float64), [[0, 4], [1, 3], [2, 2]]
    maps = gl.explain(gl.classifier(given), pixels, targets, layers="4", meta=gl.Meta(0.05, direction))
    found = maps["selective_normgrad", "4"]
    assert found.shape == (3, 2, 10, 10)
    for i, row in enumerate(targets):
        for k, target in enumerate(row):
            wanted = by_hand(given, pixels[i : i + 1], target, 0.05, sign)[0]
            torch.testing.assert_close(found[i, k], wanted, rtol=1e-10, atol=1e-14)
    assert all(torch.equal(before[name], tensor) for name, tensor in given.state_dict().items())


def test_top_is_chosen_before_the_step() -> None:
    model = gl.classifier(network())
    pixels = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    plain = gl.explain(model, pixels, "min", layers="4")
    stepped = gl.explain(model, pixels, "min", layers="4", meta=gl.Meta(5.0))
    assert plain.targets == stepped.targets
    assert not torch.allclose(plain["selective_normgrad", "4"], stepped["selective_normgrad", "4"])


def test_no_step_at_all_is_the_plain_map() -> None:
    model = gl.classifier(network())
    pixels = torch.rand(2, 3, 12, 12, dtype=torch.float64)
    plain = gl.explain(model, pixels, 1, layers="4")["selective_normgrad", "4"]
    torch.testing.assert_close(
        gl.explain(model, pixels, 1, layers="4", meta=gl.Meta(0.0))["selective_normgrad", "4"], plain
    )


@pytest.mark.parametrize("lr", [-1.0, float("nan"), float("inf"), "fast", True])
def test_a_rate_must_be_a_number_from_zero(lr: object) -> None:
    with pytest.raises(GradlightError, match="lr must be a finite number"):
        gl.Meta(lr)  # type: ignore[arg-type]


def test_a_direction_must_be_known() -> None:
    with pytest.raises(GradlightError, match="Did you mean 'descent'"):
        gl.Meta(0.1, "decent")
