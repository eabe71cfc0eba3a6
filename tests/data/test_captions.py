from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from gradlight import GradlightError
from gradlight.data.datasets import annotations as documents
from gradlight.data.datasets.captions import CaptionedPhoto, read_captions


def photo(folder: Path, name: str) -> Path:
    """Lay an empty file where a photo is looked for; reading captions opens none."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def write(folder: Path, content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "captions.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return path


def coco(*pairs: tuple[str, list[str]], **more: Any) -> dict[str, Any]:
    """Make COCO captions of images, numbered from 0."""
    return {
        "images": [{"id": number, "file_name": name} for number, (name, _) in enumerate(pairs)],
        "annotations": [{"image_id": number, "caption": c} for number, (_, said) in enumerate(pairs) for c in said],
        **more,
    }


def karpathy(*images: dict[str, Any]) -> dict[str, Any]:
    return {"dataset": "coco", "images": list(images)}


# Real photos


def test_real_captions(shared: Path) -> None:
    folder = shared / "coco_captions"
    read = read_captions(folder / "captions.json", folder / "images")
    truth = json.loads((folder / "captions.json").read_text())
    assert len(read.photos) == 32
    assert sum(len(photo.captions) for photo in read.photos) == 160
    assert read.missing == ()
    assert read.left_out == {}
    assert read.summary == "Photos: 32; captions: 160."
    assert [photo.path.name for photo in read.photos] == [image["file_name"] for image in truth["images"]]
    assert all(photo.path.is_file() for photo in read.photos)
    assert [photo.split for photo in read.photos].count("train") == 16
    assert [photo.split for photo in read.photos].count("val") == 16
    for photo, image in zip(read.photos, truth["images"], strict=True):
        said = [a["caption"] for a in truth["annotations"] if a["image_id"] == image["id"]]
        assert [caption.split() for caption in photo.captions] == [caption.split() for caption in said]
        assert all(caption == caption.strip() for caption in photo.captions)


def test_the_instances_beside_them_are_no_captions(shared: Path) -> None:
    folder = shared / "coco_captions"
    with pytest.raises(GradlightError, match=r"no captions file.*'category_id'.*take captions_\*\.json, not instances"):
        read_captions(folder / "instances.json", folder / "images")


def test_real_captions_with_half_of_the_photos(shared: Path, tmp_path: Path) -> None:
    folder = shared / "coco_captions"
    there = sorted((folder / "images").iterdir())[::2]
    for path in there:
        photo(tmp_path, path.name)
    read = read_captions(folder / "captions.json", tmp_path)
    assert sorted(photo.path.name for photo in read.photos) == [path.name for path in there]
    assert len(read.missing) == 16
    assert read.left_out == {"photos not found": 16}
    assert f"Photos: 16; captions: 80. Left out: photos not found: 16 (such as {read.missing[0]}, " in read.summary


# Where photos are looked for


@pytest.mark.parametrize("place", ["", "train2014", "val2014", "train2017", "val2017", "some/where/else"])
def test_a_photo_is_found_in_sub_folders(tmp_path: Path, place: str) -> None:
    path = photo(tmp_path / "photos" / place, "a.jpg")
    read = read_captions(write(tmp_path, coco(("a.jpg", ["A dog."]))), tmp_path / "photos")
    assert read.photos == (CaptionedPhoto(path, ("A dog.",), ""),)


def test_the_whole_name_comes_first(tmp_path: Path) -> None:
    right = photo(tmp_path / "photos", "b/x.jpg")
    photo(tmp_path / "photos", "a/x.jpg")
    photo(tmp_path / "photos", "x.jpg")
    assert read_captions(write(tmp_path, coco(("b/x.jpg", ["a dog"]))), tmp_path / "photos").photos[0].path == right


def test_a_name_with_folders_may_lie_without_them(tmp_path: Path) -> None:
    path = photo(tmp_path / "photos", "x.jpg")
    assert read_captions(write(tmp_path, coco(("b/x.jpg", ["a dog"]))), tmp_path / "photos").photos[0].path == path


def test_two_candidates_are_not_guessed_between(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("a/x.jpg", "b/x.jpg", "y.jpg"):
        photo(photos, name)
    read = read_captions(write(tmp_path, coco(("x.jpg", ["a dog"]), ("y.jpg", ["a cat"]))), photos)
    assert [found.path.name for found in read.photos] == ["y.jpg"]
    assert read.missing == ("x.jpg",)
    assert read.left_out == {"photos in several sub-folders": 1}


def test_the_folder_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    names = [f"{n}.jpg" for n in range(20)]
    for name in names:
        photo(photos / "odd", name)
    walks = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *args: walks.append(args) or walk(*args))
    read = read_captions(write(tmp_path, coco(*((name, ["a dog"]) for name in [*names, "no.jpg"]))), photos)
    assert len(read.photos) == 20
    assert read.missing == ("no.jpg",)
    assert len(walks) == 1


def test_hidden_folders_and_loops_are_not_searched(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photo(photos / ".trash", "a.jpg")
    photo(photos / "odd", "b.jpg")
    (photos / "odd" / "loop").symlink_to(photos)
    read = read_captions(write(tmp_path, coco(("a.jpg", ["a dog"]), ("b.jpg", ["a cat"]))), photos)
    assert [found.path.name for found in read.photos] == ["b.jpg"]
    assert read.missing == ("a.jpg",)


def test_a_linked_known_folder_is_searched(tmp_path: Path) -> None:
    photo(tmp_path / "disk", "a.jpg")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "val2017").symlink_to(tmp_path / "disk")
    read = read_captions(write(tmp_path, coco(("a.jpg", ["a dog"]))), tmp_path / "photos")
    assert [found.path for found in read.photos] == [tmp_path / "photos" / "val2017" / "a.jpg"]


def test_names_never_lead_out_of_the_folder(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photo(photos, "in.jpg")
    outside = photo(tmp_path, "secret.jpg")
    names = ["../secret.jpg", str(outside), "in.jpg", "..", "", "/"]
    read = read_captions(write(tmp_path, coco(*((name, ["a dog"]) for name in names))), photos)
    assert [found.path for found in read.photos] == [photos / "in.jpg"]
    assert read.missing == ("../secret.jpg", str(outside), "..", "", "/")


@pytest.mark.parametrize("name", ["nul\0.jpg", "long" * 100 + ".jpg", "half\ud800.jpg", "line\nbreak.jpg"])
def test_odd_names_are_missing_photos(tmp_path: Path, name: str) -> None:
    photo(tmp_path / "photos", "a.jpg")
    read = read_captions(write(tmp_path, coco((name, ["a dog"]), ("a.jpg", ["a cat"]))), tmp_path / "photos")
    assert read.missing == (name,)
    assert len(read.photos) == 1
    assert read.summary.isprintable()


# Karpathy's files


def test_karpathy(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    train, rest = photo(photos, "train2014/t.jpg"), photo(photos, "val2014/r.jpg")
    val, test = photo(photos, "val2014/v.jpg"), photo(photos, "flat.jpg")
    document = karpathy(
        {
            "filepath": "train2014",
            "filename": "t.jpg",
            "split": "train",
            "sentences": [{"raw": "A dog.\n", "tokens": ["a", "dog"]}, {"tokens": ["two", "dogs"]}],
        },
        {"filepath": "val2014", "filename": "r.jpg", "split": "restval", "sentences": [{"raw": "a cat"}]},
        {"filepath": "val2014", "filename": "v.jpg", "split": "val", "sentences": [{"raw": "a cow"}]},
        {"filename": "flat.jpg", "split": "test", "sentences": [{"raw": "a hen"}]},
        {"filename": "gone.jpg", "split": "test", "sentences": [{"raw": "an ox"}]},
    )
    read = read_captions(write(tmp_path, document), photos)
    assert read.photos == (
        CaptionedPhoto(train, ("A dog.", "two dogs"), "train"),
        CaptionedPhoto(rest, ("a cat",), "train"),
        CaptionedPhoto(val, ("a cow",), "val"),
        CaptionedPhoto(test, ("a hen",), "test"),
    )
    assert read.missing == ("gone.jpg",)


def test_bad_entries_of_karpathy_are_counted(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    good = {"filename": "a.jpg", "filepath": 7, "sentences": [{"raw": "a dog"}, {"raw": 3}, "no", {"tokens": ["a", 1]}]}
    document = karpathy(
        good, 5, {"filename": "b.jpg"}, {"filename": "c.jpg", "sentences": []}, {"sentences": [{"raw": "a cat"}]}
    )
    read = read_captions(write(tmp_path, document), tmp_path)
    assert read.photos == (CaptionedPhoto(tmp_path / "a.jpg", ("a dog",), ""),)
    assert read.left_out == {
        "sentences without raw text or tokens": 3,
        "images without filename and sentences": 3,
        "images without captions": 1,
    }


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("train", "train"),
        ("train2017", "train"),
        ("restval", "train"),
        ("val2014", "val"),
        ("Validation", "val"),
        ("test2015", "test"),
        ("dev", ""),
        ("trainval", ""),
        ("", ""),
        (None, ""),
        (["train"], ""),
    ],
)
def test_splits(tmp_path: Path, written: object, meant: str) -> None:
    photo(tmp_path, "a.jpg")
    document = coco(("a.jpg", ["a dog"]))
    document["images"][0]["split"] = written
    assert read_captions(write(tmp_path, document), tmp_path).photos[0].split == meant


# Single entries that cannot be used


def test_bad_entries_are_left_out_and_counted(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    document = coco(("a.jpg", ["A dog\non  a mat. ", "", "  \n", " ... !"]), ("b.jpg", []), ("a.jpg", ["a cat"]))
    document["images"] += [None, {"id": 9}, {"id": [9], "file_name": "c.jpg"}, {"id": 0, "file_name": "d.jpg"}]
    document["annotations"] += [
        {"image_id": 77, "caption": "of nothing"},
        {"image_id": 0},
        {"image_id": 0, "caption": None},
        {"image_id": {}, "caption": "a dog"},
        "a dog",
    ]
    read = read_captions(write(tmp_path, document), tmp_path)
    assert read.photos == (CaptionedPhoto(tmp_path / "a.jpg", ("A dog on a mat.",), ""),)
    assert read.left_out == {
        "images without id and file_name": 3,
        "images with the id of an earlier one": 1,
        "captions without words": 3,
        "captions of unknown images": 1,
        "annotations without image_id and caption": 4,
        "images without captions": 1,
        "images with the photo of an earlier one": 1,
    }
    for reason, count in read.left_out.items():
        assert f"{reason}: {count}" in read.summary


def test_no_image_with_a_caption(tmp_path: Path) -> None:
    document = coco(("a.jpg", ["a dog"]), ("b.jpg", [" . "]))
    document["images"][0]["id"] = "0"
    with pytest.raises(
        GradlightError,
        match=r"no image has a caption\. Left out: captions of unknown images: 1; captions without words: 1; images "
        r"without captions: 2\. An image's id is '0', an annotation's image_id 0\. Check",
    ):
        read_captions(write(tmp_path, document), tmp_path)


def test_no_photo_at_all(tmp_path: Path) -> None:
    path = write(tmp_path, coco(("a.jpg", ["a dog"]), ("b.jpg", ["a cat"])))
    with pytest.raises(GradlightError, match=r"none of its 2 photos is in .*not found: 2 \(such as a\.jpg, b\.jpg\)"):
        read_captions(path, tmp_path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(tmp_path: Path, encoding: str) -> None:
    photo(tmp_path, "café.jpg")
    text = json.dumps(coco(("café.jpg", ["ein Hündchen 🐕"])), ensure_ascii=False)
    read = read_captions(write(tmp_path / "of", text.encode(encoding)), tmp_path)
    assert read.photos[0].captions == ("ein Hündchen 🐕",)


def test_half_a_surrogate_pair_is_replaced(tmp_path: Path) -> None:
    photo(tmp_path, "a.jpg")
    read = read_captions(write(tmp_path, coco(("a.jpg", ["a dog \ud83d runs"]))), tmp_path)
    assert read.photos[0].captions == ("a dog ? runs",)


# Files that hold no captions


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty file"),
        (b" \n", "empty file"),
        (b"a dog", r"not JSON: Expecting value.*Get a whole copy"),
        (b'{"images": [', r"not JSON: .*Get a whole copy"),
        (b"PK\x03\x04rest", "not JSON: it looks like a zip archive"),
        (b"\x1f\x8b\x08rest", "not JSON: it looks like gzip"),
        (b"<!DOCTYPE html>", "not JSON: it looks like a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "not JSON: it looks like a Git LFS pointer"),
        ('{"images": ["Hündchen"]}'.encode("latin-1"), "not JSON: .*in UTF-8"),
        (b"[" * 100_000, "not JSON: .*recursion"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not JSON: .*digits"),
        (b"[]", "no captions file: JSON with a list on top. Expected are COCO captions"),
        (b"null", "no captions file: JSON with a NoneType on top"),
        (b"{}", "no captions file: its top has no keys. Expected"),
        (b'{"images": {}, "annotations": []}', "no captions file: its top has 'images', 'annotations'. Expected"),
        (b'{"images": [], "annotations": {}}', "no captions file: its top has 'images', 'annotations'. Expected"),
        (b'{"images": [], "annotations": []}', "no captions file: its top has 'images', 'annotations'. Expected"),
        (b'{"images": [{"id": 1, "file_name": "a"}]}', "top has 'images'; an entry has 'id', 'file_name'. Expected"),
        (b'{"images": [3], "annotations": [4, {"bbox": 1}]}', "an entry has 'bbox'. Expected"),
        (b'{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}', r"its top has 'a', .* 'f' …\. Expected"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(GradlightError, match=rf"captions\.json: .*{message}"):
        read_captions(path, tmp_path)


def test_a_file_beyond_all_measure_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_MAX_BYTES", 1 << 20)
    path = write(tmp_path, b" " * (1 << 20) + b"{}")
    with pytest.raises(GradlightError, match=r"larger than 1 MiB\. No such file is so large"):
        read_captions(path, tmp_path)


def test_places_that_are_not_there(tmp_path: Path) -> None:
    path = write(tmp_path, coco(("a.jpg", ["a dog"])))
    with pytest.raises(GradlightError, match=r"none\.json: cannot be opened"):
        read_captions(tmp_path / "none.json", tmp_path)
    with pytest.raises(GradlightError, match="a directory, not a regular file"):
        read_captions(tmp_path, tmp_path)
    for folder in (tmp_path / "none", path):
        with pytest.raises(GradlightError, match=r"not a folder\. Give the folder that holds the photos"):
            read_captions(path, folder)
