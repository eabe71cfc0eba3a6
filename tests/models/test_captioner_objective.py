"""The objective of a captioner against one word at a time, of one image, with the log-softmax written out."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from gradlight.errors import GradlightError
from gradlight.models.captioner import Captioner, CaptionNetwork, Vocabulary
from gradlight.models.captioner.decoder import Decoder, SpecialTokens
from gradlight.models.captioner.encoder import FeaturePooling, ResNetPlan, build_resnet
from gradlight.models.captioner.objective import CaptionObjective
from gradlight.models.captioner.rnn_decoders import FC, Att2in2, ShowTell, SoftAttention
from gradlight.models.captioner.search import DecodingOptions
from gradlight.models.objective import Targets
from gradlight.models.preprocessing import Preprocessing

WORDS = ["a", "red", "blue", "star", "ring", "above", "below", "and", "small", "large", "cross", "UNK"]
ONE = SpecialTokens(0, 0, 12)
THREE = SpecialTokens(13, 14, 12)
SIZES = {"embed": 6, "size": 7, "rows": 13, "columns": 13}

FAMILIES: dict[str, tuple[Callable[[], Decoder], FeaturePooling]] = {
    "fc": (lambda: FC(ONE, features=16, **SIZES), FeaturePooling()),
    "show_tell": (lambda: ShowTell(ONE, features=16, layers=2, **SIZES), FeaturePooling()),
    "att2in2": (lambda: Att2in2(ONE, location_features=16, attention=5, **SIZES), FeaturePooling()),
    "boxes": (lambda: Att2in2(ONE, location_features=21, attention=5, norm=2, **SIZES), FeaturePooling(3, boxes=True)),
    "soft": (
        lambda: SoftAttention(THREE, location_features=16, attention=5, embed=6, size=7, rows=15, columns=15),
        FeaturePooling(2),
    ),
}

PIXELS = torch.rand(3, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
TEXTS = [
    ["a red star", "a ring", "a small blue cross above a large red ring"],
    ["blue", "a red star above a ring and a cross", "a red star"],
    ["below below", "UNK", "a ring and a star"],
]


def captioner(family: str, **options: Any) -> Captioner:
    make, reading = FAMILIES[family]
    torch.manual_seed(1)
    decoder = make()
    for parameter in decoder.parameters():
        torch.nn.init.uniform_(parameter, -1, 1)
    network = CaptionNetwork(build_resnet(ResNetPlan("basic", (1, 1), (8, 16), 8, "none")), decoder, reading)
    words = Vocabulary(dict(enumerate(WORDS, 1)), decoder.special_tokens)
    return Captioner(network.double().eval(), words, Preprocessing(size=(48, 48), resize=(48, 48)), **options)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> Captioner:
    return captioner(request.param)


def one_by_one(model: Captioner, image: Tensor, text: str) -> list[float]:
    """Give the log-probability of each word of a caption of one image, and of END at last."""
    decoder, words = model.network.decoder, model.vocabulary
    numbers = [WORDS.index(word) + 1 for word in text.split()]
    found = []
    with torch.no_grad():
        state, before = decoder.start(model.network.features(image[None])), words.special_tokens.bos
        for token in [*numbers, words.special_tokens.end]:
            state = decoder.advance(state, torch.tensor([before]))
            logits = decoder.logit.weight @ state["h"][0] + decoder.logit.bias
            found.append(float(logits[token] - logits.exp().sum().log()))
            before = token
    return found


def asked(objective: CaptionObjective, pixels: Tensor = PIXELS) -> tuple[Tensor, Tensor, Targets]:
    with torch.no_grad():
        outputs = objective.outputs(pixels)
        targets = objective.choose(outputs)
        return objective.scores(outputs, targets), objective.losses(outputs, targets), targets


def assert_close(found: Tensor, wanted: list[list[float]]) -> None:
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-10, atol=1e-10)


def test_several_captions_of_different_lengths_for_each_image(model: Captioner) -> None:
    scores, losses, targets = asked(model.objective(TEXTS))
    wanted = [[sum(one_by_one(model, PIXELS[i], text)) for text in row] for i, row in enumerate(TEXTS)]
    assert_close(scores, wanted)
    assert_close(-losses, wanted)
    assert [[target.score for target in row] for row in targets] == scores.tolist()
    assert [[target.label for target in row] for row in targets] == TEXTS
    assert {target.kind for row in targets for target in row} == {"caption"}


def test_end_can_be_left_out(model: Captioner) -> None:
    rows = CaptionObjective(
        model.network,
        model.vocabulary,
        model.objective(TEXTS).target_specs,
        decoding=DecodingOptions(),
        count_end=False,
    )
    scores, losses, _ = asked(rows)
    wanted = [[sum(one_by_one(model, PIXELS[i], text)[:-1]) for text in row] for i, row in enumerate(TEXTS)]
    assert_close(scores, wanted)
    assert_close(-losses, wanted)


@pytest.mark.parametrize("count_end", [True, False])
def test_the_switch_of_a_captioner_reaches_its_objectives(count_end: bool) -> None:
    model = captioner("fc", count_end=count_end)
    steps = one_by_one(model, PIXELS[0], "a red star")
    for objective in (model.objective("a red star"), model.objective("a red star").rows(0, 1, 3)):
        assert_close(asked(objective, PIXELS[:1])[0], [[sum(steps if count_end else steps[:-1])]])
        assert objective.describe()["count_end"] is count_end


def test_the_words_and_end_are_the_caption(model: Captioner) -> None:
    text = "a small star above a ring"
    scores, losses, targets = asked(model.word_objective(text))
    steps = [one_by_one(model, image, text) for image in PIXELS]
    assert_close(scores, [row[:-1] for row in steps])
    assert_close(-losses, [[sum(row)] * 6 for row in steps])
    assert [(target.kind, target.index, target.label) for target in targets[0]] == [
        ("word", index, word) for index, word in enumerate(text.split())
    ]
    whole = asked(model.objective(text))[0]
    torch.testing.assert_close(
        scores.sum(1) + torch.tensor([row[-1] for row in steps], dtype=torch.float64), whole[:, 0]
    )


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [("a [red star] above a ring", 1, 3), ("[a red] star", 0, 2), ("a red [star]", 2, 3), ("[a] ring", 0, 1)],
)
def test_a_phrase_is_the_sum_of_its_words(text: str, start: int, stop: int) -> None:
    for family in ("show_tell", "soft"):
        model = captioner(family)
        scores, losses, targets = asked(model.objective(text))
        plain = text.replace("[", "").replace("]", "")
        steps = [one_by_one(model, image, plain) for image in PIXELS]
        assert_close(scores, [[sum(row[start:stop])] for row in steps])
        assert_close(-losses, [[sum(row)] for row in steps])
        assert (targets[0][0].label, targets[0][0].index) == (" ".join(plain.split()[start:stop]), start)
        words = asked(model.word_objective(text))[0]
        torch.testing.assert_close(words.sum(1), scores[:, 0])
        assert words.shape == (3, stop - start)


def limited(family: str, length: int, count_end: bool = True) -> Captioner:
    """Make a captioner that hardly ever says END and stops at so many tokens."""
    model = captioner(family, decoding=DecodingOptions(max_length=length), count_end=count_end)
    with torch.no_grad():
        model.network.decoder.logit.bias[model.vocabulary.special_tokens.end] -= 20
    return model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_end_does_not_count_where_the_length_limit_cut_the_caption(family: str) -> None:
    model = limited(family, 4)
    scores, losses, targets = asked(model.objective())
    said = [row[0].label for row in targets]
    assert [len(text.split()) for text in said] == [4, 4, 4]
    wanted = [[sum(one_by_one(model, image, text)[:-1])] for image, text in zip(PIXELS, said, strict=True)]
    assert_close(scores, wanted)
    assert_close(-losses, wanted)
    given, _, _ = asked(model.objective([[text] for text in said]))
    assert (given < scores - 1).all(), "the same words as a given text end, and END is unlikely"


def test_a_caption_of_its_own_remembers_that_it_was_cut() -> None:
    model = limited("fc", 3)
    captions = model.caption(PIXELS, max_length=3)
    assert not any(caption.ended for caption in captions)
    scores, losses, _ = asked(model.objective(captions))
    assert_close(scores, [[caption.log_prob] for caption in captions])
    assert_close(-losses, [[caption.log_prob] for caption in captions])


def test_the_words_of_a_cut_caption_have_its_loss_however_they_are_asked() -> None:
    model = limited("fc", 3)
    (caption,) = model.caption(PIXELS[:1], max_length=3)
    wanted = asked(model.word_objective(caption), PIXELS[:1])[1]
    assert_close(-wanted, [[caption.log_prob] * 3])
    torch.testing.assert_close(asked(model.objective(caption.words), PIXELS[:1])[1], wanted)
    torch.testing.assert_close(asked(model.objective(caption.span(0, 2)), PIXELS[:1])[1], wanted[:, :1])


def test_a_generated_caption_that_ends_counts_end() -> None:
    model = captioner("fc")
    with torch.no_grad():
        model.network.decoder.logit.bias[model.vocabulary.special_tokens.end] += 20
    scores, losses, targets = asked(model.objective())
    ends = [one_by_one(model, image, "") for image in PIXELS]
    assert [row[0].label for row in targets] == ["", "", ""]
    assert_close(scores, ends)
    assert_close(-losses, ends)
    with pytest.raises(GradlightError, match=r"is empty \(END comes first\)"):
        asked(model.word_objective())


def test_a_batch_is_its_images_alone(model: Captioner) -> None:
    for objective in (model.objective(TEXTS), model.word_objective("a red star")):
        whole = asked(objective)
        for i in range(3):
            alone = asked(objective.rows(i, i + 1, 3), PIXELS[i : i + 1])
            torch.testing.assert_close(alone[0][0], whole[0][i], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(alone[1][0], whole[1][i], rtol=1e-10, atol=1e-10)
            assert [target.label for target in alone[2][0]] == [target.label for target in whole[2][i]]


def test_rows_must_fit_the_images() -> None:
    objective = captioner("fc").objective(["a ring", "blue"])
    assert [row[0].text for row in objective.rows(1, 2, 2).target_specs] == ["blue"]
    for count in (1, 3):
        with pytest.raises(GradlightError, match=f"2 targets for {count} images"):
            objective.rows(0, 1, count)
    with pytest.raises(GradlightError, match="2 targets for 3 images"):
        asked(objective)


def test_scores_of_captions_of_different_word_counts_form_no_tensor() -> None:
    objective = captioner("fc").word_objective(["a ring", "blue", "a red star"])
    with pytest.raises(GradlightError, match="1 to 3 targets each"):
        objective(PIXELS)


def test_each_caption_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = captioner("fc")
    objective = model.objective([["a [red] star", "a red [star]", "a red star", "blue"], ["blue"] * 4, ["a ring"] * 4])
    shapes = []
    run = model.network.decoder.log_probs

    def counted(features: Any, tokens: Tensor) -> Tensor:
        shapes.append(tuple(tokens.shape))
        return run(features, tokens)

    with torch.no_grad():
        outputs = objective.outputs(PIXELS)
        targets = objective.choose(outputs)
        monkeypatch.setattr(model.network.decoder, "log_probs", counted)
        scores = objective.scores(outputs, targets)
    assert shapes == [(4, 3)]
    assert scores.shape == (3, 4)


def test_the_whole_road_in_one_call(model: Captioner) -> None:
    objective = model.objective(TEXTS)
    with torch.no_grad():
        assert_close(objective(PIXELS), asked(objective)[0].tolist())
        assert_close(objective.loss(PIXELS), asked(objective)[1].mean(1).tolist())  # type: ignore[arg-type]


def test_the_losses_gradient_is_that_of_the_whole_caption(model: Captioner) -> None:
    pixels = PIXELS[:1].clone().requires_grad_()
    objective = model.objective("a [red] star")
    outputs = objective.outputs(pixels)
    (of_loss,) = torch.autograd.grad(objective.losses(outputs, objective.choose(outputs)).sum(), pixels)
    tokens = torch.tensor([[1, 2, 4]])
    log_probs = model.network(pixels, tokens)[0]
    end = model.vocabulary.special_tokens.end
    (wanted,) = torch.autograd.grad(-sum(log_probs[t, token] for t, token in enumerate([1, 2, 4, end])), pixels)
    torch.testing.assert_close(of_loss, wanted, rtol=1e-9, atol=1e-14)
    assert of_loss.abs().max() > 0


def test_it_describes_itself_in_json() -> None:
    model = captioner("att2in2", decoding=DecodingOptions(2, 9, True, "avg"))
    described = model.word_objective([["a [red] star"], None]).describe()
    assert json.loads(json.dumps(described)) == {
        "kind": "caption",
        "targets": [[{"text": "a [red] star", "words": True}], [{"text": "", "words": True}]],
        "count_end": True,
        "beam_size": 2,
        "max_length": 9,
        "suppress_unk": True,
        "length_penalty": "avg",
    }
