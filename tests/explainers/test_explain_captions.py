"""Maps of captions and their words: against plain autograd, one pass for all words, and the network left alone."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.explainers.methods import METHODS
from gradlight.models.captioner import Captioner, CaptionNetwork, Vocabulary
from gradlight.models.captioner.decoder import Decoder, SpecialTokens
from gradlight.models.captioner.encoder import RESNET101, FeaturePooling, ResNetPlan, build_resnet
from gradlight.models.captioner.rnn_decoders import FC, Att2in2, ShowTell, SoftAttention
from gradlight.models.captioner.search import DecodingOptions
from gradlight.models.preprocessing import Preprocessing

WORDS = ["a", "red", "blue", "star", "ring", "above", "below", "and", "small", "large", "cross", "UNK"]
ONE = SpecialTokens(0, 0, 12)
SIZES = {"embed": 6, "size": 7, "rows": 13, "columns": 13}
FAMILIES: dict[str, tuple[Callable[[], Decoder], FeaturePooling]] = {
    "fc": (lambda: FC(ONE, features=16, **SIZES), FeaturePooling()),
    "show_tell": (lambda: ShowTell(ONE, features=16, layers=2, **SIZES), FeaturePooling()),
    "att2in2": (lambda: Att2in2(ONE, location_features=21, attention=5, norm=2, **SIZES), FeaturePooling(boxes=True)),
    "soft": (
        lambda: SoftAttention(
            SpecialTokens(13, 14, 12),
            location_features=16,
            attention=5,
            embed=6,
            size=7,
            rows=15,
            columns=15,
            max_length=8,
        ),
        FeaturePooling(3),
    ),
}

TEXT = "a small star above a ring"
PIXELS = torch.rand(2, 3, 48, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
STAGES = {"layer1": 5, "layer2": 6}
"""Each stage, and how many of the encoder's parts come up to it."""
AT_MODULES = {"normgrad_real"}
METHODS_AT_STAGES = [name for name in METHODS if name not in {"cam", *AT_MODULES}]


def captioner(family: str = "fc", **options: Any) -> Captioner:
    """Make a captioner of random weights that seldom says END, so that it has something to say."""
    make, reading = FAMILIES[family]
    torch.manual_seed(1)
    decoder = make()
    for parameter in decoder.parameters():
        nn.init.uniform_(parameter, -1, 1)
    decoder.logit.bias.data[decoder.special_tokens.end] = -2
    network = CaptionNetwork(build_resnet(ResNetPlan("basic", (1, 1), (8, 16), 8, "none")), decoder, reading)
    words = Vocabulary(dict(enumerate(WORDS, 1)), decoder.special_tokens)
    return Captioner(network.double().eval(), words, Preprocessing(size=(48, 48), resize=(48, 48)), **options)


@pytest.fixture(scope="module", params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> Captioner:
    return captioner(request.param)


def numbers(text: str) -> list[int]:
    return [WORDS.index(word) + 1 for word in text.split()]


def steps_of(network: CaptionNetwork, features: dict[str, Tensor], text: str) -> Tensor:
    """Give the log-probability of each word of a text and of END."""
    tokens = numbers(text)
    steps = network.decoder.log_probs(features, torch.tensor([tokens]))[0]
    return torch.stack([steps[t, token] for t, token in enumerate([*tokens, network.decoder.special_tokens.end])])


def by_hand(network: CaptionNetwork, image: Tensor, text: str, part: slice, layer: str) -> dict[str, Tensor]:
    """Write the maps [h,w] of some of a text's steps at a stage out, from plain autograd."""
    parts = list(network.encoder.children())
    x = nn.Sequential(*parts[: STAGES[layer]])(image[None]).detach().requires_grad_()
    features = network.pooling(nn.Sequential(*parts[STAGES[layer] :])(x))
    (g,) = torch.autograd.grad(steps_of(network, features, text)[part].sum(), x)
    with torch.no_grad():
        return {
            "selective_normgrad": (g * x).clamp(min=0).square().sum(1).sqrt()[0],
            "normgrad": (g.square().sum(1).sqrt() * x.square().sum(1).sqrt())[0],
        }


def assert_close(found: Tensor, wanted: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=rtol, atol=float(wanted.abs().max()) * rtol)
    assert wanted.abs().max() > 0


# What the maps are


PARTS: list[tuple[str, slice]] = [(TEXT, slice(None)), ("a [small star] above a ring", slice(1, 3))]


@pytest.mark.parametrize(("target", "part"), PARTS)
def test_the_maps_are_the_definition(model: Captioner, target: str, part: slice) -> None:
    maps = gl.explain(model, PIXELS, target, methods=["selective_normgrad", "normgrad"])
    assert maps.layers == list(STAGES)
    for layer in STAGES:
        for i, image in enumerate(PIXELS):
            for method, wanted in by_hand(model.network, image, TEXT, part, layer).items():
                assert_close(maps[method, layer][i, 0], wanted)


def test_the_maps_of_words_are_the_definition(model: Captioner) -> None:
    maps = gl.explain(model, PIXELS, TEXT, words=True, methods=["selective_normgrad", "normgrad"])
    for layer in STAGES:
        for i, image in enumerate(PIXELS):
            for k in range(6):
                for method, wanted in by_hand(model.network, image, TEXT, slice(k, k + 1), layer).items():
                    assert_close(maps[method, layer][i, k], wanted)
    assert [target.label for target in maps.targets[1]] == TEXT.split()
    with torch.no_grad():
        scores = steps_of(model.network, model.network.features(PIXELS[1:]), TEXT)
    assert [target.score for target in maps.targets[1]] == pytest.approx(scores[:-1].tolist(), rel=1e-9)


def test_end_belongs_to_the_caption_unless_it_is_left_out() -> None:
    for count_end, part in ((True, slice(None)), (False, slice(-1))):
        model = captioner("soft", count_end=count_end)
        maps = gl.explain(model, PIXELS, TEXT)
        assert_close(
            maps["selective_normgrad", "layer2"][0, 0],
            by_hand(model.network, PIXELS[0], TEXT, part, "layer2")["selective_normgrad"],
        )


@pytest.mark.parametrize("method", METHODS_AT_STAGES)
def test_every_method_at_every_stage(model: Captioner, method: str) -> None:
    maps = gl.explain(model, PIXELS, [["a ring", TEXT, "a [red] star"]], methods=method)
    assert maps.pairs == [(method, layer) for layer in STAGES]
    for layer, size in (("layer1", 24), ("layer2", 12)):
        found = maps[method, layer]
        assert found.shape == (2, 3, size, size)
        assert found.isfinite().all()
        # Grad-CAM alone may cut everything away.
        assert (found.abs().amax((2, 3)) > 0).all() or method == "grad_cam"


def test_a_layers_own_weight_and_what_a_captioner_has_not(model: Captioner) -> None:
    found = gl.explain(model, PIXELS, TEXT, methods="normgrad_real", layers="layer*.conv?")
    assert len(found.layers) == 4
    assert all(found["normgrad_real", layer].isfinite().all() for layer in found.layers)
    with pytest.raises(GradlightError, match=r"cam was asked at 'layer[12]'.*Ask for grad_cam"):
        gl.explain(model, PIXELS, TEXT, methods="cam")
    by_default = gl.explain(model, PIXELS, TEXT, methods="normgrad_real")
    assert by_default.layers
    modules = dict(model.trunk.named_modules())
    assert all(isinstance(modules[layer], nn.Conv2d) for layer in by_default.layers)


def test_the_maps_of_the_pixels_themselves(model: Captioner) -> None:
    maps = gl.explain(model, PIXELS, TEXT, methods="gradient", layers="input")
    leaf = PIXELS[:1].clone().requires_grad_()
    (g,) = torch.autograd.grad(steps_of(model.network, model.network.features(leaf), TEXT).sum(), leaf)
    assert_close(maps["gradient", "input"][0, 0], g.abs().amax(1)[0])


# One pass


def test_all_words_share_one_pass_of_the_encoder(model: Captioner) -> None:
    gl.explain(model, PIXELS, TEXT, words=True)  # the first time, it is learnt what the network overwrites
    runs: list[int] = []
    handle = model.network.encoder.register_forward_hook(lambda module, args, output: runs.append(len(output)))
    try:
        maps = gl.explain(model, PIXELS, TEXT, words=True)
        own = gl.explain(model, PIXELS[:1], words=True)
    finally:
        handle.remove()
    assert runs == [2, 1]
    assert maps["selective_normgrad", "layer1"].shape == (2, 6, 24, 24)
    assert len(own.targets[0]) > 1


def test_words_together_are_each_word_alone(model: Captioner) -> None:
    (caption,) = model.caption(PIXELS[:1], max_length=4)
    assert len(caption.words) > 1
    together = gl.explain(model, PIXELS[:1], caption, words=True)
    for target in (caption.words, [caption.words], list(caption.words)):
        again = gl.explain(model, PIXELS[:1], target)
        assert [word.label for word in again.targets[0]] == caption.words
        for key in together.pairs:
            assert torch.equal(again[key], together[key])
    for k, word in enumerate(caption.words):
        alone = gl.explain(model, PIXELS[:1], word)
        assert_close(alone["selective_normgrad", "layer1"][:, 0], together["selective_normgrad", "layer1"][:, k])
    some = gl.explain(model, PIXELS[:1], caption.words[1:3])
    assert_close(some["selective_normgrad", "layer2"], together["selective_normgrad", "layer2"][:, 1:3])


def test_none_is_the_caption_that_it_says(model: Captioner) -> None:
    captions = model.caption(PIXELS)
    maps = gl.explain(model, PIXELS)
    given = gl.explain(model, PIXELS, captions)
    assert [row[0].label for row in maps.targets] == [caption.text for caption in captions]
    assert [row[0].score for row in maps.targets] == pytest.approx([caption.log_prob for caption in captions])
    for key in maps.pairs:
        assert_close(given[key], maps[key])


def test_a_list_has_a_target_for_each_image(model: Captioner) -> None:
    maps = gl.explain(model, PIXELS, [["a ring", "[a] red star"], [TEXT, "blue"]])
    for i, (first, second) in enumerate((("a ring", "[a] red star"), (TEXT, "blue"))):
        for k, text in enumerate((first, second)):
            alone = gl.explain(model, PIXELS[i : i + 1], text)
            assert_close(maps["selective_normgrad", "layer1"][i, k], alone["selective_normgrad", "layer1"][0, 0])
    with pytest.raises(GradlightError, match="3 targets for 2 images"):
        gl.explain(model, PIXELS, ["a ring", "blue", "a red star"])


@pytest.mark.parametrize("meta", [None, gl.Meta(0.01)])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_captions_of_different_word_counts_have_maps_of_their_own(batch_size: int | None, meta: gl.Meta | None) -> None:
    model, pixels, texts = captioner(), PIXELS.repeat(2, 1, 1, 1), ["a ring", TEXT, "a ring", TEXT]
    maps = gl.explain(model, pixels, texts, words=True, batch_size=batch_size, meta=meta)
    assert [len(row) for row in maps.targets] == [2, 6, 2, 6]
    assert maps.rows("selective_normgrad", "layer1").shape[0] == 16
    for image, text in enumerate(texts):
        alone = gl.explain(model, pixels[image : image + 1], text, words=True, meta=meta)
        assert_close(maps.rows("selective_normgrad", "layer1", image=image), alone["selective_normgrad", "layer1"][0])
        assert_close(maps[image : image + 1]["selective_normgrad", "layer1"], alone["selective_normgrad", "layer1"])
    with pytest.raises(GradlightError, match=r"2 to 6 targets each, so their maps form no \[images"):
        maps["selective_normgrad", "layer1"]
    with pytest.raises(GradlightError, match=r"2 to 6 targets each, so their scores form no \[images"):
        model.word_objective(texts)(pixels)


def test_batches_make_no_difference(model: Captioner) -> None:
    pixels = PIXELS.repeat(2, 1, 1, 1)
    texts = [["a ring"], ["blue"], [TEXT], ["a red star"]]
    whole = gl.explain(model, pixels, texts, meta=gl.Meta(0.01))
    parts = gl.explain(model, pixels, texts, meta=gl.Meta(0.01), batch_size=1)
    for key in whole.pairs:
        assert_close(parts[key], whole[key])


# The meta step


@pytest.mark.parametrize(("direction", "sign"), [("descent", 1.0), ("ascent", -1.0)])
@pytest.mark.parametrize(("target", "part"), PARTS)
def test_the_step_is_sgd_on_the_whole_caption(
    model: Captioner, direction: str, sign: float, target: str, part: slice
) -> None:
    maps = gl.explain(model, PIXELS, target, meta=gl.Meta(0.01, direction), methods=["selective_normgrad", "normgrad"])
    plain = gl.explain(model, PIXELS, target)
    for i, image in enumerate(PIXELS):
        stepped = copy.deepcopy(model.network).eval()
        optimiser = torch.optim.SGD(stepped.parameters(), lr=0.01)
        (-sign * steps_of(stepped, stepped.features(image[None]), TEXT).sum()).backward()
        optimiser.step()
        for layer in STAGES:
            for method, wanted in by_hand(stepped, image, TEXT, part, layer).items():
                assert_close(maps[method, layer][i, 0], wanted, 1e-7)
        assert not torch.allclose(maps["selective_normgrad", "layer1"][i], plain["selective_normgrad", "layer1"][i])


def test_every_word_takes_the_same_step() -> None:
    model = captioner("show_tell")
    maps = gl.explain(model, PIXELS, TEXT, words=True, meta=gl.Meta(0.01))
    for k, text in enumerate(("[a] small star above a ring", "a [small] star above a ring")):
        alone = gl.explain(model, PIXELS, text, meta=gl.Meta(0.01))
        assert_close(maps["selective_normgrad", "layer2"][:, k], alone["selective_normgrad", "layer2"][:, 0])


def test_the_step_makes_a_caption_likelier() -> None:
    model = captioner()
    with torch.no_grad():
        before = steps_of(model.network, model.network.features(PIXELS[:1]), TEXT).sum()
    stepped = copy.deepcopy(model.network)
    (-steps_of(stepped, stepped.features(PIXELS[:1]), TEXT).sum()).backward()
    with torch.no_grad():
        for parameter in stepped.parameters():
            if parameter.grad is not None:
                parameter -= 1e-4 * parameter.grad
        assert steps_of(stepped, stepped.features(PIXELS[:1]), TEXT).sum() > before


# The network is left alone


def kept(network: nn.Module) -> Callable[[], bool]:
    """Note everything of a network, and tell later whether it is bit for bit the same."""
    network.train()
    next(network.parameters()).requires_grad_(False)
    pointers = [tensor.data_ptr() for tensor in network.state_dict().values()]
    values = copy.deepcopy(network.state_dict())

    def unchanged() -> bool:
        state = network.state_dict()
        flags = [parameter.requires_grad for parameter in network.parameters()]
        return (
            all(torch.equal(values[name], tensor) for name, tensor in state.items())
            and [tensor.data_ptr() for tensor in state.values()] == pointers
            and all(module.training and not module._forward_hooks for module in network.modules())
            and flags == [False] + [True] * (len(flags) - 1)
            and all(parameter.grad is None for parameter in network.parameters())
        )

    return unchanged


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("meta", [None, gl.Meta(0.1)])
def test_the_network_is_left_bit_for_bit(family: str, meta: gl.Meta | None) -> None:
    model = captioner(family)
    unchanged = kept(model.network)
    gl.explain(model, PIXELS, TEXT, words=True, meta=meta)
    gl.explain(model, PIXELS, meta=meta)
    assert unchanged()


@pytest.mark.parametrize("method", ["start", "advance", "predict"])
@pytest.mark.parametrize("meta", [None, gl.Meta(0.1)])
@pytest.mark.parametrize("after", [0, 3])
def test_also_after_an_error_in_the_decoder(
    method: str, meta: gl.Meta | None, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = captioner()
    unchanged = kept(model.network)
    run, calls = getattr(model.network.decoder, method), []

    def failing(*args: Any) -> Any:
        calls.append(method)
        if len(calls) > after:
            raise ZeroDivisionError("in the decoder")
        return run(*args)

    def explain_thrice() -> None:
        for _ in range(3):
            gl.explain(model, PIXELS, TEXT, meta=meta)

    with monkeypatch.context() as patched:
        patched.setattr(model.network.decoder, method, failing)
        with pytest.raises(ZeroDivisionError, match="in the decoder"):
            explain_thrice()
    assert unchanged()


# Where, and on what


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("decoder.*", r"No spatial layer.* matches 'decoder\.\*'"),
        ("decoder.core", "'decoder.core' is not spatial: .* 'layer2'"),
        ("decoder", "'decoder' is not spatial"),
        ("encoder.layer1", "encoder.layer1.*Did you mean 'layer1'"),
        ("layer3", "No layer is called 'layer3'.*Did you mean 'layer2'"),
        ("layer2.0.relu:2", "'layer2.0.relu' runs 2 times"),
    ],
)
def test_layers_are_the_encoders(layers: str, message: str) -> None:
    with pytest.raises(GradlightError, match=message):
        gl.explain(captioner(), PIXELS, TEXT, layers=layers)


def test_words_are_a_captioners() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(GradlightError, match=r"words=True asks for the words of a caption, and .* Give a captioner"):
        gl.explain(gl.classifier(network), torch.rand(1, 3, 16, 16), 1, words=True)


def test_unknown_words_and_other_targets_are_told() -> None:
    with pytest.raises(GradlightError, match=r"'strar'\. Did you mean 'star'"):
        gl.explain(captioner(), PIXELS, "a strar")
    with pytest.raises(GradlightError, match="3 is not a target of a captioner"):
        gl.explain(captioner(), PIXELS, 3)


def test_pixels_that_are_no_numbers_are_told_of() -> None:
    pixels = PIXELS.clone()
    pixels[1] = float("nan")
    with pytest.warns(gl.GradlightWarning, match="1 scores are not finite"):
        gl.explain(captioner(), pixels, TEXT)


def test_a_captioner_of_floats_and_of_bfloat16() -> None:
    exact = gl.explain(captioner(), PIXELS, TEXT)["selective_normgrad", "layer2"]
    for dtype, within in ((torch.float32, 1e-4), (torch.bfloat16, 0.2)):
        model = captioner()
        model.network.to(dtype)
        found = gl.explain(model, PIXELS, TEXT)["selective_normgrad", "layer2"]
        assert found.dtype == torch.float32
        assert (found.double() - exact).norm() < within * exact.norm()


# What is done with the maps


def test_layers_are_combined(model: Captioner) -> None:
    maps = gl.explain(model, PIXELS, TEXT, words=True)
    for how in ("product", "sum"):
        joined = maps.joined(maps.combine(how=how))
        found = joined["selective_normgrad", f"{how}(linear)"]
        assert found.shape == (2, 6, 48, 48)
        assert found.isfinite().all()
        assert float(found.amax()) <= 1


def test_maps_of_words_go_through_a_file(tmp_path: Path) -> None:
    model = captioner("att2in2", decoding=DecodingOptions(max_length=4))
    for name, target, words in (("words", TEXT, True), ("both", [["a [red star]", None]], False)):
        maps = gl.explain(model, PIXELS, target, words=words, meta=gl.Meta(0.01))
        maps.save(tmp_path / f"{name}.h5")
        again = gl.load(tmp_path / f"{name}.h5")
        fields = [[(t.kind, t.index, t.label) for t in row] for row in maps.targets]
        assert [[(t.kind, t.index, t.label) for t in row] for row in again.targets] == fields
        for row, other in zip(maps.targets, again.targets, strict=True):
            assert [t.score for t in other] == pytest.approx([t.score for t in row], rel=1e-6)
        assert again.origin == maps.origin
        for key in maps.pairs:
            assert torch.equal(again[key], maps[key].float())


def titles(figure: Any) -> list[str]:
    return [axes.get_title(where) for axes in figure.axes for where in ("left", "center") if axes.get_title(where)]


def test_a_sentence_is_drawn_word_by_word(tmp_path: Path) -> None:
    model = captioner()
    photos = [np.full((30, 40, 3), level, np.uint8) for level in (60, 200)]
    photos[0][5:20, 5:20] = 250
    photos[1][5:20, 5:20] = 10
    maps = gl.explain(model, photos, TEXT, words=True, methods=["selective_normgrad", "linear_approx"])
    drawing = maps.plot()
    found = titles(drawing)
    assert sum(title.startswith(f"{TEXT}\n") for title in found) == 2 * 2 * 2, "images, methods, layers"
    for k, word in enumerate(TEXT.split()):
        assert f"{word} ({maps.targets[1][k].score:.2f})" in found
    drawing.savefig(tmp_path / "words.png", dpi=30)
    assert (tmp_path / "words.png").stat().st_size > 1000
    maps.save(tmp_path / "words.h5")
    again = titles(gl.load(tmp_path / "words.h5").plot([1], methods=["linear_approx"], layers=["layer2"]))
    assert again[0].startswith(f"{TEXT}\nlinear_approx\nlayer2")
    assert len(again) == 7


def test_captions_are_drawn_as_targets_are(tmp_path: Path) -> None:
    model = captioner()
    maps = gl.explain(model, np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8), [[TEXT, "a [red] star"]])
    drawing = maps.plot()
    found = titles(drawing)
    assert f"{TEXT}\ncaption, score {maps.targets[0][0].score:.4g}" in found
    assert f"red\nword, score {maps.targets[0][1].score:.4g}" in found
    drawing.savefig(tmp_path / "captions.png", dpi=30)
    assert maps._repr_png_() is not None


# Outside truth


def value(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Fill a tensor as the numbers' makers did."""
    random = np.random.RandomState(zlib.crc32(key.encode("ascii")) & 0xFFFFFFFF)
    n = random.standard_normal(shape)
    if len(shape) == 4:
        n = n * np.sqrt(2.0 / (shape[1] * shape[2] * shape[3]))
    elif key.endswith("running_mean"):
        n = 0.1 * n
    elif key.endswith("running_var"):
        n = 0.8 + 0.4 * random.uniform(size=shape)
    elif key.endswith("bias"):
        n = 0.1 * n
    elif ".bn3." in key:
        n = 0.2 + 0.02 * n
    elif ".downsample.1." in key:
        n = 0.5 + 0.05 * n
    else:
        n = 1.0 + 0.1 * n
    return n.astype("float32")


@pytest.fixture(scope="module")
def resnet101(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in build_resnet(RESNET101).state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    path = tmp_path_factory.mktemp("encoder") / "resnet101.pth"
    torch.save({name: torch.from_numpy(value(name, shape)) for name, shape in shapes.items()}, path)
    return path


@pytest.mark.slow
def test_a_caption_of_the_original_project_through_its_own_encoder(shared: Path, resnet101: Path) -> None:
    folder = shared / "oracles" / "captioning"
    expected = np.load(folder / "resnet101_features" / "expected.npz")
    model = gl.captioner(folder / "fc_py2", encoder=resnet101, device="cpu")
    picture = folder / "resnet101_features" / "picture.png"
    said = model.vocabulary.decode(expected["caption"][:-1].tolist())
    layers = ["layer3.0", "layer4.0", "layer4"]
    maps = gl.explain(model, picture, " ".join(said), layers=layers)
    assert maps.targets[0][0].label.startswith("UNK bathroom of")
    assert maps.targets[0][0].score == pytest.approx(float(expected["total_logprob"]), rel=1e-4)
    for layer in layers:
        wanted = torch.from_numpy(expected[f"selective_normgrad_{layer}"]).double()
        found = maps["selective_normgrad", layer][0, 0].double()
        assert (found - wanted).norm() < 1e-4 * wanted.norm()
        assert (found - wanted).abs().max() < 1e-4 * wanted.max()
    words = gl.explain(model, picture, " ".join(said), words=True, layers="layer4")
    assert [target.score for target in words.targets[0]] == pytest.approx(
        expected["target_logprobs"][:-1].tolist(), abs=1e-5 * abs(float(expected["total_logprob"]))
    )
    (greedy,) = model.caption(picture, beam_size=1)
    assert [*greedy.tokens, 0] == expected["caption"].tolist()
    assert greedy.log_prob == pytest.approx(float(expected["total_logprob"]), rel=1e-4)
    features, wanted = model.network.features(model.pixels(picture))["fc"][0].detach(), torch.from_numpy(expected["fc"])
    torch.testing.assert_close(features, wanted, rtol=0, atol=1e-5 * float(wanted.abs().max()))
