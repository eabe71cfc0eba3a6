"""Small networks to hold the baselines against, and what is asked of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gradlight.explainers.baselines import BASELINES
from gradlight.models.base import Layer
from gradlight.models.class_objective import ClassLabels, ClassObjective
from gradlight.models.objective import Target
from gradlight.models.preserve import preserved

SIZE = 20
TARGET = Target("class", 1, "class_1")
INPUT = Layer("input", 0, 3, (SIZE, SIZE))

QUICK: dict[str, dict[str, Any]] = {
    "smoothgrad": {"samples": 5},
    "integrated_gradients": {"steps": 8},
    "occlusion": {"stride": 0.1},
    "rise": {"masks": 40},
    "lime": {"samples": 40, "cells": 3},
    "extremal_perturbation": {"steps": 4, "cells": 5, "areas": (0.1, 0.3)},
}
"""Settings that make a baseline quick."""


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


PIXELS = noise(1, 3, SIZE, SIZE)


class Residual(nn.Module):
    """A convolution, a block with a skip connection, pooling, and a head; how it rectifies and adds is given."""

    def __init__(
        self, rectify: Callable[[Tensor], Tensor], add: Callable[[Tensor, Tensor], Tensor] = torch.add
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.rectify, self.add = rectify, add
        self.head = nn.Linear(6, 4)
        nn.init.uniform_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)
        nn.init.uniform_(self.norm.weight, 0.5, 2)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        x = self.rectify(self.first(x))
        x = self.rectify(self.add(self.norm(self.second(x)), x))
        return self.head(F.max_pool2d(x, 2).mean((2, 3)))


def objective_of(network: nn.Module) -> ClassObjective:
    return ClassObjective(network, ClassLabels([f"class_{n}" for n in range(4)]), [])


def attributed(name: str, network: nn.Module, layer: Layer = INPUT, **settings: Any) -> Tensor:
    """Make a baseline's map of the one photo."""
    attribute: Callable[..., Tensor] = BASELINES[name].attribute
    with preserved(network):
        return attribute(objective_of(network), PIXELS, TARGET, layer, **settings)


def quick(name: str, network: nn.Module, **settings: Any) -> Tensor:
    return attributed(name, network, **{**QUICK.get(name, {}), **settings})
