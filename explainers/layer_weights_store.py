"""Store the measured weights of a network's layers as JSON, and look up the published ones.

The files are in "layer_weights" in gradlight's own folder among the user's data, one per network, named after the
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

_FORMAT, _FORMAT_VERSION = "gradlight-layer-weights", 1
_MAX_BYTES = 4 << 20
_SHA256 = re.compile("[0-9a-f]{64}")

# --- Measured weights


@dataclass(frozen=True)
class LayerMeasure:
    """The spread of a layer's features, and the accuracy of a linear probe on them (None: not measured)."""

    spread: float
    accuracy: float | None


@dataclass(frozen=True)
class MeasuredWeights:
    """The measures of a network's layers.

    Args:
        model: Name of the network.
        weights_sha256: Checksum of its weights.
        data: Name of the data set.
        count: Number of images.
        layers: Layer → its measures.
        accuracy_is: What the accuracy counts ("top-1 accuracy", "mean average precision").
        seed: Of the probe's split.

    Example:
        >>> measured = MeasuredWeights("scenes", 64 * "0", "voc07", 100, {"layer1": LayerMeasure(0.5, None)})
        >>> measured.weights("spread"), measured.weights("accuracy")
        ({'layer1': 0.5}, {})
    """

    model: str
    weights_sha256: str
    data: str
    count: int
    layers: Mapping[str, LayerMeasure]
    accuracy_is: str | None = None
    seed: int = 0

    def weights(self, kind: str) -> dict[str, float]:
        """Return layer → weight of "spread" or "accuracy", without the layers where that was not measured.

        Raises:
            GradlightError: For another kind.
        """
        if kind not in KINDS:
            raise GradlightError(f"Layers are measured by {' and '.join(KINDS)}, not {kind!r}.{nearest(kind, KINDS)}")
        values = {name: getattr(layer, kind) for name, layer in self.layers.items()}
        return {name: value for name, value in values.items() if value is not None}

    def to_json(self) -> dict[str, Any]:
        """Describe it in JSON types."""
        return {"format": _FORMAT, "format_version": _FORMAT_VERSION, **asdict(self)}


def folder() -> Path:
    """Return the folder of the measured weights."""
    override = os.environ.get("GRADLIGHT_LAYER_WEIGHTS")
    return Path(override).expanduser() if override else user_data_path("gradlight", appauthor=False) / "layer_weights"


def keep(measured: MeasuredWeights, path: PathLike | None = None) -> Path:
    """Write measured weights to a file.

    Args:
        measured: The weights.
        path: The file; by default the network's own in `folder()`, where layers measured before on the same data stay
            beside the new ones.

    Returns:
        The path of the file.

    Raises:
        GradlightError: For a path that cannot be written.
    """
    if path is None:
        previous = find(measured.weights_sha256)
        if previous is not None and _setting(previous) == _setting(measured):
            measured = replace(measured, layers={**previous.layers, **measured.layers})
    target = _default_path(measured.weights_sha256) if path is None else Path(os.fsdecode(path))
    try:
        if path is None:
            target.parent.mkdir(parents=True, exist_ok=True)
        replace_file(target, json.dumps(measured.to_json(), indent=1).encode() + b"\n")
    except OSError as error:
        reason = error.strerror or str(error)
        raise GradlightError(
            f"{format_path(target)}: cannot be written: {reason}. Check folder and permissions."
        ) from error
    return target


def find(weights_sha256: str) -> MeasuredWeights | None:
    """Find the measured weights of a network in `folder()`.

    Args:
        weights_sha256: Checksum of the network's weights; "" for an unknown network.

    Returns:
        The weights; None if there are none.

    Raises:
        GradlightError: For a damaged file, and for one of another network.
    """
    if not _SHA256.fullmatch(weights_sha256):
        return None
    path = _default_path(weights_sha256)
    if not path.exists():
        return None
    measured = read(path)
    if measured.weights_sha256 != weights_sha256:
        raise GradlightError(f"{format_path(path)}: measured on another network than its name says. Remove it.")
    return measured


def read(path: PathLike) -> MeasuredWeights:
    """Read a file that `keep` wrote.

    Raises:
        GradlightError: For anything else.
    """
    content = read_whole(path, _MAX_BYTES, "Layer weights are a small JSON file")
    try:
        return _parse(json.loads(content))
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise GradlightError(
            f"{format_path(path)}: not a file of layer weights ({error}). Remove the file and measure again:"
            " `gradlight evaluate layer_weights`."
        ) from error


def _default_path(weights_sha256: str) -> Path:
    if not _SHA256.fullmatch(weights_sha256):
        raise GradlightError(f"A checksum of weights must be 64 hexadecimal digits, not {weights_sha256!r}.")
    return folder() / f"{weights_sha256}.json"


def _setting(measured: MeasuredWeights) -> tuple[Any, ...]:
    """Return what must be equal for measures to lie in one file."""
    return measured.data, measured.count, measured.accuracy_is, measured.seed


def _parse(content: Any) -> MeasuredWeights:
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"its format is not {_FORMAT!r}")
    if content.get("format_version") != _FORMAT_VERSION:
        raise ValueError(
            f"its format is version {content.get('format_version')!r}; this gradlight reads {_FORMAT_VERSION}"
        )
    accuracy_is = content["accuracy_is"]
    return MeasuredWeights(
        _parse_text(content["model"]),
        _parse_text(content["weights_sha256"]),
        _parse_text(content["data"]),
        _parse_count(content["count"]),
        {
            name: LayerMeasure(_parse_weight(row["spread"]), _parse_optional_weight(row["accuracy"]))
            for name, row in dict(content["layers"]).items()
        },
        None if accuracy_is is None else _parse_text(accuracy_is),
        _parse_count(content["seed"]),
    )


def _parse_text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not a text")
    return value


def _parse_count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError(f"{value!r} is not a whole number, zero or more")
    return value


def _parse_weight(value: Any) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf:
        raise TypeError(f"{value!r} is not a finite number, zero or more")
    return float(value)


def _parse_optional_weight(value: Any) -> float | None:
    return None if value is None else _parse_weight(value)


# --- Published weights

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

# The weights under these names have always been those that the numbers were measured with.
_SAME_NETWORKS = ("torchvision/vgg16", "timm/vgg16", "timm/vgg16.tv_in1k", "timm/resnet50.tv_in1k")


@dataclass(frozen=True)
class Published:
    """Published weights of the layers of an architecture.

    Args:
        architecture: "resnet50" or "vgg16".
        layers: Layer → weight.
        same_network: Whether they were measured with the very weights that the network has.
    """

    architecture: str
    layers: Mapping[str, float]
    same_network: bool


def published(kind: str, model: Mapping[str, Any], layers: Sequence[str]) -> Published | None:
    """Find the published weights of a network at exactly these layers.

    Args:
        kind: "spread" or "accuracy".
        model: The network, as `Explainable.describe` describes it.
        layers: Names of the layers.

    Returns:
        The weights; None unless it is timm's or torchvision's ResNet50 or VGG16, pretrained on ImageNet with its 1000
        classes.

    Example:
        >>> model = {"name": "torchvision/resnet50", "pretrained": True, "num_classes": 1000}
        >>> published("accuracy", model, ["layer1", "layer2", "layer3", "layer4"]).same_network
        False
        >>> published("accuracy", model, ["layer4"])
    """
    name = str(model.get("name"))
    library, _, rest = name.partition("/")
    architecture, _, tag = rest.partition(".")
    has_name = library in ("timm", "torchvision") and architecture in PUBLISHED and (not tag or tag.endswith("in1k"))
    if not has_name or model.get("pretrained") is not True or model.get("num_classes") != 1000:
        return None
    if tuple(layers) != _LAYERS[architecture]:
        return None
    return Published(architecture, PUBLISHED[architecture][kind], name in _SAME_NETWORKS)
