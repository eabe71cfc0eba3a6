"""Indexes over shards, shards copied into one file, and the deep look through either."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from stored_examples import KEPT, KEPT_HALF, KEPT_INDEX, assert_equal, example, shard, together, write_shards

from gradlight import GradlightError, files
from gradlight.data.hdf5 import reader, writer
from gradlight.data.hdf5 import shards as virtual
from gradlight.data.hdf5.reader import MapsFile
from gradlight.data.hdf5.schema import LayerRow, StoredMaps
from gradlight.data.hdf5.verify import verify

ROOT = Path(__file__).resolve().parents[2]
KEY = ("normgrad", "layer1")
SEALS = (b"gradlight-sha256", b"gradlight-shards")


def three() -> list[StoredMaps]:
    """Give three shards; the second has only failures, and so not even a layer."""
    return [shard(3, 0), shard(0, 1, maps={}, layers={}), shard(2, 2)]


def expected() -> StoredMaps:
    return together([shard(3, 0), shard(0, 1), shard(2, 2)])


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


@pytest.fixture(params=["float32", "float16"])
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return write_shards(tmp_path / "maps.shards", three())


# ---- an index


@pytest.mark.parametrize("name", ["maps", "猫 50%b", "a b'\n"])
def test_index_is_read_as_one_file(tmp_path: Path, dtype: str, name: str) -> None:
    paths = write_shards(tmp_path / f"{name}.shards", three(), dtype=dtype)
    index = tmp_path / f"{name}.h5"
    virtual.write_index(index, paths)
    assert verify(index) == []
    parts = {key: np.concatenate([reader.read(paths[i]).maps[key] for i in (0, 2)]) for key in expected().maps}
    assert_equal(reader.read(index), dataclasses.replace(expected(), maps=parts))
    with h5py.File(index) as file:  # and by a plain reader
        for (method, layer), maps in parts.items():
            found = file[f"maps/{method}/{layer}"]
            assert found.is_virtual
            assert (found.shape, str(found.dtype)) == ((10, 6, 7), dtype)
            assert dict(found.attrs, stride=0) == {"method": method, "layer": layer, "depth": 3, "stride": 0}
            scale = file[f"scale/{method}/{layer}"][:][:, None, None] if dtype == "float16" else np.float32(1)
            assert np.array_equal(found[:].astype(np.float32) * scale, maps)


def test_index_and_folder_move_together(tmp_path: Path, paths: list[Path]) -> None:
    virtual.write_index(tmp_path / "maps.h5", paths)
    new = tmp_path / "new"
    new.mkdir()
    (tmp_path / "maps.shards").rename(new / "maps.shards")
    (tmp_path / "maps.h5").rename(new / "renamed.h5")
    assert_equal(reader.read(new / "renamed.h5"), expected())
    with h5py.File(new / "renamed.h5") as file:
        assert np.array_equal(file["maps/normgrad/layer1"][:], expected().maps[KEY])
    assert verify(new / "renamed.h5") == []


def test_index_within_a_linked_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path / "maps.shards", three())
    (tmp_path / "large disk").mkdir()
    (tmp_path / "maps.shards").rename(tmp_path / "large disk" / "maps.shards")
    (tmp_path / "maps.shards").symlink_to(tmp_path / "large disk" / "maps.shards")
    monkeypatch.chdir(tmp_path)
    virtual.write_index("maps.h5", [f"maps.shards/shard-{number:05}.h5" for number in range(3)])
    assert_equal(reader.read("maps.h5"), expected())


def test_missing_shard_is_an_error_and_never_zeros(tmp_path: Path, paths: list[Path]) -> None:
    index = tmp_path / "maps.h5"
    virtual.write_index(index, paths)
    paths[2].unlink()
    with MapsFile(index) as file:
        assert len(file.images) == 5
        assert np.array_equal(file.read(KEY, np.s_[:6]), expected().maps[KEY][:6])
        with pytest.raises(GradlightError, match=r"shard-00002\.h5: cannot be opened: No such file"):
            file.read(KEY, np.s_[5:7])
    with pytest.raises(GradlightError, match=r"shard-00002\.h5: cannot be opened: No such file"):
        reader.read(index)
    (problem,) = verify(index)
    assert re.search(r"shard-00002\.h5: cannot be opened: No such file", problem)
    with h5py.File(index) as file:  # a plain reader gets what cannot be taken for a map
        found = file["maps/normgrad/layer1"][:]
        assert np.isnan(found[6:]).all()
        assert np.array_equal(found[:6], expected().maps[KEY][:6])


def test_index_over_failures_alone(tmp_path: Path, dtype: str) -> None:
    paths = write_shards(tmp_path / "maps.shards", [shard(0, 0), shard(0, 1)], dtype=dtype)
    virtual.write_index(tmp_path / "maps.h5", paths)
    assert_equal(reader.read(tmp_path / "maps.h5"), together([shard(0, 0), shard(0, 1)]))
    assert verify(tmp_path / "maps.h5") == []


@pytest.mark.parametrize(
    ("shards_complete", "asked", "found"), [(True, True, True), (False, True, False), (True, False, False)]
)
def test_complete_only_if_everything_is(tmp_path: Path, shards_complete: bool, asked: bool, found: bool) -> None:
    paths = write_shards(tmp_path / "maps.shards", [shard(1, 0), shard(1, 1, complete=shards_complete)])
    virtual.write_index(tmp_path / "maps.h5", paths, complete=asked)
    with MapsFile(tmp_path / "maps.h5") as file:
        assert file.complete is found
    assert verify(tmp_path / "maps.h5") == []


def test_versions_of_all_shards_are_named(tmp_path: Path) -> None:
    versions = ["0.2.0", "0.1.0", "0.2.0"]
    shards = [shard(1, number, gradlight_version=version) for number, version in enumerate(versions)]
    virtual.write_index(tmp_path / "maps.h5", write_shards(tmp_path / "maps.shards", shards))
    assert reader.read(tmp_path / "maps.h5").gradlight_version == "0.2.0, 0.1.0"


# ---- what does not belong together


def other_layers(**fields: Any) -> StoredMaps:
    part = shard(1, 1)
    return dataclasses.replace(part, layers={k: dataclasses.replace(v, **fields) for k, v in part.layers.items()})


def other_maps(change: Callable[[np.ndarray], np.ndarray]) -> StoredMaps:
    part = shard(1, 1)
    return dataclasses.replace(part, maps={key: change(maps) for key, maps in part.maps.items()})


def fewer() -> StoredMaps:
    part = shard(1, 1)
    return dataclasses.replace(part, maps={KEY: part.maps[KEY]}, layers={KEY: part.layers[KEY]})


DIFFERENT: list[tuple[StoredMaps, dict[str, Any], str]] = [
    (
        shard(1, 1, model={"name": "vgg"}),
        {},
        r"they differ in model: \{'name': 'vgg'\} and \{'name': 'timm/resnet50'\}",
    ),
    (shard(1, 1, model={"labels": ["x" * 100]}), {}, r"they differ in model\.$"),
    (shard(1, 1, weights_sha256="cd"), {}, "they differ in weights_sha256"),
    (shard(1, 1, objective={"kind": "caption"}), {}, "they differ in objective: .*caption.* and .*class"),
    (shard(1, 1, meta={"lr": 0.1}), {}, r"they differ in meta: \{'lr': 0.1\} and None"),
    (shard(1, 1, pixels=(5, 6)), {}, r"they differ in pixels: \(5, 6\) and \(96, 112\)"),
    (shard(1, 1, pixels=(5, 6), meta={}), {}, r"they differ in meta: .*; they differ in pixels: "),
    (shard(0, 1, pixels=(5, 6), maps={}, layers={}), {}, r"they differ in pixels: \(5, 6\) and \(96, 112\)"),
    (other_layers(depth=4), {}, "they differ in the depth of method '.*' at layer '.*': 4 and 3"),
    (other_layers(stride=(8.0, 8.0)), {}, r"they differ in the stride of method .*: \(8.0, 8.0\) and \(16.0, 16.0\)"),
    (other_maps(lambda maps: maps[:, :5]), {}, r"they differ in the grid of method .*: \(5, 7\) and \(6, 7\)"),
    (fewer(), {}, "only one has maps of method 'grad_cam' at layer 'layer1'"),
    (shard(1, 1), {"dtype": "float16"}, "they differ in the dtype of method .*: 'float16' and 'float32'"),
]


@pytest.mark.parametrize(("part", "options", "message"), DIFFERENT)
def test_shards_that_differ(tmp_path: Path, part: StoredMaps, options: dict[str, Any], message: str) -> None:
    paths = write_shards(tmp_path / "maps.shards", [shard(0, 5, maps={}, layers={}), shard(2, 0), part])
    writer.write(paths[2], part, **options)
    for work in (virtual.write_index, virtual.copy_into):
        with pytest.raises(GradlightError, match=rf"shard-00002\.h5 and .*shard-0000[01]\.h5 do not bel.*{message}"):
            work(tmp_path / "maps.h5", paths)
    assert names(tmp_path) == ["maps.shards"]


def test_shards_in_the_wrong_place(tmp_path: Path, paths: list[Path]) -> None:
    other = write_shards(tmp_path / "other", [shard(1, 4)])
    deeper = tmp_path / "deep"
    deeper.mkdir()
    cases: list[tuple[Path, list[Path]]] = [
        (tmp_path / "maps.h5", other),
        (tmp_path / "maps.h5", [*paths, *other]),
        (tmp_path / "maps.h5", [*paths, paths[0]]),
        (tmp_path / "maps.h5", []),
        (deeper / "maps.h5", paths),
        (tmp_path / "maps.shards" / "maps.h5", paths),
    ]
    for path, shards in cases:
        with pytest.raises(
            GradlightError, match=r"one folder beside it that is named in UTF-8 like maps\.shards; got \d file"
        ):
            virtual.write_index(path, shards)
    with pytest.raises(GradlightError, match="no files of maps were given"):
        virtual.copy_into(tmp_path / "maps.h5", [])
    assert names(tmp_path) == ["deep", "maps.shards", "other"]


def test_folder_that_hdf5_would_not_find_again(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(GradlightError, match="one folder beside it that is named in UTF-8 like"):
        virtual.write_index(tmp_path / f"{name}.h5", write_shards(tmp_path / f"{name}.shards", three()))


def test_an_index_is_no_shard(tmp_path: Path) -> None:
    folder = tmp_path / "maps.shards"
    inner = write_shards(tmp_path / "x.shards", [shard(1, 0)])
    virtual.write_index(tmp_path / "x.h5", inner)
    folder.mkdir()
    (tmp_path / "x.h5").rename(folder / "x.h5")
    (tmp_path / "x.shards").rename(folder / "x.shards")
    with pytest.raises(GradlightError, match=r"maps\.shards/x\.h5: is itself an index"):
        virtual.write_index(tmp_path / "maps.h5", [folder / "x.h5"])
    virtual.copy_into(tmp_path / "maps.h5", [folder / "x.h5"])  # but it can be copied
    assert_equal(reader.read(tmp_path / "maps.h5"), shard(1, 0))


def test_shard_that_cannot_be_read(tmp_path: Path, paths: list[Path]) -> None:
    paths[1].write_bytes(paths[1].read_bytes()[:-2000])
    for work in (virtual.write_index, virtual.copy_into):
        with pytest.raises(GradlightError, match=r"shard-00001\.h5: damaged or truncated"):
            work(tmp_path / "maps.h5", paths)
    assert names(tmp_path) == ["maps.shards"]


@pytest.mark.parametrize("work", [virtual.write_index, virtual.copy_into])
def test_foreign_file_is_not_replaced_unless_asked(
    tmp_path: Path, paths: list[Path], work: Callable[..., None]
) -> None:
    path = tmp_path / "maps.h5"
    path.write_bytes(b"my notes")
    with pytest.raises(GradlightError, match=r"maps\.h5: exists and is not a gradlight file"):
        work(path, paths)
    assert path.read_bytes() == b"my notes"
    work(path, paths, overwrite=True)
    assert_equal(reader.read(path), expected())
    work(path, paths)  # its own file it replaces
    assert names(tmp_path) == ["maps.h5", "maps.shards"]


# ---- one file of all shards


@pytest.mark.parametrize("compression", ["gzip", "lzf", "none", None])
def test_copied_bit_for_bit(tmp_path: Path, dtype: str, compression: str | None) -> None:
    paths = write_shards(tmp_path / "maps.shards", three(), dtype=dtype)
    virtual.write_index(tmp_path / "index.h5", paths)
    virtual.copy_into(tmp_path / "maps.h5", paths, compression=compression)
    virtual.copy_into(tmp_path / "again.h5", [tmp_path / "index.h5"], compression=compression)
    assert (tmp_path / "maps.h5").read_bytes() == (tmp_path / "again.h5").read_bytes()
    shutil.rmtree(tmp_path / "maps.shards")
    assert verify(tmp_path / "maps.h5") == []
    found, sound = reader.read(tmp_path / "maps.h5"), expected()
    if dtype == "float16":
        for key, maps in sound.maps.items():
            largest = np.abs(maps).max(axis=(1, 2), keepdims=True)
            assert (np.abs(found.maps[key] - maps) <= 1e-3 * largest).all()
        sound.maps = found.maps
    assert_equal(found, sound)
    with h5py.File(tmp_path / "maps.h5") as file:
        maps = file["maps/normgrad/layer1"]
        assert (str(maps.dtype), maps.compression, maps.fletcher32) == (
            dtype,
            {"none": None}.get(str(compression), compression),
            True,
        )


def test_copy_equals_one_file_written_at_once(tmp_path: Path, paths: list[Path]) -> None:
    virtual.copy_into(tmp_path / "maps.h5", paths)
    writer.write(tmp_path / "whole.h5", expected())
    with h5py.File(tmp_path / "maps.h5") as copy, h5py.File(tmp_path / "whole.h5") as whole:
        assert dict(copy.attrs, pixels=0) == dict(whole.attrs, pixels=0)
        assert copy["maps/grad_cam/layer1"].chunks == whole["maps/grad_cam/layer1"].chunks


def test_many_blocks(tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(virtual, "_BLOCK_BYTES", 400)  # two maps
    virtual.copy_into(tmp_path / "maps.h5", paths)
    assert_equal(reader.read(tmp_path / "maps.h5"), expected())


def test_a_file_is_not_copied_into_itself(paths: list[Path]) -> None:
    before = paths[0].read_bytes()
    with pytest.raises(GradlightError, match=r"shard-00000\.h5: is one of the files to be copied"):
        virtual.copy_into(paths[0], paths)
    assert paths[0].read_bytes() == before


def test_copying_takes_little_memory(tmp_path: Path) -> None:
    rows, side = 100, 224
    values = np.random.default_rng(0).random((rows, side, side), np.float32)
    part = shard(rows, 0, targets=1, maps={KEY: values}, layers={KEY: LayerRow(*KEY, 3, (1.0, 1.0))})
    first = write_shards(tmp_path / "maps.shards", [part], compression=None)[0]  # 20 MB
    paths = [first, *(first.with_name(f"shard-{number:05}.h5") for number in range(1, 8))]
    for path in paths[1:]:
        os.link(first, path)
    code = """if True:
        import resource, sys
        from gradlight.data.hdf5 import reader, shards as virtual, writer
        virtual.copy_into(sys.argv[1], sys.argv[2:3])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        virtual.copy_into(sys.argv[1], sys.argv[2:], compression=None)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", code, tmp_path / "maps.h5", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "maps.h5").stat().st_size > 160_000_000
    assert int(done.stdout) < 40_000  # kilobytes


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
@pytest.mark.parametrize("noticed", ["before", "while writing", "at the end"])
def test_file_system_that_is_full(tmp_path: Path, noticed: str) -> None:
    # A real failure, after which the process still works and ends well: the HDF5 library itself would crash it.
    values = np.random.default_rng(0).random((100, 100, 100), np.float32)
    part = shard(50, 0, maps={KEY: values}, layers={KEY: LayerRow(*KEY, 3, (1.0, 1.0))})
    paths = write_shards(tmp_path / "maps.shards", [part, part], compression=None)
    writer.write(tmp_path / "maps.h5", example())
    code = """if True:
        import resource, sys
        from gradlight import GradlightError
        from gradlight import files
        from gradlight.data.hdf5 import reader, shards as virtual, writer
        if sys.argv[2] != "0":
            files._check_space = lambda *_: None
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), limits[1]))
        virtual._BLOCK_BYTES = 2**19
        for work in (virtual.copy_into, virtual.write_index):
            try:
                work(sys.argv[3], sys.argv[4:])
            except GradlightError as error:
                print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        print(reader.read(sys.argv[3]).weights_sha256)
        virtual.copy_into(sys.argv[3], sys.argv[4:])
        print(len(reader.read(sys.argv[3]).targets))
    """
    limit = {"before": 10_000, "while writing": 10_000, "at the end": 6_000_000}[noticed]
    command = [
        sys.executable,
        "-c",
        code,
        str(limit),
        "0" if noticed == "before" else "1",
        tmp_path / "maps.h5",
        *paths,
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    copied, *others = done.stdout.splitlines()
    needed = r": up to [\d,]+ bytes are needed" if noticed == "before" else ""
    assert re.search(rf"maps\.h5: cannot be written .*File too large{needed}.*free space\.$", copied), done.stdout
    if noticed != "at the end":
        assert re.search(r"maps\.h5: cannot be written .*File too large", others.pop(0))
        assert others == ["ab" * 32, "200"]
    assert names(tmp_path) == ["maps.h5", "maps.shards"]


@pytest.mark.parametrize("failure", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt("stopped")])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_failure_on_the_way_leaves_everything_as_it_was(
    tmp_path: Path, paths: list[Path], monkeypatch: pytest.MonkeyPatch, function: str, failure: BaseException
) -> None:
    writer.write(tmp_path / "maps.h5", example())
    before = (tmp_path / "maps.h5").read_bytes()

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(f"gradlight.files.os.{function}", fail)
    for work in (virtual.write_index, virtual.copy_into):
        with pytest.raises((GradlightError, KeyboardInterrupt), match=r"Input/output error|stopped"):
            work(tmp_path / "maps.h5", paths)
    assert names(tmp_path) == ["maps.h5", "maps.shards"]
    assert (tmp_path / "maps.h5").read_bytes() == before


def test_space_is_looked_for_where_it_cannot_be_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fallocate")
    with files.replacing_large(tmp_path / "a", 1000) as stream:
        stream.write(b"abc")
    assert (tmp_path / "a").read_bytes() == b"abc"
    with pytest.raises(OSError, match="bytes are needed"), files.replacing_large(tmp_path / "a", 2**62):
        pass
    assert (tmp_path / "a").read_bytes() == b"abc"
    assert names(tmp_path) == ["a"]


# ---- verify


@pytest.mark.parametrize("path", [KEPT, KEPT_HALF, KEPT_INDEX])
def test_sound_files(path: Path) -> None:
    assert verify(path) == []


def test_what_cannot_be_opened_is_one_problem(tmp_path: Path) -> None:
    (problem,) = verify(tmp_path / "absent.h5")
    assert re.search(r"absent\.h5: cannot be opened: No such file", problem)
    (tmp_path / "cut.h5").write_bytes(KEPT.read_bytes()[:9000])
    (problem,) = verify(tmp_path / "cut.h5")
    assert re.search(r"cut\.h5: damaged or truncated", problem)


def edited(path: Path, change: Callable[[h5py.File], object]) -> None:
    with h5py.File(path, "a") as file:
        change(file)


EDITS: list[tuple[Callable[[h5py.File], object], str]] = [
    (
        lambda f: f["maps/grad_cam/layer1"].__setitem__((1, 2, 3), np.nan),
        "rows 0 to 5: 1 maps are not finite, the .* row 1",
    ),
    (
        lambda f: f["maps/grad_cam/layer1"].__setitem__(4, np.inf),
        "rows 0 to 5: 1 maps are not finite, the first is row 4",
    ),
    (lambda f: f["scale/grad_cam/layer1"].__setitem__(1, 0), "a scale is not a positive number"),
    (lambda f: f["scale/grad_cam/layer1"].__setitem__(1, -1), "a scale is not a positive number"),
    (lambda f: f["scale/grad_cam/layer1"].__setitem__(1, np.nan), "a scale is not a positive number"),
    (lambda f: f["scale/grad_cam/layer1"].__setitem__(1, np.inf), "a scale is not a positive number"),
    (lambda f: f["images/view"].__setitem__(1, "nonsense"), "/images/view of row 1 is not the JSON of an object"),
]


@pytest.mark.parametrize("whole", ["plain", "index"])
@pytest.mark.parametrize(("change", "message"), EDITS)
def test_edited_numbers_are_found(
    tmp_path: Path, change: Callable[[h5py.File], object], message: str, whole: str
) -> None:
    paths = write_shards(tmp_path / "maps.shards", [shard(3, 0), shard(2, 1)], dtype="float16")
    virtual.write_index(tmp_path / "maps.h5", paths)
    edited(paths[0], change)
    found = verify(paths[0] if whole == "plain" else tmp_path / "maps.h5")
    assert any(re.search(rf"shard-00000\.h5: .*{message}", problem) for problem in found)
    assert verify(paths[1]) == []


def test_index_and_shards_that_no_longer_agree(tmp_path: Path, paths: list[Path]) -> None:
    virtual.write_index(tmp_path / "maps.h5", paths)
    sound = shard(2, 2)
    changed = [
        (dataclasses.replace(sound, meta={"lr": 1.0}), "its index disagrees: they differ in meta"),
        (dataclasses.replace(sound, complete=False), "is not complete, and its index says that everything is"),
        (dataclasses.replace(sound, failures=[("a", "b")]), "its index has other rows of /failures/path"),
        (dataclasses.replace(sound, failures=[]), "has 0 rows of /failures, and its index says 1"),
        (dataclasses.replace(sound, images=[sound.images[0]] * 2), "its index has other rows of /images/path"),
        (
            dataclasses.replace(sound, targets=[dataclasses.replace(row, image=0) for row in sound.targets]),
            "its index has other rows of /targets/image",
        ),
        (shard(1, 2), "has 2 rows of /targets, and its index says 4"),
    ]
    for part, message in changed:
        writer.write(paths[2], part)
        found = verify(tmp_path / "maps.h5")
        assert any(re.search(rf"shard-00002\.h5: {message}", problem) for problem in found), found
    writer.write(paths[2], sound)
    assert verify(tmp_path / "maps.h5") == []


def test_every_damaged_byte_is_found(tmp_path: Path) -> None:
    paths = write_shards(tmp_path / "maps.shards", [shard(2, 0), shard(1, 1)], dtype="float16")
    index = tmp_path / "maps.h5"
    virtual.write_index(index, paths)
    virtual.copy_into(tmp_path / "copy.h5", paths)
    choose = random.Random(0)
    for path, whole in [(index, index), *((path, index) for path in paths), (tmp_path / "copy.h5",) * 2]:
        sound = path.read_bytes()
        for place in (0, len(sound) - 1, *(choose.randrange(len(sound)) for _ in range(60))):
            content = bytearray(sound)
            content[place] ^= 1 << choose.randrange(8)
            path.write_bytes(content)
            (problem,) = verify(whole)
            assert problem.startswith(f"{path}: damaged or truncated") or not content[-48:].startswith(SEALS)
            with pytest.raises(GradlightError, match=r"\.h5: (damaged or truncated|not an HDF5 file)"):
                reader.read(path)
        path.write_bytes(sound)
    assert verify(index) == []


def test_broken_seal_of_an_index_is_seen_before_hdf5_opens_it(tmp_path: Path, paths: list[Path]) -> None:
    virtual.write_index(tmp_path / "maps.h5", paths)
    content = (tmp_path / "maps.h5").read_bytes()
    place = content.index(b"maps.shards/shard-00002.h5")
    (tmp_path / "maps.h5").write_bytes(content[:place] + b"M" + content[place + 1 :])
    with pytest.raises(
        GradlightError, match=r"maps\.h5: damaged or truncated: its bytes are not those that were written"
    ):
        MapsFile(tmp_path / "maps.h5")


def test_seal_goes_when_another_program_writes(tmp_path: Path) -> None:
    writer.write(tmp_path / "maps.h5", example())
    assert (tmp_path / "maps.h5").read_bytes()[-48:].startswith(SEALS)
    edited(tmp_path / "maps.h5", lambda file: file["targets/label"].__setitem__(0, "other"))
    assert not (tmp_path / "maps.h5").read_bytes()[-48:].startswith(SEALS)
    assert verify(tmp_path / "maps.h5") == []
    assert reader.read(tmp_path / "maps.h5").targets[0].label == "other"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_chunk_and_every_scale_has_a_checksum(tmp_path: Path, dtype: str) -> None:
    paths = write_shards(tmp_path / "maps.shards", [shard(2, 0), shard(2, 1)], dtype=dtype)
    virtual.write_index(tmp_path / "maps.h5", paths)
    chunks = []
    with h5py.File(paths[1]) as file:
        for top in ("maps", "scale"):
            for group in file[top].values() if top in file else ():
                for dataset in group.values():
                    chunks += [dataset.id.get_chunk_info(i) for i in range(dataset.id.get_num_chunks())]
    assert len(chunks) == (3 if dtype == "float32" else 6)
    sound = paths[1].read_bytes()
    for chunk in chunks:
        content = bytearray(sound)
        content[chunk.byte_offset + chunk.size // 3] ^= 1
        paths[1].write_bytes(content[:-48])  # without its seal
        (problem,) = verify(tmp_path / "maps.h5")
        assert re.search(r"shard-00001\.h5: /maps/.*, rows 0 to 3: .*damaged", problem)
