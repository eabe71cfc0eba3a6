"""The encoder of a captioner (a ResNet without its head), how its map is pooled to features, and the whole network."""

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

__all__ = ["RESNET101", "CaptionNetwork", "FeaturePooling", "ResNetPlan", "build_resnet", "infer_plan", "resnet_trunk"]

_MAX_BLOCKS = 1000
_MAX_GRID = 256

_BLOCKS: dict[str, type[BasicBlock] | type[Bottleneck]] = {"basic": BasicBlock, "bottleneck": Bottleneck}
_POOLS: dict[str, Callable[[], nn.Module]] = {
    "padded": lambda: nn.MaxPool2d(3, 2, padding=1),
    "ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "none": nn.Identity,
}


class CaptionNetwork(nn.Module):
    """An encoder from pixels to a map [B,C,h,w], the pooling of this map to features, and a decoder of the features.

    Args:
        encoder: maps pixels [B,3,H,W] to [B,C,h,w].
        decoder: predicts the tokens of captions from the features.
        pooling: how the map becomes features; None: one vector per image, and all locations as they are.
    """

    def __init__(self, encoder: nn.Module, decoder: Decoder, pooling: FeaturePooling | None = None) -> None:
        super().__init__()
        self.encoder, self.decoder, self.pooling = encoder, decoder, pooling or FeaturePooling()

    def features(self, pixels: Tensor) -> dict[str, Tensor]:
        """Compute the decoder's input of pixels [B,3,H,W]: "fc" [B,C] and "att" [B,N,C]."""
        return self.pooling(self.encoder(pixels))

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """Return the log-probabilities [B,T+1,V] of captions [B,T] under teacher forcing (`Decoder.log_probs`)."""
        return self.decoder.log_probs(self.features(pixels), tokens)


# --- From the encoder's map to features


@dataclass(frozen=True)
class FeaturePooling:
    """How an encoder's last map becomes features.

    Args:
        grid: the map is pooled to grid × grid locations; None leaves it as it is.
        boxes: whether each location's box is appended to its features, as ImageCaptioning.pytorch's `use_box` does for
            regions: left, top, right, bottom and area, all as fractions of the image.

    Example:
        >>> features = FeaturePooling(grid=2, boxes=True)(torch.zeros(1, 8, 4, 6))
        >>> list(features["fc"].shape), list(features["att"].shape)
        ([1, 8], [1, 4, 13])
    """

    grid: int | None = None
    boxes: bool = False

    def __call__(self, maps: Tensor) -> dict[str, Tensor]:
        """Pool a map [B,C,h,w] to "fc" [B,C], its mean, and "att" [B,N,C], or [B,N,C+5] with boxes."""
        pooled = maps if self.grid is None else functional.adaptive_avg_pool2d(maps, self.grid)
        locations = torch.movedim(pooled.flatten(2), 1, 2)
        if self.boxes:
            boxes = _location_boxes(pooled.shape[2], pooled.shape[3]).to(locations)
            locations = torch.cat([locations, boxes.expand(len(locations), -1, -1)], 2)
        return {"fc": maps.mean((2, 3)), "att": locations}

    def to_json(self) -> dict[str, Any]:
        """Describe the pooling in JSON types."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> FeaturePooling:
        """Restore the pooling from the value of `to_json`; raises GradlightError for every other value."""
        try:
            grid, boxes = record["grid"], record["boxes"]
        except (KeyError, TypeError) as error:
            raise GradlightError(f"This does not describe how features are pooled: {record!r}.") from error
        if not isinstance(boxes, bool) or not (grid is None or (type(grid) is int and 0 < grid <= _MAX_GRID)):
            raise GradlightError(f"This does not describe how features are pooled: {record!r}.")
        return cls(grid, boxes)


def _location_boxes(rows: int, columns: int) -> Tensor:
    """Compute the boxes [rows·columns,5] of a grid's locations."""
    y, x = (torch.arange(side, device="cpu") / side for side in (rows, columns))
    top, left = torch.meshgrid(y, x, indexing="ij")
    area = torch.full_like(top, 1 / (rows * columns))
    return torch.stack([left, top, left + 1 / columns, top + 1 / rows, area], 2).flatten(0, 1)


# --- ResNets without their head


@dataclass(frozen=True)
class ResNetPlan:
    """The architecture of a ResNet.

    Args:
        block: "basic" or "bottleneck".
        layers: the number of blocks of each stage.
        widths: the number of channels inside the blocks of each stage.
        stem: the number of channels of the first convolution.
        pool: the first pooling: "padded" (torchvision), "ceil" (Caffe, which also has the stride of a stage in its
            first 1×1 convolution), or "none".
        shortcut: whether the first stage has a convolution on its shortcut though its channels need none.
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
        """Restore the plan from the value of `to_json`; raises GradlightError for every other value."""
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
            raise GradlightError(f"This is not a record of a ResNet: {record!r}.") from error
        plan.check()
        return plan

    def check(self) -> None:
        """Raise GradlightError unless a network can be built of this plan."""
        positive = all(n > 0 for n in (*self.layers, *self.widths, self.stem))
        fits = len(self.layers) == len(self.widths) > 0 and self.block in _BLOCKS and self.pool in _POOLS
        if not (positive and fits and sum(self.layers) < _MAX_BLOCKS):
            raise GradlightError(f"No ResNet can be built of {self}.")


RESNET101 = ResNetPlan()
"""torchvision's ResNet101."""


def build_resnet(plan: ResNetPlan) -> nn.Sequential:
    """Build an untrained ResNet up to its last map, of torchvision's blocks and with torchvision's names.

    Args:
        plan: the architecture.

    Returns:
        A network from pixels [B,3,H,W] to the map of the last stage.

    Raises:
        GradlightError: if the plan cannot be built.

    Example:
        >>> encoder = build_resnet(ResNetPlan("basic", (1, 1), (8, 16), stem=8))
        >>> list(encoder(torch.zeros(1, 3, 64, 64)).shape)
        [1, 16, 8, 8]
    """
    plan.check()
    block = _BLOCKS[plan.block]
    stem = nn.Conv2d(3, plan.stem, 7, stride=2, padding=3, bias=False)
    modules: OrderedDict[str, nn.Module] = OrderedDict(
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
        modules[f"layer{stage + 1}"] = nn.Sequential(first, *(block(out, width) for _ in range(count - 1)))
        channels = out
    network = nn.Sequential(modules)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def infer_plan(state: Mapping[str, Tensor], pool: str = "padded") -> ResNetPlan:
    """Infer the plan from a state dict with torchvision's names.

    Args:
        state: the state dict; a head in it is ignored.
        pool: the kind of the first pooling, which has no weights.

    Returns:
        The plan of the network that the weights fit.

    Raises:
        GradlightError: if the weights are not those of a plain ResNet.

    Example:
        >>> plan = ResNetPlan("basic", (1, 2), (8, 16), stem=8)
        >>> infer_plan(build_resnet(plan).state_dict()) == plan
        True
    """
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
        raise GradlightError(f"These are not the weights of a plain ResNet: {error} is missing.") from error
    block = "bottleneck" if "layer1.0.conv3.weight" in state else "basic"
    needless = stem == widths[0] * _BLOCKS[block].expansion and "layer1.0.downsample.0.weight" in state
    plan = ResNetPlan(block, tuple(stages[stage] for stage in sorted(stages)), widths, stem, pool, needless)
    plan.check()
    return plan


def resnet_trunk(network: nn.Module) -> nn.Sequential:
    """Make a network of the modules of a torchvision or timm ResNet before its pooling, under their own names.

    Args:
        network: the ResNet; it is not changed, and shares its modules with the result.

    Returns:
        The trunk, from pixels [B,3,H,W] to the last map.

    Raises:
        GradlightError: if the network is not made of conv1 … layer4 in a row.
    """
    children = OrderedDict(network.named_children())
    names = [name for name in children if not re.fullmatch(r"avgpool|global_pool|fc|head.*|classifier", name)]
    if "conv1" not in names or not any(name.startswith("layer") for name in names):
        raise GradlightError(
            f"{type(network).__name__} is no ResNet whose modules are conv1, bn1, … layer4, so it cannot be a"
            " captioner's encoder. Give a torchvision or timm ResNet, such as torchvision.models.resnet101()."
        )
    return nn.Sequential(OrderedDict((name, children[name]) for name in names))
