"""The Python of the README and of the guide runs as it stands, on small networks, and so do their commands."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

import gradlight as gl
from gradlight.cli.app import main

ROOT = Path(__file__).resolve().parents[2]
README, GUIDE = "README.md", "docs/guide.md"
SMALL = {"timm/resnet50": "timm/resnet18", "torchvision/resnet50": "torchvision/resnet18"}


def blocks(page: str, language: str) -> list[str]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str, start: str) -> list[list[str]]:
    """Split the commands of the one shell block of a page that begins like this into arguments."""
    (block,) = [block for block in blocks(page, "sh") if block.startswith(start)]
    lines = block.replace("\\\n", " ").strip().splitlines()
    return [[SMALL.get(word, word) for word in shlex.split(line, comments=True)] for line in lines]


def test_the_readme_is_short() -> None:
    assert len((ROOT / README).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    samples = ROOT / "data" / "bundled"
    for name, sample in (("dog.jpg", "scene_1.png"), ("cat.jpg", "scene_2.png")):
        (tmp_path / name).write_bytes((samples / sample).read_bytes())
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("page", "count", "kept"), [(README, 3, "dog.h5"), (GUIDE, 10, "maps.h5")])
def test_the_python_of_a_page(folder: Path, monkeypatch: pytest.MonkeyPatch, page: str, count: int, kept: str) -> None:
    made = gl.classifier

    def small(source: Any, **options: Any) -> Any:
        source = SMALL.get(source, source) if isinstance(source, str) else source
        return made(source, **({"pretrained": False} | options))

    monkeypatch.setattr(gl, "classifier", small)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    transform = torchvision.transforms.Compose(
        [torchvision.transforms.Resize((40, 40)), torchvision.transforms.ToTensor()]
    )
    namespace = {"network": network, "transform": transform, "pixels": torch.rand(1, 3, 40, 40)}
    code = blocks(page, "python")
    assert len(code) == count
    for block in code:
        exec(compile(block, page, "exec"), namespace)
        if "maps.save" in block:
            assert (folder / kept).exists()
        if "dog.png" in block:
            assert (folder / "dog.png").stat().st_size > 10_000


@pytest.mark.parametrize("page", [README, GUIDE])
def test_the_commands_of_a_page(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: str
) -> None:
    for arguments in commands(page, "gradlight explain"):
        if "explain" in arguments:
            arguments.append("--no-pretrained")
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="0"):
            main()
        assert capsys.readouterr().err == ""
    assert (folder / "dog.png").stat().st_size > 10_000
    assert gl.load(folder / "dog.h5").targets[0][0].label == "golden retriever"


def test_the_commands_of_whole_data_sets(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "photos").mkdir()
    for number in range(9):
        (folder / "photos" / f"{number}.png").write_bytes((folder / "dog.jpg").read_bytes())
    for arguments in commands(GUIDE, "gradlight export"):
        if "export" in arguments:
            arguments += ["--no-pretrained", "--shard-size", "4", "--batch-size", "4"]
        if "merge" in arguments:
            arguments[2:3] = sorted(map(str, (folder / "maps.shards").glob("*.h5")))
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit, match="0"):
            main()
    assert "is finished already" in capsys.readouterr().err
    with gl.load(folder / "one.h5") as one, gl.load(folder / "maps.h5") as index:
        assert len(one) == len(index) == 9
        assert torch.equal(one["grad_cam", "layer4"], index["grad_cam", "layer4"])
