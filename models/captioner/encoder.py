"""The eye of a captioner: a ResNet without its head.

What a decoder reads of an encoder's last map: one vector of the whole image, and one of each place.

A captioner as one network: its eye and its tongue.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.resnet import BasicBlock, Bottleneck

from ...errors import GradlightError
from .decoder import Decoder

__all__ = ["RESNET101", "CaptionNetwork", "FeaturePooling", "ResNetPlan", "build_resnet", "plan_of", "trunk_of"]

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}


@dataclass(frozen=True)
class ResNetPlan:
    """What a ResNet is made of.

    block: "basic" or "bottleneck". layers: blocks of each stage. widths: channels inside the blocks of each stage.
    stem: channels of the first convolution. pool: "padded" (torchvision), "ceil" (Caffe, which also puts the stride of
    a stage on its first 1×1 convolution), or "none". shortcut: the first stage has a convolution on its shortcut
    though its channels need none.
    """

    block: str = "bottleneck"
    layers: tuple[int, ...] = (3, 4, 23, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)
    stem: int = 64
    pool: str = "padded"
    shortcut: bool = False

    def to_json(self) -> dict[str, Any]:
        """Describe the plan in JSON types."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> ResNetPlan:
        """Make the plan again from what `to_json` gave; raises GradlightError for anything else."""
        try:
            layers, widths = (tuple(int(n) for n in record[name]) for name in ("layers", "widths"))
            plan = cls(
                str(record["block"]),
                layers,
                widths,
                int(record["stem"]),
                str(record["pool"]),
                bool(record.get("shortcut", False)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise GradlightError(f"This is no record of a ResNet: {record!r}.") from error
        plan.check()
        return plan

    def check(self) -> None:
        """Raise GradlightError unless a network can be built of this."""
        positive = all(n > 0 for n in (*self.layers, *self.widths, self.stem))
        fits = len(self.layers) == len(self.widths) > 0 and self.block in _BLOCKS and self.pool in _POOLS
        if not (positive and fits and sum(self.layers) < _MOST_BLOCKS):
            raise GradlightError(f"No ResNet can be built of {self}.")


RESNET101 = ResNetPlan()

_MOST_BLOCKS = 1000
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.MaxPool2d(3, 2, padding=1),
    "ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "none": nn.Identity,
}


def build_resnet(plan: ResNetPlan) -> nn.Sequential:
    """Build the untrained ResNet of a plan up to its last map, of torchvision's blocks under torchvision's names."""
    plan.check()
    block = _BLOCKS[plan.block]
    stem = nn.Conv2d(3, plan.stem, 7, stride=2, padding=3, bias=False)
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=stem, bn1=nn.BatchNorm2d(plan.stem), relu=nn.ReLU(inplace=True), maxpool=_POOLS[plan.pool]()
    )
    channels = plan.stem
    for stage, (count, width) in enumerate(zip(plan.layers, plan.widths, strict=True)):
        stride = 2 if stage else 1
        out = width * block.expansion
        shortcut = None
        if stride > 1 or channels != out or plan.shortcut:
            shortcut = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        first = block(channels, width, stride, shortcut)
        if plan.pool == "ceil" and isinstance(first, Bottleneck):
            first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
        parts[f"layer{stage + 1}"] = nn.Sequential(first, *(block(out, width) for _ in range(count - 1)))
        channels = out
    network = nn.Sequential(parts)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def plan_of(state: Mapping[str, Tensor], pool: str = "padded") -> ResNetPlan:
    """Read the plan off a state dict with torchvision's names; raises GradlightError if it is no plain ResNet's."""
    stages: dict[int, int] = {}
    for name in state:
        if match := re.match(r"layer(\d+)\.(\d+)\.", name):
            stages[int(match[1])] = max(stages.get(int(match[1]), 0), int(match[2]) + 1)
    try:
        if sorted(stages) != list(range(1, len(stages) + 1)) or not stages:
            raise KeyError("layer1")
        widths = tuple(int(state[f"layer{stage}.0.conv1.weight"].shape[0]) for stage in sorted(stages))
        stem = int(state["conv1.weight"].shape[0])
    except (KeyError, IndexError) as error:
        raise GradlightError(f"These are no weights of a plain ResNet: {error} is missing.") from error
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    needless = stem == widths[0] * _BLOCKS[block].expansion and "layer1.0.downsample.0.weight" in state
    plan = ResNetPlan(block, tuple(stages[stage] for stage in sorted(stages)), widths, stem, pool, needless)
    plan.check()
    return plan


def trunk_of(network: nn.Module) -> nn.Sequential:
    """Give the part of a torchvision or timm ResNet before its pooling, under its own names; the network stays whole.

    Raises GradlightError for a network that is not made of conv1 … layer4 in a row.
    """
    children = OrderedDict(network.named_children())
    wanted = [name for name in children if not re.fullmatch(r"avgpool|global_pool|fc|head.*|classifier", name)]
    if "conv1" not in wanted or not any(name.startswith("layer") for name in wanted):
        raise GradlightError(
            f"{type(network).__name__} is no ResNet whose parts are conv1, bn1, … layer4, so it cannot be a captioner's"
            " encoder. Give a torchvision or timm ResNet, such as torchvision.models.resnet101()."
        )
    return nn.Sequential(OrderedDict((name, children[name]) for name in wanted))


@dataclass(frozen=True)
class FeaturePooling:
    """How an encoder's last map becomes features.

    grid: the places are pooled to grid × grid; None leaves them as they are. boxes: where each place lies is put
    behind its features, as ImageCaptioning.pytorch's `use_box` does for regions: left, top, right, bottom and area, all
    as shares of the image.
    """

    grid: int | None = None
    boxes: bool = False

    def __call__(self, maps: Tensor) -> dict[str, Tensor]:
        """Read features off a map [B,C,h,w]: "fc" [B,C], its mean, and "att" [B,N,C], or [B,N,C+5] with boxes."""
        places = maps if self.grid is None else functional.adaptive_avg_pool2d(maps, self.grid)
        rows = torch.movedim(places.flatten(2), 1, 2)
        if self.boxes:
            where = _boxes(places.shape[2], places.shape[3]).to(rows)
            rows = torch.cat([rows, where.expand(len(rows), -1, -1)], 2)
        return {"fc": maps.mean((2, 3)), "att": rows}

    def to_json(self) -> dict[str, Any]:
        """Describe the reading in JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FeaturePooling:
        """Make it again from what `to_json` gave; raises GradlightError for anything else."""
        try:
            grid, boxes = record["grid"], record["boxes"]
        except (KeyError, TypeError) as error:
            raise GradlightError(f"This does not say how features are read: {record!r}.") from error
        if not isinstance(boxes, bool) or not (grid is None or (type(grid) is int and 0 < grid <= _MOST)):
            raise GradlightError(f"This does not say how features are read: {record!r}.")
        return cls(grid, boxes)


_MOST = 256


def _boxes(rows: int, columns: int) -> Tensor:
    """Give the boxes [rows·columns,5] of a grid's places."""
    top, left = torch.meshgrid(torch.arange(rows) / rows, torch.arange(columns) / columns, indexing="ij")
    area = torch.full_like(top, 1 / (rows * columns))
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows, area], 2).flatten(0, 1)


class CaptionNetwork(nn.Module):
    """An encoder from pixels to a map [B,C,h,w], how features are read off it, and a decoder from these to words."""

    def __init__(self, encoder: nn.Module, decoder: Decoder, reading: FeaturePooling | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.reading = encoder, decoder, reading or FeaturePooling()

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Give what the decoder reads of pixels [B,3,H,W]: "fc" [B,C] and "att" [B,N,C]."""
        return self.reading(self.encoder(pixels))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Give the log-probabilities [B,T+1,V] of captions [B,T] under teacher forcing (`Decoder.log_probs`)."""
        return self.decoder.log_probs(self.features(pixels), tokens)
