"""A Chromium without a window, which asks nobody for anything; and where the tests and the scenes are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

__all__ = ["HERE", "SCENES", "found", "launch"]

HERE = Path(__file__).parent
SCENES = HERE.parents[1] / "data" / "bundled"

_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_FLAGS += ["--disable-component-update", "--disable-sync"]


def found() -> str | None:
    """Find the browser: the one that CHROMIUM names, or one on the path."""
    return os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")


def launch(playwright: Any, path: str | None) -> Any:
    """Start it."""
    return playwright.chromium.launch(executable_path=path, args=_FLAGS)
