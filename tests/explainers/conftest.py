"""Fixtures of the mathematics."""

from __future__ import annotations

from pathlib import Path

import pytest
from oracle import Oracle


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Oracle:
    """Give the numbers of the peers, with the networks and photos that they belong to."""
    return Oracle(shared / "oracles" / "classifiers")
