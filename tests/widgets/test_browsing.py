"""Looking through finished maps: in memory, and from a file that is never read whole."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bare_page import BarePage
from chromium import SCENES

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.explainers.maps import MapLayer, Origin, SaliencyMaps
from gradlight.models.base import Photo, View
from gradlight.models.objective import Target
from gradlight.widgets.view import view
from gradlight.widgets.viewer import Viewer


@pytest.fixture(scope="module")
def maps(classifier: Any) -> SaliencyMaps:
    photos = sorted(SCENES.glob("scene_*.png"))
    return gl.explain(classifier, photos, ["top2"], methods=["normgrad", "linear_approx"], layers=["layer3", "layer4"])


def test_the_list_of_images(maps: SaliencyMaps, open_page: Callable[[Viewer], BarePage]) -> None:
    shown = open_page(view(maps))
    shown.until("document.querySelectorAll('[role=option] img').length === 6")
    page, before = shown.page, shown.pixels()
    page.get_by_role("listbox", name="Images").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    shown.settled()
    assert shown.viewer.image == 2
    assert shown.viewer.scene["name"] == "scene_3.png"
    assert shown.pixels() != before
    assert page.locator("[aria-selected=true]").inner_text().startswith("scene_3.png")
    page.get_by_label("Search images").fill("scene_5")
    shown.until("document.querySelectorAll('[role=option] img').length === 1")
    page.locator("[role=option]").click()
    shown.settled()
    assert shown.viewer.image == 4
    assert shown.viewer.maps.images[0].path.endswith("scene_5.png")


def test_nothing_is_computed_and_only_what_is_there_is_offered(maps: SaliencyMaps) -> None:
    viewer = view(maps, 3, methods="normgrad", layers=["layer4"])
    assert viewer.about["live"] is False
    assert [layer["name"] for layer in viewer.about["layers"]] == ["layer4"]
    assert viewer.scene["name"] == "scene_4.png"
    with pytest.raises(GradlightError, match=r"no method 'gradient'\..* They have: normgrad\."):
        viewer.method = "gradient"
    with pytest.raises(GradlightError, match=r"There are no maps of 'zebra' for scene_4\.png"):
        viewer.target = "zebra"
    assert viewer.maps["normgrad", "layer4"].equal(maps[3:4]["normgrad", "layer4"][:, :1])


def test_a_target_is_kept_from_image_to_image(maps: SaliencyMaps) -> None:
    labels = [[target.label for target in row] for row in maps.targets]
    label = labels[0][1]
    viewer = view(maps, target=label)
    for image in range(1, 6):
        viewer.image = image
        assert viewer.wait(20)
        assert viewer.target == (label if label in labels[image] else labels[image][0])
        label = viewer.target


def test_a_file_and_a_caption(captioner: Any, photo: Path, tmp_path: Path) -> None:
    caption = captioner.caption(photo)[0]
    gl.explain(captioner, photo, [[caption, *caption.words]], layers="layer4").save(tmp_path / "m.h5")
    viewer = view(tmp_path / "m.h5")
    assert viewer.scene["sentence"] == list(caption.words)
    viewer.target = caption.words[1]
    assert viewer.wait(20)
    assert viewer.target == " ".join([caption.words[0], f"[{caption.words[1]}]", *caption.words[2:]])


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the maps of ten thousand images of 160 × 160 at two layers."""
    count, size = 10_000, (160, 160)
    view_of = View.whole(size, size)
    photos = [Photo(f"scenes:{number}", "0" * 64, *size, view_of) for number in range(count)]
    targets = [[Target("class", number % 7, f"class {number % 7}", 1.0)] for number in range(count)]
    maps = {("normgrad", "a"): torch.rand(count, 10, 10), ("normgrad", "b"): torch.rand(count, 5, 5)}
    layers = {"a": MapLayer(1, (16.0, 16.0)), "b": MapLayer(2, (32.0, 32.0))}
    path = tmp_path_factory.mktemp("many") / "many.h5"
    SaliencyMaps(maps, layers, photos, targets, size, Origin({"name": "x"}, "0" * 64)).save(path)
    return path


@pytest.mark.slow
def test_ten_thousand_images_open_in_less_than_a_second(many: Path, open_page: Callable[[Viewer], BarePage]) -> None:
    view(many).close()  # whatever is imported is imported now
    begin = time.perf_counter()
    viewer = view(many)
    took = time.perf_counter() - begin
    print(f"\n10,000 images opened in {took:.3f} s, {len(viewer._maps) + len(viewer._photo)} bytes of maps and photo")
    assert took < 1
    shown = open_page(viewer)
    shown.until("document.querySelectorAll('[role=option] img').length > 5")
    assert shown.page.locator("[role=option]").count() < 40
    shown.page.get_by_role("listbox", name="Images").focus()
    begin = time.perf_counter()
    shown.page.keyboard.press("ArrowDown")
    shown.settled()
    assert shown.viewer.image == 1
    shown.page.get_by_label("Search images").fill("scenes:9999")
    shown.until("document.querySelectorAll('[role=option] img').length === 1")
    assert shown.page.locator("[role=option]").inner_text().startswith("scenes:9999")


def test_a_photo_that_is_gone_leaves_its_maps(maps: SaliencyMaps, open_page: Callable[[Viewer], BarePage]) -> None:
    gone = [Photo("/nowhere/a.png", p.sha256, p.width, p.height, p.view) for p in maps.images]
    lost = SaliencyMaps(
        {k: maps.rows(*k) for k in maps.pairs}, maps.layer_info, gone, maps.targets, maps.size, maps.origin
    )
    shown = open_page(view(lost))
    assert shown.viewer._photo == b""
    before = shown.pixels()
    shown.page.get_by_label("Method").select_option("linear_approx")
    shown.settled()
    assert shown.pixels() != before
    assert shown.viewer.picture().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"image": 6}, "There is no image 6 among these 6"),
        ({"layers": "layer9"}, "no layer 'layer9'"),
        ({"colour": 1}, "A viewer has no 'colour'. Did you mean 'colours'"),
    ],
)
def test_what_is_not_there_is_refused(maps: SaliencyMaps, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(GradlightError, match=said.replace("(", r"\(")):
        view(maps, **asked)
