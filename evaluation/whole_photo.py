"""A classifier as the pointing game plays it: the whole photo at the network's own scale, a grid of class scores.

A classifier made fully convolutional: a grid of class scores over a photo of any proportions.

Global average pooling and a linear layer become a sliding average and a 1×1 convolution; a flattening and linear
layers become convolutions, the first with a kernel as large as what it flattened. The user's network stays as it is:
the new one is another tree of modules around the same weights, under the same names.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Explainable, ImageLike, Photo
from ..models.class_objective import ClassLabels, ClassObjective, TargetSpec, parse
from ..models.classifiers import Classifier
from ..models.images import read_images
from ..models.preprocessing import Preprocess, Preprocessing
from ..models.preserve import preserved
from ..models.view import View

__all__ = ["GridObjective", "ShorterSide", "WholePhotos", "fully_convolutional", "whole_photos"]

_STRETCH = 1.5
# Convolutions on a GPU round more than linear layers do; another head would be wrong by far more.
_NEAR = 1e-2


def fully_convolutional(network: nn.Module, pixels: Tensor) -> nn.Module | None:
    """Make the fully convolutional form of a network: pixels [B,3,H,W] to scores [B,K,h,w].

    pixels [1,3,S,S]: noise of the size that the network was made for, where the grid has one place and the same scores.
    None for a network whose head is of another kind, which is found out by trying.
    """
    with preserved(network), torch.no_grad():
        try:
            answer = network(pixels.clone())
            converted = _converted(network, _watched(network, pixels))
            if converted is None or not isinstance(answer, Tensor):
                return None
            with preserved(converted):
                grid, wide = converted(pixels.clone()), converted(_wider(pixels))
        # Whatever somebody's network does with a grid where it expects a vector, it may refuse it in its own way.
        except Exception:
            return None
    same = grid.shape == (*answer.shape, 1, 1) and _close(grid.flatten(1), answer)
    return converted if same and wide.ndim == 4 and wide.shape[3] > 1 else None


def _wider(pixels: Tensor) -> Tensor:
    return F.interpolate(pixels, size=(pixels.shape[2], round(_STRETCH * pixels.shape[3])), mode="nearest")


def _close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _NEAR * b.abs().max())


class _Places:
    """The grid that the pooled features lie on, from where it is made to where a flattening has hidden it."""

    size = (1, 1)


class GridPool(nn.Module):
    """Average over a sliding window (height, width) of features [B,C,H,W]; (1, 1) leaves them as they are."""

    def __init__(self, window: tuple[int, int], places: _Places) -> None:
        super().__init__()
        self.window, self.places = window, places

    def forward(self, features: Tensor) -> Tensor:
        """Give the averages [B,C,h,w]."""
        pooled = F.avg_pool2d(features, self.window, stride=1)
        self.places.size = (pooled.shape[2], pooled.shape[3])
        return pooled


class GridLinear(nn.Module):
    """A linear layer at every place of a grid, with that layer's own weights; kernel: of the places it reads at once.

    It takes [B,C,h,w], also flattened to [B,C·h·w], and gives [B,K,h',w'].
    """

    def __init__(self, linear: nn.Linear, kernel: tuple[int, int], places: _Places) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.kernel, self.places = kernel, places

    def forward(self, features: Tensor) -> Tensor:
        """Give the layer's answer at every place."""
        if features.ndim == 2:
            features = features.unflatten(1, (-1, *self.places.size))
        return F.conv2d(features, self.weight.unflatten(1, (-1, *self.kernel)), self.bias)


@dataclass(frozen=True)
class _Run:
    """What one run of one module did, in the order in which they end; plane: height and width of what went in."""

    name: str
    module: nn.Module
    plane: tuple[int, int]
    averaged: bool
    handed_on: bool
    plain: bool


def _watched(network: nn.Module, pixels: Tensor) -> list[_Run]:
    runs: list[_Run] = []

    def note(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            runs.append(_looked_at(name, module, args[0], output))

    with ExitStack() as undo:
        for name, module in network.named_modules():
            if name:
                undo.callback(module.register_forward_hook(partial(note, name)).remove)
        network(pixels.clone())
    return runs


def _looked_at(name: str, module: nn.Module, taken: Tensor, given: Tensor) -> _Run:
    plane = (taken.shape[2], taken.shape[3]) if taken.ndim == 4 else (0, 0)
    handed_on = isinstance(module, nn.AdaptiveAvgPool2d) and torch.equal(taken, given)
    return _Run(name, module, plane, _averages(module, taken, given), handed_on, _is_plain(module, taken, given))


def _averages(module: nn.Module, taken: Tensor, given: Tensor) -> bool:
    """Tell whether a module gave the spatial mean of features [B,C,H,W]."""
    if taken.ndim != 4 or given.numel() != taken.shape[0] * taken.shape[1]:
        return False
    return not isinstance(module, (nn.Flatten, nn.Identity)) and _close(given.flatten(1), taken.mean((2, 3)))


def _is_plain(module: nn.Module, taken: Tensor, given: Tensor) -> bool:
    """Tell whether a linear layer did what its weight and bias say, and the weight is a parameter of its own."""
    if not isinstance(module, nn.Linear) or "weight" not in module._parameters:
        return False
    return _close(F.linear(taken, module.weight, module.bias), given)


def _converted(network: nn.Module, runs: list[_Run]) -> nn.Module | None:
    """Find pooling and linear layers of the head, and put others in their place; None where there are none."""
    pooling = _pooling(runs)
    if pooling is None:
        return None
    number, window, kernel = pooling
    places = _Places()
    replaced: dict[str, nn.Module] = {runs[number].name: GridPool(window, places)}
    for run in runs[number + 1 :]:
        if run.plain and isinstance(run.module, nn.Linear):
            replaced[run.name] = GridLinear(run.module, kernel if len(replaced) == 1 else (1, 1), places)
    return _with(network, replaced) if len(replaced) > 1 else None


def _pooling(runs: list[_Run]) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
    """Find the last pooling: the number of its run, the window to slide, the kernel of the linear layer behind it."""
    averaging = [number for number, run in enumerate(runs) if run.averaged]
    large = [number for number in averaging if runs[number].plane != (1, 1)]
    last = max(large or averaging, default=-1)
    for number, run in reversed(list(enumerate(runs))[last + 1 :]):
        if run.handed_on:
            return number, (1, 1), run.plane
    return (last, runs[last].plane, (1, 1)) if last >= 0 else None


def _with(module: nn.Module, replaced: Mapping[str, nn.Module]) -> nn.Module:
    """Copy a tree of modules along the ways to those that are replaced, by name; everything else is shared."""
    clone = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # the registries of children, parameters, buffers and hooks
            vars(clone)[name] = value.copy()
    for child, inner in module._modules.items():
        below = {name[len(child) + 1 :]: new for name, new in replaced.items() if name.startswith(f"{child}.")}
        if child in replaced:
            clone._modules[child] = replaced[child]
        elif inner is not None and below:
            clone._modules[child] = _with(inner, below)
    return clone


_WIDER = 1.5


@dataclass(frozen=True)
class ShorterSide:
    """Scale a photo so that its shorter side has `edge` pixels, without a crop, and normalise as `own` does."""

    own: Preprocessing
    edge: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels of a square photo."""
        return self.edge, self.edge

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Bring an upright RGB picture to pixels [3,H,W], float32, with the view."""
        width, height = photo.size
        shorter = min(width, height)
        size = (int(self.edge * height / shorter), int(self.edge * width / shorter))
        return replace(self.own, size=size, resize=size, fit="squash")(photo)

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Show pixels [3,H,W] as a picture of their own size."""
        return self.own.denormalise(pixels)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""
        return {**self.own.to_json(), "fit": "whole", "size": None, "resize": [self.edge, self.edge]}


class _SpatialSoftmax(torch.autograd.Function):
    """Average scores [B,K,N] over their places by their own softmax, which the way back takes for constant.

    One step of its own, so that rules that propagate something else than a gradient begin with the softmax too.
    """

    @staticmethod
    def forward(ctx: Any, places: Tensor) -> Tensor:
        shares = places.softmax(2)
        ctx.save_for_backward(shares)
        return (shares * places).sum(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (shares,) = ctx.saved_tensors
        found: Tensor = gradients[0].unsqueeze(2) * shares
        return found


class GridObjective(ClassObjective):
    """Score classes by a grid of scores s [B,K,h,w]: Σ_u p_u s_u with p = softmax of s over the grid, held fixed.

    So the gradient sent back at place u is exp(s_u) / Σ_v exp(s_v): that of TorchRay's pointing game. The loss takes
    these scores for logits.
    """

    def outputs(self, pixels: Tensor) -> Tensor:
        """Run the network once and give the scores [B,K] of its grid, float32 at least."""
        grid: Tensor = self.network(pixels)
        places = (grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid).flatten(2)
        scores: Tensor = _SpatialSoftmax.apply(places)
        return scores

    def rows(self, start: int, stop: int, total: int) -> GridObjective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        rows: Sequence[Sequence[TargetSpec]] = super().rows(start, stop, total).target_specs
        return GridObjective(self.network, self.labels, rows, multi_label=self.multi_label)

    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types."""
        return {**super().describe(), "grid": "spatial softmax"}


class WholePhotos(Explainable):
    """A classifier that sees whole photos; notes: what a reader of its results should know.

    network: the classifier's own, or its fully convolutional form, which shares its weights.
    """

    def __init__(self, plain: Classifier, network: nn.Module, preprocess: Preprocess, notes: tuple[str, ...]) -> None:
        self.plain, self.network, self.preprocess, self.notes = plain, network, preprocess, notes
        self.name = plain.name

    @property
    def labels(self) -> list[str]:
        """The names of the classes."""
        return self.plain.labels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels of a square photo."""
        return self.preprocess.size

    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Bring images to pixels [B,3,H,W] in the network's dtype and on its device, with a record of each photo."""
        if isinstance(images, Tensor):
            return self.plain.read(images)
        pixels, photos = read_images(images, self.preprocess)
        return self.cast(pixels), photos

    def objective(self, target: Any = None) -> ClassObjective:
        """Make the objective of a target, as `Classifier.objective` takes it."""
        if self.network is self.plain.network:
            return self.plain.objective(target)
        labels = ClassLabels(self.labels)
        return GridObjective(self.network, labels, parse(target), multi_label=self.plain.multi_label)

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types."""
        convolutional = self.network is not self.plain.network
        told = {**self.plain.describe(), "preprocessing": self.preprocess.to_json()}
        return {**told, "fully_convolutional": convolutional}


def whole_photos(model: Explainable) -> WholePhotos:
    """Let a classifier see whole photos, their shorter side as long as the network's own pixels are (224 as a rule).

    The network becomes fully convolutional. With another head than pooling and linear layers it is asked for its one
    score of the whole photo; one that takes its own size alone sees the photo squashed to it; a preprocessing of the
    user's own stays. Each of these is noted. Raises GradlightError for a model without classes.
    """
    if not isinstance(model, Classifier):
        raise GradlightError(
            f"The pointing game asks for classes, and {model.name!r} is no classifier. Captioners play word_pointing."
        )
    network, preprocess, notes = _grid_of(model), model.preprocess, []
    if network is None:
        notes.append(
            f"{model.name} does not end in average pooling or flattening and linear layers, so it was not made fully"
            " convolutional: its one score of the photo was explained."
        )
    if not isinstance(preprocess, Preprocessing):
        notes.append("Its preprocessing is the user's own and brought the photos to pixels as it always does.")
    elif network is None and not _takes_wide(model):
        preprocess = replace(preprocess, resize=model.size, fit="squash")
        notes.append(f"It takes its own size alone, so photos were squashed to {model.size[0]} x {model.size[1]}.")
    else:
        preprocess = ShorterSide(preprocess, min(model.size))
    return WholePhotos(model, network or model.network, preprocess, tuple(notes))


def _grid_of(model: Classifier) -> nn.Module | None:
    noise = torch.randn(1, 3, *model.size, generator=torch.Generator().manual_seed(0))
    return fully_convolutional(model.network, model.cast(noise))


def _takes_wide(model: Classifier) -> bool:
    """Tell whether a network takes pixels of other proportions than its own."""
    height, width = model.size
    pixels = model.cast(torch.zeros(1, 3, height, round(_WIDER * width)))
    with preserved(model.network), torch.no_grad():
        try:
            model.objective(None).outputs(pixels)
        # Somebody's network refuses a size in its own way.
        except Exception:
            return False
    return True
