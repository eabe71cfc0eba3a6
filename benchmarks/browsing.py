"""Shared by the benchmarks of the viewer: a browser, the test pages that replace a notebook, and the sample scenes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["SCENES", "browser"]

_ROOT = Path(__file__).resolve().parents[1]
SCENES = _ROOT / "data" / "bundled"

sys.path.append(str(_ROOT / "tests" / "widgets"))


@contextmanager
def browser() -> Iterator[Any]:
    """Start a browser, and close it at the end of the block."""
    import chromium

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit('The package playwright, which controls the browser, is not installed: pip install -e ".[dev]"')
    path = chromium.found()
    if path is None:
        sys.exit("chromium is not found on the path, nor named by CHROMIUM: make browser")
    with sync_playwright() as running:
        started = chromium.launch(running, path)
        yield started
        started.close()
