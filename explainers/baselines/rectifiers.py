"""Guided backpropagation and the deconvolutional network: the gradient with another way through every ReLU."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...errors import GradlightError
from ...models.base import Layer
from ...models.objective import Objective, Target
from .backward_rules import RECTIFIERS, Rules, copying, one_tap, steered

__all__ = ["deconvnet", "guided_backprop"]


def guided_backprop(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Give max_k |g_k| [1,h,w] at a layer, where each ReLU lets back what is positive at places that it let pass.

    Only ReLUs (and ReLU6) are changed, as modules or functions, in place or not; GELU, SiLU and the gates of an LSTM
    keep their own gradient. One forward and one backward pass. Raises GradlightError for a network without a ReLU,
    where it would be the plain gradient. (Springenberg et al. 2015, "Striving for simplicity"; the channels' largest
    magnitude as in TorchRay.)
    """
    return _largest("guided_backprop", _guided, objective, pixels, target, layer)


def deconvnet(objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    """Give max_k |g_k| [1,h,w] at a layer, where each ReLU lets back what is positive, whatever it let pass.

    ReLUs only, cost and errors as for `guided_backprop`. (Zeiler and Fergus 2014, "Visualizing and understanding
    convolutional networks"; as backpropagation by Simonyan et al. 2014; channels as in TorchRay.)
    """
    return _largest("deconvnet", _rectified, objective, pixels, target, layer)


def _largest(name: str, rule: Any, objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
    rules = Rules(name, dict.fromkeys(RECTIFIERS, rule))
    tap = one_tap(rules, objective, pixels, target, layer, whole=False)
    if not rules.met:
        raise GradlightError(
            f"{name} changes how the gradient passes ReLUs, and this network runs none; its map would be the plain"
            " gradient's. Ask for 'gradient'."
        )
    return tap.gradient.abs().amax(1)


def _guided(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    run = copying(func, args, kwargs)
    return steered(run, lambda signal, x: (signal.clamp(min=0) * ((x > 0) & (run(x) == x)),), x)


def _rectified(func: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return steered(copying(func, args, kwargs), lambda signal, x: (signal.clamp(min=0),), x)
