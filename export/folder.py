"""The shards of an export on disk: a folder beside the output, in which every file is whole under its name.

One export at a time for one output.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..data.hdf5.reader import MapsFile, read
from ..data.hdf5.schema import StoredMaps
from ..data.hdf5.writer import write
from ..errors import GradlightError
from ..files import replace_file

__all__ = ["LOCK", "ShardFolder", "held"]

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


_RECORD = "export.json"
_OURS = re.compile(r"shard-\d{5}\.h5|part-\d{5}-\d+\.h5")
_PART = re.compile(r"part-(\d{5})-(\d+)\.h5")


class ShardFolder:
    """The folder `maps.shards` of an output `maps.h5`.

    shard-00003.h5 is a finished shard. part-00003-007.h5 is one that was stopped after its first 7 batches.
    export.json says what is being exported.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_suffix(".shards")

    def shard(self, number: int) -> Path:
        """Name the file of a shard."""
        return self.path / f"shard-{number:05d}.h5"

    def record(self) -> dict[str, Any] | None:
        """Read what is being exported; None where nothing was begun.

        Raises GradlightError for a record that cannot be read.
        """
        path = self.path / _RECORD
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise GradlightError(f"{path}: cannot be read ({error}). --overwrite begins the export anew.") from error
        if not isinstance(found, dict):
            raise GradlightError(f"{path}: not the record of an export. --overwrite begins the export anew.")
        return found

    def begin(self, record: dict[str, Any]) -> None:
        """Write what is being exported."""
        replace_file(self.path / _RECORD, json.dumps(record, indent=1).encode())

    def holds_work(self) -> bool:
        """Tell whether a shard or a part of one is kept."""
        return any(_OURS.fullmatch(path.name) for path in self.path.glob("*.h5"))

    def publish(self, number: int) -> None:
        """Make a finished shard the output itself, which replaces what is there."""
        try:
            os.replace(self.shard(number), self.output)
        except OSError as error:
            raise GradlightError(f"{self.output}: cannot be written ({error}).") from error
        self.clear()

    def end(self) -> None:
        """Forget what is being exported: it is finished."""
        (self.path / _RECORD).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all that was begun, and nothing that is not an export's."""
        self.end()
        self.sweep()
        for path in self.path.glob("*.h5"):
            if _OURS.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def leave(self) -> None:
        """Remove the folder if no work is in it, after the lock is given up."""
        if not self.holds_work() and self.record() is None:
            (self.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty, or another export has it
            self.path.rmdir()

    def sweep(self) -> None:
        """Remove what a killed export had under a temporary name."""
        for left in self.path.glob(".gradlight-*.tmp"):
            with contextlib.suppress(OSError):
                left.unlink()

    def finished(self, count: int) -> set[int]:
        """Number the shards that are finished and whole; one that is damaged counts as not there."""
        return {number for number in range(count) if self.shard(number).exists() and _is_whole(self.shard(number))}

    def write_shard(self, number: int, stored: StoredMaps, **options: Any) -> None:
        """Write a finished shard, and remove what was kept of it before."""
        write(self.shard(number), stored, overwrite=True, **options)
        for _, path in self._parts(number):
            path.unlink(missing_ok=True)

    def write_part(self, number: int, batches: int, stored: StoredMaps, **options: Any) -> None:
        """Write the first batches of a shard that is being stopped."""
        before = self._parts(number)
        write(self.path / f"part-{number:05d}-{batches:03d}.h5", stored, overwrite=True, **options)
        for done, path in before:
            if done != batches:
                path.unlink(missing_ok=True)

    def part(self, number: int) -> tuple[int, StoredMaps | None]:
        """Read what was kept of a shard: how many batches are done, and their maps; 0 and None where nothing is."""
        for done, path in sorted(self._parts(number), reverse=True):
            with contextlib.suppress(GradlightError):
                return done, read(path)
        return 0, None

    def _parts(self, number: int) -> Sequence[tuple[int, Path]]:
        found = [(_PART.fullmatch(path.name), path) for path in self.path.glob(f"part-{number:05d}-*.h5")]
        return [(int(match[2]), path) for match, path in found if match]


def _is_whole(path: Path) -> bool:
    try:
        with MapsFile(path) as file:
            return file.complete
    except GradlightError:
        return False
