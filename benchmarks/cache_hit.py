"""The time of an explanation from the cache, and of computing it: medians on this machine.

    python benchmarks/cache_hit.py [--network timm/resnet50] [--threads N] [--repeats 9]

One photo from its path, random weights, five methods, layers="stages". "first hit" is that of a process that has not
read this photo before; "look" is the part of a hit that checks that the weights are unchanged.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image

import gradlight as gl
from gradlight.explainers import cache as caching
from gradlight.models.fingerprint import fingerprint

METHODS = ["gradient", "linear_approx", "grad_cam", "selective_normgrad", "normgrad"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", default="timm/resnet50")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = gl.classifier(options.network, pretrained=False)
    with tempfile.TemporaryDirectory() as folder:
        photo = draw(Path(folder))
        jobs = {
            "compute": lambda: explain(model, photo),
            "compute and keep": lambda: kept(model, photo, Path(folder)),
            "first hit": lambda: first(model, photo, Path(folder) / "full"),
            "hit": lambda: explain(model, photo, Path(folder) / "full"),
            "look": lambda: fingerprint(model.network),
        }
        check_same(explain(model, photo, Path(folder) / "full"), explain(model, photo, Path(folder) / "full"))
        report(options, measured(jobs, options.repeats))


def draw(folder: Path) -> Path:
    """Write a photo of 640 x 480 with noise that survives JPEG compression."""
    noise = torch.randint(0, 256, (60, 80, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    Image.fromarray(noise.numpy()).resize((640, 480)).save(folder / "photo.jpg", quality=95)
    return folder / "photo.jpg"


def explain(model: gl.models.classifiers.Classifier, photo: Path, cache: Path | None = None) -> gl.SaliencyMaps:
    return gl.explain(model, photo, methods=METHODS, layers="stages", cache=cache)


def kept(model: gl.models.classifiers.Classifier, photo: Path, folder: Path) -> gl.SaliencyMaps:
    return explain(model, photo, Path(tempfile.mkdtemp(dir=folder)))


def first(model: gl.models.classifiers.Classifier, photo: Path, cache: Path) -> gl.SaliencyMaps:
    caching._decoded_photos.clear()
    return explain(model, photo, cache)


def check_same(computed: gl.SaliencyMaps, cached: gl.SaliencyMaps) -> None:
    same = all(torch.equal(computed[key], cached[key]) for key in computed.pairs)
    if not same or list(computed.targets) != list(cached.targets):
        raise SystemExit("a hit is not what was computed")


def measured(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Measure each job's median time in seconds, over many runs in a row."""
    times: dict[str, float] = {}
    for name, job in jobs.items():
        seconds = []
        for turn in range(repeats if name.startswith("compute") else repeats * 10):
            begun = time.perf_counter()
            job()
            if turn:
                seconds.append(time.perf_counter() - begun)
        times[name] = statistics.median(seconds)
    return times


def report(options: argparse.Namespace, medians: dict[str, float]) -> None:
    print(f"{options.network}, {options.threads} threads\n\n| job | ms | times faster than computing |\n|---|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median * 1000:.2f} | {medians['compute'] / median:.1f} |")


if __name__ == "__main__":
    main()
