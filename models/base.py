"""The interface of a model that the explainers work with: its network, layers, images and objective."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils import _python_dispatch

from ..data import images as pictures
from ..errors import GradlightError
from .fingerprint import weights_sha256
from .layers.discovery import Discovery, Layer, discover
from .objective import Objective
from .preprocessing import Preprocess
from .preserve import exclusive, plain_runs, this_thread
from .registry import SOURCES
from .view import View

__all__ = ["Explainable", "ImageLike", "Layer", "Photo", "View", "as_list", "check_model", "intact"]

ImageLike = str | bytes | os.PathLike[Any] | BinaryIO | Image.Image | npt.NDArray[Any] | Mapping[str, Any]
"""One image as a caller gives it: a path or name, a Pillow image, an HWC uint8 array, a binary stream or its bytes, or
a row of a data set with such a value under "image" or "path"."""


@dataclass(frozen=True)
class Photo:
    """The origin of a map: the upright original image, its checksum, and where the network's pixels lie in it.

    Args:
        path: The image's path; "" for an image given in memory, "scenes:SEED" for a generated scene.
        sha256: Checksum of the file's bytes, or of the image's own for an image without a file.
        width: Width of the upright image, in its pixels.
        height: Height of the upright image, in its pixels.
        view: Where the network's pixels lie in the image.
        held: The image itself where it cannot be read again by its path.

    Example:
        >>> _, (photo,) = gl.classifier("scenes").read(["scenes:7"])
        >>> photo.path, photo.width, photo.height
        ('scenes:7', 160, 160)
        >>> photo.picture().mode
        'RGB'
    """

    path: str
    sha256: str
    width: int
    height: int
    view: View
    held: Image.Image | None = field(default=None, repr=False, compare=False)

    def picture(self) -> Image.Image:
        """Give the upright image, read or drawn again if it is not held in memory.

        Returns:
            An RGB Pillow image.

        Raises:
            GradlightError: If the image was given in memory and is gone, or its file cannot be read.
        """
        if self.held is not None:
            return self.held
        if not self.path:
            raise GradlightError("This picture was given in memory and is not kept in the file; only its maps are.")
        named = SOURCES.named_image(self.path)
        return pictures.load(self.path) if named is None else named.load()


class Explainable(ABC):
    """A network with everything that is needed to explain it; each family of models has an adapter derived from it.

    A derived class sets `network`, `name` and `preprocess`, and writes `labels`, `size`, `read`, `objective` and
    `describe`. Then `gradlight.explain` takes its instances.

    Attributes:
        network: The network.
        name: What the model is called in files and messages.
        preprocess: Brings an image to pixels.

    Example:
        >>> model = gl.classifier("scenes")
        >>> model.name, model.size
        ('scenes', (160, 160))
        >>> [layer.name for layer in model.stages()]
        ['layer1', 'layer2', 'layer3', 'layer4']
    """

    network: nn.Module
    name: str
    preprocess: Preprocess

    @property
    def trunk(self) -> nn.Module:
        """The part of the network whose layers are spatial; layers are named by this module's submodules."""
        return self.network

    @property
    @abstractmethod
    def labels(self) -> list[str]:
        """The names of the network's classes or words."""

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """Height and width of the pixels that the preprocessing makes."""

    @abstractmethod
    def read(self, images: Sequence[ImageLike] | Tensor) -> tuple[Tensor, list[Photo]]:
        """Read and preprocess images.

        Args:
            images: Paths, names, Pillow images or HWC uint8 arrays; or pixels [B,3,H,W], which pass through.

        Returns:
            The pixels [B,3,H,W] in the network's dtype and on its device, and a record of each image.

        Raises:
            GradlightError: If something is not an image, or the images of the batch differ in size.
        """

    @abstractmethod
    def objective(self, target: Any) -> Objective:
        """Make the objective of a target.

        Args:
            target: The target; None for the network's own answer (its top class, its caption).

        Returns:
            The objective.

        Raises:
            GradlightError: If the target is unknown to the network.
        """

    def word_objective(self, target: Any) -> Objective:
        """Make the objective of each word of a target by itself.

        Args:
            target: The target, as `objective` takes it.

        Returns:
            The objective, with one target per word.

        Raises:
            GradlightError: If the network has no words.
        """
        raise GradlightError(
            f"words=True asks for the words of a caption, and {self.name!r} makes no captions. Give a captioner."
        )

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Describe the model in JSON types, for files and cache keys."""

    def pixels(self, images: Any) -> Tensor:
        """Preprocess images.

        Args:
            images: One image or a list: paths, names, Pillow images or HWC uint8 arrays; or pixels [B,3,H,W].

        Returns:
            Pixels [B,3,H,W] in the network's dtype and on its device.

        Raises:
            GradlightError: If something is not an image, or the images differ in size.

        Example:
            >>> gl.classifier("scenes").pixels(["scenes:7", "scenes:8"]).shape
            torch.Size([2, 3, 160, 160])
        """
        return self.read(as_list(images))[0]

    def cast(self, pixels: Tensor) -> Tensor:
        """Bring pixels to the network's floating-point dtype and its device."""
        device = next((p.device for p in self.network.parameters()), torch.device("cpu"))
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), torch.float32)
        return pixels.to(device=device, dtype=dtype)

    def layers(self, size: tuple[int, int] | None = None) -> list[Layer]:
        """List every spatial layer in the order of execution, "input" first.

        Args:
            size: Height and width of the pixels; None for those of the preprocessing.

        Returns:
            The layers, with their grids for pixels of this size.

        Raises:
            GradlightError: If the network does not accept pixels of this size.

        Example:
            >>> gl.classifier("scenes").layers()[0]
            Layer(name='input', depth=0, channels=3, size=(160, 160), stride=(1.0, 1.0))
        """
        return self._discovery(size).layers

    def stages(self, size: tuple[int, int] | None = None) -> list[Layer]:
        """List the last layer at each resolution that has at least two weight layers; size: as for `layers`."""
        return self._discovery(size).stages

    def left_out(self, size: tuple[int, int] | None = None) -> dict[str, str]:
        """Say of every module that runs and is no layer, by its name, what its output is ("is not spatial: …")."""
        return self._discovery(size).left_out

    def _scored_outputs(self, output: Any) -> Any:
        """Pick from the trunk's output what objectives score; layers must reach it. All of it, if not overridden."""
        return output

    def _discovery(self, size: tuple[int, int] | None) -> Discovery:
        """Find the layers once per size of the pixels; the noise is the same each time, so that the answer is too."""
        by_size: dict[tuple[int, int], Discovery] = self.__dict__.setdefault("_discovered", {})
        size = size or self.size
        if size not in by_size:
            with exclusive(self.network), intact(self.network):
                if size not in by_size:
                    noise = torch.randn(1, 3, *size, generator=torch.Generator("cpu").manual_seed(0), device="cpu")
                    by_size[size] = discover(self.trunk, self.cast(noise), self._scored_outputs)
        return by_size[size]

    def weights_sha256(self) -> str:
        """Hash every parameter and buffer, with its name, shape and dtype, in the order of `state_dict()`.

        The checksum is computed again only when the weights have changed; `fingerprint.weights_sha256` says how this
        is noticed.

        Returns:
            The SHA-256 as 64 hexadecimal digits.
        """
        with exclusive(self.network):
            return weights_sha256(self.network)


def check_model(model: Any) -> None:
    """Check that a value is a model, not a bare network or a name.

    Args:
        model: What a caller gave as a model.

    Raises:
        GradlightError: If it is none; the message holds the call that makes one.
    """
    if isinstance(model, Explainable):
        return
    what, argument = (repr(model), repr(model)) if isinstance(model, str) else (f"a {type(model).__name__}", "network")
    raise GradlightError(
        f"A model must be made by gradlight.classifier or gradlight.captioner; this is {what}. Wrap it first:"
        f" gradlight.classifier({argument})."
    )


def as_list(images: Any) -> list[ImageLike] | Tensor:
    """Make a list of one image or several.

    Args:
        images: A path, Pillow image, HWC array, [3,H,W] or [B,3,H,W] tensor, or an iterable of such.

    Returns:
        A list of images, or a tensor [B,3,H,W].

    Raises:
        GradlightError: If the value is no image and no iterable, or tensors differ in shape.

    Example:
        >>> import torch
        >>> from gradlight.models.base import as_list
        >>> as_list("photo.jpg")
        ['photo.jpg']
        >>> as_list(torch.zeros(3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
    """
    if isinstance(images, Tensor):
        return images.unsqueeze(0) if images.ndim == 3 else images
    if isinstance(images, Mapping) and isinstance(images.get("pixel_values"), Tensor):
        return as_list(images["pixel_values"])
    if isinstance(images, (str, bytes, bytearray, os.PathLike, Image.Image, Mapping)) or hasattr(images, "read"):
        return [images]
    if isinstance(images, np.ndarray):
        return list(images) if images.ndim == 4 else [images]
    if not isinstance(images, Iterable):
        raise GradlightError(
            "Images must be a path, a Pillow image, an HWC uint8 array, a tensor [B,3,H,W], or a list of these; this"
            f" is {images!r}."
        )
    image_list = list(images)
    if not image_list or not all(isinstance(image, Tensor) for image in image_list):
        return image_list
    if len({image.shape for image in image_list}) > 1:
        shapes = ", ".join(sorted({str(list(image.shape)) for image in image_list}))
        raise GradlightError(f"Tensors of different shapes, {shapes}, form no batch. Explain them one by one.")
    return torch.stack(image_list)


# --- an interrupted clean-up

_HOOKS = [name for name in vars(nn.Module()) if "hooks" in name and isinstance(vars(nn.Module())[name], dict)]
_AUTOCAST_DEVICES = ("cpu", "cuda")


class intact:  # noqa: N801  # a context manager, as `suppress`
    """Finish a clean-up that Ctrl-C interrupts, as far as that can be done from outside of it.

    The clean-ups inside do the work. This is for the moment when an interrupt falls into one of them.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._modules = [
            (
                vars(module),
                module.training,
                [(hooks, dict(hooks)) for name in _HOOKS if (hooks := vars(module).get(name)) is not None],
            )
            for module in network.modules()
        ]
        self._parameters = [
            (p, p.requires_grad, p.data if type(p) is nn.Parameter else None) for p in network.parameters()
        ]

    def __enter__(self) -> None:
        mine = this_thread
        self._outer, mine.watched = mine.watched, True
        self._lengths = len(mine.restorations), len(mine.plain_runs)
        self._handled = sys.exc_info()[1]
        self._modes = torch._C._len_torch_function_stack(), torch._C._len_torch_dispatch_stack()
        self._gradients, self._threads = torch.is_grad_enabled(), torch.get_num_threads()
        self._random = torch.default_generator.get_state()
        self._autocast = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _AUTOCAST_DEVICES]
        self._nesting = _autocast_nesting()

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        restorations = this_thread.restorations
        chain = list(_chain(error, self._handled))
        if chain:
            for each in reversed(chain):
                _finish_clean_ups(each.__traceback__)
            self._restore_modes()
            self._restore_torch()
            for restore in reversed(restorations[self._lengths[0] :]):
                restore()
            self._restore_network()
        self._restore_modes()
        del restorations[self._lengths[0] :]
        this_thread.watched = self._outer
        for each in chain[1:]:
            if isinstance(each, KeyboardInterrupt):  # and what it interrupted has raised another error
                raise each

    def _restore_network(self) -> None:
        for attributes, training, hooks in self._modules:
            attributes["training"] = training
            for current, former in hooks:
                if list(current) != list(former):
                    current.clear()
                    current.update(former)
        for parameter, requires_grad, data in self._parameters:
            if data is not None and not parameter.is_set_to(data):
                parameter.data = data
            if parameter.requires_grad != requires_grad:
                parameter.requires_grad_(requires_grad)

    def _restore_modes(self) -> None:
        while torch._C._len_torch_function_stack() > self._modes[0]:
            torch.overrides._pop_mode()
        while torch._C._len_torch_dispatch_stack() > self._modes[1]:
            _python_dispatch._pop_mode()

    def _restore_torch(self) -> None:
        for run in this_thread.plain_runs[self._lengths[1] :]:
            plain_runs.end(run)
        while _autocast_nesting() > self._nesting:
            torch.autocast_decrement_nesting()
        for device, (enabled, dtype) in zip(_AUTOCAST_DEVICES, self._autocast, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)
        torch.set_grad_enabled(self._gradients)
        if torch.get_num_threads() != self._threads:
            torch.set_num_threads(self._threads)
        torch.default_generator.set_state(self._random)


def _autocast_nesting() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def _chain(error: BaseException | None, last: BaseException | None) -> Iterator[BaseException]:
    """List an error, the one in whose handling it was raised, and so on, up to one that was there before."""
    while error is not None and error is not last:
        yield error
        error = error.__context__


def _finish_clean_ups(trace: TracebackType | None) -> None:
    """Close the contexts that an error left on entering or leaving them, the inner ones first."""
    for frame, _ in reversed(list(traceback.walk_tb(trace))):
        if frame.f_code.co_filename == contextlib.__file__:
            for context in list(frame.f_locals.values()):
                with suppress(Exception):
                    if isinstance(context, contextlib._GeneratorContextManager):
                        context.gen.close()
                    elif isinstance(context, ExitStack):
                        context.close()
