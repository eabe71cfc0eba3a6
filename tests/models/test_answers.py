"""What a network answers with: one logit, probabilities, several tensors; of one image or of its batch; by chance."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlight as gl

PIXELS = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(3))


class Net(nn.Module):
    """Two convolutions and a head, then a function."""

    def __init__(
        self, end: Callable[[Tensor], Any] = lambda logits: logits, classes: int = 6, std: float = 20.0
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head, self.end = nn.Linear(8, classes), end
        nn.init.normal_(self.head.weight, std=std)
        self.eval()

    def features(self, pixels: Tensor) -> Tensor:
        """The spatial mean of the second layer."""
        return self.b(self.a(pixels).relu()).relu().mean((2, 3))

    def forward(self, pixels: Tensor) -> Any:
        return self.end(self.head(self.features(pixels)))


def normgrad(network: Net, score: Callable[[Tensor], Tensor], pixels: Tensor = PIXELS) -> Tensor:
    """|x|·|g| at layer "b", by autograd, of a score of the logits."""
    activation = network.b(network.a(pixels).relu()).detach().requires_grad_()
    logits = network.head(activation.relu().mean((2, 3)))
    (gradient,) = torch.autograd.grad(score(logits).sum(), activation)
    return activation.detach().norm(dim=1) * gradient.norm(dim=1)


def explained(model: Any, target: Any = 2, **options: Any) -> Tensor:
    maps = gl.explain(model, PIXELS, target, methods="normgrad", layers="b", **options)
    result: Tensor = maps["normgrad", "b"][:, 0]
    return result


def hand_softmax(logits: Tensor) -> Tensor:
    powers = (logits - logits.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


# --- probabilities at the end


@pytest.mark.parametrize(
    "end",
    [
        nn.Softmax(1),
        nn.LogSoftmax(1),
        lambda logits: functional.softmax(logits, -1),
        lambda logits: {"probabilities": torch.softmax(logits, 1)},
        lambda logits: (torch.log(logits.softmax(1) + 1e-30), None),
        lambda logits: logits[:, :, None, None].softmax(1).flatten(1),
    ],
)
def test_the_logits_before_a_softmax_are_explained(end: Callable[[Tensor], Any]) -> None:
    network, plain = Net(end), Net()
    model = gl.classifier(network)
    torch.testing.assert_close(explained(model), normgrad(plain, lambda logits: logits[:, 2]))
    first = model.predict(PIXELS, top=1)
    best = plain(PIXELS).softmax(1).max(1)
    assert [row[0].index for row in first] == best.indices.tolist()
    assert [row[0].probability for row in first] == pytest.approx(best.values.tolist(), rel=1e-4)
    meta = gl.Meta(lr=0.01)
    torch.testing.assert_close(explained(model, meta=meta), explained(gl.classifier(plain), meta=meta))
    assert "softmax" in repr(model)
    assert model.describe()["answer"]["logits"] == "before"


@pytest.mark.parametrize("logarithm", [False, True])
def test_probabilities_of_unknown_origin_are_told_and_turned_into_logarithms(logarithm: bool) -> None:
    end = (lambda logits: hand_softmax(logits).log()) if logarithm else hand_softmax
    model, plain = gl.classifier(Net(end, std=3.0)), Net(std=3.0)
    with pytest.warns(gl.GradlightWarning, match="the scores that are explained are log-probabilities"):
        found = explained(model)
    torch.testing.assert_close(found, normgrad(plain, lambda logits: logits.log_softmax(1)[:, 2]))
    best = plain(PIXELS).softmax(1).amax(1).tolist()
    assert [row[0].probability for row in model.predict(PIXELS, top=1)] == pytest.approx(best, rel=1e-4)


@pytest.mark.parametrize("end", [nn.Sigmoid(), torch.sigmoid, torch.special.expit])
def test_the_logits_before_a_sigmoid_are_explained(end: Callable[[Tensor], Any]) -> None:
    model, plain = gl.classifier(Net(end, std=3.0)), Net(std=3.0)
    torch.testing.assert_close(explained(model), normgrad(plain, lambda logits: logits[:, 2]))
    best = plain(PIXELS).sigmoid().amax(1).tolist()
    assert [row[0].probability for row in model.predict(PIXELS, top=1)] == pytest.approx(best, rel=1e-4)
    meta, multi = gl.Meta(lr=0.01), gl.classifier(plain, multi_label=True)
    torch.testing.assert_close(explained(model, meta=meta), explained(multi, meta=meta))


def test_gates_inside_are_no_end_and_logits_stay_logits() -> None:
    model = gl.classifier(Net(lambda logits: logits * logits.softmax(1) - 1))
    model.predict(PIXELS)
    assert "answer" not in model.describe()
    assert "logits" in repr(model)


def test_an_objective_called_by_itself_gives_the_logits_too() -> None:
    objective = gl.classifier(Net(nn.Softmax(1))).objective([[1, 2]])
    torch.testing.assert_close(objective(PIXELS), Net()(PIXELS)[:, [1, 2]])


# --- one logit


@pytest.mark.parametrize("end", [lambda logit: logit, torch.sigmoid, lambda logit: logit.squeeze(-1)])
def test_one_logit_is_binary(end: Callable[[Tensor], Any]) -> None:
    plain = Net(classes=1, std=3.0)
    model = gl.classifier(Net(end, classes=1, std=3.0), labels=["cat"])
    true = plain(PIXELS).sigmoid().flatten().tolist()
    assert [row[0].probability for row in model.predict(PIXELS)] == pytest.approx(true, rel=1e-4)
    meta = gl.Meta(lr=0.1)
    stepped, multi = explained(model, 0, meta=meta), gl.classifier(plain, multi_label=True)
    torch.testing.assert_close(stepped, explained(multi, 0, meta=meta))
    assert not torch.allclose(stepped, explained(model, 0), rtol=1e-4)


def test_two_names_of_one_logit_are_its_two_sides() -> None:
    plain = Net(classes=1, std=3.0)
    model = gl.classifier(plain, labels=["dog", "cat"])
    logit = plain(PIXELS).flatten().detach()
    for row, value in zip(model.predict(PIXELS), logit, strict=True):
        both = {each.label: each.probability for each in row}
        assert both["cat"] == pytest.approx(float(value.sigmoid()), rel=1e-4)
        assert both["dog"] == pytest.approx(float((-value).sigmoid()), rel=1e-4)
    objective = model.objective("dog")
    torch.testing.assert_close(objective(PIXELS)[:, 0], -logit)
    expected = functional.binary_cross_entropy_with_logits(logit, torch.zeros(3), reduction="none")
    torch.testing.assert_close(objective.loss(PIXELS), expected)


# --- several tensors


@pytest.mark.parametrize(
    ("end", "output"),
    [
        (lambda logits: (logits.repeat(1, 3), logits), 1),
        (lambda logits: {"embedding": logits.repeat(1, 3), "classes": logits}, "classes"),
        (lambda logits: [logits, None, logits[:, :2]], 0),
    ],
)
def test_two_candidates_of_unlike_width_are_refused_until_one_is_named(
    end: Callable[[Tensor], Any], output: Any
) -> None:
    with pytest.raises(gl.GradlightError, match=rf"Say which are: .*output={output!r} \(6 numbers\)"):
        gl.explain(gl.classifier(Net(end)), PIXELS)
    found = explained(gl.classifier(Net(end), output=output))
    torch.testing.assert_close(found, normgrad(Net(), lambda logits: logits[:, 2]))


def test_a_tensor_without_a_row_for_each_image_is_no_candidate() -> None:
    network = Net(lambda logits: (torch.zeros(7, 4), logits))
    assert len(gl.classifier(network).labels) == 6


class TwoTowers(Net):
    """An image encoder beside a text encoder, as open_clip writes it."""

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Any:
        return (None if image is None else self.features(image)), text

    def encode_image(self, pixels: Tensor) -> Tensor:
        return self.features(pixels)

    def encode_text(self, text: Tensor) -> Tensor:
        return text


def test_a_network_of_images_and_texts_is_refused_with_the_way_out() -> None:
    network = TwoTowers()
    with pytest.raises(gl.GradlightError, match="compares images with texts"):
        gl.classifier(network)


class ZeroShot(nn.Module):
    """The way out that the refusal names."""

    def __init__(self, towers: TwoTowers) -> None:
        super().__init__()
        self.towers = towers
        self.register_buffer("texts", torch.randn(5, 8))

    def forward(self, pixels: Tensor) -> Tensor:
        return functional.normalize(self.towers.encode_image(pixels), dim=-1) @ self.towers.encode_text(self.texts).T


def test_the_way_out_of_that_refusal_works() -> None:
    model = gl.classifier(ZeroShot(TwoTowers()).eval())
    assert gl.explain(model, PIXELS, 2).targets[0][0].index == 2


# --- neighbours and chance


class Mixing(Net):
    """A network that mixes its batch in a way of its own."""

    def __init__(self, mix: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.mix = mix

    def forward(self, pixels: Tensor) -> Any:
        return self.head(self.b(self.mix(self.a(pixels)).relu()).relu().mean((2, 3)))


@pytest.mark.parametrize(
    "mix",
    [
        nn.BatchNorm2d(8, track_running_stats=False),
        lambda x: x - x.mean(0, keepdim=True) / 2,
        lambda x: torch.roll(x, 1, 0) + x,
        lambda x: x / x.abs().max(),
    ],
)
def test_images_that_depend_on_their_neighbours_are_run_alone(mix: Callable[[Tensor], Tensor]) -> None:
    model = gl.classifier(Mixing(mix).eval())
    pixels = torch.cat([PIXELS[:1], 4 * PIXELS[1:]])
    methods, layers = ["normgrad", "smoothgrad"], ["b", "input"]
    with pytest.warns(gl.GradlightWarning, match="run alone"):
        together = gl.explain(model, pixels, 2, methods=methods, layers=layers)
    predicted = model.predict(pixels, top=6)
    for image in range(3):
        alone = gl.explain(model, pixels[image : image + 1], 2, methods=methods, layers=layers)
        for pair in [("normgrad", "b"), ("smoothgrad", "input")]:
            torch.testing.assert_close(together[pair][image], alone[pair][0])
        assert predicted[image] == model.predict(pixels[image : image + 1], top=6)[0]
    assert "alone" in repr(model)


@pytest.mark.parametrize(
    "mix",
    [
        functional.dropout,
        lambda x: x + torch.rand_like(x),
        lambda x: x * float(torch.rand(())),
    ],
)
def test_chance_is_told_once(mix: Callable[[Tensor], Tensor]) -> None:
    model = gl.classifier(Mixing(mix).eval())
    with pytest.warns(gl.GradlightWarning, match="change from call to call"):
        gl.explain(model, PIXELS, 2, layers="b")
    gl.explain(model, PIXELS, 2, layers="b")
    assert "by chance" in repr(model)


def test_ordinary_networks_are_not_warned_of_and_the_random_state_stays() -> None:
    state = torch.get_rng_state()
    for network in (Net().double(), Net().bfloat16(), Mixing(nn.GroupNorm(2, 8)).eval()):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model = gl.classifier(network)
            torch.set_rng_state(state)
            gl.explain(model, PIXELS, 2, layers="b")
        assert torch.equal(torch.get_rng_state(), state)
        assert "answer" not in model.describe()


# --- what belongs to a network


class Around(nn.Module):
    """A user's module with a network in an attribute, and a head of its own or none."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, pixels: Tensor) -> Any:
        answer = self.network(pixels)
        return self.head(answer if isinstance(answer, Tensor) else answer.logits)


WRAPPERS: list[Callable[[nn.Module], nn.Module]] = [
    lambda network: network,
    lambda network: nn.Sequential(network, nn.Softmax(1)),
    lambda network: Around(nn.DataParallel(network), nn.Identity()),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_timm_network_keeps_what_belongs_to_it_in_any_wrapper(wrap: Callable[[nn.Module], nn.Module]) -> None:
    timm = pytest.importorskip("timm")
    named = gl.classifier("timm/tf_mobilenetv3_small_minimal_100", pretrained=False)
    model = gl.classifier(wrap(timm.create_model("tf_mobilenetv3_small_minimal_100").eval()))
    assert model.preprocess == named.preprocess
    assert model.labels == named.labels
    assert "assumed" not in repr(model)


def test_a_head_of_ones_own_keeps_the_preprocessing_and_not_the_labels() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("tf_mobilenetv3_small_minimal_100").eval()
    model = gl.classifier(Around(network, nn.Linear(1000, 3)))
    assert model.preprocess.to_json()["mean"] == [0.5, 0.5, 0.5]
    assert model.labels == ["class_0", "class_1", "class_2"]


def test_a_timm_network_built_for_another_size_gets_pixels_of_that_size() -> None:
    timm = pytest.importorskip("timm")
    network = timm.create_model("vit_tiny_patch16_224", img_size=96, depth=1).eval()
    assert gl.classifier(nn.Sequential(network, nn.LogSoftmax(1))).size == (96, 96)


def test_a_network_of_transformers_inside_another_keeps_its_processor_and_labels() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    config.id2label = {0: "cat", 1: "dog", 2: "hen"}
    network = transformers.ViTForImageClassification(config).eval()
    own = gl.classifier(network)
    model = gl.classifier(Around(network, nn.Identity()))
    assert model.preprocess.to_json() == own.preprocess.to_json()
    assert model.labels == ["cat", "dog", "hen"] == own.labels


def test_what_is_assumed_of_a_bare_module_is_said() -> None:
    assert "ImageNet's preprocessing (assumed)" in repr(gl.classifier(Net()))
