"""Perturbations against slow definitions, and all baselines on scenes whose truth is known."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from baseline_networks import PIXELS, SIZE, Residual, attributed, noise
from torch import Tensor, nn

import gradlight as gl
from gradlight.data.scenes import generator as scenes
from gradlight.explainers.baselines import BASELINES
from gradlight.explainers.baselines.perturbation import (
    SmoothMask,
    area_penalty,
    blur_pyramid,
    blurred,
    perturbed,
    random_masks,
)
from gradlight.models.base import Layer
from gradlight.models.preserve import preserved

NETWORK = Residual(nn.ReLU())


def score(pixels: Tensor) -> Tensor:
    with torch.no_grad():
        scores: Tensor = NETWORK(pixels)[:, 1]
    return scores


def test_occlusion_by_definition():
    """Squares of four pixels at every third place, the last ones cut off at the border."""
    pytest.importorskip("captum.attr")
    found = attributed("occlusion", NETWORK, window=0.2, stride=0.15, fill=0.3)
    falls, times = torch.zeros(SIZE, SIZE).double(), torch.zeros(SIZE, SIZE).double()
    starts = [3 * number for number in range(math.ceil((SIZE - 4) / 3) + 1)]
    for row in starts:
        for column in starts:
            hidden = PIXELS.clone()
            hidden[:, :, row : row + 4, column : column + 4] = 0.3
            falls[row : row + 4, column : column + 4] += score(PIXELS) - score(hidden)
            times[row : row + 4, column : column + 4] += 1
    assert times.min() >= 1
    assert torch.allclose(found, (falls / times).unsqueeze(0), rtol=1e-6, atol=1e-9)


def test_rise_by_definition():
    found = attributed("rise", NETWORK, masks=37, cells=4, keep=0.4, seed=3, batch=10)
    weighted, shown = torch.zeros(SIZE, SIZE).double(), torch.zeros(SIZE, SIZE).double()
    masks = torch.cat(list(random_masks(37, (SIZE, SIZE), cells=4, keep=0.4, seed=3))).double()
    assert len(masks) == 37
    for mask in masks:
        weighted += score(PIXELS * mask)[0] * mask[0]
        shown += mask[0]
    assert torch.allclose(found, (weighted / shown).unsqueeze(0), rtol=1e-12)


def test_rise_of_a_constant_score_is_that_constant():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)).double()
    with torch.no_grad():
        network[1].weight.zero_()
        network[1].bias.fill_(-20)
    assert torch.allclose(attributed("rise", network, masks=50), torch.tensor(-20.0).double(), rtol=1e-6)


def test_random_masks():
    parts = list(random_masks(300, (21, 33), cells=7, keep=0.3, batch=64))
    masks = torch.cat(parts)
    assert [len(part) for part in parts] == [64, 64, 64, 64, 44]
    assert masks.shape == (300, 1, 21, 33)
    assert masks.min() >= 0
    assert masks.max() <= 1
    assert float(masks.mean()) == pytest.approx(0.3, abs=0.02)
    assert torch.equal(masks, torch.cat(list(random_masks(300, (21, 33), cells=7, keep=0.3, batch=7))))
    assert not torch.equal(masks, torch.cat(list(random_masks(300, (21, 33), cells=7, keep=0.3, seed=1))))


def test_a_random_mask_is_an_enlarged_grid():
    """Bilinear, to one cell more than the photo in either direction, then shifted by less than a cell."""
    (mask,) = random_masks(1, (6, 9), cells=3, seed=4)
    generator = torch.Generator().manual_seed(4)
    grid = (torch.rand(1, 3, 3, generator=generator) < 0.5)[0].double()
    row, column = int(torch.randint(2, (), generator=generator)), int(torch.randint(3, (), generator=generator))
    wanted = torch.zeros(6, 9)
    for v in range(6):
        for u in range(9):
            y = min(max((v + row + 0.5) * 3 / 8 - 0.5, 0), 2)
            x = min(max((u + column + 0.5) * 3 / 12 - 0.5, 0), 2)
            for cell_y in range(3):
                for cell_x in range(3):
                    near = max(0, 1 - abs(y - cell_y)) * max(0, 1 - abs(x - cell_x))
                    wanted[v, u] += near * grid[cell_y, cell_x]
    # The mask is float32: its terms are at most 1, and its coordinates at most 3.
    assert torch.allclose(mask[0, 0], wanted, rtol=0, atol=16 * torch.finfo(torch.float32).eps)


def test_lime_of_a_score_that_is_linear_in_its_parts():
    """Without a penalty the weights are what each part adds, whatever the kernel."""
    pytest.importorskip("captum.attr")
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)).double()
    found = attributed("lime", network, samples=60, cells=3, ridge=0.0)[0]
    added = (PIXELS * network[1].weight.detach()[1].view(1, 3, SIZE, SIZE)).sum((0, 1))
    part, terms = torch.arange(SIZE) * 3 // SIZE, float(added.abs().sum())
    for row in range(3):
        for column in range(3):
            inside = (part == row).view(-1, 1) & (part == column)
            assert found[inside].unique().numel() == 1
            assert float(found[inside][0]) == pytest.approx(float(added[inside].sum()), abs=1e-5 * terms)


def test_lime_is_a_weighted_ridge_regression():
    """Solved again as one least-squares problem with an intercept, on copies that are drawn the same way."""
    pytest.importorskip("captum.attr")
    found = attributed("lime", NETWORK, samples=30, cells=2, width=0.3, ridge=0.7, fill=0.1, seed=9)[0]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(9)
        rows = torch.cat([torch.bernoulli(torch.full((1, 4), 0.5)) for _ in range(30)]).double()
    half = SIZE // 2
    parts = rows.view(-1, 1, 2, 2).repeat_interleave(half, 2).repeat_interleave(half, 3)
    values = score(PIXELS * parts + 0.1 * (1 - parts))
    cosine = rows.sum(1) / (rows.norm(dim=1) * 2).clamp(min=1e-9)
    counts = torch.exp(-((1 - cosine) ** 2) / 0.3**2).sqrt()
    left = torch.cat([rows, torch.ones(30, 1).double()], 1) * counts.unsqueeze(1)
    penalty = 0.7**0.5 * torch.eye(4, 5).double()
    wanted = torch.linalg.lstsq(torch.cat([left, penalty]), torch.cat([values * counts, torch.zeros(4).double()]))
    corners = found[::half, ::half].flatten()
    assert torch.allclose(corners, wanted.solution[:4], rtol=1e-3, atol=1e-6)


def test_area_penalty():
    exact = torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0]).view(1, 1, 2, 4)
    assert float(area_penalty(exact, [0.25])) == 0
    assert float(area_penalty(exact, [0.5])) == pytest.approx(2 / 8)
    grey = torch.full((1, 1, 2, 4), 0.25)
    assert float(area_penalty(grey, [0.25])) == pytest.approx((2 * 0.75**2 + 6 * 0.25**2) / 8)
    assert area_penalty(torch.cat([exact, grey]), [0.25, 0.5]).shape == (2,)


def test_a_smooth_mask_by_definition():
    shape = SmoothMask((24, 16), cells=4, sigma=1.0)
    assert shape.grid == (6, 4)
    grid = noise(1, 1, 6, 4).abs().clamp(max=1)
    found = shape(grid)
    for row in range(6):
        for column in range(4):
            values = []
            for down in range(-2, 3):
                for right in range(-2, 3):
                    bump = math.exp(-0.5 * max(0, 2 * math.hypot(down, right) - 1) ** 2)
                    v = grid[0, 0, min(max(row + down, 0), 5), min(max(column + right, 0), 3)]
                    values.append(bump * float(v))
            weights = np.exp(20 * np.array(values))
            assert float(found[0, 0, row, column]) == pytest.approx(float(weights @ values / weights.sum()))
    assert shape.enlarged(found).shape == (1, 1, 24, 16)


def test_a_smooth_mask_of_one_point_is_its_bump():
    shape = SmoothMask((64, 64), cells=16, sigma=3.0)
    grid = torch.zeros(1, 1, 16, 16)
    grid[0, 0, 8, 8] = 1
    mask = shape(grid)[0, 0]
    assert float(mask[8, 8]) > 0.9
    assert mask[8, 8] == mask.max()
    assert bool((mask[8, 8:13].diff() <= 1e-6).all())
    assert float(mask[0, 0]) == 0


def test_a_perturbation_lies_between_two_blurs():
    pyramid = blur_pyramid(PIXELS, strongest=4.0, levels=5)
    assert torch.equal(pyramid[:1], PIXELS)
    assert bool((pyramid.flatten(1).std(1).diff() < 0).all())
    whole = torch.ones(1, 1, SIZE, SIZE).double()
    assert torch.allclose(perturbed(pyramid, whole), PIXELS)
    assert torch.allclose(perturbed(pyramid, 0 * whole), pyramid[4:])
    assert torch.allclose(perturbed(pyramid, 0.5 * whole), pyramid[2:3])
    assert torch.allclose(perturbed(pyramid, 0.9 * whole), 0.6 * pyramid[:1] + 0.4 * pyramid[1:2])


def test_a_blur_is_a_gaussian():
    point = torch.zeros(1, 1, 31, 31).double()
    point[0, 0, 15, 15] = 1
    square = (torch.arange(31).double() - 15).square()
    wanted = torch.exp(-0.5 * (square.view(-1, 1) + square) / 2.0**2)
    wanted[(square > 36).view(-1, 1) | (square > 36)] = 0
    assert torch.allclose(blurred(point, 2.0)[0, 0], wanted / wanted.sum(), atol=1e-12)
    assert torch.allclose(blurred(torch.full_like(point, 3.0), 5.0), torch.tensor(3.0).double())


def test_an_extremal_perturbation_finds_the_half_that_counts():
    """A score that reads the photo's left half alone: the mask of that area comes to lie there."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4)).double()
    with torch.no_grad():
        slope = torch.zeros(3, SIZE, SIZE).double()
        slope[:, :, : SIZE // 2] = 0.2 * PIXELS[0, :, :, : SIZE // 2]
        network[1].weight[1] = slope.flatten()
    settings = {"cells": 10, "steps": 400, "smooth": 0.0, "sigma": 1.0}
    small, large = (attributed("extremal_perturbation", network, areas=(area,), **settings)[0] for area in (0.15, 0.3))
    for mask in (small, large):
        assert float(mask[:, : SIZE // 2].sum() / mask.sum()) > 0.85
    assert 0.1 < float(small.mean()) < float(large.mean()) < 0.45


FOCUS = {
    "smoothgrad": 5,
    "integrated_gradients": 5,
    "deep_lift": 5,
    "lrp": 5,
    "guided_backprop": 3,
    "deconvnet": 1.1,  # hardly knows which class was asked, as its critics say
    "excitation_backprop": 3,
    "contrastive_excitation_backprop": 4,
    "occlusion": 4,
    "rise": 1.5,
    "lime": 4,
    "extremal_perturbation": 2,
}
"""How many times what chance puts there a map puts on the object."""

MANY_PASSES = ("occlusion", "rise", "lime", "extremal_perturbation")
FEW = {"smoothgrad": {"samples": 10}, "rise": {"masks": 400}, "lime": {"samples": 200, "cells": 6}}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in MANY_PASSES else ()) for name in FOCUS]
)
def test_maps_lie_on_the_objects_of_scenes(name: str):
    if name in ("smoothgrad", "integrated_gradients", "occlusion", "lime"):
        pytest.importorskip("captum.attr")
    model = gl.classifier("scenes")
    attribute = partial(BASELINES[name].attribute, **FEW.get(name, {}))
    if name == "extremal_perturbation":
        attribute = partial(attribute, steps=60, areas=(0.05, 0.1), rate=0.1)
    ratios = []
    for seed in scenes.SAMPLES[:2]:
        scene = scenes.draw(seed)
        label = scene.objects[0].kind
        pixels = model.pixels([f"scenes:{seed}"])
        objective = model.objective(label)
        with torch.no_grad():
            ((target,),) = objective.choose(objective.outputs(pixels))
        layer = Layer("layer2", 5, 32, (40, 40), (4.0, 4.0))
        (place,) = BASELINES[name].places([layer])
        with preserved(model.network):
            found = attribute(objective, pixels, target, place)
        mask = torch.from_numpy(scene.mask(label)).float().view(1, 1, 160, 160)
        share = F.adaptive_avg_pool2d(mask, list(found.shape[1:]))[0]
        seen = found.clamp(min=0) if name != "rise" else found - found.min()
        ratios.append(float((seen * share).sum() / seen.sum() / share.mean()))
    assert min(ratios) > FOCUS[name], ratios
