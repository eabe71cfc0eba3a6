"""The viewer on a page: the real program in a browser, the real widget behind it."""

from __future__ import annotations

import base64
import io
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bare_page import BarePage
from PIL import Image

import gradlight as gl
from gradlight.widgets.view import view
from gradlight.widgets.viewer import Viewer

Open = Callable[[Viewer], BarePage]
STAGES = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture
def shown(classifier: Any, photo: Path, open_page: Open) -> BarePage:
    return open_page(view(classifier, photo, layers=["input", *STAGES]))


def test_the_slider_changes_the_picture_and_python_hears_of_it_once(shown: BarePage) -> None:
    before = shown.pixels()
    shown.page.get_by_label("Layer").focus()
    for _ in range(3):
        shown.page.keyboard.press("ArrowLeft")
    shown.drawn()
    assert shown.pixels() != before
    assert shown.data()["shown"].split(" | ")[2] == "layer1"
    shown.until("true")
    shown.settled()
    assert shown.viewer.layer == "layer1"
    assert len(shown.to_python) == 1
    assert len(shown.to_python[0]) < 100


def test_the_slider_says_where_it_is(shown: BarePage) -> None:
    slider = shown.page.get_by_label("Layer")
    assert slider.get_attribute("aria-valuetext") == "layer4, 10 by 10, 5 of 5"
    slider.focus()
    shown.page.keyboard.press("Home")
    shown.drawn()
    assert slider.get_attribute("aria-valuetext") == "input, 160 by 160, 1 of 5"


def test_python_changes_the_page(shown: BarePage) -> None:
    shown.viewer.layer = "layer2"
    shown.viewer.method = "gradient"
    shown.settled()
    assert shown.data()["shown"].split(" | ")[1:3] == ["gradient", "layer2"]
    assert shown.page.get_by_label("Method").input_value() == "gradient"


def test_a_method_that_was_not_sent_is_computed(shown: BarePage) -> None:
    before = shown.pixels()
    shown.page.get_by_label("Method").select_option("gradient_sum")
    shown.settled()
    assert shown.viewer.method == "gradient_sum"
    assert "gradient_sum" in shown.viewer.maps.methods
    assert shown.pixels() != before


def test_a_class_is_chosen_among_the_most_probable(shown: BarePage) -> None:
    names = shown.page.get_by_role("radio").evaluate_all("(all) => all.slice(0, 5).map((each) => each.value)")
    assert names == [choice["key"] for choice in shown.viewer.scene["choices"]]
    shown.page.get_by_role("radio", name=names[1]).click()
    shown.settled()
    assert shown.viewer.target == names[1]
    assert shown.data()["shown"].startswith(names[1])


def test_a_class_is_searched(shown: BarePage) -> None:
    shown.page.get_by_placeholder("Search 16 classes").fill("pur")
    shown.until("document.querySelector('.gl-hits, .gl-search li')")
    shown.page.keyboard.press("Enter")
    shown.settled()
    assert shown.viewer.target == "purple"
    assert shown.page.get_by_role("radio", name="purple").is_checked()


def test_words_are_clicked_and_with_shift_several(captioner: Any, photo: Path, open_page: Open) -> None:
    shown = open_page(view(captioner, photo, layers="layer4"))
    words = shown.viewer.scene["sentence"]
    buttons = shown.page.get_by_role("group", name="Caption").get_by_role("button")
    assert buttons.all_inner_texts() == ["Whole caption", *words]
    assert buttons.nth(0).get_attribute("aria-pressed") == "true"
    buttons.nth(2).click()
    shown.settled()
    assert shown.viewer.target == " ".join([words[0], f"[{words[1]}]", *words[2:]])
    buttons.nth(3).focus()
    shown.page.keyboard.press("Shift+Space")
    shown.settled()
    assert shown.viewer.target == " ".join([words[0], f"[{words[1]}", f"{words[2]}]", *words[3:]])
    pressed = buttons.evaluate_all("(all) => all.map((each) => each.ariaPressed)")
    assert pressed == ["false", "false", "true", "true"] + ["false"] * (len(words) - 3)
    expected = gl.explain(captioner, photo, shown.viewer.target, layers="layer4")
    both = shown.viewer.maps["selective_normgrad", "layer4"], expected["selective_normgrad", "layer4"]
    assert both[0].equal(both[1])


def test_another_sentence_can_be_asked_and_a_wrong_one_is_explained(
    captioner: Any, photo: Path, open_page: Open
) -> None:
    shown = open_page(view(captioner, photo, layers="layer4"))
    said = shown.viewer.target
    box = shown.page.get_by_placeholder("Ask about another sentence")
    box.fill("a purple zebra")
    shown.page.keyboard.press("Enter")
    shown.until("document.querySelector('.gl-status').innerText.includes('zebra')")
    assert shown.viewer.target == said
    box.fill("a purple star")
    shown.page.keyboard.press("Enter")
    shown.until("document.querySelector('.gl-sentence').innerText.includes('purple')")
    shown.settled()
    assert shown.viewer.target == "a purple star"


def test_an_impossible_method_is_refused_in_one_sentence(classifier: Any, photo: Path, open_page: Open) -> None:
    shown = open_page(view(classifier, photo, layers="layer1"))
    shown.page.get_by_label("Method").select_option("cam")
    shown.until("document.querySelector('.gl-status').dataset.state === 'failed'")
    shown.settled()
    assert "grad_cam" in shown.page.locator(".gl-status").inner_text()
    assert shown.viewer.method == "selective_normgrad"
    assert shown.page.get_by_label("Method").input_value() == "selective_normgrad"


def test_the_value_under_the_pointer_and_the_keyboards_cross(shown: BarePage) -> None:
    canvas = shown.page.get_by_role("application")
    canvas.focus()
    shown.page.keyboard.press("ArrowRight")
    read = shown.page.locator(".gl-value").inner_text()
    maps = shown.viewer.maps["selective_normgrad", "layer4"][0, 0]
    assert float(maps.min()) - 1e-3 <= float(read) <= float(maps.max()) + 1e-3
    place = canvas.bounding_box()
    assert place is not None
    # The centre of the cell in row 2, column 7 of 10 × 10.
    shown.page.mouse.move(place["x"] + place["width"] * 0.75, place["y"] + place["height"] * 0.25)
    value = float(shown.page.locator(".gl-value").inner_text())
    assert value == pytest.approx(float(maps[2, 7]), abs=0.01 * float(maps.max()))
    shown.page.mouse.move(0, 0)
    assert shown.page.locator(".gl-value").inner_text() == ""


def test_combinations_and_their_weights(shown: BarePage) -> None:
    shown.page.get_by_role("radio", name="Product").click()
    shown.settled()
    assert shown.viewer.combine == "product"
    before = shown.pixels()
    bar = shown.page.get_by_label("Weight of input")
    bar.focus()
    shown.page.keyboard.press("End")
    shown.settled()
    assert shown.pixels() != before
    assert shown.viewer.weights == {"input": 1.0}
    shown.page.get_by_role("button", name="Linear weights").click()
    shown.settled()
    assert shown.viewer.weights == {}
    assert shown.pixels() == before


def test_a_weight_is_dragged(shown: BarePage) -> None:
    shown.viewer.combine = "sum"
    shown.settled()
    place = shown.page.get_by_label("Weight of layer2").bounding_box()
    assert place is not None
    shown.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + place["height"] - 4)
    shown.page.mouse.down()
    shown.page.mouse.move(place["x"] + place["width"] / 2, place["y"] + 2, steps=4)
    shown.page.mouse.up()
    shown.settled()
    assert shown.viewer.weights["layer2"] > 0.9


def test_panes_are_compared_and_linked(shown: BarePage) -> None:
    shown.page.get_by_label("Compare").select_option("method")
    shown.settled()
    shown.page.get_by_role("button", name="Add a pane").click()
    shown.settled()
    assert shown.viewer.others == ["normgrad", "linear_approx"]
    assert len({shown.pixels(i) for i in range(3)}) == 3
    before = [shown.pixels(i) for i in range(3)]
    shown.page.get_by_label("Layer").focus()
    shown.page.keyboard.press("ArrowLeft")
    shown.drawn()
    assert all(shown.pixels(i) != before[i] for i in range(3))
    shown.page.get_by_role("application").nth(1).hover()
    assert all(shown.page.locator(".gl-value").all_inner_texts())
    shown.page.get_by_label("Pane 2", exact=True).select_option("gradient")
    shown.page.get_by_role("button", name="Remove pane 3").click()
    shown.settled()
    assert shown.viewer.others == ["gradient"]


@pytest.mark.parametrize("what", ["layer", "target", "meta"])
def test_everything_else_can_be_compared(shown: BarePage, what: str) -> None:
    shown.viewer.change(target="purple", lr=0.05)
    shown.settled()
    shown.page.get_by_label("Compare").select_option(what)
    shown.settled()
    assert shown.viewer.compare == what
    assert shown.pixels(0) != shown.pixels(1)


def test_the_inner_step(shown: BarePage) -> None:
    # Of a class that is certain the loss, and so the step, is next to nothing.
    shown.viewer.target = "purple"
    shown.settled()
    before = shown.pixels()
    shown.page.get_by_role("radio", name="Ascent").click()
    rate = shown.page.get_by_label("Learning rate")
    rate.fill("0.05")
    rate.press("Enter")
    shown.settled()
    assert (shown.viewer.meta, shown.viewer.lr) == ("ascent", 0.05)
    assert shown.viewer.maps.origin.meta == {"lr": 0.05, "direction": "ascent"}
    assert shown.pixels() != before


@pytest.mark.parametrize(
    ("trait", "values"),
    [
        ("display", ["map", "contours"]),
        ("colours", ["viridis", "grey", "blue-red"]),
        ("normalisation", ["percentile", "symmetric"]),
        ("opacity", [0.2, 1.0]),
    ],
)
def test_every_look_looks_different(shown: BarePage, trait: str, values: list[Any]) -> None:
    seen = {shown.pixels()}
    for value in values:
        setattr(shown.viewer, trait, value)
        shown.settled()
        seen.add(shown.pixels())
    assert len(seen) == len(values) + 1


def test_two_displays_stay_in_step_and_leave_nothing_behind(shown: BarePage) -> None:
    alone = shown.page.evaluate("() => host.listeners()")
    shown.viewer.target = "purple"
    shown.settled()
    shown.show()
    shown.settled()
    shown.page.get_by_label("Layer").nth(1).focus()
    shown.page.keyboard.press("ArrowLeft")
    shown.drawn()
    assert shown.data(0)["shown"] == shown.data(1)["shown"]
    assert shown.pixels(0) == shown.pixels(1)
    assert shown.page.evaluate("() => host.listeners()") == 2 * alone
    shown.page.evaluate("() => { host.close(0); host.close(1); }")
    assert shown.page.evaluate("() => host.listeners()") == 0
    assert shown.page.locator(".gradlight").count() == 0


def test_a_display_opened_later_asks_for_what_it_has_not_got(shown: BarePage) -> None:
    shown.viewer.change(compare="target", others=["purple"])
    shown.settled()
    shown.viewer.others = ["star"]
    shown.settled()
    shown.show()
    shown.settled()
    shown.until("[...document.querySelectorAll('.gradlight')].every((each) => each.dataset.missing === '0')")
    assert {"do": "want"} in shown.asked


def test_keys_pressed_alone_stay_inside(shown: BarePage) -> None:
    shown.page.evaluate("() => { window.keys = []; document.addEventListener('keydown', (e) => keys.push(e.key)); }")
    shown.page.get_by_label("Layer").focus()
    for key in ["ArrowLeft", "b", "d", "M", "Escape", "Control+s", "Shift+Enter", "Enter", "Tab"]:
        shown.page.keyboard.press(key)
    passed = [key for key in shown.page.evaluate("() => keys") if key not in ("Control", "Shift")]
    assert passed == ["Escape", "s", "Enter", "Tab"]


def test_pictures_and_files(shown: BarePage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with shown.page.expect_download() as download:
        shown.page.get_by_role("button", name="Save the picture as PNG").click()
    assert download.value.suggested_filename.endswith(".png")
    shown.until("true")
    picture = Image.open(io.BytesIO(shown.viewer.exported))
    assert picture.width > 400
    shown.page.get_by_role("button", name="Save the maps as HDF5").click()
    shown.until("document.querySelector('.gl-status').innerText.includes('scene_5.h5')")
    assert gl.load(tmp_path / "scene_5.h5").layers == ["input", *STAGES]
    shown.page.get_by_role("button", name="Save the viewer as HTML").click()
    shown.until("document.querySelector('.gl-status').innerText.includes('scene_5.html')")
    assert (tmp_path / "scene_5.html").stat().st_size > 50_000


def test_a_broken_picture_from_the_page_is_one_sentence(shown: BarePage) -> None:
    shown.viewer._handle_custom_msg({"do": "picture", "png": "no"}, [])
    assert shown.viewer.work == {"state": "failed", "text": "The page sent no picture."}
    shown.viewer._handle_custom_msg({"do": "picture", "png": base64.b64encode(b"yes").decode()}, [])
    assert shown.viewer.exported == b"yes"


@pytest.mark.slow
def test_sixty_fast_keys_are_followed_without_python(classifier: Any, photo: Path, open_page: Open) -> None:
    shown = open_page(view(classifier, photo))
    shown.page.get_by_label("Layer").focus()
    shown.page.evaluate(
        """() => {
          window.times = [];
          const root = document.querySelector('.gradlight');
          let pressed = 0;
          root.addEventListener('input', () => (pressed = performance.now()), true);
          new MutationObserver(() => times.push(performance.now() - pressed))
            .observe(root, { attributeFilter: ['data-drawn'] });
        }"""
    )
    for _ in range(60):
        shown.page.keyboard.press("ArrowLeft")
        shown.page.wait_for_timeout(25)
    shown.drawn()
    times = shown.page.evaluate("() => times")
    late = sorted(times)[int(0.95 * len(times))]
    print(f"\n{len(times)} of 60 drawn; median {statistics.median(times):.1f} ms, p95 {late:.1f} ms")
    assert len(times) >= 55
    # The machine may be busy with something else; what is promised is measured by the benchmark.
    assert statistics.median(times) < 60
    assert shown.asked == []
