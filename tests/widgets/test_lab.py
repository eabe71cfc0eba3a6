"""The viewer in JupyterLab: keys, words, and notebooks that are saved and opened again."""

from __future__ import annotations

import base64
import importlib.util
import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from chromium import SCENES
from lab import Lab, Notebook, start
from PIL import Image

pytestmark = pytest.mark.slow

_STATE = "@jupyter-widgets/jupyterlab-manager:saveWidgetState"
_PICTURE = ".jp-OutputArea img[src^='data:image/png']"
_START = "import torch\ntorch.set_num_threads(1)\nimport gradlight as gl\n"
_STAGES = ["input", "layer1", "layer2", "layer3", "layer4"]

Open = Callable[..., Notebook]


def _viewer(model: str, arguments: str) -> str:
    return f"{_START}viewer = gl.view(gl.{model}('scenes'), {str(SCENES / 'scene_5.png')!r}, {arguments})\nviewer"


CLASSIFIER = _viewer("classifier", f"layers={_STAGES}, methods=['selective_normgrad', 'gradient']")
CAPTIONER = _viewer("captioner", "layers='layer4', methods='selective_normgrad'")


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    for needed in ("jupyterlab", "ipykernel"):
        if importlib.util.find_spec(needed) is None:
            pytest.skip(f"{needed} is not installed, so the viewer cannot be tried in JupyterLab")
    running = start(tmp_path_factory.mktemp("lab"))
    yield running
    running.stop()


@pytest.fixture
def opened(lab: Lab, browser: Any) -> Iterator[Open]:
    """Open notebooks, each with an empty page; an error there, or a request that leaves, fails the test."""
    books: list[Notebook] = []
    troubles: list[str] = []

    def show(name: str, *cells: str) -> Notebook:
        if cells:
            lab.write(name, *cells)
        page = browser.new_page(viewport={"width": 1400, "height": 1000})
        page.on("pageerror", lambda error: troubles.append(f"{error.stack or error}"))
        page.on("request", lambda asked: troubles.append(asked.url) if _leaves(asked.url) else None)
        books.append(Notebook(page, lab, name))
        return books[-1]

    def _leaves(url: str) -> bool:
        return not url.startswith((f"{lab.url}/", "data:", "blob:"))

    yield show
    for book in books:
        if not book.page.is_closed():
            book.close()
    assert troubles == []


def test_a_classifiers_layers_methods_and_classes(opened: Open) -> None:
    book = opened("classifier.ipynb", CLASSIFIER)
    book.run()
    seen = [book.pixels()]
    first, second = book.viewer.get_by_role("radio").evaluate_all("(all) => all.slice(0, 2).map((one) => one.value)")
    book.shows(first, "selective_normgrad", "layer4", "off", "0")
    book.viewer.get_by_label("Layer").focus()
    for layer in ("layer3", "layer2"):
        book.page.keyboard.press("ArrowLeft")
        book.shows(first, "selective_normgrad", layer, "off", "0")
        seen.append(book.pixels())
    book.viewer.get_by_label("Method").select_option("gradient")
    book.shows(first, "gradient", "layer2", "off", "0")
    seen.append(book.pixels())
    book.viewer.get_by_role("radio", name=second).click()
    book.shows(second, "gradient", "layer2", "off", "0")
    seen.append(book.pixels())
    assert len(set(seen)) == 5
    assert book.python("(viewer.target, viewer.method, viewer.layer)") == repr((second, "gradient", "layer2"))
    # And the other way.
    book.python("setattr(viewer, 'layer', 'input')")
    book.shows(second, "gradient", "input", "off", "0")


def test_shortcuts_neither_leak_in_nor_are_swallowed(opened: Open, lab: Lab) -> None:
    book = opened("keys.ipynb", CLASSIFIER, "1 + 1")
    book.run()
    slider = book.viewer.get_by_label("Layer")
    slider.click()
    cells = book.cells()
    # In command mode: cells above and below, new, cut and deleted ones, Markdown, run.
    for key in ("ArrowUp", "ArrowDown", "j", "k", "a", "b", "x", "d", "d", "m", "Enter"):
        slider.press(key)
    assert book.cells() == cells
    assert [cell["cell_type"] for cell in lab.read("keys.ipynb")["cells"]] == ["code", "code"]
    assert lab.read("keys.ipynb")["cells"][0]["outputs"] == []
    slider.press("Control+s")
    book.until("!jupyterapp.shell.currentWidget.context.model.dirty")
    assert "image/png" in lab.read("keys.ipynb")["cells"][0]["outputs"][-1]["data"]
    # Shift+Enter runs the cell and leaves it; outside the viewer, Jupyter's keys are Jupyter's.
    slider.press("Shift+Enter")
    book.until("document.activeElement.closest('.gradlight') === null")
    assert book.cells() == (2, 1)
    book.page.keyboard.press("Escape")
    book.page.keyboard.press("b")
    assert book.cells() == (3, 2)


def test_a_captions_words(opened: Open) -> None:
    book = opened("words.ipynb", CAPTIONER)
    book.run()
    buttons = book.viewer.get_by_role("group", name="Caption").get_by_role("button")
    words = buttons.all_inner_texts()[1:]
    assert book.python("' '.join(viewer.scene['sentence'])") == repr(" ".join(words))
    rest = ("selective_normgrad", "layer4", "off", "0")
    seen = [book.pixels()]
    buttons.nth(2).click()
    book.shows(" ".join([words[0], f"[{words[1]}]", *words[2:]]), *rest)
    seen.append(book.pixels())
    buttons.nth(4).click(modifiers=["Shift"])
    asked = " ".join([words[0], f"[{words[1]}", words[2], f"{words[3]}]", *words[4:]])
    book.shows(asked, *rest)
    seen.append(book.pixels())
    assert len(set(seen)) == 3
    pressed = buttons.evaluate_all("(all) => all.map((each) => each.ariaPressed)")
    assert pressed == ["false", "false", "true", "true", "true"] + ["false"] * (len(words) - 4)
    assert book.python("viewer.wait(20) and viewer.target") == repr(asked)
    assert book.python("[(part.start, part.stop) for part in viewer.maps.targets[0]]") == "[(1, 4)]"


def test_a_saved_notebook_shows_the_picture_until_it_is_run(opened: Open, lab: Lab) -> None:
    book = opened("saved.ipynb", CLASSIFIER)
    book.run()
    assert book.page.locator(_PICTURE).count() == 0
    book.save()
    saved = lab.read("saved.ipynb")
    kept = saved["cells"][0]["outputs"][0]["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(kept["image/png"])))
    # Another's notebook: this Jupyter has not signed it, and so trusts none of its programs.
    saved["metadata"]["author"] = "someone else"
    lab.put("theirs.ipynb", saved)
    again = opened("theirs.ipynb")
    image = again.page.locator(_PICTURE)
    image.wait_for()
    assert image.evaluate("(image) => [image.naturalWidth, image.naturalHeight]") == list(picture.size)
    assert again.viewer.count() == 0
    again.run()
    assert again.page.locator(_PICTURE).count() == 0
    again.viewer.get_by_label("Layer").press("Home")
    again.until("document.querySelector('.gradlight').dataset.shown.includes('| input |')")


def test_a_trusted_notebook_that_kept_its_widgets_shows_the_viewer_at_once(opened: Open, lab: Lab) -> None:
    book = opened("kept.ipynb", CLASSIFIER)
    book.command(_STATE)
    book.run()
    before = book.pixels()
    book.save()
    assert "widgets" in lab.read("kept.ipynb")["metadata"]
    book.close()
    again = opened("kept.ipynb")
    again.settled()
    assert again.pixels() == before
    # Nobody has run anything: there is nothing behind the viewer but what was saved.
    assert again.python("viewer").startswith("NameError")
    again.viewer.get_by_label("Layer").press("ArrowLeft")
    again.until("document.querySelector('.gradlight').dataset.shown.includes('| layer3 |')")
    again.settled()
    assert again.pixels() != before
    again.command(_STATE)


def test_the_theme_is_the_notebooks(opened: Open) -> None:
    book = opened("themes.ipynb", CLASSIFIER)
    book.run()
    paper = "(each) => getComputedStyle(each).backgroundColor"
    light = book.viewer.evaluate(paper)
    book.command("apputils:change-theme", theme="JupyterLab Dark")
    book.until("document.body.dataset.jpThemeLight === 'false'")
    dark = book.viewer.evaluate(paper)
    assert (light, dark) == ("rgb(255, 255, 255)", "rgb(22, 25, 29)")
