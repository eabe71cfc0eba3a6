"""What a meta step costs beside a plain pass: the images one by one, and all of a batch at once.

    python benchmarks/meta.py [--network resnet18 resnet50 vgg16] [--batch 1 8 32] [--repeats 3]

The plain pass is one forward and one backward pass to the pixels of the whole batch, weights frozen. A meta step is a
forward and a backward pass that gives the weights' gradients too, and then the pass at the moved weights: by its
multiplications about 2.5 plain passes. Maps: selective_normgrad at "stages".
"""

from __future__ import annotations

from networks import add_networks, classifier, noise, whole
from timing import Job, clock_of, measured, parser, settle, table
from torch import Tensor

import gradlight as gl
from gradlight.models.classifiers import Classifier

FLOOR = "plain pass"
ONE_BY_ONE = "explain with meta, one by one"


def main() -> None:
    made = parser(__doc__, repeats=3)
    add_networks(made, ("resnet18", "resnet50", "vgg16"), (1, 8, 32))
    options = made.parse_args()
    settle(options)
    for name in options.network:
        model = classifier(name, options.device, options.size)
        for batch in options.batch:
            pixels = noise(batch, options.device, options.size)
            found = measured(jobs(model, pixels), options.repeats, clock_of(options.device))
            ratios = {job: (found.ratio(job, FLOOR), found.ratio(ONE_BY_ONE, job)) for job in found.taken}
            rows = [(job, f"{found.seconds(job):.3f}", *(f"{each:.2f}" for each in ratios[job])) for job in ratios]
            print(f"\n{name}, batch {batch}, turns: {options.repeats}\n")
            print(table(("job", "s", "× plain pass", "times faster than one by one"), rows), flush=True)


def jobs(model: Classifier, pixels: Tensor) -> dict[str, Job]:
    def explain(meta: gl.Meta | None, batch_size: int) -> gl.SaliencyMaps:
        return gl.explain(model, pixels, 0, meta=meta, batch_size=batch_size)

    step, whole_batch = gl.Meta(lr=0.002), len(pixels)
    found: dict[str, Job] = {
        FLOOR: whole(model.network, pixels),
        "explain without meta": lambda: explain(None, whole_batch),
        ONE_BY_ONE: lambda: explain(step, 1),
    }
    if whole_batch > 1:
        found["explain with meta, batched"] = lambda: explain(step, whole_batch)
    return found


if __name__ == "__main__":
    main()
