"""SaliencyMaps: indexing, upsampling, combining, joining, drawing, and the way to a file and back."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

import gradlight as gl
from gradlight.errors import GradlightError

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.png"
    values = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    return path


@pytest.fixture(scope="module")
def maps(photo: Path) -> gl.SaliencyMaps:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.Conv2d(4, 6, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(6, 3),
    )  # fmt: skip
    model = gl.classifier(network, labels=["cat", "dog", "eel"])
    return gl.explain(model, [photo, photo], [["cat", "eel"]], methods=["normgrad", "linear_approx"], layers=["3", "1"])


def test_what_a_result_says_of_itself(maps: gl.SaliencyMaps, photo: Path) -> None:
    assert maps.methods == ["normgrad", "linear_approx"]
    assert maps.layers == ["1", "3"], "from shallow to deep"
    assert [[t.label for t in row] for row in maps.targets] == [["cat", "eel"]] * 2
    assert maps.images[0].path == str(photo)
    assert maps.images[0].picture().size == (maps.images[0].width, maps.images[0].height) == (90, 60)
    assert repr(maps).startswith("SaliencyMaps(2 images × 2 targets")
    assert len(maps) == 2


def test_maps_are_raw_and_found_by_method_and_layer(maps: gl.SaliencyMaps) -> None:
    assert maps["normgrad", "3"].shape == (2, 2, 14, 14)
    assert maps[gl.Method("scaling", "sum", "linear_approx"), "3"].shape == (2, 2, 14, 14)
    with pytest.raises(GradlightError, match=r"no maps at layer 'layer3'\. Layers: 1, 3"):
        maps["normgrad", "layer3"]
    with pytest.raises(GradlightError, match=r"no maps of method 'grad_cam'\. Methods: normgrad, linear_approx"):
        maps["grad_cam", "3"]
    with pytest.raises(GradlightError, match="indexed by method and layer"):
        maps["normgrad"]  # type: ignore[index]


def test_upsampling_is_bilinear_with_half_pixel_centres(maps: gl.SaliencyMaps) -> None:
    raw = maps["normgrad", "3"]
    wanted = nn.functional.interpolate(raw, (224, 224), mode="bilinear", align_corners=False)
    assert torch.equal(maps.upsampled("normgrad", "3"), wanted)
    assert maps.upsampled("normgrad", "3", (5, 7)).shape == (2, 2, 5, 7)


def test_combinations_lie_beside_their_layers_and_are_not_combined_again(maps: gl.SaliencyMaps) -> None:
    combined = maps.combine()
    assert combined.layers == ["product(linear)"]
    both = maps.joined(combined)
    assert both.layers == ["1", "3", "product(linear)"]
    assert torch.equal(both.combine()["normgrad", "product(linear)"], combined["normgrad", "product(linear)"])
    assert both.combine({"1": 1, "3": 2}, "sum").layers == ["sum(given)"]


def test_only_maps_of_the_same_images_are_joined(maps: gl.SaliencyMaps) -> None:
    model = gl.classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    other = gl.explain(model, torch.rand(2, 3, 8, 8), 0, layers="0")
    with pytest.raises(GradlightError, match="same images and targets"):
        maps.joined(other)


def test_maps_are_not_joined_with_those_of_another_step_nor_over_one_another(maps: gl.SaliencyMaps) -> None:
    with pytest.raises(GradlightError, match="Both results have maps of normgrad at 1, normgrad at 3"):
        maps.joined(maps)
    stepped = gl.SaliencyMaps({}, {}, maps.images, maps.targets, maps.size, replace(maps.origin, meta={"lr": 0.1}))
    with pytest.raises(GradlightError, match="the same weights and meta step"):
        maps.joined(stepped)


def test_a_file_gives_back_the_same_maps(maps: gl.SaliencyMaps, tmp_path: Path) -> None:
    both = maps.joined(maps.combine())
    both.save(tmp_path / "maps.h5")
    back = gl.load(tmp_path / "maps.h5")
    assert back.pairs == both.pairs
    assert all(torch.equal(back[key], both[key]) for key in both.pairs)
    assert (back.targets, back.images, back.size, back.layer_info) == (
        both.targets,
        both.images,
        both.size,
        both.layer_info,
    )
    assert back.origin == both.origin
    assert torch.equal(back.combine()["normgrad", "product(linear)"], both["normgrad", "product(linear)"])


def test_to_moves_every_map(maps: gl.SaliencyMaps) -> None:
    moved = maps.to("meta")
    assert {moved[key].device.type for key in moved.pairs} == {"meta"}


def test_a_result_shows_itself_as_a_picture(maps: gl.SaliencyMaps) -> None:
    shown = maps._repr_png_()
    assert shown.startswith(PNG)
    assert Image.open(io.BytesIO(shown)).size[0] > 300


def test_the_figure_says_target_score_method_and_layer(maps: gl.SaliencyMaps) -> None:
    drawing = maps.plot([0])
    titles = [axis.get_title() for axis in drawing.axes]
    score = f"{maps.targets[0][0].score:.4g}"
    assert f"cat\nclass, score {score}" in titles
    assert {"normgrad\n1", "normgrad\n3", "linear_approx\n3"} <= set(titles)
    assert len([axis for axis in drawing.axes if axis.get_label() == "<colorbar>"]) == 2, "one signed, one not"


def test_the_map_is_drawn_where_the_pixels_lie(maps: gl.SaliencyMaps) -> None:
    panel = next(axis for axis in maps.plot([0]).axes if axis.get_title() == "normgrad\n3")
    photo, drawn = panel.get_images()
    left, top, right, bottom = maps.images[0].view.box
    assert tuple(photo.get_extent()) == (0, 90, 60, 0)
    assert tuple(drawn.get_extent()) == (left, right, bottom, top)
    assert right - left == pytest.approx(bottom - top), "a centre crop is square"


def test_a_photo_that_is_gone_is_drawn_grey(maps: gl.SaliencyMaps, photo: Path, tmp_path: Path) -> None:
    maps.save(tmp_path / "maps.h5")
    away = photo.rename(photo.with_suffix(".away"))
    try:
        picture = gl.load(tmp_path / "maps.h5").plot([0]).axes[0].get_images()[0].get_array()
    finally:
        away.rename(photo)
    assert np.unique(np.asarray(picture)).tolist() == [190]


def test_methods_and_layers_can_be_chosen_for_the_figure(maps: gl.SaliencyMaps) -> None:
    titles = [axis.get_title() for axis in maps.plot([1], methods=["normgrad"], layers=["3"]).axes]
    assert [title for title in titles if "\n3" in title or "\n1" in title] == ["normgrad\n3", "normgrad\n3"]


def test_a_notebook_shows_a_glimpse_of_what_is_too_much(maps: gl.SaliencyMaps) -> None:
    names = [f"layer{n}" for n in range(100)]
    many = {("normgrad", name): maps["normgrad", "3"] for name in names}
    about = {name: replace(maps.layer_info["3"], depth=depth) for depth, name in enumerate(names)}
    large = gl.SaliencyMaps(many, about, maps.images, maps.targets, maps.size, maps.origin)
    shown = large._repr_png_()
    assert shown is not None
    assert Image.open(io.BytesIO(shown)).size[0] < 2000
    rows = [row * 200 for row in maps.targets]
    huge = gl.SaliencyMaps(many, about, maps.images, rows, maps.size, maps.origin)
    assert huge._repr_png_() is None


def test_too_many_panels_are_refused(maps: gl.SaliencyMaps) -> None:
    with pytest.raises(GradlightError, match="holds 1 to 600 panels"):
        maps.plot([0] * 100)
    with pytest.raises(GradlightError, match="0 rows"):
        maps.plot([])


def test_one_image_is_a_sample_for_a_data_loader(maps: gl.SaliencyMaps, photo: Path) -> None:
    sample = maps[1]
    assert (sample["path"], sample["labels"], sample["index"].tolist()) == (str(photo), ["cat", "eel"], [0, 2])
    assert sample["score"].tolist() == pytest.approx([target.score for target in maps.targets[1]])
    assert torch.equal(sample["maps"]["normgrad/3"], maps["normgrad", "3"][1])
    assert [each["path"] for each in maps] == [str(photo)] * 2
    (batch,) = DataLoader(maps, batch_size=2)
    assert torch.equal(batch["maps"]["linear_approx/1"], maps["linear_approx", "1"])
    with pytest.raises(GradlightError, match="no image 2: there are 2, counted from 0"):
        maps[2]
    with pytest.raises(GradlightError, match="images by number"):
        maps[1.5]  # type: ignore[call-overload]


def test_some_images_are_maps_too(maps: gl.SaliencyMaps) -> None:
    for part in (maps[1:], maps[[-1]], maps[np.array([1])]):
        assert len(part) == 1
        assert part.images == maps.images[1:]
        assert part.targets == maps.targets[1:]
        assert torch.equal(part["normgrad", "3"], maps["normgrad", "3"][1:])
    turned = maps[[1, 0]]
    assert torch.equal(turned["normgrad", "3"], maps["normgrad", "3"].flip(0))
    assert repr(maps[:0]).startswith("SaliencyMaps(0 images")


def test_every_map_brought_to_one_size(maps: gl.SaliencyMaps) -> None:
    resized = maps.resized((20, 30))
    assert torch.equal(resized["normgrad", "3"], maps.upsampled("normgrad", "3", (20, 30)))
    assert resized.layer_info["3"].stride == pytest.approx((224 / 20, 224 / 30))


def test_images_with_different_numbers_of_targets(maps: gl.SaliencyMaps, photo: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    model = gl.classifier(network, labels=["cat", "dog", "eel"])
    ragged = gl.explain(model, [photo, photo], [["cat", "eel"], ["dog"]], methods="normgrad", layers="1")
    ragged = ragged.joined(ragged.combine())
    assert repr(ragged).startswith("SaliencyMaps(2 images × 1 to 2 targets;")
    alone = gl.explain(model, [photo], "dog", methods="normgrad", layers="1")
    wanted = alone["normgrad", "1"][0]
    torch.testing.assert_close(
        ragged.rows("normgrad", "1", image=1), wanted, rtol=0, atol=1e-5 * float(wanted.abs().max())
    )
    ragged.save(tmp_path / "ragged.h5")
    back = gl.load(tmp_path / "ragged.h5")
    assert back.targets == ragged.targets
    assert torch.equal(back.rows("normgrad", "product(linear)"), ragged.rows("normgrad", "product(linear)"))
    assert len(ragged.plot().axes) >= 9
