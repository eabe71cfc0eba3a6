"""A captioner from the outside: photos and tensors in, captions out, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.models.captioner import Caption, Captioner, CaptionNetwork, Phrase, Vocabulary
from gradlight.models.captioner.decoder import Decoder, SpecialTokens
from gradlight.models.captioner.encoder import ResNetPlan, build_resnet
from gradlight.models.captioner.rnn_decoders import FC, Att2in2
from gradlight.models.preprocessing import OriginalSize, Preprocess, Preprocessing

WORDS = ["a", "red", "blue", "star", "ring", "above", "below", "and", "small", "large", "cross", "UNK"]
SMALL = Preprocessing(size=(48, 48), resize=(48, 48))
SPECIALS = SpecialTokens(0, 0, 12)


def decoder_of(kind: str, features: int = 16) -> Decoder:
    sizes = {"embed": 6, "size": 7, "rows": 13, "columns": 13, "max_length": 9}
    if kind == "fc":
        return FC(SPECIALS, features=features, **sizes)
    return Att2in2(SPECIALS, location_features=features, attention=5, **sizes)


def captioner(kind: str = "fc", preprocess: Preprocess = SMALL, end: float = 2.5, **options: Any) -> Captioner:
    """Make a captioner of random weights that says several words, and mostly ends by itself."""
    torch.manual_seed(23)
    decoder = decoder_of(kind)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.uniform_(-1.5, 1.5)
        decoder.logit.bias[0] += end - 0.5
    network = CaptionNetwork(build_resnet(ResNetPlan("basic", (1, 1), (8, 16), 8, "none")), decoder)
    return Captioner(network.double().eval(), Vocabulary(dict(enumerate(WORDS, 1)), SPECIALS), preprocess, **options)


def photos(*sizes: tuple[int, int]) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


PHOTOS = photos((60, 40), (48, 48), (60, 40), (33, 70))


def texts(captions: list[Caption]) -> list[str]:
    return [caption.text for caption in captions]


def consistent(model: Captioner, caption: Caption, pixels: Tensor) -> None:
    """Hold a caption's fields against each other, and its numbers against the network's own."""
    assert caption.text == str(caption) == " ".join(caption.words)
    assert [WORDS.index(word) + 1 for word in caption.words] == caption.tokens
    assert len(caption.word_log_probs) == len(caption.tokens)
    with torch.no_grad():
        steps = model.network(pixels[None], torch.tensor([caption.tokens], dtype=torch.long))[0]
    wanted = [float(steps[t, token]) for t, token in enumerate(caption.tokens)]
    assert caption.word_log_probs == pytest.approx(wanted, rel=1e-9, abs=1e-12)
    end = float(steps[-1, 0]) if caption.ended and model.count_end else 0.0
    assert caption.log_prob == pytest.approx(sum(wanted) + end, rel=1e-9)


@pytest.mark.parametrize("kind", ["fc", "att2in2"])
@pytest.mark.parametrize("beam_size", [1, 3])
@pytest.mark.parametrize("count_end", [True, False])
def test_the_fields_of_a_caption_fit_together(kind: str, beam_size: int, count_end: bool) -> None:
    for end in (2.5, -20.0):
        model = captioner(kind, end=end, count_end=count_end)
        pixels = model.pixels(PHOTOS)
        captions = model.caption(PHOTOS, beam_size=beam_size)
        for caption, image in zip(captions, pixels, strict=True):
            consistent(model, caption, image)
            if end < 0:
                assert (len(caption.words), caption.ended) == (9, False)


def test_the_best_beam_is_no_less_likely_than_the_greedy_caption() -> None:
    model = captioner()
    greedy, beams = (model.caption(PHOTOS, beam_size=size) for size in (1, 200))
    assert all(b.log_prob >= g.log_prob - 1e-9 for g, b in zip(greedy, beams, strict=True))
    assert any(caption.ended and len(caption.words) > 1 for caption in greedy)


@pytest.mark.parametrize("kind", ["fc", "att2in2"])
def test_photos_of_different_sizes_keep_theirs(kind: str) -> None:
    model = captioner(kind, OriginalSize())
    together = model.caption(PHOTOS)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (pixels,) = model.pixels(photo)
        assert tuple(pixels.shape) == (3, photo.height, photo.width)
        (alone,) = model.caption(photo)
        assert alone.text == caption.text
        assert alone.log_prob == pytest.approx(caption.log_prob, rel=1e-9)
        consistent(model, caption, pixels)


def test_more_photos_than_go_in_at_once() -> None:
    model = captioner()
    many = [PHOTOS[number % 4] for number in range(35)]
    assert texts(model.caption(many)) == [texts(model.caption(PHOTOS))[number % 4] for number in range(35)]
    pixels = model.pixels(PHOTOS).repeat(9, 1, 1, 1)
    assert texts(model.caption(pixels)) == texts(model.caption(PHOTOS)) * 9


def test_photos_come_in_every_form(tmp_path: Path) -> None:
    model = captioner()
    PHOTOS[0].save(tmp_path / "one.png")
    (wanted,) = model.caption(PHOTOS[0])
    pixels = model.pixels(PHOTOS[0])
    for form in (
        tmp_path / "one.png",
        str(tmp_path / "one.png"),
        np.asarray(PHOTOS[0]),
        pixels,
        pixels[0],
        [PHOTOS[0]],
    ):
        assert model.caption(form) == [wanted]
    assert model.caption([]) == []
    with pytest.raises(GradlightError, match=r"none\.png"):
        model.caption(tmp_path / "none.png")


def test_a_captioner_of_doubles_takes_pixels_of_floats() -> None:
    model = captioner()
    pixels = model.pixels(PHOTOS)
    wanted = texts(model.caption(pixels))
    model.network.double()
    assert texts(model.caption(pixels)) == texts(model.caption(PHOTOS)) == wanted


def test_the_options_of_the_search_are_passed_on() -> None:
    model = captioner(end=-20.0)
    assert {len(caption.words) for caption in model.caption(PHOTOS, max_length=3)} == {3}
    with torch.no_grad():
        model.network.decoder.logit.bias[12] += 6
    assert all("UNK" in caption.words for caption in model.caption(PHOTOS))
    assert not any("UNK" in caption.words for caption in model.caption(PHOTOS, suppress_unk=True))
    for options, message in (
        ({"beam_size": 0}, "beam_size must be a whole number"),
        ({"max_length": 0}, "max_length must be a whole number"),
        ({"max_length": 2.0}, "max_length must be a whole number"),
        ({"length_penalty": "best"}, "length_penalty='best' is unknown"),
    ):
        with pytest.raises(GradlightError, match=message):
            model.caption(PHOTOS, **options)


def test_a_length_penalty_lengthens() -> None:
    model = captioner()
    with torch.no_grad():
        model.network.decoder.logit.bias[0] += 3
    short, long = (model.caption(PHOTOS, 20, length_penalty=penalty) for penalty in (None, "wu_20"))
    assert sum(len(caption.words) for caption in long) > sum(len(caption.words) for caption in short)


def test_saying_nothing_is_a_caption_too() -> None:
    model = captioner(end=50.0)
    (caption,) = model.caption(PHOTOS[0])
    assert (caption.text, caption.words, caption.tokens, caption.ended) == ("", [], [], True)
    assert caption.log_prob == pytest.approx(0, abs=1e-9)


def test_it_speaks_in_eval_mode_and_is_left_as_it_was() -> None:
    model = captioner()
    wanted = model.caption(PHOTOS)
    model.network.train()
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    assert model.caption(PHOTOS) == wanted
    assert all(module.training for module in model.network.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.network.parameters())


# A caption's parts


def said() -> Caption:
    model = captioner(end=-20.0)
    return model.caption(PHOTOS[0], max_length=5)[0]


def test_parts_of_a_caption() -> None:
    caption = said()

    def part(phrase: Phrase) -> tuple[list[int], int, int]:
        return list(phrase.tokens), phrase.start, phrase.stop

    assert part(caption.span(1, 3)) == (caption.tokens, 1, 3)
    assert part(caption.words[2].phrase) == (caption.tokens, 2, 3)
    assert part(caption.phrase(" ".join(caption.words).upper())) == (caption.tokens, 0, 5)
    last = caption.phrase(" ".join(caption.words[3:]))
    assert caption.words[last.start : last.stop] == caption.words[3:]


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (2, 1), (-1, 2), (0, 6), (5, 6)])
def test_a_span_must_lie_in_the_caption(start: int, stop: int) -> None:
    with pytest.raises(GradlightError, match=f"has the words 0 to 4; there is none from {start} to before {stop}"):
        said().span(start, stop)


@pytest.mark.parametrize("text", ["zebra", "", "  "])
def test_a_phrase_must_stand_in_the_caption(text: str) -> None:
    with pytest.raises(GradlightError, match=r"is not in the caption .*one after another"):
        said().phrase(text)


# The model as the road sees it


def test_its_layers_are_the_encoders() -> None:
    model = captioner()
    assert [layer.name for layer in model.stages()] == ["layer1", "layer2"]
    names = [layer.name for layer in model.layers()]
    assert names[:2] == ["input", "conv1"]
    assert not any("decoder" in name or "encoder" in name for name in names)
    assert model.size == (48, 48)
    assert captioner(preprocess=OriginalSize(size=(64, 80))).size == (64, 80)


def test_it_describes_itself_in_json() -> None:
    model = captioner("att2in2", record={"project": "none"}, name="mine")
    described = json.loads(json.dumps(model.describe()))
    assert (described["name"], described["kind"], described["project"]) == ("mine", "captioner", "none")
    assert (described["decoder"], described["words"]) == ("Att2in2", 12)
    assert described["reading"] == {"grid": None, "boxes": False}
    assert described["preprocessing"]["size"] == [48, 48]
    assert model.labels == WORDS


def test_an_encoder_of_another_width_is_refused() -> None:
    words = Vocabulary(dict(enumerate(WORDS, 1)), SPECIALS)
    encoder = build_resnet(ResNetPlan("basic", (1, 1), (8, 16), 8, "none"))
    for kind in ("fc", "att2in2"):
        with pytest.raises(GradlightError, match=r"cannot read this encoder's features .*'fc': 16.*was trained with"):
            Captioner(CaptionNetwork(encoder, decoder_of(kind, 20)), words, SMALL)


def test_what_to_do_with_unknown_words_is_one_of_two() -> None:
    with pytest.raises(GradlightError, match='unk=\'skip\' is unknown; give "error" or "allow"'):
        captioner(unk="skip")
    assert captioner(unk="allow").objective("a zebra").target_specs[0][0].tokens == (1, 12)
    with pytest.raises(GradlightError, match="Not among the 12 words"):
        captioner().objective("a zebra")


@pytest.mark.parametrize("source", [3, None, nn.Linear(2, 2)])
def test_what_is_no_captioner_is_told(source: Any) -> None:
    with pytest.raises(GradlightError, match=f"{type(source).__name__} is no captioner"):
        gl.captioner(source)
