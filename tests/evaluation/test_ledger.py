"""The ledger: what was done stays done, after a kill, a torn line, with the same bits."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gradlight.errors import GradlightError
from gradlight.evaluation.ledger import Ledger

_WORK = """
import sys, time
from pathlib import Path
from gradlight.evaluation.ledger import Ledger

ledger = Ledger(Path(sys.argv[1]), {"seed": 1})
for number in range(200):
    ledger.once(f"unit {number}", lambda: [number / 7, "x" * 5000])
    time.sleep(0.002)
"""


def _never() -> None:
    raise AssertionError("computed a second time")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


@pytest.mark.parametrize("kept", [True, False])
def test_computes_each_key_once(path: Path, kept: bool) -> None:
    ledger = Ledger(path if kept else None, {})
    assert ledger.once("a", lambda: 1) == 1
    assert ledger.once("a", _never) == 1
    assert "a" in ledger
    assert "b" not in ledger


def test_floats_survive_exactly_and_fresh_values_are_as_kept_ones(path: Path) -> None:
    value = {"x": [0.1 + 0.2, 1e-310, -0.0, math.nan, math.inf], "y": (1, None, "é", True)}
    fresh = Ledger(path, {}).once("k", lambda: value)
    again = Ledger(path, {}).once("k", _never)
    assert repr(fresh) == repr(again)
    assert repr(again["x"]) == "[0.30000000000000004, 1e-310, -0.0, None, None]"
    assert again["y"] == [1, None, "é", True]


def test_an_error_keeps_nothing(path: Path) -> None:
    ledger = Ledger(path, {})
    with pytest.raises(AssertionError, match="second time"):
        ledger.once("k", _never)
    assert Ledger(path, {}).once("k", lambda: 3) == 3


@pytest.mark.parametrize("cut", range(1, 40))
def test_a_torn_line_is_dropped_wherever_it_was_cut(path: Path, cut: int) -> None:
    ledger = Ledger(path, {"seed": 1})
    ledger.once("a", lambda: 1.5)
    whole = path.read_bytes()
    ledger.once("b", lambda: "a long enough value")
    path.write_bytes(path.read_bytes()[: len(whole) + cut])
    again = Ledger(path, {"seed": 1})
    assert "a" in again
    assert "b" not in again
    assert path.read_bytes() == whole
    again.once("b", lambda: 2)
    assert Ledger(path, {"seed": 1}).once("b", _never) == 2


def test_a_torn_first_line_is_written_anew(path: Path) -> None:
    Ledger(path, {"seed": 1})
    whole = path.read_bytes()
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        Ledger(path, {"seed": 1})
        assert path.read_bytes() == whole


def test_another_run_is_refused_and_what_differs_is_named(path: Path) -> None:
    Ledger(path, {"seed": 1, "weights": "a" * 100, "layers": ["x"]}).once("a", lambda: 1)
    before = path.read_bytes()
    with pytest.raises(
        GradlightError, match=r"seed was 1, is 2; weights was \"a+…, is null; extra was null, is true\."
    ):
        Ledger(path, {"seed": 2, "layers": ("x",), "extra": True})
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["a note of mine", "a note of mine\n", "[1]\n", '{"key": 1}\n', "\n"])
def test_what_is_no_ledger_is_left_alone(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(GradlightError, match="not the ledger of an experiment"):
        Ledger(path, {})
    assert path.read_text() == content


def test_damage_in_the_middle_is_told(path: Path) -> None:
    ledger = Ledger(path, {})
    for key in "abc":
        ledger.once(key, lambda: 0)
    path.write_bytes(path.read_bytes().replace(b'"key": "b"', b'"key; "b"'))
    with pytest.raises(GradlightError, match="line 3 of the ledger is damaged"):
        Ledger(path, {})


def test_a_folder_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"nowhere.*cannot be written"):
        Ledger(tmp_path / "nowhere" / "ledger.jsonl", {})
    with pytest.raises(GradlightError, match="directory"):
        Ledger(tmp_path, {})


def test_a_killed_run_goes_on(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", _WORK, str(path)]) as process:
        deadline = time.monotonic() + 60
        while not path.exists() or path.stat().st_size < 20_000:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
    ledger = Ledger(path, {"seed": 1})
    assert "unit 0" in ledger
    assert "unit 199" not in ledger
    for number in range(200):
        assert ledger.once(f"unit {number}", lambda number=number: [number / 7, "x" * 5000])[0] == number / 7
    keys = [json.loads(line)["key"] for line in path.read_bytes().splitlines()[1:]]
    assert keys == [f"unit {number}" for number in range(200)]
