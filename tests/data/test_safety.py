"""Files made to do harm: each is refused with one sentence, before anything outside it or anything huge is read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from stored_examples import example, shard, write_shards

from gradlight import GradlightError
from gradlight.data.hdf5 import reader, verify, writer
from gradlight.data.hdf5 import shards as virtual
from gradlight.data.hdf5.reader import MapsFile

ROOT = Path(__file__).resolve().parents[2]
MAP = "/maps/grad_cam/layer3"
CANARY = "a text of another file"
Change = Callable[[h5py.File], object]


def put(name: str, **options: Any) -> Change:
    """Put a dataset in the place of another, with its attributes."""

    def change(file: h5py.File) -> None:
        attributes = dict(file[name].attrs)
        del file[name]
        dataset = file.create_dataset(name, **options)
        dataset.attrs.update(attributes)

    return change


def link(name: str, target: object) -> Change:
    def change(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = target

    return change


def attribute(name: str, value: object, where: str = "/") -> Change:
    return lambda file: file[where].attrs.__setitem__(name, value)


def large_attribute(name: str, where: str = "/") -> Change:
    """Make every one of many places of an attribute the same long text."""

    def change(file: h5py.File) -> None:
        if name in file[where].attrs:
            del file[where].attrs[name]
        file[where].attrs.create(name, np.array(["x" * 100] * 3000, object), dtype=h5py.string_dtype())

    return change


def virtual_at(name: str, source: str, dataset: str | None = None, **options: Any) -> Change:
    def change(file: h5py.File) -> None:
        shape, dtype = file[name].shape, file[name].dtype
        attributes = dict(file[name].attrs)
        layout = h5py.VirtualLayout(shape, dtype)
        layout[:] = h5py.VirtualSource(source, dataset or name, shape=shape, dtype=dtype)
        del file[name]
        file.create_virtual_dataset(name, layout, **options)
        file[name].attrs.update(attributes)

    return change


def shards(folder: object, *files: object) -> Change:
    return attribute("shards", json.dumps({"folder": folder, "files": files}))


def unlimited_virtual(file: h5py.File) -> None:
    """Make a virtual dataset whose very shape is found by opening file after file."""
    attributes = dict(file[MAP].attrs)
    del file[MAP]
    layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    space = h5py.h5s.create_simple((0, 4, 5), (h5py.h5s.UNLIMITED, 4, 5))
    space.select_hyperslab((0, 0, 0), (h5py.h5s.UNLIMITED, 1, 1), (1, 1, 1), (1, 4, 5))
    source = h5py.h5s.create_simple((1, 4, 5))
    source.select_all()
    layout.set_virtual(space, b"elsewhere-%b.h5", MAP.encode(), source)
    kind = h5py.h5t.IEEE_F32LE
    h5py.h5d.create(file.id, MAP.encode(), kind, space, dcpl=layout)
    file[MAP].attrs.update(attributes)


def scaled(file: h5py.File) -> None:
    attributes, values = dict(file[MAP].attrs), file[MAP][:]
    del file[MAP]
    file.create_dataset(MAP, data=values, chunks=values.shape, scaleoffset=2).attrs.update(attributes)


def cycle(file: h5py.File) -> None:
    file["maps/again"] = file["maps"]
    file["maps/again/root"] = file["/"]


LINK = "is a soft or external link, which can lead anywhere"
OTHER = h5py.ExternalLink("elsewhere/canary.h5", "/images")
HOSTILE: dict[str, tuple[Change, str]] = {
    "external link of a table": (link("images", OTHER), f"'/images' {LINK}"),
    "external link of a column": (
        link("images/path", h5py.ExternalLink("elsewhere/canary.h5", "/images/path")),
        f"'/images/path' {LINK}",
    ),
    "external link of all maps": (link("maps", h5py.ExternalLink("elsewhere/canary.h5", "/maps")), f"'/maps' {LINK}"),
    "external link of a method": (link("maps/new", OTHER), f"'/maps/new' {LINK}"),
    "external link of a layer": (link(MAP, h5py.ExternalLink("elsewhere/canary.h5", MAP)), f"'{MAP}' {LINK}"),
    "external link to a device": (link("failures", h5py.ExternalLink("/dev/zero", "/x")), f"'/failures' {LINK}"),
    "external link beside the rest": (link("extra", OTHER), f"'/extra' {LINK}"),
    "soft link to itself": (link("maps", h5py.SoftLink("/maps")), f"'/maps' {LINK}"),
    "soft links in a loop": (
        lambda file: (link("maps/a", h5py.SoftLink("/maps/b"))(file), link("maps/b", h5py.SoftLink("/maps/a"))(file)),
        f"'/maps/a' {LINK}",
    ),
    "soft link to the root": (link("maps/grad_cam/up", h5py.SoftLink("/")), f"'/maps/grad_cam/up' {LINK}"),
    "soft link of a scale": (link("scale/grad_cam/layer3", h5py.SoftLink("/images")), f"'/scale/.*' {LINK}"),
    "hard links in a circle": (cycle, "/maps/again/.* is not a dataset"),
    "maps kept in another file": (
        put(MAP, shape=(3, 4, 5), dtype="f4", external=[("elsewhere/canary.bin", 0, h5py.h5f.UNLIMITED)]),
        f"{MAP} is kept in another file",
    ),
    "column kept in another file": (
        put("targets/index", shape=(3,), dtype="i8", external=[("elsewhere/canary.bin", 0, 24)]),
        "/targets/index is kept in another file",
    ),
    "virtual maps without shards": (virtual_at(MAP, "elsewhere/canary.h5"), f"{MAP} is a virtual dataset, kept in oth"),
    "virtual maps of the file itself": (virtual_at(MAP, ".", "/maps/grad_cam/input"), f"{MAP} is a virtual dataset"),
    "virtual column": (virtual_at("targets/index", "elsewhere/canary.h5"), "/targets/index is a virtual dataset"),
    "virtual maps without an end": (unlimited_virtual, f"{MAP} is a virtual dataset"),
    "virtual maps with shards of another name": (
        lambda file: (
            shards("maps.shards", ["shard-00000.h5", 2, 3, 1])(file),
            virtual_at(MAP, "elsewhere/canary.h5")(file),
            *(virtual_at(name, "maps.shards/shard-00000.h5")(file) for name in layers(file) if name != MAP),
        ),
        f"{MAP} has the source '{MAP}' of 'elsewhere/canary.h5', not '{MAP}' of 'shard-00000.h5'",
    ),
    "virtual maps of other maps": (
        lambda file: (
            shards("maps.shards", ["shard-00000.h5", 2, 3, 1])(file),
            *(virtual_at(name, "maps.shards/shard-00000.h5", "/images/width")(file) for name in layers(file)),
        ),
        "has the source '/images/width' of 'maps.shards/shard-00000.h5', not",
    ),
    "shards of a file that is not virtual": (
        shards("maps.shards", ["shard-00000.h5", 2, 3, 1]),
        "is not virtual, as it",
    ),
    "shards outside": (shards("../maps.shards", ["a.h5", 2, 3, 1]), "'shards' does not name plain files in one folder"),
    "shards anywhere": (shards("maps.shards", ["../../etc/a.h5", 2, 3, 1]), "'shards' does not name plain files"),
    "shards at the root": (shards("/maps.shards", ["a.h5", 2, 3, 1]), "'shards' does not name plain files"),
    "shards of a pattern": (shards("maps.shards", ["shard-%b.h5", 2, 3, 1]), "'shards' does not name plain files"),
    "shards twice": (shards("maps.shards", ["a.h5", 1, 1, 0], ["a.h5", 1, 2, 1]), "'shards' does not name plain files"),
    "shards of no length": (shards("maps.shards", ["a.h5", 2, -3, 1]), "'shards' does not name plain files"),
    "shards that are no JSON": (attribute("shards", "{"), "'shards' does not name plain files"),
    "shards that nest": (attribute("shards", "[" * 100_000), "'shards' does not name plain files"),
    "shards of many texts": (large_attribute("shards"), "'shards' does not name plain files"),
    "references to objects": (
        lambda file: put("images/path", data=np.array([file.ref] * 2, h5py.ref_dtype))(file),
        "the column /images/path holds object, not text",
    ),
    "references to regions": (
        lambda file: put(MAP, data=np.array([file[MAP].regionref[0]] * 3, h5py.regionref_dtype))(file),
        f"{MAP} holds object, not float32",
    ),
    "attribute that is a reference": (
        lambda file: file.attrs.create("model", file.ref, dtype=h5py.ref_dtype),
        "the attribute 'model' is missing or not the JSON",
    ),
    "column that is only declared": (
        put("images/width", shape=(10**9,), dtype="i8"),
        "/images/width declares 8,000,000,000 bytes, and the file stores 0",
    ),
    "texts that are only declared": (
        put("images/path", shape=(10**9,), dtype=h5py.string_dtype()),
        "declares 16,000,000,0",
    ),
    "column that is packed": (
        put("targets/score", data=np.zeros(3), chunks=(3,), compression="gzip"),
        "/targets/score is not stored contiguously",
    ),
    "maps that are only declared": (
        put(MAP, shape=(10**8, 5, 5), dtype="f4", chunks=(100, 5, 5), compression="gzip"),
        f"{MAP} declares 1,000,000 chunks, and the file does not store them all",
    ),
    "endless maps that are only declared": (
        put(MAP, shape=(2**62, 1, 1), dtype="f4", chunks=(1, 1, 1), maxshape=(None, 1, 1)),
        f"{MAP} declares 4,611,686,018,427,387,904 chunks",
    ),
    "maps of one piece that are only declared": (
        put(MAP, shape=(10**8, 5, 5), dtype="f4"),
        f"{MAP} declares 10,000,000,",
    ),
    "maps of which a part is missing": (
        lambda file: (
            put(MAP, shape=(3, 4, 5), dtype="f4", chunks=(1, 4, 5))(file),
            file[MAP].__setitem__(np.s_[1:], 1),
        ),
        f"{MAP} declares 3 chunks, and the file does not store them all",
    ),
    "maps of absurd size": (
        put(MAP, shape=(3, 10**6, 10**6), dtype="f4", chunks=(1, 100, 100)),
        f"{MAP} declares maps of 1,000,000,000,000 numbers each",
    ),
    "chunks of absurd size": (
        put(MAP, shape=(3, 4, 5), dtype="f4", chunks=(1, 20_000, 20_000), maxshape=(None, None, None)),
        rf"{MAP} has chunks of \[1, 20000, 20000\], larger than itself",
    ),
    "chunks of too many maps": (
        put(MAP, shape=(10**9, 4, 5), dtype="f4", chunks=(10**7, 4, 5), maxshape=(None, 4, 5)),
        f"{MAP} has chunks of 800,000,000 bytes, more than",
    ),
    "another filter": (scaled, rf"{MAP} is packed by the HDF5 filters \[6\], which gradlight does not use so"),
    "attribute that is no JSON": (attribute("model", "model"), "the attribute 'model' is missing or not the JSON"),
    "attribute that nests": (attribute("meta", "[" * 10**6), "the attribute 'meta' is missing or not the JSON"),
    "attribute with a number of many digits": (
        attribute("model", "1" * 10**5),
        "the attribute 'model' is missing or not",
    ),
    "attribute of enormous length": (
        attribute("model", '{"a": "%s"}' % ("x" * 2**24)),
        "the attribute 'model' is miss",
    ),
    "attribute of many texts": (large_attribute("model"), "the attribute 'model' is missing or not the JSON"),
    "attribute of bytes that are no text": (
        attribute("weights_sha256", np.void(b"\xff\x00")),
        "'weights_sha256' is miss",
    ),
    "attribute of many sides": (attribute("pixels", np.ones(4000, int)), "the attribute 'pixels' is missing or not"),
    "layer of many texts": (large_attribute("layer", MAP), f"the attribute 'layer' of {MAP} is None"),
    "format of many texts": (large_attribute("format"), "an HDF5 file of another program"),
}


def layers(file: h5py.File) -> list[str]:
    return [f"/maps/{method}/{layer}" for method, group in file["maps"].items() for layer in group]


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Give a sound file in another folder, and raw numbers beside it, which nobody may read."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    canary = example()
    canary.failures = [(CANARY, CANARY)]
    canary.gradlight_version = CANARY
    writer.write(folder / "canary.h5", canary)
    (folder / "canary.bin").write_bytes(CANARY.encode() * 100)
    return folder


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.usefixtures("elsewhere")
def test_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    change, message = HOSTILE[name]
    path = tmp_path / "maps.h5"
    writer.write(path, example())
    with h5py.File(path, "a", libver="latest") as file:
        change(file)
    for work in (MapsFile, reader.read):
        with pytest.raises(GradlightError, match=message) as caught:
            work(path)
        assert CANARY not in str(caught.value)
    (problem,) = verify.verify(path)
    assert re.search(message, problem)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the size of the process from /proc")
@pytest.mark.usefixtures("elsewhere")
def test_memory_stays_bounded(tmp_path: Path) -> None:
    for name, (change, _) in HOSTILE.items():
        writer.write(tmp_path / f"{name}.h5", example())
        with h5py.File(tmp_path / f"{name}.h5", "a", libver="latest") as file:
            change(file)
    code = """if True:
        import pathlib, resource, sys
        from gradlight import GradlightError
        from gradlight.data.hdf5 import reader, verify, writer
        paths = sorted(pathlib.Path(sys.argv[1]).glob("*.h5"))
        reader.read(sys.argv[2])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for path in paths:
            for work in (reader.read, verify.verify, writer.destination):
                try:
                    print(work(path))
                except GradlightError as error:
                    print(error)
        print("kilobytes", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    command = [sys.executable, "-c", code, tmp_path, tmp_path / "elsewhere" / "canary.h5"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout
    assert int(done.stdout.rsplit(maxsplit=1)[1]) < 200_000  # the largest of the files has 17 MB, in one text


# ---- texts and chunks that unpack to more than the file holds


def test_many_texts_that_are_one(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    stored = shard(500, 0)
    stored.images[0].view["long"] = "x" * 100_000
    writer.write(path, stored)
    with h5py.File(path) as file:
        offset = file["images/view"].id.get_offset()
    content = bytearray(path.read_bytes())
    first = content[offset : offset + 16]
    content[offset : offset + 16 * 500] = first * 500
    path.write_bytes(content)
    with pytest.raises(
        GradlightError, match=r"/images/view holds texts of 50,0\d\d,\d\d\d bytes together, more than the"
    ):
        MapsFile(path)


def one_map(path: Path, side: int, **options: Any) -> None:
    """Write a file whose only maps are three of zeros, each in a chunk of its own."""
    stored = example()
    key = ("grad_cam", "layer3")
    stored.maps, stored.layers = {key: np.zeros((3, side, side), np.float32)}, {key: stored.layers[key]}
    writer.write(path, stored, **options)
    with h5py.File(path, "a", libver="latest") as file:
        properties = file[MAP].id.get_create_plist()
        properties.set_chunk((1, side, side))
        attributes = dict(file[MAP].attrs)
        del file[MAP]
        space = h5py.h5s.create_simple((3, side, side), (h5py.h5s.UNLIMITED, side, side))
        h5py.h5d.create(file.id, MAP.encode(), h5py.h5t.IEEE_F32LE, space, dcpl=properties)
        file[MAP].attrs.update(attributes)
        file[MAP][:] = 0


def refill(path: Path, packed: bytes) -> None:
    with h5py.File(path, "a", libver="latest") as file:
        file[MAP].id.write_direct_chunk((1, 0, 0), packed)


def assert_only_its_chunk_is_refused(path: Path, message: str) -> None:
    with MapsFile(path) as file:
        key = ("grad_cam", "layer3")
        assert not file.read(key, np.array([0, 2])).any()
        with pytest.raises(GradlightError, match=message):
            file.read(key, np.s_[:])
    with pytest.raises(GradlightError, match=message):
        reader.read(path)
    (problem,) = verify.verify(path)
    assert re.search(message, problem)


def test_chunk_that_is_kept_in_too_many_bytes(tmp_path: Path) -> None:
    one_map(tmp_path / "maps.h5", 20)
    refill(tmp_path / "maps.h5", zlib.compress(bytes(2**28)) + bytes(4))
    message = r"layer3 keeps 260,\d\d\d bytes for its chunk at \(1, 0, 0\) of 1,600 bytes"
    assert_only_its_chunk_is_refused(tmp_path / "maps.h5", message)


def test_chunk_that_inflates_without_an_end(tmp_path: Path) -> None:
    one_map(tmp_path / "maps.h5", 300)
    refill(tmp_path / "maps.h5", zlib.compress(bytes(2**28)) + bytes(4))
    message = r"layer3 has a chunk at \(1, 0, 0\) that unpacks to other than its 360,000 bytes"
    assert_only_its_chunk_is_refused(tmp_path / "maps.h5", message)


def test_chunk_of_blosc_that_asks_for_gigabytes(tmp_path: Path) -> None:
    pytest.importorskip("hdf5plugin")
    path = tmp_path / "maps.h5"
    one_map(path, 20, compression="blosc")
    with h5py.File(path) as file:
        packed = bytearray(file[MAP].id.read_direct_chunk((1, 0, 0))[1])
    packed[4:8] = (2**31 - 100).to_bytes(4, "little")
    refill(path, bytes(packed))
    assert_only_its_chunk_is_refused(path, r"has a chunk at \(1, 0, 0\) that unpacks to other than its 1,600 bytes")


def test_maps_that_share_their_bytes(tmp_path: Path) -> None:
    path = tmp_path / "maps.h5"
    writer.write(path, example(), compression=None)
    with h5py.File(path, "a") as file:
        for number in range(2000):  # the very same dataset under many names
            file[f"maps/grad_cam/{number}"] = file[MAP]
    with pytest.raises(GradlightError, match="its maps share their bytes"):
        MapsFile(path)


# ---- shards


@pytest.fixture
def index(tmp_path: Path) -> Path:
    paths = write_shards(tmp_path / "maps.shards", [shard(2, 0), shard(1, 1)])
    virtual.write_index(tmp_path / "maps.h5", paths)
    return tmp_path / "maps.h5"


KEY = ("normgrad", "layer1")
WHERE = "/maps/normgrad/layer1"
SHARDS: dict[str, tuple[Change, str]] = {
    "external link": (
        link(WHERE, h5py.ExternalLink("../elsewhere/canary.h5", MAP)),
        f"shard-00000.h5: refused, because '{WHERE}' {LINK}",
    ),
    "external link of the way": (link("maps", h5py.ExternalLink("x.h5", "/maps")), f"refused, because '/maps' {LINK}"),
    "virtual": (virtual_at(WHERE, "../elsewhere/canary.h5"), f"refused, because {WHERE} is a virtual dataset"),
    "virtual of a shard": (virtual_at(WHERE, "shard-00001.h5"), f"refused, because {WHERE} is a virtual dataset"),
    "kept elsewhere": (
        put(WHERE, shape=(4, 6, 7), dtype="f4", external=[("../elsewhere/canary.bin", 0, h5py.h5f.UNLIMITED)]),
        f"{WHERE} is kept in another file",
    ),
    "other rows": (
        put(WHERE, data=np.zeros((3, 6, 7), "f4")),
        r"holds float32 \[3, 6, 7\], and its index expects .* \[4,",
    ),
    "other numbers": (
        put(WHERE, data=np.zeros((4, 6, 7), "i4")),
        r"holds int32 \[4, 6, 7\], and its index expects float",
    ),
    "no maps": (lambda file: file.__delitem__(WHERE), f"refused, because {WHERE} is not there"),
    "another program": (attribute("format", "weights"), "shard-00000.h5: an HDF5 file of another program"),
}


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.usefixtures("elsewhere")
def test_shards_are_refused_as_whole_files_are(index: Path, name: str) -> None:
    change, message = SHARDS[name]
    with h5py.File(index.parent / "maps.shards" / "shard-00000.h5", "a", libver="latest") as file:
        change(file)
    with MapsFile(index) as file:
        with pytest.raises(GradlightError, match=message):
            file.read(KEY, np.s_[:])
        assert file.read(KEY, np.s_[4:]).shape == (2, 6, 7)  # from the other shard
    assert verify.verify(index)


def test_shard_that_is_an_index(index: Path) -> None:
    # An index that names itself would lead round in circles.
    inner = index.parent / "maps.shards" / "maps.shards"
    inner.symlink_to(index.parent / "maps.shards")
    (index.parent / "maps.shards" / "shard-00000.h5").unlink()
    (index.parent / "maps.shards" / "shard-00000.h5").symlink_to(index)
    with MapsFile(index) as file, pytest.raises(GradlightError, match=f"{WHERE} is a virtual dataset"):
        file.read(KEY, np.s_[:])
    assert any("is itself an index, and not a shard" in problem for problem in verify.verify(index))
