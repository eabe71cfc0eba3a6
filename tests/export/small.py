"""A small classifier, photos for it, and exports of them, for the tests of whole data sets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

import gradlight as gl
from gradlight.export.lists import ImageList, Item
from gradlight.export.local import Engine
from gradlight.export.plan import ExportSettings
from gradlight.export.progress import BatchReport
from gradlight.export.run import ExportOptions, Outcome, export
from gradlight.models.classifiers import Classifier
from gradlight.models.preprocessing import Preprocessing

METHODS = ("normgrad", "linear_approx")


def make() -> Classifier:
    """Make the same network every time."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 6, 3, 2), nn.ReLU(), nn.Conv2d(6, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 3),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model = gl.classifier(network.eval(), labels=["cat", "dog", "eel"], device="cpu")
    model.preprocess = Preprocessing(size=(32, 32), resize=(32, 32))
    return model


def photos(folder: Path, count: int) -> list[str]:
    """Write small photos of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:04d}.png" for number in range(count)]
    for number, path in enumerate(paths):
        values = np.random.default_rng(number).integers(0, 255, (40, 36, 3), dtype=np.uint8)
        Image.fromarray(values).save(path)
    return [str(path) for path in paths]


class Heard:
    """Notes what an export tells."""

    def __init__(self) -> None:
        self.begun: list[tuple[int, int]] = []
        self.batches: list[BatchReport] = []
        self.notes: list[str] = []
        self.ended = 0

    def begin(self, total: int, done: int) -> None:
        self.begun.append((total, done))

    def batch(self, batch: BatchReport) -> None:
        self.batches.append(batch)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def end(self) -> None:
        self.ended += 1


def settings(**changes: object) -> ExportSettings:
    """Give the settings of most tests: two methods, two layers and their combination, batches of 4."""
    usual = {"methods": METHODS, "layers": ("1", "3"), "combine": ("product", "linear"), "batch_size": 4}
    return ExportSettings(**{**usual, **changes})  # type: ignore[arg-type]


def run(
    paths: list[str],
    output: Path,
    how: ExportSettings | None = None,
    *,
    targets: list[tuple[int | str, ...]] | None = None,
    engine: Engine | None = None,
    heard: Heard | None = None,
    images_per_shard: int = 8,
    readers: int = 0,
    **options: bool,
) -> Outcome:
    """Export photos with the small classifier, in shards of 8."""
    asked = targets or [None] * len(paths)
    source = ImageList("list", [Item(path, own) for path, own in zip(paths, asked, strict=True)])
    return export(
        make,
        lambda _: source,
        output,
        how or settings(),
        ExportOptions(images_per_shard=images_per_shard, readers=readers, **options),
        engine=engine,
        reporter=heard,
    )


def assert_same(found: Path, wanted: Path) -> None:
    """Compare two files of maps: images, targets, failures, and every map bit for bit."""
    with gl.load(found) as one, gl.load(wanted) as other:
        assert one.pairs == other.pairs
        assert one.images == other.images
        assert one.targets == other.targets
        assert one.origin == other.origin
        for key in one.pairs:
            assert torch.equal(one.rows(*key), other.rows(*key)), key
