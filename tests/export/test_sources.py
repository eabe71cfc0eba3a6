"""Sources of an export: every way to name images and targets, and what is refused, left out or told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from gradlight.data import images
from gradlight.data.scenes.generator import CLASSES, HELD_OUT, SEEDS
from gradlight.errors import GradlightError
from gradlight.export.datasets import match_classes
from gradlight.export.lists import ImageList, Item
from gradlight.export.sources import KINDS, find_items

LABELS = ["tabby, tabby cat", "dog", "dining table, board", "Airplane", "person", "tv", "crane", "crane"]


def photos(folder: Path, *names: str) -> Path:
    """Lay small pictures under a folder."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(path, format="PNG")
    return folder


def write(path: Path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


def names(source: ImageList, folder: Path) -> list[str]:
    return [os.path.relpath(item.path, folder) for item in source.items]


def targets(source: ImageList) -> list[tuple[int | str, ...] | None]:
    return [item.targets for item in source.items]


# Folders


def test_a_folder_gives_its_photos_in_order_wherever_they_lie(tmp_path: Path) -> None:
    photos(tmp_path, "b.png", "a/z.JPG", "a/b/c.webp", "no_suffix", "odd.xyz", "A.png", ".hidden.png", ".git/x.png")
    photos(tmp_path, "really_a_photo.txt")
    for other in ("notes.txt", "labels.json", "a/data.xml", "maps.h5", "run.py"):
        write(tmp_path / other, "{}")
    found = find_items(str(tmp_path), labels=LABELS)
    expected = ["A.png", "a/b/c.webp", "a/z.JPG", "b.png", "no_suffix", "odd.xyz", "really_a_photo.txt"]
    assert names(found, tmp_path) == expected
    assert found.kind == "folder"
    assert targets(found) == [None] * 7
    assert found.failures == []
    assert len(found.notes) == 1
    assert "5 other files of" in found.notes[0]
    assert ".json 1" in found.notes[0]
    assert find_items(str(tmp_path), labels=None) == found
    assert find_items(str(tmp_path) + os.sep, labels=None).items != []


@pytest.mark.parametrize("place", ["files", ""])
def test_nasty_files_give_the_expected_split(shared: Path, tmp_path: Path, place: str) -> None:
    """The folder as it is shipped, and the whole one with odd names, links, pipes and devices."""
    if place:
        corpus = shared / "nasty"
        root = corpus / place
    else:
        root = corpus = tmp_path / "corpus"
        script = shared / "nasty" / "make_nasty.py"
        subprocess.run([sys.executable, script, corpus], check=True, capture_output=True)
    cases = json.loads((corpus / "expected.json").read_text())["cases"]
    found = find_items(str(root), labels=None)
    assert found.failures == []
    tried = {os.path.relpath(item.path, corpus): _accepted(item.path) for item in found.items}
    assert len(tried) == len(found.items)
    assert set(tried) - set(cases) == ({"fs/loop_b.jpg"} if not place else set())  # the other half of fs/loop_a.jpg
    assert not tried.pop("fs/loop_b.jpg", False)
    for path, accepted in tried.items():
        if cases[path]["expect"] != "either" and not (cases[path].get("not_as_root") and os.geteuid() == 0):
            assert accepted == (cases[path]["expect"] == "accept"), path
    hidden = {path for path in cases if os.path.basename(path).startswith(".")}
    for path in set(cases) - set(tried) - hidden:
        whole = corpus / path
        ordinary = os.path.lexists(whole) and whole.is_file() if len(path) < 300 else False
        assert not path.startswith("files/"), f"{path} was not tried"
        assert not ordinary, f"{path} was not tried"
    assert {path for path in tried if path.startswith("files/")} == {p for p in cases if p.startswith("files/")}


def _accepted(path: str) -> bool:
    try:
        images.load(path)
    except GradlightError:
        return False
    return True


def test_loops_end_and_links_to_folders_are_told(tmp_path: Path) -> None:
    photos(tmp_path, "in/a.png")
    (tmp_path / "in" / "up").symlink_to("..")
    (tmp_path / "in" / "link.png").symlink_to("a.png")
    found = find_items(str(tmp_path), labels=None)
    assert names(found, tmp_path) == ["in/a.png", "in/link.png"]
    assert "Links to folders are not followed: 1, such as" in found.notes[0]
    (tmp_path / "here").symlink_to("in")
    assert len(find_items(str(tmp_path / "here"), labels=None).items) == 2


def test_special_files_count_only_with_the_suffix_of_an_image(tmp_path: Path) -> None:
    photos(tmp_path, "a.png")
    for name in ("pipe", "pipe.txt", "pipe.jpg"):
        os.mkfifo(tmp_path / name)
    assert names(find_items(str(tmp_path), labels=None), tmp_path) == ["a.png", "pipe.jpg"]


def test_a_folder_inside_that_cannot_be_listed_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path, "a.png", "closed/b.png", "z/c.png")
    listing = os.scandir

    def scandir(path: str) -> Any:
        if os.fspath(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_items(str(tmp_path), labels=None)
    assert names(found, tmp_path) == ["a.png", "z/c.png"]
    assert found.failures[0][0] == str(tmp_path / "closed")
    assert "this folder cannot be listed: Permission denied" in found.failures[0][1]
    with pytest.raises(GradlightError, match="closed: cannot be listed: Permission denied"):
        find_items(str(tmp_path / "closed"), labels=None)


def test_a_folder_without_photos_says_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="no image was found in this folder"):
        find_items(str(tmp_path), labels=None)
    write(tmp_path / "a.json", "{}")
    with pytest.raises(GradlightError, match=r"no image was found .* 1 other files of .* \.json 1"):
        find_items(str(tmp_path), labels=None)


# ImageFolder


def test_an_image_folder_is_recognised_by_its_classes(tmp_path: Path) -> None:
    photos(tmp_path, "Dog/b.png", "Dog/deep/a.png", "tabby_cat/c.png")
    found = find_items(str(tmp_path), labels=LABELS)
    assert found == ImageList("imagefolder", [Item(str(tmp_path / name), (index,)) for name, index in _EXPECTED])
    assert find_items(str(tmp_path), labels=LABELS, kind="imagefolder") == found
    assert targets(find_items(str(tmp_path), labels=LABELS, targets=False)) == [None] * 3
    assert find_items(str(tmp_path), labels=None).kind == "folder"
    assert find_items(str(tmp_path), labels=LABELS, kind="folder").kind == "folder"


_EXPECTED = [("Dog/b.png", 1), ("Dog/deep/a.png", 1), ("tabby_cat/c.png", 0)]


def test_a_folder_whose_sub_folders_are_not_all_classes_is_plain_and_says_so(tmp_path: Path) -> None:
    photos(tmp_path, "dog/b.png", "beach/c.png")
    found = find_items(str(tmp_path), labels=LABELS)
    assert found.kind == "folder"
    assert targets(found) == [None, None]
    assert "Not taken as an ImageFolder. The model does not have 1 of the 2 classes: 'beach'." in found.notes[0]
    forced = find_items(str(tmp_path), labels=LABELS, kind="imagefolder")
    assert forced.items == [Item(str(tmp_path / "dog/b.png"), (1,))]
    assert forced.notes == ["The model does not have 1 of the 2 classes: 'beach'."]
    assert "the model has none of its classes (beach)" in forced.failures[0][1]
    photos(tmp_path, "a.png")
    assert find_items(str(tmp_path), labels=LABELS).notes == []
    assert (
        "it is in no sub-folder of a class"
        in find_items(str(tmp_path), labels=LABELS, kind="imagefolder").failures[0][1]
    )


def test_an_image_folder_of_other_classes_says_what_to_do(tmp_path: Path) -> None:
    photos(tmp_path, "beach/c.png")
    assert find_items(str(tmp_path), labels=LABELS).kind == "folder"
    with pytest.raises(GradlightError, match=r"none of its classes is among the model's 8\..*'beach'.*--target top"):
        find_items(str(tmp_path), labels=LABELS, kind="imagefolder")
    with pytest.raises(GradlightError, match=r"the targets here are classes .*, and a captioner has none"):
        find_items(str(tmp_path), labels=None, kind="imagefolder")
    assert targets(find_items(str(tmp_path), labels=None, kind="imagefolder", targets=False)) == [None]


# Classes


def test_classes_are_matched_by_name_and_never_by_resemblance() -> None:
    cases = {
        "dog": 1, "DOG": 1, "tabby": 0, "Tabby Cat": 0, "tabby_cat": 0, "diningtable": 2, "dining table": 2,
        "aeroplane": 3, "airplane": 3, "tvmonitor": 5, "tabby, tabby cat": 0,
    }  # fmt: skip
    for name, index in cases.items():
        assert match_classes([name], LABELS).indices == {name: index}
    for name in ("cat", "do", "tab", "table", "air", "", " ", "top", "1"):
        assert match_classes([name], LABELS).indices == {}
    found = match_classes(["person", "crane", "cow"], LABELS)
    assert found.indices == {"person": 4}
    note = "The model does not have 2 of the 3 classes: 'crane' (could be 6 (crane) or 7 (crane)), 'cow'."
    assert found.note == note
    assert match_classes(["dog"], LABELS).note == ""


def test_an_exact_label_comes_before_one_in_another_case_and_own_names_before_others() -> None:
    assert match_classes(["Dog"], ["dog", "Dog"]).indices == {"Dog": 1}
    assert match_classes(["tv"], ["tvmonitor", "tv, telly"]).indices == {"tv": 1}
    assert match_classes(["tiger"], ["tiger, cat", "Tiger"]).indices == {"tiger": 1}


@given(st.lists(st.text(min_size=1), unique=True))
def test_every_label_is_its_own_class(labels: list[str]) -> None:
    found = match_classes(labels, labels)
    assert found.indices == {label: index for index, label in enumerate(labels)}
    assert found.note == ""


# Lists


def test_a_list_keeps_its_order_and_its_targets(tmp_path: Path) -> None:
    text = f"""# photos of mine
b.png\tdog

sub/a.png\tdog| tabby |top
{tmp_path}/c.png\t
  # not this one
a#b?.png
b.png
scenes:20000066\tmin
"""
    found = find_items(write(tmp_path / "list.txt", "\ufeff" + text), labels=LABELS)
    assert found.kind == "list"
    assert found.items == [
        Item(str(tmp_path / "b.png"), ("dog",)),
        Item(str(tmp_path / "sub/a.png"), ("dog", "tabby", "top")),
        Item(str(tmp_path / "c.png"), None),
        Item(str(tmp_path / "a#b?.png"), None),
        Item(str(tmp_path / "b.png"), None),
        Item("scenes:20000066", ("min",)),
    ]
    assert targets(find_items(str(tmp_path / "list.txt"), labels=LABELS, targets=False)) == [None] * 6


def test_a_list_may_hold_any_name(tmp_path: Path) -> None:
    odd = [" blanks .png", "~.png", "--help.png", "star*?.png", "café.png", ".hidden.png"]
    photos(tmp_path, *odd)
    raw = b"caf\xe9.png"
    lines = [os.fsencode(name) for name in [*odd, "  blanks .png  "]] + [raw]
    found = find_items(write(tmp_path / "LIST.TXT", b"\r\n".join(lines)), labels=None)
    assert names(found, tmp_path) == [*odd, "blanks .png", os.fsdecode(raw)]


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_path_survives_a_csv(tmp_path_factory: pytest.TempPathFactory, paths: list[str]) -> None:
    import csv

    rows = [path for path in paths if path.strip() and not path.strip().startswith(("scenes:", "/"))]
    folder = tmp_path_factory.getbasetemp()
    with open(folder / "l.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["n", "Path ", "target"], *([1, path, "dog"] for path in rows), [1, "z", ""]])
    found = find_items(str(folder / "l.csv"), labels=LABELS)
    assert [item.path for item in found.items] == [os.path.join(folder, path.strip()) for path in [*rows, "z"]]
    assert targets(found) == [*[("dog",)] * len(rows), None]


def test_a_target_that_the_model_does_not_have_is_told_of_its_image(tmp_path: Path) -> None:
    path = write(tmp_path / "l.csv", "path,target\na.png,dgo\nb.png,dog|3\nc.png,dgo\n")
    found = find_items(path, labels=LABELS)
    assert found.items == [Item(str(tmp_path / "b.png"), ("dog", "3"))]
    assert [os.path.basename(name) for name, _ in found.failures] == ["a.png", "c.png"]
    assert "a.png: No class is called 'dgo'. Did you mean 'dog'?" in found.failures[0][1]
    captions = find_items(path, labels=None)
    assert targets(captions) == [("dgo",), ("dog", "3"), ("dgo",)]
    with pytest.raises(GradlightError, match=r"no image to explain. The first of 1: .*a.png: No class is called 'x'"):
        find_items(write(tmp_path / "m.txt", "a.png\tx"), labels=LABELS)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.txt", "", "this list is empty. One path per line"),
        ("a.txt", "# nothing\n\n", "this list is empty"),
        ("a.txt", "a.png\n".encode("utf-16"), "UTF-16: save it as UTF-8"),
        ("a.txt", b"\xff\xd8\xff\0\1", "not text. A list is expected"),
        ("a.csv", "file;target\na.png;1\n", "no column \"path\": its first line has 'file;target'"),
        ("a.csv", "", 'no column "path": its first line has nothing'),
        ("a.csv", "path\n", "this list is empty"),
        ("a.csv", 'path\n"a', "not CSV: unexpected end of data"),
        ("a.csv", "path\n" + "a" * 200_000, "not CSV: field larger than"),
        ("a.txt", "scenes:-5\n", "names no scene"),
    ],
)
def test_lists_that_are_none_are_refused(tmp_path: Path, name: str, content: str | bytes, says: str) -> None:
    with pytest.raises(GradlightError, match=says):
        find_items(write(tmp_path / name, content), labels=None)


def test_a_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match=r"none\.txt: cannot be opened: No such file"):
        find_items(str(tmp_path / "none.txt"), labels=None)
    photos(tmp_path, "a.txt/b.png")
    assert find_items(str(tmp_path / "a.txt"), labels=None).kind == "folder"


# Data sets


def test_voc(shared: Path, tmp_path: Path) -> None:
    root = shared / "voc07_seven"
    photo = root / "VOCdevkit" / "VOC2007" / "JPEGImages" / "000001.jpg"
    found = find_items(str(root), split="test", labels=["person", "cat", "Dog"])
    assert found == ImageList("voc", [Item(str(photo), (2, 0))])
    half = find_items(str(root), labels=["person"])
    assert half.items == [Item(str(photo), (0,))]
    assert half.notes == ["The model does not have 1 of the 2 classes: 'dog'."]
    with pytest.raises(GradlightError, match=r"none of its classes is among the model's 16.*--target top"):
        find_items(str(root), labels=CLASSES)
    assert find_items(str(root), labels=CLASSES, targets=False).items == [Item(str(photo), None)]
    with pytest.raises(GradlightError, match="and a captioner has none"):
        find_items(str(root), labels=None)
    with pytest.raises(GradlightError, match="there is no split 'val'"):
        find_items(str(root), labels=None, split="val")
    script = shared / "voc_like" / "make_voc_layout.py"
    subprocess.run([sys.executable, script, shared / "coco128", tmp_path], check=True, capture_output=True)
    names_of_coco = ["airplane", "person", "couch", "tv"]
    like = find_items(str(tmp_path), split="val", labels=names_of_coco)
    assert {index for item in like.items for index in item.targets or ()} == {0, 1, 2, 3}
    assert len(like.items) + len(like.failures) == 49
    assert all("the model has none of its classes (" in reason for _, reason in like.failures)
    assert len(like.notes) == 1


def test_coco(shared: Path) -> None:
    folder = shared / "coco128"
    truth = json.loads((folder / "instances.json").read_text())
    labels = [entry["name"] for entry in truth["categories"]]
    found = find_items(str(folder / "images"), annotations=folder / "instances.json", labels=labels)
    index = {entry["id"]: number for number, entry in enumerate(truth["categories"])}
    expected, empty = [], []
    for image in truth["images"]:
        present = {index[entry["category_id"]] for entry in truth["annotations"] if entry["image_id"] == image["id"]}
        path = str(folder / "images" / image["file_name"])
        if present:
            expected.append(Item(path, tuple(sorted(present))))
        else:
            empty.append((path, f"{path}: no object is marked on it"))
    assert found == ImageList("coco", expected, empty)
    assert len(found.items) == 63
    assert len(find_items(str(folder / "images"), annotations=folder / "instances.json", labels=labels, targets=False)
               .items) == 64  # fmt: skip


def test_captions(shared: Path) -> None:
    folder = shared / "coco_captions"
    found = find_items(str(folder / "images"), annotations=folder / "captions.json", labels=None)
    assert found.kind == "captions"
    assert len(found.items) == 32
    assert sum(len(item.targets or ()) for item in found.items) == 160
    assert found.notes == found.failures == []
    half = find_items(str(folder / "images"), annotations=folder / "captions.json", labels=None, split="val")
    assert len(half.items) == 16
    assert set(half.items) < set(found.items)
    with pytest.raises(GradlightError, match="no photo is of the split 'test'; there are: train, val"):
        find_items(str(folder / "images"), annotations=folder / "captions.json", labels=None, split="test")
    with pytest.raises(GradlightError, match=r"holds captions, which are the targets of captioners"):
        find_items(str(folder / "images"), annotations=folder / "captions.json", labels=LABELS)
    with pytest.raises(GradlightError, match="captions are the targets of a captioner, and this model is a classifier"):
        find_items(str(folder / "images"), annotations=folder / "captions.json", labels=LABELS, kind="captions")
    with pytest.raises(GradlightError, match=r"Of COCO, take captions_\*\.json"):
        find_items(str(folder / "images"), annotations=folder / "instances.json", labels=None)


def test_captions_without_their_photo_are_told(tmp_path: Path) -> None:
    photos(tmp_path, "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "gone.png"}, {"id": 3, "file_name": "b"}],
        "annotations": [{"image_id": 1, "caption": "a  cat "}, {"image_id": 2, "caption": "a dog"}],
    }
    annotations = Path(write(tmp_path / "c.json", json.dumps(document)))
    found = find_items(str(tmp_path), annotations=annotations, labels=None)
    assert found.items == [Item(str(tmp_path / "a.png"), ("a cat",))]
    assert [Path(path).name for path, _ in found.failures] == ["gone.png"]
    assert found.notes == ["Left out of the annotations: images without captions: 1; photos not found: 1."]


# Scenes, single images, and what is no source


def test_ranges_of_scenes() -> None:
    assert find_items("scenes:5-8", labels=None) == ImageList("scenes", [Item(f"scenes:{n}", None) for n in (5, 6, 7)])
    held = find_items("scenes:held-out:3", labels=CLASSES)
    assert [item.path for item in held.items] == [f"scenes:{seed}" for seed in HELD_OUT[:3]]
    assert [item.path for item in find_items("scenes:20000066", labels=CLASSES).items] == ["scenes:20000066"]


@given(st.integers(0, SEEDS[-1]), st.integers(1, 300))
def test_a_range_is_as_long_as_it_says(first: int, count: int) -> None:
    end = min(first + count, SEEDS.stop)
    found = find_items(f"scenes:{first}-{end}", labels=None).items
    assert len({item.path for item in found}) == len(found) == end - first
    assert found[0].path == f"scenes:{first}"


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("scenes:5-5", "this range is empty"),
        ("scenes:8-5", "this range is empty"),
        ("scenes:held-out:0", "this range is empty"),
        ("scenes:0-30000001", "seeds from 0 to 29999999"),
        ("scenes:held-out:10000001", "there are 10000000 held-out scenes"),
        ("scenes:", "not a range of scenes"),
        ("scenes:-3", "not a range of scenes"),
        ("scenes:held_out:3", "not a range of scenes"),
        ("scenes:a-b\n", "not a range of scenes"),
        ("scenes:99999999", "seeds from 0 to 29999999"),
    ],
)
def test_ranges_without_scenes_are_refused(source: str, says: str) -> None:
    with pytest.raises(GradlightError, match=says):
        find_items(source, labels=None)


def test_one_image_is_a_source(tmp_path: Path) -> None:
    photos(tmp_path, "a.png", "b")
    for name in ("a.png", "b"):
        assert find_items(str(tmp_path / name), labels=LABELS) == ImageList("image", [Item(str(tmp_path / name), None)])


def test_what_is_no_source_is_refused(tmp_path: Path) -> None:
    photos(tmp_path, "a.png")
    for nothing in ("none", "n" * 5000, "a\0b", ""):
        with pytest.raises(GradlightError, match=r"there is no such file or folder. SOURCE is a folder, an image"):
            find_items(nothing and str(tmp_path / nothing), labels=None)
    with pytest.raises(
        GradlightError, match=r"no kind of source 'vok'. Did you mean 'voc'.* Known: folder, imagefolder"
    ):
        find_items(str(tmp_path), labels=None, kind="vok")
    with pytest.raises(GradlightError, match="not VOC's layout"):
        find_items(str(tmp_path), labels=LABELS, kind="voc")
    with pytest.raises(GradlightError, match="'folder' have no splits; 'val' was asked for"):
        find_items(str(tmp_path), labels=None, split="val")
    with pytest.raises(GradlightError, match="'scenes' take no --annotations"):
        find_items("scenes:1-2", labels=None, annotations=tmp_path / "a.json")
    for kind in ("coco", "captions"):
        with pytest.raises(GradlightError, match="need a file of annotations: --annotations FILE"):
            find_items(str(tmp_path), labels=LABELS if kind == "coco" else None, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_refuses_what_is_not_there_or_leaves_it_to_the_reading(tmp_path: Path, kind: str) -> None:
    annotations = tmp_path / "none.json" if kind in ("coco", "captions") else None
    labels = None if kind == "captions" else LABELS
    if kind == "image":
        assert find_items("none.png", labels=labels, kind=kind).items == [Item("none.png", None)]
        return
    with pytest.raises(GradlightError, match="none"):
        find_items(str(tmp_path / "none"), annotations=annotations, labels=labels, kind=kind)
