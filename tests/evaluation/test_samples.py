"""Samples of every data set: their sizes, masks, boxes, and the difficult subset, held against outside truth."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from coco_half import category_names, load, named_photos

from gradlight.data.scenes.generator import CLASSES, HELD_OUT, draw
from gradlight.errors import GradlightError
from gradlight.evaluation.samples import is_difficult, open_samples


def voc_classes(shared: Path) -> list[str]:
    return sorted(runpy.run_path(str(shared / "voc_like" / "make_voc_layout.py"))["VOC"].values())


def test_every_pair_of_coco_has_its_mask_and_subset(shared: Path, tmp_path: Path) -> None:
    """Masks with as many pixels as COCO's own tools give, crowds included; TorchRay's difficult subset."""
    names = category_names(shared)
    wanted = {
        (pair["file_name"], names[pair["category_id"]]): (
            (pair["width"], pair["height"]),
            pair["mask_pixels"],
            pair["num_annotations"],
            pair["difficult"]["sum_of_masks"],
        )
        for pair in load(shared, "pointing.json")["pairs"]
    }
    samples = named_photos(shared, tmp_path)
    found = {
        (sample.key, truth.label): (
            (sample.width, sample.height),
            int(truth.mask.sum()),
            len(truth.boxes),
            truth.subset,
        )
        for sample in samples
        for truth in sample.truths
    }
    assert found == wanted
    assert len(samples) == 64
    assert len(samples.labels) == 80


def test_the_difficult_subset_of_voc_is_the_published_one(shared: Path) -> None:
    samples = open_samples(str(shared / "voc07_seven"))
    rows = [row.split() for row in (shared / "voc07_seven" / "difficult_rows.txt").read_text().splitlines()]
    flags = {row[0]: row[1:] for row in rows}
    order = [
        "aeroplane",
        "bicycle",
        "bird",
        "boat",
        "bottle",
        "bus",
        "car",
        "cat",
        "chair",
        "cow",
        "diningtable",
        "dog",
        "horse",
        "motorbike",
        "person",
        "pottedplant",
        "sheep",
        "sofa",
        "train",
        "tvmonitor",
    ]
    assert [sample.key for sample in samples] == ["000001"]
    truths = {truth.label: truth for truth in samples[0].truths}
    assert set(truths) == {"dog", "person"}
    for label, truth in truths.items():
        assert truth.subset == (flags["000001"][order.index(label)] == "1"), label
    # The box (48, 240, 195, 371), 1-based and inclusive.
    wanted = np.zeros((500, 353), bool)
    wanted[239:371, 47:195] = True
    assert np.array_equal(truths["dog"].mask, wanted)


def test_a_data_set_in_the_layout_of_voc_has_the_same_pairs(shared: Path, tmp_path: Path) -> None:
    script = shared / "voc_like" / "make_voc_layout.py"
    subprocess.run([sys.executable, script, shared / "coco128", tmp_path], check=True, capture_output=True)
    rows = [row.split("\t") for row in (tmp_path / "difficult.txt").read_text().splitlines()]
    order = voc_classes(shared)
    wanted = {(row[0], order[at]) for row in rows for at, flag in enumerate(row[1:]) if flag == "1"}
    samples = open_samples(str(tmp_path), split="test")
    found = {(sample.key, truth.label) for sample in samples for truth in sample.truths if truth.subset}
    assert found == wanted
    assert len(samples) == len(rows)
    flagged = [truth for sample in samples for truth in sample.truths if truth.difficult]
    everything = [truth for sample in samples for truth in sample.truths]
    assert len(flagged) < len(everything)


def test_scenes_know_their_shapes_and_colours() -> None:
    samples = open_samples("scenes", 4)
    assert samples.labels == tuple(CLASSES)
    for seed, sample in zip(HELD_OUT[:4], samples, strict=True):
        scene = draw(seed)
        assert sample.image == sample.key == f"scenes:{seed}"
        assert (sample.width, sample.height) == scene.image.size
        assert [truth.label for truth in sample.truths] == scene.classes
        for truth in sample.truths:
            assert np.array_equal(truth.mask, scene.mask(truth.label))
            same = [thing for thing in scene.objects if truth.label in (thing.kind, thing.colour)]
            assert len(truth.boxes) == len(same)
            small = truth.mask.mean() < 0.25
            assert truth.subset == (small and len(same) < len(scene.objects))
    alone = next(seed for seed in HELD_OUT if len(draw(seed).objects) == 1)
    single = open_samples("scenes", alone - HELD_OUT[0] + 1)[-1]
    assert not any(truth.subset for truth in single.truths)


def test_a_plain_folder_has_photos_of_which_nothing_is_known(shared: Path, tmp_path: Path) -> None:
    source = next(path for path in sorted((shared / "photos").iterdir()) if path.suffix == ".jpg")
    (tmp_path / "b").mkdir()
    for name in ("b/second.JPG", "first.jpg", ".hidden.jpg", "b/notes.txt"):
        shutil.copy(source, tmp_path / name)
    samples = open_samples(str(tmp_path))
    assert [sample.key for sample in samples] == ["b/second.JPG", "first.jpg"]
    assert samples.labels == ()
    assert samples[0].truths == ()
    assert samples[0].width > 0


def test_samples_are_made_only_when_they_are_asked_for(shared: Path, tmp_path: Path) -> None:
    """Ten million scenes open at once."""
    samples = open_samples("scenes", 10_000_000)
    assert len(samples) == 10_000_000
    assert samples[-1].key == f"scenes:{HELD_OUT[-1]}"
    assert [sample.key for sample in samples[1:3]] == [f"scenes:{seed}" for seed in HELD_OUT[1:3]]
    assert len(open_samples(str(shared / "photos"), 3)) == 3


def test_options_of_other_data_are_refused(shared: Path, tmp_path: Path) -> None:
    instances = shared / "coco128" / "instances.json"
    with pytest.raises(GradlightError, match="scenes takes no split"):
        open_samples("scenes", 3, split="test")
    with pytest.raises(GradlightError, match="scenes takes no annotations"):
        open_samples("scenes", 3, annotations=instances)
    with pytest.raises(GradlightError, match="takes no split"):
        open_samples(str(shared / "photos"), split="test")
    with pytest.raises(GradlightError, match="say how many"):
        open_samples("scenes")
    with pytest.raises(GradlightError, match="at least 1"):
        open_samples("scenes", 0)
    with pytest.raises(GradlightError, match="there is no such folder"):
        open_samples(str(tmp_path / "missing"))
    with pytest.raises(GradlightError, match="no photo was found"):
        open_samples(str(tmp_path))


def test_difficult_is_small_and_among_others() -> None:
    assert is_difficult([10, 14], 100, others=True)
    assert not is_difficult([10, 15], 100, others=True)
    assert not is_difficult([1], 100, others=False)
