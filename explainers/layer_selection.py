"""Which layers are meant: "stages", "all", "input", a name, a glob, or a list of these."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from ..errors import GradlightError, nearest
from ..models.base import Explainable, Layer

__all__ = ["choose_layers"]


def choose_layers(model: Explainable, asked: str | Iterable[str], size: tuple[int, int]) -> list[Layer]:
    """Find the asked layers of a model for pixels of a size (height, width), shallowest first, each once.

    Raises GradlightError with the nearest names for one that does not exist, and says why for one that is not
    spatial.
    """
    names = [asked] if isinstance(asked, str) or not isinstance(asked, Iterable) else list(asked)
    if not all(isinstance(name, str) for name in names):
        raise GradlightError(f"Layers are given by name, as 'stages' or ['layer3', 'layer4'], not as {asked!r}.")
    chosen = {layer.name: layer for name in names for layer in _find(model, name, size)}
    if not chosen:
        raise GradlightError("No layer was asked for; layers='stages' is a good beginning.")
    return sorted(chosen.values(), key=lambda layer: layer.depth)


def _find(model: Explainable, name: str, size: tuple[int, int]) -> list[Layer]:
    known = {layer.name: layer for layer in model.layers(size)}
    # The words win: timm's ConvNeXt has a module that is called "stages".
    if name == "all":
        return list(known.values())
    if name == "stages":
        return _stages(model, size)
    name = "input" if name == "" else name.removesuffix(":0")
    if name in known:
        return [known[name]]
    if any(character in name for character in "*?["):
        found = [layer for layer in known.values() if fnmatchcase(layer.name, name)]
        if found:
            return found
        raise GradlightError(
            f"No spatial layer of the part of the network that looks at the image matches {name!r}. `model.layers()`"
            f" lists the {len(known)} there are."
        )
    raise GradlightError(_why_not(model, name, list(known), model.left_out(size)))


def _stages(model: Explainable, size: tuple[int, int]) -> list[Layer]:
    stages = model.stages(size)
    if not stages:
        raise GradlightError(
            "This network has no convolution or linear layer with a spatial output that everything passes, so 'stages'"
            " finds none. Name the layers; `model.layers()` lists them."
        )
    return stages


def _why_not(model: Explainable, name: str, known: list[str], left_out: dict[str, str]) -> str:
    module, _, turn = name.partition(":")
    if module in known and turn and name not in left_out:
        runs = [layer for layer in [*known, *left_out] if layer.partition(":")[0] == module]
        last = max(runs, key=lambda run: int(run.partition(":")[2] or 0))
        return f"{module!r} runs {len(runs)} times, so the last is {last!r} (counted from 0); {name!r} was asked."
    if name in left_out:
        return f"The output of {name!r} {left_out[name]}."
    if module in dict(model.trunk.named_modules(remove_duplicate=False)):
        return (
            f"{name!r} did not run by this name: the network does not use it for such pixels, or uses it as a shared"
            f" module of another name.{nearest(name, known)} The last layer is {known[-1]!r}."
        )
    if module in dict(model.network.named_modules()):
        return (
            f"{name!r} is not a place in the image: layers are those of the part of the network that looks at it, and"
            f" are named within that part; a decoder behind it has none.{nearest(name, known)} The last of them is"
            f" {known[-1]!r}."
        )
    return f"No layer is called {name!r}.{nearest(name, known)} `model.layers()` lists the {len(known)} there are."
