"""Select layers by name: "stages", "all", "input", a module's name, the run of a module, a glob, or a list of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from ..errors import GradlightError, nearest
from ..models.base import Explainable, Layer

__all__ = ["LayerName", "choose_layers", "own_weight_layers"]


@dataclass(frozen=True)
class LayerName:
    """The name of a layer, taken apart: which module, and which of its runs.

    Args:
        module: Dotted name of the module; "input" for the pixels.
        run: Which run of the module in one forward pass, counted from 0.

    Example:
        >>> LayerName.parse("relu:2")
        LayerName(module='relu', run=2)
        >>> str(LayerName.parse("layer4:0")), str(LayerName.parse(""))
        ('layer4', 'input')
    """

    module: str
    run: int = 0

    @classmethod
    def parse(cls, name: str) -> LayerName:
        """Parse "layer4", "relu:2" (the third run of `relu`), "input" or its short form ""."""
        module, _, run = name.rpartition(":")
        return cls(module, int(run)) if module and run.isdecimal() else cls(name or "input")

    @property
    def is_input(self) -> bool:
        """Whether the pixels are meant, which no module makes."""
        return self.module == "input"

    def __str__(self) -> str:
        return f"{self.module}:{self.run}" if self.run else self.module


def choose_layers(
    model: Explainable, names: str | Iterable[str], size: tuple[int, int], method: Any = None
) -> list[Layer]:
    """Find the layers of a model by name, for pixels of one size.

    Args:
        model: What `gradlight.classifier` or `gradlight.captioner` returns.
        names: "stages", "all", "input", a name such as "layer4" or "relu:2", a glob such as "layer3.*", or a list.
        size: Height and width of the pixels.
        method: The method that makes the maps: "stages" are the layers at which it is defined. None: the stages.

    Returns:
        The layers, shallowest first, each once.

    Raises:
        GradlightError: A name is unknown (with the nearest names), or its layer is not spatial (with the reason).

    Example:
        >>> model = gl.classifier("scenes")
        >>> [layer.name for layer in choose_layers(model, ["layer4", "input"], model.size)]
        ['input', 'layer4']
    """
    patterns = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if not all(isinstance(pattern, str) for pattern in patterns):
        raise GradlightError(f"Layers are given by name, as 'stages' or ['layer3', 'layer4'], not as {names!r}.")
    available = {layer.name: layer for layer in model.layers(size)}
    chosen = {layer.name: layer for pattern in patterns for layer in _find(model, pattern, size, available, method)}
    if not chosen:
        raise GradlightError("No layer was asked for; layers='stages' is a good beginning.")
    return sorted(chosen.values(), key=lambda layer: layer.depth)


def own_weight_layers(
    trunk: nn.Module, layers: Sequence[Layer], stages: Sequence[Layer], parameter: str
) -> list[Layer]:
    """Give the last layer of each stage that has a weight of its own: layer1.2.conv3 for ResNet50's stage layer1.

    Convolutions and linear layers come before norms and scales. A stage in which there is none stays as it is.

    Args:
        trunk: The part of the network whose modules the layers are.
        layers: All layers.
        stages: The stages among them.
        parameter: "weight" or "bias".

    Returns:
        One layer per stage, each once.
    """
    chosen: dict[str, Layer] = {}
    for stage in stages:
        before = [other.depth for other in stages if other.size == stage.size and other.depth < stage.depth]
        level = [layer for layer in layers if layer.size == stage.size and max(before, default=0) < layer.depth]
        modules = [
            (layer, trunk.get_submodule(LayerName.parse(layer.name).module))
            for layer in level
            if layer.depth <= stage.depth
        ]
        own = [(layer, module) for layer, module in modules if isinstance(getattr(module, parameter, None), Tensor)]
        matrices = [layer for layer, module in own if isinstance(module, (nn.Conv2d, nn.Linear))]
        last = (matrices or [layer for layer, _ in own] or [stage])[-1]
        chosen[last.name] = last
    return list(chosen.values())


def _find(
    model: Explainable, pattern: str, size: tuple[int, int], available: Mapping[str, Layer], method: Any
) -> list[Layer]:
    # The two keywords win over modules of the same name: timm's ConvNeXt has a module "stages".
    if pattern == "all":
        return list(available.values())
    if pattern == "stages":
        return _stages(model, size, method)
    name = str(LayerName.parse(pattern))
    if name in available:
        return [available[name]]
    if any(character in name for character in "*?["):
        matches = [layer for layer in available.values() if fnmatchcase(layer.name, name)]
        if matches:
            return matches
        raise GradlightError(
            f"No spatial layer of the part of the network that processes the image matches {name!r}. `model.layers()`"
            f" lists the {len(available)} there are."
        )
    raise GradlightError(_format_reason(model, name, list(available), model.left_out(size)))


def _stages(model: Explainable, size: tuple[int, int], method: Any) -> list[Layer]:
    stages = model.stages(size)
    # A method of the user's own need not have it.
    if (at_stages := getattr(method, "at_stages", None)) is not None:
        stages = list(at_stages(model.trunk, model.layers(size), stages))
    if not stages:
        raise GradlightError(_format_no_stage(model, size))
    return stages


def _format_no_stage(model: Explainable, size: tuple[int, int]) -> str:
    """Say why a network has no stage, and what can be explained instead."""
    left_out = model.left_out(size)
    frozen = [name for name, reason in left_out.items() if reason.startswith(_NO_GRADIENT)]
    if len(model.layers(size)) > 1:
        return (
            "This network has no convolution or linear layer with a spatial output that every path passes, so 'stages'"
            " finds none. Name the layers; `model.layers()` lists them."
        )
    if frozen:
        return (
            f"No gradient passes from the score to the layers of this network, as {frozen[-1]!r}: its forward runs them"
            f" under no_grad or inference_mode, or detaches what they give. {_WITHOUT_GRADIENT}"
        )
    seen = next(((name, reason) for name, reason in left_out.items() if "is not spatial" in reason), None)
    example = "" if seen is None else f" (the output of {seen[0]!r} {seen[1].partition('. ')[0]})"
    return (
        f"No module of this network gives a grid of locations in the image{example}, so there is no stage. Explain the"
        " pixels themselves with layers='input'."
    )


_NO_GRADIENT = ("has no gradient", "does not reach the score")
_WITHOUT_GRADIENT = (
    "To freeze weights, set requires_grad=False instead, which lets gradients through; or ask for"
    " methods='occlusion', layers='input', which need no gradient."
)


def _format_reason(model: Explainable, name: str, available: list[str], left_out: dict[str, str]) -> str:
    """Say why a name is no layer, and which names are near."""
    parsed = LayerName.parse(name)
    if parsed.run and parsed.module in available and name not in left_out:
        runs = [run for run in map(LayerName.parse, [*available, *left_out]) if run.module == parsed.module]
        last = str(max(runs, key=lambda run: run.run))
        return (
            f"{parsed.module!r} runs {len(runs)} times, so the last is {last!r} (counted from 0); {name!r} was asked."
        )
    if name in left_out:
        advice = f" {_WITHOUT_GRADIENT}" if left_out[name].startswith(_NO_GRADIENT) and len(available) == 1 else ""
        return f"The output of {name!r} {left_out[name]}.{advice}"
    if parsed.module in dict(model.trunk.named_modules(remove_duplicate=False)):
        return (
            f"{name!r} did not run by this name: the network does not use it for such pixels, or uses it as a shared"
            f" module of another name.{nearest(name, available)} The last layer is {available[-1]!r}."
        )
    if parsed.module in dict(model.network.named_modules()):
        return (
            f"{name!r} is not spatial: layers are those of the part of the network that processes the image, and are"
            f" named within that part; a decoder behind it has none.{nearest(name, available)} The last of them is"
            f" {available[-1]!r}."
        )
    return (
        f"No layer is called {name!r}.{nearest(name, available)} `model.layers()` lists the {len(available)} there are."
    )
