"""Docstrings: every example runs, and public names are documented in full."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import gradlight as gl

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE | doctest.IGNORE_EXCEPTION_DETAIL
# A checkout's own path also holds what is no part of the package, such as these tests.
PACKAGES = ("cli", "data", "evaluation", "explainers", "export", "models", "widgets")
MODULES = ["gradlight.errors", "gradlight.files"] + [
    module.name
    for package in PACKAGES
    for module in pkgutil.walk_packages(
        importlib.import_module(f"gradlight.{package}").__path__, f"gradlight.{package}."
    )
]
OPTIONAL = {"ray", "transformers", "captum", "hdf5plugin"}


def imported(name: str) -> ModuleType:
    """Import a module, or skip the test where one of the optional libraries is missing."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in OPTIONAL:
            raise
        pytest.skip(f"{error.name} is not installed")


def examples(module: ModuleType) -> Iterator[doctest.DocTest]:
    yield from (test for test in doctest.DocTestFinder().find(module, extraglobs={"gl": gl}) if test.examples)


@pytest.mark.parametrize("name", MODULES)
def test_every_example_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failures: list[str] = []
    for test in examples(imported(name)):
        doctest.DocTestRunner(optionflags=FLAGS).run(test, out=failures.append)
    assert not failures, "".join(failures)


def sections_missing(value: object) -> list[str]:
    """Name the sections that the docstring of a function or class should have and has not."""
    text = inspect.getdoc(value) or ""
    parameters = [name for name in inspect.signature(value).parameters if name not in ("self", "cls")]  # type: ignore[arg-type]
    wanted = {"Example:": True, "Args:": bool(parameters)}
    if inspect.isfunction(value):
        wanted["Returns:"] = value.__annotations__.get("return") not in (None, "None")
    return [section for section, needed in wanted.items() if needed and section not in text]


PUBLIC = [
    name for name in gl.__all__ if not name.startswith("__") and not isinstance(getattr(gl, name), (str, type(gl)))
]


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_documented_in_full(name: str) -> None:
    value = getattr(gl, name)
    if isinstance(value, type) and issubclass(value, Exception):
        assert "Example:" in (inspect.getdoc(value) or "")
    else:
        assert sections_missing(value) == []
