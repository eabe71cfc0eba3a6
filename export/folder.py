"""The folder of an export's shards: finished shards, stopped shards, the record of parameters, and the lock.

Every file is complete under its name: it is written under a temporary name first.
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

__all__ = ["LOCK", "ShardFolder", "locked"]

_RECORD = "export.json"
_SHARD_OR_PART = re.compile(r"shard-\d{5}\.h5|part-\d{5}-\d+\.h5")
_PART = re.compile(r"part-(\d{5})-(\d+)\.h5")


class ShardFolder:
    """The folder `maps.shards` of an output `maps.h5`.

    shard-00003.h5 is a finished shard. part-00003-007.h5 is one that was stopped after its first 7 batches.
    export.json is the record: the parameters of the export.

    Args:
        output: The output; its folder must exist.

    Example:
        >>> from pathlib import Path
        >>> ShardFolder(Path("maps.h5")).shard(3).as_posix()
        'maps.shards/shard-00003.h5'
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.path = output.with_suffix(".shards")

    # The export

    def record(self) -> dict[str, Any] | None:
        """Read the parameters of the export; None if none was begun.

        Raises:
            GradlightError: The record cannot be read.
        """
        path = self.path / _RECORD
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise GradlightError(f"{path}: cannot be read ({error}). --overwrite begins the export again.") from error
        if not isinstance(record, dict):
            raise GradlightError(f"{path}: not the record of an export. --overwrite begins the export again.")
        return record

    def begin(self, record: dict[str, Any]) -> None:
        """Write the parameters of the export."""
        replace_file(self.path / _RECORD, json.dumps(record, indent=1).encode())

    def has_shards(self) -> bool:
        """Tell whether there is a finished or a stopped shard."""
        return any(_SHARD_OR_PART.fullmatch(path.name) for path in self.path.glob("*.h5"))

    def publish(self, number: int) -> None:
        """Make a finished shard the output itself, which replaces an existing file."""
        try:
            os.replace(self.shard(number), self.output)
        except OSError as error:
            raise GradlightError(f"{self.output}: cannot be written ({error}).") from error
        self.clear()

    def end(self) -> None:
        """Remove the record: the export is finished."""
        (self.path / _RECORD).unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove all files of the export, and no others."""
        self.end()
        self.remove_temporary_files()
        for path in self.path.glob("*.h5"):
            if _SHARD_OR_PART.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def remove_if_unused(self) -> None:
        """Remove the folder if it has no shard and no record, after the lock is released."""
        if not self.has_shards() and self.record() is None:
            (self.path / LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # it is not empty, or another export has it
            self.path.rmdir()

    def remove_temporary_files(self) -> None:
        """Remove the temporary files of an export that was killed."""
        for path in self.path.glob(".gradlight-*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()

    # The shards

    def shard(self, number: int) -> Path:
        """Name the file of a shard."""
        return self.path / f"shard-{number:05d}.h5"

    def finished(self, count: int) -> set[int]:
        """Give the numbers of the finished shards below a count; a damaged one does not count."""
        return {number for number in range(count) if self.shard(number).exists() and _is_complete(self.shard(number))}

    def write_shard(self, number: int, stored: StoredMaps, **options: Any) -> None:
        """Write a finished shard, and remove its stopped versions."""
        write(self.shard(number), stored, overwrite=True, **options)
        for _, path in self._parts(number):
            path.unlink(missing_ok=True)

    def write_part(self, number: int, batches: int, stored: StoredMaps, **options: Any) -> None:
        """Write the first batches of a shard that is being stopped."""
        before = self._parts(number)
        write(self.path / f"part-{number:05d}-{batches:03d}.h5", stored, overwrite=True, **options)
        for part_batches, path in before:
            if part_batches != batches:
                path.unlink(missing_ok=True)

    def read_part(self, number: int) -> tuple[int, StoredMaps | None]:
        """Read a stopped shard: the number of its batches, and their maps; (0, None) if there is none."""
        for batches, path in sorted(self._parts(number), reverse=True):
            with contextlib.suppress(GradlightError):
                return batches, read(path)
        return 0, None

    def _parts(self, number: int) -> Sequence[tuple[int, Path]]:
        """Find the stopped versions of a shard, each with the number of its batches."""
        matches = [(_PART.fullmatch(path.name), path) for path in self.path.glob(f"part-{number:05d}-*.h5")]
        return [(int(match[2]), path) for match, path in matches if match]


def _is_complete(path: Path) -> bool:
    try:
        with MapsFile(path) as file:
            return file.complete
    except GradlightError:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# The lock

LOCK = ".lock"
"""The name of the lock's file in the folder; hidden, so that no search for images finds it."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock a folder of shards, so that one export writes to it; the system releases the lock of a killed process.

    Args:
        folder: The folder.

    Raises:
        GradlightError: The folder is locked; the error names the process and the host.
    """
    owner = folder / "owner.json"
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise GradlightError(
            f"Another export writes to {folder}: {_format_owner(owner)}. Wait for it, or stop it."
        ) from error
    try:
        owner.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}), encoding="utf-8")
        yield
    finally:
        with contextlib.suppress(OSError):
            owner.unlink()
        lock.release()


def _format_owner(owner: Path) -> str:
    try:
        fields = json.loads(owner.read_text(encoding="utf-8"))
        return f"process {fields['pid']} on {fields['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "its process is unknown"
