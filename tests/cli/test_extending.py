"""docs/extending.md: every recipe runs as it stands, and does what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import gradlight as gl
from gradlight.models.captioner import state_dicts

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))


def run(recipe: str) -> dict[str, Any]:
    """Run the code of a recipe, block after block; give what it has defined."""
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in re.findall(r"^```python\n(.*?)^```", RECIPES[recipe], re.DOTALL | re.MULTILINE):
        exec(compile(block, f"docs/extending.md, {recipe}", "exec"), names)
    return names


def test_the_page_has_these_recipes() -> None:
    assert list(RECIPES) == ["A method", "An objective", "A family of captioners", "A control of the viewer"]


def test_a_method() -> None:
    maps = run("A method")["maps"]
    assert maps.methods == ["layer_cam", "grad_cam"]
    found = []

    def noting(tap: gl.Tap) -> torch.Tensor:
        found.append((tap.gradient.clamp(min=0) * tap.activation).sum(1).clamp(min=0))
        return tap.gradient

    gl.explain(gl.classifier("scenes"), "scenes:1", "star", methods=gl.Method(noting, "sum"), layers="layer4")
    scale = float(found[0].abs().max())
    torch.testing.assert_close(maps.rows("layer_cam", "layer4"), found[0], rtol=0, atol=1e-5 * scale)
    assert bool(found[0].any())


def test_an_objective() -> None:
    names = run("An objective")
    maps, model = names["maps"], gl.classifier("scenes")
    model.network.double()  # the gradients that are added cancel in part
    both = gl.explain(model, ["scenes:1", "scenes:2"], [["star", "heart"]], methods="gradient_sum", layers="layer4")
    asked = gl.explain(names["MarginModel"](model), "scenes:1", ("star", "heart"), methods="gradient_sum")
    star_map, heart_map = both["gradient_sum", "layer4"][0]
    torch.testing.assert_close(asked["gradient_sum", "layer4"][0, 0], star_map - heart_map, rtol=1e-9, atol=1e-13)
    assert [row[0].label for row in maps.targets] == ["star rather than heart"] * 2
    assert maps.origin.objective == {"kind": "margin", "first": 3, "second": 6}
    star, heart = both.targets[0]
    terms = abs(star.score) + abs(heart.score)
    assert maps.targets[0][0].score == pytest.approx(star.score - heart.score, abs=1e-5 * terms)
    assert asked.targets[0][0].score == pytest.approx(star.score - heart.score, abs=1e-12 * terms)


def test_a_family_of_captioners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_dicts, "FAMILIES", dict(state_dicts.FAMILIES))
    names = run("A family of captioners")
    assert names["recognised"].family == "gru"
    assert type(names["decoder"]) is names["GRUDecoder"]
    assert [target.label for target in names["maps"].targets[0]] == ["a", "red", "star"]
    assert bool(names["maps"].rows("selective_normgrad", "layer4").any())


@pytest.fixture
def viewer() -> Iterator[dict[str, Any]]:
    names = run("A control of the viewer")
    yield names
    names["viewer"].close()


def test_a_control_of_the_viewer(viewer: dict[str, Any]) -> None:
    shown, opacity, layer = viewer["viewer"], viewer["opacity"], viewer["layer"]
    assert opacity.value == shown.opacity
    opacity.value = 0.4
    assert shown.opacity == pytest.approx(0.4)
    shown.layer = "layer3"
    assert layer.value == "layer3"
    assert shown.wait(60)
