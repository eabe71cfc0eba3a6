"""An export of a whole data set: what it writes, what it refuses, and that nothing of it is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from small import METHODS, Heard, assert_same, make, photos, run, settings

import gradlight as gl
from gradlight.data.hdf5.verify import verify
from gradlight.errors import GradlightError
from gradlight.export import explaining
from gradlight.export.lists import ImageList, Item
from gradlight.export.local import WorkerProcesses
from gradlight.export.plan import Plan
from gradlight.export.progress import BatchReport
from gradlight.export.run import ExportOptions, UnfinishedError, export


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return photos(tmp_path_factory.mktemp("photos"), 21)


@pytest.fixture(scope="module")
def whole(paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "maps.h5"
    run(paths, output)
    return output


def test_an_export_is_what_explain_gives(paths: list[str], whole: Path) -> None:
    model = make()
    with gl.load(whole) as maps:
        assert [photo.path for photo in maps.images] == paths
        assert maps.methods == list(METHODS)
        assert maps.layers == ["1", "3", "product(linear)"]
        wanted = gl.explain(model, paths, methods=METHODS, layers=["1", "3"], batch_size=4)
        wanted = wanted.joined(wanted.combine())
        assert maps.targets == wanted.targets
        assert maps.origin.weights_sha256 == wanted.origin.weights_sha256
        for key in maps.pairs:
            assert torch.equal(maps[key], wanted[key])
    assert verify(whole) == []


def test_the_output_is_an_index_over_shards_that_are_files_of_their_own(whole: Path) -> None:
    shards = sorted(path.name for path in whole.with_suffix(".shards").iterdir() if path.suffix == ".h5")
    assert shards == ["shard-00000.h5", "shard-00001.h5", "shard-00002.h5"]
    with gl.load(whole.with_suffix(".shards") / "shard-00002.h5") as last, gl.load(whole) as maps:
        assert len(last) == 5
        assert torch.equal(last["normgrad", "3"], maps[16:]["normgrad", "3"])
    with h5py.File(whole) as file:
        assert file["maps/normgrad/3"].is_virtual
        assert file.attrs["complete"]


def test_a_small_export_is_one_file(paths: list[str], tmp_path: Path) -> None:
    outcome = run(paths[:5], tmp_path / "maps.h5")
    assert (outcome.images, outcome.failures) == (5, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.h5"]


def test_one_file_on_request(paths: list[str], whole: Path, tmp_path: Path) -> None:
    run(paths, tmp_path / "maps.h5", single=True)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.h5"]
    assert_same(tmp_path / "maps.h5", whole)
    assert verify(tmp_path / "maps.h5") == []


def test_reading_ahead_and_several_processes_change_nothing(paths: list[str], whole: Path, tmp_path: Path) -> None:
    run(paths, tmp_path / "ahead.h5", readers=2)
    assert_same(tmp_path / "ahead.h5", whole)


@pytest.mark.slow
def test_several_processes_make_the_same_file(paths: list[str], whole: Path, tmp_path: Path) -> None:
    heard = Heard()
    run(paths, tmp_path / "maps.h5", engine=WorkerProcesses(2), heard=heard)
    assert sum(batch.images for batch in heard.batches) == 21
    assert_same(tmp_path / "maps.h5", whole)


def test_images_with_targets_of_their_own(paths: list[str], tmp_path: Path) -> None:
    targets: list[tuple[int | str, ...]] = [("cat",), ("dog", 2), ("eel",), ("cat", "dog", "eel"), (0,)]
    run(paths[:5], tmp_path / "maps.h5", targets=targets)
    with gl.load(tmp_path / "maps.h5") as maps:
        assert [[target.label for target in row] for row in maps.targets] == [
            ["cat"], ["dog", "eel"], ["eel"], ["cat", "dog", "eel"], ["cat"],
        ]  # fmt: skip
        alone = gl.explain(make(), paths[3], [["cat", "dog", "eel"]], methods="normgrad", layers="3")
        wanted = alone["normgrad", "3"][0]
        torch.testing.assert_close(
            maps.rows("normgrad", "3", image=3), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
        )


def test_one_bad_photo_or_target_never_ends_a_batch(paths: list[str], tmp_path: Path) -> None:
    broken, gone = tmp_path / "broken.png", str(tmp_path / "gone.png")
    broken.write_bytes(Path(paths[0]).read_bytes()[:200])
    asked = [paths[0], str(broken), paths[1], gone, paths[2]]
    heard = Heard()
    outcome = run(asked, tmp_path / "a.h5", targets=[("cat",), ("cat",), ("cow",), ("dog",), ("dog",)], heard=heard)
    assert (outcome.images, outcome.failures) == (2, 3)
    with h5py.File(tmp_path / "a.h5") as file:
        failures = dict(zip(file["failures/path"].asstr()[:], file["failures/reason"].asstr()[:], strict=True))
    assert "truncated" in failures[str(broken)] or "damaged" in failures[str(broken)]
    assert "No such file" in failures[gone]
    assert "No class is called 'cow'" in failures[paths[1]]
    assert sorted(failure for batch in heard.batches for failure in batch.failures) == sorted(failures.items())


def test_maps_that_are_not_finite_are_failures(tmp_path: Path) -> None:
    paths = photos(tmp_path / "in", 3)
    Image.fromarray(np.full((32, 32, 3), 255, np.uint8)).save(paths[1])

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 3, 3)

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            bright = (pixels.mean((1, 2, 3)) > 2).unsqueeze(1)
            return self.conv(pixels).mean((2, 3)) * torch.where(bright, float("nan"), 1.0)

    model = gl.classifier(Odd(), labels=["a", "b", "c"])
    source = ImageList("list", [Item(path, None) for path in paths])
    how = settings(layers=("conv",), combine=None)
    with pytest.warns(gl.GradlightWarning, match="not finite"):
        outcome = export(lambda: model, lambda _: source, tmp_path / "maps.h5", how, ExportOptions(readers=0))
    assert (outcome.images, outcome.failures) == (2, 1)


def test_no_image_at_all(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"None of 2 images can be explained\. The first: .*gone.png"):
        run([str(tmp_path / "gone.png"), str(tmp_path / "too.png")], tmp_path / "maps.h5")
    assert list(tmp_path.iterdir()) == []


def test_maps_of_one_size_in_float16(paths: list[str], whole: Path, tmp_path: Path) -> None:
    run(paths[:9], tmp_path / "maps.h5", settings(size=(20, 24), dtype="float16", compression="lzf"))
    with gl.load(tmp_path / "maps.h5") as maps, gl.load(whole) as exact:
        wanted = exact[:9].resized((20, 24))
        for key in maps.pairs:
            assert maps[key].shape == (9, 1, 20, 24)
            largest = wanted[key].abs().amax((2, 3), keepdim=True)
            assert bool(((maps[key] - wanted[key]).abs() <= 1e-3 * largest).all())
    assert verify(tmp_path / "maps.h5") == []


class Stopping(Heard):
    """Presses Ctrl-C, as it were, when so many batches are done."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def batch(self, batch: BatchReport) -> None:
        super().batch(batch)
        if len(self.batches) == self.after:
            os.kill(os.getpid(), 15)


@pytest.mark.parametrize("after", [1, 2, 3, 5])
def test_a_stopped_export_goes_on_where_it_was(paths: list[str], whole: Path, tmp_path: Path, after: int) -> None:
    output = tmp_path / "maps.h5"
    with pytest.raises(UnfinishedError, match="Go on with the same command and --resume"):
        run(paths, output, heard=Stopping(after))
    assert not output.exists()
    for path in output.with_suffix(".shards").glob("*.h5"):
        assert verify(path) == []
    heard = Heard()
    run(paths, output, resume=True, heard=heard)
    assert heard.begun[0] == (21, 8 * (after // 2))
    assert sum(batch.images for batch in heard.batches) == 21 - 8 * (after // 2)
    assert_same(output, whole)
    assert sorted(path.name for path in output.with_suffix(".shards").glob("part-*")) == []


def test_resuming_does_no_batch_twice(paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    explained: list[int] = []
    plain = explaining.BatchExplainer.__call__

    def counted(self: explaining.BatchExplainer, loaded: list[object]) -> object:
        explained.append(len(loaded))
        return plain(self, loaded)  # type: ignore[arg-type]

    monkeypatch.setattr(explaining.BatchExplainer, "__call__", counted)
    with pytest.raises(UnfinishedError):
        run(paths, tmp_path / "maps.h5", heard=Stopping(3))
    run(paths, tmp_path / "maps.h5", resume=True)
    assert sum(explained) == 21


def test_other_parameters_are_refused_and_listed(paths: list[str], tmp_path: Path) -> None:
    output = tmp_path / "maps.h5"
    with pytest.raises(UnfinishedError):
        run(paths, output, heard=Stopping(2))
    with pytest.raises(GradlightError, match=r"methods was \['normgrad', 'linear_approx'\] and is \['grad_cam'\]"):
        run(paths, output, settings(methods=("grad_cam",)), resume=True)
    with pytest.raises(GradlightError, match="images was 21 and is 20; images_sha256 was"):
        run(paths[:20], output, resume=True)
    with pytest.raises(GradlightError, match=r"an unfinished export is there\. --resume goes on with it"):
        run(paths, output)
    run(paths[:5], output, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["maps.h5"]


def test_a_finished_output_is_not_replaced_by_accident(paths: list[str], tmp_path: Path) -> None:
    output = tmp_path / "maps.h5"
    run(paths[:5], output)
    before = output.read_bytes()
    with pytest.raises(GradlightError, match=r"maps under this name already\. --overwrite replaces them"):
        run(paths[:6], output)
    heard = Heard()
    assert run(paths[:5], output, resume=True, heard=heard).images == 5
    assert heard.notes == [f"{output} is finished already."]
    assert output.read_bytes() == before
    run(paths[:6], output, overwrite=True)
    with gl.load(output) as maps:
        assert len(maps) == 6


def test_another_programs_file_is_left_alone(paths: list[str], tmp_path: Path) -> None:
    output = tmp_path / "maps.h5"
    with h5py.File(output, "w") as file:
        file["precious"] = [1, 2, 3]
    before = output.read_bytes()
    with pytest.raises(GradlightError, match="not a gradlight file"):
        run(paths[:5], output)
    assert output.read_bytes() == before
    assert run(paths[:5], output, overwrite=True).images == 5


def test_a_damaged_shard_is_made_anew(paths: list[str], whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "maps.h5"
    with pytest.raises(UnfinishedError):
        run(paths, output, heard=Stopping(5))
    shard = output.with_suffix(".shards") / "shard-00000.h5"
    shard.write_bytes(shard.read_bytes()[:1000])
    run(paths, output, resume=True)
    assert_same(output, whole)


def test_two_exports_to_one_output(paths: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from gradlight.export.folder import locked\n"
        "folder = Path(sys.argv[1]); folder.mkdir()\n"
        "with locked(folder):\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "maps.shards")], stdout=subprocess.PIPE)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(GradlightError, match=rf"Another export writes to .*: process {other.pid} on "):
            run(paths, tmp_path / "maps.h5")
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    assert run(paths, tmp_path / "maps.h5").images == 21, "the lock of a killed process is free"


@pytest.mark.slow
def test_a_process_that_dies_is_replaced(paths: list[str], whole: Path, tmp_path: Path) -> None:
    class Killing(WorkerProcesses):
        killed = False

        def _receive(self, worker: object, task: object, reporter: object) -> None:
            super()._receive(worker, task, reporter)  # type: ignore[arg-type]
            if not self.killed and worker.shard is not None:  # type: ignore[attr-defined]
                self.killed = True
                worker.process.kill()  # type: ignore[attr-defined]

    heard = Heard()
    run(paths, tmp_path / "maps.h5", engine=Killing(1), heard=heard)
    assert heard.notes == ["a process of the export ended unexpectedly; its shard begins again."]
    assert_same(tmp_path / "maps.h5", whole)


def test_places_that_cannot_be_written(paths: list[str], tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"name a file that ends in .h5"):
        run(paths, tmp_path / "maps.png")
    with pytest.raises(GradlightError, match="does not exist"):
        run(paths, tmp_path / "nowhere" / "maps.h5")
    (tmp_path / "maps.shards").write_text("in the way")
    with pytest.raises(GradlightError, match="the folder of the shards cannot be created"):
        run(paths, tmp_path / "maps.h5")


def test_settings_are_checked_before_any_work() -> None:
    with pytest.raises(GradlightError, match="normgrad"):
        settings(methods=("normgard",))
    with pytest.raises(GradlightError, match="Layers are combined by"):
        settings(combine=("mean", "linear"))
    with pytest.raises(GradlightError, match="batch_size must be at least 1"):
        settings(batch_size=0)
    with pytest.raises(GradlightError, match="size of maps must be"):
        settings(size=(0, 5))


def test_the_record_knows_everything_that_the_maps_depend_on(paths: list[str]) -> None:
    plan = Plan(tuple(Item(path, None) for path in paths), settings())
    before = plan.record(make())
    assert json.loads(json.dumps(before)) == before
    assert before == plan.record(make())
    for change in ({"methods": ("grad_cam",)}, {"target": ("cat",)}, {"meta": gl.Meta(0.1)}, {"size": (8, 8)}):
        assert dataclasses.replace(plan, settings=settings(**change)).record(make()) != before
    model = make()
    with torch.no_grad():
        model.network[0].weight.mul_(1.5)
    assert plan.record(model) != before
