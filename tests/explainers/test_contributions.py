"""Phase 1's algebra against entries that are made one by one, and against autograd's own weight gradients."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from by_definition import AGGREGATIONS, STATISTICS, entries, relative, summed, tap_at
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gradlight.explainers.aggregation import AGGREGATES
from gradlight.explainers.contributions import Contribution, Dense, Outer, Patches
from gradlight.explainers.extraction import EXTRACTS

SIGNS = ("mixed", "positive", "negative", "sparse", "zero")


def field(seed: int, shape: tuple[int, ...], signs: str) -> Tensor:
    """Make numbers of a pattern of signs; "sparse" is what comes out of a ReLU."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return {
        "mixed": values,
        "positive": values.abs(),
        "negative": -values.abs(),
        "sparse": values.clamp(min=0),
        "zero": values * 0,
    }[signs]


@dataclass
class Geometry:
    """A convolution's shape: kernel, stride, dilation (vertical, horizontal), padding, groups, channels per group."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    padding: tuple[int, int, int, int]
    groups: int
    inputs: int
    outputs: int
    size: tuple[int, int]
    batch: int


def pairs(low: int, high: int) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    kernel, dilation = draw(pairs(1, 3)), draw(pairs(1, 2))
    left, right, top, bottom = draw(st.tuples(*[st.integers(0, 2)] * 4))
    least = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    rows = draw(st.integers(max(1, least[0] - top - bottom), 7))
    columns = draw(st.integers(max(1, least[1] - left - right), 7))
    channels = st.integers(1, 3)
    return Geometry(
        kernel=kernel,
        stride=draw(pairs(1, 3)),
        dilation=dilation,
        padding=(left, right, top, bottom),
        groups=draw(channels),
        inputs=draw(channels),
        outputs=draw(channels),
        size=(rows, columns),
        batch=draw(st.integers(1, 2)),
    )


def outer(geometry: Geometry, seed: int, signs: tuple[str, str]) -> Outer:
    """Make the contribution of a convolution to random numbers."""
    g = geometry
    x = field(seed, (g.batch, g.groups * g.inputs, *g.size), signs[0])
    patches = Patches(Dense(x, g.groups), g.kernel, g.stride, g.padding, g.dilation)
    rows, columns = entries(patches).shape[3:]
    gradient = field(seed + 1, (g.batch, g.groups * g.outputs, rows, columns), signs[1])
    return Outer(Dense(gradient, g.groups), patches)


def check(contribution: Contribution) -> None:
    """Compare every statistic and every aggregation with the definition.

    Sums that cancel are compared with the sum of the entries' magnitudes, everything else with itself.
    """
    slow = entries(contribution)
    for name, statistic in STATISTICS.items():
        wanted = statistic(slow)
        slack = 1e-9 * (slow.abs().sum(2) if name == "total" else wanted.abs())
        difference = (getattr(contribution, name) - wanted).abs()
        assert bool((difference <= slack).all()), (name, float(difference.max()))
    flat = slow.flatten(1, 2)
    for name, aggregate in AGGREGATES.items():
        wanted = AGGREGATIONS[name](flat)
        slack = 1e-9 * (flat.abs().sum(1) if name == "sum" else wanted.abs())
        difference = (aggregate(contribution) - wanted).abs()
        assert bool((difference <= slack).all()), (name, float(difference.max()))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(SIGNS), st.tuples(*[st.integers(1, 4)] * 4), st.integers(1, 3))
def test_vectors_have_the_statistics_of_their_entries(seed: int, signs: str, shape: tuple[int, ...], groups: int):
    batch, channels, rows, columns = shape
    check(Dense(field(seed, (batch, groups * channels, rows, columns), signs), groups))


@settings(max_examples=150, deadline=None)
@given(geometries(), st.integers(0, 10**6), st.tuples(st.sampled_from(SIGNS), st.sampled_from(SIGNS)))
def test_convolutions_have_the_statistics_of_their_matrices(geometry: Geometry, seed: int, signs: tuple[str, str]):
    check(outer(geometry, seed, signs))
    check(outer(geometry, seed, signs).right)


@settings(max_examples=60, deadline=None)
@given(geometries(), st.integers(0, 10**6), st.booleans())
def test_contributions_of_a_convolution_are_autograds(geometry: Geometry, seed: int, biased: bool):
    """At one location: autograd's weight gradient with g zeroed elsewhere. Over all: its weight gradient."""
    g = geometry
    padding = g.padding[2], g.padding[0]
    size = [max(n, d * (k - 1) + 1 - 2 * p) for n, d, k, p in zip(g.size, g.dilation, g.kernel, padding, strict=True)]
    conv = nn.Conv2d(
        g.groups * g.inputs, g.groups * g.outputs, g.kernel, g.stride, padding, g.dilation, g.groups, biased
    ).double()
    x = field(seed, (g.batch, g.groups * g.inputs, *size), "mixed")
    out = conv(x)
    gradient = field(seed + 1, tuple(out.shape), "mixed")
    contribution = EXTRACTS["real"](tap_at(conv, x, gradient))
    check(contribution)
    assert relative(summed(contribution), one_location(conv, x, gradient).flatten()) < 1e-9
    image, row, column = (seed % n for n in (out.shape[0], out.shape[2], out.shape[3]))
    only = torch.zeros_like(gradient)
    only[image, :, row, column] = gradient[image, :, row, column]
    here = entries(contribution)[image, :, :, row, column].flatten()
    assert relative(here, one_location(conv, x, only).flatten()) < 1e-9


def one_location(conv: nn.Conv2d, x: Tensor, gradient: Tensor) -> Tensor:
    return torch.autograd.grad(conv(x), conv.weight, gradient)[0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("padding", ["same", "valid", 1, (2, 1)])
@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular", "replicate"])
@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (2, 1), ((4, 3), (1, 2))])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_every_padding_of_a_real_convolution(padding, mode, kernel, dilation, groups):
    conv = nn.Conv2d(4, 8, kernel, padding=padding, dilation=dilation, groups=groups, padding_mode=mode).double()
    x = field(1, (2, 4, 7, 6), "mixed")
    gradient = field(2, tuple(conv(x).shape), "mixed")
    contribution = EXTRACTS["real"](tap_at(conv, x, gradient))
    check(contribution)
    assert relative(summed(contribution), one_location(conv, x, gradient).flatten()) < 1e-9


@pytest.mark.parametrize("extract", ["bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise"])
@pytest.mark.parametrize("magnitude", [1e-22, 1e22])
@pytest.mark.parametrize("aggregate", AGGREGATES)
def test_extreme_gradients_lose_nothing_in_float32(extract: str, magnitude: float, aggregate: str):
    """The squares of 1e-22 vanish in float32, those of 1e22 overflow; an ordinary image is in the same batch."""
    x = field(1, (2, 5, 6, 4), "mixed").float()
    gradient = field(2, (2, 5, 6, 4), "mixed").float()
    gradient[0] *= magnitude
    found = AGGREGATES[aggregate](EXTRACTS[extract](tap_at(nn.Identity(), x, gradient)))
    exact = EXTRACTS[extract](tap_at(nn.Identity(), x.double(), gradient.double()))
    wanted = AGGREGATIONS[aggregate](entries(exact).flatten(1, 2))
    for image in (0, 1):
        assert relative(found[image].double(), wanted[image]) < 2e-6
        assert bool((found[image] != 0).any())


def test_tiny_gradients_meet_huge_activations():
    x, gradient = field(1, (1, 5, 6, 4), "mixed").float() * 1e22, field(2, (1, 5, 6, 4), "mixed").float() * 1e-22
    for extract in ("conv1x1", "conv3x3", "conv3x3_depthwise"):
        contribution = EXTRACTS[extract](tap_at(nn.Identity(), x, gradient))
        exact = EXTRACTS[extract](tap_at(nn.Identity(), x.double(), gradient.double()))
        for name, aggregate in AGGREGATES.items():
            wanted = AGGREGATIONS[name](entries(exact).flatten(1, 2))
            assert relative(aggregate(contribution).double(), wanted) < 2e-6, (extract, name)


@pytest.mark.parametrize("extract", ["bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise"])
def test_zeros_give_zeros(extract: str):
    zeros = torch.zeros(2, 3, 4, 5)
    contribution = EXTRACTS[extract](tap_at(nn.Identity(), field(1, (2, 3, 4, 5), "mixed").float(), zeros))
    for aggregate in AGGREGATES.values():
        assert torch.equal(aggregate(contribution), torch.zeros(2, 4, 5))
