"""Select layers by name: "stages", "all", "input", a module's name, the run of a module, a glob, or a list of these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ..errors import GradlightError, nearest
from ..models.base import Explainable, Layer

__all__ = ["LayerName", "choose_layers"]


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


def choose_layers(model: Explainable, names: str | Iterable[str], size: tuple[int, int]) -> list[Layer]:
    """Find the layers of a model by name, for pixels of one size.

    Args:
        model: What `gradlight.classifier` or `gradlight.captioner` returns.
        names: "stages", "all", "input", a name such as "layer4" or "relu:2", a glob such as "layer3.*", or a list.
        size: Height and width of the pixels.

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
    chosen = {layer.name: layer for pattern in patterns for layer in _find(model, pattern, size, available)}
    if not chosen:
        raise GradlightError("No layer was asked for; layers='stages' is a good beginning.")
    return sorted(chosen.values(), key=lambda layer: layer.depth)


def _find(model: Explainable, pattern: str, size: tuple[int, int], available: Mapping[str, Layer]) -> list[Layer]:
    # The two keywords win over modules of the same name: timm's ConvNeXt has a module "stages".
    if pattern == "all":
        return list(available.values())
    if pattern == "stages":
        return _stages(model, size)
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


def _stages(model: Explainable, size: tuple[int, int]) -> list[Layer]:
    stages = model.stages(size)
    if not stages:
        raise GradlightError(
            "This network has no convolution or linear layer with a spatial output that every path passes, so 'stages'"
            " finds none. Name the layers; `model.layers()` lists them."
        )
    return stages


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
        return f"The output of {name!r} {left_out[name]}."
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
