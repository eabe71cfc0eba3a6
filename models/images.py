"""Reading images of any kind (path, name, Pillow image, array, tensor) into pixels, with a record of their origin."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import images as pictures
from ..errors import GradlightError
from .base import ImageLike, Photo
from .preprocessing import Preprocess
from .registry import SOURCES
from .view import View

__all__ = ["read_images", "read_pixels"]


def read_images(images: Sequence[ImageLike], preprocess: Preprocess) -> tuple[Tensor, list[Photo]]:
    """Read and preprocess images.

    A Pillow image of any mode becomes RGB, upright by its EXIF orientation, with transparency over white.

    Args:
        images: Paths, names of registered image schemes ("scenes:7"), Pillow images or HWC uint8 arrays.
        preprocess: Brings one upright RGB image to pixels.

    Returns:
        Pixels [B,3,H,W], and a record of each image.

    Raises:
        GradlightError: If something is not an image, or the pixels differ in size.

    Example:
        >>> import numpy as np
        >>> from gradlight.models.images import read_images
        >>> from gradlight.models.preprocessing import IMAGENET
        >>> pixels, photos = read_images([np.zeros((300, 200, 3), np.uint8)], IMAGENET)
        >>> pixels.shape, photos[0].height
        (torch.Size([1, 3, 224, 224]), 300)
    """
    if not images:
        raise GradlightError("There are no images: the list is empty. Give at least one path, Pillow image or array.")
    batch: list[Tensor] = []
    photos: list[Photo] = []
    for number, image in enumerate(images):
        path, checksum, picture = _open(image)
        pixels, view = preprocess(picture)
        if batch and pixels.shape != batch[0].shape:
            raise GradlightError(
                f"The preprocessing gives pixels of different sizes: {list(batch[0].shape)} for image 0 and"
                f" {list(pixels.shape)} for image {number}{f' ({path})' if path else ''}. One batch needs one size:"
                " give the images one at a time, or a preprocess= that crops."
            )
        batch.append(pixels)
        photos.append(Photo(path, checksum, picture.width, picture.height, view, None if path else picture))
    return torch.stack(batch), photos


def read_pixels(pixels: Tensor, preprocess: Preprocess) -> list[Photo]:
    """Make the records of pixels that are given as a tensor: their images are the pixels, without the normalisation.

    Args:
        pixels: [B,3,H,W], floating-point, normalised as the network expects.
        preprocess: Undoes the normalisation.

    Returns:
        A record of each image.

    Raises:
        GradlightError: If the tensor has another shape, or integers.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise GradlightError(f"A tensor of pixels must be [B,3,H,W]; this one is {list(pixels.shape)}.")
    if not pixels.is_floating_point():
        raise GradlightError(
            f"A tensor of pixels goes into the network as it is, so it must be floating-point and normalised; this one"
            f" is {str(pixels.dtype).removeprefix('torch.')}. Give 0…255 pictures as HWC uint8 arrays instead."
        )
    photos = []
    for image_pixels in pixels:
        picture = preprocess.denormalise(image_pixels)
        view = View.whole(picture.size, (picture.height, picture.width))
        photos.append(Photo("", _checksum(picture), picture.width, picture.height, view, picture))
    return photos


def _open(image: Any) -> tuple[str, str, Image.Image]:
    """Give the path or name ("" for none), the checksum of the image or its file, and the image."""
    if isinstance(image, Mapping):
        return _open(_value_of_row(image))
    if isinstance(image, (bytes, bytearray)) and b"\0" in image:  # no path holds this byte, and every image file does
        image = io.BytesIO(image)
    if isinstance(image, bytes):
        image = os.fsdecode(image)
    if hasattr(image, "read") and hasattr(image, "seek"):
        return _open_stream(image)
    if isinstance(image, (str, os.PathLike)):
        path = os.fsdecode(image)
        named = SOURCES.named_image(path)
        return _open_file(path) if named is None else _with_checksum(named.name, named.load())
    if isinstance(image, Image.Image):
        return _with_checksum("", pictures.upright(image))
    if isinstance(image, np.ndarray):
        return _with_checksum("", _from_array(image))
    if isinstance(image, Tensor):
        raise GradlightError("A list mixes tensors with other images. Give one tensor [B,3,H,W], or no tensor at all.")
    hint = " Take the image out of each row: [row[0] for row in rows]." if isinstance(image, tuple) else ""
    raise GradlightError(
        f"{type(image).__name__} is not an image: give a path, a Pillow image, an HWC uint8 array, a binary stream, or"
        f" a tensor [B,3,H,W].{hint}"
    )


def _value_of_row(row: Mapping[Any, Any]) -> Any:
    """Give the image of a row of a data set, a dict such as {"image": …, "label": …}."""
    for key in ("image", "img", "bytes", "path"):
        if row.get(key) is not None:
            return row[key]
    raise GradlightError(
        f"A row must hold its image under 'image', 'img', 'bytes' or 'path'; this one has the keys"
        f" {', '.join(map(repr, row))}. Take the image out of it."
    )


def _open_stream(stream: Any) -> tuple[str, str, Image.Image]:
    """Read an image from an open binary file; its position stays where it was."""
    position = stream.tell()
    try:
        stream.seek(0)
        content = stream.read()
    finally:
        stream.seek(position)
    if not isinstance(content, bytes):
        raise GradlightError("A stream of an image must be binary: open the file with open(path, 'rb').")
    return _with_checksum("", pictures.load_stream(io.BytesIO(content), "an image in memory"))


def _open_file(path: str) -> tuple[str, str, Image.Image]:
    try:
        picture = pictures.load(path)
    except GradlightError as error:
        hint = SOURCES.scheme_hint(path)
        if not hint:
            raise
        raise GradlightError(f"{error}{hint}") from error
    return path, pictures.sha256(path), picture


def _from_array(array: np.ndarray[Any, Any]) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        hint = "Give height x width x 3, RGB, from 0 to 255"
        if array.ndim == 3 and array.shape[0] == 3 and array.shape[2] != 3:
            hint = "It looks like channels first: give array.transpose(1, 2, 0), from 0 to 255"
        elif array.dtype != np.uint8:
            hint += ": (array * 255).round().astype('uint8') if it runs from 0 to 1"
        raise GradlightError(
            f"An array of an image must be HWC uint8; this one is {list(array.shape)} {array.dtype}. {hint}."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _with_checksum(path: str, picture: Image.Image) -> tuple[str, str, Image.Image]:
    return path, _checksum(picture), picture


def _checksum(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.width}x{picture.height}\n".encode() + picture.tobytes()).hexdigest()
