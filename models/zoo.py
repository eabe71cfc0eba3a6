"""Where timm and torchvision are met: their networks, weights, labels and preprocessing, by name.

Weights that the libraries download: failing soon and in plain words where there is no network.
"""

from __future__ import annotations

import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import GradlightError, nearest
from .checkpoints import PathLike, load_checkpoint
from .preprocessing import Preprocess, Preprocessing

__all__ = [
    "LIBRARIES",
    "LoadedNetwork",
    "hub_weights",
    "names",
    "sources",
    "timm_network",
    "timm_preprocessing",
    "torchvision_network",
    "torchvision_preprocessing",
    "url_weights",
    "with_weights",
]

_PATIENCE = 10


def with_weights(source: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Let a library build a network with its weights; what goes wrong becomes a GradlightError with the ways out."""
    try:
        return make()
    except GradlightError:
        raise
    # The libraries, their hubs and broken files fail in every way: OSError, HTTP errors, RuntimeError, EOFError …
    except Exception as error:
        raise GradlightError(_ways_out(source, f"{type(error).__name__}: {error}")) from error


def url_weights(source: str, url: str) -> None:
    """Make sure that torch.hub has the file of this address already, or can get it."""
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.exists(file):
        reason = _unreachable(url)
        if reason:
            raise GradlightError(_ways_out(source, reason))


def hub_weights(source: str, repository: str | None, filename: str | None) -> dict[str, Any] | None:
    """Find out how timm gets a repository of the Hugging Face hub.

    Returns what to lay over timm's configuration: nothing where the hub answers, else the file in the local cache.
    By itself the hub's client would ask again for 50 seconds, even where the file is there.
    """
    if not repository:
        return None
    from huggingface_hub import constants, try_to_load_from_cache

    reason = _unreachable(constants.ENDPOINT)
    if not reason:
        return None
    for name in (filename,) if filename else ("model.safetensors", "pytorch_model.bin"):
        cached = try_to_load_from_cache(repository, name)
        if isinstance(cached, str):
            return {"file": cached, "custom_load": False}
    raise GradlightError(_ways_out(source, reason))


def _unreachable(url: str) -> str:
    """Say why a server does not answer, or "" where it does; proxies are those of the environment."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_PATIENCE).close()
    except urllib.error.HTTPError:
        return ""  # It answers; whether it has the file is the library's to find out.
    except OSError as error:
        return f"{urllib.parse.urlsplit(url).netloc} cannot be reached ({getattr(error, 'reason', error)})"
    return ""


def _ways_out(source: str, reason: str) -> str:
    return (
        f"The weights of {source} could not be downloaded or read: {reason}. Without them: checkpoint=PATH reads a file"
        ' that you have, pretrained=False takes random weights, and the source "scenes" comes with its own.'
    )


# Heads that only help training: they are not built, and a file may hold them all the same.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


@dataclass(frozen=True)
class LoadedNetwork:
    """A network, with what its library says about it."""

    network: nn.Module
    labels: list[str] | None
    preprocessing: Preprocess
    library: str
    version: str


def timm_network(
    name: str, *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> LoadedNetwork:
    """Build a timm network ("resnet50", "resnet50.a1_in1k") with its own configuration of the data.

    pretrained: get timm's weights, unless there is a checkpoint. labels: names for the classes; another number of
    them than timm's makes a head of that size, which no pretrained weights fit. Raises GradlightError for unknown
    names and for weights that cannot be had.
    """
    import timm
    from timm.data.config import resolve_data_config

    source, pretrained = f"timm/{name}", pretrained and checkpoint is None
    _check_timm_name(name)
    config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    chosen = _choose_labels(source, _timm_labels(config), labels, pretrained)
    if pretrained and not config.has_weights:
        raise GradlightError(f"timm has no pretrained weights for {name!r}; give checkpoint= or pretrained=False.")
    overlay = hub_weights(source, config.hf_hub_id, config.hf_hub_filename) if pretrained else None

    def make() -> nn.Module:
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=len(chosen), pretrained_cfg_overlay=overlay
        )
        return network

    network = with_weights(source, make) if pretrained else make()
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    data = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    return LoadedNetwork(network, chosen, timm_preprocessing(data), "timm", timm.__version__)


def torchvision_network(
    name: str, *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> LoadedNetwork:
    """Build a torchvision image classifier with the preprocessing and labels of its DEFAULT weights.

    The keywords are those of `timm_network`. GoogLeNet and Inception come without their auxiliary heads.
    """
    import torchvision

    if name not in names("torchvision"):
        raise _unknown("torchvision", name)
    source, pretrained = f"torchvision/{name}", pretrained and checkpoint is None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    chosen = _choose_labels(source, list(weights.meta["categories"]), labels, pretrained)
    options: dict[str, Any] = {"weights": weights if pretrained else None, "num_classes": len(chosen)}
    if name in ("googlenet", "inception_v3"):
        # As the published weights want it, which would otherwise be set only where they are downloaded.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": False}
    if name.startswith("vit_"):
        # Its position embedding is of one size, which must be the preset's also where nothing is downloaded.
        options["image_size"] = weights.meta["min_size"][0]
    if pretrained:
        url_weights(source, weights.url)

    def make() -> nn.Module:
        network: nn.Module = torchvision.models.get_model(name, **options)
        return network

    network = with_weights(source, make) if pretrained else make()
    if checkpoint is not None:
        load_checkpoint(network, checkpoint, ignore=_AUXILIARY)
    return LoadedNetwork(
        network, chosen, torchvision_preprocessing(weights.transforms()), "torchvision", torchvision.__version__
    )


LIBRARIES = {"timm": timm_network, "torchvision": torchvision_network}


def sources() -> list[str]:
    """List every name that `classifier` takes."""
    return ["scenes", *(f"{library}/{name}" for library in LIBRARIES for name in names(library))]


def names(library: str) -> list[str]:
    """List the image classifiers that "timm" or "torchvision" knows by name."""
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _unknown(library: str, name: str) -> GradlightError:
    near = nearest(name, names(library))
    return GradlightError(f"{library} has no image classifier {name!r}.{near} `gradlight models` lists them.")


def _check_timm_name(name: str) -> None:
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown("timm", name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise GradlightError(f"timm has no weights {tag!r} for {architecture}; it has {', '.join(tags) or 'none'}.")


def _timm_labels(config: Any) -> list[str]:
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    count = config.num_classes
    if config.label_names and len(config.label_names) == count:
        return list(config.label_names)
    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_descriptions()) if subset else [f"class_{k}" for k in range(count)]


def _choose_labels(source: str, own: list[str], labels: Sequence[str] | None, pretrained: bool) -> list[str]:
    if labels is None and not own:
        raise GradlightError(f"{source} ends in features and has no classes. Give labels= and checkpoint= for a head.")
    if labels is None:
        return own
    if pretrained and len(labels) != len(own):
        raise GradlightError(
            f"The pretrained weights of {source} know {len(own)} classes, labels= names {len(labels)}: such a head"
            " would be random. Give checkpoint= with the weights of the new head, or pretrained=False."
        )
    return list(labels)


def timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing:
    """Make timm's evaluation transform: what `create_transform(**config, is_training=False)` does."""
    _, height, width = config["input_size"]
    mean = tuple(config["mean"])
    border = config["crop_mode"] == "border"
    return Preprocessing(
        size=(height, width),
        resize=(math.floor(height / config["crop_pct"]), math.floor(width / config["crop_pct"])),
        fit={"squash": "squash", "border": "longer"}.get(config["crop_mode"], "shorter"),
        interpolation=config["interpolation"],
        mean=mean,
        std=tuple(config["std"]),
        fill=tuple(round(255 * level) for level in mean) if border else (0, 0, 0),
    )


def torchvision_preprocessing(preset: Any) -> Preprocessing:
    """Make torchvision's preset for image classification, which is an object with these attributes."""
    (crop,), (edge,) = preset.crop_size, preset.resize_size
    return Preprocessing(
        size=(crop, crop),
        resize=(edge, edge),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )
