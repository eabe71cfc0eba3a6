"""What maps cost beside the bare pass: ratios of process time, medians of interleaved runs on this machine.

    python benchmarks/one_pass.py [--network resnet50] [--batch 1] [--repeats 9]

The floor is one forward pass and one backward pass from the score to the earliest tapped layer, parameters frozen.
Peers (Captum, where it is installed) make one method's maps a layer at a time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torchvision
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.capture import record
from gradlight.explainers.methods import METHODS
from gradlight.models.base import Layer
from gradlight.models.objective import Target
from gradlight.models.preserve import preserved

ANYWHERE = [name for name in METHODS if name not in ("cam", "normgrad_real")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", choices=["resnet50", "vgg16"], default="resnet50")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = torchvision.models.get_model(options.network, weights=None).eval()
    model, pixels = gl.classifier(network), torch.randn(options.batch, 3, 224, 224)
    layers = outer_layers(model, options.network)
    jobs = {"floor": floor(network, pixels, layers[0])}
    jobs[f"capture of {len(layers)} layers"] = capture(model, pixels, layers)
    names = [layer.name for layer in layers]
    jobs[f"explain: 1 method × {len(layers)} layers"] = explain(model, pixels, ["normgrad"], names)
    jobs[f"explain: {len(ANYWHERE)} methods × {len(layers)} layers"] = explain(model, pixels, ANYWHERE, names)
    jobs["explain: 1 method × stages"] = explain(model, pixels, ["selective_normgrad"], ["stages"])
    jobs.update(peers(network, pixels, names))
    report(measured(jobs, options.repeats))


def outer_layers(model: gl.models.classifiers.Classifier, name: str) -> list[Layer]:
    """Give the stem and every block, or every ReLU and pooling, without what is inside them."""
    inside = {"resnet50": lambda at: at == "relu" or (at.startswith("layer") and at.count(".") == 1)}
    chosen = inside.get(name, lambda at: isinstance(model.network.get_submodule(at), (nn.ReLU, nn.MaxPool2d)))
    return [layer for layer in model.layers()[1:] if ":" not in layer.name and chosen(layer.name)]


def floor(network: nn.Module, pixels: Tensor, first: Layer) -> Callable[[], object]:
    def run() -> object:
        with preserved(network):
            begun: list[Tensor] = []

            def begin(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
                begun.append(output.detach().requires_grad_())
                return begun[0].clone()

            handle = network.get_submodule(first.name).register_forward_hook(begin)
            try:
                score = network(pixels)[:, 0].sum()
            finally:
                handle.remove()
            return torch.autograd.grad(score, begun)

    return run


def capture(model: gl.models.classifiers.Classifier, pixels: Tensor, layers: list[Layer]) -> Callable[[], object]:
    objective, targets = model.objective(0), [[Target("class", 0, "")]] * len(pixels)

    def run() -> object:
        with preserved(model.network):
            return record(objective, pixels, layers, targets).taps(0)

    return run


def explain(
    model: gl.models.classifiers.Classifier, pixels: Tensor, methods: list[str], layers: list[str]
) -> Callable[[], object]:
    return lambda: gl.explain(model, pixels, 0, methods=methods, layers=layers, batch_size=len(pixels))


def peers(network: nn.Module, pixels: Tensor, layers: list[str]) -> dict[str, Callable[[], object]]:
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        return {}
    runs = [LayerGradCam(network, network.get_submodule(name)) for name in layers]
    return {
        f"Captum: Grad-CAM, {len(layers)} layers one by one": lambda: [run.attribute(pixels, target=0) for run in runs]
    }


def measured(jobs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Give each job's median process time; the jobs take turns, so that what slows the machine slows all."""
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for turn in range(repeats + 1):
        for name, job in jobs.items():
            begun = time.process_time()
            job()
            if turn:
                times[name].append(time.process_time() - begun)
    return {name: statistics.median(found) for name, found in times.items()}


def report(medians: dict[str, float]) -> None:
    print("| job | × floor |\n|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {median / medians['floor']:.2f} |")


if __name__ == "__main__":
    main()
