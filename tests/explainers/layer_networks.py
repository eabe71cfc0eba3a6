"""Small networks around one layer, in every memory layout that a network may hand it its map in."""

from __future__ import annotations

import torch
from torch import Tensor, nn

PIXELS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Permute(nn.Module):
    """Reorder the axes: 0, 2, 3, 1 is channels last, 0, 3, 1, 2 channels first again."""

    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.axes)


class Tokens(nn.Module):
    """A map as tokens [B,N,C], behind `count` learnt ones."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.learnt = nn.Parameter(torch.randn(1, count, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.learnt.expand(len(x), -1, -1), x.flatten(2).mT], 1)


class MeanOver(nn.Module):
    def __init__(self, *axes: int) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        return x.square().mean(self.axes)


def network_with(module: nn.Module, memory: str, channels: int) -> nn.Sequential:
    """Put a layer as "3" into a network that hands it 6 channels in a memory layout, with different weights inside."""
    before = {"nchw": nn.Identity(), "nhwc": Permute(0, 2, 3, 1), "tokens": Tokens(0), "prefixed": Tokens(2)}[memory]
    axes = {"nchw": (2, 3), "nhwc": (1, 2), "tokens": (1,), "prefixed": (1,)}[memory]
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), before, module, nn.Tanh(), MeanOver(*axes), nn.Linear(channels, 5)
    )
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.5)
    return network.double().eval()
