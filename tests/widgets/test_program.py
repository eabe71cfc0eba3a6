"""The page's program: its size, its form, its pure functions, its style."""

from __future__ import annotations

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

from chromium import HERE

from gradlight.widgets.page import program, stylesheet

STATIC = HERE.parents[1] / "widgets" / "static"


def test_it_is_small_and_stands_alone() -> None:
    text = program()
    # The modules are joined as they are, with comments and indentation: 15 KB compressed. Minified they would be 11 KB.
    assert len(text.encode()) <= 50_000
    assert len(gzip.compress(text.encode())) <= 17_000
    assert not re.search(r"^\s*import\b", text, re.MULTILINE)
    assert not re.search(r"https?:", text)
    assert text.endswith("export default { render };\n")
    assert text.count("export ") == 1


def test_every_file_is_in_it() -> None:
    named = re.findall(
        r"export (?:async )?(?:function|const) (\w+)", "".join(f.read_text() for f in STATIC.glob("*.js"))
    )
    assert len(named) > 40
    assert [name for name in named if not re.search(rf"\b(?:function|const) {name}\b", program())] == []


def test_hot_reload_watches_files() -> None:
    code = """
import pathlib, time
from gradlight.widgets import page
path = page.program_source()
assert isinstance(path, pathlib.Path) and isinstance(page.stylesheet_source(), pathlib.Path)
assert path.read_text(encoding="utf-8") == page.program()
page._join_modules = lambda: "edited"
end = time.monotonic() + 10
while path.read_text(encoding="utf-8") != "edited":
    assert time.monotonic() < end
    time.sleep(0.05)
"""
    environment = {**os.environ, "ANYWIDGET_HMR": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_rule_of_style_reaches_outside() -> None:
    bare = re.sub(r"@keyframes [^{]*\{[^{}]*\{[^{}]*\}\s*\}", "", stylesheet())
    selectors = [part for part in re.findall(r"([^{}]+)\{", bare) if not part.strip().startswith("@")]
    assert len(selectors) > 60
    for selector in selectors:
        # Commas inside brackets separate no rules.
        while "(" in selector:
            selector = re.sub(r"\([^()]*\)", "", selector)
        parts = selector.split(",")
        assert all(".gradlight" in part for part in parts), selector
    assert "url(" not in stylesheet()


def test_the_joined_program_can_be_read_by_a_machine(node: str, tmp_path: Path) -> None:
    (tmp_path / "viewer.mjs").write_text(program(), encoding="utf-8")
    done = subprocess.run([node, "--check", "viewer.mjs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_pure_functions(node: str) -> None:
    done = subprocess.run([node, "--test", str(HERE)], cwd=HERE, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"# pass (\d+)", done.stdout)[1] not in ("0", "1")  # type: ignore[index]


def test_the_linter_finds_nothing(node: str, tools: Path) -> None:
    config, linter = HERE / "eslint.config.js", tools / "eslint" / "bin" / "eslint.js"
    command = [node, str(linter), "--config", str(config), str(STATIC)]
    done = subprocess.run(command, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
