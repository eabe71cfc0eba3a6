from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from stored_examples import KEPT, KEPT_HALF, KEPT_INDEX, assert_equal, changed, example, ramp, shard, together

from gradlight import GradlightError
from gradlight.data.hdf5 import reader, schema, validation, writer
from gradlight.data.hdf5.reader import MapsFile
from gradlight.data.hdf5.schema import ImageRow, LayerRow, StoredMaps, TargetRow

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "maps.h5"
    writer.write(path, example())
    return path


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
FILE_NAME = st.binary(max_size=8).map(lambda name: os.fsdecode(name.replace(b"\0", b"")))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
OBJECT = st.dictionaries(st.text(), JSON, max_size=3)
INDEX = st.integers(-(2**63), 2**63 - 1)
SIDE = st.integers(1, 2**40)
STRIDE = st.floats(2**-10, 2**10)
NAME = st.sampled_from(["layer1", "blocks.0.norm1:2", "product(linear)", "conv3x3+norm", "input", "猫", "..", "a b"])


@st.composite
def contents(draw: st.DrawFn) -> StoredMaps:
    images = draw(st.lists(st.builds(ImageRow, FILE_NAME, TEXT, SIDE, SIDE, OBJECT), min_size=1, max_size=3))
    row = st.integers(0, len(images) - 1)
    targets = draw(st.lists(st.builds(TargetRow, row, TEXT, INDEX, TEXT, st.floats(allow_nan=False)), max_size=4))
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    keys = draw(st.lists(st.tuples(NAME, NAME), max_size=3, unique=True))
    shapes = st.tuples(st.just(len(targets)), st.integers(1, 4), st.integers(1, 4))
    return StoredMaps(
        model=draw(OBJECT),
        weights_sha256=draw(TEXT),
        objective=draw(OBJECT),
        meta=draw(st.none() | OBJECT),
        images=images,
        targets=targets,
        maps={key: draw(hnp.arrays(np.float32, shapes, elements=finite)) for key in keys},
        layers={key: LayerRow(*key, draw(st.integers(0, 500)), draw(st.tuples(STRIDE, STRIDE))) for key in keys},
        failures=draw(st.lists(st.tuples(FILE_NAME, TEXT), max_size=2)),
        complete=draw(st.booleans()),
        gradlight_version=draw(TEXT),
        pixels=draw(st.tuples(SIDE, SIDE)),
    )


@given(contents(), st.sampled_from(["gzip", "lzf", "none", None]))
@settings(max_examples=60, deadline=None)
def test_what_is_written_is_read(stored: StoredMaps, compression: str | None) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maps.h5"
        writer.write(path, stored, compression=compression)
        assert_equal(reader.read(path), stored)
        assert os.listdir(folder) == ["maps.h5"]


def test_kept_file_of_version_1_stays_readable() -> None:
    assert_equal(reader.read(KEPT), example())
    with h5py.File(KEPT) as file:
        assert file.attrs["format_version"] == 1


def test_kept_file_of_float16_stays_readable() -> None:
    expected = example()
    found = reader.read(KEPT_HALF)
    for key, values in expected.maps.items():
        assert close_enough(found.maps[key], values)
    expected.maps = found.maps
    assert_equal(found, expected)
    with h5py.File(KEPT_HALF) as file:
        maps, scale = file["maps/grad_cam/layer3"][:].astype(np.float32), file["scale/grad_cam/layer3"][:]
        assert np.array_equal(maps * scale[:, None, None], found.maps["grad_cam", "layer3"])


def test_kept_index_stays_readable() -> None:
    expected = together([shard(2, 0), shard(1, 1)])
    assert_equal(reader.read(KEPT_INDEX), expected)
    with h5py.File(KEPT_INDEX) as file:
        assert file["maps/normgrad/layer1"].is_virtual
        assert np.array_equal(file["maps/normgrad/layer1"][:], expected.maps["normgrad", "layer1"])
        assert file["targets/image"][:].tolist() == [0, 0, 1, 1, 2, 2]


# ---- float16 with scales, blosc, and the bytes themselves


def close_enough(found: np.ndarray, values: np.ndarray) -> bool:
    largest = np.abs(values).max(axis=(1, 2), keepdims=True)
    return bool((np.abs(found.astype(float) - values) <= 1e-3 * largest).all())


@pytest.mark.parametrize("magnitude", [3e38, 1.0, 1e-12, 1e-30, 1e-37])
def test_float16_keeps_maps_of_any_magnitude(tmp_path: Path, magnitude: float) -> None:
    values = (np.random.default_rng(0).uniform(-1, 1, (3, 20, 20)) * magnitude).astype(np.float32)
    values[1] = 0
    writer.write(tmp_path / "maps.h5", with_maps(values), dtype="float16")
    found = reader.read(tmp_path / "maps.h5").maps[KEY]
    assert found.dtype == np.float32
    assert close_enough(found, values)
    assert not found[1].any()
    assert found[0].any()
    assert (np.abs(found).max(axis=(1, 2)) == np.abs(values).max(axis=(1, 2))).all()
    # and a second time nothing changes any more
    writer.write(tmp_path / "again.h5", with_maps(found), dtype="float16")
    assert np.array_equal(reader.read(tmp_path / "again.h5").maps[KEY], found)


def test_smallest_numbers_of_all_in_float16(tmp_path: Path) -> None:
    values = np.full((3, 2, 2), np.float32(1e-45))
    writer.write(tmp_path / "maps.h5", with_maps(values), dtype="float16")
    assert np.array_equal(reader.read(tmp_path / "maps.h5").maps[KEY], values)


def test_plain_h5py_reads_float16(tmp_path: Path) -> None:
    writer.write(tmp_path / "maps.h5", example(), dtype="float16")
    with h5py.File(tmp_path / "maps.h5") as file:
        assert set(file["scale"]) == set(file["maps"])
        maps, scale = file["maps/selective_normgrad/layer3"], file["scale/selective_normgrad/layer3"]
        assert (maps.dtype, scale.dtype, scale.shape) == (np.float16, np.float32, (3,))
        assert maps.fletcher32
        assert scale.fletcher32
        assert np.abs(maps[:]).max() == 1
        assert close_enough(maps[:].astype(np.float32) * scale[:][:, None, None], ramp(3, 4, 5))


def test_unknown_dtype(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"dtype is 'float32' or 'float16', got 'float61'\. Did you mean"):
        writer.write(tmp_path / "maps.h5", example(), dtype="float61")
    assert os.listdir(tmp_path) == []


def test_the_same_maps_give_the_same_bytes(saved: Path) -> None:
    assert bytes(writer.encode(example())) == bytes(writer.encode(example())) == saved.read_bytes()
    assert bytes(writer.encode(example(), dtype="float16")) != saved.read_bytes()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_blosc_where_it_is_installed(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("hdf5plugin")
    writer.write(tmp_path / "maps.h5", example(), compression="blosc", dtype=dtype)
    writer.write(tmp_path / "plain.h5", example(), dtype=dtype)
    assert_equal(reader.read(tmp_path / "maps.h5"), reader.read(tmp_path / "plain.h5"))
    with h5py.File(tmp_path / "maps.h5") as file:
        properties = file["maps/grad_cam/layer3"].id.get_create_plist()
        assert [properties.get_filter(i)[0] for i in range(properties.get_nfilters())] == [32001, 3]


def test_blosc_where_it_is_not_installed(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    writer.write(tmp_path / "maps.h5", example(), compression="blosc")
    code = """if True:
        import sys
        sys.modules["hdf5plugin"] = None
        from gradlight import GradlightError
        from gradlight.data.hdf5 import reader, verify, writer
        for work in (lambda: reader.read(sys.argv[1]), lambda: writer.write(sys.argv[2], None, compression="blosc")):
            try:
                work()
            except GradlightError as error:
                print(error)
        print(*verify.verify(sys.argv[1]), sep="\\n")
    """
    paths = [tmp_path / "maps.h5", tmp_path / "other.h5"]
    done = subprocess.run([sys.executable, "-c", code, *paths], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    missing = r'blosc needs the package hdf5plugin, which is not installed: pip install "gradlight\[blosc\]"'
    first, second, *others = done.stdout.splitlines()
    assert re.fullmatch(rf".*maps\.h5: {missing}", first)
    assert re.fullmatch(missing, second)
    assert others
    assert all(re.search(missing, line) for line in others)
    assert os.listdir(tmp_path) == ["maps.h5"]


def test_maps_too_large_for_a_compression(tmp_path: Path) -> None:
    large = with_maps(np.zeros((3, 1025, 1024), np.float32))
    with pytest.raises(GradlightError, match=r"'grad_cam' at layer 'layer3' have 4,198,400 bytes .*'lzf' takes up to"):
        writer.write(tmp_path / "maps.h5", large, compression="lzf")
    assert os.listdir(tmp_path) == []
    writer.write(tmp_path / "maps.h5", large)
    assert reader.read(tmp_path / "maps.h5").maps[KEY].shape == (3, 1025, 1024)


def test_few_bytes_that_stand_for_gigabytes_are_not_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer.write(tmp_path / "maps.h5", with_maps(np.zeros((3, 1000, 1000), np.float32)))
    monkeypatch.setattr("gradlight.data.hdf5.reader._BOMB_BYTES", 2**20)
    with pytest.raises(GradlightError, match=r"stand for 12,000,000 bytes of maps\. Read them a few rows at a time"):
        reader.read(tmp_path / "maps.h5")
    with MapsFile(tmp_path / "maps.h5") as file:
        assert file.read(KEY, np.s_[1:2]).shape == (1, 1000, 1000)


def test_plain_h5py_reads_the_layout(saved: Path) -> None:
    # In another process, where only h5py is imported: no plugin and nothing of ours helps.
    code = """if True:
        import h5py, json, sys
        with h5py.File(sys.argv[1]) as f:
            assert not any(name.startswith("gradlight") for name in sys.modules)
            assert f.attrs["format"] == "gradlight-maps" and f.attrs["format_version"] == 1
            assert f.attrs["gradlight_version"] == "0.1.0" and f.attrs["weights_sha256"] == "ab" * 32
            assert json.loads(f.attrs["model"])["labels"] == ["\\u732b", "dog"]
            assert json.loads(f.attrs["objective"]) == {"kind": "class"}
            assert json.loads(f.attrs["meta"]) == {"lr": 0.002, "direction": "descent"}
            assert f.attrs["pixels"].tolist() == [224, 192] and f.attrs["complete"] == True
            assert set(f) == {"images", "targets", "maps", "failures"}
            assert set(f["images"]) == {"path", "sha256", "width", "height", "view"}
            assert set(f["targets"]) == {"image", "kind", "index", "label", "score"}
            assert set(f["failures"]) == {"path", "reason"}
            assert f["images/path"][:].tolist() == ["cats/\\u732b.jpg".encode(), b"caf\\xe9.png"]
            assert f["images/width"][:].tolist() == [640, 1] and f["images/height"][:].tolist() == [480, 2000]
            assert f["targets/image"][:].tolist() == [0, 0, 1] and f["targets/score"][:].tolist() == [12.5, -3.25, 0]
            assert f["targets/label"].asstr()[1] == "golden retriever"
            assert f["failures/reason"].asstr()[:].tolist() == ["damaged or truncated"]
            maps = f["maps/selective_normgrad/layer3"]
            assert maps.shape == (3, 4, 5) and maps.dtype == "float32" and maps[2, 3, 4] == 2 + 3 / 8 + 4 / 64
            assert dict(maps.attrs, stride=0) == dict(method="selective_normgrad", layer="layer3", depth=3, stride=0)
            assert maps.attrs["stride"].tolist() == [16, 16.5]
            assert maps.compression == "gzip" and maps.compression_opts == 1 and maps.shuffle
    """
    done = subprocess.run([sys.executable, "-c", code, saved], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_chunks_hold_whole_maps_of_about_64_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    shapes = {"small": (100, 14, 14), "large": (100, 224, 200)}
    stored = changed(
        targets=[TargetRow(0, "class", 0, "", 0.0)] * 100,
        maps={("m", layer): np.zeros(shape, np.float32) for layer, shape in shapes.items()},
        layers={("m", layer): LayerRow("m", layer, 0, (1.0, 1.0)) for layer in shapes},
    )
    writer.write(path, stored)
    with h5py.File(path) as file:
        assert file["maps/m/small"].chunks == (65536 // (14 * 14 * 4), 14, 14)
        assert file["maps/m/large"].chunks == (1, 224, 200)


def test_methods_and_layers_keep_their_order(saved: Path) -> None:
    assert list(dict.fromkeys(method for method, _ in reader.read(saved).maps)) == ["selective_normgrad", "grad_cam"]
    layers = [layer for method, layer in reader.read(saved).maps if method == "selective_normgrad"]
    assert layers == ["layer3", "input", "product(linear)"]


def test_float64_becomes_float32_and_the_empty_layer_becomes_input(tmp_path: Path) -> None:
    values = np.full((3, 2, 2), 0.1)
    row = LayerRow("gradient", "", 0, (1.0, 1.0))
    writer.write(tmp_path / "maps.h5", changed(maps={("gradient", ""): values}, layers={("gradient", ""): row}))
    found = reader.read(tmp_path / "maps.h5")
    assert found.layers == {("gradient", "input"): LayerRow("gradient", "input", 0, (1.0, 1.0))}
    assert np.array_equal(found.maps["gradient", "input"], values.astype(np.float32))


def test_more_labels_than_an_ordinary_attribute_holds(tmp_path: Path) -> None:
    model = {"labels": [f"class {i} of very many" for i in range(20_000)]}
    writer.write(tmp_path / "maps.h5", changed(model=model))
    assert reader.read(tmp_path / "maps.h5").model == model


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9.h5"), "n" * 252 + ".h5", "two\nlines.h5"])
def test_awkward_file_names(tmp_path: Path, name: str) -> None:
    writer.write(tmp_path / name[-255:], example())
    assert_equal(reader.read(tmp_path / name[-255:]), example())


# ---- what is refused before anything is written

KEY = ("grad_cam", "layer3")


def with_maps(values: np.ndarray, key: tuple[str, str] = KEY) -> StoredMaps:
    return changed(maps={key: values}, layers={key: LayerRow(*key, 3, (16.0, 16.0))})


def spoilt(value: float) -> np.ndarray:
    values = ramp(3, 4, 5).astype(np.float64)
    values[1, 2, 3] = value
    return values


NOT_FINITE = r"method 'grad_cam' at layer 'layer3' are not finite .* in 1 of 3 rows, the first is row 1"
UNSTORABLE: list[tuple[StoredMaps, str]] = [
    (with_maps(ramp(3, 2, 2), ("a/b", "layer3")), "the method name 'a/b' cannot be stored: .*without '/'"),
    (with_maps(ramp(3, 2, 2), ("m", "a/b")), "the layer name 'a/b' cannot be stored"),
    (with_maps(ramp(3, 2, 2), ("", "a")), "the method name '' cannot be stored"),
    (with_maps(ramp(3, 2, 2), ("m", ".")), r"the layer name '\.' cannot be stored"),
    (with_maps(ramp(3, 2, 2), ("m", "a\0")), r"the layer name 'a\\x00' cannot be stored"),
    (with_maps(spoilt(np.nan)), NOT_FINITE),
    (with_maps(spoilt(-np.inf)), NOT_FINITE),
    (with_maps(spoilt(1e300)), NOT_FINITE),
    (with_maps(np.zeros((3, 4))), r"must be real numbers \[M,h,w\], got float64 \[3, 4\]"),
    (with_maps(np.zeros((3, 0, 4))), r"must be real numbers \[M,h,w\], got float64 \[3, 0, 4\]"),
    (with_maps(np.lib.stride_tricks.as_strided(np.zeros(1), (3, 9000, 9000), (0, 0, 0))), "9000x9000, larger than"),
    (with_maps(np.zeros((3, 4, 4), complex)), r"must be real numbers \[M,h,w\], got complex128"),
    (with_maps(ramp(2, 4, 5)), r"/maps/grad_cam/layer3 has the shape \(2, 4, 5\), not \[3,h,w\] for 3 targets"),
    (changed(layers={}), "maps and layers must have the same"),
    (
        changed(maps=dict.fromkeys([("m", ""), ("m", "input")], ramp(3, 2, 2)), layers=example().layers),
        "maps and layers must have the same .* each once",
    ),
    (
        changed(maps={KEY: ramp(3, 4, 5)}, layers={KEY: LayerRow("grad_cam", "layer4", 3, (16.0, 16.0))}),
        "the attribute 'layer' of /maps/grad_cam/layer3 is 'layer4', not 'layer3'",
    ),
    (changed(maps={KEY: ramp(3, 4, 5)}, layers={KEY: LayerRow(*KEY, 3, (0.0, 16.0))}), "'stride' of .* two positive"),
    (changed(targets=[TargetRow(2, "class", 0, "", 0.0)] * 3), "/targets/image of row 0 is 2, but there are 2 images"),
    (
        changed(targets=[TargetRow(-1, "class", 0, "", 0.0)] * 3),
        "/targets/image of row 0 is -1, but there are 2 imag.*; ",
    ),
    (changed(images=[ImageRow("", "", 0, 1, {})] * 2), "/images/width of row 0 is 0, less than 1"),
    (changed(images=[ImageRow("a\0b", "", 1, 1, {})] * 2), "images/path of row 0 cannot be stored as text"),
    (changed(images=[ImageRow("\ud800", "", 1, 1, {})] * 2), "images/path of row 0 cannot be stored as text"),
    (changed(images=[ImageRow("", "", 1.5, 1, {})] * 2), "images/width of row 0 cannot be stored as integer: 1.5"),
    (changed(images=[ImageRow("", "", 2**63, 1, {})] * 2), "images/width of row 0 cannot be stored as integer"),
    (changed(images=[ImageRow("", "", 1, 1, {"a": {1}})] * 2), "images/view of row 0 cannot be stored as JSON: .* set"),
    (changed(images=[ImageRow("", "", 1, 1, [])] * 2), "/images/view of row 0 is not the JSON of an object"),
    (changed(targets=[TargetRow(0, "c", 0, "", "high")] * 3), "targets/score of row 0 cannot be stored as number: 'hi"),
    (changed(model={"lr": float("nan")}), "model cannot be stored as JSON"),
    (changed(objective=None), "the attribute 'objective' is missing or not the JSON of an object"),
    (changed(gradlight_version="a\0b"), "these maps cannot be stored: "),
    (changed(weights_sha256=None), "these maps cannot be stored: "),
    (changed(pixels=(224, 0)), "the attribute 'pixels' is missing or not a height and a width"),
    (changed(pixels=(224, 1.5)), "pixels cannot be stored as integer: 1.5"),
]


@pytest.mark.parametrize(("stored", "message"), UNSTORABLE)
def test_what_cannot_be_stored_leaves_no_trace(tmp_path: Path, stored: StoredMaps, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        writer.write(tmp_path / "maps.h5", stored)
    assert os.listdir(tmp_path) == []


def test_unknown_compression(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"'gzip', 'lzf', 'blosc', .* got 'gzipp'\. Did you mean 'gzip'"):
        writer.write(tmp_path / "maps.h5", example(), compression="gzipp")
    assert os.listdir(tmp_path) == []


# ---- where it is written


def test_own_file_is_replaced_through_a_link(saved: Path) -> None:
    link = saved.with_name("link.h5")
    link.symlink_to(saved)
    writer.write(link, changed(weights_sha256="new"))
    assert link.is_symlink()
    assert reader.read(saved).weights_sha256 == "new"


def test_own_file_of_a_later_version_is_replaced(saved: Path) -> None:
    with h5py.File(saved, "a") as file:
        file.attrs["format_version"] = 99
    writer.write(saved, example())
    assert_equal(reader.read(saved), example())


@pytest.mark.parametrize("kind", ["text", "empty", "hdf5", "truncated"])
def test_file_of_another_program_is_not_replaced_unless_asked(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "precious.h5"
    if kind == "hdf5":
        with h5py.File(path, "w") as file:
            file["weights"] = np.arange(5)
    elif kind == "truncated":
        path.write_bytes(KEPT.read_bytes()[:1000])
    else:
        path.write_bytes(b"my notes" if kind == "text" else b"")
    before = path.read_bytes()
    with pytest.raises(GradlightError, match=r"precious\.h5: exists and is not a gradlight file.*overwrite=True"):
        writer.write(path, example())
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["precious.h5"]
    writer.write(path, example(), overwrite=True)
    assert_equal(reader.read(path), example())


def test_places_that_are_no_place_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"maps\.h5: the folder .*absent does not exist\. Create it first"):
        writer.write(tmp_path / "absent" / "maps.h5", example())
    with pytest.raises(GradlightError, match="exists and is not a regular file"):
        writer.write(tmp_path, example(), overwrite=True)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(GradlightError, match=r"pipe\.h5: exists and is not a regular file"):
        writer.write(tmp_path / "pipe.h5", example(), overwrite=True)
    with pytest.raises(GradlightError, match=r"cannot be written: .*too long"):
        writer.write(tmp_path / ("n" * 256), example())
    with pytest.raises(GradlightError, match="cannot be written: embedded null byte"):
        writer.write("a\0b", example())
    with pytest.raises(GradlightError, match="the path of a file was expected, got int: 3"):
        writer.write(3, example())
    assert os.listdir(tmp_path) == ["pipe.h5"]


def test_read_only_file_is_left_alone(saved: Path) -> None:
    before = saved.read_bytes()
    saved.chmod(0o444)
    with pytest.raises(GradlightError, match=r"maps\.h5: exists and is read-only"):
        writer.write(saved, changed(weights_sha256="new"), overwrite=True)
    assert saved.read_bytes() == before


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """Give a folder that this process may not write to, although the superuser may write anywhere."""
    with tempfile.TemporaryDirectory() as name:
        user = os.geteuid()
        os.chmod(name, 0o555)
        try:
            if user == 0:
                os.seteuid(65534)
            yield Path(name)
        finally:
            os.seteuid(user)
            os.chmod(name, 0o755)


def test_folder_without_permission(closed_folder: Path) -> None:
    with pytest.raises(GradlightError, match=r"maps\.h5: cannot be written .*Permission denied.*folder's permissions"):
        writer.write(closed_folder / "maps.h5", example())


@pytest.mark.parametrize("function", ["fsync", "replace"])
@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize(
    ("failure", "expected", "message"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            GradlightError,
            r"cannot be written .*No space left",
        ),
        (KeyboardInterrupt("stopped"), KeyboardInterrupt, "stopped"),
    ],
)
def test_failure_on_the_way_leaves_everything_as_it_was(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    older: bool,
    failure: BaseException,
    expected: type[BaseException],
    message: str,
) -> None:
    path = tmp_path / "maps.h5"
    if older:
        writer.write(path, example())
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    def fail(*_: object) -> None:
        assert len(os.listdir(tmp_path)) == len(before) + 1  # it was being written, under another name
        raise failure

    monkeypatch.setattr(f"gradlight.data.hdf5.writer.os.{function}", fail)
    with pytest.raises(expected, match=message):
        writer.write(path, changed(weights_sha256="new"))
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.skipif(os.name != "posix", reason="file size limits are POSIX")
def test_file_system_that_is_full(tmp_path: Path) -> None:
    # A real failure, after which the process still works and ends well: the HDF5 library itself would crash it.
    code = """if True:
        import resource, sys
        import numpy as np
        from gradlight import GradlightError
        from gradlight.data.hdf5 import reader, schema, writer
        noise = np.random.default_rng(0).random((1, 200, 200))
        key = ("m", "layer")
        stored = schema.StoredMaps({}, "", {}, None, [schema.ImageRow("", "", 1, 1, {})],
            [schema.TargetRow(0, "", 0, "", 0.0)], {key: noise}, {key: schema.LayerRow(*key, 0, (1.0, 1.0))}, [], True,
            "", (1, 1))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        try:
            writer.write(sys.argv[1], stored)
        except GradlightError as error:
            print(error)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writer.write(sys.argv[1] + ".second", stored)
        print(reader.read(sys.argv[1] + ".second").complete)
    """
    command = [sys.executable, "-c", code, tmp_path / "maps.h5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"maps\.h5: cannot be written .*File too large.*free space\.\nTrue\n$", done.stdout), done.stdout
    assert os.listdir(tmp_path) == ["maps.h5.second"]


# ---- what is refused in reading


def test_what_is_no_file_of_maps(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"absent\.h5: cannot be opened: No such file"):
        reader.read(tmp_path / "absent.h5")
    with pytest.raises(GradlightError, match="a directory, not a regular file"):
        reader.read(tmp_path)
    os.mkfifo(tmp_path / "pipe.h5")
    with pytest.raises(GradlightError, match=r"pipe\.h5: a named pipe"):
        reader.read(tmp_path / "pipe.h5")
    for content in (b"", b"PK\x03\x04 something else"):
        (tmp_path / "other.h5").write_bytes(content)
        with pytest.raises(GradlightError, match=r"other\.h5: not an HDF5 file"):
            reader.read(tmp_path / "other.h5")
    with h5py.File(tmp_path / "weights.h5", "w") as file:
        file.attrs["format"] = np.arange(3)
    with pytest.raises(GradlightError, match=r"weights\.h5: an HDF5 file of another program"):
        reader.read(tmp_path / "weights.h5")


def test_newer_version_says_what_to_do(saved: Path) -> None:
    with h5py.File(saved, "a") as file:
        file.attrs["format_version"] = 2
        del file["targets"]  # a later version may look quite different
    with pytest.raises(GradlightError, match=r"is 2, and this gradlight reads up to 1: upgrade gradlight"):
        reader.read(saved)


@pytest.mark.parametrize("version", [0, "1", 1.5])
def test_version_that_is_no_version(saved: Path, version: object) -> None:
    with h5py.File(saved, "a") as file:
        file.attrs["format_version"] = version
    with pytest.raises(GradlightError, match="not a whole number from 1"):
        reader.read(saved)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
def test_truncated_file(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(GradlightError, match=r"maps\.h5: damaged or truncated"):
        reader.read(saved)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("compression", ["gzip", "lzf", None])
def test_flipped_bit_in_a_map_is_noticed(tmp_path: Path, compression: str | None, dtype: str) -> None:
    path = tmp_path / "maps.h5"
    writer.write(path, example(), compression=compression, dtype=dtype)
    with h5py.File(path) as file:
        chunk = file["maps/grad_cam/layer3"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[chunk.byte_offset + chunk.size // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(GradlightError, match=r"maps\.h5: damaged or truncated"):
        reader.read(path)


def test_damaged_bytes_do_not_crash_the_reader(tmp_path: Path) -> None:
    # In another process, because a crash inside the HDF5 library cannot be caught. The kept file's bytes do not change.
    code = """if True:
        import pathlib, random, sys
        from gradlight import GradlightError
        from gradlight.data.hdf5 import reader, writer
        kept, path, choose, refused = *map(pathlib.Path, sys.argv[1:]), random.Random(0), 0
        sound = kept.read_bytes()
        for _ in range(200):
            content = bytearray(sound)
            content[choose.randrange(len(sound))] ^= choose.randrange(1, 256)
            path.write_bytes(content)
            try:
                reader.read(path)
            except GradlightError:
                refused += 1
        print(refused)
    """
    command = [sys.executable, "-c", code, KEPT, tmp_path / "maps.h5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    # What is not noticed lies in unused space or in the texts, which HDF5 does not protect.
    assert int(done.stdout) > 100


def put(name: str, **options: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file.create_dataset(name, **options)

    return change


def attribute(where: str, name: str, value: object) -> Callable[[h5py.File], None]:
    return lambda file: file[where].attrs.__setitem__(name, value)


def drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


MAP = "/maps/grad_cam/layer3"
DAMAGE: list[tuple[Callable[[h5py.File], None], str]] = [
    (lambda file: file.attrs.__delitem__("weights_sha256"), "the attribute 'weights_sha256' is missing or not a text"),
    (attribute("/", "gradlight_version", 1), "the attribute 'gradlight_version' is missing or not a text"),
    (attribute("/", "model", "{"), "the attribute 'model' is missing or not the JSON of an object"),
    (attribute("/", "meta", "[]"), "the attribute 'meta' is missing or not the JSON of an object"),
    (attribute("/", "complete", "yes"), "the attribute 'complete' is missing or not a truth value"),
    (attribute("/", "pixels", [1.5, 2.5]), "the attribute 'pixels' is missing or not a height and a width"),
    (drop("images"), "the group /images is missing"),
    (put("targets", data=0), "the group /targets is missing"),
    (drop("maps"), "the group /maps is missing"),
    (drop("targets/score"), "the column /targets/score is missing or not one-dimensional"),
    (put("targets/score", data=np.zeros((3, 1))), "the column /targets/score is missing or not one-dimensional"),
    (put("targets/score", data=h5py.Empty("f8")), "the column /targets/score is missing or not one-dimensional"),
    (put("targets/score", data=np.zeros(3, int)), "the column /targets/score holds int64, not number"),
    (put("images/path", data=np.zeros(2)), "the column /images/path holds float64, not text"),
    (put("images/width", data=np.ones(3, int)), r"the columns of /images differ in length: \[2, 3\]"),
    (put("images/height", data=np.array([480, -1])), "/images/height of row 1 is -1, less than 1"),
    (put("images/view", data=["{}", "nonsense"]), "/images/view of row 1 is not the JSON of an object"),
    (put("targets/image", data=np.array([0, 5, 1])), "/targets/image of row 1 is 5, but there are 2 images"),
    (put("maps/odd", data=0), "/maps/odd is not a group"),
    (lambda file: file.create_group("maps/grad_cam/odd"), "/maps/grad_cam/odd is not a dataset"),
    (put(MAP, data=np.zeros((3, 4, 5))), f"{MAP} holds float64, not float32 or float16"),
    (put(MAP, data=np.zeros((2, 4, 5), "f4")), rf"{MAP} has the shape \(2, 4, 5\), not \[3,h,w\] for 3 targets"),
    (put("scale/grad_cam/layer3", data=np.ones(3, "f4")), "/scale/grad_cam/layer3 is there, although the maps are not"),
    (put("scale/grad_cam/odd", data=np.ones(3, "f4")), "/scale/grad_cam/odd has no maps"),
    (put(MAP, data=np.zeros((3, 4), "f4")), rf"{MAP} has the shape \(3, 4\), not \[3,h,w\]"),
    (put(MAP, data=np.zeros((3, 4, 5), "f4")), f"the attribute 'method' of {MAP} is None, not 'grad_cam'"),
    (attribute(MAP, "layer", "layer4"), f"the attribute 'layer' of {MAP} is 'layer4', not 'layer3'"),
    (attribute(MAP, "depth", 1.5), f"the attribute 'depth' of {MAP} is missing or not a whole number"),
    (attribute(MAP, "stride", [16.0]), f"the attribute 'stride' of {MAP} is missing or not two positive numbers"),
    (attribute(MAP, "stride", [16.0, np.nan]), f"the attribute 'stride' of {MAP} is missing or not two positive"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_parts_that_do_not_agree(saved: Path, change: Callable[[h5py.File], None], message: str) -> None:
    with h5py.File(saved, "a") as file:
        assert validation.find_problems(file) == []
        change(file)
        found = validation.find_problems(file)
        found += [] if found else validation.find_view_problems(file["images/view"][:])
        assert any(re.match(message, problem) for problem in found)
    with pytest.raises(GradlightError, match=rf"maps\.h5: not a sound gradlight file: .*{message}"):
        reader.read(saved)


@pytest.mark.parametrize("scale", [None, np.ones(2, "f4"), np.ones(3, "f8")])
def test_float16_without_its_scale(tmp_path: Path, scale: np.ndarray | None) -> None:
    writer.write(tmp_path / "maps.h5", example(), dtype="float16")
    with h5py.File(tmp_path / "maps.h5", "a") as file:
        del file["scale/grad_cam/layer3"]
        if scale is not None:
            file["scale/grad_cam/layer3"] = scale
    with pytest.raises(GradlightError, match="/scale/grad_cam/layer3 is missing or not one float32 for each of 3 maps"):
        reader.read(tmp_path / "maps.h5")


def test_many_problems_are_counted(saved: Path) -> None:
    with h5py.File(saved, "a") as file:
        for name in schema.TABLES:
            del file[name]
        del file["maps"], file.attrs["model"]
    with pytest.raises(GradlightError, match="/images is missing; the group /targets is missing; and 2 more"):
        reader.read(saved)
