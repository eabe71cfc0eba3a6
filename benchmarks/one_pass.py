"""The time of saliency maps relative to the bare pass: all layers, all methods, and other libraries for one method.

    python benchmarks/one_pass.py [--network resnet50 vgg16 …] [--batch 1 8] [--repeats 7]

F_tap is one forward pass and one backward pass from a score to the earliest tapped layer, weights frozen; "full" goes
back to the pixels. Layers are the stem and every block, or every ReLU and pooling; the combination is of the four
deepest stages, and its own floor is the bare pass to the earliest of these. "Once per call" is the work of an
explanation besides its passes: restoring the network's state, checking the weights, reading the images.
"""

from __future__ import annotations

import argparse

from networks import ANYWHERE, NETWORKS, add_networks, classifier, floor, full_pass, noise, outer_layers
from peers import peers
from timing import Job, clock_of, measured, parser, settle, table
from torch import Tensor

import gradlight as gl
from gradlight.explainers.capture import record
from gradlight.models.base import Layer
from gradlight.models.classifiers import Classifier
from gradlight.models.objective import Target
from gradlight.models.preserve import preserved

FLOOR, FULL = "F_tap", "full forward and backward, to the pixels"


def main() -> None:
    made = parser(__doc__, repeats=7)
    add_networks(made, NETWORKS, (1, 8))
    options = made.parse_args()
    settle(options)
    for name in options.network:
        model = classifier(name, options.device, options.size)
        for batch in options.batch:
            compare(name, model, noise(batch, options.device, options.size), options)


def compare(name: str, model: Classifier, pixels: Tensor, options: argparse.Namespace) -> None:
    layers = outer_layers(model, name, options.size)
    names = [layer.name for layer in layers]
    others, left_out = peers(model.network, pixels, names, tokens=name.startswith("vit"))
    times = measured(own_jobs(model, pixels, layers) | others, options.repeats, clock_of(options.device))
    rows = [
        (job, f"{times.seconds(job):.3f}", f"{times.ratio(job, FLOOR):.2f}", f"{times.ratio(job, FULL):.2f}")
        for job in times.taken
    ]
    print(f"\n{name}, batch {len(pixels)}, turns: {options.repeats}\n", flush=True)
    print(table(("job", "s", "× F_tap", "× full"), rows), flush=True)
    if left_out:
        print("\n" + " ".join(left_out))


def own_jobs(model: Classifier, pixels: Tensor, layers: list[Layer]) -> dict[str, Job]:
    """Create the bare passes and the jobs of this library."""
    names, count = [layer.name for layer in layers], len(layers)
    deepest = model.stages((pixels.shape[2], pixels.shape[3]))[-4:]
    stages = [stage.name for stage in deepest]

    def explain(methods: str | list[str] = ANYWHERE, at: list[str] = names) -> gl.SaliencyMaps:
        return gl.explain(model, pixels, 0, methods=methods, layers=at, batch_size=len(pixels))

    several = f"{len(ANYWHERE)} methods × {count} layers"
    return {
        FLOOR: floor(model.network, pixels, layers[0]),
        FULL: full_pass(model.network, pixels),
        f"capture of {count} layers, no method": capture(model, pixels, layers),
        "once per call": lambda: run_once_per_call(model, pixels),
        f"1 method (grad_cam) × {count} layers": lambda: explain("grad_cam"),
        f"1 method (normgrad) × {count} layers": lambda: explain("normgrad"),
        several: explain,
        f"{several}, upsampled to the pixels": lambda: (maps := explain()).resized(maps.size),
        f"the combination's own floor, to {stages[0]}": floor(model.network, pixels, deepest[0]),
        f"combination of {len(stages)} layers, 1 method, at the pixels": lambda: explain(
            "selective_normgrad", stages
        ).combine("linear", "product"),
    }


def run_once_per_call(model: Classifier, pixels: Tensor) -> None:
    """Do the work of a call besides its passes."""
    model.weights_sha256()
    model.read(pixels)
    with preserved(model.network):
        pass


def capture(model: Classifier, pixels: Tensor, layers: list[Layer]) -> Job:
    """Create the job that records activation and gradient of all layers."""
    objective, targets = model.objective(0), [[Target("class", 0, "")]] * len(pixels)

    def run() -> object:
        with preserved(model.network):
            return record(objective, pixels, layers, targets).taps(0)

    return run


if __name__ == "__main__":
    main()
