"""The demonstration: the sample scenes and one's own photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import gradlight as gl
from gradlight.cli.demo import run_demo
from gradlight.data.scenes.generator import SAMPLES, draw


def test_the_maps_of_the_demo_lie_on_the_named_objects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_demo(tmp_path / "made", [], "scenes") == 0
    maps = gl.load(tmp_path / "made" / "demo.h5")
    assert len(maps) == 6
    assert maps.methods == ["selective_normgrad", "linear_approx", "grad_cam"]
    combined = maps["selective_normgrad", "product(linear)"]
    scenes = [draw(seed) for seed in SAMPLES]
    hits = []
    for number, photo in enumerate(maps.images):
        scene = next(scene for scene in scenes if scene.image.tobytes() == photo.picture().tobytes())
        for k, target in enumerate(maps.targets[number]):
            row, column = divmod(int(combined[number, k].argmax()), 160)
            hits.append(bool(scene.mask(target.label)[row, column]))
    assert sum(hits) >= 11, f"{sum(hits)} of 12"
    shown = capsys.readouterr().out
    assert shown.count("on the object") + shown.count("beside it") == 36
    for name in ("demo.h5", "demo.png", "demo-2.png", "demo-3.png"):
        assert f"wrote {tmp_path / 'made' / name}\n" in shown
        assert (tmp_path / "made" / name).stat().st_size > 10_000


def test_photos_are_explained_too_and_a_bad_one_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 60, 3), dtype=np.uint8)).save(good)
    bad.write_text("no picture")
    assert run_demo(tmp_path / "made", [bad, good], "scenes") == 1
    told = capsys.readouterr()
    assert "bad.jpg" in told.err
    assert str(good) in told.out
    assert gl.load(tmp_path / "made" / "photo-1-good.h5").layers[-1] == "product(linear)"
    assert (tmp_path / "made" / "photo-1-good.png").exists()


def test_when_no_photo_can_be_read_nothing_is_done(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_text("no picture")
    with pytest.raises(gl.GradlightError, match="None of 1 images can be read"):
        run_demo(tmp_path / "made", [tmp_path / "bad.jpg"], "scenes")
    assert not (tmp_path / "made").exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(gl.GradlightError, match="the folder cannot be created"):
        run_demo(tmp_path / "file" / "made", [], "scenes")
