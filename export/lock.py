"""One export at a time for one output."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from ..errors import GradlightError

__all__ = ["LOCK", "held"]

LOCK = ".lock"
"""The name of the lock's file in the folder; hidden, so that no search for images finds it."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder of shards; the system lets go of it even when the process is killed.

    Raises GradlightError that names the process and the host that hold it.
    """
    owner = folder / "owner.json"
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise GradlightError(f"Another export writes to {folder}: {_told(owner)}. Wait for it, or stop it.") from error
    try:
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def _told(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {found['pid']} on {found['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "it does not say which process it is"
