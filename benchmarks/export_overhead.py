"""What an export costs beside the network's own work: the share of wall time outside forward and backward, bytes.

    python benchmarks/export_overhead.py [--network resnet50] [--images 48] [--repeats 3]

The network's own work is the same batches through one forward and one backward pass from the score to the earliest
layer, parameters frozen, on pixels that lie ready. An export reads JPEG photos of 500 x 375, explains them by 5 methods
at 4 layers, and writes shards. The two take turns in one process. The sizes are of the file of the same images.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
import torchvision
from one_pass import floor
from PIL import Image

import gradlight as gl
from gradlight.export.items import Item, Source
from gradlight.export.plan import Settings
from gradlight.export.run import Manner, export
from gradlight.models.classifiers import Classifier

METHODS = ("gradient", "linear_approx", "grad_cam", "normgrad", "selective_normgrad")
BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = gl.classifier(torchvision.models.get_model(options.network, weights=None).eval())
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder), options.images)
        layers = tuple(layer.name for layer in model.stages()[-4:])
        bare, whole = [], []
        for _ in range(options.repeats):
            bare.append(timed(passes(model, paths, layers[0])))
            whole.append(timed(partial(run, model, paths, Path(folder, "maps.h5"), layers)))
        network, exported = statistics.median(bare), statistics.median(whole)
        print(f"{options.network}, {options.images} photos, {len(layers)} layers, {len(METHODS)} methods\n")
        print("| | s an image | share |\n|---|---|---|")
        print(f"| the network's forward and backward | {network / options.images:.3f} | {network / exported:.0%} |")
        print(f"| all of the export | {exported / options.images:.3f} | 100% |")
        print(f"| outside the network | {(exported - network) / options.images:.3f} | {1 - network / exported:.1%} |")
        print("\n| dtype | compression | grid | kB an image |\n|---|---|---|---|")
        for dtype, compression, size in product(("float32", "float16"), ("none", "lzf", "gzip"), (None, (224, 224))):
            out = Path(folder, "sizes.h5")
            run(model, paths[:16], out, layers, dtype=dtype, compression=compression, size=size)
            kilobytes = out.stat().st_size / 16 / 1000
            print(f"| {dtype} | {compression} | {'224×224' if size else 'native'} | {kilobytes:.0f} |")


def photos(folder: Path, count: int) -> list[str]:
    """Write JPEG photos: smooth random fields with some noise, since plain noise would not compress as photos do."""
    paths = []
    for number in range(count):
        random = np.random.default_rng(number)
        coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((500, 375))
        values = np.asarray(coarse) * 0.9 + random.integers(0, 25, (375, 500, 3))
        paths.append(str(folder / f"{number:04d}.jpg"))
        Image.fromarray(values.astype(np.uint8)).save(paths[-1], quality=90)
    return paths


def passes(model: Classifier, paths: list[str], first: str) -> Callable[[], object]:
    pixels = torch.cat([model.pixels(paths[start : start + BATCH]) for start in range(0, len(paths), BATCH)])
    (layer,) = [layer for layer in model.layers() if layer.name == first]
    jobs = [floor(model.network, batch, layer) for batch in pixels.split(BATCH)]
    return lambda: [job() for job in jobs]


def run(model: Classifier, paths: list[str], output: Path, layers: tuple[str, ...], **how: object) -> object:
    settings = Settings(methods=METHODS, layers=layers, batch_size=BATCH, **how)  # type: ignore[arg-type]
    source = Source("list", [Item(path, None) for path in paths])
    return export(lambda: model, lambda _: source, output, settings, Manner(overwrite=True, readers=1))


def timed(job: Callable[[], object]) -> float:
    begun = time.perf_counter()
    job()
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
