"""A browser for the viewer's pages, networks to look at, and where the tools of JavaScript lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chromium
import pytest
import torch
from bare_page import BarePage

import gradlight as gl
from gradlight.widgets.viewer import Viewer


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def classifier() -> Any:
    return gl.classifier("scenes")


@pytest.fixture(scope="session")
def captioner() -> Any:
    return gl.captioner("scenes")


@pytest.fixture(scope="session")
def photo() -> Path:
    """Give a scene: a blue and an orange crescent, a green heart, a green triangle."""
    return chromium.SCENES / "scene_5.png"


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to drive")
    path = chromium.found()
    if path is None:
        pytest.skip("there is no chromium on the path (nor named by CHROMIUM), so no page can be looked at")
    with playwright.sync_playwright() as running:
        started = chromium.launch(running, path)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """Give an empty page; any error on it, and any request that leaves, fails the test."""
    made = browser.new_page(viewport={"width": 1240, "height": 900})
    errors: list[str] = []
    made.on("pageerror", lambda error: errors.append(str(error)))
    made.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    made.on("request", lambda asked: errors.append(asked.url) if _leaves(asked.url) else None)
    yield made
    made.close()
    assert errors == []


def _leaves(url: str) -> bool:
    return not url.startswith(("file:", "blob:", "data:", "about:"))


@pytest.fixture
def open_page(page: Any) -> Callable[[Viewer], BarePage]:
    """Show a viewer on a bare page."""

    def show(viewer: Viewer) -> BarePage:
        return BarePage(page, viewer)

    return show


@pytest.fixture(scope="session")
def tools() -> Path:
    """Give the folder of what npm has installed for these tests."""
    found = chromium.HERE / "node_modules"
    if not found.is_dir():
        pytest.skip("the page's test tools are not installed: npm install --no-package-lock, in tests/widgets")
    return found


@pytest.fixture(scope="session")
def node() -> str:
    found = shutil.which("node")
    if found is None:
        pytest.skip("there is no node on the path, so the page's functions cannot be tested alone")
    return found
