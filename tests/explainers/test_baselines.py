"""Baselines: what every one of them keeps to, and those that propagate something else than the gradient."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import torchvision
from baseline_networks import INPUT, PIXELS, QUICK, SIZE, TARGET, Residual, attributed, noise, objective_of, quick
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.baselines import BASELINES, Baseline
from gradlight.explainers.baselines.baseline import at_layers, at_pixels
from gradlight.explainers.baselines.deep_lift import deep_lift
from gradlight.explainers.baselines.perturbation import rise
from gradlight.models.base import Layer
from gradlight.models.preserve import preserved

PROPAGATING = [
    "guided_backprop",
    "deconvnet",
    "deep_lift",
    "lrp",
    "excitation_backprop",
    "contrastive_excitation_backprop",
]
IN_CAPTUM = ["smoothgrad", "integrated_gradients", "occlusion", "lime"]
NO_LSTM = ["deep_lift", "lrp", "excitation_backprop", "contrastive_excitation_backprop"]


def needs_of(name: str) -> None:
    """Skip where a baseline's library is not installed."""
    if name in IN_CAPTUM:
        pytest.importorskip("captum.attr")


class Uneasy(nn.Module):
    """A network with a hook of its maker's, in train mode, with gradients kept."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.inner = Residual(nn.ReLU(inplace=True), lambda a, b: a.add_(b)).train()
        self.runs, self.fails = 0, fails

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.fails and self.runs > 1:
            raise MemoryError("as if there were no more")
        return self.inner(x)


def everything_of(network: nn.Module) -> list[object]:
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks)) for m in network.modules()]
    flags = [(m.training, sorted(m.__dict__)) for m in network.modules()]
    weights = [(id(p), p.requires_grad, p.grad, p.tolist()) for p in network.parameters()]
    return [hooks, flags, weights, [(id(b), b.tolist()) for b in network.buffers()]]


def test_the_names_are_the_published_ones():
    assert set(BASELINES) == {
        *("guided_backprop", "deconvnet", "smoothgrad", "integrated_gradients", "deep_lift", "lrp"),
        *("excitation_backprop", "contrastive_excitation_backprop", "occlusion", "rise", "lime"),
        "extremal_perturbation",
    }
    assert all(baseline.name == name for name, baseline in BASELINES.items())


@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_has_a_formula_and_a_reference(name: str):
    baseline = BASELINES[name]
    assert baseline.formula
    assert "\n" not in baseline.formula
    assert any(f" {year}, " in baseline.reference for year in range(2013, 2020))


def test_a_users_baseline_needs_neither():
    baseline = Baseline("mine", rise, at_pixels)
    assert (baseline.formula, baseline.reference) == ("", "")


@pytest.mark.parametrize("name", BASELINES)
def test_a_map_is_raw_finite_and_the_same_every_time(name: str):
    needs_of(name)
    network = Residual(nn.ReLU())
    first = quick(name, network)
    assert first.shape == (1, SIZE, SIZE)
    assert first.dtype == torch.float64
    assert not first.requires_grad
    assert first.isfinite().all()
    assert first.std() > 0
    torch.manual_seed(7)
    before = torch.get_rng_state()
    assert torch.equal(quick(name, network), first)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", BASELINES)
def test_the_network_is_left_as_it_was(name: str):
    needs_of(name)
    network = Uneasy()
    network.inner.first.register_forward_hook(lambda module, args, output: None)
    network.inner.head.weight.grad = torch.ones_like(network.inner.head.weight)
    before = everything_of(network)
    pixels = PIXELS.clone()
    quick(name, network)
    assert everything_of(network) == before
    assert torch.equal(pixels, PIXELS)


@pytest.mark.parametrize("name", [name for name in BASELINES if name not in PROPAGATING])
def test_the_network_is_left_as_it_was_after_an_error(name: str):
    needs_of(name)
    network = Uneasy(fails=True)
    before, generator = everything_of(network), torch.get_rng_state()
    with pytest.raises(MemoryError, match="no more"):
        quick(name, network, **{"batch": 1} if name != "extremal_perturbation" else {})
    assert everything_of(network) == before
    assert torch.equal(torch.get_rng_state(), generator)


@pytest.mark.parametrize("name", NO_LSTM)
def test_a_division_by_a_part_of_the_network_has_no_rule(name: str):
    with pytest.raises(gl.GradlightError, match=f"{name} has no rule for"):
        attributed(name, Residual(lambda x: 1 / (2 + x.relu())))
    with pytest.raises(gl.GradlightError, match=f"{name} has no rule for"):
        attributed(name, Residual(lambda x: torch.div(torch.ones_like(x), 2 + x.relu())))


@pytest.mark.parametrize("name", NO_LSTM)
def test_a_positive_constant_factor_changes_no_share(name: str):
    """What is scaled after a ReLU is scaled again by the weights that follow."""
    wanted = attributed(name, Residual(nn.ReLU()))
    network = Residual(lambda x: 2 * x.relu() / torch.full_like(x[:1], 2).detach())
    assert torch.allclose(attributed(name, network), wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NO_LSTM)
def test_an_operation_without_a_rule_is_named_and_nothing_is_left_behind(name: str):
    network = Residual(lambda x: x * x.sigmoid())
    before = everything_of(network)
    with pytest.raises(gl.GradlightError, match=rf"{name} has no rule for '(sigmoid|mul of two parts).*integrated"):
        attributed(name, network)
    assert everything_of(network) == before
    assert torch.relu(torch.tensor(-1.0)) == 0


@pytest.mark.parametrize("name", IN_CAPTUM)
def test_a_missing_library_is_one_sentence(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    with pytest.raises(gl.GradlightError, match=rf'{name} needs Captum: pip install "gradlight\[baselines\]"'):
        quick(name, Residual(nn.ReLU()))


def test_places():
    deep = Layer("layer4", 9, 8, (5, 4), (SIZE / 5, SIZE / 4))
    assert at_layers([INPUT, deep]) == [INPUT, deep]
    assert at_pixels([deep]) == [INPUT]
    assert at_pixels([deep, INPUT])[0] is INPUT


def test_another_setting_is_another_baseline():
    few = Baseline("rise_20", partial(rise, masks=20), at_pixels)
    network = Residual(nn.ReLU())
    with preserved(network):
        found = few.attribute(objective_of(network), PIXELS, TARGET, INPUT)
    assert torch.equal(found, attributed("rise", network, masks=20))
    assert not torch.equal(found, attributed("rise", network, masks=21))


WAYS: dict[str, Callable[[], nn.Module]] = {
    "functions": lambda: Residual(F.relu),
    "method in place": lambda: Residual(lambda x: x.relu_(), lambda a, b: a.add_(b)),
    "operator in place": lambda: Residual(nn.ReLU(inplace=True), lambda a, b: a.__iadd__(b)),
    "keyword": lambda: Residual(lambda x: F.relu(input=x, inplace=True), lambda a, b: b + a),
}


@pytest.mark.parametrize("name", PROPAGATING)
@pytest.mark.parametrize("way", WAYS)
def test_it_makes_no_difference_how_an_operation_is_called(name: str, way: str):
    wanted = attributed(name, Residual(nn.ReLU()))
    assert torch.allclose(attributed(name, WAYS[way]()), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PROPAGATING)
def test_relu6_below_six_is_a_relu(name: str):
    wanted = attributed(name, Residual(nn.ReLU()))
    assert torch.allclose(attributed(name, Residual(nn.ReLU6(inplace=True))), wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_without_a_relu_there_is_nothing_to_guide(name: str):
    with pytest.raises(gl.GradlightError, match=r"runs none; its map would be the plain gradient's"):
        attributed(name, Residual(F.gelu))


@pytest.mark.parametrize("name", ["guided_backprop", "deconvnet"])
def test_after_the_last_relu_it_is_the_gradient(name: str):
    network = Residual(nn.ReLU())
    found = attributed(name, network, Layer("norm", 3, 6, (SIZE, SIZE)))
    with preserved(network):
        leaf = PIXELS.clone().requires_grad_()
        kept: list[Tensor] = []
        handle = network.norm.register_forward_hook(lambda module, args, output: kept.append(output))
        score = network(leaf)[0, 1]
        handle.remove()
        (gradient,) = torch.autograd.grad(score, kept[0])
    rule = gradient.clamp(min=0).amax(1)
    # One ReLU comes after the norm; what it passes on is positive and, for guided_backprop, where it let pass.
    assert found.ge(0).all()
    assert torch.allclose(found, rule) == (name == "guided_backprop")


def test_guided_backprop_by_hand():
    """One ReLU of four inputs, both signs of activation and of gradient."""
    network = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4, bias=False)).double()
    slope = network[2].weight.detach()[1].view(1, 3, SIZE, SIZE)
    assert torch.equal(attributed("deconvnet", network), slope.clamp(min=0).amax(1))
    assert torch.equal(attributed("guided_backprop", network), (slope.clamp(min=0) * (PIXELS > 0)).amax(1))


@pytest.mark.parametrize("network", [Residual(nn.ReLU()), Residual(torch.tanh), Residual(F.gelu)])
@pytest.mark.parametrize("reference", [0.0, noise(1, 3, SIZE, SIZE, seed=5)])
def test_deep_lift_is_complete(network: nn.Module, reference: Tensor | float):
    found = attributed("deep_lift", network, reference=reference)
    with torch.no_grad():
        wanted = network(PIXELS) - network(torch.zeros_like(PIXELS) + reference)
    assert float(found.sum()) == pytest.approx(float(wanted[0, 1]), rel=1e-9)


def test_deep_lift_of_a_torchvision_resnet_is_complete():
    """Its ReLUs run twice and in place, which Captum's cannot treat; its pooling windows overlap."""
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=4).double().eval()
    pixels = noise(1, 3, 64, 64)
    with preserved(network):
        found = deep_lift(objective_of(network), pixels, TARGET, INPUT)
        wanted = (network(pixels) - network(torch.zeros_like(pixels)))[0, 1]
    assert float(found.sum()) == pytest.approx(float(wanted), rel=1e-9)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks")
def test_deep_lift_is_captums():
    attr = pytest.importorskip("captum.attr")
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.Sigmoid()),
        *(nn.Flatten(), nn.Linear(6 * 7 * 7, 4)),
    )
    network.double().eval()
    reference = noise(1, 3, SIZE, SIZE, seed=5)
    found = attributed("deep_lift", network, reference=reference)
    peer = attr.DeepLift(network).attribute(PIXELS.clone().requires_grad_(), reference, target=1)
    assert torch.allclose(found, peer.detach().sum(1), rtol=1e-9, atol=1e-12)


def test_deep_lift_at_a_maximum_by_definition():
    """The winner of the photo gets M − y₀ and the winner of the reference y − M, M the larger of both."""
    torch.manual_seed(0)
    pool, slope = nn.MaxPool2d(3, 2, 1), noise(300)
    head = nn.Linear(300, 4).double()
    head.weight.data[1] = slope
    network = nn.Sequential(pool, nn.Flatten(), head)
    reference = noise(1, 3, SIZE, SIZE, seed=5)
    found = attributed("deep_lift", network, reference=reference)
    wanted = torch.zeros(3, SIZE * SIZE, dtype=torch.float64)
    ours, places = F.max_pool2d(PIXELS, 3, 2, 1, return_indices=True)
    theirs, others = F.max_pool2d(reference, 3, 2, 1, return_indices=True)
    for number in range(300):
        channel = number // 100
        y, y0 = ours.flatten()[number], theirs.flatten()[number]
        larger = max(y, y0)
        wanted[channel, places.flatten()[number]] += slope[number] * (larger - y0)
        wanted[channel, others.flatten()[number]] += slope[number] * (y - larger)
    assert torch.allclose(found, wanted.sum(0).view(1, SIZE, SIZE), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["resnet18", pytest.param("vgg11", marks=pytest.mark.slow)])
def test_lrp_is_zennits(name: str):
    """But for the 1e-5 that a norm which zennit has merged still divides by."""
    composites = pytest.importorskip("zennit.composites")
    canonizers = pytest.importorskip("zennit.torchvision")
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=4).double().eval()
    pixels = noise(1, 3, 64, 64)
    with preserved(network):
        found = BASELINES["lrp"].attribute(objective_of(network), pixels, TARGET, INPUT)
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    canonizer = canonizers.ResNetCanonizer() if name == "resnet18" else canonizers.VGGCanonizer()
    leaf = pixels.clone().requires_grad_()
    with composites.EpsilonPlus(canonizers=[canonizer]).context(network) as hooked:
        score = hooked(leaf)[:, 1]
        (peer,) = torch.autograd.grad(score, leaf, score.detach())
    assert float((found - peer.sum(1)).abs().max() / peer.sum(1).abs().max()) < (2e-4 if name == "resnet18" else 1e-9)


def test_lrp_of_a_linear_network_is_gradient_times_input():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)).double()
    wanted = (PIXELS * network[1].weight.detach()[1].view(1, 3, SIZE, SIZE)).sum(1)
    assert torch.allclose(attributed("lrp", network, epsilon=0.0), wanted)


def test_excitation_loses_nothing_without_dead_ends():
    """Every unit has a positive weight from something positive, so the total stays 1 at every layer."""
    network = Residual(nn.ReLU())
    with torch.no_grad():
        for weight in (network.first.weight, network.second.weight, network.head.weight, network.norm.bias):
            weight.abs_()
    for layer in (INPUT, Layer("first", 1, 6, (SIZE, SIZE))):
        assert float(attributed("excitation_backprop", network, layer).sum()) == pytest.approx(1, rel=1e-9)


def test_contrast_of_equal_weights_is_nothing():
    """What speaks for a class as much as against it wins nothing."""
    network = nn.Sequential(nn.Conv2d(3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(2 * SIZE * SIZE, 4)).double()
    with torch.no_grad():
        network[0].weight[1], network[0].bias[1] = network[0].weight[0], network[0].bias[0]
        network[3].weight.view(4, 2, -1)[:, 0] = 1
        network[3].weight.view(4, 2, -1)[:, 1] = -1
    assert float(attributed("contrastive_excitation_backprop", network).abs().max()) < 1e-15
    assert float(attributed("excitation_backprop", network).sum()) > 0.1


@pytest.mark.parametrize("name", BASELINES)
def test_captioners(name: str):
    """On a caption's log-probability; what has no answer for an LSTM says so."""
    needs_of(name)
    model = gl.captioner("scenes")
    pixels = noise(1, 3, *model.size).float()
    objective = model.objective("a red circle")
    with torch.no_grad():
        ((target,),) = objective.choose(objective.outputs(pixels))
    before = model.weights_sha256()
    layer = Layer("input", 0, 3, model.size)
    attribute = partial(BASELINES[name].attribute, objective, pixels, target, layer, **QUICK.get(name, {}))
    if name in NO_LSTM:
        with preserved(model.network), pytest.raises(gl.GradlightError, match=f"{name} has no rule for"):
            attribute()
    else:
        with preserved(model.network):
            found = attribute()
        assert found.shape == (1, *model.size)
        assert found.isfinite().all()
        assert found.std() > 0
    assert model.weights_sha256() == before
