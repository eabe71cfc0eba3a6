"""Fixed targets: explain the targets that one network chose with another network, for example after randomisation."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Explainable, ImageLike, Photo
from ..models.layers.discovery import Discovery
from ..models.objective import Objective, Target, Targets

__all__ = ["FixedTargetModel", "copy_model"]


class FixedTargetModel(Explainable):
    """A model whose objective takes resolved targets: image i has row i of the given Targets.

    So a caption that one network generated is explained with another network, down to the last token.

    Args:
        model: The model; it is not copied.
    """

    def __init__(self, model: Explainable) -> None:
        self.model = model
        self.network, self.name, self.preprocess = model.network, model.name, model.preprocess

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose layers have spatial outputs."""
        return self.model.trunk

    @property
    def labels(self) -> list[str]:
        """The names of the classes or words."""
        return self.model.labels

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels."""
        return self.model.size

    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Preprocess images as the model does."""
        return self.model.read(images)

    def objective(self, target: Targets) -> Objective:
        """Make the objective of fixed targets, a row of Target for each image."""
        return _FixedTargetObjective(self.model.objective(None), target)

    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types."""
        return self.model.describe()

    def _discovery(self, size: tuple[int, int] | None) -> Discovery:
        return self.model._discovery(size)


class _FixedTargetObjective(Objective):
    """The scores and losses of another objective, for fixed targets."""

    def __init__(self, inner: Objective, targets: Targets) -> None:
        super().__init__(inner.network)
        self.inner, self.targets = inner, targets

    @property
    def trunk(self) -> nn.Module:
        return self.inner.trunk

    def outputs(self, pixels: Tensor) -> Any:
        return self.inner.outputs(pixels)

    def prepare(self, pixels: Tensor) -> bool:
        return self.inner.prepare(pixels)

    def choose(self, outputs: Any) -> list[list[Target]]:
        scores = self.inner.scores(outputs, self.targets).tolist()
        return [
            [replace(target, score=score) for target, score in zip(row, values, strict=True)]
            for row, values in zip(self.targets, scores, strict=True)
        ]

    def scores(self, outputs: Any, targets: Targets) -> Tensor:
        return self.inner.scores(outputs, targets)

    def losses(self, outputs: Any, targets: Targets) -> Tensor:
        return self.inner.losses(outputs, targets)

    def rows(self, start: int, stop: int, total: int) -> Objective:
        if len(self.targets) != total:
            raise GradlightError(
                f"There are {len(self.targets)} rows of targets for {total} images; give one for each."
            )
        return _FixedTargetObjective(self.inner, self.targets[start:stop])

    def describe(self) -> dict[str, Any]:
        return {**self.inner.describe(), "pinned": [[target.label for target in row] for row in self.targets]}


def copy_model(model: Explainable) -> Explainable:
    """Copy a model with its network, so that changes of the copy's weights do not change the model.

    Args:
        model: The model.

    Returns:
        The copy.

    Raises:
        GradlightError: The network cannot be copied.

    Example:
        >>> model = gl.classifier("scenes")
        >>> copy_model(model).network is model.network
        False
    """
    copied = copy.copy(model)
    try:
        copied.network = copy.deepcopy(model.network)
    except (RuntimeError, TypeError) as error:
        raise GradlightError(
            f"The network of {model.name!r} cannot be copied ({error}), and an experiment that changes weights works on"
            " a copy. Give a network that copy.deepcopy takes."
        ) from error
    return copied
