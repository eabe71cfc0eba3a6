"""Deletion and insertion: how the probability of the target changes as pixels are removed or added in a map's order.

Petsiuk, Das and Saenko (2018): pixels are removed in the order of the map, the strongest first, until none is left
("deletion": the sooner the probability falls, the better), or added to a blurred photo until it is complete
("insertion": the sooner it rises, the better). The figure is the area under the curve of the probability over the share
of pixels. Libraries that have these curves support class scores only, and not a caption's probability.
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
from .metrics import OptionalFloat, mean
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["BASELINES", "GAMES", "area", "curve", "deletion_insertion"]

BASELINES = ("random", "centre")
"""Orders that do not depend on the photo: random, drawn again for each photo, and from the centre outwards."""

GAMES = ("deletion", "insertion")

_BATCH = 16
_BLUR = 5 / 224  # the published deviation, as a fraction of the shorter side


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

    The score is the probability of the target: softmax or sigmoid of a class, exp of a caption's or a word's
    log-probability. Deleted pixels become 0 in the network's input (the mean of its preprocessing).

    Args:
        model: The model.
        samples: The photos.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        ledger: Keeps the curves of each photo.
        target: One for all samples; None for the network's own answer for each.
        steps: The pixels are removed or added in so many equal parts.
        blur: Deviation of the Gaussian that blurs the photo to insert into, as a fraction of the shorter side.
        seed: Of the random order.
        progress: Show a progress bar.

    Returns:
        figures["areas"]: "METHOD / LAYER" or a baseline → game → the mean area; figures["curves"]: likewise the mean
        curve, steps + 1 points.

    Raises:
        GradlightError: There is no sample, or less than one step.
    """
    if not samples or steps < 1:
        raise GradlightError(f"{len(samples)} samples in {steps} steps were asked for; give at least 1 of each.")
    outcomes = []
    for number, sample in enumerate(tqdm(samples, unit="image", disable=not progress)):
        play = partial(_play, model, sample, methods, layers, target, steps, blur, [seed, number])
        outcomes.append(ledger.once(sample.key, play))
    names = list(outcomes[0]["curves"])
    curves = {
        name: {game: _average([outcome["curves"][name][game] for outcome in outcomes]) for game in GAMES}
        for name in names
    }
    figures = {
        "images": len(samples),
        "steps": steps,
        "blur": blur,
        "seed": seed,
        "areas": {name: {game: area(curves[name][game]) for game in GAMES} for name in names},
        "curves": curves,
    }
    return Result(
        "deletion_insertion", figures, [_area_table(figures)], {"deletion_insertion": partial(_draw, figures)}
    )


def area(points: Sequence[OptionalFloat]) -> OptionalFloat:
    """Compute the area under a curve over equal parts of 0…1, by trapezoids.

    Args:
        points: At least two values.

    Returns:
        The area; None if a point is missing.

    Example:
        >>> area([1.0, 0.5, 0.0])
        0.5
    """
    present = [point for point in points if point is not None]
    if len(present) < len(points):
        return None
    return (sum(present) - (present[0] + present[-1]) / 2) / (len(present) - 1)


def curve(score: Callable[[Tensor], Tensor], start: Tensor, end: Tensor, order: Tensor, steps: int) -> list[float]:
    """Compute the scores while pixels change from start to end.

    Args:
        score: Pixels [B,3,H,W] → [B].
        start: [3,H,W].
        end: [3,H,W].
        order: Flat indices of the locations [H·W], the first to change first.
        steps: The pixels change in so many equal parts.

    Returns:
        steps + 1 scores.

    Example:
        >>> mean_pixel = lambda pixels: pixels.mean((1, 2, 3))
        >>> curve(mean_pixel, torch.zeros(3, 1, 2), torch.ones(3, 1, 2), torch.tensor([1, 0]), steps=2)
        [0.0, 0.5, 1.0]
    """
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank.view(start.shape[1:])
    scores: list[float] = []
    for batch_steps in torch.arange(steps + 1).split(_BATCH):
        counts = [round(len(order) * step / steps) for step in batch_steps.tolist()]
        batch = torch.stack([torch.where(rank < count, end, start) for count in counts])
        scores += score(batch).tolist()
    return scores


def _play(
    model: Explainable,
    sample: Sample,
    methods: Sequence[str],
    layers: str | Sequence[str],
    target: Any,
    steps: int,
    blur: float,
    seed: Sequence[int],
) -> dict[str, Any]:
    """Play with one sample: its target, and "METHOD / LAYER" or baseline → game → curve."""
    maps = explain(model, [sample.image], target, methods=methods, layers=layers)
    resolved = maps.targets[0][0]
    score = partial(_probability, model.objective(target), resolved)
    pixels = model.pixels([sample.image])[0]
    ends = {"deletion": (pixels, torch.zeros_like(pixels)), "insertion": (_blur(pixels, blur), pixels)}
    orders = dict(_baseline_orders(maps.size, seed))
    for method, layer in maps.pairs:
        values = maps.upsampled(method, layer)[0, 0].flatten()
        orders[f"{method} / {layer}"] = values.argsort(descending=True, stable=True)
    with preserved(model.network), torch.no_grad():
        curves = {
            name: {game: curve(score, *ends[game], order.to(pixels.device), steps) for game in GAMES}
            for name, order in orders.items()
        }
    return {"target": resolved.label, "curves": curves}


def _probability(objective: Objective, target: Target, pixels: Tensor) -> Tensor:
    """Give the probability [B] of one target in each of the pixels [B,3,H,W]."""
    outputs, targets = objective.outputs(pixels), [[target]] * len(pixels)
    # A class's loss is minus the log of its probability; a caption's or a word's score is that log itself.
    log: Tensor = -objective.losses(outputs, targets) if target.kind == "class" else objective.scores(outputs, targets)
    return torch.exp(log.squeeze(1).double())


def _blur(pixels: Tensor, share: float) -> Tensor:
    """Blur pixels [3,H,W] with a Gaussian whose deviation is a share of the shorter side."""
    deviation = max(share * min(pixels.shape[1:]), 1e-3)
    size = 2 * round(min(3 * deviation, (min(pixels.shape[1:]) - 1) / 2 - 1)) + 1
    blurred: Tensor = gaussian_blur(pixels, [max(size, 1)] * 2, [deviation] * 2)
    return blurred


def _baseline_orders(size: tuple[int, int], seed: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
    height, width = size
    yield "random", torch.from_numpy(np.random.default_rng(seed).permutation(height * width))
    rows, columns = torch.arange(height) - (height - 1) / 2, torch.arange(width) - (width - 1) / 2
    yield "centre", (rows[:, None] ** 2 + columns**2).flatten().argsort(stable=True)


def _average(curves: Sequence[Sequence[OptionalFloat]]) -> list[OptionalFloat]:
    return [mean(points) for points in zip(*curves, strict=True)]


def _area_table(figures: dict[str, Any]) -> Table:
    rows: list[list[Cell]] = []
    for name, areas in figures["areas"].items():
        method, _, layer = name.partition(" / ")
        rows.append([method, layer or None, *(areas[game] for game in GAMES)])
    notes = [
        f"Area under the probability of the target over the share of pixels, mean over {figures['images']} images;"
        f" {figures['steps']} steps. Deletion to 0 is better where it is smaller, insertion into a blurred photo where"
        " it is larger. The first two orders do not depend on the photo."
    ]
    return Table("Deletion and insertion", ["method", "layer", *GAMES], rows, notes)


def _draw(figures: dict[str, Any]) -> Figure:
    """Draw the mean curves of both games: the best layer of each method, and the baselines in grey."""
    drawing = Figure(figsize=(9, 3.6), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    for panel, game, sign in zip(panels, GAMES, (1, -1), strict=True):
        areas = {name: sign * row[game] for name, row in figures["areas"].items() if row[game] is not None}
        for method in dict.fromkeys(name.partition(" / ")[0] for name in areas):
            best = min((name for name in areas if name.partition(" / ")[0] == method), key=areas.__getitem__)
            values = figures["curves"][best][game]
            style: dict[str, Any] = {"color": "0.6", "linestyle": "--"} if method == best else {}
            panel.plot(np.linspace(0, 1, len(values)), values, label=best, **style)
        panel.set_title(game, fontsize=9)
        panel.set_xlabel("share of pixels", fontsize=8)
        panel.legend(fontsize=7)
    panels[0].set_ylabel("probability")
    return drawing
