"""Excitation backpropagation: winning probabilities, propagated from the score to the locations that excited it.

The signal at each location is a probability. A weighted layer distributes it over its inputs in proportion to how much
each excites the output (activation times positive weight), a pooling to its winner or in proportion, a skip connection
over its two sides in proportion. Norms, rectifiers and operations that only move values pass it unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import (
    ADDITIONS,
    ALLOWED,
    AVERAGES,
    RECTIFIERS,
    SCALINGS,
    BackwardRules,
    OperationRule,
    distribute,
    out_of_place,
    pass_constant_factor,
    pass_unchanged,
    replace_backward,
    split_addition,
    tap_under_rules,
)

__all__ = ["contrastive_excitation_backprop", "excitation_backprop"]

_WEIGHTED = ("conv1d", "conv2d", "conv3d", "linear")


def excitation_backprop(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Compute the probability that each location of a layer wins, summed over channels; its total is at most 1.

    It starts as 1 at the target's score. Biases take no part, batch norms and constant factors pass it unchanged (as
    TorchRay's do), and skip connections split it in proportion to their two sides, a/(a+b) and b/(a+b) (TorchRay after
    `update_resnet`), so that nothing is counted twice: a side's share is negative where it inhibits. One forward and
    one backward pass, to the pixels. (Zhang et al. 2016, "Top-down neural attention by excitation backprop",
    equation 3.)

    Args:
        objective: The objective.
        pixels: [1,3,H,W].
        target: One fixed target.
        layer: The layer of the map.

    Returns:
        [1,h,w].

    Raises:
        GradlightError: For a network with other operations (gates, attention, a captioner's LSTM).
    """
    rules = _rules("excitation_backprop", [])
    return tap_under_rules(rules, objective, pixels, target, layer).gradient.sum(1)


def contrastive_excitation_backprop(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Compute by how much a location wins more for the target than against it, (Σ_k p_k − p̄_k)₊.

    p̄ starts at the same score with the last weighted layer's weights negated; the difference of both, each of total
    1 at that layer's input, is propagated from there. Arguments, cost and errors as for `excitation_backprop`. (Zhang
    et al. 2016, section 3.3; TorchRay with the last layer's input as its contrast layer.)

    Returns:
        [1,h,w], never negative.
    """
    calls: list[_ExcitationCall] = []
    rules = _rules("contrastive_excitation_backprop", calls)
    return tap_under_rules(rules, objective, pixels, target, layer).gradient.sum(1).clamp(min=0)


@dataclass
class _ExcitationCall:
    """One run of a weighted layer; is_last: no other one came after it."""

    is_last: bool = True


def _rules(method: str, calls: list[_ExcitationCall]) -> BackwardRules:
    contrastive = method.startswith("contrastive")
    table: dict[str, OperationRule] = {
        **dict.fromkeys(_WEIGHTED, partial(_weighted_layer, calls=calls, contrastive=contrastive)),
        **dict.fromkeys(AVERAGES, _average_pool),
        **dict.fromkeys(("batch_norm", *RECTIFIERS), pass_unchanged),
        **dict.fromkeys(ADDITIONS, partial(split_addition, _quotient)),
        **dict.fromkeys(SCALINGS, partial(pass_constant_factor, method)),
    }
    return BackwardRules(method, table, ALLOWED)


def _weighted_layer(
    func: Any, x: Tensor, weight: Tensor, *args: Any, calls: list[_ExcitationCall], contrastive: bool, **kwargs: Any
) -> Tensor:
    """Propagate in proportion to activation times positive weight, without the bias."""
    for previous in calls[-1:]:
        previous.is_last = False
    call = _ExcitationCall()
    calls.append(call)
    args_after_bias = args[1:]
    kwargs_without_bias = {key: value for key, value in kwargs.items() if key != "bias"}

    def propagate(weights: Tensor, x: Tensor, signal: Tensor) -> Tensor:
        positive = weights.clamp(min=0)
        return distribute(
            _quotient,
            lambda x: func(x, positive, None, *args_after_bias, **kwargs_without_bias),
            x.clamp(min=0),
            signal,
        )

    def backward(signal: Tensor, x: Tensor) -> tuple[Tensor]:
        won = propagate(weight, x, signal)
        return (won - propagate(-weight, x, signal) if contrastive and call.is_last else won,)

    return replace_backward(lambda x: func(x, weight, *args, **kwargs), backward, x)


def _average_pool(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    run = out_of_place(func, args, kwargs)
    return replace_backward(run, lambda signal, x: (distribute(_quotient, run, x.clamp(min=0), signal),), x)


def _quotient(signal: Tensor, total: Tensor) -> Tensor:
    """Divide, with 0 where nothing excites."""
    excited = total > 0
    return torch.where(excited, signal, 0) / torch.where(excited, total, 1)
