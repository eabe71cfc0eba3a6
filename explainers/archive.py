"""SaliencyMaps to and from the HDF5 format of `data`: the one module of this room that knows files."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

import numpy as np
import torch

from .. import __version__
from ..data.store import ImageRow, LayerRow, StoredMaps, TargetRow, read, write
from ..errors import GradlightError
from ..models.base import Photo, View
from ..models.objective import Target
from .maps import MapLayer, Origin, SaliencyMaps

__all__ = ["load", "save"]


def save(maps: SaliencyMaps, path: str | Path, failures: Iterable[tuple[str, str]] = ()) -> None:
    """Write maps to an HDF5 file, whole or not at all, as float32; an older file of gradlight's own is replaced.

    failures: (path, reason) of images that could not be explained, kept beside the maps. Raises GradlightError for
    maps that are not finite, and for a place that cannot be written or holds another program's file.
    """
    origin = maps.origin
    stored = StoredMaps(
        model=origin.model,
        weights_sha256=origin.weights_sha256,
        objective=origin.objective,
        meta=origin.meta,
        images=[ImageRow(p.path, p.sha256, p.width, p.height, p.view.to_json()) for p in maps.images],
        targets=[
            TargetRow(image, t.kind, t.index, t.label, t.score) for image, row in enumerate(maps.targets) for t in row
        ],
        maps={key: maps[key].detach().float().flatten(0, 1).cpu().numpy() for key in maps.pairs},
        layers={key: _layer_row(key, maps.about[key[1]]) for key in maps.pairs},
        failures=list(failures),
        complete=True,
        gradlight_version=__version__,
        pixels=maps.size,
    )
    write(path, stored)


def _layer_row(key: tuple[str, str], layer: MapLayer) -> LayerRow:
    return LayerRow(*key, layer.depth, layer.stride)


def load(path: str | Path) -> SaliencyMaps:
    """Read the maps that `SaliencyMaps.save` or the command line wrote, [B,K,h,w] float32.

    Raises GradlightError for a file that is missing, damaged, another program's or of a newer format, and for one
    whose images have different numbers of targets.
    """
    stored = read(path)
    images = [Photo(row.path, row.sha256, row.width, row.height, View.from_json(row.view)) for row in stored.images]
    rows = [[_target(row) for row in group] for _, group in groupby(stored.targets, key=lambda row: row.image)]
    if len(rows) != len(images) or len({len(row) for row in rows}) != 1:
        raise GradlightError(
            f"{path}: its {len(images)} images do not have the same number of targets each, so its maps form no"
            " [images, targets, h, w]. Read its /maps with h5py; /targets says which image each row is of."
        )
    maps = {
        key: torch.from_numpy(np.ascontiguousarray(values)).unflatten(0, (len(images), len(rows[0])))
        for key, values in stored.maps.items()
    }
    layers = {row.layer: MapLayer(row.depth, row.stride) for row in stored.layers.values()}
    origin = Origin(stored.model, stored.weights_sha256, stored.objective, stored.meta)
    return SaliencyMaps(maps, layers, images, rows, stored.pixels, origin)


def _target(row: TargetRow) -> Target:
    return Target(row.kind, row.index, row.label, row.score)
