"""Real photos with human captions through an untrained ResNet101 captioner: sizes, views, words, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import gradlight as gl
from gradlight.data.datasets.captions import CaptionedPhoto, read_captions
from gradlight.models.captioner import Captioner, CaptionNetwork
from gradlight.models.captioner.encoder import RESNET101, FeaturePooling, build_resnet
from gradlight.models.captioner.rnn_decoders import FC
from gradlight.models.captioner.vocabulary import build_vocabulary, tokenize
from gradlight.models.preprocessing import IMAGENET, OriginalSize

pytestmark = pytest.mark.slow

FIGURE_14 = ["layer3.0", "layer4.0", "layer4"]


@pytest.fixture(scope="module")
def photos(shared: Path) -> list[CaptionedPhoto]:
    folder = shared / "coco_captions"
    return list(read_captions(folder / "captions.json", folder / "images").photos)


@pytest.fixture(scope="module")
def model(photos: list[CaptionedPhoto]) -> Captioner:
    torch.manual_seed(0)
    words = build_vocabulary((text for photo in photos for text in photo.captions), threshold=2)
    rows = len(words) + 1
    decoder = FC(words.special_tokens, features=2048, embed=32, size=32, rows=rows, columns=rows)
    encoder = build_resnet(RESNET101)
    for name, parameter in encoder.named_parameters():
        if name.endswith("bn3.weight"):
            # Untrained and in eval mode, 33 blocks would otherwise double the activations 33 times.
            torch.nn.init.constant_(parameter, 0.2)
    return Captioner(CaptionNetwork(encoder, decoder, FeaturePooling(14)).eval(), words, IMAGENET)


def test_every_photo_gets_a_caption(model: Captioner, photos: list[CaptionedPhoto]) -> None:
    captions = model.caption([photo.path for photo in photos], beam_size=2)
    assert len(captions) == len(photos) == 32
    for caption in captions:
        assert caption.tokens == model.vocabulary.encode(caption.text)
        assert caption.log_prob < 0


def test_human_captions_are_explained_word_by_word(
    model: Captioner, photos: list[CaptionedPhoto], tmp_path: Path
) -> None:
    written = [(photo, text) for photo in photos for text in photo.captions]
    photo, text = next((p, text) for p, text in written if all(word in model.vocabulary for word in tokenize(text)))
    maps = gl.explain(model, photo.path, text, words=True, layers=FIGURE_14, methods=["selective_normgrad", "normgrad"])
    words = [target.label for target in maps.targets[0]]
    assert words == tokenize(text)
    sizes = {"layer3.0": 14, "layer4.0": 7, "layer4": 7}
    for method, layer in maps.pairs:
        assert maps[method, layer].shape == (1, len(words), sizes[layer], sizes[layer])
        assert maps[method, layer].isfinite().all()
        assert (maps[method, layer].amax((2, 3)) > 0).all()
    whole = gl.explain(model, photo.path, text, layers="layer4")
    found = maps.images[0]
    laid = found.view.lay(whole["selective_normgrad", "layer4"][0, 0])
    assert laid.shape == (found.height, found.width)
    maps.joined(maps.combine()).save(tmp_path / "maps.h5")
    again = gl.load(tmp_path / "maps.h5")
    assert [target.label for target in again.targets[0]] == words
    assert torch.equal(again["normgrad", "layer4"], maps["normgrad", "layer4"])


def test_photos_of_their_own_size(model: Captioner, photos: list[CaptionedPhoto]) -> None:
    own = Captioner(model.network, model.vocabulary, OriginalSize())
    sizes = {}
    for photo in photos:
        maps = gl.explain(own, photo.path, photo.captions[0].split()[0], layers="layer4") if len(sizes) < 2 else None
        if maps is not None:
            sizes[maps.size] = maps["selective_normgrad", "layer4"].shape[2:]
            assert maps.size == (maps.images[0].height, maps.images[0].width)
    assert len(sizes) == 2
    assert all(shape == (-(-height // 32), -(-width // 32)) for (height, width), shape in sizes.items())
    with pytest.raises(gl.GradlightError, match="different sizes"):
        gl.explain(own, [photo.path for photo in photos], "a", layers="layer4", batch_size=1)
