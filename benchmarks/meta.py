"""The time of a meta step relative to a plain pass: image by image, and for a batch at once.

    python benchmarks/meta.py [--network resnet18 resnet50 vgg16] [--batch 1 8 32] [--repeats 3]

The plain pass is one forward and one backward pass to the pixels of the batch, with frozen weights. A meta step is a
forward and a backward pass with the gradients of the weights, and then a pass at the updated weights: about 2.5 plain
passes by the number of multiplications. Maps: selective_normgrad at "stages".
"""

from __future__ import annotations

from networks import add_networks, classifier, full_pass, noise
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
            times = measured(jobs(model, pixels), options.repeats, clock_of(options.device))
            ratios = {job: (times.ratio(job, FLOOR), times.ratio(ONE_BY_ONE, job)) for job in times.taken}
            rows = [(job, f"{times.seconds(job):.3f}", *(f"{each:.2f}" for each in ratios[job])) for job in ratios]
            print(f"\n{name}, batch {batch}, turns: {options.repeats}\n")
            print(table(("job", "s", "× plain pass", "times faster than one by one"), rows), flush=True)


def jobs(model: Classifier, pixels: Tensor) -> dict[str, Job]:
    def explain(meta: gl.Meta | None, batch_size: int) -> gl.SaliencyMaps:
        return gl.explain(model, pixels, 0, meta=meta, batch_size=batch_size)

    step, batch = gl.Meta(lr=0.002), len(pixels)
    named_jobs: dict[str, Job] = {
        FLOOR: full_pass(model.network, pixels),
        "explain without meta": lambda: explain(None, batch),
        ONE_BY_ONE: lambda: explain(step, 1),
    }
    if batch > 1:
        named_jobs["explain with meta, batched"] = lambda: explain(step, batch)
    return named_jobs


if __name__ == "__main__":
    main()
