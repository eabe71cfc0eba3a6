"""A classifier as the pointing game plays it: the whole photo at the network's own scale, a grid of class scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Explainable, ImageLike, Photo
from ..models.class_objective import Asked, ClassLabels, ClassObjective, parse
from ..models.classifiers import Classifier
from ..models.images import read_images
from ..models.preprocessing import Preprocess, Preprocessing
from ..models.preserve import preserved
from ..models.view import View
from .fully_convolutional import fully_convolutional

__all__ = ["GridObjective", "ShorterSide", "WholePhotos", "whole_photos"]

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
        rows: Sequence[Sequence[Asked]] = super().rows(start, stop, total).asked
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
