"""What the benchmarks of the viewer share: a browser, the tests' pages that stand in for a notebook, the samples."""

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
    """Start a browser for as long as it is needed."""
    import chromium

    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit('A browser is driven by playwright, which is not here: pip install -e ".[dev]"')
    path = chromium.found()
    if path is None:
        sys.exit("There is no chromium on the path (nor named by CHROMIUM), so nothing can be looked at: make browser")
    with sync_playwright() as running:
        started = chromium.launch(running, path)
        yield started
        started.close()
