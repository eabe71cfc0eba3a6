"""An export that is killed at any moment loses nothing that was finished, and ends in the very same maps."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import pytest
from small import Heard, assert_same, photos, run, settings

import gradlight as gl
from gradlight.data.hdf5.verify import verify
from gradlight.export.run import UnfinishedError

IMAGES = 200
FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["small"])


def _export(paths: list[str], output: Path, limit: int | None = None) -> None:
    """Run an export as a process of its own would; limit: the largest file, in bytes, that it may write."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    status = 0
    try:
        run(paths, output, settings(batch_size=8), resume=True, images_per_shard=24)
    except UnfinishedError:
        status = 1
    except gl.GradlightError:
        status = 2
    os._exit(status)


def _started(paths: list[str], output: Path, limit: int | None = None) -> multiprocessing.process.BaseProcess:
    process = FORK.Process(target=_export, args=(paths, output, limit))
    process.start()
    return process


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return photos(tmp_path_factory.mktemp("photos"), IMAGES)


@pytest.fixture(scope="module")
def whole(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    output = tmp_path_factory.mktemp("whole") / "maps.h5"
    process = _started(paths, output)
    begun = time.monotonic()
    process.join(120)
    assert process.exitcode == 0
    return output, time.monotonic() - begun


def _everything_seen_is_sound(output: Path) -> None:
    files = [*output.with_suffix(".shards").glob("*.h5"), *([output] if output.exists() else [])]
    for file in files:
        # The very last moment of an export removes parts that are part of a shard by then.
        with contextlib.suppress(FileNotFoundError):
            assert verify(file) == [], file


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_at_random_moments(
    paths: list[str], whole: tuple[Path, float], tmp_path: Path, how: signal.Signals
) -> None:
    chance, finished, stopped = random.Random(int(how)), 0, 0
    output = tmp_path / "maps.h5"
    for _ in range(100 if how == signal.SIGKILL else 25):
        process = _started(paths, output)
        process.join(chance.uniform(0, 0.6 * whole[1]))
        if process.is_alive() and process.pid is not None:
            os.kill(process.pid, how)
            stopped += 1
        process.join(120)
        assert process.exitcode in (0, 1, -how)
        _everything_seen_is_sound(output)
        if output.exists():
            assert_same(output, whole[0])
            finished += 1
            output.unlink()
            for path in output.with_suffix(".shards").glob("*.h5"):
                path.unlink()
    assert stopped > 10
    while not output.exists():
        _started(paths, output).join(120)
        finished += 1
    assert finished > 0
    assert_same(output, whole[0])
    assert not list(output.with_suffix(".shards").glob(".gradlight-*.tmp"))


@pytest.mark.slow
def test_a_full_disk_keeps_what_was_done(paths: list[str], whole: tuple[Path, float], tmp_path: Path) -> None:
    output = tmp_path / "maps.h5"
    shard = max(path.stat().st_size for path in whole[0].with_suffix(".shards").glob("shard-*.h5"))
    process = _started(paths[:30], output, limit=shard // 2)
    process.join(120)
    assert process.exitcode == 2, "the first shard does not fit, so nothing was done"
    process = _started(paths, output, limit=shard // 2)
    process.join(120)
    assert not output.exists()
    _everything_seen_is_sound(output)
    _started(paths, output).join(120)
    assert_same(output, whole[0])


def test_an_error_on_the_way_keeps_whole_batches(paths: list[str], tmp_path: Path) -> None:
    class Failing(Heard):
        def batch(self, batch: object) -> None:
            super().batch(batch)  # type: ignore[arg-type]
            if len(self.batches) == 4:
                raise gl.GradlightError("the disk is full")

    output = tmp_path / "maps.h5"
    with pytest.raises(UnfinishedError, match=r"the disk is full. 1 of 3 shards are finished, .*--resume"):
        run(paths[:24], output, heard=Failing())
    kept = sorted(path.name for path in output.with_suffix(".shards").glob("*.h5"))
    assert kept == ["part-00001-002.h5", "shard-00000.h5"]
    _everything_seen_is_sound(output)
    run(paths[:24], output, resume=True)
    run(paths[:24], tmp_path / "whole.h5")
    assert_same(output, tmp_path / "whole.h5")
