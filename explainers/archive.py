"""Write SaliencyMaps to the HDF5 format of `data.hdf5`, and read them back lazily."""

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
from .lazy import InMemoryRows, MappedSequence, RowIndices, TargetsByImage
from .maps import MapLayer, Origin, SaliencyMaps

__all__ = ["load", "save", "to_stored"]

# --- Writing


def save(
    maps: SaliencyMaps, path: str | Path, failures: Iterable[tuple[str, str]] = (), *, overwrite: bool = False
) -> None:
    """Write maps to an HDF5 file, as float32, in one atomic replacement; an older file of gradlight's is replaced.

    Args:
        maps: The maps.
        path: The file.
        failures: (path, reason) of images that could not be explained, stored beside the maps.
        overwrite: Whether to replace an existing file that is not one of gradlight's; those are always replaced.

    Raises:
        GradlightError: For maps that are not finite, and for a path that cannot be written or holds another program's
            file.
    """
    write(path, replace(to_stored(maps), failures=list(failures)), overwrite=overwrite)


def to_stored(maps: SaliencyMaps) -> StoredMaps:
    """Convert maps to the content of a file; without failures, complete."""
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
        layers={key: _layer_row(key, maps.layer_info[key[1]]) for key in maps.pairs},
        failures=[],
        complete=True,
        gradlight_version=__version__,
        pixels=maps.size,
    )


def _layer_row(key: tuple[str, str], layer: MapLayer) -> LayerRow:
    return LayerRow(*key, layer.depth, layer.stride, layer.extent)


# --- Reading


def load(path: str | Path) -> SaliencyMaps:
    """Open the maps that `SaliencyMaps.save` or the command line wrote.

    The maps are read from the file when they are needed: `load(path)[10:20]["normgrad", "layer3"]` reads those of ten
    images. Use the result as a context manager, or call its `close`. It may be read from several threads and by the
    processes of a `torch.utils.data.DataLoader`.

    Args:
        path: The HDF5 file.

    Returns:
        The maps, float32.

    Raises:
        GradlightError: For a file that is missing, damaged, another program's or of a newer format, or whose maps are
            not in the order of its images.

    Example:
        >>> model = gl.classifier(torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Flatten()))
        >>> gl.explain(model, torch.rand(3, 3, 4, 4), 0, methods="normgrad", layers="0").save("maps.h5")
        >>> with gl.load("maps.h5") as maps:
        ...     print(maps, list(maps[:2]["normgrad", "0"].shape))
        SaliencyMaps(3 images × 1 target; methods: normgrad; layers: 0) [2, 1, 4, 4]
    """
    file = open_maps(path)
    try:
        image_of_row = file.target_images
        if len(image_of_row) and bool((np.diff(image_of_row) < 0).any()):
            raise GradlightError(f"{path}: its maps are not in the order of its images. Read its /maps with h5py.")
        images = MappedSequence(file.images, _photo)
        counts = np.bincount(image_of_row, minlength=len(images))
        targets = TargetsByImage(MappedSequence(file.targets, _target), counts)
        maps = {key: _StoredRowsView(file, key, slice(None)) for key in file.layers}
        layers = {row.layer: MapLayer(row.depth, row.stride, row.extent) for row in file.layers.values()}
        origin = Origin(file.model, file.weights_sha256, file.objective, file.meta)
        return SaliencyMaps(maps, layers, images, targets, file.pixels, origin, file.close)
    except BaseException:
        file.close()
        raise


@dataclass(frozen=True)
class _StoredRowsView:
    """Rows of a file, read when `tensor` is called."""

    file: MapsFile
    key: tuple[str, str]
    rows: RowIndices

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, h, w)."""
        count, height, width = self.file.shape(self.key)
        return len(np.arange(count)[self.rows]), height, width

    def tensor(self) -> Tensor:
        """Read all rows [M,h,w]."""
        return torch.from_numpy(np.ascontiguousarray(self.file.read(self.key, self.rows)))

    def select(self, rows: RowIndices) -> _StoredRowsView:
        """Select rows, without reading them."""
        return _StoredRowsView(self.file, self.key, np.arange(self.file.shape(self.key)[0])[self.rows][rows])

    def to(self, device: Any) -> InMemoryRows:
        """Read the rows and move them to a device."""
        return InMemoryRows(self.tensor().to(device))


def _photo(row: ImageRow) -> Photo:
    return Photo(row.path, row.sha256, row.width, row.height, View.from_json(row.view))


def _target(row: TargetRow) -> Target:
    return Target(row.kind, row.index, row.label, row.score)
