"""Names: every public one can be imported, and so can every name, file and link that README and docs mention."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import gradlight as gl

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]
PACKAGES = ("gradlight", "explainers", "models", "data", "evaluation", "export", "widgets", "benchmarks", "tests")
# The group of entry points of plug-ins; it is no module.
NO_MODULES = {"gradlight.sources"}


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


def code_spans(text: str) -> list[str]:
    """List what stands between backticks, outside fences."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))


def python_fences(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def resolve(name: str) -> Any:
    """Import a dotted name: the longest part that is a module, then attributes."""
    parts = name.split(".")
    value: Any = importlib.import_module(parts[0])
    for end, part in enumerate(parts[1:], start=2):
        if not hasattr(value, part):
            importlib.import_module(".".join(parts[:end]))
        value = getattr(value, part)
    return value


def mentioned_names(text: str) -> set[str]:
    """List the names of gradlight that a page mentions in code spans, and uses or imports in Python."""
    names = set()
    for code in [*code_spans(text), *python_fences(text)]:
        code = re.sub(r"\"[^\"\n]*\"|'[^'\n]*'", "", code)
        for start, rest in re.findall(r"(?<![\w./])(gl|gradlight)((?:\.[A-Za-z_]\w*)+)", code):
            names.add(f"gradlight{rest}" if start == "gl" else f"{start}{rest}")
    # By a pattern, since a fence may hold a part of a program that cannot be parsed.
    for module, imported in re.findall(r"from (gradlight[\w.]*) import (\([^)]*\)|[^\n#]*)", text):
        names |= {f"{module}.{part.split()[0]}" for part in imported.strip("() \n").split(",") if part.strip()}
    return {name for name in names if name not in NO_MODULES and not name.endswith((".py", ".md"))}


@pytest.mark.parametrize("page", PAGES)
def test_every_name_that_a_page_mentions_can_be_imported(page: str) -> None:
    for name in mentioned_names((ROOT / page).read_text(encoding="utf-8")):
        assert resolve(name) is not None, name


def test_the_names_of_the_pages_are_found() -> None:
    text = "Call `gl.load(path)` and `gradlight.data.images.load`.\n"
    text += "```python\nfrom gradlight.errors import GradlightError as Error, nearest  # why\n"
    text += "from gradlight.files import (\n    replace_file,\n)\n```"
    assert mentioned_names(text) == {
        "gradlight.load",
        "gradlight.data.images.load",
        "gradlight.errors",
        "gradlight.errors.GradlightError",
        "gradlight.errors.nearest",
        "gradlight.files",
        "gradlight.files.replace_file",
    }
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    assert {"gradlight.explain", "gradlight.Meta", "gradlight.view"} <= mentioned_names(guide)
    with pytest.raises(ModuleNotFoundError):
        resolve("gradlight.data.picture")


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_a_page_mentions_is_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)", text)
    paths = [span for span in code_spans(text) if re.fullmatch(rf"(?:{'|'.join(PACKAGES)})/[\w./]*", span)]
    files = [((ROOT / page).parent / link).resolve() for link in links] + [ROOT / path for path in paths]
    missing = {path.relative_to(ROOT).as_posix() for path in files if not path.exists()}
    assert missing == set()


def test_the_page_of_the_architecture_names_every_module() -> None:
    """Each module is named in a row of its folder, so that the table stays true when files move."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    spans = {part for span in code_spans(text) for part in re.split(r"[/.]", span)}
    folders = ("explainers", "models", "data", "evaluation", "export", "widgets")
    # The modules of these folders stand for one kind each: a method, an experiment, a rule, a data set.
    alike = {"baselines", "per_sample", "evaluation", "datasets", "scenes"}
    modules = [
        path
        for folder in (*folders, "gradlight/cli")
        for path in (ROOT / folder).rglob("*.py")
        if path.stem != "__init__" and path.parent.name not in alike
    ]
    assert len(modules) > 80
    unnamed = {path.relative_to(ROOT).as_posix() for path in modules if path.stem not in spans}
    assert unnamed == set()
