"""The registry of sources: built-in scenes, plug-ins with images and models of their own, broken plug-ins."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import gradlight as gl
from gradlight.cli.open_model import read_photos
from gradlight.errors import GradlightError, GradlightWarning
from gradlight.export.lists import read_list
from gradlight.models.preprocessing import Preprocessing
from gradlight.models.registry import GROUP, SOURCES, ImageScheme, LoadedNetwork, Source, SourceRegistry
from gradlight.models.scenes import captioner_folder

ROOT = Path(__file__).resolve().parents[2]
SMALL = Preprocessing(size=(16, 16), resize=(16, 16))


def canonical(name: str) -> str:
    shade = name.partition(":")[2].strip()
    if not shade.isdigit():
        raise GradlightError(f"{name!r} names no shade: shade:0 … shade:255.")
    return f"shade:{int(shade)}"


def shade(name: str) -> Image.Image:
    return Image.new("RGB", (20, 10), (int(name.partition(":")[2]),) * 3)


def tiny(*, pretrained: bool, checkpoint: Any, labels: Sequence[str] | None) -> LoadedNetwork:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return LoadedNetwork(network, list(labels or "abcd"), SMALL, "cells", "1.0", multi_label=True)


PLUGIN = Source(
    "cells",
    images={"shade": ImageScheme(canonical, shade)},
    classifiers={"cells/tiny": tiny},
    captioners={"cells": captioner_folder},
)
# What the entry points of these tests name, as "test_registry:NAME".
NO_SOURCE = "a text"
CLASH = Source("clash", classifiers={"scenes": tiny})


@pytest.fixture
def plugin() -> Iterator[Source]:
    SOURCES.register(PLUGIN)
    yield PLUGIN
    SOURCES.unregister("cells")


def entry_points(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    points = [metadata.EntryPoint(name, value, GROUP) for name, value in values.items()]
    monkeypatch.setattr(metadata, "entry_points", lambda *, group: points if group == GROUP else [])


def test_a_plugin_brings_images_of_its_own(plugin: Source, tmp_path: Path) -> None:
    model = gl.classifier("scenes")
    pixels, photos = model.read(["shade:007", shade("shade:7"), "scenes:7"])
    assert torch.equal(pixels[0], pixels[1])
    assert [photo.path for photo in photos] == ["shade:7", "", "scenes:7"]
    assert photos[0].sha256 == photos[1].sha256
    gl.explain(model, "shade:7", methods="grad_cam", layers="layer4").save(tmp_path / "m.h5")
    (photo,) = gl.load(tmp_path / "m.h5").images
    assert photo.picture().getpixel((0, 0)) == (7, 7, 7)
    with pytest.raises(GradlightError, match="'shade:grey' names no shade"):
        model.read(["shade:grey"])


def test_a_plugin_brings_models_of_its_own(plugin: Source) -> None:
    model = gl.classifier("cells/tiny")
    assert (model.name, model.labels, model.multi_label, model.size) == ("cells/tiny", list("abcd"), True, (16, 16))
    assert model.describe()["library"] == "cells"
    assert gl.classifier("cells/tiny", labels=["w", "x", "y", "z"]).labels == ["w", "x", "y", "z"]
    assert gl.explain(model, "shade:9", "b", layers="all").images[0].path == "shade:9"
    assert gl.captioner("cells").caption("scenes:7")[0].text == gl.captioner("scenes").caption("scenes:7")[0].text


def test_lists_and_the_command_line_take_its_images(plugin: Source, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("shade:7\tstar\nshade.png\n", encoding="utf-8")
    assert [path for path, _ in read_list(tmp_path / "list.txt")] == ["shade:7", str(tmp_path / "shade.png")]
    names = [Path("shade:7"), Path("scenes:7")]
    photos, failures = read_photos(names, gl.classifier("scenes"))
    assert ([photo.path for photo in photos], failures) == (names, [])


def test_unknown_names_list_what_is_registered(plugin: Source) -> None:
    with pytest.raises(
        GradlightError, match=r"no classifier 'cell/tiny'\. Did you mean 'cells/tiny'.*\"scenes\", \"cells/"
    ):
        gl.classifier("cell/tiny")
    with pytest.raises(
        GradlightError, match=r"no captioner 'scene'.* Did you mean 'scenes'\? Registered: scenes, cells\."
    ):
        gl.captioner("scene")
    with pytest.raises(GradlightError, match=r"scene: is no registered .*'scenes'\? Registered: scenes:, shade:$"):
        gl.classifier("scenes").read(["scene:7"])


def test_a_name_is_taken_once(plugin: Source) -> None:
    with pytest.raises(GradlightError, match="A source 'cells' is registered already"):
        SOURCES.register(PLUGIN)
    with pytest.raises(GradlightError, match="'clash' brings the classifier 'scenes', which source 'scenes' has"):
        SOURCES.register(CLASH)
    with pytest.raises(GradlightError, match="two or more letters"):
        SOURCES.register(Source("drive", images={"C": ImageScheme(canonical, shade)}))
    with pytest.raises(GradlightError, match="a captioner's name must be letters"):
        SOURCES.register(Source("path", captioners={"a/b.pth": captioner_folder}))
    with pytest.raises(GradlightError, match=r"must be a gradlight\.models\.registry\.Source, not str"):
        SOURCES.register("cells")  # type: ignore[arg-type]
    with pytest.raises(GradlightError, match=r"No source 'cell' is registered\. Did you mean 'cells'"):
        SOURCES.unregister("cell")


def test_the_registry_is_bounded() -> None:
    registry = SourceRegistry()
    for number in range(64):
        registry.register(Source(f"source {number}"))
    with pytest.raises(GradlightError, match="64 sources are registered, which is the most"):
        registry.register(Source("one more"))


def test_plugins_are_found_by_their_entry_points(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(monkeypatch, cells="test_registry:PLUGIN")
    registry = SourceRegistry(group=GROUP)
    image = registry.named_image("shade:08")
    assert image is not None
    assert image.name == "shade:8"
    assert image.load().size == (20, 10)
    assert registry.classifier_names() == ["cells/tiny"]
    assert registry.captioner_checkpoint("cells") == captioner_folder()


def test_a_broken_plugin_is_named_and_breaks_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    entry_points(
        monkeypatch,
        broken="no_such_module_of_a_plugin:SOURCE",
        wrong="test_registry:NO_SOURCE",
        clash="test_registry:CLASH",
        cells="test_registry:PLUGIN",
    )
    registry = SourceRegistry(["gradlight.models.scenes:SOURCE"], GROUP)
    with pytest.warns(GradlightWarning) as caught:
        assert registry.classifier_names() == ["scenes", "cells/tiny"]
    texts = [str(warning.message) for warning in caught]
    assert len(texts) == 3
    assert "The plug-in 'broken' (no_such_module_of_a_plugin:SOURCE" in texts[0]
    assert "ModuleNotFoundError" in texts[0]
    assert "The plug-in 'wrong'" in texts[1]
    assert "The plug-in 'clash'" in texts[2]
    assert registry.classifier_opener("cells/tiny") is tiny, "and the warning comes once"


def test_nothing_is_imported_before_a_name_asks_for_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*, group: str) -> list[metadata.EntryPoint]:
        raise AssertionError("plug-ins are not needed")

    monkeypatch.setattr(metadata, "entry_points", refuse)
    registry = SourceRegistry(["gradlight.models.scenes:SOURCE"], GROUP)
    for path in ("photo.jpg", "/tmp/scenes:5", "./scenes:5", "C:photo.jpg", ""):
        assert registry.named_image(path) is None
    assert registry._built_in, "a path without a scheme imports nothing"
    assert registry.named_image("scenes:5") is not None
    assert registry.classifier_opener("scenes") is not None
    assert registry.captioner_checkpoint("scenes") == captioner_folder()
    for path in (str(tmp_path), "model.pth", "folder/model", tmp_path, Path("scenes"), ""):
        assert registry.captioner_checkpoint(path) == path


def test_the_scenes_are_lazy_and_help_needs_no_torch() -> None:
    check = "import sys; import gradlight.cli.app; assert not {'torch', 'gradlight.models.registry'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
    check = "import sys; import gradlight.models.base; assert 'gradlight.data.scenes' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True)
