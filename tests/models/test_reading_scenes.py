"""Images that are named as scenes: drawn when they are read, drawn again when they are shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gradlight as gl
from gradlight import GradlightError
from gradlight.data.scenes.generator import draw
from gradlight.models.base import Photo
from gradlight.models.classifiers import classifier
from gradlight.models.view import View


def test_a_scenes_name_stands_for_its_picture(tmp_path: Path) -> None:
    model = classifier("scenes")
    scene = draw(20_000_066)
    named, photos = model.read(["scenes:20000066", Path("scenes:020000066"), scene.image])
    assert torch.equal(named[0], named[2])
    assert torch.equal(named[1], named[2])
    assert [photo.path for photo in photos] == ["scenes:20000066", "scenes:20000066", ""]
    assert photos[0].sha256 == photos[1].sha256 == photos[2].sha256
    assert [photo.held is None for photo in photos] == [True, True, False]
    for photo in photos:
        assert (np.asarray(photo.picture()) == scene.array).all()
        assert (photo.width, photo.height) == (160, 160)


def test_a_scene_is_explained_by_its_name_and_its_file_shows_it(tmp_path: Path) -> None:
    model = classifier("scenes")
    maps = gl.explain(model, "scenes:20000066", methods="grad_cam")
    path = tmp_path / "m.h5"
    maps.save(path)
    (photo,) = gl.load(path).images
    assert photo.path == "scenes:20000066"
    assert (np.asarray(photo.picture()) == draw(20_000_066).array).all()


def test_a_name_without_a_scene_is_refused() -> None:
    with pytest.raises(GradlightError, match="'scenes:99999999' names no scene"):
        classifier("scenes").read(["scenes:99999999"])
    view = View.whole((8, 8), (8, 8))
    with pytest.raises(GradlightError, match="names no scene"):
        Photo("scenes:-1", "", 8, 8, view).picture()


def test_a_file_that_is_called_like_a_scene_is_read_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "scenes:5"
    Image.new("RGB", (8, 8), "red").save(path, format="PNG")
    _, (photo,) = classifier("scenes").read([path])
    assert photo.path == str(path)
    assert photo.picture().getpixel((0, 0)) == (255, 0, 0)
