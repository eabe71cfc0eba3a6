"""The memory of an explanation: the peak relative to a bare pass, and the growth over 1,000 explanations.

    python benchmarks/memory.py [--network resnet50 vgg16 …] [--batch 1 8] [--explains 1000]

Every job runs in a process of its own. The peak is that of the process's resident memory (on a GPU, of the memory that
torch has allocated), minus the memory before the job, when the network, its layers and the pixels are ready; all layers
× all methods that apply at any layer, at their own resolution. Blocks of 64 kB and more are returned to the system at
once, so that free memory is not counted. Linux only.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from networks import ANYWHERE, NETWORKS, add_networks, classifier, floor, noise, outer_layers
from one_pass import capture
from timing import Job, parser, settle, table
from torch import nn

import gradlight as gl

JOBS = ("bare pass", "capture, all kept", "explain")
GROWTH = "growth"
WARM = 100
STATUS, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    made = parser(__doc__, repeats=1)
    add_networks(made, NETWORKS, (1, 8))
    made.add_argument("--explains", type=int, default=1000, help="explanations in a row (default: %(default)s)")
    made.add_argument("--job", choices=(*JOBS, GROWTH), help="one job of one network and batch, in this very process")
    options = made.parse_args()
    if options.device == "cpu" and not (STATUS.exists() and RESET.exists()):
        sys.exit(f"The peak of resident memory is read from {STATUS}, which does not exist here.")
    if options.job == GROWTH:
        print(growth(options))
    elif options.job:
        print(peak(options.job, options))
    else:
        settle(options)
        report(options)


def report(options: argparse.Namespace) -> None:
    """Run every job in processes of their own, and write the tables."""
    rows = []
    for name in options.network:
        for batch in options.batch:
            peaks = {job: alone(job, name, batch, options) for job in JOBS}
            bare = peaks[JOBS[0]]
            rows += [(name, str(batch), job, f"{at / 2**20:.0f}", f"{at / bare:.2f}") for job, at in peaks.items()]
    print(f"\nall outer layers × {len(ANYWHERE)} methods\n")
    print(table(("network", "batch", "job", "peak, MiB", "× bare pass"), rows), flush=True)
    grown = alone(GROWTH, options.network[0], 1, options)
    print(f"\n{options.explains} explanations of a small network, after {WARM} others, leave {grown / 1024:.0f} KiB.")


def alone(job: str, name: str, batch: int, options: argparse.Namespace) -> int:
    """Run a job in a new process, and give the bytes that it prints."""
    command = [sys.executable, __file__, "--job", job, "--network", name, "--batch", str(batch)]
    command += ["--size", str(options.size), "--device", options.device, "--explains", str(options.explains)]
    command += ["--threads", str(options.threads or torch.get_num_threads())]
    settings = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_MMAP_MAX_": "1000000"}
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{job} of {name}, batch {batch}, failed:\n{done.stderr}")
    return int(done.stdout)


def peak(job: str, options: argparse.Namespace) -> int:
    """Run one job twice, and give the peak of the second run; the first allocates what is kept permanently."""
    (name,), (batch,) = options.network, options.batch
    torch.set_num_threads(options.threads or torch.get_num_threads())
    model, pixels = classifier(name, options.device, options.size), noise(batch, options.device, options.size)
    layers = outer_layers(model, name, options.size)
    layer_names = [layer.name for layer in layers]
    jobs: dict[str, Job] = {
        JOBS[0]: floor(model.network, pixels, layers[0]),
        JOBS[1]: capture(model, pixels, layers),
        JOBS[2]: partial(gl.explain, model, pixels, 0, methods=ANYWHERE, layers=layer_names, batch_size=batch),
    }
    jobs[job]()
    at_rest = _at_rest(options.device)
    jobs[job]()
    return _highest(options.device) - at_rest


def growth(options: argparse.Namespace) -> int:
    """Explain a small network repeatedly, and give the growth of memory in bytes."""
    convolutions = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU()]
    network = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    torch.set_num_threads(1)
    model, pixels = gl.classifier(network.eval(), device=options.device), noise(2, options.device, 32)
    before = 0
    for number in range(WARM + options.explains):
        if number == WARM:
            before = _at_rest(options.device)
        gl.explain(model, pixels, 0, methods=ANYWHERE, layers="all")
    return _at_rest(options.device) - before


def _at_rest(device: str) -> int:
    """Give the current memory in bytes, and reset the peak."""
    if device != "cpu":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    RESET.write_text("5", encoding="ascii")
    return _status("VmRSS")


def _highest(device: str) -> int:
    return torch.cuda.max_memory_allocated(device) if device != "cpu" else _status("VmHWM")


def _status(field: str) -> int:
    """Read a field of /proc/self/status in bytes."""
    match = re.search(rf"^{field}:\s+(\d+) kB$", STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if match is None:
        sys.exit(f"{STATUS} has no field {field}.")
    return int(match[1]) * 1024


if __name__ == "__main__":
    main()
