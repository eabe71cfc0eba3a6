"""The command line of whole data sets: export, verify, merge, and what they say of bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch
from PIL import Image

import gradlight as gl

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared"
SAMPLES = ROOT / "data" / "bundled"

needs = pytest.mark.skipif
no_nasty = needs(not (SHARED / "nasty" / "files").is_dir(), reason="../shared/nasty is not here")
no_coco = needs(not (SHARED / "coco128").is_dir(), reason="../shared/coco128 is not here")
no_voc = needs(not (SHARED / "voc07_seven").is_dir(), reason="../shared/voc07_seven is not here")


def test_scenes_are_exported_verified_and_inspected(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "maps.h5"
    status, shown, told = run(
        "export", "scenes:held-out:12", "-o", out, "--methods", "normgrad,conv3x3+norm", "--combine", "product:linear",
        "--batch-size", 4, "--shard-size", 8, "--readers", 0,
    )  # fmt: skip
    assert (status, told) == (0, "")
    assert shown == f"wrote {out}: 12 images, 0 failures\n"
    status, shown, _ = run("verify", out, *sorted((tmp_path / "maps.shards").glob("*.h5")))
    assert status == 0
    assert [line.endswith(": sound") for line in shown.splitlines()] == [True] * 3
    status, shown, _ = run("inspect", out)
    assert status == 0
    assert "12 images" in shown
    with gl.load(out) as maps:
        wanted = gl.explain(gl.classifier("scenes"), maps.images[9].path, methods="normgrad")
        alone = wanted["normgrad", "layer3"][0]
        torch.testing.assert_close(
            maps.rows("normgrad", "layer3", image=9), alone, rtol=0, atol=1e-5 * float(alone.abs().max())
        )
        assert maps.images[0].picture().size == (160, 160) or maps.images[0].picture().width > 0


def test_merging_shards_into_one_file(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out, one = tmp_path / "maps.h5", tmp_path / "one.h5"
    run("export", "scenes:0-10", "-o", out, "--batch-size", 4, "--shard-size", 4, "--readers", 0)
    shards = sorted((tmp_path / "maps.shards").glob("shard-*.h5"))
    assert len(shards) == 3
    status, shown, _ = run("merge", *shards, "-o", one, "--copy")
    assert (status, shown) == (0, f"wrote {one}: 3 files joined\n")
    with gl.load(one) as copied, gl.load(out) as index:
        assert copied.images == index.images
        assert torch.equal(copied["selective_normgrad", "layer4"], index["selective_normgrad", "layer4"])
    with h5py.File(one) as file:
        assert not file["maps/selective_normgrad/layer4"].is_virtual
    status, _, told = run("merge", *shards, "-o", shards[0])
    assert status == 2
    assert "one of the files to join has this name" in told


def test_verify_tells_what_is_wrong(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "maps.h5"
    run("export", "scenes:0-9", "-o", out, "--batch-size", 4, "--shard-size", 4, "--readers", 0)
    shard = tmp_path / "maps.shards" / "shard-00001.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 0xFF
    shard.write_bytes(content)
    status, shown, _ = run("verify", out, tmp_path / "maps.shards" / "shard-00000.h5")
    assert status == 1
    assert "shard-00001.h5" in shown
    assert run("verify", tmp_path / "gone.h5")[0] == 2


@no_nasty
def test_nasty_files_are_accepted_and_refused_as_they_should(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    cases = json.loads((SHARED / "nasty" / "expected.json").read_text(encoding="utf-8"))["cases"]
    files = SHARED / "nasty" / "files"
    here = {path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()}
    status, _, told = run("export", files, "-o", tmp_path / "maps.h5", "--layers", "layer4")
    assert status == 1
    with h5py.File(tmp_path / "maps.h5") as file:
        good = {Path(path).relative_to(files).as_posix() for path in file["images/path"].asstr()[:]}
        bad = {Path(path).relative_to(files).as_posix() for path in file["failures/path"].asstr()[:]}
    assert good | bad == here
    assert not good & bad
    expected = {name: cases[f"files/{name}"]["expect"] for name in here}
    assert {name for name in good if expected[name] == "reject"} == set()
    assert {name for name in bad if expected[name] == "accept"} == set()
    assert told.count("left out: ") == 10
    assert "/failures of the file has them all" in told


@no_coco
def test_coco_photos_with_every_class_present(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    labels = tmp_path / "labels.json"
    record = json.loads((SHARED / "coco128" / "instances.json").read_text())
    names = [category["name"] for category in record["categories"]]
    labels.write_text(json.dumps(names))
    out = tmp_path / "maps.h5"
    status, _, _ = run(
        "export", SHARED / "coco128" / "images", "--annotations", SHARED / "coco128" / "instances.json", "-o", out,
        "-m", "timm/resnet10t", "--no-pretrained", "--labels", labels, "--layers", "layer4",
    )  # fmt: skip
    assert status == 1, "one photo has no annotation"
    present: dict[int, set[str]] = {}
    category = {each["id"]: each["name"] for each in record["categories"]}
    for annotation in record["annotations"]:
        present.setdefault(annotation["image_id"], set()).add(category[annotation["category_id"]])
    with gl.load(out) as maps:
        assert len(maps) == len(present)
        for photo, row in zip(maps.images, maps.targets, strict=True):
            assert {target.label for target in row} == present[int(Path(photo.path).stem)]


@no_voc
def test_a_voc_root(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\nperson\n")
    status, _, _ = run(
        "export", SHARED / "voc07_seven" / "VOCdevkit", "--split", "test", "-o", tmp_path / "maps.h5",
        "-m", "timm/resnet10t", "--no-pretrained", "--labels", labels, "--layers", "layer4",
    )  # fmt: skip
    assert status == 0
    with gl.load(tmp_path / "maps.h5") as maps:
        assert [[target.label for target in row] for row in maps.targets] == [["dog", "person"]]


def test_words_of_captions_have_maps_of_their_own(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "maps.h5"
    status, _, told = run("export", "scenes:held-out:6", "-m", "scenes", "--words", "-o", out, "--layers", "layer4")
    assert (status, told) == (0, "")
    with gl.load(out) as maps:
        captions = gl.captioner("scenes").caption([photo.path for photo in maps.images])
        assert [[target.label for target in row] for row in maps.targets] == [caption.words for caption in captions]
        assert len({len(row) for row in maps.targets}) > 1


def test_progress_as_json_lines(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "in" / "bad.png"
    bad.parent.mkdir()
    bad.write_bytes(b"no picture")
    for number in range(3):
        (bad.parent / f"{number}.png").write_bytes((SAMPLES / "scene_1.png").read_bytes())
    out = tmp_path / "maps.h5"
    status, _, told = run("export", bad.parent, "-o", out, "--batch-size", 2, "--log", "json", "--readers", 0)
    events = [json.loads(line) for line in told.splitlines()]
    assert status == 1
    assert [event["event"] for event in events] == ["begin", "batch", "failure", "batch", "end"]
    assert events[0]["total"] == 4
    assert events[2]["path"] == str(bad)
    assert events[3]["done"] == 4
    assert events[3]["left_s"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--methods", "normgard"), "normgrad"),
        (("--combine", "mean"), "Layers are combined by"),
        (("--size", "big"), "--size must be one side"),
        (("--dtype", "float8"), "float16"),
        (("--compression", "zip"), "gzip"),
        (("--log", "xml"), "--log must be bar or json"),
        (("--engine", "spark"), "--engine must be local or ray"),
        (("--gpus", "1"), "add --engine ray"),
        (("--resume", "--overwrite"), "ask for one of them"),
        (("--layers", "layer9"), "layer4"),
        (("--target", "hart"), "heart"),
    ],
)
def test_wrong_options_are_one_line_before_any_work(
    run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:  # type: ignore[no-untyped-def]
    status, shown, told = run("export", "scenes:0-4", "-o", tmp_path / "maps.h5", *options)
    assert (status, shown) == (2, "")
    assert len(told.splitlines()) == 1
    assert message in told
    assert list(tmp_path.iterdir()) == []


@no_coco
def test_photos_in_their_own_size_need_a_size_for_their_maps(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    photos = tmp_path / "photos"
    photos.mkdir()
    sizes = set()
    for path in sorted((SHARED / "coco128" / "images").iterdir())[:12]:
        with Image.open(path) as picture:
            if picture.size not in sizes:
                picture.resize((picture.width // 4, picture.height // 4)).save(photos / path.name)
                sizes.add(picture.size)
    checkpoint = SHARED / "oracles" / "captioning" / "show_tell_py2"
    common = ("export", photos, "-o", tmp_path / "maps.h5", "-m", checkpoint, "--no-pretrained", "--layers", "layer4")
    status, _, told = run(*common)
    assert status == 2
    assert "as --size 224" in told
    status, _, _ = run(*common, "--size", "20x30")
    with gl.load(tmp_path / "maps.h5") as maps:
        assert len(maps) == len(sizes) > 1
        assert maps["selective_normgrad", "layer4"].shape == (len(sizes), 1, 20, 30)


def test_an_output_inside_its_source_is_no_image_of_it(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes((SAMPLES / "scene_1.png").read_bytes())
    common = ("export", tmp_path, "-o", tmp_path / "maps.h5", "--batch-size", 2, "--shard-size", 2, "--readers", 0)
    assert run(*common)[0] == 0
    assert run(*common, "--overwrite")[1].endswith(": 5 images, 0 failures\n")


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_ends_with_the_resume_line(tmp_path: Path, workers: int) -> None:
    out = tmp_path / "maps.h5"
    command = [
        sys.executable, "-m", "gradlight", "export", "scenes:0-4000", "-o", str(out), "--log", "json",
        "--shard-size", "64", "--workers", str(workers),
    ]  # fmt: skip
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=here) as job:
        assert job.stderr is not None
        told = []
        for line in job.stderr:
            told.append(line)
            if '"batch"' in line and len(told) > 3:
                job.send_signal(signal.SIGTERM)
                break
        begun = time.monotonic()
        told += job.stderr.readlines()
        assert job.wait(60) == 1
        assert time.monotonic() - begun < 60
    assert "Go on with the same command and --resume" in told[-1]
    assert not out.exists()
    kept = list((tmp_path / "maps.shards").glob("*.h5"))
    assert kept
    for path in kept:
        with gl.load(path) as maps:
            assert len(maps) > 0


def test_cache_commands(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "cache"
    gl.explain(gl.classifier("scenes"), SAMPLES / "scene_1.png", cache=folder)
    status, shown, _ = run("cache", "info", "--folder", folder)
    assert status == 0
    assert str(folder) in shown
    assert "1 entr" in shown
    status, shown, _ = run("cache", "clear", "--folder", folder)
    assert status == 0
    assert "0 entr" in run("cache", "info", "--folder", folder)[1]
    status, _, told = run("cache", "empty", "--folder", folder)
    assert status == 2
    assert "info or clear" in told
