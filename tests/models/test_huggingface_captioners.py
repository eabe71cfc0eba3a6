"""Captioners of transformers against that library's own forward pass and its own search."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import hub_networks as hub
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

import gradlight as gl
from gradlight.cli.open_model import ModelOptions, open_captioner, open_model
from gradlight.errors import GradlightError
from gradlight.models.captioner import Caption, Captioner
from gradlight.models.captioner.hf_decoder import SubwordTokenizer, flatten_tokens

FAMILIES = list(hub.CAPTIONERS)
PHOTOS = hub.photos((40, 30), (32, 32), (50, 70))
TEXT = "a red stars above small ringlet"
NUMBERS = [4, 5, 7, 14, 9, 12, 8, 16]
GROUPS = [[0], [1], [2, 3], [4], [5], [6, 7]]


def captioner(family: str, **options: Any) -> Captioner:
    return gl.captioner(hub.captioner_of(family), tokenizer=hub.tokenizer(), device="cpu", **options)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def model(family: str) -> Captioner:
    """Give a captioner in float64: float32 would compare the rounding of the terms that it adds."""
    found = captioner(family)
    found.network.double()
    return found


def network_of(family: str) -> Any:
    """Give the library's own network with the same weights, in float64."""
    return hub.captioner_of(family).double()


def logits_of(network: Any, pixels: Tensor, tokens: list[int]) -> Tensor:
    """Give the library's own logits of a caption of each image, from BOS on."""
    said = torch.tensor([[hub.BOS, *tokens]]).expand(len(pixels), -1)
    name = "decoder_input_ids" if type(network).__name__ == "VisionEncoderDecoderModel" else "input_ids"
    with torch.no_grad():
        logits: Tensor = network(pixel_values=pixels, **{name: said}).logits
    return logits[:, -said.shape[1] :]


def log_probs_of(network: Any, pixels: Tensor, tokens: list[int]) -> Tensor:
    """Give the log-probabilities [B,T+1] of a caption's subwords and of END by the library's own forward pass."""
    found = functional.log_softmax(logits_of(network, pixels, tokens), -1)
    said = torch.tensor([*tokens, hub.END]).expand(len(pixels), -1)
    return found.gather(2, said[..., None])[..., 0]


# --- what they say ---------------------------------------------------------------------------------------------------


def test_greedy_captions_are_those_of_generate(family: str, model: Captioner) -> None:
    network, pixels = network_of(family), model.pixels(PHOTOS)
    wanted = network.generate(pixel_values=pixels, do_sample=False, max_new_tokens=9)
    found = model.caption(PHOTOS, beam_size=1, max_length=9)
    for caption, row in zip(found, wanted.tolist(), strict=True):
        said = row[1:]
        ended = hub.END in said
        assert flatten_tokens(caption.tokens) == (said[: said.index(hub.END)] if ended else said)
        assert caption.ended == ended
    assert len({caption.text for caption in found}) == len(PHOTOS)


def test_the_limit_is_the_librarys_own() -> None:
    for setting, length in (({}, 20), ({"max_length": 8}, 7), ({"max_new_tokens": 5}, 5)):
        network = hub.captioner_of("git")
        for name, value in setting.items():
            setattr(network.generation_config, name, value)
        assert gl.captioner(network, tokenizer=hub.tokenizer()).network.decoder.max_length == length


def test_a_beam_finds_nothing_less_likely(model: Captioner) -> None:
    greedy, beams = (model.caption(PHOTOS, beam_size=size, max_length=6) for size in (1, 40))
    assert all(b.log_prob >= g.log_prob - 1e-9 for g, b in zip(greedy, beams, strict=True))


def test_the_numbers_of_a_caption_are_the_librarys(family: str, model: Captioner) -> None:
    network, pixels = network_of(family), model.pixels(PHOTOS)
    for caption, image in zip(model.caption(PHOTOS, max_length=7), pixels, strict=True):
        row = log_probs_of(network, image[None], flatten_tokens(caption.tokens))[0]
        lengths = [len(word) for word in caption.tokens]
        wanted = [float(part.sum()) for part in row[:-1].split(lengths)]
        assert caption.word_log_probs == pytest.approx(wanted, rel=1e-9, abs=1e-12)
        assert caption.log_prob == pytest.approx(sum(wanted) + (float(row[-1]) if caption.ended else 0), rel=1e-9)
        assert len(caption.words) == len(caption.tokens) == len(caption.word_log_probs)
        assert caption.text == " ".join(caption.words)


def test_a_batch_says_what_its_images_say_alone(model: Captioner) -> None:
    together = model.caption(PHOTOS, max_length=8)
    for photo, caption in zip(PHOTOS, together, strict=True):
        (alone,) = model.caption(photo, max_length=8)
        assert alone.text == caption.text
        assert alone.log_prob == pytest.approx(caption.log_prob, rel=1e-9)


# --- what is asked of them -------------------------------------------------------------------------------------------


def test_a_texts_log_probability_is_the_librarys(family: str, model: Captioner) -> None:
    pixels = model.pixels(PHOTOS)
    rows = log_probs_of(network_of(family), pixels, NUMBERS)
    objective = model.objective(TEXT)
    with torch.no_grad():
        torch.testing.assert_close(objective(pixels)[:, 0], rows.sum(1))
        torch.testing.assert_close(objective.loss(pixels), -rows.sum(1))
        words = model.word_objective(TEXT)(pixels)
    wanted = torch.stack([rows[:, group].sum(1) for group in GROUPS], 1)
    torch.testing.assert_close(words, wanted)
    assert [target.label for target in model.word_objective(TEXT).choose(objective.outputs(pixels))[0]] == TEXT.split()


def test_the_librarys_own_loss_of_the_text(family: str, model: Captioner) -> None:
    network, pixels = network_of(family), model.pixels(PHOTOS[:1])
    if family == "vit-gpt2":
        network.config.decoder_start_token_id, network.config.pad_token_id = hub.BOS, hub.PAD
        given = {"labels": torch.tensor([[*NUMBERS, hub.END]])}
    else:
        said = torch.tensor([[hub.BOS, *NUMBERS, hub.END]])
        given = {"input_ids": said, "labels": said}
    with torch.no_grad():
        mean = network(pixel_values=pixels, **given).loss
        found = model.objective(TEXT).loss(pixels)
    # A library may take the loss in float32; every term is positive.
    assert float(found) == pytest.approx(float(mean) * (len(NUMBERS) + 1), rel=1e-6)


@pytest.mark.parametrize(
    ("text", "group"),
    [("a red [stars] above small ringlet", [2, 3]), ("a [red stars] above small [ringlet]", None)],
)
def test_a_phrase_is_its_words(model: Captioner, family: str, text: str, group: list[int] | None) -> None:
    pixels = model.pixels(PHOTOS)
    if group is None:
        with pytest.raises(GradlightError, match="one pair of brackets marks the phrase"):
            model.objective(text)
        return
    rows = log_probs_of(network_of(family), pixels, NUMBERS)
    objective = model.objective(text)
    with torch.no_grad():
        outputs = objective.outputs(pixels)
        targets = objective.choose(outputs)
        torch.testing.assert_close(objective.scores(outputs, targets)[:, 0], rows[:, group].sum(1))
        torch.testing.assert_close(objective.losses(outputs, targets)[:, 0], -rows.sum(1))
    assert (targets[0][0].label, targets[0][0].index, targets[0][0].kind) == ("stars", 2, "word")


def test_its_own_caption_and_its_parts(model: Captioner) -> None:
    said = zip(PHOTOS, model.caption(PHOTOS), strict=True)
    photo, caption = next((photo, caption) for photo, caption in said if set(caption.words) & set(hub.WORDS))
    pixels = model.pixels(photo)
    with torch.no_grad():
        outputs = model.objective().outputs(pixels)
        (own,) = model.objective().choose(outputs)[0]
        assert (own.label, own.kind) == (caption.text, "caption")
        assert own.score == pytest.approx(caption.log_prob, rel=1e-9)
        words = model.objective(caption.words)(pixels)[0]
        assert words.tolist() == pytest.approx(caption.word_log_probs, rel=1e-9, abs=1e-12)
        assert float(model.objective(caption)(pixels)) == pytest.approx(caption.log_prob, rel=1e-9)
        last = len(caption.words)
        part = model.objective(caption.span(last - 1, last))(pixels)
        assert float(part) == pytest.approx(caption.word_log_probs[-1], rel=1e-9, abs=1e-12)
        place, word = next((place, word) for place, word in enumerate(caption.words) if word in hub.WORDS)
        (named,) = model.objective(f"[{word}]").choose(outputs)[0]
        assert (named.label, named.index) == (word, place)
    maps = gl.explain(model, photo, words=True)
    assert [target.label for target in maps.targets[0]] == caption.words


def test_the_encoder_runs_once_and_so_does_the_decoder(model: Captioner) -> None:
    runs: list[str] = []
    network = model.network
    hooks = [
        network.encoder.register_forward_hook(lambda *_: runs.append("encoder")),
        next(iter(network.decoder.parts.values())).register_forward_hook(lambda *_: runs.append("decoder")),
    ]
    objective = model.objective([[TEXT, "a red", "a [red] star"]])
    with torch.no_grad():
        outputs = objective.outputs(model.pixels(PHOTOS))
        assert runs == ["encoder"]
        targets = objective.choose(outputs)
        runs.clear()
        objective.scores(outputs, targets)
    assert runs == ["decoder"]
    for hook in hooks:
        hook.remove()


def test_captions_of_different_lengths_do_not_touch_each_other(model: Captioner) -> None:
    pixels = model.pixels(PHOTOS)
    texts = [TEXT, "a ring", "blue"]
    together = model.objective([texts])
    with torch.no_grad():
        found = together(pixels)
        alone = torch.cat([model.objective(text)(pixels) for text in texts], 1)
    torch.testing.assert_close(found, alone)


# --- maps ------------------------------------------------------------------------------------------------------------


def layers_of(model: Captioner) -> list[str]:
    """Give the outputs of two blocks of the vision tower, and its own stages."""
    blocks = [layer.name for layer in model.layers() if layer.name.endswith(("layers.1", "layer.1", "layers.2"))]
    return [*dict.fromkeys([*blocks, *(layer.name for layer in model.stages())])]


def test_the_maps_of_the_words_add_up_to_that_of_the_caption(family: str) -> None:
    model = captioner(family, count_end=False)
    # The gradients that are added cancel to a sum of 1e-6 of their size, so float32 would compare its own rounding.
    model.network.double()
    layers = layers_of(model)
    whole = gl.explain(model, PHOTOS, TEXT, methods="gradient_sum", layers=layers)
    words = gl.explain(model, PHOTOS, TEXT, methods="gradient_sum", layers=layers, words=True)
    assert tuple(words["gradient_sum", layers[0]].shape) == (3, 6, 4, 4)
    for layer in layers:
        wanted = whole["gradient_sum", layer][:, 0]
        assert wanted.dtype == torch.float64
        assert float(wanted.abs().max()) > 0
        torch.testing.assert_close(words["gradient_sum", layer].sum(1), wanted, rtol=1e-9, atol=1e-13)


def test_maps_at_the_stages_say_something_and_leave_all_as_it_was(model: Captioner) -> None:
    network = model.network
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    flags = [parameter.requires_grad for parameter in network.parameters()]
    maps = gl.explain(model, PHOTOS, methods=["selective_normgrad", "normgrad", "grad_cam", "linear_approx"])
    assert maps.layers
    for layer in maps.layers:
        found = maps["selective_normgrad", layer]
        assert tuple(found.shape) == (3, 1, 4, 4)
        assert found.isfinite().all()
        assert (found.amax((2, 3)) > found.amin((2, 3))).all()
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(module.training for module in network.modules())
    network.eval()


def test_maps_of_a_batch_are_those_of_its_images(model: Captioner) -> None:
    layers = layers_of(model)
    together = gl.explain(model, PHOTOS, TEXT, layers=layers)
    for number, photo in enumerate(PHOTOS):
        alone = gl.explain(model, photo, TEXT, layers=layers)
        for layer in layers:
            torch.testing.assert_close(
                alone["selective_normgrad", layer][0],
                together["selective_normgrad", layer][number],
                rtol=0,
                atol=1e-10 * float(together["selective_normgrad", layer][number].abs().max()),
            )


def test_a_meta_step_moves_the_maps_and_comes_back(model: Captioner) -> None:
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    plain, moved = (gl.explain(model, PHOTOS[:1], TEXT, meta=meta) for meta in (None, gl.Meta(lr=0.01)))
    layer = plain.layers[-1]
    assert not torch.equal(plain["selective_normgrad", layer], moved["selective_normgrad", layer])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.network.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_weights_of_another_precision(family: str, dtype: torch.dtype) -> None:
    wanted = captioner(family)
    model = gl.captioner(hub.captioner_of(family).to(dtype), tokenizer=hub.tokenizer())
    assert model.pixels(PHOTOS).dtype == dtype
    with torch.no_grad():
        found = model.objective(TEXT)(model.pixels(PHOTOS))
        near = wanted.objective(TEXT)(wanted.pixels(PHOTOS))
    torch.testing.assert_close(found.float(), near, rtol=0.1 if dtype == torch.bfloat16 else 1e-4, atol=0)
    assert len(model.caption(PHOTOS, max_length=4)) == 3
    maps = gl.explain(model, PHOTOS[:1], TEXT)
    assert all(maps["selective_normgrad", layer].isfinite().all() for layer in maps.layers)


def test_a_cache_gives_the_same_maps(model: Captioner, tmp_path: Path) -> None:
    made, kept = (gl.explain(model, PHOTOS[:1], cache=tmp_path) for _ in range(2))
    assert len(list(tmp_path.rglob("*"))) > 0
    for layer in made.layers:
        assert torch.equal(made["selective_normgrad", layer], kept["selective_normgrad", layer])
    assert made.targets == kept.targets


# --- where they come from --------------------------------------------------------------------------------------------


def test_a_folder_that_save_pretrained_wrote(family: str, tmp_path: Path) -> None:
    network, folder = hub.saved(family, tmp_path / "net")
    model = gl.captioner(f"transformers/{folder}", device="cpu")
    pixels = model.pixels(PHOTOS)
    assert torch.equal(pixels, hub_pixels(PHOTOS))
    rows = log_probs_of(network, pixels, NUMBERS)
    with torch.no_grad():
        found = model.objective(TEXT)(pixels)[:, 0]
    torch.testing.assert_close(found, rows.sum(1), rtol=1e-5, atol=0)  # every term is negative
    described = json.loads(json.dumps(model.describe()))
    assert described["name"] == f"transformers/{folder}"
    assert (described["kind"], described["words"]) == ("captioner", len(hub.SUBWORDS))
    assert described["preprocessing"]["size"] == {"height": 32, "width": 32}
    assert not model.network.training
    untrained = gl.captioner(f"transformers/{folder}", device="cpu", pretrained=False)
    assert untrained.weights_sha256() != model.weights_sha256()
    again = gl.captioner(type(network).from_pretrained(folder))
    assert again.weights_sha256() == model.weights_sha256()
    assert torch.equal(again.pixels(PHOTOS), pixels)


def hub_pixels(pictures: list[Any]) -> Tensor:
    steps = ViTImageProcessor(size={"height": hub.SIDE, "width": hub.SIDE})
    pixels: Tensor = steps(images=pictures, return_tensors="pt")["pixel_values"]
    return pixels


def test_the_command_line_finds_them(tmp_path: Path) -> None:
    _, folder = hub.saved("blip", tmp_path)
    for name, words in ((f"captioner/transformers/{folder}", False), (f"captioner/transformers/{folder}", True)):
        model = open_model(ModelOptions(name, device="cpu"), words)
        assert isinstance(model, Captioner)
        assert model.name == f"transformers/{folder}"
    assert open_captioner(ModelOptions(f"transformers/{folder}", device="cpu")).vocabulary.special_tokens.end == hub.END


def test_a_network_stays_the_callers(family: str) -> None:
    network = hub.captioner_of(family)
    before = dict(network.named_parameters())
    model = gl.captioner(network, tokenizer=hub.tokenizer())
    assert {id(p) for p in model.network.parameters()} == {id(p) for p in before.values()}
    assert model.labels == list(hub.SUBWORDS)
    assert model.layers()[0].name == "input"
    assert all(name in dict(model.trunk.named_modules()) for name in (layer.name for layer in model.layers()[1:]))


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    network = hub.captioner_of("git")
    with pytest.raises(GradlightError, match=r"GitForCausalLM does not say where its tokenizer is\. Give tokenizer="):
        gl.captioner(network)
    with pytest.raises(GradlightError, match="tokenizer= is one of transformers"):
        gl.captioner(network, tokenizer=3)
    with pytest.raises(GradlightError, match="encoder= is for recurrent decoders"):
        gl.captioner(network, tokenizer=hub.tokenizer(), encoder="timm/resnet18")
    with pytest.raises(GradlightError, match="tokenizer= is for captioners of transformers"):
        gl.captioner("scenes", tokenizer=hub.tokenizer())
    with pytest.raises(GradlightError, match=r"is a network of the kind 'resnet', which is no captioner .* GitForCau"):
        gl.captioner(ResNetForImageClassification(ResNetConfig(depths=[1, 1, 1, 1])))
    network.generation_config.eos_token_id = network.config.eos_token_id = None
    with pytest.raises(GradlightError, match=r"GitForCausalLM cannot generate captions: none of .*eos_token_id is set"):
        gl.captioner(network, tokenizer=hub.tokenizer())
    hub.captioner_of("git").save_pretrained(tmp_path)
    with pytest.raises(GradlightError, match=r"This tokenizer has \d+ subword tokens .* captions end with number 2\."):
        gl.captioner(f"transformers/{tmp_path}")
    hub.tokenizer().save_pretrained(tmp_path)
    with pytest.raises(GradlightError, match="cannot be read as AutoImageProcessor: OSError"):
        gl.captioner(f"transformers/{tmp_path}")


# --- subwords and words ---------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer() -> SubwordTokenizer:
    return SubwordTokenizer(hub.tokenizer(), hub.BOS, hub.END, 31)


def test_subwords_are_grouped_into_words(tokenizer: SubwordTokenizer) -> None:
    tokens = tokenizer.encode(TEXT)
    assert flatten_tokens(tokens) == NUMBERS
    assert [[NUMBERS[at] for at in group] for group in GROUPS] == [list(word) for word in tokens]
    assert tokenizer.decode(tokens) == TEXT.split()
    assert tokenizer.decode(tokens[:3]) == ["a", "red", "stars"]
    assert tokenizer.group_words(NUMBERS) == tuple(tokens)
    assert tokenizer.group_words([]) == ()
    assert tokenizer.decode([]) == []


def test_endings_without_a_word_before_them(tokenizer: SubwordTokenizer) -> None:
    numbers = [hub.SUBWORDS[piece] for piece in ("##s", "a", "##ish", "##let", "red")]
    tokens = tokenizer.group_words(numbers)
    assert flatten_tokens(tokens) == numbers
    assert len(tokenizer.decode(tokens)) == len(tokens) == 3


def test_unknown_words_are_refused_or_allowed(tokenizer: SubwordTokenizer) -> None:
    with pytest.raises(GradlightError, match=r"Not among the 17 words .*'zebra'.*'stor'\. Did you mean 'star'.*unk="):
        tokenizer.encode("a zebra stor")
    assert flatten_tokens(tokenizer.encode("a zebra", unk="allow")) == [4, hub.UNK]
    with pytest.raises(GradlightError, match='unk=\'skip\' is unknown; give "error" or "allow"'):
        tokenizer.encode("a", unk="skip")
    with pytest.raises(GradlightError, match="There is no word in '  '"):
        tokenizer.encode("  ")
    with pytest.raises(GradlightError, match="has 40 subword tokens, and this captioner reads 31 at most"):
        tokenizer.encode("a " * 40)


def test_a_tokenizer_that_marks_blanks() -> None:
    """The subwords of GPT-2 carry the blank before them."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    letters = ["Ġ", *"adersttn", "Ġr", "Ġre", "Ġred", "Ġs", "Ġst", "<end>"]
    known = {piece: number for number, piece in enumerate(dict.fromkeys(letters))}
    merges = [("Ġ", "r"), ("Ġr", "e"), ("Ġre", "d"), ("Ġ", "s"), ("Ġs", "t")]
    inner = Tokenizer(BPE(known, merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    end = known["<end>"]
    words = SubwordTokenizer(
        PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", unk_token="<end>"), end, end, 31
    )
    assert words.special_tokens.unk is None
    tokens = words.encode("a red start")
    assert words.decode(tokens) == ["a", "red", "start"]
    assert [[words[piece] for piece in word] for word in tokens] == [["a"], ["Ġred"], ["Ġst", "a", "r", "t"]]
    network = hub.captioner_of("vit-gpt2")
    network.generation_config.eos_token_id = network.generation_config.decoder_start_token_id = end
    model = gl.captioner(network, tokenizer=words.tokenizer)
    marked = model.objective("a [red] start").target_specs[0][0]
    assert marked.tokens == tuple(tokens)
    assert marked.span == (1, 2)


def test_a_caption_is_a_target_whatever_it_holds(model: Captioner) -> None:
    (caption,) = model.caption(PHOTOS[0], max_length=5)
    assert isinstance(caption, Caption)
    described = model.objective([[caption, caption.words[0]]]).describe()
    assert json.loads(json.dumps(described))["targets"][0][0] == {"text": caption.text, "words": False}


def test_a_module_of_the_decoder_is_no_layer(model: Captioner) -> None:
    assert isinstance(model.trunk, nn.Module)
    assert not any("decoder" in layer.name for layer in model.layers())
