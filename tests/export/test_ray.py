"""The same export by actors of a Ray cluster of this machine, one of which is killed on the way."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from small import Heard, assert_same, photos, run

from gradlight.data.hdf5.verify import verify
from gradlight.errors import GradlightError
from gradlight.export.lists import Item
from gradlight.export.plan import Shard
from gradlight.export.progress import BatchReport
from gradlight.export.ray_engine import Ray, _from_text, _to_text
from gradlight.export.run import UnfinishedError

IMAGES = 60

# Ray warns of its own ways, and leaves sockets to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning", "ignore::UserWarning:ray"
)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return photos(tmp_path_factory.mktemp("photos"), IMAGES)


@pytest.fixture(autouse=True)
def _actors_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that Ray starts import what these tests hand them."""
    here = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(os.path.abspath, filter(None, here))))


@pytest.fixture(scope="module")
def whole(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "maps.h5"
    run(paths, output)
    return output


def test_a_shard_travels_as_text() -> None:
    shard = Shard(3, ((Item("a\udce9.png", None), Item("猫.jpg", (1, "dog"))), (Item("b", ()),)), (("c", "broken"),))
    assert _from_text(_to_text(shard)) == shard


class Killing(Heard):
    """Kills one actor when the first shard is done."""

    def __init__(self) -> None:
        super().__init__()
        self.killed: list[int] = []

    def batch(self, batch: BatchReport) -> None:
        super().batch(batch)
        if not self.killed:
            self.killed.append(_an_actor())
            os.kill(self.killed[0], signal.SIGKILL)


def _an_actor() -> int:
    """Find the process of an actor: its command line begins with what Ray calls it."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                command = (folder / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(b"ray::") and b"MapWorker" in command:
                return int(folder.name)
    raise AssertionError("no actor is at work")


@pytest.mark.slow
def test_two_workers_one_of_them_killed_make_the_same_file(paths: list[str], whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "gradlight[ray]"')
    heard = Killing()
    outcome = run(paths, tmp_path / "maps.h5", engine=Ray(2), heard=heard, images_per_shard=4)
    assert (outcome.images, outcome.failures) == (IMAGES, 0)
    assert len(heard.killed) == 1
    assert sum(batch.images for batch in heard.batches) >= IMAGES
    assert_same(tmp_path / "maps.h5", whole)
    assert verify(tmp_path / "maps.h5") == []


@pytest.mark.slow
def test_a_stopped_cluster_goes_on_anywhere(paths: list[str], whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "gradlight[ray]"')

    class Stopping(Heard):
        def batch(self, batch: BatchReport) -> None:
            super().batch(batch)
            if len(self.batches) == 1:
                os.kill(os.getpid(), signal.SIGTERM)

    output = tmp_path / "maps.h5"
    with pytest.raises(UnfinishedError, match="Go on with the same command and --resume"):
        run(paths, output, engine=Ray(1), heard=Stopping(), images_per_shard=4)
    run(paths, output, resume=True, images_per_shard=4)
    assert_same(output, whole)


@pytest.mark.slow
def test_a_cluster_that_is_not_there(paths: list[str], tmp_path: Path) -> None:
    pytest.importorskip("ray", reason='Ray is not installed: pip install "gradlight[ray]"')
    with pytest.raises(GradlightError, match=r"No Ray cluster is reached at '127.0.0.1:1'"):
        run(paths[:4], tmp_path / "maps.h5", engine=Ray(1, address="127.0.0.1:1"))


def test_without_ray_the_command_to_install_it_is_told(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(GradlightError, match=r'pip install "gradlight\[ray\]"'):
        run(paths[:4], tmp_path / "maps.h5", engine=Ray(1))
