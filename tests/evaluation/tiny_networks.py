"""A network small enough to be randomised, deleted and asked a thousand times within a test."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

import gradlight as gl
from gradlight.data.scenes.generator import CLASSES
from gradlight.models.classifiers import Classifier

SIDE = 32
LAYERS = ["first", "second"]


class Tiny(nn.Module):
    """Two convolutions, a norm and a head, which is registered before them; and a head that nobody uses."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(12, len(CLASSES))
        self.unused = nn.Linear(12, 2)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.first = nn.Conv2d(3, 8, 5, stride=2, padding=2)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 12, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        hidden = self.norm(self.first(pixels).relu()) * self.scale
        return self.head(self.second(hidden).relu().mean((2, 3)))


def pixels_of(picture: Image.Image) -> Tensor:
    """Bring a photo to SIDE × SIDE pixels."""
    small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.tensor(list(small.tobytes()), dtype=torch.float32).view(SIDE, SIDE, 3).permute(2, 0, 1) / 255 - 0.5


def tiny() -> Classifier:
    """Make the network with weights of its own and running statistics that are not the initial ones."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        network = Tiny()
        network.train()(torch.randn(16, 3, SIDE, SIDE))
    return gl.classifier(network.eval(), preprocess=pixels_of, labels=CLASSES)
