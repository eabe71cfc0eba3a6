"""The overhead of an export: its share of time outside the forward and backward passes, and the size of its files.

    python benchmarks/export_overhead.py [--network resnet50] [--images 96] [--repeats 3]

The cost per image is the difference between exports of all and of a third of the images; the rest of the smaller one
is the cost per export. All times are processor times, which depend less on other work on the machine than wall times.

The reference is one forward pass and one backward pass from the score to the earliest layer, for the same batches, with
frozen parameters and prepared pixels. An export reads JPEG photos of 500 x 375, explains them by 5 methods at 4 layers,
and writes shards. The two alternate in one process. The sizes are those of the file of the same images.
"""

from __future__ import annotations

import argparse
import resource
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
from networks import floor
from PIL import Image

import gradlight as gl
from gradlight.export.lists import ImageList, Item
from gradlight.export.plan import ExportSettings
from gradlight.export.run import ExportOptions, export
from gradlight.models.classifiers import Classifier

METHODS = ("gradient", "linear_approx", "grad_cam", "normgrad", "selective_normgrad")
BATCH = 8
IMAGENET = 1_281_167


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = gl.classifier(torchvision.models.get_model(options.network, weights=None).eval())
    with tempfile.TemporaryDirectory() as folder:
        paths = photos(Path(folder), options.images)
        layers = tuple(layer.name for layer in model.stages()[-4:])
        third = len(paths) // 3 // BATCH * BATCH
        bare, few, many = [], [], []
        for _ in range(options.repeats):
            bare.append(timed(passes(model, paths, layers[0])) / len(paths))
            few.append(timed(partial(run, model, paths[:third], Path(folder, "maps.h5"), layers)))
            many.append(timed(partial(run, model, paths, Path(folder, "maps.h5"), layers)))
        network = statistics.median(bare)
        each = (statistics.median(many) - statistics.median(few)) / (len(paths) - third)
        once = statistics.median(few) - third * each
        print(f"{options.network}, {len(paths)} photos, {len(layers)} layers, {len(METHODS)} methods\n")
        print("| | processor s an image | share |\n|---|---|---|")
        print(f"| the network's forward and backward | {network:.4f} | {network / each:.1%} |")
        print(f"| outside the network | {each - network:.4f} | {1 - network / each:.1%} |")
        print(f"| all | {each:.4f} | 100% |\n\nOnce per export: {once:.1f} s.")
        hours = IMAGENET * each / 3600 / torch.get_num_threads()
        print(f"\nImageNet's {IMAGENET:,} training images at this speed: {hours:.0f} hours on one such machine.")
        print("\n| dtype | compression | grid | kB an image | GB for ImageNet |\n|---|---|---|---|---|")
        for dtype, compression, size in product(("float32", "float16"), ("none", "lzf", "gzip"), (None, (224, 224))):
            out = Path(folder, "sizes.h5")
            run(model, paths[:16], out, layers, dtype=dtype, compression=compression, size=size)
            kilobytes = out.stat().st_size / 16 / 1000
            grid, gigabytes = "224×224" if size else "native", kilobytes * IMAGENET / 1e6
            print(f"| {dtype} | {compression} | {grid} | {kilobytes:.0f} | {gigabytes:,.0f} |")


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
    settings = ExportSettings(methods=METHODS, layers=layers, batch_size=BATCH, **how)  # type: ignore[arg-type]
    source = ImageList("list", [Item(path, None) for path in paths])
    return export(lambda: model, lambda _: source, output, settings, ExportOptions(overwrite=True, readers=1))


def timed(job: Callable[[], object]) -> float:
    """Measure the processor time of a job, including that of its reader processes."""
    begun = spent()
    job()
    return spent() - begun


def spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


if __name__ == "__main__":
    main()
