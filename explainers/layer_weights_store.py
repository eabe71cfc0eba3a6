"""How much each layer of a network tells of its images: measured once, kept as a small JSON; and what was published.

The files lie in "layer_weights" in gradlight's own folder among the user's data, one for each network, named after the
checksum of its weights. The environment variable GRADLIGHT_LAYER_WEIGHTS names another folder.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from platformdirs import user_data_path

from ..errors import GradlightError, nearest
from ..files import PathLike, format_path, read_whole, replace_file

__all__ = [
    "KINDS",
    "PUBLISHED",
    "LayerMeasure",
    "MeasuredWeights",
    "Published",
    "find",
    "folder",
    "keep",
    "published",
    "read",
]

KINDS = ("spread", "accuracy")
"""What is measured of a layer (paper, section 4.2)."""

_VERSION = 1
_MOST = 4 << 20
_SHA256 = re.compile("[0-9a-f]{64}")

_PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "resnet50": {
        "spread": (0.1698746686351632, 0.1950209363640008, 0.1930607604361503, 0.4420436345646859),
        "accuracy": (0.0777636622102207, 0.1120188314949383, 0.1960376762879433, 0.6141798300068978),
    },
    "vgg16": {
        "spread": (0.2119383764047884, 0.3225606074029479, 0.3907056723433652, 0.0674916783223005, 0.0073036655265981),
        "accuracy": (0.0326937514514653, 0.1252633500153707, 0.2119629074318453, 0.304091764091923, 0.3259882270093957),
    },
}
_LAYERS = {
    "resnet50": ("layer1", "layer2", "layer3", "layer4"),
    "vgg16": ("features.3", "features.8", "features.15", "features.22", "features.29"),
}
PUBLISHED: Mapping[str, Mapping[str, Mapping[str, float]]] = MappingProxyType(
    {
        name: {kind: dict(zip(_LAYERS[name], values, strict=True)) for kind, values in kinds.items()}
        for name, kinds in _PUBLISHED.items()
    }
)
"""Network → kind → layer → weight, of sum 1 (paper, figure 9): of torchvision's networks as they were in 2020.

The numbers are those of the authors' code, with the spread taken at the layers' outputs.
"""

# Of these names the weights have never been others than those that the numbers were measured with.
_THE_SAME = ("torchvision/vgg16", "timm/vgg16", "timm/vgg16.tv_in1k", "timm/resnet50.tv_in1k")


@dataclass(frozen=True)
class LayerMeasure:
    """Of one layer: the spread of its features, and how well a linear probe does on them (None: not measured)."""

    spread: float
    accuracy: float | None


@dataclass(frozen=True)
class MeasuredWeights:
    """What was measured of a network: its name and checksum, on which data, on how many images, layer by layer.

    accuracy_is: what the accuracy counts ("top-1 accuracy", "mean average precision"). seed: of the probe's split.
    """

    model: str
    weights_sha256: str
    data: str
    count: int
    layers: Mapping[str, LayerMeasure]
    accuracy_is: str | None = None
    seed: int = 0

    def weights(self, kind: str) -> dict[str, float]:
        """Give layer → weight of "spread" or "accuracy"; no layer where that was not measured."""
        if kind not in KINDS:
            raise GradlightError(f"Layers are measured by {' and '.join(KINDS)}, not {kind!r}.{nearest(kind, KINDS)}")
        found = {name: getattr(layer, kind) for name, layer in self.layers.items()}
        return {name: value for name, value in found.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Describe it in JSON types."""
        return {"format": "gradlight-layer-weights", "format_version": _VERSION, **asdict(self)}


@dataclass(frozen=True)
class Published:
    """Published weights of the layers of an architecture; same_network: with the very weights that it has."""

    architecture: str
    layers: Mapping[str, float]
    same_network: bool


def folder() -> Path:
    """Give the folder where measured weights are kept."""
    own = os.environ.get("GRADLIGHT_LAYER_WEIGHTS")
    return Path(own).expanduser() if own else user_data_path("gradlight", appauthor=False) / "layer_weights"


def keep(measured: MeasuredWeights, path: PathLike | None = None) -> Path:
    """Write what was measured to a file, its own in `folder()` unless given; tells where.

    There, layers measured before on the same data stay beside the new ones. Raises GradlightError for a place that
    cannot be written.
    """
    if path is None:
        known = find(measured.weights_sha256)
        if known is not None and _setting(known) == _setting(measured):
            measured = replace(measured, layers={**known.layers, **measured.layers})
    target = _own_file(measured.weights_sha256) if path is None else Path(os.fsdecode(path))
    try:
        if path is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, json.dumps(measured.to_json(), indent=1).encode() + b"\n")
    except OSError as error:
        why = error.strerror or str(error)
        raise GradlightError(
            f"{format_path(target)}: cannot be written: {why}. Check folder and permissions."
        ) from error
    return target


def find(weights_sha256: str) -> MeasuredWeights | None:
    """Find what was measured of the network with these weights in `folder()`; None if nothing was.

    Raises GradlightError for a damaged file, and for one of another network.
    """
    if not _SHA256.fullmatch(weights_sha256):  # of maps that do not say what made them
        return None
    path = _own_file(weights_sha256)
    if not path.exists():
        return None
    measured = read(path)
    if measured.weights_sha256 != weights_sha256:
        raise GradlightError(f"{format_path(path)}: measured on another network than its name says. Remove it.")
    return measured


def read(path: PathLike) -> MeasuredWeights:
    """Read what `keep` wrote. Raises GradlightError for anything else."""
    content = read_whole(path, _MOST, "Layer weights are a small JSON file")
    try:
        return _measured(json.loads(content))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise GradlightError(
            f"{format_path(path)}: no layer weights ({error}). Remove the file and measure again: `gradlight evaluate"
            " layer_weights`."
        ) from error


def published(kind: str, model: Mapping[str, Any], layers: Sequence[str]) -> Published | None:
    """Find the published weights of a network, told as `Explainable.describe` does, at exactly these layers.

    None unless it is timm's or torchvision's ResNet50 or VGG16, pretrained on ImageNet with its 1000 classes.
    """
    name = str(model.get("name"))
    library, _, rest = name.partition("/")
    architecture, _, tag = rest.partition(".")
    known = library in ("timm", "torchvision") and architecture in PUBLISHED and (not tag or tag.endswith("in1k"))
    if not known or model.get("pretrained") is not True or model.get("num_classes") != 1000:
        return None
    if tuple(layers) != _LAYERS[architecture]:
        return None
    return Published(architecture, PUBLISHED[architecture][kind], name in _THE_SAME)


def _own_file(weights_sha256: str) -> Path:
    if not _SHA256.fullmatch(weights_sha256):
        raise GradlightError(f"{weights_sha256!r} is no checksum of weights: 64 hexadecimal digits are expected.")
    return folder() / f"{weights_sha256}.json"


def _setting(measured: MeasuredWeights) -> tuple[Any, ...]:
    return measured.data, measured.count, measured.accuracy_is, measured.seed


def _measured(found: Any) -> MeasuredWeights:
    if not isinstance(found, dict) or found.get("format") != "gradlight-layer-weights":
        raise ValueError("it does not say that it is")
    if found.get("format_version") != _VERSION:
        raise ValueError(f"its format is version {found.get('format_version')!r}; this gradlight reads {_VERSION}")
    accuracy_is = found["accuracy_is"]
    return MeasuredWeights(
        _text(found["model"]),
        _text(found["weights_sha256"]),
        _text(found["data"]),
        _whole(found["count"]),
        {
            name: LayerMeasure(_number(row["spread"]), _optional(row["accuracy"]))
            for name, row in dict(found["layers"]).items()
        },
        None if accuracy_is is None else _text(accuracy_is),
        _whole(found["seed"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is no whole number")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise TypeError(f"{value!r} is no weight: a finite number, zero or more")
    return float(value)


def _optional(value: Any) -> float | None:
    return None if value is None else _number(value)
