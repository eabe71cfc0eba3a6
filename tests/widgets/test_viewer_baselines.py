"""Baselines in the viewer: a method that knows the pixels only, beside one that knows every layer."""

from __future__ import annotations

import pytest

import gradlight as gl

SCENE = "scenes:20000066"


def test_a_method_of_the_pixels_is_shown_at_the_input() -> None:
    viewer = gl.view(gl.classifier("scenes"), SCENE, methods=["normgrad", "guided_backprop", "lrp"], layers="layer3")
    viewer.wait()
    assert [layer["name"] for layer in viewer.about["layers"]] == ["input", "layer3"]
    maps = viewer.maps
    assert ("lrp", "input") in maps.pairs
    assert ("guided_backprop", "layer3") in maps.pairs
    assert ("lrp", "layer3") not in maps.pairs


def test_a_method_of_other_layers_is_refused_with_what_to_do() -> None:
    viewer = gl.view(gl.classifier("scenes"), SCENE, methods="normgrad", layers="layer3")
    viewer.wait()
    with pytest.raises(gl.GradlightError, match=r"lrp makes maps at 'input'.*methods='lrp'"):
        viewer.method = "lrp"
