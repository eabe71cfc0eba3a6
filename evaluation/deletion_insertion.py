"""Deletion and insertion: does the answer go when what a map points at goes, and come when it comes?

Petsiuk, Das and Saenko (2018): pixels are taken away in the order of the map, the strongest first, until none is left
("deletion": the sooner the probability falls, the better), or put into a blurred photo until it is whole ("insertion":
the sooner it rises, the better). The figure is the area under the curve of the probability over the share of pixels.
Small and our own, because the libraries that have these curves know class scores only, and not a caption's probability.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur
from tqdm.auto import tqdm

from ..errors import GradlightError
from ..explainers.explain import explain
from ..models.base import Explainable
from ..models.objective import Objective, Target
from ..models.preserve import preserved
from .ledger import Ledger
from .metrics import Share, mean
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["BASELINES", "area", "curve", "deletion_insertion"]

BASELINES = ("random", "centre")
"""Orders that look at no photo: drawn anew for each, and from the centre outwards."""

GAMES = ("deletion", "insertion")

_AT_ONCE = 16
_BLUR = 5 / 224  # the published deviation, of the shorter side


def deletion_insertion(
    model: Explainable,
    samples: Sequence[Sample],
    methods: Sequence[str],
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    target: Any = None,
    steps: int = 32,
    blur: float = _BLUR,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Play deletion and insertion with every method at every layer, and with the orders of BASELINES.

    target: one for all samples; None: what the network says of each. The score is the probability of the target:
    softmax or sigmoid of a class, exp of a caption's or a word's log-probability. steps: the pixels go or come in so
    many equal parts. Deleted pixels become 0 as the network sees them (the mean of its preprocessing); the photo to
    insert into is blurred by a Gaussian whose deviation is `blur` of the shorter side. seed: of the random order.
    figures["areas"]: "METHOD / LAYER" or a baseline → game → the mean area; figures["curves"]: likewise the mean curve,
    steps + 1 points. Raises GradlightError for no sample and fewer than one step.
    """
    if not samples or steps < 1:
        raise GradlightError(f"{len(samples)} samples in {steps} steps were asked for; give at least 1 of each.")
    found = []
    for number, sample in enumerate(tqdm(samples, unit="image", disable=not progress)):
        play = partial(_played, model, sample, methods, layers, target, steps, blur, [seed, number])
        found.append(ledger.once(sample.key, play))
    players = list(found[0]["curves"])
    curves = {
        player: {game: _average([each["curves"][player][game] for each in found]) for game in GAMES}
        for player in players
    }
    figures = {
        "images": len(samples),
        "steps": steps,
        "blur": blur,
        "seed": seed,
        "areas": {player: {game: area(curves[player][game]) for game in GAMES} for player in players},
        "curves": curves,
    }
    return Result("deletion_insertion", figures, [_table(figures)], {"deletion_insertion": partial(_picture, figures)})


def area(points: Sequence[Share]) -> Share:
    """Give the area under a curve over equal parts of 0…1, by trapezoids; None where a point is missing."""
    known = [point for point in points if point is not None]
    if len(known) < len(points):
        return None
    return (sum(known) - (known[0] + known[-1]) / 2) / (len(known) - 1)


def curve(score: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, order: Tensor, steps: int) -> list[float]:
    """Give the scores of pixels on their way from start to end [3,H,W], steps + 1 of them.

    score: pixels [B,3,H,W] → [B]. order: the places [H·W], the first to change first.
    """
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    place = place.view(start.shape[1:])
    found: list[float] = []
    for some in torch.arange(steps + 1).split(_AT_ONCE):
        counts = [round(len(order) * part / steps) for part in some.tolist()]
        batch = torch.stack([torch.where(place < count, end, start) for count in counts])
        found += score(batch).tolist()
    return found


def _played(
    model: Explainable,
    sample: Sample,
    methods: Sequence[str],
    layers: str | Sequence[str],
    target: Any,
    steps: int,
    blur: float,
    seed: Sequence[int],
) -> dict[str, Any]:
    """Play with one sample: its target, and player → game → curve."""
    maps = explain(model, [sample.image], target, methods=methods, layers=layers)
    asked = maps.targets[0][0]
    score = partial(_probability, model.objective(target), asked)
    pixels = model.pixels([sample.image])[0]
    ends = {"deletion": (pixels, torch.zeros_like(pixels)), "insertion": (_blurred(pixels, blur), pixels)}
    orders = dict(_baselines(maps.size, seed))
    for method, layer in maps.pairs:
        values = maps.upsampled(method, layer)[0, 0].flatten()
        orders[f"{method} / {layer}"] = values.argsort(descending=True, stable=True)
    with preserved(model.network), torch.no_grad():
        curves = {
            player: {game: curve(score, *ends[game], order.to(pixels.device), steps) for game in GAMES}
            for player, order in orders.items()
        }
    return {"target": asked.label, "curves": curves}


def _probability(objective: Objective, target: Target, pixels: Tensor) -> Tensor:
    """Give the probability [B] of one target in each of the pixels [B,3,H,W]."""
    outputs, targets = objective.outputs(pixels), [[target]] * len(pixels)
    # A class's loss is minus the log of its probability; the score of what is said is that log itself.
    log: Tensor = -objective.losses(outputs, targets) if target.kind == "class" else objective.scores(outputs, targets)
    return torch.exp(log.squeeze(1).double())


def _blurred(pixels: Tensor, share: float) -> Tensor:
    deviation = max(share * min(pixels.shape[1:]), 1e-3)
    size = 2 * round(min(3 * deviation, (min(pixels.shape[1:]) - 1) / 2 - 1)) + 1
    blurred: Tensor = gaussian_blur(pixels, [max(size, 1)] * 2, [deviation] * 2)
    return blurred


def _baselines(size: tuple[int, int], seed: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    height, width = size
    yield "random", torch.from_numpy(np.random.default_rng(seed).permutation(height * width))
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    yield "centre", (rows[:, None] ** 2 + columns**2).flatten().argsort(stable=True)


def _average(curves: Sequence[Sequence[Share]]) -> list[Share]:
    return [mean(points) for points in zip(*curves, strict=True)]


def _table(figures: dict[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for player, areas in figures["areas"].items():
        method, _, layer = player.partition(" / ")
        rows.append([method, layer or None, *(areas[game] for game in GAMES)])
    notes = [
        f"Area under the probability of the target over the share of pixels, mean over {figures['images']} images;"
        f" {figures['steps']} steps. Deletion to 0 is better where it is smaller, insertion into a blurred photo where"
        " it is larger. The first two orders look at no photo."
    ]
    return Table("Deletion and insertion", ["method", "layer", *GAMES], rows, notes)


def _picture(figures: dict[str, Any]) -> Figure:
    """Draw the mean curves of both games: the best layer of each method, and the baselines in grey."""
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    for panel, game, sign in zip(panels, GAMES, (1, -1), strict=True):
        areas = {player: sign * found[game] for player, found in figures["areas"].items() if found[game] is not None}
        for method in dict.fromkeys(player.partition(" / ")[0] for player in areas):
            best = min((player for player in areas if player.partition(" / ")[0] == method), key=areas.__getitem__)
            values = figures["curves"][best][game]
            style: dict[str, Any] = {"color": "0.6", "linestyle": "--"} if method == best else {}
            panel.plot(np.linspace(0, 1, len(values)), values, label=best, **style)
        panel.set_title(game, fontsize=9)
        panel.set_xlabel("share of pixels", fontsize=8)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("probability")
    return drawing
