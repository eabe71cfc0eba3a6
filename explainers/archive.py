"""SaliencyMaps to and from the HDF5 format of `data`: the one module of this room that knows files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..data.hdf5.reader import MapsFile, open_maps
from ..data.hdf5.schema import ImageRow, LayerRow, StoredMaps, TargetRow
from ..data.hdf5.writer import write
from ..errors import GradlightError
from ..models.base import Photo, View
from ..models.objective import Target
from .lazy import Held, Indices, Made, TargetRows
from .maps import MapLayer, Origin, SaliencyMaps

__all__ = ["load", "save", "to_stored"]


def save(maps: SaliencyMaps, path: str | Path, failures: Iterable[tuple[str, str]] = ()) -> None:
    """Write maps to an HDF5 file, whole or not at all, as float32; an older file of gradlight's own is replaced.

    failures: (path, reason) of images that could not be explained, kept beside the maps. Raises GradlightError for
    maps that are not finite, and for a place that cannot be written or holds another program's file.
    """
    write(path, replace(to_stored(maps), failures=list(failures)))


def to_stored(maps: SaliencyMaps) -> StoredMaps:
    """Bring maps to what a file holds of them; no failures, complete."""
    origin = maps.origin
    return StoredMaps(
        model=origin.model,
        weights_sha256=origin.weights_sha256,
        objective=origin.objective,
        meta=origin.meta,
        images=[ImageRow(p.path, p.sha256, p.width, p.height, p.view.to_json()) for p in maps.images],
        targets=[
            TargetRow(image, t.kind, t.index, t.label, t.score) for image, row in enumerate(maps.targets) for t in row
        ],
        maps={key: maps.rows(*key).detach().float().cpu().numpy() for key in maps.pairs},
        layers={key: _layer_row(key, maps.about[key[1]]) for key in maps.pairs},
        failures=[],
        complete=True,
        gradlight_version=__version__,
        pixels=maps.size,
    )


def _layer_row(key: tuple[str, str], layer: MapLayer) -> LayerRow:
    return LayerRow(*key, layer.depth, layer.stride)


@dataclass(frozen=True)
class _StoredRowsView:
    """Rows that lie in a file until they are asked for."""

    file: MapsFile
    key: tuple[str, str]
    rows: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        """Give (M, h, w)."""
        count, height, width = self.file.shape(self.key)
        return len(np.arange(count)[self.rows]), height, width

    def tensor(self) -> Tensor:
        """Read all rows [M,h,w]."""
        return torch.from_numpy(np.ascontiguousarray(self.file.read(self.key, self.rows)))

    def part(self, rows: Indices) -> _StoredRowsView:
        """Choose some of the rows."""
        return _StoredRowsView(self.file, self.key, np.arange(self.file.shape(self.key)[0])[self.rows][rows])

    def to(self, device: Any) -> Held:
        """Read the rows and bring them to a device."""
        return Held(self.tensor().to(device))


def load(path: str | Path) -> SaliencyMaps:
    """Open the maps that `SaliencyMaps.save` or the command line wrote, float32.

    The maps stay in the file until they are asked for: `load(path)[10:20]["normgrad", "layer3"]` reads ten images'
    worth. Use it as a context manager, or `close` it. It may be read from several threads and by the processes of a
    `torch.utils.data.DataLoader`. Raises GradlightError for a file that is missing, damaged, another program's or of a
    newer format, or whose maps do not lie in the order of its images.
    """
    file = open_maps(path)
    try:
        owners = file.target_images
        if len(owners) and bool((np.diff(owners) < 0).any()):
            raise GradlightError(f"{path}: its maps do not lie in the order of its images. Read its /maps with h5py.")
        images = Made(file.images, _photo)
        targets = TargetRows(Made(file.targets, _target), np.bincount(owners, minlength=len(images)))
        maps = {key: _StoredRowsView(file, key, slice(None)) for key in file.layers}
        layers = {row.layer: MapLayer(row.depth, row.stride) for row in file.layers.values()}
        origin = Origin(file.model, file.weights_sha256, file.objective, file.meta)
        return SaliencyMaps(maps, layers, images, targets, file.pixels, origin, file.close)
    except BaseException:
        file.close()
        raise


def _photo(row: ImageRow) -> Photo:
    return Photo(row.path, row.sha256, row.width, row.height, View.from_json(row.view))


def _target(row: TargetRow) -> Target:
    return Target(row.kind, row.index, row.label, row.score)
