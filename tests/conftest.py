"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before torch is loaded: threads that wait by spinning take the processors from the other workers.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Give the folder of outside truth (oracles, photos, bad images) that lies beside a checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"the folder of outside truth is not here: {SHARED.name}/ beside the checkout")
    return SHARED
