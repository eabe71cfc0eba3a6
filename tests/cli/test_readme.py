"""The README's Python runs as it stands, on small networks in place of large ones, and so do its commands."""

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
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SMALL = {"timm/resnet50": "timm/resnet18", "torchvision/resnet50": "torchvision/resnet18"}


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    samples = ROOT / "data" / "bundled"
    for name, sample in (("dog.jpg", "scene_1.png"), ("cat.jpg", "scene_2.png")):
        (tmp_path / name).write_bytes((samples / sample).read_bytes())
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18(num_classes=2).state_dict(), tmp_path / "weights.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_python_of_the_readme(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    given = {"network": network, "transform": transform, "pixels": torch.rand(1, 3, 40, 40)}
    code = blocks("python")
    assert len(code) == 10
    for block in code:
        exec(compile(block, "README.md", "exec"), given)
        if "maps.save" in block:
            assert (folder / "maps.h5").exists()
        if "dog.png" in block:
            assert (folder / "dog.png").stat().st_size > 10_000


def test_the_commands_of_the_readme(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (commands,) = [block for block in blocks("sh") if block.startswith("gradlight explain")]
    for line in commands.replace("\\\n", " ").strip().splitlines():
        arguments = [SMALL.get(word, word) for word in shlex.split(line, comments=True)]
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
    (commands,) = [block for block in blocks("sh") if block.startswith("gradlight export")]
    for line in commands.strip().splitlines():
        arguments = [SMALL.get(word, word) for word in shlex.split(line, comments=True)]
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
