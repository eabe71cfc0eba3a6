"""VOC and COCO annotations: real ones read exactly, bad ones refused in plain words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from gradlight import GradlightError
from gradlight.data.datasets.annotations import (
    AnnotatedDataset,
    AnnotatedObject,
    AnnotatedPhoto,
    PhotoFolder,
    RunLengths,
    decode_run_lengths,
    fill_polygon,
    read_document,
)
from gradlight.data.datasets.coco import read_instances
from gradlight.data.datasets.voc import find_voc, read_voc

SQUARE = [1, 1, 5, 1, 5, 4, 1, 4]


def coco(**changes: Any) -> dict[str, Any]:
    """Make COCO instances of one photo with one square; changes replace parts of it."""
    thing = {"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 1, 4, 3], "iscrowd": 0, "segmentation": [SQUARE]}
    photo = {"id": 7, "file_name": "a.jpg", "width": 8, "height": 6}
    document = {"images": [photo], "annotations": [thing], "categories": [{"id": 3, "name": "cat"}]}
    return {**document, **changes}


def read_coco(folder: Path, document: object, *photos: str) -> AnnotatedDataset:
    """Write instances and empty photos, and read them; reading annotations opens no photo."""
    for name in photos or ("a.jpg",):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    path = folder / "instances.json"
    path.write_bytes(document if isinstance(document, bytes) else json.dumps(document).encode())
    return read_instances(path, folder)


def voc(folder: Path, xml: str | bytes, name: str = "a", split: str | None = "a\n") -> Path:
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "JPEGImages" / f"{name}.jpg").touch()
    (folder / "Annotations" / f"{name}.xml").write_bytes(xml if isinstance(xml, bytes) else xml.encode())
    if split is not None:
        (folder / "ImageSets" / "Main" / "test.txt").write_text(split)
    return folder


def xml(inside: str = "", size: str = "<width>8</width><height>6</height>") -> str:
    return f"<annotation><size>{size}</size>{inside}</annotation>"


def boxed(name: str = "cat", box: tuple[object, ...] = (1, 2, 3, 4), more: str = "") -> str:
    sides = "".join(f"<{s}>{v}</{s}>" for s, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{more}<bndbox>{sides}</bndbox></object>"


# COCO, real photos


@pytest.mark.parametrize(
    ("name", "count", "objects", "crowds"), [("coco128", 64, 440, 6), ("coco_captions", 32, 238, None)]
)
def test_real_instances(shared: Path, name: str, count: int, objects: int, crowds: int | None) -> None:
    folder = shared / name
    read = read_instances(folder / "instances.json", folder / "images")
    truth = json.loads((folder / "instances.json").read_text())
    names = {entry["id"]: entry["name"] for entry in truth["categories"]}
    assert len(read.photos) == count
    assert read.failures == ()
    assert read.left_out == {}
    assert read.categories == tuple(names.values())
    assert sum(len(photo.objects) for photo in read.photos) == objects
    assert crowds in (None, sum(thing.crowd for photo in read.photos for thing in photo.objects))
    for photo, image in zip(read.photos, truth["images"], strict=True):
        marked = [entry for entry in truth["annotations"] if entry["image_id"] == image["id"]]
        assert photo.path == folder / "images" / image["file_name"]
        with Image.open(photo.path) as picture:
            assert photo.size == picture.size
        for thing, entry in zip(photo.objects, marked, strict=True):
            x, y, width, height = entry["bbox"]
            assert thing.name == names[entry["category_id"]]
            assert thing.box == (x, y, x + width, y + height)
            assert not thing.difficult


@pytest.mark.parametrize("name", ["coco128", "coco_captions"])
def test_masks_have_the_area_that_the_annotation_says(shared: Path, name: str) -> None:
    folder = shared / name
    read = read_instances(folder / "instances.json", folder / "images")
    areas: dict[int, list[float]] = {}
    for entry in json.loads((folder / "instances.json").read_text())["annotations"]:
        areas.setdefault(entry["image_id"], []).append(entry["area"])
    masked, said = 0.0, 0.0
    for photo in read.photos:
        for thing, area in zip(photo.objects, areas.get(int(photo.path.stem), []), strict=True):
            mask = thing.mask(photo.size[1], photo.size[0])
            left, top, right, bottom = thing.box
            rows, columns = np.nonzero(mask)
            assert left - 2 <= columns.min() <= columns.max() <= right + 1
            assert top - 2 <= rows.min() <= rows.max() <= bottom + 1
            if not thing.crowd:  # the area that COCO gives for a crowd is not that of its run lengths
                # A pixel is half in and half out all along the outline.
                assert abs(mask.sum() - area) <= max(1.1 * area**0.5, 0.01 * area)
                masked, said = masked + mask.sum(), said + area
    assert masked == pytest.approx(said, rel=2e-3)


def test_masks_equal_those_of_cocos_own_tools(shared: Path, tmp_path: Path) -> None:
    """178 unions and sums of masks of 64 photos, polygons and run lengths, to the pixel."""
    oracle = shared / "oracles" / "classifiers" / "pointing"
    document = json.loads((oracle / "instances.json").read_text())
    read = read_coco(tmp_path, document, *(image["file_name"] for image in document["images"]))
    photos = {photo.path.name: photo for photo in read.photos}
    names = {entry["id"]: entry["name"] for entry in document["categories"]}
    pairs = json.loads((oracle / "pointing.json").read_text())["pairs"]
    assert len(pairs) == 178
    for pair in pairs:
        photo = photos[pair["file_name"]]
        things = [thing for thing in photo.objects if thing.name == names[pair["category_id"]]]
        masks = [thing.mask(pair["height"], pair["width"]) for thing in things]
        assert len(masks) == pair["num_annotations"]
        assert sum(thing.crowd for thing in things) == pair["num_crowd"]
        assert np.logical_or.reduce(masks).sum() == pair["mask_pixels"]
        assert sum(mask.sum() for mask in masks) == pair["sum_of_annotation_mask_pixels"]


# COCO, made up


def test_what_a_photo_has(tmp_path: Path) -> None:
    categories = [{"id": 5, "name": "dog"}, {"id": 3, "name": "cat"}, {"id": 1, "name": "cow"}]
    (one,) = coco()["annotations"]
    crowd = {**one, "category_id": 5, "iscrowd": 1, "segmentation": {"size": [6, 8], "counts": [1, 2, 45]}}
    plain = {key: value for key, value in one.items() if key != "segmentation"}
    read = read_coco(tmp_path, coco(annotations=[one, crowd, plain], categories=categories))
    (photo,) = read.photos
    assert photo.size == (8, 6)
    assert photo.classes(read.categories) == ["dog", "cat"]
    assert [thing.crowd for thing in photo.objects] == [False, True, False]
    assert photo.objects[0].mask(6, 8)[1:4, 1:5].all()
    assert photo.objects[0].mask(6, 8).sum() == 12
    assert np.argwhere(photo.objects[1].mask(6, 8)).tolist() == [[1, 0], [2, 0]]
    assert (photo.objects[2].mask(6, 8) == photo.objects[0].mask(6, 8)).all()


def test_a_photo_without_objects_stays_and_one_that_is_not_there_is_told(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": f"{n}.jpg", "width": 8, "height": 6} for n in (1, 2, 3)]
    read = read_coco(tmp_path, coco(images=images), "2.jpg", "x/3.jpg", "y/3.jpg")
    assert [(photo.path.name, photo.objects) for photo in read.photos] == [("2.jpg", ())]
    assert [Path(path).name for path, _ in read.failures] == ["1.jpg", "3.jpg"]
    assert "not found in" in read.failures[0][1]
    assert "in several sub-folders of" in read.failures[1][1]
    assert read.left_out == {"annotations of unknown images or categories": 1}


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"bbox": [1, 1, 4]}, "annotations whose bbox is not x, y, width, height"),
        ({"bbox": [1, 1, -4, 3]}, "annotations whose bbox is not x, y, width, height"),
        ({"bbox": [1, 1, float("nan"), 3]}, "annotations whose bbox is not x, y, width, height"),
        ({"bbox": [1, 1, 10**400, 3]}, "annotations whose bbox is not x, y, width, height"),
        ({"bbox": "1 1 4 3"}, "annotations whose bbox is not x, y, width, height"),
        ({"image_id": [7]}, "annotations without image_id, category_id and bbox"),
        ({"image_id": 8}, "annotations of unknown images or categories"),
        ({"category_id": "3"}, "annotations of unknown images or categories"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_counted(tmp_path: Path, entry: dict[str, Any], reason: str) -> None:
    (good,) = coco()["annotations"]
    read = read_coco(tmp_path, coco(annotations=[{**good, **entry}, good]))
    assert read.left_out == {reason: 1}
    assert len(read.photos[0].objects) == 1


@pytest.mark.parametrize(
    "outline",
    [
        {"size": [6, 8], "counts": "PPYo1"},
        {"size": [6, 8], "counts": [1.5, 46.5]},
        {"size": [6], "counts": [48]},
        [[1, 1, 5, 1]],
        [[1, 1, 5, 1, 5, 4, 1]],
        [[1, 1, 5, 1, 5, None]],
        [SQUARE, "?"],
        "polygon",
        3,
    ],
)
def test_an_outline_of_another_kind_is_counted_and_the_box_stays(tmp_path: Path, outline: object) -> None:
    (good,) = coco()["annotations"]
    read = read_coco(tmp_path, coco(annotations=[{**good, "segmentation": outline}]))
    assert read.left_out == {"segmentations that are neither polygons nor run lengths as counts": 1}
    (thing,) = read.photos[0].objects
    assert thing.outline is None
    assert thing.mask(6, 8).sum() == 12


@pytest.mark.parametrize(
    "image",
    [
        {"id": 1},
        {"id": 1, "file_name": "b.jpg", "width": 0, "height": 6},
        {"id": 7, "file_name": "a.jpg", "width": 8, "height": 6},
        {"file_name": 3},
        "b.jpg",
        None,
    ],
)
def test_an_image_that_cannot_be_used_is_counted(tmp_path: Path, image: object) -> None:
    read = read_coco(tmp_path, coco(images=[*coco()["images"], image]))
    assert read.left_out == {"images without an id of their own, file_name, width and height": 1}
    assert len(read.photos) == 1


def test_a_photo_that_is_listed_twice_counts_once(tmp_path: Path) -> None:
    (image,) = coco()["images"]
    read = read_coco(tmp_path, coco(images=[image, {**image, "id": 8}]))
    assert len(read.photos) == 1
    assert read.left_out == {"images with the photo of an earlier one": 1}


def test_a_category_without_a_name_is_counted(tmp_path: Path) -> None:
    read = read_coco(tmp_path, coco(categories=[{"id": 3, "name": " cat "}, {"id": 4, "name": " "}, {"id": 5}]))
    assert read.categories == ("cat",)
    assert read.left_out == {"categories without an id of their own and a name": 2}


@pytest.mark.parametrize(
    ("document", "says"),
    [
        (b"", "empty file"),
        (json.dumps(coco()).encode()[:-9], "not JSON: .* Get a whole copy"),
        (b"[" * 100_000, "not JSON"),
        (b'{"images": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"\xff\xfe{\0", "not JSON"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        ([1], "JSON with a list on top"),
        ({"images": []}, "its top has 'images'. Expected are COCO instances"),
        (coco(images={}), "no instances: its top has 'images', 'annotations', 'categories'"),
        (
            coco(annotations=[{"image_id": 7, "caption": "a cat"}]),
            "holds captions, which are the targets of captioners",
        ),
        (coco(annotations=[{"image_id": 7, "segments_info": []}]), "a panoptic file"),
        (coco(images=[]), "none of its 0 photos"),
        (coco(images=[{"id": 7, "file_name": "../a.jpg", "width": 8, "height": 6}]), "none of its 1 photos"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, document: object, says: str) -> None:
    with pytest.raises(GradlightError, match=says) as refused:
        read_coco(tmp_path / "x", document, "b.jpg")
    assert "instances.json" in str(refused.value)


def test_files_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"none\.json: cannot be opened"):
        read_instances(tmp_path / "none.json", tmp_path)
    with pytest.raises(GradlightError, match=r"none: not a folder\. Give the folder that holds the photos"):
        read_instances(tmp_path / "none.json", tmp_path / "none")


def test_photos_are_found_where_coco_puts_them_and_never_outside(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    for name in ("val2017/a.jpg", "deep/er/b.jpg", ".hidden/c.jpg"):
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        (inside / name).touch()
    (tmp_path / "d.jpg").touch()
    folder = PhotoFolder(inside)
    assert folder.find("a.jpg") == [inside / "val2017" / "a.jpg"]
    assert folder.find("somewhere/b.jpg") == [inside / "deep" / "er" / "b.jpg"]
    assert folder.find("c.jpg") == []
    assert folder.find("../d.jpg") == folder.find(str(tmp_path / "d.jpg")) == []
    assert folder.find("n" * 5000) == []


def test_a_document_is_any_json(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("[1, 2]")
    assert read_document(path, "Anything") == [1, 2]


# Masks


def test_run_lengths_go_down_the_columns() -> None:
    mask = decode_run_lengths(np.array([2, 3, 1]), 3, 2)
    assert mask.astype(int).tolist() == [[0, 1], [0, 1], [1, 0]]


@given(st.integers(1, 12), st.integers(1, 12), st.randoms(use_true_random=False))
def test_run_lengths_of_any_mask_give_it_back(height: int, width: int, random: Any) -> None:
    mask = np.array([[random.random() < 0.5 for _ in range(width)] for _ in range(height)])
    flat = np.concatenate([[False], mask.T.ravel()])
    ends = [0, *(np.flatnonzero(np.diff(flat)).tolist()), height * width]
    assert (decode_run_lengths(np.diff(ends), height, width) == mask).all()


@pytest.mark.parametrize("counts", [[], [5], [3, 4], [-1, 7], [10**18] * 12, [2**62] * 4 + [6]])
def test_run_lengths_of_another_size_are_refused(counts: list[int]) -> None:
    with pytest.raises(GradlightError, match="do not fill a mask of 2 x 3"):
        decode_run_lengths(np.array(counts, np.int64), 3, 2)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 14)), min_size=3, max_size=9))
def test_polygons_cover_what_is_surely_inside_and_nothing_that_is_surely_outside(
    corners: list[tuple[int, int]],
) -> None:
    """Drawn here by Pillow, much finer: only pixels that the outline touches may differ."""
    fine = 16
    drawn = Image.new("1", (20 * fine, 14 * fine))
    edge = Image.new("1", drawn.size)
    scaled = [(x * fine - 0.5, y * fine - 0.5) for x, y in corners]
    mask = fill_polygon(np.array(corners, float), 14, 20)
    # Pillow fills by the even-odd rule too.
    ImageDraw.Draw(drawn).polygon(scaled, fill=1)
    ImageDraw.Draw(edge).line([*scaled, scaled[0]], fill=1, width=8)
    share = np.asarray(drawn).reshape(14, fine, 20, fine).mean((1, 3))
    touched = np.asarray(edge).reshape(14, fine, 20, fine).any((1, 3))
    assert (mask == (share > 0.5))[~touched].all()


def test_a_polygon_is_cut_off_at_the_picture_and_refused_far_outside() -> None:
    around = np.array([[-3.0, -2], [12, -2], [12, 9], [-3, 9]])
    assert fill_polygon(around, 6, 8).all()
    for far in (1e9, float("nan"), float("inf")):
        with pytest.raises(GradlightError, match="far outside its picture of 8 x 6, or is not finite"):
            fill_polygon(np.array([[0, 0], [far, 0], [0, 5]]), 6, 8)


def test_a_mask_of_another_size_is_refused() -> None:
    thing = AnnotatedObject("cat", (0, 0, 1, 1), outline=RunLengths(6, 8, np.array([48])))
    with pytest.raises(GradlightError, match="'cat' are for a picture of 8 x 6, not of 6 x 8"):
        thing.mask(8, 6)
    with pytest.raises(GradlightError, match="cannot be made"):
        thing.mask(10**6, 10**6)


# VOC


def test_the_seven(shared: Path) -> None:
    root = shared / "voc07_seven"
    inner = root / "VOCdevkit" / "VOC2007"
    for place in (root, root / "VOCdevkit", inner):
        assert find_voc(place) == [inner]
        for split in (None, "test"):
            read = read_voc(place, split)
            (photo,) = read.photos
            assert photo.path == inner / "JPEGImages" / "000001.jpg"
            assert photo.size == (353, 500)
            # 1-based and inclusive in the file: (48, 240, 195, 371) and (8, 12, 352, 498).
            assert [(thing.name, thing.box) for thing in photo.objects] == [
                ("dog", (47, 239, 195, 371)),
                ("person", (7, 11, 352, 498)),
            ]
            assert read.categories == ("dog", "person")
    mask = photo.objects[0].mask(500, 353)
    assert mask.sum() == (195 - 48 + 1) * (371 - 240 + 1)
    assert mask[239, 47]
    assert mask[370, 194]


def test_cocos_photos_in_vocs_layout(shared: Path, tmp_path: Path) -> None:
    script = shared / "voc_like" / "make_voc_layout.py"
    subprocess.run([sys.executable, script, shared / "coco128", tmp_path], check=True, capture_output=True)
    read = read_voc(tmp_path, "test")
    coco_read = read_instances(shared / "coco128" / "instances.json", shared / "coco128" / "images")
    same = {"airplane": "aeroplane", "motorcycle": "motorbike", "couch": "sofa", "tv": "tvmonitor"}
    same |= {"dining table": "diningtable", "potted plant": "pottedplant"}
    boxes = {photo.path.stem: photo for photo in coco_read.photos}
    assert len(read.photos) == 49
    assert read.failures == ()
    for photo in read.photos:
        whole = boxes[photo.path.stem]
        assert photo.size == whole.size
        wanted = [thing for thing in whole.objects if same.get(thing.name, thing.name) in read.categories]
        for thing, other in zip(photo.objects, wanted, strict=True):
            assert thing.name == same.get(other.name, other.name)
            assert thing.difficult == other.crowd
            assert np.abs(np.subtract(thing.box, other.box)).max() <= 1
            assert thing.box[0] <= other.box[0] + 1e-9
            assert thing.box[2] >= min(other.box[2], photo.size[0]) - 1e-9
    assert _difficult(read.photos) == _rows(tmp_path / "difficult.txt")


def _difficult(photos: tuple[AnnotatedPhoto, ...]) -> set[tuple[str, str]]:
    """The pointing game's definition: less than a quarter of the image in all, and another class is there."""
    found = set()
    for photo in photos:
        area: Counter[str] = Counter()
        for thing in photo.objects:
            left, top, right, bottom = thing.box
            area[thing.name] += int((right - left) * (bottom - top))
        quarter = photo.size[0] * photo.size[1] / 4
        found |= {(photo.path.stem, name) for name in area if area[name] < quarter and len(area) > 1}
    return found


def _rows(path: Path) -> set[tuple[str, str]]:
    order = (
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog"),
        *("horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
    )
    rows = [line.split() for line in path.read_text().splitlines()]
    return {(row[0], name) for row in rows for name, flag in zip(order, row[1:], strict=True) if flag == "1"}


def test_parts_are_no_objects_and_numbers_may_have_a_point(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin></bndbox></part>"
    inside = boxed(box=("1.0", 2, " 3.5\n", 4), more="<difficult>1</difficult>").replace(
        "</object>", part + "</object>"
    )
    read = read_voc(voc(tmp_path, xml(inside)))
    (thing,) = read.photos[0].objects
    assert (thing.name, thing.box, thing.difficult) == ("cat", (0, 1, 3.5, 4), True)


def test_photos_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(boxed()), split="a\nb\n../../c\n\na\nd\r\n")
    voc(root, "<annotation>", "b", None)
    (root / "JPEGImages" / "d.png").touch()
    read = read_voc(root)
    assert [photo.path.name for photo in read.photos] == ["a.jpg"]
    assert [Path(path).name for path, _ in read.failures] == ["b.jpg", "c", "d.png"]
    reasons = [reason for _, reason in read.failures]
    assert "not XML: no element found" in reasons[0]
    assert "the split lists it, but there is no such photo" in reasons[1]
    assert "d.xml: cannot be opened: No such file" in reasons[2]


LAUGHS = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10 if n else "ha"}">' for n in range(12))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (f"<!DOCTYPE a [{LAUGHS}]>" + xml(boxed("&l11;")), "a DOCTYPE"),
        ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>' + xml(boxed("&x;")), "a DOCTYPE"),
        ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd">' + xml(boxed()), "a DOCTYPE"),
        (('\ufeff<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a>' + xml()).encode("utf-16-le"), "a DOCTYPE"),
        ('<?xml version="1.0" encoding="none-such"?>' + xml(), "not XML"),
        (xml(boxed("&x;")), "not XML: undefined entity"),
        (xml(boxed())[:-5], "not XML"),
        (b"\0\1\2", "not XML"),
        (b"", "not XML"),
        ("<a>" * 200_000, "not XML"),
        (xml() + " " * (1 << 20), "larger than 1 MiB"),
        ("<html></html>", "begins with <html>"),
        (xml(boxed(box=(1, 2, 3, "four"))), "<bndbox><ymax> is 'four', not a number"),
        (xml(boxed(box=(1, 2, 3, "nan"))), "'nan', not a number"),
        (xml(boxed(box=(1, 2, 3, "9" * 5000))), "not a number of pixels"),
        (xml(boxed(box=(5, 2, 3, 4))), "corners swapped"),
        (xml(boxed(" ")), "an <object> has no <name>"),
        (xml("<object><name>cat</name></object>"), "has no <bndbox><xmin>"),
        (xml(size="<width>8</width>"), "has no <size><height>"),
        (xml(size="<width>0</width><height>6</height>"), "<size><width> is 0, not a size"),
    ],
)
def test_hostile_and_broken_annotations_are_refused(tmp_path: Path, content: str | bytes, says: str) -> None:
    start = time.monotonic()
    with pytest.raises(GradlightError, match=says) as refused:
        read_voc(voc(tmp_path, content))
    assert time.monotonic() - start < 60, "it hangs"
    assert "a.xml" in str(refused.value)
    assert "none of the 1 photos of the split can be used" in str(refused.value)
    assert "root:" not in str(refused.value)


def test_a_split_must_be_chosen_among_several_and_those_of_classes_do_not_count(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(boxed()), split="a\n")
    voc(root, xml(), "b", None)
    sets = root / "ImageSets" / "Main"
    (sets / "dog_test.txt").write_text("a -1\nb  1\n")
    assert [photo.path.stem for photo in read_voc(root).photos] == ["a"]
    assert [photo.path.stem for photo in read_voc(root, "dog_test").photos] == ["b"]
    (sets / "val.txt").write_text("b\n")
    with pytest.raises(GradlightError, match=r"no split was chosen\. There are test, val and 1 of single classes"):
        read_voc(root)
    with pytest.raises(GradlightError, match=r"no split 'tset'. Did you mean 'test'.* There are test, val"):
        read_voc(root, "tset")
    with pytest.raises(GradlightError, match=r"no split '\.\./\.\./a'"):
        read_voc(root, "../../a")


def test_roots_of_other_layouts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="not VOC's layout, neither here nor in VOCdevkit"):
        read_voc(tmp_path)
    for year in ("VOC2007", "VOC2012"):
        voc(tmp_path / "VOCdevkit" / year, xml())
    with pytest.raises(GradlightError, match=r"several VOC data sets here. Give one of .*VOC2007, .*VOC2012"):
        read_voc(tmp_path)
    assert len(read_voc(tmp_path / "VOCdevkit" / "VOC2012").photos) == 1


def test_an_empty_or_binary_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="none of the 0 photos"):
        read_voc(voc(tmp_path, xml(), split="\n\n"))
    (tmp_path / "ImageSets" / "Main" / "test.txt").write_bytes(b"a\0b")
    with pytest.raises(GradlightError, match=r"test\.txt: not a split"):
        read_voc(tmp_path)
    (tmp_path / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(GradlightError, match=r"There is none: a file such as test\.txt is expected"):
        read_voc(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_place_of_an_annotation_does_not_hang(tmp_path: Path) -> None:
    root = voc(tmp_path, xml(boxed()), split="a\nb\n")
    voc(root, xml(), "b", None)
    (root / "Annotations" / "b.xml").unlink()
    os.mkfifo(root / "Annotations" / "b.xml")
    assert "a named pipe" in read_voc(root).failures[0][1]
