"""The public names: all there, imported late, and a wrong one says what there is."""

from __future__ import annotations

import subprocess
import sys

import pytest

import gradlight as gl


def test_every_public_name_is_there() -> None:
    assert {"classifier", "explain", "load", "Meta", "Method", "SaliencyMaps", "GradlightError"} <= set(gl.__all__)
    for name in gl.__all__:
        assert getattr(gl, name) is not None
    assert dir(gl) == gl.__all__


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'explian'"):
        gl.explian  # noqa: B018


def test_importing_costs_no_torch() -> None:
    code = "import sys, gradlight; print('torch' in sys.modules, 'numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_errors_are_value_errors_with_one_base() -> None:
    assert issubclass(gl.GradlightError, ValueError)
    assert issubclass(gl.GradlightWarning, UserWarning)
