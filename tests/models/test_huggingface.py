"""Image classifiers of transformers against that library's own forward pass and its own image processors."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import hub_networks as hub
import huggingface_hub.constants
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional
from transformers import (
    CLIPImageProcessor,
    CLIPImageProcessorPil,
    ConvNextConfig,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    MobileViTImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.models.huggingface import ImageProcessor
from gradlight.models.measured_preprocessing import MeasuredPreprocessing
from gradlight.models.preprocessing import IMAGENET

LABELS = {0: "tench", 1: "hen", 2: "ouzel", 3: "axolotl", 4: "mamba"}
PHOTOS = hub.photos((90, 70), (64, 64), (50, 81))
SIDE = 64


def vit(**options: Any) -> Any:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            intermediate_size=48,
            image_size=SIDE,
            patch_size=8,
            id2label=LABELS,
            **options,
        )
    )


def swin() -> Any:
    return SwinForImageClassification(
        SwinConfig(
            image_size=SIDE, patch_size=4, embed_dim=12, depths=[2, 2], num_heads=[2, 2], window_size=4, id2label=LABELS
        )
    )


def convnext() -> Any:
    return ConvNextForImageClassification(
        ConvNextConfig(hidden_sizes=[8, 12, 16, 24], depths=[2, 2, 2, 2], id2label=LABELS)
    )


def resnet() -> Any:
    sizes = {"embedding_size": 8, "hidden_sizes": [8, 12, 16, 24], "depths": [2, 2, 2, 2]}
    return ResNetForImageClassification(ResNetConfig(**sizes, layer_type="basic", id2label=LABELS))


NETWORKS = {"vit": vit, "swin": swin, "convnext": convnext, "resnet": resnet}
PROCESSORS = {
    "squash": ViTImageProcessor(size={"height": 48, "width": 64}),
    "crop": CLIPImageProcessor(size={"shortest_edge": 60}, crop_size={"height": 47, "width": 48}),
    "pillow": CLIPImageProcessorPil(size={"shortest_edge": 60}, crop_size={"height": 47, "width": 48}),
    "two crops": DeiTImageProcessor(size={"height": 70, "width": 70}, crop_size={"height": 64, "width": 64}),
    "padded": CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 60, "width": 60}),
    "own steps": ConvNextImageProcessor(size={"shortest_edge": 64}),
    "colours turned": MobileViTImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}),
}


def made(kind: str) -> Any:
    torch.manual_seed(0)
    network = NETWORKS[kind]()
    return hub.spread(network) if kind in ("vit", "swin") else network.eval()


def logits_of(network: Any, pixels: Tensor) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(pixel_values=pixels).logits
    return logits


# --- networks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_a_folder_that_save_pretrained_wrote(kind: str, tmp_path: Path) -> None:
    network, steps = made(kind), ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    for part in (network, steps):
        part.save_pretrained(tmp_path)
    model = gl.classifier(f"transformers/{tmp_path}", device="cpu")
    pixels = model.pixels(PHOTOS)
    assert torch.equal(pixels, steps(images=PHOTOS, return_tensors="pt")["pixel_values"])
    assert model.labels == list(LABELS.values())
    model.network.double()
    network, pixels = network.double(), pixels.double()
    wanted = logits_of(network, pixels)
    objective = model.objective("hen")
    with torch.no_grad():
        torch.testing.assert_close(
            objective(pixels)[:, 0], wanted[:, 1], rtol=1e-9, atol=1e-12 * float(wanted.abs().max())
        )
        labels = torch.tensor([1, 1, 1])
        loss = network(pixel_values=pixels, labels=labels).loss
        assert float(objective.loss(pixels).mean()) == pytest.approx(float(loss), rel=1e-9)
    best = model.predict(PHOTOS, top=1)
    assert [row[0].index for row in best] == wanted.argmax(1).tolist()
    assert best[0][0].probability == pytest.approx(float(wanted.softmax(1)[0].max()), rel=1e-9)
    described = json.loads(json.dumps(model.describe()))
    assert (described["library"], described["num_classes"], described["pretrained"]) == ("transformers", 5, True)
    assert described["preprocessing"]["image_processor_type"] == "ViTImageProcessor"


@pytest.mark.parametrize("kind", list(NETWORKS))
def test_maps_at_the_stages_say_something_and_leave_all_as_it_was(kind: str) -> None:
    network = made(kind).double()
    model = gl.classifier(network, preprocess=ViTImageProcessor(size={"height": SIDE, "width": SIDE}))
    assert model.network is network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.train()
    maps = gl.explain(model, PHOTOS, "mamba", methods=["selective_normgrad", "gradient"])
    assert maps.layers
    for layer in maps.layers:
        found = maps["selective_normgrad", layer]
        assert found.isfinite().all()
        assert (found.amax((2, 3)) > found.amin((2, 3))).all()
    assert all(module.training for module in network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    for number, photo in enumerate(PHOTOS):
        alone = gl.explain(model, photo, "mamba")
        for layer in maps.layers:
            wanted = maps["selective_normgrad", layer][number]
            atol = 1e-10 * float(wanted.abs().max())
            torch.testing.assert_close(alone["selective_normgrad", layer][0], wanted, rtol=0, atol=atol)


def test_a_meta_step_moves_the_maps_and_comes_back() -> None:
    model = gl.classifier(made("vit"))
    before = model.weights_sha256()
    plain, moved = (gl.explain(model, PHOTOS[:1], "hen", meta=meta) for meta in (None, gl.Meta(lr=0.01)))
    layer = plain.layers[-1]
    assert not torch.equal(plain["selective_normgrad", layer], moved["selective_normgrad", layer])
    assert model.weights_sha256() == before


def test_a_cache_gives_the_same_maps(tmp_path: Path) -> None:
    model = gl.classifier(made("vit"))
    made_now, kept = (gl.explain(model, PHOTOS[:1], cache=tmp_path) for _ in range(2))
    assert list(tmp_path.rglob("*"))
    for layer in made_now.layers:
        assert torch.equal(made_now["selective_normgrad", layer], kept["selective_normgrad", layer])


def test_a_network_without_a_name_has_the_processor_of_its_kind() -> None:
    model = gl.classifier(made("vit"))
    wanted = ViTImageProcessor(size={"height": SIDE, "width": SIDE})
    assert model.labels == list(LABELS.values())
    assert model.size == (SIDE, SIDE)
    assert torch.equal(model.pixels(PHOTOS), wanted(images=PHOTOS, return_tensors="pt")["pixel_values"])
    assert gl.classifier(made("resnet")).preprocess.to_json()["image_processor_type"] == "ConvNextImageProcessor"


def test_a_network_of_a_folder_has_the_processor_of_the_folder(tmp_path: Path) -> None:
    steps = ViTImageProcessor(size={"height": SIDE, "width": SIDE}, image_mean=[0.1, 0.2, 0.3])
    for part in (made("vit"), steps):
        part.save_pretrained(tmp_path)
    network = ViTForImageClassification.from_pretrained(tmp_path)
    assert gl.classifier(network).preprocess.to_json()["image_mean"] == [0.1, 0.2, 0.3]
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    (tmp_path / "processor_config.json").unlink(missing_ok=True)
    assert gl.classifier(network).preprocess.to_json()["image_mean"] == [0.5, 0.5, 0.5]


def test_labels_of_ones_own(tmp_path: Path) -> None:
    for part in (made("vit"), PROCESSORS["squash"]):
        part.save_pretrained(tmp_path)
    source = f"transformers/{tmp_path}"
    assert gl.classifier(source, labels=list("abcde"), device="cpu").labels == list("abcde")
    with pytest.raises(GradlightError, match="know 5 classes, labels= names 2: such a head would be random"):
        gl.classifier(source, labels=["a", "b"])
    model = gl.classifier(source, labels=["a", "b"], pretrained=False, device="cpu")
    assert model.objective(None).outputs(torch.zeros(1, 3, SIDE, SIDE)).shape == (1, 2)
    torch.save(made("vit").state_dict(), tmp_path / "own.pth")
    with_file = gl.classifier(source, checkpoint=tmp_path / "own.pth", device="cpu")
    assert with_file.weights_sha256() == gl.classifier(source, device="cpu").weights_sha256()
    assert gl.classifier(made("vit"), labels=list("vwxyz")).labels == list("vwxyz")


def test_classes_that_do_not_exclude_each_other() -> None:
    network = hub.spread(vit(problem_type="multi_label_classification")).double()
    model = gl.classifier(network)
    pixels = model.pixels(PHOTOS)
    logits = logits_of(network, pixels)
    with torch.no_grad():
        found = model.objective("ouzel").loss(pixels)
    wanted = functional.binary_cross_entropy_with_logits(logits[:, 2], torch.ones(3).double(), reduction="none")
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-12)
    assert not gl.classifier(made("vit")).multi_label


# --- preprocessing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(PROCESSORS))
@pytest.mark.parametrize("size", [(90, 70), (71, 97), (300, 211)])
def test_pixels_are_the_processors_and_lie_where_they_are_measured(kind: str, size: tuple[int, int]) -> None:
    processor = PROCESSORS[kind]
    (photo,) = hub.photos(size)
    pixels, view = ImageProcessor(processor)(photo)
    assert torch.equal(pixels, processor(images=photo, return_tensors="pt")["pixel_values"][0])
    measured = MeasuredPreprocessing(lambda picture: processor(images=picture, return_tensors="pt")["pixel_values"][0])
    assert view.box == pytest.approx(measured(photo)[1].box, abs=0.02 * max(size))
    assert (view.photo, view.size) == (size, tuple(pixels.shape[1:]))


def test_the_common_steps_have_an_exact_view() -> None:
    (photo,) = hub.photos((120, 75))
    whole = ImageProcessor(PROCESSORS["squash"])(photo)[1]
    assert whole.box == (0, 0, 120, 75)
    # 120 x 75 becomes 96 x 60; of these, 24 … 72 and 6 … 53 are cut.
    assert ImageProcessor(PROCESSORS["crop"])(photo)[1].box == pytest.approx((30, 7.5, 90, 66.25))


def test_pixels_become_a_picture_again() -> None:
    steps = ImageProcessor(PROCESSORS["squash"])
    (photo,) = hub.photos((64, 48))
    found = steps.denormalise(steps(photo)[0])
    assert found.size == (64, 48)
    assert max(abs(int(a) - int(b)) for a, b in zip(found.tobytes(), photo.tobytes(), strict=True)) <= 1


def test_a_processor_is_a_preprocess_of_any_network() -> None:
    model = gl.classifier(
        torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten()), preprocess=PROCESSORS["crop"]
    )
    assert isinstance(model.preprocess, ImageProcessor)
    assert model.size == (47, 48)


# --- what is refused -------------------------------------------------------------------------------------------------


def test_without_the_library_one_is_told_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for make in (gl.classifier, gl.captioner):
        with pytest.raises(GradlightError, match=r'pip install "gradlight\[transformers\]"'):
            make("transformers/google/vit-base-patch16-224")
    assert gl.classifier("scenes", device="cpu").labels


def test_a_name_where_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    for make in (gl.classifier, gl.captioner):
        with pytest.raises(GradlightError, match=r"'no/such-network' is no folder, and the Hugging Face hub.*FOLDER"):
            make("transformers/no/such-network")


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="cannot be read as AutoConfig: "):
        gl.classifier(f"transformers/{tmp_path}")
    network = made("vit")
    network.vit.save_pretrained(tmp_path)
    PROCESSORS["squash"].save_pretrained(tmp_path)
    assert isinstance(network.vit, ViTModel)
    with pytest.raises(GradlightError, match=r"have no classifier\.bias, classifier\.weight: .* would be random"):
        gl.classifier(f"transformers/{tmp_path}")
    hub.saved("git", tmp_path / "git")
    with pytest.raises(GradlightError, match="cannot be read as AutoModelForImageClassification: ValueError"):
        gl.classifier(f"transformers/{tmp_path / 'git'}")


def test_a_network_that_takes_other_things_than_pixels_is_left_as_it_is() -> None:
    from transformers import GPT2Config, GPT2Model

    model = gl.classifier(GPT2Model(GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=2)))
    assert model.preprocess is IMAGENET


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for part in (made("vit"), ViTImageProcessor(size={"height": SIDE, "width": SIDE})):
        part.save_pretrained(tmp_path)
    capfd.readouterr()
    gl.classifier(f"transformers/{tmp_path}", device="cpu").predict(Image.new("RGB", (70, 70)))
    assert capfd.readouterr() == ("", "")
