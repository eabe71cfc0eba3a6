"""One forward, one backward: taps hold what the layer gave, whatever the network does with it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from by_definition import every_map, record_of, relative, taps_of
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers import capture
from gradlight.explainers.capture import record
from gradlight.explainers.layer_selection import LayerName
from gradlight.models.base import Layer
from gradlight.models.preserve import preserved

METHODS = ["gradient", "linear_approx", "grad_cam", "selective_normgrad", "normgrad", "conv3x3+filter_norm"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PIXELS = noise(2, 3, 8, 8)


class After(nn.Module):
    """A convolution, an operation on its output, a second convolution, and a head."""

    def __init__(self, operation: Callable[[Tensor], Tensor], first: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = first or nn.Identity()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.operation = operation
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.operation(self.conv(self.first(x)))
        return self.head(self.second(x).tanh().square().mean((2, 3)))


def set_slice(x: Tensor) -> Tensor:
    x[:, 1:3, ::2] = 0.5
    return x


def scale_slice(x: Tensor) -> Tensor:
    x[:, 0].mul_(3)
    return x


def add_in_place(x: Tensor) -> Tensor:
    doubled = 2 * x.flip(1)
    x += doubled
    return x


def through_a_view(x: Tensor) -> Tensor:
    x.flatten(1).relu_()
    return x


IN_PLACE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "relu_": (F.relu_, F.relu),
    "ReLU(inplace)": (nn.ReLU(inplace=True), nn.ReLU()),
    "SiLU(inplace)": (nn.SiLU(inplace=True), nn.SiLU()),
    "+=": (add_in_place, lambda x: x + 2 * x.flip(1)),
    "mul_": (lambda x: x.mul_(2), lambda x: x * 2),
    "clamp_": (lambda x: x.clamp_(-0.2, 0.3), lambda x: x.clamp(-0.2, 0.3)),
    "slice =": (set_slice, lambda x: set_slice(x.clone())),
    "slice.mul_": (scale_slice, lambda x: scale_slice(x.clone())),
    "view.relu_": (through_a_view, F.relu),
    "twice": (lambda x: x.mul_(2).relu_(), lambda x: (2 * x).relu()),
}


@pytest.mark.parametrize("operation", IN_PLACE)
def test_operations_in_place_change_nothing(operation: str):
    in_place, plain = IN_PLACE[operation]
    layers = ["input", "conv", "second"]
    found, wanted = (
        every_map(gl.explain(gl.classifier(After(act)), PIXELS, 2, methods=METHODS, layers=layers))
        for act in (in_place, plain)
    )
    for key, maps in wanted.items():
        assert relative(found[key], maps) < 1e-12, key


@pytest.mark.parametrize("operation", ["relu_", "mul_", "slice ="])
def test_the_callers_pixels_are_untouched(operation: str):
    """The first operation of the network works in place on the pixels themselves."""

    class First(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return IN_PLACE[operation][0](x)

    pixels = PIXELS.clone()
    model = gl.classifier(After(nn.Tanh(), First()))
    maps = gl.explain(model, pixels, 2, methods=METHODS, layers=["input", "conv"])
    assert torch.equal(pixels, PIXELS)
    leaf = PIXELS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.network(leaf.clone())[:, 2].sum(), leaf)
    assert relative(maps["linear_approx", "input"][:, 0], (leaf.detach() * gradient).sum(1)) < 1e-12


def test_only_what_is_overwritten_is_cloned_and_only_the_first_call_runs_twice():
    network = After(F.relu_)
    runs: list[int] = []
    network.register_forward_hook(lambda *_: runs.append(1))
    model = gl.classifier(network)
    model.layers((8, 8))
    for layers, count, overwritten in (
        (["conv", "second"], 1, set()),  # where the graph begins a copy is handed on in any case
        (["input", "conv", "second"], 2, {"conv"}),
        (["input", "conv", "second"], 1, {"conv"}),
    ):
        runs.clear()
        taps_of(model, PIXELS, layers)
        assert (len(runs), capture._overwritten[network]) == (count, overwritten)
    plain = gl.classifier(After(F.relu))
    taps_of(plain, PIXELS, ["input", "conv", "second"])
    assert capture._overwritten[plain.network] == set()


class Overwrites(nn.Module):
    """A linear layer on channels last whose input is overwritten after it ran."""

    def __init__(self, overwrite: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear, self.head = nn.Conv2d(3, 6, 3), nn.Linear(6, 6), nn.Linear(6, 5)
        self.overwrite = overwrite
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        given = self.conv(x).permute(0, 2, 3, 1)
        out = self.linear(given)
        return self.head((out * self.overwrite(given).cos()).mean((1, 2)))


@pytest.mark.parametrize("layers", ["linear", ["input", "linear"]])
def test_the_source_is_what_the_layer_was_given(layers: Any):
    found, wanted = (taps_of(gl.classifier(Overwrites(act)), PIXELS, layers, 2)["linear"] for act in (F.relu_, F.relu))
    assert relative(found.source, wanted.source) < 1e-12
    assert relative(found.gradient, wanted.gradient) < 1e-12
    assert float(wanted.source.min()) < 0


class Repeats(nn.Module):
    """One ReLU module, run three times, as torchvision's Bottleneck does."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convs = nn.ModuleList([nn.Conv2d(3, 6, 3, padding=1), *(nn.Conv2d(6, 6, 3, padding=1) for _ in range(2))])
        self.relu = nn.ReLU(inplace=inplace)
        self.head = nn.Linear(6, 5)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = self.relu(conv(x))
        return self.head(x.square().mean((2, 3)))


@pytest.mark.parametrize("inplace", [False, True])
def test_a_module_that_runs_three_times_is_three_layers(inplace: bool):
    network = Repeats(inplace)
    names = ["relu", "relu:1", "relu:2"]
    model = gl.classifier(network)
    assert [layer.name for layer in model.layers((8, 8)) if "relu" in layer.name] == names
    taps = taps_of(model, PIXELS, names, 2)
    x = PIXELS
    outputs = []
    for conv in network.convs:
        outputs.append(F.relu(conv(x)))
        x = outputs[-1]
    gradients = torch.autograd.grad(network.head(x.square().mean((2, 3)))[:, 2].sum(), outputs)
    for name, output, gradient in zip(names, outputs, gradients, strict=True):
        assert relative(taps[name].activation, output.detach()) < 1e-12
        assert relative(taps[name].gradient, gradient) < 1e-12
    assert relative(taps_of(model, PIXELS, "relu:2", 2)["relu:2"].gradient, gradients[2]) < 1e-12
    with pytest.raises(gl.GradlightError, match=r"'relu' runs 3 times, so the last is 'relu:2'"):
        gl.explain(model, PIXELS, 2, layers="relu:3")


def test_layers_inside_a_sequential_and_around_it():
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU(True)))
    network = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)).double().eval()
    taps = taps_of(gl.classifier(network), PIXELS, ["0.0", "0.1", "0.2.0", "0.2.1", "0"], 2)
    first = body[0](PIXELS)
    outputs = [first, first.relu(), body[2][0](first.relu())]
    for name, output in zip(["0.0", "0.1", "0.2.0"], outputs, strict=True):
        assert relative(taps[name].activation, output.detach()) < 1e-12
    assert torch.equal(taps["0"].activation, taps["0.2.1"].activation)
    assert torch.equal(taps["0"].gradient, taps["0.2.1"].gradient)
    assert relative(taps["0.2.0"].gradient, taps["0"].gradient * (outputs[2].detach() > 0)) < 1e-12


def with_norm_and_dropout() -> nn.Sequential:
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Dropout2d(), nn.Conv2d(6, 6, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(6, 5),
    )  # fmt: skip
    network[1].running_mean.normal_()
    return network.double()


def explained(network: nn.Module, pixels: Tensor, target: Any = 2, **options: Any) -> dict[tuple[str, str], Tensor]:
    return every_map(gl.explain(gl.classifier(network), pixels, target, methods=METHODS, layers=["0", "4"], **options))


def check_same(found: dict[Any, Tensor], wanted: dict[Any, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for key, maps in wanted.items():
        assert torch.equal(found[key], maps), key
        assert bool(maps.any()), key


def test_a_network_in_train_mode_is_explained_in_eval_mode():
    check_same(explained(with_norm_and_dropout().train(), PIXELS), explained(with_norm_and_dropout().eval(), PIXELS))


def test_frozen_parameters_make_no_difference():
    frozen = with_norm_and_dropout().requires_grad_(False)
    half = with_norm_and_dropout()
    half[0].requires_grad_(False)
    wanted = explained(with_norm_and_dropout(), PIXELS)
    check_same(explained(frozen, PIXELS), wanted)
    check_same(explained(half, PIXELS), wanted)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("meta", [None, gl.Meta(lr=0.01)])
def test_a_call_where_gradients_are_off(without: Callable[[], Any], meta: gl.Meta | None):
    wanted = explained(with_norm_and_dropout(), PIXELS, meta=meta)
    network = with_norm_and_dropout()
    with without():
        pixels = PIXELS * 1.0
        found = explained(network, pixels, meta=meta)
    check_same(found, wanted)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_precision_networks_have_float32_statistics(dtype: torch.dtype, near: float):
    network, reference = with_norm_and_dropout().eval(), with_norm_and_dropout().eval().float()
    taps = taps_of(gl.classifier(network.to(dtype)), PIXELS.to(dtype), ["0", "4"], 2)
    assert {tap.gradient.dtype for tap in taps.values()} == {torch.float32}
    assert {tap.source.dtype for tap in taps.values()} == {torch.float32}
    found, wanted = explained(network, PIXELS.to(dtype)), explained(reference, PIXELS.float())
    for key, maps in wanted.items():
        assert found[key].dtype == torch.float32
        assert bool(found[key].isfinite().all())
        assert relative(found[key], maps) < near, key


def test_large_activations_in_half_precision_do_not_overflow():
    """Squares of 300 overflow float16."""
    network = with_norm_and_dropout().eval()
    network[0].weight.data *= 1000
    network[1].running_var *= 1e6
    maps = explained(network.half(), PIXELS.half())
    assert taps_of(gl.classifier(network), PIXELS.half(), "0")["0"].activation.abs().max() > 300
    assert all(bool(m.isfinite().all()) for m in maps.values())


@pytest.mark.parametrize("wrap", [lambda y: (y, y.sum()), lambda y: [y], lambda y: {"logits": y, "other": y.sum()}])
def test_tuples_lists_and_mappings(wrap: Callable[[Tensor], Any]):
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = with_norm_and_dropout()

        def forward(self, x: Tensor) -> Any:
            return wrap(self.body(x))

    wanted = explained(with_norm_and_dropout(), PIXELS)
    maps = gl.explain(gl.classifier(Wrapped()), PIXELS, 2, methods=METHODS, layers=["body.0", "body.4"])
    check_same(
        {(method, layer.removeprefix("body.")): found for (method, layer), found in every_map(maps).items()}, wanted
    )


class Unused(nn.Module):
    """A layer that never runs, one whose result is thrown away, one under no_grad, and one that gives a pair."""

    def __init__(self) -> None:
        super().__init__()
        self.never, self.dropped, self.cut = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.pair = nn.MaxPool2d(2, return_indices=True)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        self.dropped(x)
        with torch.no_grad():
            x = self.cut(x)
        x, _ = self.pair(x)
        return self.head(self.conv(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("never", r"'never' did not run in this forward pass"),
        ("conv:1", r"'conv:1' did not run in this forward pass"),
        ("dropped", r"The score does not depend on 'dropped'"),
        ("input", r"The score does not depend on 'input'.*no_grad"),
        ("pair", r"'pair' gives a tuple, not one tensor of numbers"),
    ],
)
def test_layers_without_a_tap(name: str, message: str):
    network = Unused()
    asked = [Layer(name, 1, 3, (8, 8))]
    objective = gl.classifier(network).objective(0)
    with preserved(network), pytest.raises(gl.GradlightError, match=message):
        record(objective, PIXELS.float(), asked).taps(0)
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("never", "'never' did not run by this name"),
        ("dropped", "The output of 'dropped' does not reach the score"),
        ("cut", "The output of 'cut' has no gradient"),
    ],
)
def test_such_layers_are_not_listed(name: str, message: str):
    with pytest.raises(gl.GradlightError, match=message):
        gl.explain(gl.classifier(Unused()), PIXELS.float(), 0, layers=name)


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("meta", [None, gl.Meta(lr=0.01)])
def test_a_batch_is_its_images(dtype: torch.dtype, near: float, meta: gl.Meta | None):
    network = with_norm_and_dropout().to(dtype)
    pixels = noise(8, 3, 9, 7, seed=3).to(dtype)
    targets = [0, 1, 2, 3, 4, 0, "top", "min"]
    together = explained(network, pixels, targets, meta=meta)
    in_threes = explained(network, pixels, targets, meta=meta, batch_size=3)
    for image in range(8):
        alone = explained(network, pixels[image : image + 1], targets[image], meta=meta)
        for key, maps in alone.items():
            assert relative(together[key][image], maps[0]) < near, key
            assert relative(in_threes[key][image], maps[0]) < near, key


@pytest.mark.parametrize("meta", [None, gl.Meta(lr=0.01, direction="ascent")])
def test_the_same_call_gives_the_same_bits(meta: gl.Meta | None):
    network = with_norm_and_dropout().float()
    check_same(explained(network, PIXELS.float(), meta=meta), explained(network, PIXELS.float(), meta=meta))


@pytest.mark.parametrize("meta", [None, gl.Meta(lr=0.01)])
def test_several_targets_in_one_call_are_as_many_calls(meta: gl.Meta | None):
    network = with_norm_and_dropout()
    together = explained(network, PIXELS, [["min", 3, "top", 0]], meta=meta)
    for k, target in enumerate(["min", 3, "top", 0]):
        for key, maps in explained(network, PIXELS, target, meta=meta).items():
            assert relative(together[key][:, k : k + 1], maps) < 1e-12, key


def test_scores_are_the_logits_and_several_targets_share_the_forward_pass():
    network = torchvision.models.resnet18(num_classes=5).eval()
    runs: list[int] = []
    network.register_forward_hook(lambda *_: runs.append(1))
    model = gl.classifier(network)
    pixels = noise(2, 3, 64, 64).float()
    model.layers((64, 64))
    runs.clear()
    with preserved(network):
        recording = record_of(model, pixels, ["layer2", "layer4"], [["top", "min", 2]])
        taps = [recording.taps(k) for k in range(3)]
    assert len(runs) == 1
    logits = network(pixels).detach()
    assert relative(recording.scores.detach(), torch.stack([logits.amax(1), logits.amin(1), logits[:, 2]], 1)) < 1e-5
    assert [tap["layer4"].gradient.shape for tap in taps] == [(2, 512, 2, 2)] * 3


def test_a_recording_is_used_up_by_its_last_target():
    model = gl.classifier(with_norm_and_dropout())
    with preserved(model.network):
        recording = record_of(model, PIXELS, ["0", "4"], [["top", 2]])
        first, again, last = recording.taps(0), recording.taps(0), recording.taps(1)
        for name in ("0", "4"):
            assert torch.equal(first[name].gradient, again[name].gradient)
            assert not torch.equal(first[name].gradient, last[name].gradient)
        for target in (0, 1):
            with pytest.raises(gl.GradlightError, match=r"of the last target, 1, has freed.*record the forward pass"):
                recording.taps(target)
        for target in (-1, 2):
            with pytest.raises(gl.GradlightError, match=f"There is no target {target}: there are 2"):
                recording.taps(target)


@pytest.mark.parametrize(
    ("text", "module", "run", "name"),
    [
        ("layer4", "layer4", 0, "layer4"),
        ("relu:2", "relu", 2, "relu:2"),
        ("relu:0", "relu", 0, "relu"),
        ("", "input", 0, "input"),
        ("input", "input", 0, "input"),
        ("a:b", "a:b", 0, "a:b"),
        ("a:b:1", "a:b", 1, "a:b:1"),
    ],
)
def test_names_of_layers(text: str, module: str, run: int, name: str):
    assert LayerName.parse(text) == LayerName(module, run)
    assert str(LayerName.parse(text)) == name


def test_a_tap_that_is_a_view_of_what_is_overwritten_later():
    class Halves(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x[:, :2]

    class Network(nn.Module):
        def __init__(self, in_place: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.stem, self.part, self.head = nn.Conv2d(3, 4, 3), Halves(), nn.Linear(2, 5)
            self.in_place = in_place

        def forward(self, x: Tensor) -> Tensor:
            whole = self.stem(x)
            first = self.part(whole) + 1.0
            whole = whole.mul_(3.0) if self.in_place else whole * 3.0
            return self.head(first.mean((2, 3)) * whole[:, 2:].mean((2, 3)))

    given, reference = Network(True).double(), Network(False).double()
    for layers in (["part"], ["stem", "part"]):
        found = taps_of(gl.classifier(given), PIXELS, layers, 2)
        wanted = taps_of(gl.classifier(reference), PIXELS, layers, 2)
        for name in layers:
            assert relative(found[name].activation, wanted[name].activation) < 1e-12
            assert relative(found[name].gradient, wanted[name].gradient) < 1e-12
