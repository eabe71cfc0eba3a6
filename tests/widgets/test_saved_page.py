"""A viewer as one file, opened from the disk without a network or a kernel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.widgets.view import view


def _open(page: Any, path: Path) -> None:
    page.context.set_offline(True)
    page.goto(path.as_uri())
    page.wait_for_selector(".gradlight[data-missing='0']")


def test_it_works_offline(page: Any, classifier: Any, photo: Path, tmp_path: Path) -> None:
    viewer = view(classifier, photo, "top5", layers=["layer2", "layer3", "layer4"])
    viewer.save_html(tmp_path / "v.html")
    _open(page, tmp_path / "v.html")
    before = page.evaluate("() => document.querySelector('canvas').toDataURL()")
    page.get_by_label("Layer").focus()
    page.keyboard.press("ArrowLeft")
    page.get_by_role("radio").nth(2).click()
    page.locator(".gradlight[data-shown*='layer3']").wait_for()
    assert page.evaluate("() => document.querySelector('canvas').toDataURL()") != before
    page.get_by_label("Compare").select_option("target")
    page.locator("canvas").nth(1).wait_for()
    assert page.locator(".gradlight").get_attribute("data-missing") == "0"


def test_it_offers_only_what_it_holds(page: Any, captioner: Any, photo: Path, tmp_path: Path) -> None:
    viewer = view(captioner, photo, layers="layer4")
    words = viewer.scene["sentence"]
    viewer.target = f"[{words[0]}] {' '.join(words[1:])}"
    assert viewer.wait(20)
    viewer.save_html(tmp_path / "v.html")
    _open(page, tmp_path / "v.html")
    buttons = page.get_by_role("group", name="Caption").get_by_role("button")
    enabled = buttons.evaluate_all("(all) => all.map((each) => !each.disabled)")
    assert enabled == [True, True] + [False] * (len(words) - 1)
    methods = page.get_by_label("Method").evaluate("(list) => [...list.options].map((each) => each.value)")
    assert methods == viewer.maps.methods
    assert page.get_by_role("textbox").count() + page.get_by_role("searchbox").count() == 0
    assert page.get_by_role("button", name="Save the maps as HDF5").count() == 0


def test_no_label_ends_the_page_early(page: Any, classifier: Any, photo: Path, tmp_path: Path) -> None:
    bad = "</script><script>document.title = 'broken'</script><!--"
    model = gl.classifier(classifier.network, labels=[bad, *map(str, range(15))], preprocess=_small)
    view(model, photo, 0, layers="layer4").save_html(tmp_path / "v.html")
    _open(page, tmp_path / "v.html")
    assert page.title() != "broken"
    assert page.get_by_text(bad).count() > 0


def _small(picture: Any) -> Any:
    from torchvision.transforms.functional import pil_to_tensor, resize

    return resize(pil_to_tensor(picture).float() / 255, [64, 64], antialias=True)


def test_without_a_program_there_is_a_picture(browser: Any, classifier: Any, photo: Path, tmp_path: Path) -> None:
    view(classifier, photo, layers="layer4").save_html(tmp_path / "v.html")
    page = browser.new_context(java_script_enabled=False).new_page()
    page.goto((tmp_path / "v.html").as_uri())
    assert page.locator("noscript img").bounding_box()["width"] > 200
    page.context.close()


def test_a_path_that_cannot_be_written_is_one_sentence(classifier: Any, photo: Path, tmp_path: Path) -> None:
    viewer = view(classifier, photo, layers="layer4")
    with pytest.raises(GradlightError, match=r"the page cannot be written .* Name a folder that exists"):
        viewer.save_html(tmp_path / "none" / "v.html")
