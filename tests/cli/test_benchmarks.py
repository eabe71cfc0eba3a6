"""Every benchmark can be asked how it is called, and the page of results keeps what was written by hand."""

from __future__ import annotations

import ast
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "benchmarks"
RUN = ["one_pass", "targets", "meta", "precision", "memory", "start", "cache_hit", "export_overhead", "viewer_latency"]


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the benchmarks import one another, and forget them again: their names are common words."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) in {str(path) for path in FOLDER.glob("*.py")}:
            del sys.modules[name]


@pytest.fixture
def bench() -> ModuleType:
    import bench as module

    return module


@pytest.mark.parametrize("name", [*RUN, "bench", "scenes_map", "screenshots"])
def test_help(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = FOLDER / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), "--help"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(path), run_name="__main__")
    said = " ".join(capsys.readouterr().out.split())
    doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert f"usage: {name}.py" in said
    assert doc.splitlines()[0].split()[0] in said


def test_every_command_is_of_a_benchmark_that_is_there(bench: ModuleType) -> None:
    assert list(bench.COMMANDS) == RUN
    assert all((FOLDER / f"{name}.py").exists() for name in bench.COMMANDS)


def test_a_section_is_replaced_alone_and_keeps_its_notes(bench: ModuleType) -> None:
    note = "<!-- note -->\n## start\nBound by *memory*.\n<!-- /note -->"
    page = bench.replaced(bench.replaced(bench.HEAD, "meta", "| old |"), "one_pass", "| first |")
    assert page.index("## one_pass") < page.index("## meta")
    noted = page.replace(f"| old |\n\n{bench.NOTE}", f"| old |\n\n{note}\n\n<!-- note -->two<!-- /note -->")
    made = bench.replaced(noted, "meta", "| new |")
    assert "| old |" not in made
    assert made.endswith(f"| new |\n\n{note}\n\n<!-- note -->two<!-- /note -->\n")
    assert made.split("## meta")[0] == page.split("## meta")[0]
    assert bench.replaced(made, "meta", "| new |") == made


def test_a_new_section_has_room_for_notes_and_an_unknown_one_stays(bench: ModuleType) -> None:
    page = bench.replaced("# By hand\n\n## elsewhere\n\nkept\n", "start", "| s |")
    assert page == f"# By hand\n\n## start\n\n| s |\n\n{bench.NOTE}\n\n## elsewhere\n\nkept\n"


def fake(bench: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, code: str) -> None:
    (folder / "start.py").write_text(f'"""What is fast.\n\n    python benchmarks/start.py\n"""\n{code}\n')
    monkeypatch.setattr(bench, "HERE", folder)
    monkeypatch.setitem(bench.COMMANDS, "start", ("--repeats 1", "--repeats 2"))


def test_what_a_benchmark_prints_is_kept_with_its_command(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake(bench, monkeypatch, tmp_path, "import sys; print('| ran', sys.argv[2], '|')")
    assert bench.keep("start", tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page.startswith(bench.HEAD + "\n## start\n\nWhat is fast.\n\n```sh\n")
    assert "OMP_WAIT_POLICY=PASSIVE python benchmarks/start.py --repeats 2\n```\n\nMachine: " in page
    assert "\n\n| ran 1 |\n\n```sh\n" in page
    assert f"\n\n| ran 2 |\n\n{bench.NOTE}\n" in page


def test_one_that_cannot_run_says_why_and_one_that_fails_is_told_of(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(bench, monkeypatch, tmp_path, "import sys; sys.exit('There is no browser.')")
    assert bench.keep("start", tmp_path / "page.md")
    assert "Left out: There is no browser." in capsys.readouterr().err
    fake(bench, monkeypatch, tmp_path, "raise ValueError('broken')")
    assert not bench.keep("start", tmp_path / "page.md")
    assert "ValueError: broken" in capsys.readouterr().err
    assert not (tmp_path / "page.md").exists()


def test_times_are_compared_turn_by_turn(bench: ModuleType) -> None:
    import timing

    clock = iter([10.0, 12.0, 12.0, 15.0, 20.0, 22.0, 22.0, 30.0])
    found = timing.measured({"floor": lambda: None, "job": lambda: None}, 2, clock=lambda: next(clock))
    assert found.taken == {"floor": [2.0, 2.0], "job": [3.0, 8.0]}
    assert found.seconds("job") == 5.5
    assert found.ratio("job", "floor") == 2.75
    assert timing.Times({"a": [3.0], "b": [5.0], "off": [1.0]}).ratio("a", "b", beyond="off") == 0.5
    assert timing.table(("job", "s"), [("a", "1")]) == "| job | s |\n| --- | --- |\n| a | 1 |"


def test_an_unknown_benchmark_is_refused(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["bench.py", "one_pas"])
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    assert "no benchmark is called one_pas; there are one_pass" in capsys.readouterr().err
