"""Calls at the same time, and errors in the middle of them: every map is right, and nothing is left changed."""

from __future__ import annotations

import gc
import random
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from test_preserve import Counts, check, state
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.baselines.baseline import seeded
from gradlight.models.preserve import as_written, exclusive, preserved

PIXELS = [torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
METAS = (None, gl.Meta(lr=0.05), gl.Meta(lr=0.05, direction="ascent"))
METHODS = ("selective_normgrad", "normgrad", "grad_cam", "gradient", "conv3x3+maxabs", "guided_backprop", "smoothgrad")


def build(seed: int = 0) -> nn.Sequential:
    """Make a network in the middle of somebody's training."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), Counts(),
        nn.Conv2d(6, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip
    network.train()
    network[5].eval()
    network[0].bias.requires_grad_(False)
    network[4].weight.grad = torch.full_like(network[4].weight, 0.25)
    network[4].register_forward_hook(lambda module, args, output: None)
    return network


def explain(model: Any, number: int) -> Tensor:
    """Make the map of one of many settings: pixels, target, method and meta step."""
    method, meta = METHODS[number % len(METHODS)], METAS[number // len(METHODS) % 3]
    layer = "input" if method == "smoothgrad" else "6"
    pixels = torch.cat([PIXELS[number % 3], PIXELS[(number + 1) % 3]]) if number % 2 else PIXELS[number % 3]
    maps: Tensor = gl.explain(model, pixels, number % 5, methods=method, layers=layer, meta=meta)[method, layer]
    return maps


SETTINGS = len(METHODS) * 3


@contextmanager
def frequent_switches() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def torch_state() -> dict[str, Any]:
    """Write down what of torch, numpy and Python a call could leave changed."""
    return {
        "random": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "modes": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "functions": torch._C._len_torch_function_stack(),
        "dispatch": torch._C._len_torch_dispatch_stack(),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic),
        "threads": torch.get_num_threads(),
        "autocast": (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
        "casts": torch.is_autocast_cache_enabled(),
        "nesting": (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
        "checkpointing": (torch.utils.checkpoint.CheckpointFunction, torch.utils.checkpoint._checkpoint_hook),
        "stance": stance(),
    }  # fmt: skip


def stance() -> str:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")
    return "default" if dynamo is None else dynamo._stance.stance


def same_as(expected: Tensor, made: Tensor) -> bool:
    return bool(torch.allclose(made, expected, rtol=1e-4, atol=1e-6 * float(expected.abs().max())))


# --- one network


@pytest.mark.parametrize("count", [12, pytest.param(200, marks=pytest.mark.slow)])
def test_eight_threads_on_one_network(count: int):
    network = build()
    model = gl.classifier(network)
    alone = [explain(model, number) for number in range(SETTINGS)]
    before, around = state(network), torch_state()

    def many(first: int) -> int:
        numbers = [(first * 5 + number) % SETTINGS for number in range(count)]
        return sum(same_as(alone[number], explain(model, number)) for number in numbers)

    with frequent_switches(), ThreadPoolExecutor(8) as threads:
        assert list(threads.map(many, range(8))) == [count] * 8
    check(network, before)
    assert torch_state() == around


def test_everything_that_runs_the_network_takes_its_turn():
    """Maps, predictions, scores, layers and checksums, from models of their own around one network."""
    network = build()
    right = gl.explain(gl.classifier(network), PIXELS[0], 1, layers="6", meta=METAS[1])["selective_normgrad", "6"]
    model = gl.classifier(network)
    predictions, sha256 = model.predict(PIXELS[0]), model.weights_sha256()
    names = [layer.name for layer in model.layers((16, 16))]
    before = state(network)
    wrong: list[Any] = []

    def again(number: int) -> None:
        other = gl.classifier(network)
        for _ in range(6):
            if number % 2:
                maps = gl.explain(other, PIXELS[0], 1, layers="6", meta=METAS[1])
                wrong.extend([] if same_as(right, maps["selective_normgrad", "6"]) else ["map"])
                wrong.extend([] if maps.origin.weights_sha256 == sha256 else ["origin"])
                continue
            made = other.predict(PIXELS[0])
            pairs = zip(made[0], predictions[0], strict=True)
            wrong.extend(each for each, was in pairs if abs(each.probability - was.probability) > 1e-5)
            wrong.extend([] if [layer.name for layer in other.layers((16, 16))] == names else ["layers"])
            wrong.extend([] if other.weights_sha256() == sha256 else ["checksum"])
            if len(other.labels) != 5:
                wrong.append("labels")

    with frequent_switches(), ThreadPoolExecutor(6) as threads:
        list(threads.map(again, range(6)))
    assert wrong == []
    check(network, before)


@pytest.mark.parametrize("joined_later", [False, True])
def test_networks_that_share_a_backbone_take_turns(joined_later: bool):
    """Also where the two parts were explained by themselves before they were joined."""
    backbone = build()[:8]
    heads = [nn.Sequential(nn.Conv2d(8, 5, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()) for _ in range(2)]
    if joined_later:
        for part in [backbone, *heads]:
            with exclusive(part):
                pass
    networks = [nn.Sequential(backbone, head) for head in heads]
    models = [gl.classifier(network) for network in networks]
    options: dict[str, Any] = {"layers": "0.6", "methods": "normgrad", "meta": METAS[2]}
    alone = [gl.explain(model, PIXELS[0], 2, **options)["normgrad", "0.6"] for model in models]
    before = [state(network) for network in networks]

    def again(number: int) -> bool:
        which = number % 2
        return same_as(alone[which], gl.explain(models[which], PIXELS[0], 2, **options)["normgrad", "0.6"])

    with frequent_switches(), ThreadPoolExecutor(4) as threads:
        assert all(threads.map(again, range(24)))
    for network, was in zip(networks, before, strict=True):
        check(network, was)


# --- several networks


def test_four_networks_run_at_the_same_time():
    """Each waits inside of its forward pass until all four are there."""
    meeting = threading.Barrier(4)

    class Meets(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            meeting.wait(timeout=60)
            return x

    networks = [nn.Sequential(nn.Conv2d(3, 4, 3), Meets(), nn.Flatten(), nn.Linear(784, 3)) for _ in range(4)]
    models = [gl.classifier(network) for network in networks]
    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda model: gl.explain(model, PIXELS[0], 1, layers="0"), models))
    assert [maps.layers for maps in made] == [["0"]] * 4


def test_noise_is_the_same_while_other_networks_draw_theirs():
    models = [gl.classifier(build(seed)) for seed in range(4)]
    options: dict[str, Any] = {"methods": "smoothgrad", "layers": "input"}
    alone = [gl.explain(model, PIXELS[0], 1, **options)["smoothgrad", "input"] for model in models]
    around = torch.get_rng_state()

    def again(number: int) -> bool:
        made = gl.explain(models[number % 4], PIXELS[0], 1, **options)["smoothgrad", "input"]
        return same_as(alone[number % 4], made)

    with frequent_switches(), ThreadPoolExecutor(4) as threads:
        assert all(threads.map(again, range(16)))
    assert torch.equal(torch.get_rng_state(), around)


def test_what_all_threads_share_is_restored_by_the_last():
    """Two uncompiled runs that overlap: the first to begin is the first to end."""
    import torch._dynamo

    around = torch_state()
    first, second = as_written(), as_written()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert (stance(), torch.is_autocast_cache_enabled()) == ("force_eager", False)
    assert torch.utils.checkpoint.CheckpointFunction is not around["checkpointing"][0]
    second.__exit__(None, None, None)
    assert torch_state() == around


def test_seeded_draws_take_turns():
    def draw(seed: int) -> list[float]:
        numbers: list[float] = []
        with seeded(seed, torch.device("cpu")):
            for _ in range(200):
                numbers.append(float(torch.rand(())))
        return numbers

    alone = [draw(seed) for seed in range(4)]
    with frequent_switches(), ThreadPoolExecutor(4) as threads:
        assert list(threads.map(draw, range(4))) == alone


# --- errors and interrupts


def free(network: nn.Module) -> bool:
    """Tell whether another thread can explain the network."""
    done: list[bool] = []
    model = gl.classifier(network)

    def other() -> None:
        maps = gl.explain(model, PIXELS[0], 1, layers="6", methods="gradient")
        done.append(bool(maps["gradient", "6"].isfinite().all()))

    thread = threading.Thread(target=other, daemon=True)
    thread.start()
    thread.join(60)
    return done == [True]


@pytest.mark.parametrize("meta", METAS)
@pytest.mark.parametrize("error", [ZeroDivisionError("a slip"), KeyboardInterrupt("by hand")])
def test_an_error_in_a_hook_of_ones_own(meta: gl.Meta | None, error: BaseException):
    network = build()
    model = gl.classifier(network)
    right = gl.explain(model, PIXELS[0], 1, layers="6", meta=meta)["selective_normgrad", "6"]
    calls = [0, 0]

    def hook(module: nn.Module, args: Any, output: Any) -> None:
        calls[0] += 1
        if calls[0] == calls[1]:
            raise error

    network[6].register_forward_hook(hook)
    before, around = state(network), torch_state()
    for last in (1, 2) if meta else (1,):
        calls[:] = [0, last]
        with pytest.raises(type(error), match=str(error)):
            gl.explain(model, PIXELS[0], 1, layers="6", meta=meta)
        check(network, before)
        assert torch_state() == around
    calls[:] = [0, -1]
    assert free(network)
    assert same_as(right, gl.explain(model, PIXELS[0], 1, layers="6", meta=meta)["selective_normgrad", "6"])


def test_a_context_that_is_never_left_is_undone_when_it_goes():
    """As of a generator that nobody runs to its end."""
    network = build()
    before = state(network)

    def generator() -> Iterator[int]:
        with preserved(network):
            yield 1
            yield 2

    started = generator()
    next(started)
    del started
    gc.collect()
    check(network, before)
    assert free(network)
