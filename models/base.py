"""What `explainers/` may know of a model: its network, its layers, its photos, its objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from ..data import images as pictures
from ..data.scenes import generator as scenes
from ..errors import GradlightError
from .fingerprint import weights_sha256
from .layers.discovery import Discovery, Layer, discover
from .objective import Objective
from .preprocessing import Preprocess
from .view import View

__all__ = ["Explainable", "ImageLike", "Layer", "Photo", "View", "as_list", "check_model"]

ImageLike = str | Path | Image.Image | npt.NDArray[Any]


@dataclass(frozen=True)
class Photo:
    """Where a map comes from: the upright original, its checksum, and where the network's pixels lie in it.

    path is "" for a picture that was given in memory, and "scenes:SEED" for a generated scene; sha256 is of the file's
    bytes, or of the picture's.
    """

    path: str
    sha256: str
    width: int
    height: int
    view: View
    held: Image.Image | None = field(default=None, repr=False, compare=False)

    def picture(self) -> Image.Image:
        """Give the upright photo as an RGB Pillow image, read or drawn again if it is not held in memory."""
        if self.held is not None:
            return self.held
        if not self.path:
            raise GradlightError("This picture was given in memory and is not kept in the file; only its maps are.")
        seed = scenes.seed_of(self.path)
        return pictures.load(self.path) if seed is None else scenes.draw(seed).image


class Explainable(ABC):
    """A network with everything that is needed to explain it; an adapter for each family derives from it."""

    network: nn.Module
    name: str
    preprocess: Preprocess

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose layers lie over the image; their names are its modules'."""
        return self.network

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """The names of the classes or words that the network tells apart."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the preprocessing makes."""

    @abstractmethod
    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Bring images to pixels [B,3,H,W] as the network wants them, with a record of each photo."""

    @abstractmethod
    def objective(self, target: Any) -> Objective:
        """Make the objective of a target; None is what the network itself says (top class, its caption)."""

    def word_objective(self, target: Any) -> Objective:
        """Make the objective of every word of a target apart; raises GradlightError for a network without words."""
        raise GradlightError(
            f"words=True asks for the words of a caption, and {self.name!r} says none. Give a captioner."
        )

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types, for files and cache keys."""

    def pixels(self, images: Any) -> Tensor:
        """Bring paths, Pillow images or HWC uint8 arrays to [B,3,H,W]; such a tensor passes through."""
        return self.read(as_list(images))[0]

    def cast(self, pixels: Tensor) -> Tensor:
        """Bring pixels to the network's floating-point dtype and its device."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
        return pixels.to(device=device, dtype=dtype)

    def layers(self, size: tuple[int, int] | None = None) -> list[Layer]:
        """List every spatial layer in the order of execution, "input" first, for pixels of a size (height, width)."""
        return self._discovery(size).layers

    def stages(self, size: tuple[int, int] | None = None) -> list[Layer]:
        """List the last layer at each resolution that has at least two weight layers."""
        return self._discovery(size).stages

    def left_out(self, size: tuple[int, int] | None = None) -> dict[str, str]:
        """Say of every module that runs and is no layer, by its name, what its output is ("is not spatial: …")."""
        return self._discovery(size).left_out

    def _discovery(self, size: tuple[int, int] | None) -> Discovery:
        """Find the layers once per size of the pixels; the same noise every time, so that the answer is the same."""
        known: dict[tuple[int, int], Discovery] = self.__dict__.setdefault("_discovered", {})
        size = size or self.size
        if size not in known:
            noise = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0))
            known[size] = discover(self.trunk, self.cast(noise))
        return known[size]

    def weights_sha256(self) -> str:
        """Hash every parameter and buffer, with its name, shape and dtype, in the order of `state_dict()`.

        Hashed again only when the weights have changed (`fingerprint.weights_sha256` tells how this is noticed).
        """
        return weights_sha256(self.network)


def check_model(model: Any) -> None:
    """Raise GradlightError, with the call that makes one, for what is no model: a bare network, a name."""
    if isinstance(model, Explainable):
        return
    what, call = (repr(model), repr(model)) if isinstance(model, str) else (f"a {type(model).__name__}", "network")
    raise GradlightError(
        f"A model is what gradlight.classifier or gradlight.captioner gives, not {what}. Wrap it first:"
        f" gradlight.classifier({call})."
    )


def as_list(images: Any) -> list[ImageLike] | Tensor:
    """Make a list of one image or several: a path, Pillow image, HWC array, [3,H,W] or [B,3,H,W] tensor, or a list."""
    if isinstance(images, Tensor):
        return images.unsqueeze(0) if images.ndim == 3 else images
    if isinstance(images, (str, Path, Image.Image)):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise GradlightError(
            f"Images are a path, a Pillow image, an HWC uint8 array, a tensor [B,3,H,W], or a list; not {images!r}."
        )
    found = list(images)
    if not found or not all(isinstance(image, Tensor) for image in found):
        return found
    if len({image.shape for image in found}) > 1:
        shapes = ", ".join(sorted({str(list(image.shape)) for image in found}))
        raise GradlightError(f"Tensors of different shapes, {shapes}, form no batch. Explain each alone.")
    return torch.stack(found)
