"""Checksums of networks: remembered while nothing changes, and never a moment longer."""

from __future__ import annotations

import functools
import gc
import hashlib
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError
from gradlight.models import fingerprint as module
from gradlight.models.change_detection import Probe
from gradlight.models.fingerprint import fingerprint, objective_sha256, pixels_sha256, value_sha256, weights_sha256

ROOT = Path(__file__).resolve().parents[2]


class Scaled(nn.Module):
    """A network with every kind of thing that decides what it answers."""

    def __init__(self, act: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.conv, self.norm, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), act()
        self.head = nn.Linear(8, 5)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.scale, self.steps, self.then = 2.0, [1, 2], torch.relu
        self.plain = torch.ones(4)

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.act(self.norm(self.conv(pixels))) * self.scale + self.shift
        return self.head(found.mean((2, 3)))


def network(**options: Any) -> Scaled:
    torch.manual_seed(0)
    return Scaled(**options).eval()


def by_definition(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def stepped(net: Scaled) -> None:
    net(torch.rand(2, 3, 8, 8)).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def in_inference(net: Scaled) -> None:
    with torch.inference_mode():
        net.head.weight[1, 2] += 1


def under_no_grad(net: Scaled) -> None:
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] += 1


def assigned(net: Scaled) -> None:
    net.head.weight.data = net.head.weight.data.clone() + 1


def halved(net: Scaled) -> None:
    net.half()


WRITES: dict[str, Callable[[Scaled], Any]] = {
    "an optimizer's step": stepped,
    "one number through .data": lambda net: net.conv.weight.data[3, 1, 2, 0].add_(1e-6),
    "one number through NumPy": lambda net: np.negative(
        net.head.weight.detach().numpy()[2:3], out=net.head.weight.detach().numpy()[2:3]
    ),
    "one number under inference_mode": in_inference,
    "one number under no_grad": under_no_grad,
    "another tensor as .data": assigned,
    "another parameter": lambda net: setattr(net.head, "bias", nn.Parameter(torch.ones(5))),
    "running statistics": lambda net: net.norm.running_var.data.mul_(1.01),
    "a buffer": lambda net: net.mean.data[1:].fill_(1),
    "half precision": halved,
    "rows that change places": lambda net: net.head.weight.data.copy_(net.head.weight.data.flip(0)),
    "loaded weights": lambda net: net.load_state_dict({**net.state_dict(), "head.bias": torch.zeros(5)}),
}

CHANGES: dict[str, Callable[[Scaled], Any]] = {
    "a buffer that is not saved": lambda net: net.shift.data.fill_(1),
    "a tensor that is no buffer": lambda net: net.plain.data[2:3].fill_(7),
    "a number": lambda net: setattr(net, "scale", 3.0),
    "a list in place": lambda net: net.steps.append(3),
    "a new attribute": lambda net: setattr(net, "extra", 1),
    "one attribute for another": lambda net: (setattr(net, "other", 2.0), delattr(net, "scale")),
    "a function": lambda net: setattr(net, "then", torch.tanh),
    "a stride": lambda net: setattr(net.conv, "stride", (2, 2)),
    "an activation": lambda net: setattr(net, "act", nn.GELU()),
    "a new module": lambda net: net.add_module("more", nn.ReLU()),
    "a hook": lambda net: net.conv.register_forward_hook(lambda *_: None),
    "a hook before": lambda net: net.register_forward_pre_hook(lambda *_: None),
    "a forward of its own": lambda net: setattr(net, "forward", functools.partial(Scaled.forward, net)),
}


@pytest.mark.parametrize("change", [*WRITES, *CHANGES])
def test_every_change_is_noticed_and_nothing_else(change: str) -> None:
    net = network()
    before = fingerprint(net)
    assert fingerprint(net) == before
    assert before.weights == weights_sha256(net) == by_definition(net)
    {**WRITES, **CHANGES}[change](net)
    after = fingerprint(net)
    assert after.everything != before.everything
    assert (after.weights != before.weights) == (change in WRITES)
    assert after.weights == weights_sha256(net) == by_definition(net)
    assert fingerprint(net) == after


def test_nothing_is_hashed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    known = fingerprint(net)
    monkeypatch.setattr(module, "raw_bytes", None)
    monkeypatch.setattr(module, "_hash_weights", None)
    assert fingerprint(net) == known
    assert weights_sha256(net) == known.weights


@pytest.mark.parametrize("source", ["scenes", "timm/vit_tiny_patch16_224", "timm/swin_tiny_patch4_window7_224"])
def test_running_and_explaining_a_network_changes_nothing(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gl.classifier(source, pretrained=source == "scenes")
    pixels = torch.rand(1, 3, *model.size)
    gl.explain(model, pixels)
    known = fingerprint(model.network)
    gl.explain(model, pixels, meta=gl.Meta(0.01))
    monkeypatch.setattr(module, "_hash_weights", None)
    assert fingerprint(model.network) == known


def test_the_same_network_made_again_is_the_same() -> None:
    assert fingerprint(network()) == fingerprint(network())
    assert fingerprint(network()).everything != fingerprint(network(act=nn.GELU)).everything
    assert fingerprint(network()).weights == fingerprint(network(act=nn.GELU)).weights


def test_the_same_weights_with_another_forward_are_another_network() -> None:
    class Other(Scaled):
        def forward(self, pixels: Tensor) -> Tensor:
            return super().forward(pixels) * 2

    other = Other()
    other.load_state_dict(network().state_dict())
    assert fingerprint(other).weights == fingerprint(network()).weights
    assert fingerprint(other).everything != fingerprint(network()).everything


@pytest.mark.slow
def test_other_processes_find_the_same() -> None:
    code = """if True:
        import torch, gradlight as gl
        from gradlight.models.fingerprint import fingerprint, objective_sha256, value_sha256
        from gradlight.explainers.methods import METHODS
        torch.manual_seed(0)
        model = gl.classifier("timm/resnet18", pretrained=False)
        captioner = gl.captioner("scenes")
        print(fingerprint(model.network), fingerprint(captioner.network), value_sha256(METHODS["grad_cam"]))
        print(objective_sha256(model.objective("tabby")), objective_sha256(captioner.objective()))
    """
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1


def test_a_network_can_be_forgotten() -> None:
    net = network()
    fingerprint(net)
    seen = weakref.ref(net)
    del net
    gc.collect()
    assert seen() is None


def sliced() -> nn.Module:
    net = nn.Linear(4, 4)
    net.weight = nn.Parameter(torch.rand(8, 8)[::2, ::2])
    return net


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    return net


def made_in_inference() -> nn.Module:
    with torch.inference_mode():
        return nn.BatchNorm2d(4)


class Keeper(nn.Module):
    """Says in its state more than its modules hold."""

    def __init__(self) -> None:
        super().__init__()
        self.held = [torch.ones(3)]

    def get_extra_state(self) -> Tensor:
        return self.held[0]


ODD: dict[str, Callable[[], nn.Module]] = {
    "channels last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "bfloat16": lambda: nn.Linear(4, 4).bfloat16(),
    "complex": lambda: nn.Linear(4, 4, dtype=torch.complex64),
    "a slice": sliced,
    "shared": tied,
    "made under inference_mode": made_in_inference,
    "nothing": nn.ReLU,
    "empty": lambda: nn.Linear(0, 3),
    "no numbers that can be seen": lambda: Keeper(),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_weights_of_every_kind(kind: str) -> None:
    net = ODD[kind]()
    for _ in range(2):
        assert weights_sha256(net) == by_definition(net) == fingerprint(net).weights
    before = fingerprint(net)
    tensors = [*net.parameters(), *net.buffers(), *getattr(net, "held", [])]
    if not any(tensor.numel() for tensor in tensors):
        return
    first = next(tensor for tensor in tensors if tensor.numel())
    with torch.inference_mode():
        first[-1:].add_(3)
    assert weights_sha256(net) == by_definition(net) != before.weights
    assert fingerprint(net).everything != before.everything


SMALL = torch.rand(40_000, generator=torch.Generator().manual_seed(0))
LARGE = torch.rand(9_000_000, generator=torch.Generator().manual_seed(1))


@given(st.integers(0, len(SMALL) - 1), st.floats(width=32))
@settings(max_examples=40, deadline=None)
def test_of_few_weights_every_number_is_looked_at(place: int, value: float) -> None:
    tensor = SMALL.clone()
    probe = Probe([tensor])
    tensor.numpy()[place] = value
    assert probe.same([tensor]) == (tensor.numpy().tobytes() == SMALL.numpy().tobytes())


@given(st.integers(0, 39), st.integers(0, 39))
@settings(max_examples=40, deadline=None)
def test_rows_that_change_places_are_noticed(one: int, other: int) -> None:
    tensor = SMALL.clone().view(40, 1000)
    probe = Probe([tensor])
    tensor.numpy()[[one, other]] = tensor.numpy()[[other, one]]
    assert probe.same([tensor]) == (one == other)


@given(st.integers(0, len(LARGE) - 256), st.integers(256, 400))
@settings(max_examples=15, deadline=None)
def test_of_many_weights_a_run_of_numbers_is_noticed(start: int, count: int) -> None:
    tensor = LARGE.clone()
    probe = Probe([tensor])
    assert probe.same([tensor])
    tensor.numpy()[start : start + count] += 1
    assert not probe.same([tensor])


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("number", [0, 1, 77, 1999])
@pytest.mark.parametrize("axis", [0, 1])
def test_of_many_weights_every_filter_and_every_input_channel_is_looked_at(
    axis: int, number: int, memory: torch.memory_format
) -> None:
    weight = nn.Parameter(LARGE[: 2000 * 2000 * 2].view(2000, 2000, 1, 2).to(memory_format=memory).clone())
    probe = Probe([weight, LARGE])
    assert probe.same([weight, LARGE])
    weight.data.select(axis, number).zero_()
    assert not probe.same([weight, LARGE])


def test_a_square_weight_that_is_turned_is_noticed() -> None:
    weight = nn.Parameter(torch.rand(5, 5))
    probe = Probe([weight])
    weight.data = weight.data.t()
    assert not probe.same([weight])


def test_tensors_that_are_not_plain_memory_are_refused() -> None:
    for tensor in (torch.eye(3).to_sparse(), torch.empty(3, device="meta"), torch.rand(3, dtype=torch.cfloat).conj()):
        with pytest.raises((TypeError, RuntimeError), match=r"no numbers|plain memory|storage"):
            Probe([tensor])


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_network_that_cannot_be_described_says_so() -> None:
    net = network()
    net.everything = [object() for _ in range(300_000)]
    with pytest.raises(GradlightError, match="too much to describe"):
        fingerprint(net)
    traced = nn.Sequential(torch.jit.trace(nn.Conv2d(3, 2, 1), torch.rand(1, 3, 4, 4), check_trace=False))
    with pytest.raises(GradlightError, match="TorchScript"):
        fingerprint(traced)


def test_a_circle_is_no_trouble() -> None:
    net = network()
    object.__setattr__(net, "itself", {"again": net})
    known = fingerprint(net)
    assert fingerprint(net) == known


def test_modules_that_are_hidden_in_a_list_count() -> None:
    hidden = [nn.Linear(2, 2)]
    net = network()
    net.hidden = hidden
    before = fingerprint(net)
    assert fingerprint(net) == before
    hidden[0].weight.data[1, 1] += 1
    assert fingerprint(net).everything != before.everything


def test_values_that_act_alike_have_the_same_checksum() -> None:
    def made(factor: float) -> Callable[[float], float]:
        return lambda x: factor * x

    assert value_sha256(made(2.0)) == value_sha256(made(2.0))
    assert value_sha256(made(2.0)) != value_sha256(made(3.0))
    assert value_sha256({"a", "b", "c"}) == value_sha256({"c", "b", "a"})
    assert value_sha256(gl.Method("bias", "sum")) == value_sha256(gl.Method("bias", "sum"))
    different = [
        1,
        True,
        1.0,
        "1",
        (1,),
        [1],
        {1: 1},
        None,
        b"1",
        np.ones(1),
        torch.ones(1),
        torch.float32,
        int,
        Path(),
    ]
    assert len({value_sha256(value) for value in different}) == len(different)


def test_what_an_objective_asks_is_told_apart() -> None:
    def asked(target: Any, **options: Any) -> str:
        return objective_sha256(gl.classifier(network(), **options).objective(target))

    names = ["a", "b", "c", "d", "e"]
    same = [asked(None), asked("top"), asked(["top"]), asked([["top"]])]
    assert len(set(same)) == 1
    others = [asked(1), asked("min"), asked([1, 2]), asked("top", multi_label=True), asked("top", labels=names)]
    assert len({same[0], *others, asked("top", labels=names[::-1]), asked("top", output=0)}) == 8


def test_labels_that_were_made_up_say_nothing() -> None:
    model = gl.classifier(network())
    before = objective_sha256(model.objective("top"))
    assert model.labels[4] == "class_4"
    assert objective_sha256(model.objective("top")) == before


def test_what_a_caption_asks_is_told_apart() -> None:
    captioner = gl.captioner("scenes")
    caption = captioner.caption(np.full((160, 160, 3), 90, np.uint8))[0]
    words = [captioner.objective(target) for target in (None, caption.text, caption, caption.words, caption.words[0])]
    found = [*words, captioner.word_objective(None), captioner.word_objective(caption)]
    assert len({objective_sha256(objective) for objective in found}) >= len(found) - 2
    assert objective_sha256(words[0]) == objective_sha256(gl.captioner("scenes").objective(None))


def test_pixels_are_told_apart_by_numbers_shape_and_dtype() -> None:
    pixels = torch.arange(48.0).view(3, 4, 4)
    assert (
        pixels_sha256(pixels) == pixels_sha256(pixels.clone()) == pixels_sha256(pixels.transpose(1, 2).contiguous().mT)
    )
    others = [pixels + 1, pixels.double(), pixels.view(3, 2, 8), pixels.flip(0)]
    assert len({pixels_sha256(one) for one in [pixels, *others]}) == 5
