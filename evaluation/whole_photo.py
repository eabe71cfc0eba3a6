"""A classifier for the pointing game: it gets the whole photo at the network's own scale, and gives a grid of scores.

The network is made fully convolutional: global average pooling and a linear layer become a sliding average and a 1×1
convolution; a flattening and linear layers become convolutions, the first with a kernel as large as what it flattened.
The user's network stays as it is: the new one is another tree of modules around the same weights, under the same names.
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

_WIDENING = 1.5  # factor of the width with which a network is tried on other proportions than its own


class WholePhotos(Explainable):
    """A classifier that gets whole photos.

    Args:
        plain: The classifier.
        network: The classifier's own network, or its fully convolutional form, which shares its weights.
        preprocess: Brings photos to pixels.
        notes: What a reader of its results should know.
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
        """Preprocess images to pixels [B,3,H,W] in the network's dtype and on its device, and describe each photo."""
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
        return {
            **self.plain.describe(),
            "preprocessing": self.preprocess.to_json(),
            "fully_convolutional": self.network is not self.plain.network,
        }


def whole_photos(model: Explainable) -> WholePhotos:
    """Let a classifier take whole photos, their shorter side as long as the network's own pixels are (224 as a rule).

    The network becomes fully convolutional. One whose head is not pooling and linear layers gives its one score of the
    whole photo; one that accepts only its own size gets the photo squashed to it; a preprocessing of the user's own
    stays. Each of these is noted.

    Args:
        model: A classifier.

    Returns:
        The classifier of whole photos.

    Raises:
        GradlightError: The model is not a classifier.

    Example:
        >>> whole_photos(gl.classifier("scenes")).notes
        ()
    """
    if not isinstance(model, Classifier):
        raise GradlightError(
            f"The pointing game needs classes, and {model.name!r} is no classifier. Captioners play word_pointing."
        )
    network, preprocess, notes = _fully_convolutional_network(model), model.preprocess, []
    if network is None:
        notes.append(
            f"{model.name} does not end in average pooling or flattening and linear layers, so it was not made fully"
            " convolutional: its one score of the photo was explained."
        )
    if not isinstance(preprocess, Preprocessing):
        notes.append("Its preprocessing is the user's own and was used without change.")
    elif network is None and not _accepts_wide_pixels(model):
        preprocess = replace(preprocess, resize=model.size, fit="squash")
        notes.append(f"It accepts only its own size, so photos were squashed to {model.size[0]} x {model.size[1]}.")
    else:
        preprocess = ShorterSide(preprocess, min(model.size))
    return WholePhotos(model, network or model.network, preprocess, tuple(notes))


def _fully_convolutional_network(model: Classifier) -> nn.Module | None:
    noise = torch.randn(1, 3, *model.size, generator=torch.Generator().manual_seed(0))
    return fully_convolutional(model.network, model.cast(noise))


def _accepts_wide_pixels(model: Classifier) -> bool:
    """Tell whether a network accepts pixels of other proportions than its own."""
    height, width = model.size
    pixels = model.cast(torch.zeros(1, 3, height, round(_WIDENING * width)))
    with preserved(model.network), torch.no_grad():
        try:
            model.objective(None).outputs(pixels)
        # A user's network may reject a size with any exception.
        except Exception:
            return False
    return True


# ---------------------------------------------------------------------------------------------------------------------
# Preprocessing and objective of whole photos


@dataclass(frozen=True)
class ShorterSide:
    """Scale a photo so that its shorter side has `edge` pixels, without a crop, and normalise as `own` does.

    Args:
        own: The network's own preprocessing.
        edge: The shorter side, in pixels.
    """

    own: Preprocessing
    edge: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels of a square photo."""
        return self.edge, self.edge

    def __call__(self, photo: Image.Image) -> tuple[Tensor, View]:
        """Convert an upright RGB picture to pixels [3,H,W], float32, with the view."""
        width, height = photo.size
        shorter = min(width, height)
        size = (int(self.edge * height / shorter), int(self.edge * width / shorter))
        return replace(self.own, size=size, resize=size, fit="squash")(photo)

    def denormalise(self, pixels: Tensor) -> Image.Image:
        """Convert pixels [3,H,W] to a picture of their own size."""
        return self.own.denormalise(pixels)

    def to_json(self) -> dict[str, Any]:
        """Describe the preprocessing in JSON types."""
        return {**self.own.to_json(), "fit": "whole", "size": None, "resize": [self.edge, self.edge]}


class _SpatialSoftmax(torch.autograd.Function):
    """Average scores [B,K,N] over their locations, weighted by their own softmax, which the backward pass holds fixed.

    It is one function, so that backward rules that propagate something else than a gradient start from the softmax too.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        weights = scores.softmax(2)
        ctx.save_for_backward(weights)
        return (weights * scores).sum(2)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (weights,) = ctx.saved_tensors
        gradient: Tensor = gradients[0].unsqueeze(2) * weights
        return gradient


class GridObjective(ClassObjective):
    """Score classes by a grid of scores s [B,K,h,w]: Σ_u p_u s_u with p = softmax of s over the grid, held fixed.

    So the gradient at location u is exp(s_u) / Σ_v exp(s_v): that of TorchRay's pointing game. The loss takes the
    averaged scores as logits.
    """

    def outputs(self, pixels: Tensor) -> Tensor:
        """Run the network once and give the averaged scores [B,K] of its grid, float32 at least."""
        grid: Tensor = self.network(pixels)
        flat = (grid.float() if grid.dtype in (torch.float16, torch.bfloat16) else grid).flatten(2)
        scores: Tensor = _SpatialSoftmax.apply(flat)
        return scores

    def prepare(self, pixels: Tensor) -> bool:
        """Tell that images may run together: fully convolutional networks have fixed statistics."""
        return False

    def rows(self, start: int, stop: int, total: int) -> GridObjective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        rows: Sequence[Sequence[TargetSpec]] = super().rows(start, stop, total).target_specs
        return GridObjective(self.network, self.labels, rows, multi_label=self.multi_label)

    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types."""
        return {**super().describe(), "grid": "spatial softmax"}


# ---------------------------------------------------------------------------------------------------------------------
# Fully convolutional networks

# Convolutions on a GPU round more than linear layers do; a head of another kind differs by far more.
_RELATIVE_TOLERANCE = 1e-2


def fully_convolutional(network: nn.Module, pixels: Tensor) -> nn.Module | None:
    """Make the fully convolutional form of a network: pixels [B,3,H,W] to scores [B,K,h,w].

    Args:
        network: A classifier's network; it is not changed.
        pixels: [1,3,S,S], noise of the size that the network was made for, where the grid has one location with the
            network's own scores.

    Returns:
        The network, which shares the weights; None if the head is of another kind, which is found by comparing scores.
    """
    with preserved(network), torch.no_grad():
        try:
            scores = network(pixels.clone())
            converted = _convert(network, _record_runs(network, pixels))
            if converted is None or not isinstance(scores, Tensor):
                return None
            with preserved(converted):
                grid, wide_grid = converted(pixels.clone()), converted(_widen(pixels))
        # A user's network that expects a vector may reject a grid with any exception.
        except Exception:
            return None
    same = grid.shape == (*scores.shape, 1, 1) and _is_close(grid.flatten(1), scores)
    return converted if same and wide_grid.ndim == 4 and wide_grid.shape[3] > 1 else None


def _widen(pixels: Tensor) -> Tensor:
    return F.interpolate(pixels, size=(pixels.shape[2], round(_WIDENING * pixels.shape[3])), mode="nearest")


def _is_close(a: Tensor, b: Tensor) -> bool:
    return bool((a - b).abs().max() <= _RELATIVE_TOLERANCE * b.abs().max())


class _Grid:
    """The size of the grid of pooled features; GridLinear needs it after a flattening."""

    size = (1, 1)


class GridPool(nn.Module):
    """Average features [B,C,H,W] over a sliding window (height, width); (1, 1) leaves them as they are."""

    def __init__(self, window: tuple[int, int], grid: _Grid) -> None:
        super().__init__()
        self.window, self.grid = window, grid

    def forward(self, features: Tensor) -> Tensor:
        """Give the averages [B,C,h,w]."""
        pooled = F.avg_pool2d(features, self.window, stride=1)
        self.grid.size = (pooled.shape[2], pooled.shape[3])
        return pooled


class GridLinear(nn.Module):
    """Apply a linear layer at every location of a grid, with that layer's own weights.

    It maps [B,C,h,w], also flattened to [B,C·h·w], to [B,K,h',w'].

    Args:
        linear: The linear layer.
        kernel: Height and width of the locations that it reads at once.
        grid: The size of the grid.
    """

    def __init__(self, linear: nn.Linear, kernel: tuple[int, int], grid: _Grid) -> None:
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias
        self.kernel, self.grid = kernel, grid

    def forward(self, features: Tensor) -> Tensor:
        """Give the layer's output at every location."""
        if features.ndim == 2:
            features = features.unflatten(1, (-1, *self.grid.size))
        return F.conv2d(features, self.weight.unflatten(1, (-1, *self.kernel)), self.bias)


@dataclass(frozen=True)
class _HeadModuleRun:
    """What one run of a module did.

    input_size: height and width of its input, (0, 0) if it is not [B,C,H,W]. averages: the output is the spatial mean.
    passes_through: adaptive pooling that changed nothing. is_linear: a linear layer with its own weight.
    """

    name: str
    module: nn.Module
    input_size: tuple[int, int]
    averages: bool
    passes_through: bool
    is_linear: bool


def _record_runs(network: nn.Module, pixels: Tensor) -> list[_HeadModuleRun]:
    """Run a network and describe each run of a module from one tensor to one tensor, in the order of their ends."""
    runs: list[_HeadModuleRun] = []

    def record(name: str, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) == 1 and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            runs.append(_describe_run(name, module, args[0], output))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            if name:
                stack.callback(module.register_forward_hook(partial(record, name)).remove)
        network(pixels.clone())
    return runs


def _describe_run(name: str, module: nn.Module, inputs: Tensor, output: Tensor) -> _HeadModuleRun:
    input_size = (inputs.shape[2], inputs.shape[3]) if inputs.ndim == 4 else (0, 0)
    passes_through = isinstance(module, nn.AdaptiveAvgPool2d) and torch.equal(inputs, output)
    is_linear = _is_plain_linear(module, inputs, output)
    return _HeadModuleRun(name, module, input_size, _averages(module, inputs, output), passes_through, is_linear)


def _averages(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Tell whether a module gave the spatial mean of features [B,C,H,W]."""
    if inputs.ndim != 4 or output.numel() != inputs.shape[0] * inputs.shape[1]:
        return False
    return not isinstance(module, (nn.Flatten, nn.Identity)) and _is_close(output.flatten(1), inputs.mean((2, 3)))


def _is_plain_linear(module: nn.Module, inputs: Tensor, output: Tensor) -> bool:
    """Tell whether a linear layer did what its weight and bias say, and the weight is a parameter of its own."""
    if not isinstance(module, nn.Linear) or "weight" not in module._parameters:
        return False
    return _is_close(F.linear(inputs, module.weight, module.bias), output)


def _convert(network: nn.Module, runs: list[_HeadModuleRun]) -> nn.Module | None:
    """Replace the pooling and the linear layers of the head; None if there are none."""
    pooling = _find_pooling(runs)
    if pooling is None:
        return None
    number, window, kernel = pooling
    grid = _Grid()
    replacements: dict[str, nn.Module] = {runs[number].name: GridPool(window, grid)}
    for run in runs[number + 1 :]:
        if run.is_linear and isinstance(run.module, nn.Linear):
            replacements[run.name] = GridLinear(run.module, kernel if len(replacements) == 1 else (1, 1), grid)
    return _copy_with(network, replacements) if len(replacements) > 1 else None


def _find_pooling(runs: list[_HeadModuleRun]) -> tuple[int, tuple[int, int], tuple[int, int]] | None:
    """Find the last pooling: the number of its run, the window to slide, the kernel of the linear layer behind it."""
    averaging = [number for number, run in enumerate(runs) if run.averages]
    large = [number for number in averaging if runs[number].input_size != (1, 1)]
    last = max(large or averaging, default=-1)
    for number, run in reversed(list(enumerate(runs))[last + 1 :]):
        if run.passes_through:
            return number, (1, 1), run.input_size
    return (last, runs[last].input_size, (1, 1)) if last >= 0 else None


def _copy_with(module: nn.Module, replacements: Mapping[str, nn.Module]) -> nn.Module:
    """Copy a tree of modules along the paths to the replaced modules, given by name; everything else is shared."""
    clone = copy.copy(module)
    for name, value in vars(module).items():
        if isinstance(value, dict):  # the registries of children, parameters, buffers and hooks
            vars(clone)[name] = value.copy()
    for child, inner in module._modules.items():
        below = {name[len(child) + 1 :]: new for name, new in replacements.items() if name.startswith(f"{child}.")}
        if child in replacements:
            clone._modules[child] = replacements[child]
        elif inner is not None and below:
            clone._modules[child] = _copy_with(inner, below)
    return clone
