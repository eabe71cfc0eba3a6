"""The time of several targets per image: classes, the words of captions, and the gain of batched backward passes.

    python benchmarks/targets.py [--network resnet50 vit_small] [--classes 1 5 10 20] [--words 5 8 12 16] [--repeats 5]

The reference is the bare work: one forward pass, and one backward pass per target to the earliest layer, one after
another. Maps: selective_normgrad at "stages". "Beyond the forward pass" is the share of the backward
passes' time that the targets take. The bound is one backward pass of a batch of as many images, against as many
backward passes of one image, and needs the forward pass of that batch in place of one image's; "at once" is one call of
autograd for all scores of one image (is_grads_batched).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import cycle, islice

import torch
from networks import add_networks, classifier, graph_from, noise
from timing import Job, clock_of, measured, parser, settle, table
from torch import Tensor

import gradlight as gl
from gradlight.data.scenes.generator import HELD_OUT, draw
from gradlight.models.base import Explainable, Layer
from gradlight.models.objective import Objective
from gradlight.models.preserve import preserved

FORWARD = "forward"
LAYOUTS = {"NCHW": torch.contiguous_format, "channels_last": torch.channels_last}


def main() -> None:
    made = parser(__doc__, repeats=5)
    add_networks(made, ("resnet50", "vit_small"), (1,))
    made.add_argument("--classes", type=int, nargs="+", default=[1, 5, 10, 20], metavar="T", help="classes of an image")
    made.add_argument("--words", type=int, nargs="+", default=[5, 8, 12, 16], metavar="T", help="words of a caption")
    made.add_argument("--bound", type=int, default=10, metavar="T", help="targets of the bound (default: %(default)s)")
    options = made.parse_args()
    settle(options)
    for name in options.network:
        of_classes(name, options)
        bound(name, options)
    of_words(options)


def of_classes(name: str, options: argparse.Namespace) -> None:
    model, size = classifier(name, options.device, options.size), (options.size, options.size)
    rows = []
    for batch in options.batch:
        pixels = noise(batch, options.device, options.size)
        for count in options.classes:
            target_lists = [list(range(count))] * batch
            explain = partial(gl.explain, model, pixels, target_lists, batch_size=batch)
            jobs = against_bare(explain, model.objective(target_lists), pixels, model.stages(size)[0])
            rows.append((str(batch), *ratios(jobs, count, options)))
    print(f"\n{name}, classes, turns: {options.repeats}\n")
    print(table(("batch", "targets", *HEADS), rows), flush=True)


def of_words(options: argparse.Namespace) -> None:
    """Explain a caption word by word; it repeats the words of the captioner up to the length."""
    model: Explainable = (captioner := gl.captioner("scenes", device=options.device))
    scene = draw(HELD_OUT[0]).image
    words, pixels = captioner.caption(scene)[0].words, model.pixels(scene)
    first = model.stages((pixels.shape[2], pixels.shape[3]))[0]
    rows = []
    for count in options.words:
        text = " ".join(islice(cycle(words), count))
        explain = partial(gl.explain, model, pixels, text, words=True)
        jobs = against_bare(explain, model.word_objective(text), pixels, first)
        rows.append(ratios(jobs, count, options))
    print(f"\nthe bundled captioner, word by word, turns: {options.repeats}\n")
    print(table(("targets", *HEADS), rows), flush=True)


HEADS = ("explain, s", "explain × one pass", "explain × the bare work", "beyond the forward pass")


def against_bare(explain: Job, objective: Objective, pixels: Tensor, first: Layer) -> dict[str, Job]:
    """Create the jobs of a number of targets: a pass for one of them, the bare work for all, the forward pass alone."""
    with preserved(objective.network), torch.no_grad():
        targets = objective.choose(objective.outputs(pixels))
    count = len(targets[0])

    def bare(backward: int) -> None:
        with preserved(objective.network):
            with graph_from(objective.trunk, first) as starts:
                scores = objective.scores(objective.outputs(pixels), targets)
            for number in range(backward):
                torch.autograd.grad(scores[:, number].sum(), starts, retain_graph=number < backward - 1)

    return {FORWARD: partial(bare, 0), "one": partial(bare, 1), "bare": partial(bare, count), "explain": explain}


def ratios(jobs: dict[str, Job], count: int, options: argparse.Namespace) -> tuple[str, ...]:
    times = measured(jobs, options.repeats, clock_of(options.device))
    beyond = times.ratio("explain", "bare", beyond=FORWARD)
    columns = times.seconds("explain"), times.ratio("explain", "one"), times.ratio("explain", "bare"), beyond
    return str(count), f"{columns[0]:.3f}", *(f"{column:.2f}" for column in columns[1:])


def bound(name: str, options: argparse.Namespace) -> None:
    """Compare one backward pass of a batch with as many of one image; tokens have only one layout."""
    count, jobs = options.bound, dict[str, Job]()
    layouts = {"NCHW": LAYOUTS["NCHW"]} if name.startswith("vit") else LAYOUTS
    for layout, kept in layouts.items():
        run = partial(forward_pass, name, layout=kept, options=options)
        scores, starts = run(1)()
        jobs[f"{count} backward passes of one image, {layout}"] = partial(one_by_one, scores, starts, count)
        jobs[f"{count} scores of one image at once, {layout}"] = partial(at_once, scores, starts, count)
        jobs[f"one backward pass of {count} images, {layout}"] = partial(one_by_one, *run(count)(), 1)
        jobs[f"one forward pass of one image, {layout}"] = run(1)
        jobs[f"one forward pass of {count} images, {layout}"] = run(count)
    times = measured(jobs, options.repeats, clock_of(options.device))
    floor = next(iter(jobs))
    rows = [(job, f"{times.seconds(job):.3f}", f"{times.ratio(job, floor):.2f}") for job in jobs]
    print(f"\n{name}, the bound, turns: {options.repeats}\n")
    print(table(("job", "s", "× the first"), rows), flush=True)


def forward_pass(
    name: str, batch: int, layout: torch.memory_format, options: argparse.Namespace
) -> Callable[[], tuple[Tensor, list[Tensor]]]:
    """Create a network's forward pass, which gives its scores and the tensors where autograd's graph begins."""
    model = classifier(name, options.device, options.size)
    model.network.to(memory_format=layout)
    first = model.stages((options.size, options.size))[0]
    pixels = noise(batch, options.device, options.size).contiguous(memory_format=layout)

    def run() -> tuple[Tensor, list[Tensor]]:
        with graph_from(model.network, first) as starts:
            return model.network(pixels), starts

    return run


def one_by_one(scores: Tensor, starts: list[Tensor], count: int) -> None:
    """Run backward passes from the first scores of all images, one after another."""
    for number in range(count):
        torch.autograd.grad(scores[:, number].sum(), starts, retain_graph=True)


def at_once(scores: Tensor, starts: list[Tensor], count: int) -> None:
    """Run the backward passes from the first scores of all images in one batched call."""
    ends = torch.eye(count, scores.shape[1], dtype=scores.dtype, device=scores.device)
    sent = ends[:, None].expand(count, *scores.shape)
    torch.autograd.grad(scores, starts, sent, retain_graph=True, is_grads_batched=True)


if __name__ == "__main__":
    main()
