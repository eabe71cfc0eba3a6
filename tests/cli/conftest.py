"""The command line, run in the tests' own process."""

from __future__ import annotations

import sys

import pytest

from gradlight.cli.app import main


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run the command line in this process; give exit status, standard output and standard error."""

    def call(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradlight", *map(str, arguments)])
        with pytest.raises(SystemExit, match=r"^\d$") as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return call
