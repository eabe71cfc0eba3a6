"""Which encoder a captioner's decoder sees with: that of its file, a given one, or torchvision's ResNet101."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import GradlightError
from ...files import shown
from ..checkpoints import PathLike, load_checkpoint, read_state
from ..zoo import LIBRARIES
from .checkpoints import Checkpoint
from .encoder import ResNetPlan, build_resnet, plan_of, trunk_of
from .files import about

__all__ = ["build_eye", "find_encoder"]

_CAFFE = ("ImageCaptioning.pytorch", "DiscCaptioning")
"""Projects whose own ResNet was converted from Caffe."""
_PROBE = 64


def find_encoder(
    found: Checkpoint, given: str | PathLike | nn.Module | None, pretrained: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """Find the encoder of a checkpoint, with a record of where it comes from.

    given: "timm/NAME", "torchvision/NAME", a file of ResNet weights under torchvision's names, or a ResNet; it wins
    over the one in the checkpoint. pretrained: of torchvision's ResNet101, or of the named one. Raises GradlightError
    for what is no ResNet.
    """
    if isinstance(given, nn.Module):
        return trunk_of(given), {"source": type(given).__name__}
    if given is not None:
        name = os.fspath(given)
        library, _, rest = name.partition("/")
        if library in LIBRARIES and rest and not os.path.exists(name):
            return _named(name, pretrained)
        return _from_file(found, name)
    if found.encoder_state is not None:
        plan = found.plan or plan_of(found.encoder_state)
        encoder = build_resnet(plan)
        _fill(encoder, found.encoder_state, "the checkpoint's encoder")
        return encoder, {"source": "checkpoint", **plan.to_json()}
    return _named("torchvision/resnet101", pretrained)


def _named(name: str, pretrained: bool) -> tuple[nn.Module, dict[str, Any]]:
    library, _, rest = name.partition("/")
    try:
        network = LIBRARIES[library](rest, pretrained=pretrained).network
    except GradlightError as error:
        raise GradlightError(
            f"The captioner's encoder: {error} For a captioner: encoder=PATH names a file of ResNet weights."
        ) from error
    return trunk_of(network), {"source": name, "pretrained": pretrained}


def _from_file(found: Checkpoint, path: str) -> tuple[nn.Module, dict[str, Any]]:
    state = read_state(path)
    caffe = found.project in _CAFFE and not _torchvision_made(path, state)
    plan = plan_of(state, "ceil" if caffe else "padded")
    encoder = build_resnet(plan)
    _fill(encoder, {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}, shown(path))
    return encoder, {"source": Path(path).name, **plan.to_json()}


def _torchvision_made(path: str, state: Mapping[str, Tensor]) -> bool:
    """Tell torchvision's files from those converted from Caffe, whose strides lie elsewhere: the keys are the same."""
    counted = any(name.endswith("num_batches_tracked") for name in state)
    return counted or re.fullmatch(r"resnet\d+-[0-9a-f]{8}\.pth", Path(path).name) is not None


def _fill(encoder: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    try:
        missing, unexpected = encoder.load_state_dict(dict(state), strict=False)
    except RuntimeError as error:
        raise GradlightError(f"{where}: does not fit a ResNet: {' '.join(str(error).split())[:300]}") from error
    wrong = [name for name in missing if not name.endswith("num_batches_tracked")] + list(unexpected)
    if wrong:
        raise GradlightError(f"{where}: is no plain ResNet; missing or unknown: {', '.join(wrong[:8])}.")


def build_eye(name: str, pretrained: bool) -> tuple[nn.Sequential, ResNetPlan]:
    """Build the encoder of a name or a file from a plan, since the plan is what is written."""
    library, _, rest = name.partition("/")
    if library in LIBRARIES and rest and not os.path.exists(name):
        return _rebuilt(name, trunk_of(LIBRARIES[library](rest, pretrained=pretrained).network))
    state = read_state(name)
    with about(name):
        plan = plan_of(state)
    eye = build_resnet(plan)
    load_checkpoint(eye, name, ignore=("fc.",))
    return eye, plan


def _rebuilt(name: str, trunk: nn.Sequential) -> tuple[nn.Sequential, ResNetPlan]:
    """Build a network's likeness from its plan, and see that it is one."""
    state = {key: tensor.clone() for key, tensor in trunk.state_dict().items()}
    # Normalisations that begin at zero hide what lies before them; without them only a batch's own statistics fit.
    bare = {key: torch.ones_like(t) if t.ndim == 1 and key.endswith("weight") else t for key, t in state.items()}
    try:
        plan = plan_of(state)
        eye = build_resnet(plan)
        alike = all(_alike(eye.train(own), trunk.train(own), each) for own, each in ((True, bare), (False, state)))
        why = "" if alike else "the same weights give other maps there"
    except (GradlightError, RuntimeError) as error:
        why = " ".join(str(error).split())[:200]
    if why:
        raise GradlightError(
            f"The encoder {name} is no plain ResNet ({why}), and no other can be written. Give a ResNet such as"
            " torchvision/resnet101 or timm/resnet50."
        )
    return eye, plan


def _alike(one: nn.Module, other: nn.Module, state: dict[str, Tensor]) -> bool:
    """Tell whether two networks make the same of noise by the same weights."""
    noise = torch.rand(2, 3, _PROBE, _PROBE, generator=torch.Generator().manual_seed(0))
    maps = []
    for network in (one, other):
        network.load_state_dict(state)
        with torch.no_grad():
            maps.append(network(noise))
    same = maps[0].shape == maps[1].shape
    return same and float((maps[0] - maps[1]).abs().max()) <= 1e-3 * float(maps[1].abs().max())
