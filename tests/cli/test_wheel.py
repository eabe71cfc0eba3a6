"""The wheel, built and installed into an empty environment, does the main job from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    # Built from a copy: an older build beside the sources would find its way into the wheel.
    left_out = shutil.ignore_patterns(".*", "build", "out", "*.egg-info", "__pycache__")
    source = shutil.copytree(ROOT, folder / "source", ignore=left_out)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    subprocess.run(command, check=True, timeout=600, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_contains_every_package_and_the_bundled_data(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    packages = {name: name for name in ("explainers", "models", "data", "evaluation", "export", "widgets")} | {
        "gradlight": ""
    }
    for folder, package in packages.items():
        sources = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*.py")}
        assert sources
        assert {str(Path("gradlight", package, source)) for source in sources} <= names
    folder = ROOT / "data" / "bundled"
    bundled = {f"gradlight/data/bundled/{path.relative_to(folder)}" for path in folder.rglob("*") if path.is_file()}
    assert len(bundled) >= 8
    assert bundled <= names
    static = {f"gradlight/widgets/static/{path.name}" for path in (ROOT / "widgets" / "static").glob("*.[cj]s*")}
    assert {name for name in static if not name.endswith(".json")} <= names
    assert "gradlight/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"gradlight"}


@pytest.mark.slow
def test_the_wheel_runs_the_demo_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=True)
    tools = tmp_path / "empty" / "bin"
    subprocess.run([tools / "python", "-m", "pip", "install", "--quiet", wheel], check=True, timeout=1500, cwd=tmp_path)
    done = subprocess.run(
        [tools / "gradlight", "demo", "--out", "made"],
        capture_output=True, text=True, timeout=600, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "made").iterdir()} >= {"demo.h5", "demo.png"}
    where = subprocess.run(
        [tools / "python", "-c", "import gradlight.explainers as e; print(e.__file__)"],
        capture_output=True, text=True, timeout=120, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert str(tmp_path / "empty") in where.stdout
