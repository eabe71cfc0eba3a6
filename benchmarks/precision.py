"""What bfloat16 costs and loses: time beside float32, and Spearman's ρ of each method's maps with those in float32.

    python benchmarks/precision.py [--network resnet50 …] [--batch 8] [--images 16] [--repeats 3]

All methods that apply anywhere, at "stages". ρ is of a map's values at its own resolution, over all layers and images:
the bundled network of the scenes on held-out scenes, each asked of its first class, and networks with random weights
on noise. A map that is the same everywhere has no ρ and does not count.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from networks import ANYWHERE, NETWORKS, add_networks, classifier, noise
from timing import clock_of, measured, parser, settle, table
from torch import Tensor

import gradlight as gl
from gradlight.data.scenes.generator import HELD_OUT, draw
from gradlight.evaluation.metrics import map_correlation
from gradlight.models.classifiers import Classifier

PRECISIONS = ("float32", "bf16")
RANDOM = ("resnet50", "vit_small")


def main() -> None:
    made = parser(__doc__, repeats=3)
    add_networks(made, NETWORKS, (8,))
    made.add_argument("--images", type=int, default=16, help="images to compare maps on (default: %(default)s)")
    options = made.parse_args()
    settle(options)
    speed(options)
    agreement(options)


def speed(options: argparse.Namespace) -> None:
    rows = []
    for name in options.network:
        model = classifier(name, options.device, options.size)
        for batch in options.batch:
            pixels = noise(batch, options.device, options.size)
            jobs = {kind: partial(explain, model, pixels, kind) for kind in PRECISIONS}
            found = measured(jobs, options.repeats, clock_of(options.device))
            seconds = [f"{found.seconds(kind):.3f}" for kind in PRECISIONS]
            rows.append((name, str(batch), *seconds, f"{found.ratio('bf16', 'float32'):.2f}"))
    print(f"\n{len(ANYWHERE)} methods at stages, turns: {options.repeats}\n")
    print(table(("network", "batch", "float32, s", "bf16, s", "bf16 × float32"), rows), flush=True)


def agreement(options: argparse.Namespace) -> None:
    """Compare the maps of both precisions, network by network."""
    scenes = gl.classifier("scenes", device=options.device)
    photos = scenes.pixels([draw(seed).image for seed in HELD_OUT[: options.images]])
    first = [found[0].index for found in scenes.predict(photos, top=1)]
    asked = {"scenes": correlations(scenes, photos, first)}
    for name in RANDOM:
        if name in options.network:
            model = classifier(name, options.device, options.size)
            asked[name] = correlations(model, noise(options.images, options.device, options.size), 0)
    rows = [
        (name, method, f"{values.nanmean():.4f}", f"{values[~values.isnan()].min():.4f}" if known(values) else "–")
        for name, found in asked.items()
        for method, values in found.items()
    ]
    print(f"\nSpearman's ρ of bf16 with float32, {options.images} images\n")
    print(table(("network", "method", "mean", "least"), rows))
    means = {name: {at: float(v.nanmean()) for at, v in found.items() if known(v)} for name, found in asked.items()}
    worst = [f"{min(found, key=found.__getitem__)} ({name})" for name, found in means.items()]
    print(f"\nBy the mean, {', '.join(worst)} loses most.")


def correlations(model: Classifier, pixels: Tensor, target: int | list[int]) -> dict[str, Tensor]:
    """Give ρ of every map with its other self, by method."""
    exact, rough = (explain(model, pixels, kind, target) for kind in PRECISIONS)
    return {
        method: torch.cat(
            [
                map_correlation(a, rough[method, layer], (a.shape[-2], a.shape[-1])).flatten()
                for layer in exact.layers
                for a in [exact[method, layer]]
            ]
        )
        for method in exact.methods
    }


def known(values: Tensor) -> bool:
    return not bool(values.isnan().all())


def explain(model: Classifier, pixels: Tensor, precision: str, target: int | list[int] = 0) -> gl.SaliencyMaps:
    return gl.explain(model, pixels, target, methods=ANYWHERE, batch_size=min(len(pixels), 16), precision=precision)


if __name__ == "__main__":
    main()
