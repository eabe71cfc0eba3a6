"""The time and accuracy of bfloat16: time relative to float32, and Spearman's ρ of its maps with those in float32.

    python benchmarks/precision.py [--network resnet50 …] [--batch 8] [--images 16] [--repeats 3]

All methods that apply at any layer, at "stages". ρ is computed from the values of a map at its own resolution, over all
layers and images: for the bundled scenes network on held-out scenes with their top class as target, and for networks
with random weights on noise. A constant map has no ρ and is not counted.
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
            times = measured(jobs, options.repeats, clock_of(options.device))
            seconds = [f"{times.seconds(kind):.3f}" for kind in PRECISIONS]
            rows.append((name, str(batch), *seconds, f"{times.ratio('bf16', 'float32'):.2f}"))
    print(f"\n{len(ANYWHERE)} methods at stages, turns: {options.repeats}\n")
    print(table(("network", "batch", "float32, s", "bf16, s", "bf16 × float32"), rows), flush=True)


def agreement(options: argparse.Namespace) -> None:
    """Compare the maps of both precisions for every network."""
    scenes = gl.classifier("scenes", device=options.device)
    photos = scenes.pixels([draw(seed).image for seed in HELD_OUT[: options.images]])
    top_classes = [predictions[0].index for predictions in scenes.predict(photos, top=1)]
    by_network = {"scenes": correlations(scenes, photos, top_classes)}
    for name in RANDOM:
        if name in options.network:
            model = classifier(name, options.device, options.size)
            by_network[name] = correlations(model, noise(options.images, options.device, options.size), 0)
    rows = [
        (name, method, f"{values.nanmean():.4f}", f"{values[~values.isnan()].min():.4f}" if is_defined(values) else "–")
        for name, by_method in by_network.items()
        for method, values in by_method.items()
    ]
    print(f"\nSpearman's ρ of bf16 with float32, {options.images} images\n")
    print(table(("network", "method", "mean", "least"), rows))
    means = {
        name: {method: float(values.nanmean()) for method, values in by_method.items() if is_defined(values)}
        for name, by_method in by_network.items()
    }
    worst = [f"{min(mean, key=mean.__getitem__)} ({name})" for name, mean in means.items()]
    print(f"\nBy the mean, {', '.join(worst)} loses most.")


def correlations(model: Classifier, pixels: Tensor, target: int | list[int]) -> dict[str, Tensor]:
    """Compute ρ of every map in both precisions, by method."""
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


def is_defined(values: Tensor) -> bool:
    return not bool(values.isnan().all())


def explain(model: Classifier, pixels: Tensor, precision: str, target: int | list[int] = 0) -> gl.SaliencyMaps:
    return gl.explain(model, pixels, target, methods=ANYWHERE, batch_size=min(len(pixels), 16), precision=precision)


if __name__ == "__main__":
    main()
