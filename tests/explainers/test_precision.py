"""Passes in bfloat16, scratch memory, few threads: the same maps, as nearly as is promised."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
import torchvision
from scipy.stats import spearmanr
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers import batch
from gradlight.explainers.capture import Tap, TapOf, record
from gradlight.explainers.contributions import Contribution, Dense, scratch_like
from gradlight.explainers.methods import METHODS
from gradlight.models.preserve import preserved

ANYWHERE = [name for name in METHODS if name not in ("cam", "normgrad_real")]
SCENES = [f"scenes:{seed}" for seed in range(20_000_000, 20_000_004)]


class Layouts(nn.Module):
    """A network that notes how its pixels lie in memory and in which precision it computes."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.head = first, nn.Linear(4, 3)
        self.seen: list[tuple[bool, torch.dtype]] = []

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.first(pixels)
        last = pixels.is_contiguous(memory_format=torch.channels_last) and not pixels.is_contiguous()
        self.seen.append((last, found.dtype))
        logits: Tensor = self.head(torch.relu(found).mean((2, 3)))
        return logits


class Patches(nn.Module):
    """Pixels to patches by a linear layer: no convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(3, 4)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.mix(pixels.movedim(1, -1)).movedim(-1, 1)


def small() -> tuple[gl.models.classifiers.Classifier, Tensor]:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(num_classes=5).eval()
    return gl.classifier(network), torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def is_flat(values: Tensor) -> bool:
    return float(values.max() - values.min()) <= 1e-5 * float(values.abs().max())


def test_bfloat16_maps_order_the_places_as_float32_maps_do() -> None:
    model = gl.classifier("scenes")
    plain = gl.explain(model, SCENES, methods=ANYWHERE)
    short = gl.explain(model, SCENES, methods=ANYWHERE, precision="bf16")
    for pair in plain.pairs:
        assert short[pair].dtype == torch.float32
        both = zip(plain[pair].flatten(2)[:, 0], short[pair].flatten(2)[:, 0], strict=True)
        found = [spearmanr(before, after).statistic for before, after in both if not is_flat(before)]
        # Sums of both signs cancel, and what is left is less exact.
        least = 0.98 if pair[0] in ("gradient", "normgrad", "selective_normgrad") else 0.9
        assert not found or sum(found) / len(found) >= least, pair


@pytest.mark.parametrize(("first", "last"), [(nn.Conv2d(3, 4, 3), True), (Patches(), False)])
def test_only_convolutions_get_their_channels_last(first: nn.Module, last: bool) -> None:
    network = Layouts(first)
    model, pixels = gl.classifier(network), torch.randn(2, 3, 8, 8)
    gl.explain(model, pixels, 0, layers="input")
    assert network.seen[-1] == (False, torch.float32)
    gl.explain(model, pixels, 0, layers="input", precision="bf16")
    assert network.seen[-1] == (last, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gl.explain(model, pixels, 0, layers="input", precision="float32")
    assert network.seen[-1] == (False, torch.float32)


def test_precisions_do_not_share_a_cache(tmp_path: Path) -> None:
    model, pixels = small()
    plain = gl.explain(model, pixels, layers="layer2", cache=tmp_path)
    short = gl.explain(model, pixels, layers="layer2", cache=tmp_path, precision="bf16")
    assert not torch.equal(plain["selective_normgrad", "layer2"], short["selective_normgrad", "layer2"])
    again = gl.explain(model, pixels, layers="layer2", cache=tmp_path)
    assert torch.equal(plain["selective_normgrad", "layer2"], again["selective_normgrad", "layer2"])


def test_another_precision_is_refused() -> None:
    model, pixels = small()
    with pytest.raises(gl.GradlightError, match=r"not 'bf61'\. Did you mean 'bf16'"):
        gl.explain(model, pixels, precision="bf61")


def test_working_memory_is_used_over_and_over() -> None:
    first = torch.randn(2, 3, 4, 5)
    place = scratch_like(first).data_ptr()
    assert scratch_like(first[:1]).data_ptr() == place
    last = first.contiguous(memory_format=torch.channels_last)
    assert scratch_like(last).stride() == last.stride()
    assert scratch_like(last).data_ptr() == place
    assert scratch_like(first.double()).dtype == torch.float64
    assert scratch_like(first[:, :, ::2]).data_ptr() != place
    assert scratch_like(torch.empty(2**23)).data_ptr() != place


@pytest.mark.parametrize("what", ["gradient", "activation"])
def test_a_tap_is_dropped_as_soon_as_it_was_seen(what: str) -> None:
    model, pixels = small()
    layers = [layer for layer in model.layers((64, 64)) if layer.name.startswith("layer") and "." not in layer.name]
    alive: list[weakref.ref[Tensor]] = []
    counts: list[int] = []

    def see(tap_of: TapOf, gradient: Tensor) -> None:
        tap = tap_of(gradient)
        alive.append(weakref.ref(getattr(tap, what)))
        counts.append(sum(each() is not None for each in alive))

    with preserved(model.network):
        recording = record(model.objective([[0, 1]]), pixels[:1], layers)
        recording.taps(0)
        recording.backward(1, see)
    assert counts == [1, 1, 1, 1]


@pytest.mark.skipif(not torch.backends.openmp.is_available(), reason="the number of threads is the whole process's")
def test_small_statistics_wake_no_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = small()
    monkeypatch.setattr(batch, "_THREADED_BYTES", 4 * 32768)
    used: dict[int, int] = {}

    def noting(tap: Tap) -> Contribution:
        used[tap.gradient.numel() * tap.gradient.element_size()] = torch.get_num_threads()
        if len(used) == 4:
            raise KeyError("the last layer is none of mine")
        return Dense(tap.gradient)

    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with pytest.raises(KeyError, match="none of mine"):
            gl.explain(model, pixels[:1], 0, methods=gl.Method(noting, "sum"), layers="stages")
        assert used == {8192: 1, 16384: 1, 32768: 1, 65536: 4}
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(before)
