"""The page for everybody: axe in both themes, and targets that a finger hits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bare_page import BarePage
from chromium import SCENES

import gradlight as gl
from gradlight.widgets.view import view
from gradlight.widgets.viewer import Viewer

_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
# The bare page has no headings and landmarks of its own: that is for the page that a viewer is put into.
_RUN = "(tags) => axe.run('.gradlight', { runOnly: tags, rules: { region: { enabled: false } } })"


def _viewers(kind: str, classifier: Any, captioner: Any, photo: Path) -> Viewer:
    if kind == "caption":
        return view(captioner, photo, layers="stages", combine="product")
    if kind == "panes":
        return view(classifier, photo, layers="stages", compare="method", others=["normgrad", "gradient"])
    if kind == "browsed":
        return view(gl.explain(classifier, sorted(SCENES.glob("scene_*.png")), ["top2"]))
    return view(classifier, photo, layers="stages", display="contours", meta=gl.Meta(lr=0.01))


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["class", "caption", "panes", "browsed"])
def test_axe_finds_nothing(
    kind: str,
    theme: str,
    classifier: Any,
    captioner: Any,
    photo: Path,
    tools: Path,
    page: Any,
    open_page: Callable[[Viewer], BarePage],
) -> None:
    page.emulate_media(color_scheme=theme)
    shown = open_page(_viewers(kind, classifier, captioner, photo))
    shown.viewer.theme = theme
    shown.settled()
    shown.until("[...document.querySelectorAll('[role=option]')].every((each) => each.querySelector('img'))")
    page.add_script_tag(path=str(tools / "axe-core" / "axe.min.js"))
    found = page.evaluate(_RUN, _TAGS)
    said = [(each["id"], each["nodes"][0]["html"], each["nodes"][0]["failureSummary"]) for each in found["violations"]]
    assert said == []
    assert len(found["passes"]) > 15


@pytest.mark.parametrize("kind", ["class", "caption", "panes", "browsed"])
def test_every_target_is_24_pixels(
    kind: str, classifier: Any, captioner: Any, photo: Path, open_page: Callable[[Viewer], BarePage]
) -> None:
    shown = open_page(_viewers(kind, classifier, captioner, photo))
    sizes = shown.page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, [role=option], canvas')]
          .map((each) => each.closest('label') ?? each)
          .filter((each) => each.checkVisibility())
          .map((each) => [each.outerHTML.slice(0, 80), each.getBoundingClientRect()])
          .map(([text, { width, height }]) => [text, width, height])"""
    )
    assert len(sizes) > 8
    assert [each for each in sizes if min(each[1:]) < 24] == []


def test_every_control_is_reached_and_named(
    classifier: Any, photo: Path, open_page: Callable[[Viewer], BarePage]
) -> None:
    shown = open_page(view(classifier, photo, layers="stages"))
    snapshot = shown.page.locator(".gradlight").aria_snapshot()
    for line in (
        'combobox "Compare"', 'button "Save the picture as PNG"', 'application "Picture 1: arrow keys read values"',
        'slider "Layer"', 'group "Target"', 'searchbox "Search 16 classes"', 'combobox "Method"',
        'group "Meta-saliency"', 'group "Combination"', 'group "Display"', 'combobox "Colours"', 'combobox "Range"',
        'slider "Opacity"',
    ):  # fmt: skip
        assert line in snapshot
    reached = set()
    for _ in range(30):
        shown.page.keyboard.press("Tab")
        reached.add(shown.page.evaluate("() => document.activeElement.id || document.activeElement.tagName"))
    assert {"CANVAS", "BUTTON", "INPUT"} <= reached
    assert len([each for each in reached if each.startswith("gl")]) >= 5
