"""Whatever somebody calls an image, brought to pixels and a record of where they come from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..data import images as pictures
from ..data.scenes import generator as scenes
from ..errors import GradlightError
from .base import ImageLike, Photo
from .preprocessing import Preprocess
from .view import View

__all__ = ["read_images", "read_pixels"]


def read_images(images: Sequence[ImageLike], preprocess: Preprocess) -> tuple[Tensor, list[Photo]]:
    """Read paths, scenes' names, Pillow images and HWC uint8 arrays: preprocessed pixels [B,3,H,W], and their photos.

    A Pillow image of any mode becomes RGB, upright by its EXIF orientation, with transparency over white. Raises
    GradlightError for what is not an image, and where the pixels of one batch differ in size.
    """
    if not images:
        raise GradlightError("There are no images: the list is empty. Give at least one path, Pillow image or array.")
    pixels: list[Tensor] = []
    photos: list[Photo] = []
    for number, image in enumerate(images):
        path, checksum, picture = _open(image)
        one, view = preprocess(picture)
        if pixels and one.shape != pixels[0].shape:
            raise GradlightError(
                f"The preprocessing gives pixels of different sizes: {list(pixels[0].shape)} for image 0 and"
                f" {list(one.shape)} for image {number}{f' ({path})' if path else ''}. One batch needs one size: give"
                " the images one at a time, or a preprocess= that crops."
            )
        held = None if path else picture
        pixels.append(one)
        photos.append(Photo(path, checksum, picture.width, picture.height, view, held))
    return torch.stack(pixels), photos


def read_pixels(pixels: Tensor, preprocess: Preprocess) -> list[Photo]:
    """Make the photos of pixels [B,3,H,W] that are given as a tensor: the pixels themselves, made visible again."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
        raise GradlightError(f"A tensor of pixels must be [B,3,H,W]; this one is {list(pixels.shape)}.")
    if not pixels.is_floating_point():
        raise GradlightError(
            f"A tensor of pixels goes into the network as it is, so it must be floating-point and normalised; this one"
            f" is {str(pixels.dtype).removeprefix('torch.')}. Give 0…255 pictures as HWC uint8 arrays instead."
        )
    photos = []
    for one in pixels:
        picture = preprocess.denormalise(one)
        view = View.whole(picture.size, (picture.height, picture.width))
        photos.append(Photo("", _checksum(picture), picture.width, picture.height, view, picture))
    return photos


def _open(image: Any) -> tuple[str, str, Image.Image]:
    """Give the path or scene's name ("" for none), the picture's checksum (or that of its file) and the picture."""
    if isinstance(image, (str, Path)):
        path = os.fspath(image)
        seed = scenes.seed_of(path)
        if seed is None:
            picture = pictures.load(path)
            return path, pictures.sha256(path), picture
        return _summed(scenes.name(seed), scenes.draw(seed).image)
    if isinstance(image, Image.Image):
        return _summed("", pictures.upright(image))
    if isinstance(image, np.ndarray):
        return _summed("", _from_array(image))
    if isinstance(image, Tensor):
        raise GradlightError("A list mixes tensors with other images. Give one tensor [B,3,H,W], or no tensor at all.")
    raise GradlightError(
        f"{type(image).__name__} is not an image: give a path, a Pillow image, an HWC uint8 array, or a tensor"
        " [B,3,H,W]."
    )


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


def _summed(path: str, picture: Image.Image) -> tuple[str, str, Image.Image]:
    return path, _checksum(picture), picture


def _checksum(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.width}x{picture.height}\n".encode() + picture.tobytes()).hexdigest()
