"""The networks of the benchmarks, with random weights, their outer layers, and the bare passes for comparison."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import timm
import torch
import torchvision
from timing import Job
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.methods import METHODS
from gradlight.models.base import Layer
from gradlight.models.classifiers import Classifier
from gradlight.models.preserve import preserved

__all__ = [
    "ANYWHERE",
    "NETWORKS",
    "add_networks",
    "classifier",
    "floor",
    "full_pass",
    "graph_from",
    "noise",
    "outer_layers",
]

# The stem and every block; without blocks, every ReLU and pooling.
_RESNET = r"relu|layer\d\.\d+"
_OUTER = {
    "resnet18": _RESNET,
    "resnet50": _RESNET,
    "vgg16": r"features\.\d+",
    "convnext_tiny": r"features\.[0246]|features\.[1357]\.\d+",
    "vit_small": r"blocks\.\d+",
}
NETWORKS = ("resnet50", "vgg16", "convnext_tiny", "vit_small")

# cam and normgrad_real are defined at some layers only.
ANYWHERE = [name for name in METHODS if name not in ("cam", "normgrad_real")]


def add_networks(parser: argparse.ArgumentParser, networks: Sequence[str], batches: Sequence[int]) -> None:
    """Add the options that choose networks, batches and the size of the pixels."""
    parser.add_argument("--network", nargs="+", choices=list(_OUTER), default=list(networks), metavar="NAME",
                        help=f"of {', '.join(_OUTER)} (default: {' '.join(networks)})")  # fmt: skip
    parser.add_argument("--batch", nargs="+", type=int, default=list(batches), metavar="B",
                        help=f"images at once (default: {' '.join(map(str, batches))})")  # fmt: skip
    parser.add_argument("--size", type=int, default=224, help="pixels of a side (default: %(default)s)")


def classifier(name: str, device: str, size: int) -> Classifier:
    """Create a network with random weights, frozen, in eval mode."""
    torch.manual_seed(0)
    network: nn.Module
    if name == "vit_small":
        network = timm.create_model("vit_small_patch16_224", pretrained=False, img_size=size)
    else:
        network = torchvision.models.get_model(name, weights=None)
    return gl.classifier(network.eval().requires_grad_(False), device=device)


def noise(batch: int, device: str, size: int) -> Tensor:
    """Create random pixels [B,3,H,W], the same every time."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)


def outer_layers(model: Classifier, name: str, size: int) -> list[Layer]:
    """Give the stem and every block, or every ReLU and pooling, without the layers inside them."""
    return [
        layer
        for layer in model.layers((size, size))
        if re.fullmatch(_OUTER[name], layer.name) and not isinstance(model.network.get_submodule(layer.name), nn.Conv2d)
    ]


def floor(network: nn.Module, pixels: Tensor, first: Layer) -> Job:
    """Create the bare pass: forward, and backward from a score to the earliest layer, with frozen weights."""

    def run() -> object:
        with preserved(network):
            with graph_from(network, first) as starts:
                score = network(pixels)[:, 0].sum()
            return torch.autograd.grad(score, starts)

    return run


@contextmanager
def graph_from(trunk: nn.Module, first: Layer) -> Iterator[list[Tensor]]:
    """Begin autograd's graph at a layer; after a forward pass the list holds the output of the layer."""
    starts: list[Tensor] = []

    def begin(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        starts.append(output.detach().requires_grad_())
        return starts[-1].clone()

    handle = trunk.get_submodule(first.name).register_forward_hook(begin)
    try:
        yield starts
    finally:
        handle.remove()


def full_pass(network: nn.Module, pixels: Tensor) -> Job:
    """Create the full pass: forward, and backward from a score to the pixels, with frozen weights."""

    def run() -> object:
        with preserved(network):
            leaf = pixels.clone().requires_grad_()
            return torch.autograd.grad(network(leaf)[:, 0].sum(), leaf)

    return run
