"""Maps that are easy to recognise, for the tests of the file format; the kept files of tests/archives hold them."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gradlight.data.hdf5.schema import ImageRow, LayerRow, StoredMaps, TargetRow
from gradlight.data.hdf5.writer import write

ARCHIVES = Path(__file__).parents[1] / "archives" / "v1"
KEPT = ARCHIVES / "maps_v1.h5"
KEPT_HALF = ARCHIVES / "maps_float16_v1.h5"
KEPT_INDEX = ARCHIVES / "index_v1.h5"


def ramp(rows: int, height: int, width: int) -> np.ndarray:
    """Give maps of numbers that float32 holds exactly: row + y/8 + x/64."""
    row, y, x = np.indices((rows, height, width))
    return (row + y / 8 + x / 64).astype(np.float32)


def example() -> StoredMaps:
    """Give the content of the kept file, which `write(KEPT, example())` once made with gradlight 0.1.0."""
    sizes = {"input": (14, 14), "layer3": (4, 5), "product(linear)": (7, 7)}
    keys = [(method, layer) for method in ("selective_normgrad", "grad_cam") for layer in ("layer3", "input")]
    keys.append(("selective_normgrad", "product(linear)"))
    return StoredMaps(
        model={"name": "timm/resnet50", "labels": ["猫", "dog"]},
        weights_sha256="ab" * 32,
        objective={"kind": "class"},
        meta={"lr": 0.002, "direction": "descent"},
        images=[
            ImageRow("cats/猫.jpg", "01" * 32, 640, 480, {"scale": [0.35, 0.35], "crop": [0, 53.5, 224, 224]}),
            ImageRow(os.fsdecode(b"caf\xe9.png"), "23" * 32, 1, 2000, {}),
        ],
        targets=[
            TargetRow(0, "class", 281, "tabby", 12.5),
            TargetRow(0, "class", 207, "golden retriever", -3.25),
            TargetRow(1, "class", 281, "tabby", 0.0),
        ],
        maps={(method, layer): ramp(3, *sizes[layer]) for method, layer in keys},
        layers={(method, layer): LayerRow(method, layer, 3, (16.0, 16.5)) for method, layer in keys},
        failures=[("broken.jpg", "damaged or truncated")],
        complete=True,
        gradlight_version="0.1.0",
        pixels=(224, 192),
    )


def changed(**fields: Any) -> StoredMaps:
    return dataclasses.replace(example(), **fields)


def assert_equal(found: StoredMaps, expected: StoredMaps) -> None:
    for field in dataclasses.fields(StoredMaps):
        if field.name != "maps":
            assert getattr(found, field.name) == getattr(expected, field.name), field.name
    assert found.maps.keys() == expected.maps.keys()
    for key, values in expected.maps.items():
        assert found.maps[key].dtype == np.float32
        assert np.array_equal(found.maps[key], values)


def shard(images: int, seed: int, *, targets: int = 2, **fields: Any) -> StoredMaps:
    """Give maps of so many images with so many targets each, all different, as one shard of a larger job."""
    rows = images * targets
    choose = np.random.default_rng(seed)
    keys = [("normgrad", "layer1"), ("normgrad", "100%b"), ("grad_cam", "layer1")]
    parts: dict[str, Any] = {
        "model": {"name": "timm/resnet50"},
        "weights_sha256": "ab" * 32,
        "objective": {"kind": "class"},
        "meta": None,
        "images": [ImageRow(f"{seed}/猫{i}.jpg", f"{i:064}", 9 + i, 8, {"crop": [seed, i]}) for i in range(images)],
        "targets": [TargetRow(row // targets, "class", row, f"{seed}-{row}", row / 8) for row in range(rows)],
        "maps": {key: choose.standard_normal((rows, 6, 7)).astype(np.float32) * 1e-12 for key in keys},
        "layers": {key: LayerRow(*key, 3, (16.0, 16.0)) for key in keys},
        "failures": [(f"{seed}/broken.jpg", "damaged")],
        "complete": True,
        "gradlight_version": "0.1.0",
        "pixels": (96, 112),
    }
    return StoredMaps(**{**parts, **fields})


def write_shards(folder: Path, shards: Sequence[StoredMaps], **options: Any) -> list[Path]:
    """Write shards under their usual names, and give their paths."""
    folder.mkdir(exist_ok=True)
    paths = [folder / f"shard-{number:05}.h5" for number in range(len(shards))]
    for path, stored in zip(paths, shards, strict=True):
        write(path, stored, **options)
    return paths


def together(shards: Sequence[StoredMaps]) -> StoredMaps:
    """Give what a file over all these shards must hold."""
    starts = np.cumsum([0, *(len(part.images) for part in shards)]).tolist()
    return dataclasses.replace(
        shards[0],
        images=[row for part in shards for row in part.images],
        targets=[
            dataclasses.replace(row, image=row.image + start)
            for part, start in zip(shards, starts[:-1], strict=True)
            for row in part.targets
        ],
        failures=[row for part in shards for row in part.failures],
        maps={key: np.concatenate([part.maps[key] for part in shards]) for key in shards[0].maps},
        complete=all(part.complete for part in shards),
    )
