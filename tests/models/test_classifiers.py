from __future__ import annotations

import hashlib
import json
import urllib.error
import urllib.request
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from gradlight.errors import GradlightError
from gradlight.models.class_objective import ClassLabels, ClassObjective, find_logits, parse
from gradlight.models.classifiers import Classifier, Prediction, classifier
from gradlight.models.preprocessing import IMAGENET, Preprocessing
from gradlight.models.scenes import classifier as scenes
from gradlight.models.view import View
from gradlight.models.zoo import torchvision_network

RNG = np.random.default_rng(0)
HWC = RNG.integers(0, 256, (70, 90, 3), dtype=np.uint8)
SMALL = Preprocessing(size=(32, 32), resize=(32, 32))


class Small(nn.Module):
    """A network with dropout and batch normalisation, so that training mode would show."""

    def __init__(self, classes: int = 5, answer: Any = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, classes)
        self.answer = answer or (lambda logits: logits)

    def forward(self, x: Tensor) -> Any:
        return self.answer(self.head(self.drop(self.norm(self.conv(x)).relu().mean((2, 3)))))


def small(classes: int = 5, answer: Any = None) -> Small:
    torch.manual_seed(0)
    return Small(classes, answer)


def steps(picture: Image.Image) -> Tensor:
    return SMALL(picture)[0]


def state_of(network: nn.Module) -> list[Any]:
    flags = [module.training for module in network.modules()]
    grads = [(p.requires_grad, p.grad) for p in network.parameters()]
    return [{k: v.clone() for k, v in network.state_dict().items()}, flags, grads]


# --- reading ---------------------------------------------------------------------------------------------------------


def test_paths_pictures_and_arrays_give_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    picture = Image.fromarray(HWC)
    picture.save(path)
    model = classifier(small())
    pixels, photos = model.read([str(path), path, picture, HWC])
    assert torch.equal(pixels, IMAGENET(picture)[0].expand(4, 3, 224, 224))
    assert [photo.path for photo in photos] == [str(path), str(path), "", ""]
    assert photos[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert photos[2].sha256 == photos[3].sha256 == hashlib.sha256(b"90x70\n" + HWC.tobytes()).hexdigest()
    for photo in photos:
        assert (photo.width, photo.height) == (90, 70)
        assert photo.view == IMAGENET(picture)[1]
        assert photo.picture().tobytes() == HWC.tobytes()
    assert torch.equal(model.pixels(path), pixels[:1])


def test_an_upright_photo_whatever_its_orientation(tmp_path: Path) -> None:
    sideways = Image.fromarray(HWC).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "phone.png"
    sideways.save(path, exif=exif)
    model = classifier(small(), preprocess=steps)
    with Image.open(path) as opened:
        pixels, photos = model.read([path, opened, HWC])
    assert torch.equal(pixels, pixels[:1].expand_as(pixels))
    assert [photo.view.orientation for photo in photos] == [6, 6, 1]
    assert [(photo.width, photo.height) for photo in photos] == [(90, 70)] * 3


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_pictures_of_any_mode(mode: str) -> None:
    image = Image.new(mode, (40, 30)) if mode in ("LAB", "PA", "RGBa") else Image.fromarray(HWC).convert(mode)
    _, (photo,) = classifier(small()).read([image])
    assert photo.picture().mode == "RGB"
    assert photo.picture().size == image.size


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    assert classifier(small()).read([clear])[1][0].picture().getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "value"), [("I", 25700), ("I;16", 25700), ("F", 100.0)])
def test_sixteen_bits_and_floats_are_read_as_from_a_file(mode: str, value: float) -> None:
    _, (photo,) = classifier(small()).read([Image.new(mode, (20, 20), value)])
    assert photo.picture().getpixel((3, 3)) == (100, 100, 100)


@pytest.mark.parametrize(("mode", "value"), [("I", 70000), ("F", 300.0), ("La", 0)])
def test_pictures_without_a_known_range_are_refused(mode: str, value: float) -> None:
    with pytest.raises(GradlightError, match=r"This Pillow image cannot be used: .* not supported"):
        classifier(small()).read([Image.new(mode, (20, 20), value)])


def test_a_picture_given_in_memory_is_kept_as_it_was() -> None:
    image = Image.fromarray(HWC)
    _, (photo,) = classifier(small()).read([image])
    image.paste("red", (0, 0, 90, 70))
    assert photo.picture().tobytes() == HWC.tobytes()


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (HWC.astype(np.float32) / 255, r"HWC uint8; this one is \[70, 90, 3\] float32.*astype"),
        (HWC.transpose(2, 0, 1), "channels first"),
        (HWC[..., 0], "HWC uint8"),
        (HWC[..., :2], "HWC uint8"),
        (HWC[:0], "HWC uint8"),
        (3, "int is not an image"),
        (None, "NoneType is not an image"),
        ("no such file.jpg", "no such file.jpg"),
    ],
)
def test_what_is_no_image_is_refused(image: Any, words: str) -> None:
    with pytest.raises(GradlightError, match=words):
        classifier(small()).read([image])


def test_no_images_at_all() -> None:
    with pytest.raises(GradlightError, match="no images"):
        classifier(small()).read([])
    with pytest.raises(GradlightError, match="no images"):
        classifier(small()).predict([])


def test_a_tensor_passes_through() -> None:
    model = classifier(small())
    given = torch.stack([IMAGENET(Image.fromarray(HWC))[0]] * 2)
    pixels, photos = model.read(given)
    assert pixels is given
    assert photos[0].view == View.whole((224, 224), (224, 224))
    assert photos[0].path == ""
    error = IMAGENET(photos[0].picture().resize((224, 224)))[0]
    assert error.isfinite().all()
    again = np.asarray(photos[0].picture()).astype(int) - np.asarray(IMAGENET.denormalise(given[0])).astype(int)
    assert abs(again).max() == 0
    assert model.pixels(given[0]).shape == (1, 3, 224, 224)


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.zeros(2, 1, 8, 8), r"must be \[B,3,H,W\]"),
        (torch.zeros(8, 8), r"must be \[B,3,H,W\]"),
        (torch.zeros(0, 3, 8, 8), r"must be \[B,3,H,W\]"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "floating-point.*uint8"),
    ],
)
def test_other_tensors_are_refused(tensor: Tensor, words: str) -> None:
    with pytest.raises(GradlightError, match=words):
        classifier(small()).read(tensor)


def test_one_batch_has_one_size() -> None:
    model = classifier(small(), preprocess=lambda picture: torch.zeros(3, picture.height, picture.width))
    with pytest.warns(match="could not be measured"), pytest.raises(GradlightError, match=r"\[3, 70, 90\] for image 0"):
        model.read([HWC, HWC[:50]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_pixels_have_the_networks_dtype(dtype: torch.dtype) -> None:
    model = classifier(small().to(dtype), preprocess=steps)
    pixels = model.pixels([HWC])
    assert pixels.dtype == dtype
    assert model.pixels(torch.zeros(1, 3, 8, 8)).dtype == dtype
    scores = model.objective("top").eval()(pixels)
    assert scores.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_a_network_without_parameters() -> None:
    model = classifier(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), labels=["red", "green", "blue"])
    red = np.zeros((30, 30, 3), np.uint8)
    red[..., 0] = 255
    assert model.predict(red)[0][0].label == "red"


# --- the objective ---------------------------------------------------------------------------------------------------


def objective(target: Any, classes: int = 5, **options: Any) -> ClassObjective:
    return ClassObjective(
        small(classes).eval(), ClassLabels([f"c{i}" for i in range(classes)]), parse(target), **options
    )


PIXELS = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def test_scores_are_the_raw_logits_of_the_targets() -> None:
    asked = objective(["top", 2, "min"])
    logits = asked.network(PIXELS)
    chosen = asked.choose(asked.outputs(PIXELS))
    wanted = [int(logits[0].argmax()), 2, int(logits[2].argmin())]
    assert [row[0].index for row in chosen] == wanted
    assert [row[0].label for row in chosen] == [f"c{i}" for i in wanted]
    assert [row[0].kind for row in chosen] == ["class"] * 3
    assert [row[0].score for row in chosen] == [logits[i, k].item() for i, k in enumerate(wanted)]
    assert torch.equal(asked(PIXELS), logits[range(3), wanted].unsqueeze(1))


def test_top_n_is_the_ranking() -> None:
    asked = objective("top5")
    logits = asked.network(PIXELS)
    assert torch.equal(asked(PIXELS), logits.sort(1, descending=True).values)


def test_equal_logits_rank_by_index() -> None:
    asked = objective([["top3", "min"]])
    chosen = asked.choose(torch.zeros(1, 5))
    assert [target.index for target in chosen[0]] == [0, 1, 2, 4]


def test_the_loss_is_the_cross_entropy() -> None:
    asked, pixels = objective([[1, 3]]), PIXELS.double()
    asked.network.double()
    logits = asked.network(pixels)
    each = [functional.cross_entropy(logits, torch.full((3,), k), reduction="none") for k in (1, 3)]
    outputs = asked.outputs(pixels)
    assert torch.allclose(asked.losses(outputs, asked.choose(outputs)), torch.stack(each, 1), rtol=1e-12)
    assert torch.allclose(asked.loss(pixels), torch.stack(each, 1).mean(1), rtol=1e-12)


def test_the_loss_of_a_multi_label_network_is_binary_and_never_overflows() -> None:
    asked, pixels = objective([[1, 3]], multi_label=True), PIXELS.double()
    asked.network.double()
    logits = asked.network(pixels)[:, [1, 3]]
    wanted = functional.binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="none")
    outputs = asked.outputs(pixels)
    assert torch.allclose(asked.losses(outputs, asked.choose(outputs)), wanted, rtol=1e-12)
    assert asked.losses(torch.full((3, 5), -1e4), asked.choose(outputs)).isfinite().all()


def test_scores_and_losses_pass_gradients() -> None:
    asked = objective("top2")
    pixels = PIXELS.clone().requires_grad_()
    (asked(pixels).sum() + asked.loss(pixels).sum()).backward()
    assert pixels.grad is not None
    assert pixels.grad.abs().sum() > 0


def test_rows_are_those_images_targets() -> None:
    asked = objective([0, 1, 2, 3])
    assert asked.rows(1, 3, 4).target_specs == [[1], [2]]
    assert objective("c3").rows(1, 3, 4).target_specs == [["c3"]]
    with pytest.raises(GradlightError, match="4 targets for 5 images"):
        asked.rows(0, 2, 5)
    with pytest.raises(GradlightError, match="4 targets for 3 images"):
        asked(PIXELS)


def test_an_unknown_label_is_refused_before_the_network_runs() -> None:
    with pytest.raises(GradlightError, match="No class is called 'zebra'"):
        objective("zebra")


def test_the_description_is_json() -> None:
    record = objective([["c1", 2], ["top", "min"]]).describe()
    assert json.loads(json.dumps(record)) == record
    assert record["targets"] == [["c1", 2], ["top", "min"]]


def test_a_network_that_mixes_its_images_is_refused() -> None:
    model = classifier(small(answer=lambda logits: logits[:1]), labels=list("abcde"))
    with pytest.raises(GradlightError, match="1 rows of logits for 3 images"):
        model.objective(None)(PIXELS)


@dataclass
class Answer:
    logits: Tensor


LOGITS = torch.arange(6.0).reshape(2, 3)
MAPS = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("answer", "output"),
    [
        (LOGITS, None),
        ((MAPS, LOGITS, LOGITS + 1), None),
        ([torch.zeros(2, 3, dtype=torch.long), LOGITS], None),
        ({"features": LOGITS + 1, "logits": LOGITS}, None),
        (OrderedDict(out=LOGITS, aux=LOGITS + 1), None),
        ({"prediction": LOGITS, "maps": MAPS}, None),
        (Answer(LOGITS), None),
        (SimpleNamespace(logits=LOGITS, loss=None), None),
        ({"a": LOGITS + 1, "b": LOGITS}, "b"),
        ((LOGITS + 1, LOGITS), 1),
        ((LOGITS + 1, LOGITS), -1),
        (SimpleNamespace(scores=LOGITS), "scores"),
    ],
)
def test_logits_are_found(answer: Any, output: Any) -> None:
    assert torch.equal(find_logits(answer, output), LOGITS)


@pytest.mark.parametrize(
    ("answer", "output", "words"),
    [
        (MAPS, None, r"the network gave a float32 tensor \[2, 3, 4, 4\]"),
        ({"a": LOGITS, "b": LOGITS}, None, r"dict\('a': a float32 tensor \[2, 3\], 'b'"),
        ({"a": MAPS}, "logits", r"at output='logits'.*'a': a float32 tensor"),
        ((LOGITS,), 4, r"at output=4: the network gave tuple\(a float32"),
        ((MAPS, None), None, r"tuple\(a float32 tensor .*NoneType\)"),
        (LOGITS.long(), None, r"int64 tensor \[2, 3\]"),
        ("text", None, "the network gave str"),
        (SimpleNamespace(a=1), "b", "at output='b': the network gave SimpleNamespace"),
    ],
)
def test_an_answer_without_logits_says_what_was_found(answer: Any, output: Any, words: str) -> None:
    with pytest.raises(GradlightError, match=words):
        find_logits(answer, output)


def test_half_logits_become_float() -> None:
    assert find_logits(LOGITS.half()).dtype == torch.float32
    assert find_logits(LOGITS.double()).dtype == torch.float64


# --- the classifier of a module --------------------------------------------------------------------------------------


def test_a_module_is_left_as_it_is() -> None:
    network = small().train()
    network.conv.weight.requires_grad_(False)
    before = state_of(network)
    model = classifier(network, preprocess=steps)
    assert model.network is network
    predictions = model.predict([HWC, HWC[:50]], top=2)
    assert [len(row) for row in predictions] == [2, 2]
    assert len(model.labels) == 5
    for one, other in zip(before[0].items(), network.state_dict().items(), strict=True):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1])
    assert state_of(network)[1:] == before[1:]


@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_are_the_sorted_probabilities(multi_label: bool) -> None:
    network = small().double().eval()
    model = classifier(network, labels=list("abcde"), preprocess=steps, multi_label=multi_label)
    images = [HWC[i : i + 30] for i in range(35)]  # more than one chunk
    with torch.no_grad():
        logits = network(model.pixels(images))
    wanted = logits.sigmoid() if multi_label else logits.softmax(1)
    found = model.predict(images, top=9)
    assert len(found) == 35
    for row, probabilities in zip(found, wanted, strict=True):
        assert [p.index for p in row] == probabilities.argsort(descending=True).tolist()
        assert [p.probability for p in row] == pytest.approx([float(probabilities[p.index]) for p in row], rel=1e-9)
        assert all(p.label == "abcde"[p.index] for p in row)
    assert isinstance(found[0][0], Prediction)
    assert model.predict(HWC)[0] == model.predict([HWC], top=5)[0]


@pytest.mark.parametrize("top", [0, -1, 2.5, True, "3"])
def test_top_is_a_whole_number(top: Any) -> None:
    with pytest.raises(GradlightError, match="whole number"):
        classifier(small()).predict(HWC, top=top)


def test_labels_of_another_length_are_refused_at_the_first_run() -> None:
    model = classifier(small(), labels=["a", "b"])
    with pytest.raises(GradlightError, match="5 numbers per image, but there are 2 labels"):
        model.predict(HWC)


def test_labels_are_numbered_where_nobody_names_them() -> None:
    model = classifier(small(3))
    assert model.describe()["num_classes"] is None
    assert model.objective("class_2")(PIXELS).shape == (3, 1)
    assert model.labels == ["class_0", "class_1", "class_2"]
    assert model.describe()["num_classes"] == 3


def test_a_network_for_one_size_works_on_tensors_of_that_size() -> None:
    model = classifier(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 64, 7)))
    assert len(model.predict(torch.zeros(2, 3, 8, 8), top=7)[0]) == 7
    assert len(model.labels) == 7


@pytest.mark.parametrize("labels", ["abc", 3, [1, 2], [], [None], {"a": 1}])
def test_labels_are_a_list_of_names(labels: Any) -> None:
    with pytest.raises(GradlightError, match="labels= must be a list of names"):
        classifier(small(), labels=labels)


def test_a_modules_answer_can_be_named() -> None:
    network = small(answer=lambda logits: {"a": logits + 1, "b": logits}).eval()
    assert classifier(network, output="b", preprocess=steps).predict(HWC)[0][0].label.startswith("class_")
    with pytest.raises(GradlightError, match="output= names"):
        classifier(network, preprocess=steps).predict(HWC)


def test_layers_and_stages_and_sizes() -> None:
    model = classifier(small(), preprocess=steps)
    assert model.size == (32, 32)
    assert model.layers()[0].name == "input"
    assert model.layers()[0].size == (32, 32)
    assert "conv" in {layer.name for layer in model.layers((64, 64))}


def test_a_device_that_is_not_there() -> None:
    with pytest.raises(GradlightError, match="cannot go to device 'no-such-device'"):
        classifier(small(), device="no-such-device")
    assert next(classifier(small(), device="cpu").network.parameters()).device.type == "cpu"


def test_a_modules_checkpoint(tmp_path: Path) -> None:
    source = small()
    target = Small()
    torch.save({"state_dict": source.state_dict()}, tmp_path / "w.pth")
    assert classifier(target, checkpoint=tmp_path / "w.pth").network is target
    assert torch.equal(target.head.weight, source.head.weight)


# --- the zoos --------------------------------------------------------------------------------------------------------


def test_a_timm_network() -> None:
    model = classifier("timm/resnet18", pretrained=False, device="cpu")
    assert model.name == "timm/resnet18"
    assert model.labels[207] == "golden retriever"
    assert model.size == (224, 224)
    assert not any(module.training for module in model.network.modules())
    assert len(model.predict(HWC)[0]) == 5
    record = model.describe()
    assert json.loads(json.dumps(record)) == record
    assert (record["library"], record["version"], record["num_classes"]) == ("timm", timm.__version__, 1000)
    assert record["preprocessing"]["interpolation"] == "bicubic"
    with pytest.raises(GradlightError, match=r"could mean 134 \(crane\), 517 \(crane\)"):
        model.objective("crane")


def test_a_tag_chooses_timms_preprocessing() -> None:
    tags = [name for name in timm.list_pretrained("resnet18") if "." in name]
    model = classifier(f"timm/{tags[-1]}", pretrained=False, device="cpu")
    config = timm.get_pretrained_cfg(tags[-1])
    assert model.describe()["preprocessing"]["interpolation"] == config.interpolation
    with pytest.raises(GradlightError, match="no weights 'no_such' for resnet18; it has"):
        classifier("timm/resnet18.no_such", pretrained=False)


def test_a_torchvision_network() -> None:
    model = classifier("torchvision/resnet18", pretrained=False, device="cpu")
    assert model.labels[1] == "goldfish"
    assert model.describe()["preprocessing"]["resize"] == [256, 256]
    assert len(model.predict(HWC, top=3)[0]) == 3


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_heads(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    published = torchvision.models.get_model(name, weights=None, init_weights=False)
    torch.save(published.state_dict(), tmp_path / "w.pth")
    model = classifier(f"torchvision/{name}", checkpoint=tmp_path / "w.pth", device="cpu")
    assert model.network.transform_input is True
    model.network.double()
    pixels = torch.randn(1, 3, 96, 96, dtype=torch.float64)
    published.transform_input = True
    logits = published.double().eval()(pixels).detach()
    scale = float(logits.abs().max())
    torch.testing.assert_close(model.objective(3)(pixels).detach(), logits[:, 3:4], rtol=0, atol=1e-10 * scale)


def test_a_vision_transformer_is_of_the_size_of_its_preset() -> None:
    with torch.device("meta"):
        found = torchvision_network("vit_h_14", pretrained=False)
    assert found.preprocessing.size == (518, 518)
    assert found.network.image_size == 518


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_labels_make_the_head_and_a_checkpoint_fills_it(library: str, tmp_path: Path) -> None:
    model = classifier(f"{library}/resnet18", pretrained=False, labels=["cat", "dog", "owl"], device="cpu")
    assert model.network.fc.out_features == 3
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(model.network.state_dict(), path)
    loaded = classifier(f"{library}/resnet18", checkpoint=path, labels=["cat", "dog", "owl"], device="cpu")
    assert torch.equal(loaded.network.fc.weight, model.network.fc.weight)
    assert loaded.labels == ["cat", "dog", "owl"]
    with pytest.raises(GradlightError, match="give labels= the names of the file's 3 classes"):
        classifier(f"{library}/resnet18", checkpoint=path)
    with pytest.raises(GradlightError, match="know 1000 classes, labels= names 3"):
        classifier(f"{library}/resnet18", labels=["cat", "dog", "owl"])
    assert classifier(f"{library}/resnet18", pretrained=False, labels=[f"x{i}" for i in range(1000)]).labels[7] == "x7"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("timm/resnet5O", "timm has no image classifier 'resnet5O'.*'resnet50'"),
        ("torchvision/vgg_16", "torchvision has no image classifier 'vgg_16'.*'vgg16'"),
        ("torchvision/deeplabv3_resnet50", "no image classifier 'deeplabv3_resnet50'"),
        ("resnet50", "Did you mean 'timm/resnet50' or 'torchvision/resnet50'"),
        ("vgg16_bn", "'timm/vgg16_bn' or 'torchvision/vgg16_bn'"),
        ("resnet_5O", "Did you mean .*resnet"),
        ("tim/resnet50", "Did you mean .*timm/resnet50"),
        ("scene", "Did you mean 'scenes'"),
        ("timm/", "no classifier 'timm/'"),
        ("model.pth", "weights of your own network go into checkpoint="),
        (Small, "type is not a classifier"),
        (None, "NoneType is not a classifier"),
    ],
)
def test_unknown_sources(source: Any, words: str) -> None:
    with pytest.raises(GradlightError, match=words):
        classifier(source)


def test_a_timm_encoder_without_classes_asks_for_a_head() -> None:
    with pytest.raises(GradlightError, match="ends in features and has no classes"):
        classifier("timm/vit_small_patch14_dinov2", pretrained=False)


# --- downloads -------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No server answers, and the caches of both hubs are empty folders under this path."""

    def refuse(*args: Any, **options: Any) -> Any:
        raise urllib.error.URLError("no network in this test")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "torch"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    return tmp_path


@pytest.mark.parametrize("source", ["timm/resnet18", "torchvision/resnet18"])
def test_without_a_network_the_ways_out_are_named_at_once(source: str, offline: Path) -> None:
    with pytest.raises(GradlightError, match="could not be downloaded") as caught:
        classifier(source)
    for words in (source, "no network in this test", "checkpoint=PATH", "pretrained=False", '"scenes"'):
        assert words in str(caught.value)


def test_torchvisions_weights_are_read_from_its_own_cache(offline: Path) -> None:
    torch.manual_seed(3)
    source = torchvision.models.resnet18(weights=None)
    folder = offline / "torch" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / Path(torchvision.models.ResNet18_Weights.DEFAULT.url).name
    torch.save(source.state_dict(), file)
    model = classifier("torchvision/resnet18", device="cpu")
    assert torch.equal(model.network.fc.weight, source.fc.weight)
    assert model.describe()["pretrained"] is True
    file.write_bytes(b"damaged")
    with pytest.raises(GradlightError, match="could not be downloaded or read"):
        classifier("torchvision/resnet18", device="cpu")


def test_timms_weights_are_read_from_the_hubs_cache(offline: Path) -> None:
    torch.manual_seed(3)
    source = timm.create_model("resnet18")
    repository = timm.get_pretrained_cfg("resnet18").hf_hub_id
    folder = offline / "hf" / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0123abcd")
    (folder / "snapshots" / "0123abcd").mkdir(parents=True)
    safetensors.torch.save_file(source.state_dict(), folder / "snapshots" / "0123abcd" / "model.safetensors")
    model = classifier("timm/resnet18", device="cpu")
    assert torch.equal(model.network.fc.weight, source.fc.weight)
    assert model.labels[1] == "goldfish, Carassius auratus"


# --- the bundled one -------------------------------------------------------------------------------------------------


def test_the_scenes_classifier(tmp_path: Path) -> None:
    model = classifier("scenes", pretrained=False, device="cpu")
    assert isinstance(model, Classifier)
    assert model.multi_label
    assert model.size == (scenes.SIZE, scenes.SIZE)
    assert len(model.predict(HWC, top=3)[0]) == 3
    torch.save(model.network.state_dict(), tmp_path / "w.pth")
    again = classifier("scenes", checkpoint=tmp_path / "w.pth", device="cpu")
    assert again.weights_sha256() == model.weights_sha256()
    with pytest.raises(GradlightError, match="labels= names 2"):
        classifier("scenes", labels=["a", "b"])
