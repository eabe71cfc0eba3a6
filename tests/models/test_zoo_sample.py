"""Fifteen unlike families through the sweep of the whole zoo: all methods at "stages", with zero configuration."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

import gradlight as gl

FAMILIES = [
    "timm/coat_tiny", "timm/convnext_atto", "timm/crossvit_tiny_240", "timm/davit_tiny", "timm/efficientvim_m1",
    "timm/gcvit_xxtiny", "timm/gmixer_12_224", "timm/hiera_tiny_224", "timm/levit_128s", "timm/mobilevit_xxs",
    "timm/mvitv2_tiny", "timm/pvt_v2_b0", "timm/swinv2_cr_tiny_224", "timm/xcit_nano_12_p8_224", "torchvision/vit_b_16",
]  # fmt: skip


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    """Import the command, which lies outside the package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
        return importlib.import_module("zoo")


@pytest.fixture(scope="module")
def check(zoo: ModuleType) -> ModuleType:
    """Give the module that holds what is checked of one network."""
    return sys.modules["zoo_check"]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_of_the_zoo(zoo: ModuleType, name: str):
    row = zoo.row_of(name, zoo.PHOTO)
    assert row[0] == name
    assert zoo.passed(row), row[-1]


class Stubborn(nn.Module):
    """A network that the sweep must not call good: it writes to itself."""

    def __init__(self, fault: str) -> None:
        super().__init__()
        self.fault = fault
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU())
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(x)
        if self.fault == "neighbours":
            x = x * x.flip(0)
        if self.fault == "infinite":
            x = x / 0
        if self.fault == "writes":
            self.head.bias.data += 1
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize(
    ("fault", "said"),
    [("infinite", "is not finite"), ("writes", "is not as it was")],
)
def test_what_is_wrong_fails(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch, fault: str, said: str):
    torch.manual_seed(0)
    monkeypatch.setattr(gl, "classifier", lambda name, **options: gl.models.classifiers.classifier(Stubborn(fault)))
    row = zoo.row_of("torchvision/resnet18", zoo.PHOTO)
    assert not zoo.passed(row)
    assert said in row[-1]


@pytest.mark.filterwarnings("ignore:The network's answer for an image depends on the other images")
def test_images_that_depend_on_their_neighbours_are_run_alone(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    monkeypatch.setattr(
        gl, "classifier", lambda name, **options: gl.models.classifiers.classifier(Stubborn("neighbours"))
    )
    assert zoo.passed(zoo.row_of("torchvision/resnet18", zoo.PHOTO))


def test_the_table_can_be_read_again(zoo: ModuleType, tmp_path: Path):
    good = ["timm/a", "fam", "3", "x 2×2", "8", "0.1", "0.2", "passes; flat at x: gradient"]
    bad = zoo.failed("torchvision/resnet18", "first | line\nsecond")
    zoo.write_rows(tmp_path / "zoo.md", {"timm/a": good, "torchvision/resnet18": bad}, zoo.PHOTO)
    assert zoo.read_rows(tmp_path / "zoo.md") == {"timm/a": good, "torchvision/resnet18": bad}
    assert (tmp_path / "zoo.md").read_text(encoding="utf-8").startswith("# The zoo: 1 of 2 networks pass\n")
    assert "FAILED: first / line second" in bad[-1]
    assert zoo.passed(good)
    assert not zoo.passed(None)


def test_parameters_that_are_zero_are_woken(check: ModuleType):
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    nn.init.zeros_(network[0].weight)
    nn.init.zeros_(network[1].weight)
    before = [parameter.clone() for parameter in network.parameters()]
    check.awaken(network)
    for was, parameter in zip(before, network.parameters(), strict=True):
        assert parameter.any()
        assert torch.equal(was, parameter) or not was.any()
    assert network[1].weight.min() > 0.5
