"""MapsFile: only what is asked for comes from disk, from any thread and process."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stored_examples import KEPT, KEPT_HALF, KEPT_INDEX, example, shard, together, write_shards

from gradlight import GradlightError
from gradlight.data.hdf5 import shards as virtual
from gradlight.data.hdf5 import writer
from gradlight.data.hdf5.reader import MapsFile
from gradlight.data.hdf5.schema import Failure, ImageRow, LayerRow, StoredMaps, TargetRow

KEY = ("normgrad", "layer1")


def many(images: int) -> StoredMaps:
    keys = [("a", "layer1"), ("b", "layer1")]
    return dataclasses.replace(
        example(),
        images=[ImageRow(f"{i}.jpg", f"{i:064}", 640, 480, {"crop": [i, 0, 224, 224]}) for i in range(images)],
        targets=[TargetRow(i, "class", i, f"label {i}", i / 8) for i in range(images)],
        maps={key: np.full((images, 7, 7), 1, np.float32) * np.arange(images)[:, None, None] for key in keys},
        layers={key: LayerRow(*key, 1, (4.0, 4.0)) for key in keys},
    )


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Give an index over three shards, of which the second has only failures."""
    shards = [shard(3, 0), shard(0, 1), shard(2, 2)]
    path = tmp_path / "maps.h5"
    virtual.write_index(path, write_shards(tmp_path / "maps.shards", shards))
    return path


@pytest.mark.parametrize("path", [KEPT, KEPT_HALF])
def test_everything_that_was_stored(path: Path) -> None:
    expected = example()
    with MapsFile(path) as file:
        assert file.path == path
        for name in ("model", "objective", "meta", "weights_sha256", "gradlight_version", "complete", "pixels"):
            assert getattr(file, name) == getattr(expected, name)
        assert list(file.images) == expected.images
        assert list(file.targets) == expected.targets
        assert list(file.failures) == [Failure(*failure) for failure in expected.failures]
        assert file.layers == expected.layers
        assert list(file.layers) == sorted(expected.maps, key=lambda key: key[0], reverse=True)
        assert file.target_images.tolist() == [0, 0, 1]
        assert file.target_images.dtype == np.int64
        assert {key: file.shape(key) for key in file.layers} == {key: maps.shape for key, maps in expected.maps.items()}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_rows_in_any_order(data: st.DataObject) -> None:
    expected = together([shard(2, 0), shard(1, 1)]).maps
    with MapsFile(KEPT_INDEX) as file:
        key = data.draw(st.sampled_from(list(file.layers)))
        number = st.integers(-6, 5)
        rows = data.draw(st.one_of(st.lists(number, max_size=9).map(lambda r: np.array(r, int)), st.slices(6)))
        found = file.read(key, rows)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected[key][rows])


def test_rows_of_tables_are_sequences() -> None:
    with MapsFile(KEPT) as file:
        assert (len(file.images), len(file.targets)) == (2, 3)
        assert file.targets[-1] == example().targets[-1]
        assert file.targets[1:] == example().targets[1:]
        assert example().images[1] in file.images
        with pytest.raises(IndexError, match="out of range"):
            file.images[2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([0, 6]), "there are 6 rows of maps, and row 6 was asked for"),
        (np.array([-7]), "there are 6 rows of maps, and row -7 was asked for"),
        (np.array([1.0]), r"whole numbers in one dimension, got float64 \[1\]"),
        (np.array([True]), r"whole numbers in one dimension, got bool \[1\]"),
        (np.array([[1]]), r"whole numbers in one dimension, got int64 \[1, 1\]"),
        (np.array(1), r"whole numbers in one dimension, got int64 \[\]"),
    ],
)
def test_rows_that_are_not_there(rows: np.ndarray, message: str) -> None:
    with MapsFile(KEPT_INDEX) as file, pytest.raises(GradlightError, match=message):
        file.read(KEY, rows)


def test_unknown_key_names_the_nearest() -> None:
    with MapsFile(KEPT) as file:
        with pytest.raises(GradlightError, match=r"no maps of method 'grad_cm' at layer 'layer3'\. Did .*grad_cam/l"):
            file.read(("grad_cm", "layer3"), np.s_[:])
        with pytest.raises(GradlightError, match="no maps of method 'grad_cam' at layer 'layer9'"):
            file.shape(("grad_cam", "layer9"))


def test_only_the_rows_asked_for_come_from_disk(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    stored = many(2000)
    writer.write(path, stored)
    with h5py.File(path) as file:
        chunk = file["maps/a/layer1"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with MapsFile(path) as file:  # the first chunk is damaged
        assert np.array_equal(file.read(("a", "layer1"), np.s_[1990:]), stored.maps["a", "layer1"][1990:])
        assert np.array_equal(file.read(("b", "layer1"), np.s_[:3]), stored.maps["b", "layer1"][:3])
        with pytest.raises(GradlightError, match=r"maps\.h5: damaged or truncated"):
            file.read(("a", "layer1"), np.s_[:3])


def test_opening_many_rows_is_quick(tmp_path: Path) -> None:
    writer.write(tmp_path / "maps.h5", many(10_000))
    start = time.process_time()
    with MapsFile(tmp_path / "maps.h5") as file:
        assert file.images[9_999].view == {"crop": [9_999, 0, 224, 224]}
        assert file.read(("a", "layer1"), np.array([9_999, 5]))[:, 0, 0].tolist() == [9_999, 5]
    assert time.process_time() - start < 0.5


def test_views_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    writer.write(path, example())
    with h5py.File(path, "a") as file:
        file["images/view"][1] = "[" * 100_000
    with MapsFile(path) as file:
        assert file.images[0] == example().images[0]
        with pytest.raises(GradlightError, match="/images/view of row 1 is not the JSON of an object"):
            file.images[1]


@pytest.mark.parametrize("path", [KEPT, KEPT_INDEX])
def test_after_closing_nothing_is_read(path: Path) -> None:
    file = MapsFile(path)
    key = next(iter(file.layers))
    file.read(key, np.s_[:])
    file.close()
    file.close()
    for work in (lambda: file.read(key, np.s_[:]), lambda: file.images[0], lambda: pickle.dumps(file)):
        with pytest.raises(GradlightError, match=r"_v1\.h5: was closed\. Open it again"):
            work()
    assert "closed" in repr(file)
    with pytest.raises(IndexError, match="out of range"):
        file.images[99]


def test_pickled_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with MapsFile("maps.h5") as file:
        packed = pickle.dumps(file)
        monkeypatch.chdir("/")
        with pickle.loads(packed) as again:
            assert again.path == index
            assert np.array_equal(again.read(KEY, np.s_[:]), file.read(KEY, np.s_[:]))
            assert list(again.images) == list(file.images)


def test_unpickled_after_the_file_was_replaced(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    writer.write(path, example())
    with MapsFile(path) as file:
        packed = pickle.dumps(file)
    writer.write(path, many(5))
    with pytest.raises(GradlightError, match=r"maps\.h5: changed since it was opened\. Open it again"):
        pickle.loads(packed)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_in_other_processes(index: Path, start: str) -> None:
    with MapsFile(index) as file:
        expected = file.read(KEY, np.s_[:])
        file.images[0]
        with multiprocessing.get_context(start).Pool(2) as pool:
            work = [pool.apply_async(file.read, (KEY, np.array([row, 0]))) for row in range(len(expected))]
            for row, done in enumerate(work):
                assert np.array_equal(done.get(60), expected[[row, 0]])
        assert np.array_equal(file.read(KEY, np.s_[:]), expected)  # and the parent's handle is still good


class Pairs(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Maps with their images' rows, as a training set."""

    def __init__(self, file: MapsFile) -> None:
        self.file = file

    def __len__(self) -> int:
        return len(self.file.targets)

    def __getitem__(self, row: int) -> tuple[torch.Tensor, int]:
        return torch.from_numpy(self.file.read(KEY, np.array([row]))[0]), self.file.targets[row].image


def test_in_a_data_loader_with_workers(index: Path) -> None:
    with MapsFile(index) as file:
        file.read(KEY, np.s_[:1])  # the parent's handle is in use before the workers fork
        loader = torch.utils.data.DataLoader(Pairs(file), batch_size=3, num_workers=2)
        maps, images = (torch.cat(parts).numpy() for parts in zip(*loader, strict=True))
        assert np.array_equal(maps, file.read(KEY, np.s_[:]))
        assert np.array_equal(images, file.target_images)


@pytest.mark.parametrize("kind", ["plain", "index"])
def test_in_eight_threads_at_once(tmp_path: Path, index: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlight.data.hdf5.blocks._OPEN_SHARDS", 1)  # so that threads take shards from one another
    path = index
    if kind == "plain":
        virtual.copy_into(path := tmp_path / "plain.h5", sorted((tmp_path / "maps.shards").iterdir()))
    expected = together([shard(3, 0), shard(2, 2)]).maps
    with MapsFile(path) as file:

        def work(seed: int) -> bool:
            choose = np.random.default_rng(seed)
            for _ in range(15):
                key = list(expected)[choose.integers(3)]
                rows = choose.integers(0, 10, 4)
                if not np.array_equal(file.read(key, rows), expected[key][rows]):
                    return False
                with MapsFile(path) as another:
                    if another.targets[int(rows[0])] != file.targets[int(rows[0])]:
                        return False
            return True

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(8)))


def test_only_a_few_shards_stay_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlight.data.hdf5.blocks._OPEN_SHARDS", 3)
    paths = write_shards(tmp_path / "maps.shards", [shard(1, seed) for seed in range(12)])
    virtual.write_index(tmp_path / "maps.h5", paths)
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("no /proc")
    with MapsFile(tmp_path / "maps.h5") as file:
        for row in (*range(24), *range(23, -1, -1)):
            file.read(KEY, np.array([row]))
        assert len(os.listdir("/proc/self/fd")) - before <= 1 + 3
    assert len(os.listdir("/proc/self/fd")) == before


def test_what_is_no_path() -> None:
    with pytest.raises(GradlightError, match="the path of a file was expected, got int: 3"):
        MapsFile(3)  # type: ignore[arg-type]


def test_a_file_that_is_refused_stays_open_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    writer.write(path, example())
    with h5py.File(path, "a") as file:
        del file["images"]
    with pytest.raises(GradlightError, match="the group /images is missing"):
        MapsFile(path)
    with h5py.File(path, "a") as file:  # which an open handle would forbid
        assert "images" not in file
