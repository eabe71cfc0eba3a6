"""The cache on disk: what it gives back, what it refuses, how full it gets, and many processes at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gradlight.errors import GradlightError, GradlightWarning
from gradlight.explainers.cache_store import MAX_BYTES, Cache, decode, encode, open_cache

ROOT = Path(__file__).resolve().parents[2]
FACTS = {"targets": [["class", 3, "猫\udcff", -0.1]], "setting": {"meta": None}}


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def numbers(size: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"maps": np.random.default_rng(seed).random(size, dtype=np.float32)}


def path_of(cache: Cache, key: str) -> Path:
    return cache.folder / key[:2] / f"{key[2:]}.h5"


def on_disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("??/*"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


ARRAYS = st.dictionaries(
    st.text(max_size=5),
    st.sampled_from(["float16", "float32", "float64", "int64"]).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=5))
    ),
    max_size=4,
)


@given(ARRAYS)
@settings(max_examples=60, deadline=None)
def test_an_entry_is_read_as_it_was_written(arrays: dict[str, np.ndarray]) -> None:
    found = decode(key_of(1), bytes(encode(key_of(1), arrays, FACTS)))
    assert found.facts == FACTS
    assert found.arrays.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found.arrays[name].dtype, found.arrays[name].shape) == (array.dtype, array.shape)
        assert found.arrays[name].tobytes() == array.tobytes()


def test_what_is_kept_is_found_and_nothing_else(cache: Cache) -> None:
    assert cache.get(key_of(1)) is None
    cache.put(key_of(1), numbers(100), FACTS)
    found = Cache(cache.folder).get(key_of(1))
    assert found is not None
    assert found.facts == FACTS
    assert np.array_equal(found.arrays["maps"], numbers(100)["maps"])
    found.arrays["maps"][:] = 0  # may be written to, as torch wants it
    assert cache.get(key_of(2)) is None


def test_plain_h5py_reads_an_entry(cache: Cache) -> None:
    cache.put(key_of(1), numbers(100), FACTS)
    with h5py.File(path_of(cache, key_of(1))) as file:
        assert file.attrs["format"] == "gradlight-cache"
        assert file["numbers"][:].view(np.float32).tolist() == numbers(100)["maps"].tolist()
        assert key_of(1).encode() in file["facts"][:].tobytes()


def test_a_later_entry_takes_the_place_of_an_earlier_one(cache: Cache) -> None:
    for seed in (1, 2):
        cache.put(key_of(1), numbers(10, seed), FACTS)
    found = cache.get(key_of(1))
    assert found is not None
    assert np.array_equal(found.arrays["maps"], numbers(10, 2)["maps"])
    assert cache.info().entries == 1


@given(st.data())
@settings(max_examples=80, deadline=None)
def test_no_damaged_byte_is_believed(data: st.DataObject) -> None:
    content = bytearray(encode(key_of(1), numbers(30), FACTS))
    place = data.draw(st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    head = content.index(b"\n")
    if place <= head or place >= 128:
        with pytest.raises(ValueError, match="checksum"):
            decode(key_of(1), bytes(content))
    else:  # between the line and the part that it is of, nothing is read
        assert decode(key_of(1), bytes(content)).facts == FACTS


def resealed(content: bytes) -> bytes:
    """Give a file that somebody has changed and whose checksum they have made right again."""
    line = content[: content.index(b"\n")]
    return line[:-64] + hashlib.sha256(content[128:]).hexdigest().encode() + content[len(line) :]


def hostile(kind: str) -> bytes:
    content = bytes(encode(key_of(1), numbers(30), FACTS))
    changes = {
        "too long": lambda: content.replace(b'"float32", [30]', b'"float32", [99]'),
        "negative": lambda: content.replace(b'"float32", [30]', b'"float32", [-3]'),
        "another kind": lambda: content.replace(b'"float32", [30]', b'"object_", [30]'),
        "not JSON": lambda: content.replace(b'"facts"', b"[facts[["),
        "another key": lambda: content.replace(key_of(1).encode(), key_of(2).encode()),
        "places beyond": lambda: content[:128] + b"999999999999 7 9 9\n" + content[147:],
        "no places": lambda: content[:128] + b"\n" + content[129:],
        "cut": lambda: content[:700],
        "empty": lambda: b"",
        "text": lambda: b"hello\n" * 100,
        "deep": lambda: content[:512] + b"[" * 20_000 + content[512:],
    }
    changed = changes[kind]()
    assert changed != content
    if kind == "deep":
        changed = changed[:128] + b"512 20000 512 8\n" + changed[144:]
    return resealed(changed) if changed.startswith(b"gradlight cache") else changed


KINDS = ["too long", "negative", "another kind", "not JSON", "another key", "places beyond", "no places", "cut"]


@pytest.mark.parametrize("kind", [*KINDS, "empty", "text", "deep"])
def test_a_damaged_or_hostile_entry_is_removed_with_a_warning(cache: Cache, kind: str) -> None:
    cache.put(key_of(1), numbers(30), FACTS)
    path_of(cache, key_of(1)).write_bytes(hostile(kind))
    with pytest.warns(GradlightWarning, match="An entry of the cache is damaged and was removed"):
        assert cache.get(key_of(1)) is None
    assert not path_of(cache, key_of(1)).exists()
    cache.put(key_of(1), numbers(30), FACTS)
    assert cache.get(key_of(1)) is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_in_the_place_of_an_entry_is_never_waited_for(cache: Cache) -> None:
    path_of(cache, key_of(1)).parent.mkdir(parents=True)
    os.mkfifo(path_of(cache, key_of(1)))
    with pytest.warns(GradlightWarning, match="named pipe"):
        assert cache.get(key_of(1)) is None
    cache.put(key_of(1), numbers(3), FACTS)
    assert cache.get(key_of(1)) is not None


def test_a_folder_in_the_place_of_an_entry_is_told_once(cache: Cache) -> None:
    path_of(cache, key_of(1)).mkdir(parents=True)
    with pytest.warns(GradlightWarning, match="a directory"):
        assert cache.get(key_of(1)) is None
    with pytest.warns(GradlightWarning, match="cannot be written"):
        cache.put(key_of(1), numbers(3), FACTS)
    cache.put(key_of(1), numbers(3), FACTS)


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.get(key_of(1)) is None
    with pytest.warns(GradlightWarning, match=r"The cache .* cannot be written .*going on without it"):
        cache.put(key_of(0), numbers(3), FACTS)
    cache.put(key_of(1), numbers(3), FACTS)
    assert cache.get(key_of(1)) is None
    assert cache.info().entries == cache.clear().entries == 0


def test_what_was_not_used_for_longest_goes_first(cache: Cache) -> None:
    size = len(encode(key_of(0), numbers(1000), FACTS))
    small = Cache(cache.folder, max_bytes=10 * size + size // 2)
    for number in range(10):
        small.put(key_of(number), numbers(1000), FACTS)
        os.utime(path_of(small, key_of(number)), (1000 + number, 1000 + number))
    assert small.get(key_of(0)) is not None
    small.put(key_of(10), numbers(1000), FACTS)
    held = [number for number in range(11) if small.get(key_of(number)) is not None]
    assert held == [0, *range(2, 11)]
    assert small.info().bytes == on_disk(cache.folder) == 10 * size


@pytest.mark.parametrize("text", ["", "-5", "nonsense", "9" * 30])
def test_a_wrong_note_of_the_size_is_put_right(cache: Cache, text: str) -> None:
    size = len(encode(key_of(0), numbers(1000), FACTS))
    small = Cache(cache.folder, max_bytes=3 * size)
    for number in range(9):
        (cache.folder / "bytes").write_text(text) if number else None
        small.put(key_of(number), numbers(1000), FACTS)
        assert on_disk(cache.folder) <= 3 * size
    assert (cache.folder / "bytes").read_text() == str(small.info().bytes)


def test_the_folder_is_not_listed_for_every_entry(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.put(key_of(0), numbers(10), FACTS)
    monkeypatch.setattr(os, "scandir", None)
    for number in range(1, 20):
        cache.put(key_of(number), numbers(10), FACTS)
    monkeypatch.undo()
    assert cache.info().entries == 20


def test_what_a_killed_process_left_is_removed(cache: Cache) -> None:
    cache.put(key_of(0), numbers(1000), FACTS)
    left = path_of(cache, key_of(0)).with_name(".gradlight-abc.tmp")
    left.write_bytes(bytes(10_000))
    (cache.folder / "bytes").unlink()
    cache.put(key_of(1), numbers(10), FACTS)
    assert not left.exists()
    assert cache.info().entries == 2


def test_what_is_larger_than_the_cache_is_not_kept(cache: Cache) -> None:
    small = Cache(cache.folder, max_bytes=8000)
    small.put(key_of(0), numbers(10), FACTS)
    with pytest.warns(GradlightWarning, match="more than 8000 bytes"):
        small.put(key_of(1), numbers(5000), FACTS)
    small.put(key_of(2), numbers(5000), FACTS)
    assert small.info().entries == 1


def test_clear_removes_entries_and_nothing_of_anybody_else(cache: Cache) -> None:
    for number in range(5):
        cache.put(key_of(number), numbers(10), FACTS)
    before = cache.info()
    assert before == (cache.folder, 5, on_disk(cache.folder), MAX_BYTES)
    others = [cache.folder / "thesis.h5", path_of(cache, key_of(0)).parent / "notes.txt", cache.folder / "photos" / "a"]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("mine")
    assert cache.clear() == before
    assert cache.info().entries == cache.info().bytes == 0
    assert all(other.read_text() == "mine" for other in others)
    assert cache.get(key_of(0)) is None


@pytest.mark.parametrize("most", [0, -1, 2.5, True, "2 GiB", None])
def test_a_bound_that_is_none_is_refused(tmp_path: Path, most: object) -> None:
    with pytest.raises(GradlightError, match="max_bytes must be a whole number"):
        Cache(tmp_path, max_bytes=most)  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["", "a" * 63, "../" + "a" * 61, "A" * 64, "a" * 64 + "\n"])
def test_a_key_is_never_a_path(cache: Cache, key: str) -> None:
    with pytest.raises(GradlightError, match="64 hexadecimal digits"):
        cache.get(key)
    with pytest.raises(GradlightError, match="64 hexadecimal digits"):
        cache.put(key, {}, {})


def test_where_a_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert open_cache(str(tmp_path / "here")).folder == open_cache(tmp_path / "here").folder == tmp_path / "here"
    assert open_cache(True).folder.parts[-2:] == ("gradlight", "maps")
    assert open_cache(Cache(tmp_path, 7)).max_bytes == 7
    for wrong in (False, "", 5, None):
        with pytest.raises(GradlightError, match=r"is no cache; pass True"):
            open_cache(wrong)  # type: ignore[arg-type]


HAMMER = """if True:
    import sys, hashlib, random, warnings
    import numpy as np
    from pathlib import Path
    from gradlight.explainers.cache_store import Cache
    warnings.simplefilter("error")
    folder, most, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    dice, cache = random.Random(seed), Cache(folder, max_bytes=most)
    hits = 0
    for turn in range(120):
        number = dice.randrange(12)
        key = hashlib.sha256(str(number).encode()).hexdigest()
        found = cache.get(key)
        if found is None:
            cache.put(key, {"maps": np.full(1000 + 50 * number, number, np.float32)}, {"number": number})
        else:
            hits += 1
            assert found.facts == {"number": number} and (found.arrays["maps"] == number).all()
            assert len(found.arrays["maps"]) == 1000 + 50 * number
        if seed == 1 and turn % 40 == 39:
            cache.clear()
        held = 0
        for path in folder.glob("??/*"):
            try:
                held += path.stat().st_size
            except FileNotFoundError:
                pass
        assert held <= most + 2 * 10_000, held
    assert hits > 5
    print("hits", hits)
"""


def test_processes_share_a_folder_that_is_far_too_small(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HAMMER, tmp_path / "cache", "30000", str(seed)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for seed in (1, 2)
    ]
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        assert out.startswith("hits")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Cache(tmp_path / "cache").info().bytes <= 30_000
