"""Excitation backpropagation: probabilities that win their way from the score down to the places that excited it.

The signal at each location is a probability. A weighted layer hands it to its inputs in proportion to what each of
them excites (activation times positive weight), a pooling to its winner or in proportion, a skip connection to its two
sides in proportion; norms, rectifiers and what only moves numbers hand it on as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import AVERAGES, RECTIFIERS, Rule, Rules, copying, one_tap, steered
from .proportional import ADDITIONS, KNOWN, SCALINGS, added, passed, scaled, shared

__all__ = ["contrastive_excitation_backprop", "excitation_backprop"]

_WEIGHTED = ("conv1d", "conv2d", "conv3d", "linear")


def excitation_backprop(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Give the probability [1,h,w] that each location of a layer wins, summed over channels; its total is at most 1.

    It starts as 1 at the target's score. Biases take no part, batch norms and constant factors hand it on (as
    TorchRay's do), and skip connections split it in proportion to their two sides, a/(a+b) and b/(a+b) (TorchRay after
    `update_resnet`), so that nothing is counted twice: a side's share is negative where it inhibits. One forward and
    one backward pass, to the pixels. Raises GradlightError for a network with other operations (gates, attention, a
    captioner's LSTM). (Zhang et al. 2016, "Top-down neural attention by excitation backprop", equation 3.)
    """
    rules = _rules("excitation_backprop", [])
    return one_tap(rules, objective, pixels, target, layer).gradient.sum(1)


def contrastive_excitation_backprop(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Give what a location wins for the target more than against it, (Σ_k p_k − p̄_k)₊ [1,h,w].

    p̄ starts at the same score with the last weighted layer's weights negated; the difference of both, each of total
    1 at that layer's input, goes down from there. Cost and errors as for `excitation_backprop`. (Zhang et al. 2016,
    section 3.3; TorchRay with the last layer's input as its contrast layer.)
    """
    calls: list[_ExcitationCall] = []
    rules = _rules("contrastive_excitation_backprop", calls)
    return one_tap(rules, objective, pixels, target, layer).gradient.sum(1).clamp(min=0)


@dataclass
class _ExcitationCall:
    """One run of a weighted layer; last: no other one came after it."""

    last: bool = True


def _rules(method: str, calls: list[_ExcitationCall]) -> Rules:
    contrastive = method.startswith("contrastive")
    table: dict[str, Rule] = {
        **dict.fromkeys(_WEIGHTED, partial(_weighted, calls=calls, contrastive=contrastive)),
        **dict.fromkeys(AVERAGES, _averaged),
        **dict.fromkeys(("batch_norm", *RECTIFIERS), passed),
        **dict.fromkeys(ADDITIONS, partial(added, _quotient)),
        **dict.fromkeys(SCALINGS, partial(scaled, method)),
    }
    return Rules(method, table, KNOWN)


def _weighted(
    func: Any, x: Tensor, weight: Tensor, *args: Any, calls: list[_ExcitationCall], contrastive: bool, **kwargs: Any
) -> Tensor:
    for call in calls[-1:]:
        call.last = False
    calls.append(call := _ExcitationCall())
    others = args[1:]  # without the bias
    stays = {key: value for key, value in kwargs.items() if key != "bias"}

    def excite(weights: Tensor, x: Tensor, signal: Tensor) -> Tensor:
        return shared(
            _quotient, lambda x: func(x, weights.clamp(min=0), None, *others, **stays), x.clamp(min=0), signal
        )

    def back(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        won = excite(weight, x, signal)
        return (won - excite(-weight, x, signal) if contrastive and call.last else won,)

    return steered(lambda x: func(x, weight, *args, **kwargs), back, x)


def _averaged(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    run = copying(func, args, kwargs)
    return steered(run, lambda signal, x: (shared(_quotient, run, x.clamp(min=0), signal),), x)


def _quotient(signal: Tensor, total: Tensor) -> Tensor:
    """Divide, and give 0 where nothing excites."""
    some = total > 0
    return torch.where(some, signal, 0) / torch.where(some, total, 1)
