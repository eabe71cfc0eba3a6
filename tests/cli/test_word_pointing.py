"""The word pointing game: distances, questions, and that every word is counted once for every map."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest
import torch

import gradlight as gl
from gradlight.data.scenes.generator import COLOURS, KINDS
from gradlight.data.scenes.grammar import WORDS
from gradlight.errors import GradlightError
from gradlight.evaluation.metrics import COMBINATIONS, distance
from gradlight.evaluation.word_pointing import TOLERANCE, WordHits, word_pointing, word_questions
from gradlight.models.captioner import Captioner, CaptionNetwork, Vocabulary
from gradlight.models.captioner.decoder import SpecialTokens
from gradlight.models.captioner.encoder import ResNetPlan, build_resnet
from gradlight.models.captioner.rnn_decoders import FC
from gradlight.models.preprocessing import Preprocessing

SEEDS = range(5)
METHODS = ["selective_normgrad", "normgrad"]
LAYERS = ["layer1", "layer2"]


def captioner(side: int = 160) -> Captioner:
    torch.manual_seed(0)
    rows = len(WORDS) + 1
    decoder = FC(SpecialTokens(0, 0), features=16, embed=6, size=7, rows=rows, columns=rows)
    network = CaptionNetwork(build_resnet(ResNetPlan("basic", (1, 1), (8, 16), 8, "padded")), decoder)
    words = Vocabulary(dict(enumerate(WORDS, 1)), SpecialTokens(0, 0))
    return Captioner(network.eval(), words, Preprocessing(size=(side, side), resize=(side, side)))


@lru_cache(maxsize=1)
def played() -> dict[tuple[str, str], WordHits]:
    return word_pointing(captioner(), SEEDS, METHODS)


def by_hand(model: Captioner, layer: str, method: str) -> WordHits:
    """Play with one layer alone, one word of a scene at a time, and bring its place into the scene."""
    hits = WordHits()
    for asked in word_questions(SEEDS, 160):
        for text, mask in zip(asked.texts, asked.masks, strict=True):
            found = gl.explain(model, asked.scene.image, text, methods=method, layers=layer)
            values = found.upsampled(method, layer)[0, 0].numpy()
            row, column = np.unravel_index(values.argmax(), values.shape)
            x, y = found.images[0].view.to_photo([column + 0.5, row + 0.5]).tolist()
            hits.add(distance(mask, int(y), int(x)), TOLERANCE * 160)
    return hits


def test_the_distance_is_the_smallest_of_all() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        mask = random.random((12, 17)) < 0.05
        mask[random.integers(12), random.integers(17)] = True
        row, column = random.uniform(-2, 15, 2)
        wanted = min(np.hypot(r - row, c - column) for r in range(12) for c in range(17) if mask[r, c])
        assert distance(mask, row, column) == pytest.approx(wanted)
        inside = np.argwhere(mask)[0]
        assert distance(mask, int(inside[0]), int(inside[1])) == 0


def test_hits_are_counted_exactly_and_nearly() -> None:
    hits = WordHits()
    for far in (0.0, 0.5, 3.0, 3.01):
        hits.add(far, 3.0)
    assert hits == WordHits(total=4, exact=1, near=3)


def test_the_tolerance_is_that_of_the_game() -> None:
    assert pytest.approx(15 / 224) == TOLERANCE


def test_every_colour_and_shape_of_the_first_caption_is_asked() -> None:
    for question in word_questions(SEEDS, 160):
        words = question.scene.captions[0].split()
        naming = [at for at, word in enumerate(words) if word in COLOURS or word in KINDS]
        assert question.texts == tuple(" ".join([*words[:at], f"[{words[at]}]", *words[at + 1 :]]) for at in naming)
        for at, mask in zip(naming, question.masks, strict=True):
            things = [thing for thing in question.scene.objects if words[at] in (thing.colour, thing.kind)]
            assert any(mask is thing.mask for thing in things)
        pairs = zip(question.masks[::2], question.masks[1::2], strict=True)
        assert all(colour is shape for colour, shape in pairs)


def test_every_word_is_counted_once_for_each_map() -> None:
    asked = sum(len(question.texts) for question in word_questions(SEEDS, 160))
    found = played()
    assert {hits.total for hits in found.values()} == {asked}
    combined = [f"{how}({weights})" for weights, how in COMBINATIONS]
    assert set(found) == {
        *((method, layer) for method in METHODS for layer in [*LAYERS, *combined]),
        ("baseline", "centre"),
        ("baseline", "random"),
    }
    assert all(0 <= hits.exact <= hits.near <= asked for hits in found.values())
    assert any(hits.near > hits.exact for hits in found.values())


def test_the_hits_of_a_layer_are_those_of_its_maps_alone() -> None:
    model = captioner()
    for method in METHODS:
        assert played()[method, "layer2"] == by_hand(model, "layer2", method)


def test_the_same_seeds_give_the_same_hits() -> None:
    assert word_pointing(captioner(), SEEDS, METHODS) == played()
    some = word_pointing(captioner(), SEEDS, "normgrad", layers="layer1")
    assert some["normgrad", "layer1"] == played()["normgrad", "layer1"]


def test_groups_of_every_size_are_played() -> None:
    """More scenes than go together, whose captions have two and four words to ask for."""
    seeds = range(40)
    found = word_pointing(captioner(), seeds, "normgrad", layers="layer2")
    asked = sum(len(question.texts) for question in word_questions(seeds, 160))
    assert {hits.total for hits in found.values()} == {asked}


def test_a_place_in_the_pixels_is_a_place_in_the_scene() -> None:
    """The network may see the scene smaller than it is."""
    model = captioner(64)
    found = word_pointing(model, SEEDS, "normgrad", layers="layer1")
    assert found["normgrad", "layer1"] == by_hand(model, "layer1", "normgrad")


def test_the_centre_is_on_an_object_that_lies_there() -> None:
    seeds = range(12)
    masks = [mask for question in word_questions(seeds, 160) for mask in question.masks]
    wanted = sum(bool(mask[79:81, 79:81].all()) for mask in masks)
    assert wanted > 0
    assert word_pointing(captioner(), seeds, "normgrad", layers="layer2")["baseline", "centre"].exact >= wanted


def test_there_must_be_seeds() -> None:
    with pytest.raises(GradlightError, match="no scene to play with: give at least one seed"):
        word_pointing(captioner(), [], METHODS)


def test_progress_is_shown_only_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    word_pointing(captioner(), [1], "normgrad", layers="layer2")
    assert capsys.readouterr().err == ""
    word_pointing(captioner(), [1], "normgrad", layers="layer2", progress=True)
    assert "1/1" in capsys.readouterr().err
