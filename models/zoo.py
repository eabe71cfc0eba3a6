"""Networks of timm and torchvision by name, with their weights, labels and preprocessing.

Weights are downloaded by the libraries themselves. Before that, their server is asked once whether it answers, so that
without a connection a call fails after seconds and names the alternatives.
"""

from __future__ import annotations

import math
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import GradlightError, nearest
from .checkpoints import PathLike, load_checkpoint
from .preprocessing import Preprocessing
from .registry import SOURCES, LoadedNetwork

__all__ = [
    "LIBRARIES",
    "LoadedNetwork",
    "hub_weights",
    "names",
    "sources",
    "timm_metadata",
    "timm_network",
    "timm_preprocessing",
    "torchvision_network",
    "torchvision_preprocessing",
    "url_weights",
    "with_weights",
]

_TIMEOUT_S = 10
# Heads that only help training: they are not built, but a file of weights may hold them.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")


# --- networks by name ---


def timm_network(
    name: str, *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> LoadedNetwork:
    """Build a timm network with its own data configuration.

    Args:
        name: "resnet50", "resnet50.a1_in1k".
        pretrained: Load timm's weights, unless there is a checkpoint.
        checkpoint: A file of weights.
        labels: Names for the classes. Another number of them than timm's makes a head of that size, which no
            pretrained weights fit.

    Returns:
        The network with its labels and preprocessing.

    Raises:
        GradlightError: If the name is unknown, or the weights cannot be downloaded or do not fit.

    Example:
        >>> from gradlight.models.zoo import timm_network
        >>> loaded = timm_network("resnet18", pretrained=False, labels=["cat", "dog"])
        >>> loaded.network.fc.out_features, loaded.preprocessing.size
        (2, (224, 224))
    """
    import timm
    from timm.data.config import resolve_data_config

    source, pretrained = f"timm/{name}", pretrained and checkpoint is None
    _check_timm_name(name)
    config = timm.get_pretrained_cfg(name) or timm.models.PretrainedCfg()
    class_names = _choose_labels(source, _timm_labels(config), labels, pretrained)
    if pretrained and not config.has_weights:
        raise GradlightError(f"timm has no pretrained weights for {name!r}; give checkpoint= or pretrained=False.")
    overlay = hub_weights(source, config.hf_hub_id, config.hf_hub_filename) if pretrained else None

    def make() -> nn.Module:
        network: nn.Module = timm.create_model(
            name, pretrained=pretrained, num_classes=len(class_names), pretrained_cfg_overlay=overlay
        )
        return network

    network = with_weights(source, make) if pretrained else make()
    if checkpoint is not None:
        load_checkpoint(network, checkpoint)
    data_config = resolve_data_config(model=network)  # type: ignore[no-untyped-call]
    return LoadedNetwork(network, class_names, timm_preprocessing(data_config), "timm", timm.__version__)


def torchvision_network(
    name: str, *, pretrained: bool, checkpoint: PathLike | None = None, labels: Sequence[str] | None = None
) -> LoadedNetwork:
    """Build a torchvision image classifier with the preprocessing and labels of its DEFAULT weights.

    GoogLeNet and Inception come without their auxiliary heads.

    Args:
        name: "resnet50".
        pretrained: Load torchvision's weights, unless there is a checkpoint.
        checkpoint: A file of weights.
        labels: Names for the classes; their number makes the head, as for `timm_network`.

    Returns:
        The network with its labels and preprocessing.

    Raises:
        GradlightError: If the name is unknown, or the weights cannot be downloaded or do not fit.
    """
    import torchvision

    if name not in names("torchvision"):
        raise _unknown_name("torchvision", name)
    source, pretrained = f"torchvision/{name}", pretrained and checkpoint is None
    weights = torchvision.models.get_model_weights(name).DEFAULT
    class_names = _choose_labels(source, list(weights.meta["categories"]), labels, pretrained)
    options: dict[str, Any] = {"weights": weights if pretrained else None, "num_classes": len(class_names)}
    if name in ("googlenet", "inception_v3"):
        # As the published weights need it; torchvision itself sets this only where it downloads them.
        options |= {"aux_logits": False, "transform_input": True, "init_weights": False}
    if name.startswith("vit_"):
        # Its position embedding has one size, which must be the preset's even where nothing is downloaded.
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
        network, class_names, torchvision_preprocessing(weights.transforms()), "torchvision", torchvision.__version__
    )


LIBRARIES = {"timm": timm_network, "torchvision": torchvision_network}
"""What stands before the slash of a name → the function that builds such a network."""


def sources() -> list[str]:
    """List every name that `gradlight.classifier` takes, those of registered sources first.

    Returns:
        "scenes", names of plug-ins, "timm/…", "torchvision/…".
    """
    registered = SOURCES.classifier_names()
    return [*registered, *(f"{library}/{name}" for library in LIBRARIES for name in names(library))]


def names(library: str) -> list[str]:
    """List the image classifiers that a library knows by name.

    Args:
        library: "timm" or "torchvision".

    Returns:
        The names, without the library's.

    Example:
        >>> from gradlight.models.zoo import names
        >>> "resnet50" in names("torchvision")
        True
    """
    if library == "timm":
        import timm

        return list(timm.list_models())
    import torchvision

    return list(torchvision.models.list_models(module=torchvision.models))


def _unknown_name(library: str, name: str) -> GradlightError:
    near = nearest(name, names(library))
    return GradlightError(f"{library} has no image classifier {name!r}.{near} `gradlight models` lists them.")


def _check_timm_name(name: str) -> None:
    """Raise GradlightError for an architecture or a tag of weights that timm does not have."""
    import timm

    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise _unknown_name("timm", name)
    tags = [full.partition(".")[2] for full in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise GradlightError(f"timm has no weights {tag!r} for {architecture}; it has {', '.join(tags) or 'none'}.")


# --- labels and preprocessing of the libraries ---


def _timm_labels(config: Any) -> list[str]:
    """Give the class names of a timm configuration: its own, else ImageNet's, else class_0, class_1 and so on."""
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    count = config.num_classes
    if config.label_names and len(config.label_names) == count:
        return list(config.label_names)
    subset = infer_imagenet_subset({"num_classes": count})
    return list(ImageNetInfo(subset).label_descriptions()) if subset else [f"class_{k}" for k in range(count)]


def _choose_labels(source: str, own: list[str], labels: Sequence[str] | None, pretrained: bool) -> list[str]:
    """Choose between the library's labels and the caller's."""
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
    """Make timm's evaluation transform: the same as `create_transform(**config, is_training=False)`.

    Args:
        config: A data configuration of timm: input_size, crop_pct, crop_mode, interpolation, mean, std.

    Returns:
        The preprocessing.

    Example:
        >>> from gradlight.models.zoo import timm_preprocessing
        >>> half = (0.5, 0.5, 0.5)
        >>> config = {"input_size": (3, 224, 224), "crop_pct": 0.875, "crop_mode": "center", "mean": half, "std": half}
        >>> timm_preprocessing({**config, "interpolation": "bicubic"}).resize
        (256, 256)
    """
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


def timm_metadata(module: nn.Module) -> tuple[Preprocessing, list[str]] | None:
    """Read what a network of timm that was given as a module says of itself.

    Args:
        module: Any module.

    Returns:
        The preprocessing of its pretrained_cfg, at the size that it was built for, and the labels that the weights of
        this configuration have; None for a module without one.
    """
    config = vars(module).get("pretrained_cfg") or vars(module).get("default_cfg")
    if not isinstance(config, Mapping) or not {"mean", "std", "input_size"} <= config.keys():
        return None
    import timm
    from timm.data.config import resolve_data_config

    data_config = resolve_data_config(pretrained_cfg=dict(config))  # type: ignore[no-untyped-call]
    side = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if isinstance(side, tuple) and len(side) == 2:
        data_config["input_size"] = (data_config["input_size"][0], *side)
    fields = {name: config[name] for name in ("num_classes", "label_names") if name in config}
    return timm_preprocessing(data_config), _timm_labels(timm.models.PretrainedCfg(**fields))


def torchvision_preprocessing(preset: Any) -> Preprocessing:
    """Make the preprocessing of torchvision's preset for image classification.

    Args:
        preset: What `weights.transforms()` gives.

    Returns:
        The preprocessing.
    """
    (crop,), (edge,) = preset.crop_size, preset.resize_size
    return Preprocessing(
        size=(crop, crop),
        resize=(edge, edge),
        interpolation=preset.interpolation.value,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


# --- downloads ---


def with_weights(source: str, make: Callable[[], nn.Module]) -> nn.Module:
    """Let a library build a network with its weights.

    Args:
        source: The network's name, for the error.
        make: Builds the network and downloads its weights.

    Returns:
        The network.

    Raises:
        GradlightError: If anything goes wrong; the message names the alternatives to a download.
    """
    try:
        return make()
    except GradlightError:
        raise
    # The libraries, their hubs and broken files fail in every way: OSError, HTTP errors, RuntimeError, EOFError …
    except Exception as error:
        raise GradlightError(_download_failure(source, f"{type(error).__name__}: {error}")) from error


def url_weights(source: str, url: str) -> None:
    """Check that torch.hub has the file of an address already, or that its server answers.

    Args:
        source: The network's name, for the error.
        url: The address of the weights.

    Raises:
        GradlightError: If the file is neither cached nor within reach.
    """
    file = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(url))
    if not os.path.exists(file):
        reason = _unreachable(url)
        if reason:
            raise GradlightError(_download_failure(source, reason))


def hub_weights(source: str, repository: str | None, filename: str | None) -> dict[str, Any] | None:
    """Find out how timm gets the weights of a repository of the Hugging Face hub.

    The hub's own client retries for 50 seconds where there is no connection, even if the file is cached.

    Args:
        source: The network's name, for the error.
        repository: The repository; None for none.
        filename: The file of weights in it; None for the usual ones.

    Returns:
        What to lay over timm's configuration: None where the hub answers, else the file in the local cache.

    Raises:
        GradlightError: If the hub does not answer and the file is not cached.
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
    raise GradlightError(_download_failure(source, reason))


def _unreachable(url: str) -> str:
    """Say why a server does not answer, or "" where it does; proxies are those of the environment."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return ""  # The server answers; whether it has the file is for the library to find out.
    except OSError as error:
        return f"{urllib.parse.urlsplit(url).netloc} cannot be reached ({getattr(error, 'reason', error)})"
    return ""


def _download_failure(source: str, reason: str) -> str:
    return (
        f"The weights of {source} could not be downloaded or read: {reason}. Without them: checkpoint=PATH reads a file"
        ' that you have, pretrained=False takes random weights, and the source "scenes" comes with its own.'
    )
