"""After a call the network is bit for bit as it was: weights, buffers, grads, flags and hooks, also after an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.methods import METHODS
from gradlight.models.preserve import preserved

PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
METAS = {"plain": None, "descent": gl.Meta(lr=0.05), "ascent": gl.Meta(lr=0.05, direction="ascent")}

ERRORS = {"error": RuntimeError("the network broke"), "Ctrl-C": KeyboardInterrupt("by hand")}


class Interrupts(nn.Module):
    """Pass everything on until a number of runs have passed, then raise."""

    def __init__(self) -> None:
        super().__init__()
        self.runs, self.last, self.error = 0, 10**9, KeyboardInterrupt()

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        if self.runs > self.last:
            raise self.error
        return x


class Counts(nn.Module):
    """Buffers that the forward pass changes: one in place, one by putting another tensor there, eval mode or not."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))
        self.register_buffer("largest", torch.zeros(()))
        self.register_buffer("hidden", torch.ones(2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        self.largest = torch.maximum(self.largest, x.detach().abs().max().to(self.largest))
        self.hidden.mul_(2)
        return x


def build() -> nn.Sequential:
    """Make a network in the middle of somebody's training."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Counts(), nn.Dropout2d(0.3),
        nn.Conv2d(6, 6, 3), nn.ReLU(inplace=True), Interrupts(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Dropout(0.5), nn.Linear(6, 5),
    )  # fmt: skip
    network.train()
    network[4].eval()
    network[0].bias.requires_grad_(False)
    network[1].requires_grad_(False)
    network[5].weight.grad = torch.full_like(network[5].weight, 0.25)
    network[1].weight.grad = torch.ones(6)
    network[5].register_forward_hook(lambda module, args, output: None)
    network[5].register_forward_pre_hook(lambda module, args: None)
    network[11].register_full_backward_hook(lambda module, into, out: None)
    network.register_forward_hook(lambda module, args, output: output)
    network[0].weight.register_hook(lambda gradient: gradient)
    return network


HOOKS = [name for name in vars(nn.Module()) if "hooks" in name]


def state(network: nn.Module) -> dict[str, Any]:
    """Write down everything that a call could leave behind; tensors with their identity, their place and their bits."""
    found: dict[str, Any] = {}
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        found[f"{name}: tensor"] = (id(tensor), tensor.data_ptr(), tensor.dtype, tensor.requires_grad)
        found[f"{name}: values"] = tensor.detach().clone()
        found[f"{name}: grad"] = None if tensor.grad is None else tensor.grad.clone()
        found[f"{name}: grad's identity"] = id(tensor.grad)
        found[f"{name}: hooks"] = list((tensor._backward_hooks or {}).items())
    for name, module in network.named_modules():
        found[f"{name}: flags"] = (module.training, getattr(module, "inplace", None), type(module), module.forward)
        for kind in HOOKS:
            hooks = getattr(module, kind)
            found[f"{name}: {kind}"] = list(hooks.items()) if isinstance(hooks, dict) else hooks
    return found


def check(network: nn.Module, before: dict[str, Any]) -> None:
    after = state(network)
    assert after.keys() == before.keys()
    for key, was in before.items():
        same = torch.equal(after[key], was) if isinstance(was, Tensor) else after[key] == was
        assert same, f"{key} was {was} and is {after[key]}"


def call(network: nn.Module, meta: gl.Meta | None, method: Any = "normgrad", **options: Any) -> gl.SaliencyMaps:
    asked = {"target": [["top", 1]], "methods": method, "layers": ["5"], **options}
    return gl.explain(gl.classifier(network), PIXELS, meta=meta, **asked)


@pytest.fixture
def network() -> nn.Sequential:
    return build()


def test_the_check_sees_a_difference(network: nn.Sequential):
    """Each thing that the check is about, changed by hand, makes it fail."""
    changes: list[Callable[[], Any]] = [
        lambda: network[5].weight.data.view(-1)[0].add_(1e-6),
        lambda: setattr(network[5].weight, "data", network[5].weight.data.clone()),
        lambda: network[3].seen.add_(1),
        lambda: network[3]._buffers.update(seen=network[3].seen.clone()),
        lambda: network[5].weight.grad.add_(1),
        lambda: setattr(network[5].weight, "grad", network[5].weight.grad.clone()),
        lambda: setattr(network[11].weight, "grad", torch.zeros(5, 6)),
        lambda: network[0].bias.requires_grad_(True),
        lambda: network[4].train(),
        lambda: setattr(network[2], "inplace", False),
        lambda: network[5].register_forward_hook(lambda *_: None),
        lambda: network[0].register_full_backward_hook(lambda *_: None),
        lambda: network[5]._forward_hooks.clear(),
    ]
    for change in changes:
        before = state(network)
        change()
        with pytest.raises(AssertionError, match=" was "):
            check(network, before)


@pytest.mark.parametrize("meta", METAS.values(), ids=METAS)
@pytest.mark.parametrize("method", METHODS)
def test_after_success(network: nn.Sequential, method: str, meta: gl.Meta | None):
    """`cam` is asked where it is defined, `normgrad_real` where there is a weight."""
    before = state(network)
    layers = {"cam": ["6"], "normgrad_real": ["5"]}.get(method, ["input", "5"])
    maps = call(network, meta, method, layers=layers)
    check(network, before)
    assert bool(maps[method, maps.layers[-1]].any())


@pytest.mark.parametrize("meta", METAS.values(), ids=METAS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_after_an_error_in_any_forward_pass(
    network: nn.Sequential, method: str, meta: gl.Meta | None, error: BaseException
):
    """Every run of the network is broken off in turn: the choice of targets, the inner step, the pass at θ′."""
    layers = ["6"] if method == "cam" else ["5"]
    model = gl.classifier(network)
    model.layers((12, 12))
    asked = {"methods": method, "layers": layers, "meta": meta, "batch_size": 1}
    gl.explain(model, PIXELS, 2, **asked)
    before = state(network)
    breaker = network[7]
    breaker.runs = 0
    gl.explain(model, PIXELS, 2, **asked)
    runs = breaker.runs
    assert runs == (2 if meta is None else 6)
    for last in range(runs):
        breaker.runs, breaker.last, breaker.error = 0, last, error
        with pytest.raises(type(error), match=str(error)):
            gl.explain(model, PIXELS, 2, **asked)
        check(network, before)


@pytest.mark.parametrize("error", ERRORS.values(), ids=ERRORS)
def test_after_an_error_while_layers_are_found(network: nn.Sequential, error: BaseException):
    before = state(network)
    network[7].last, network[7].error = 0, error
    expected = gl.GradlightError if isinstance(error, RuntimeError) else KeyboardInterrupt
    with pytest.raises(expected, match=str(error)):
        gl.classifier(network).layers((12, 12))
    check(network, before)


class BreaksGoingBack(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        raise KeyboardInterrupt("going back")


@pytest.mark.parametrize("meta", METAS.values(), ids=METAS)
def test_after_an_interrupt_in_the_backward_pass(network: nn.Sequential, meta: gl.Meta | None):
    model = gl.classifier(network)
    gl.explain(model, PIXELS, 2, layers="5")
    before = state(network)
    network[7].forward = BreaksGoingBack.apply
    with pytest.raises(KeyboardInterrupt, match="going back"):
        gl.explain(model, PIXELS, 2, layers="5", meta=meta)
    del network[7].forward
    check(network, before)


@pytest.mark.parametrize("meta", METAS.values(), ids=METAS)
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"target": 7}, "There is no class 7"),
        ({"target": "zebra"}, "No class is called 'zebra'"),
        ({"target": [0, 1, 2]}, "There are 3 targets for 2 images"),
        ({"method": "normgrat"}, "No method is called 'normgrat'"),
        ({"method": "real+norm", "layers": "6"}, "real contributions were asked at '6'"),
        ({"method": "cam", "layers": "0"}, "cam was asked at '0'"),
        ({"layers": "55"}, "No layer is called '55'"),
    ],
)
def test_after_asking_for_what_is_not_there(
    network: nn.Sequential, wrong: dict[str, Any], message: str, meta: gl.Meta | None
):
    before = state(network)
    with pytest.raises(gl.GradlightError, match=message):
        call(network, meta, **wrong)
    check(network, before)


@pytest.mark.parametrize("meta", METAS.values(), ids=METAS)
def test_after_an_error_in_a_method_of_ones_own(network: nn.Sequential, meta: gl.Meta | None):
    """The weights are at θ′ when the method runs."""

    def broken(tap: Any) -> Any:
        raise ZeroDivisionError("a slip")

    before = state(network)
    with pytest.raises(ZeroDivisionError, match="a slip"):
        call(network, meta, gl.Method(broken, "sum"))
    check(network, before)


def test_the_weights_are_moved_while_the_method_runs(network: nn.Sequential):
    """Or else the checks of the meta step would check nothing."""
    weight = network[11].weight.detach().clone()
    seen = []

    def look(tap: Any) -> Any:
        seen.append(network[11].weight.detach().clone())
        return tap.gradient_field

    for meta in METAS.values():
        gl.explain(gl.classifier(network), PIXELS[:1], 1, methods=gl.Method(look, "sum"), layers="5", meta=meta)
    assert torch.equal(seen[0], weight)
    descent, ascent = (seen[1] - weight), (seen[2] - weight)
    assert float(descent.norm()) > 1e-4
    # Each stepped weight is rounded to float32.
    assert torch.allclose(
        descent, -ascent, rtol=1e-5, atol=2 * torch.finfo(torch.float32).eps * float(weight.abs().max())
    )


def test_predict_and_labels_preserve_too(network: nn.Sequential):
    before = state(network)
    model = gl.classifier(network, preprocess=lambda image: PIXELS[0])
    assert len(model.labels) == 5
    model.predict(PIXELS)
    check(network, before)


def test_a_shared_module_and_a_shared_buffer(network: nn.Sequential):
    network.append(network[5])
    shared = nn.Sequential(network[:12], Counts())
    shared[1].seen = network[3].seen
    before = state(shared)
    with preserved(shared):
        shared(PIXELS)
        assert float(network[3].seen) == 4
    check(shared, before)


class Remembers(nn.Module):
    """A buffer that is filled by the first forward pass, and one that is made by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", None)

    def forward(self, x: Tensor) -> Tensor:
        if self.mean is None:
            self.mean = x.detach().mean()
            self.register_buffer("size", torch.tensor(x.shape))
        return x - self.mean


def test_buffers_that_the_forward_pass_makes(network: nn.Sequential):
    network[3] = Remembers()
    before = state(network)
    call(network, None)
    check(network, before)
    assert dict(network[3]._buffers) == {"mean": None}


def test_a_buffer_made_under_inference_mode(network: nn.Sequential):
    """As a forward pass under inference_mode leaves it behind."""
    with torch.inference_mode():
        network[3].largest = torch.ones(())
    before = state(network)
    call(network, METAS["descent"])
    check(network, before)


def test_what_is_given_to_preserved_is_in_eval_mode_and_frozen(network: nn.Sequential):
    with torch.no_grad(), preserved(network):
        assert torch.is_grad_enabled()
        assert not any(module.training for module in network.modules())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_made_under_inference_mode_are_refused():
    with torch.inference_mode():
        network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    with pytest.raises(gl.GradlightError, match=r"made under torch\.inference_mode"):
        gl.explain(gl.classifier(network), PIXELS, 0)
