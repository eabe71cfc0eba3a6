from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision import transforms
from torchvision.models import get_weight

from gradlight.errors import GradlightError, GradlightWarning
from gradlight.models import preprocessing
from gradlight.models.measured_preprocessing import MeasuredPreprocessing
from gradlight.models.preprocessing import IMAGENET, Preprocessing, picture_of
from gradlight.models.view import View
from gradlight.models.zoo import timm_preprocessing, torchvision_preprocessing

SIZES = [(301, 203), (199, 331), (640, 481), (97, 61), (225, 223), (256, 256)]
MEAN, STD = IMAGENET.mean, IMAGENET.std


def photo(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise with structure at every scale, so that a shift of one pixel shows."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8)).resize((width, height))
    noise = rng.integers(-40, 41, (height, width, 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + noise).clip(0, 255).astype(np.uint8))


def timm_config(name: str, **changes: Any) -> dict[str, Any]:
    return {**resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict()), **changes}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "weights",
    [
        "ResNet50_Weights.IMAGENET1K_V1",
        "ResNet50_Weights.IMAGENET1K_V2",
        "VGG16_Weights.IMAGENET1K_V1",
        "ConvNeXt_Tiny_Weights.IMAGENET1K_V1",
        "EfficientNet_B0_Weights.IMAGENET1K_V1",
        "MobileNet_V3_Large_Weights.IMAGENET1K_V2",
        "Inception_V3_Weights.IMAGENET1K_V1",
        "ViT_H_14_Weights.IMAGENET1K_SWAG_E2E_V1",
    ],
)
def test_pixels_equal_torchvisions_preset(weights: str, size: tuple[int, int]) -> None:
    preset = get_weight(weights).transforms()
    image = photo(*size)
    pixels, view = torchvision_preprocessing(preset)(image)
    assert torch.equal(pixels, preset(image))
    assert view.size == tuple(pixels.shape[1:])
    assert pixels.dtype == torch.float32


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("resnet50", {}),
        ("convnext_tiny", {}),
        ("vit_base_patch16_224", {}),
        ("tf_efficientnet_b0", {}),
        ("coat_lite_medium_384", {}),  # squash
        ("deepseek_vit_412m", {}),  # border
        ("resnet50", {"crop_mode": "squash"}),
        ("resnet50", {"crop_mode": "border"}),
        ("resnet50", {"crop_mode": "border", "crop_pct": 1.0}),
        ("resnet50", {"input_size": (3, 160, 256)}),
        ("resnet50", {"input_size": (3, 288, 192), "crop_mode": "border", "interpolation": "bilinear"}),
        ("resnet50", {"input_size": (3, 288, 192), "crop_mode": "squash", "interpolation": "lanczos"}),
    ],
)
def test_pixels_equal_timms_transform(name: str, changes: dict[str, Any], size: tuple[int, int]) -> None:
    try:
        config = timm_config(name, **changes)
    except AttributeError:
        pytest.skip(f"this timm does not know {name}")
    image = photo(*size)
    pixels, view = timm_preprocessing(config)(image)
    assert torch.equal(pixels, create_transform(**config, is_training=False)(image))
    assert view.size == tuple(pixels.shape[1:])


@pytest.mark.parametrize("fit", ["shorter", "longer", "squash"])
@pytest.mark.parametrize("size", [(2, 2), (1, 1), (20000, 1), (1, 2000), (3, 5000)])
def test_tiny_and_endless_photos_do_not_crash(size: tuple[int, int], fit: str) -> None:
    image = photo(*size)
    pixels, view = Preprocessing(fit=fit)(image)
    assert pixels.shape == (3, 224, 224)
    assert pixels.isfinite().all()
    assert view.photo == size


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(2000, 3), (5, 900), (301, 203), (1500, 40), (2, 2)])
def test_the_part_of_an_endless_photo_equals_the_whole_cropped(
    size: tuple[int, int], interpolation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, steps = photo(*size), Preprocessing(interpolation=interpolation)
    whole, view = steps(image)
    monkeypatch.setattr(preprocessing, "_LARGEST_WHOLE", 0)
    part, same_view = steps(image)
    grey = (part - whole).abs() * torch.tensor(STD).reshape(3, 1, 1) * 255
    assert grey.max() <= 1.01
    assert view == same_view


def test_the_view_is_where_the_crop_was_taken() -> None:
    _, view = Preprocessing(size=(224, 224), resize=(256, 256))(Image.new("RGB", (512, 1024)))
    assert view.box == (32.0, 288.0, 480.0, 736.0)
    assert view.photo == (512, 1024)
    _, padded = Preprocessing(size=(100, 200), resize=(100, 200), fit="longer")(Image.new("RGB", (50, 50)))
    assert padded.box == (-25.0, 0.0, 75.0, 50.0)


def test_orientation_is_noted() -> None:
    image = photo(30, 20)
    assert IMAGENET(image)[1].orientation == 1
    image.info["orientation"] = 6
    assert IMAGENET(image)[1].orientation == 6


def test_padding_has_the_fill_colour() -> None:
    steps = Preprocessing(size=(10, 30), resize=(10, 30), fit="longer", fill=(124, 116, 104))
    shown = np.asarray(steps.denormalise(steps(Image.new("RGB", (10, 10), "white"))[0]))
    assert (shown[:, :10] == (124, 116, 104)).all()
    assert (shown[:, 10:20] == 255).all()


@settings(max_examples=50, deadline=None)
@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.integers(1, 90), st.integers(1, 90)),
    st.tuples(st.integers(8, 90), st.integers(8, 90)),
    st.sampled_from(["shorter", "longer", "squash"]),
)
def test_a_point_goes_to_the_photo_and_back(
    size: tuple[int, int], crop: tuple[int, int], resize: tuple[int, int], fit: str
) -> None:
    _, view = Preprocessing(size=crop, resize=resize, fit=fit)(Image.new("RGB", size))
    points = torch.rand(4, 3, 2, dtype=torch.float64) * 100 - 20
    assert torch.allclose(view.to_pixels(view.to_photo(points)), points, atol=1e-6)
    corners = view.to_photo([[0, 0], [crop[1], crop[0]]])
    assert torch.allclose(corners.flatten(), torch.tensor(view.box, dtype=torch.float64), atol=1e-9)
    assert View.from_json(view.to_json()) == view


@pytest.mark.parametrize("record", [{}, {"photo": [1, 2], "box": [1, 2, 3], "size": [1, 1]}, None, {"photo": "no"}])
def test_a_broken_record_of_a_view_is_refused(record: Any) -> None:
    with pytest.raises(GradlightError, match="not a record of a view"):
        View.from_json(record)


@pytest.mark.parametrize("grid", [(7, 7), (1, 1), (3, 5), (60, 90)])
def test_a_map_of_the_whole_photo_is_laid_as_interpolate_does(grid: tuple[int, int]) -> None:
    maps = torch.randn(2, 3, *grid, dtype=torch.float64)
    laid = View.whole((41, 30), (224, 224)).lay(maps)
    wanted = torch.nn.functional.interpolate(maps, size=(30, 41), mode="bilinear", align_corners=False)
    assert torch.allclose(laid, wanted, atol=1e-12)


def test_a_map_is_laid_by_the_definition() -> None:
    view = View((20, 12), (-3.0, 2.5, 15.25, 10.0), (64, 64))
    map_ = torch.randn(4, 6, dtype=torch.float64)
    laid = view.lay(map_)
    assert laid.shape == (12, 20)
    for y in range(12):
        for x in range(20):
            column, row = view.to_pixels([x + 0.5, y + 0.5]).tolist()
            if not (0 <= column <= 64 and 0 <= row <= 64):
                assert laid[y, x].isnan()
                continue
            u = min(max(column / 64 * 6 - 0.5, 0), 5)
            v = min(max(row / 64 * 4 - 0.5, 0), 3)
            wanted = 0.0
            for i in range(4):
                for j in range(6):
                    wanted += float(map_[i, j]) * max(0, 1 - abs(v - i)) * max(0, 1 - abs(u - j))
            assert laid[y, x] == pytest.approx(wanted, abs=1e-12)


def test_a_mirrored_map_is_mirrored_back_and_numbers_become_floats() -> None:
    view = View((4, 1), (4.0, 0.0, 0.0, 1.0), (1, 4))
    assert view.lay(torch.tensor([[1, 2, 3, 4]])).tolist() == [[4.0, 3.0, 2.0, 1.0]]
    assert view.lay(torch.ones(1, 2, dtype=torch.float16)).dtype == torch.float16


def test_a_laid_pixel_lands_on_its_own_place_in_the_photo() -> None:
    image = Image.new("RGB", (300, 200))
    image.paste("white", (100, 50, 110, 60))
    pixels, view = IMAGENET(image)
    laid = view.lay(pixels.mean(0)).nan_to_num(-9)
    y, x = divmod(int(laid.argmax()), 300)
    assert 100 <= x < 110
    assert 50 <= y < 60
    bright = laid > (laid.max() + laid[laid > -9].min()) / 2
    rows, columns = torch.nonzero(bright, as_tuple=True)
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (100, 109, 50, 59)


def test_denormalise_undoes_the_normalisation() -> None:
    image = photo(224, 224)
    steps = Preprocessing(resize=(224, 224))
    assert steps.denormalise(steps(image)[0]).tobytes() == image.tobytes()
    strange = torch.full((3, 2, 2), math.nan)
    strange[:, 0, 0] = 1e9
    assert np.asarray(steps.denormalise(strange))[:, :, 0].tolist() == [[255, 0], [0, 0]]


def test_picture_of_rounds_and_clips() -> None:
    levels = torch.tensor([-1.0, 0.5, 2.0, 127.4 / 255]).reshape(1, 1, 4).expand(3, 1, 4)
    assert np.asarray(picture_of(levels))[0, :, 1].tolist() == [0, 128, 255, 127]


PRESETS = [
    Preprocessing(),
    Preprocessing(interpolation="bicubic", resize=(232, 232)),
    Preprocessing(fit="squash", resize=(224, 224), interpolation="bicubic"),
    Preprocessing(fit="longer", resize=(224, 224), fill=(124, 116, 104)),
    Preprocessing(size=(64, 96), resize=(64, 96)),
    Preprocessing(size=(32, 32), resize=(32, 32), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0)),
    Preprocessing(size=(384, 384), resize=(384, 384), interpolation="nearest"),
]


@pytest.mark.parametrize("size", [(500, 375), (97, 61), (224, 224), (61, 240), (1500, 1100)])
@pytest.mark.parametrize("steps", PRESETS)
def test_a_measured_view_is_within_half_a_pixel(steps: Preprocessing, size: tuple[int, int]) -> None:
    image = photo(*size)
    pixels, view = MeasuredPreprocessing(lambda picture: steps(picture)[0])(image)
    wanted, truth = steps(image)
    assert torch.equal(pixels, wanted)
    error = [abs(a - b) for a, b in zip(view.box, truth.box, strict=True)]
    assert max(error) <= 0.5
    assert (view.photo, view.size) == (truth.photo, truth.size)


def test_a_measured_mirror_and_bgr_and_grey() -> None:
    chain = transforms.Compose(
        [
            transforms.Grayscale(3),
            transforms.Resize(64),
            transforms.CenterCrop(64),
            transforms.RandomHorizontalFlip(p=1),
            transforms.ToTensor(),
            transforms.Lambda(lambda pixels: pixels.flip(0) * 255 - 100),
        ]
    )
    _, view = MeasuredPreprocessing(chain)(photo(200, 100))
    assert view.box == pytest.approx((150, 0, 50, 100), abs=0.5)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (transforms.RandomResizedCrop(64), "not give the same pixels each time"),
        (transforms.Compose([transforms.Resize((64, 64)), transforms.RandomRotation((30, 30))]), "more than scale"),
        (transforms.Compose([transforms.Resize((64, 64)), transforms.RandomRotation((90, 90))]), "more than scale"),
        (transforms.Lambda(lambda picture: Image.new("RGB", (8, 8))), "more than scale"),
    ],
)
def test_what_cannot_be_measured_is_laid_over_the_whole_photo(step: Any, reason: str) -> None:
    measured = MeasuredPreprocessing(transforms.Compose([step, transforms.ToTensor()]))
    with pytest.warns(GradlightWarning, match=reason):
        pixels, view = measured(photo(120, 90))
    assert view == View.whole((120, 90), tuple(pixels.shape[1:]))


def test_a_photo_too_small_to_measure_is_taken_whole() -> None:
    chain = transforms.Compose([transforms.Resize((8, 8)), transforms.ToTensor()])
    with pytest.warns(GradlightWarning, match="shorter than 16"):
        _, view = MeasuredPreprocessing(chain)(photo(400, 5))
    assert view.box == (0, 0, 400, 5)


def test_measuring_costs_five_runs_for_each_size() -> None:
    calls = []

    def function(picture: Image.Image) -> torch.Tensor:
        calls.append(picture.size)
        return transforms.functional.to_tensor(picture)

    measured = MeasuredPreprocessing(function)
    for _ in range(3):
        measured(photo(50, 40))
    assert len(calls) == 3 + 5


@pytest.mark.parametrize("result", [np.zeros((3, 4, 4)), torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4), None])
def test_a_callable_that_gives_no_pixels_is_an_error(result: Any) -> None:
    with pytest.raises(GradlightError, match=r"must bring an RGB Pillow image to a tensor \[3,H,W\]"):
        MeasuredPreprocessing(lambda picture: result)(photo(20, 20))


def test_measured_denormalises_by_black_and_white() -> None:
    steps = Preprocessing(size=(50, 40), resize=(50, 40), fit="squash")
    image = photo(40, 50)
    measured = MeasuredPreprocessing(lambda picture: steps(picture)[0])
    assert measured.denormalise(steps(image)[0]).tobytes() == image.tobytes()
    assert measured.size == (50, 40)


def test_a_measured_callable_describes_itself_without_addresses() -> None:
    assert "0x" not in MeasuredPreprocessing(lambda picture: picture).to_json()["callable"]
    assert MeasuredPreprocessing(transforms.ToTensor()).to_json() == {"callable": "ToTensor()"}
    assert IMAGENET.to_json()["resize"] == [256, 256]


def test_every_torchvision_preset_is_understood() -> None:
    for name in torchvision.models.list_models(module=torchvision.models):
        preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
        steps = torchvision_preprocessing(preset)
        assert [steps.size[0]] == preset.crop_size
