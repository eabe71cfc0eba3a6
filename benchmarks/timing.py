"""Shared by the benchmarks: timing of jobs that alternate, Markdown tables, and a description of the machine.

The clock is the processor time of the process, which depends less on other work on the machine than wall time; on a GPU
it is the wall time after synchronisation. Set OMP_WAIT_POLICY=PASSIVE (as `bench.py` does): threads that wait by
spinning count as work.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

__all__ = ["MACHINE", "Clock", "Job", "Times", "clock_of", "machine", "measured", "parser", "settle", "table"]

Job = Callable[[], object]
Clock = Callable[[], float]

MACHINE = "Machine: "


@dataclass(frozen=True)
class Times:
    """Seconds of each job, one per repeat."""

    taken: Mapping[str, Sequence[float]]

    def seconds(self, job: str) -> float:
        """Give the median time of a job."""
        return statistics.median(self.taken[job])

    def ratio(self, job: str, floor: str, *, beyond: str | None = None) -> float:
        """Give the median ratio of two jobs over the repeats; beyond: a job whose time is subtracted from both."""
        offsets = self.taken[beyond] if beyond else [0.0] * len(self.taken[job])
        repeats = zip(self.taken[job], self.taken[floor], offsets, strict=True)
        return statistics.median((seconds - offset) / (base - offset) for seconds, base, offset in repeats)


def measured(jobs: Mapping[str, Job], repeats: int, clock: Clock = time.process_time) -> Times:
    """Time jobs that alternate, so that other work slows all of them; the first run of each is not counted."""
    for job in jobs.values():
        job()
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    with _little_garbage():
        for _ in range(repeats):
            for name, job in jobs.items():
                begun = clock()
                job()
                taken[name].append(clock() - begun)
    return Times(taken)


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Keep the garbage collector from scanning all existing objects during a job."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def clock_of(device: str) -> Clock:
    """Give the clock for work on a device."""

    def synchronised_clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return time.process_time if device == "cpu" else synchronised_clock


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def machine(device: str = "cpu") -> str:
    """Describe what a benchmark runs on: processor, threads, versions, and how busy it is now."""
    descriptions = [f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    if device != "cpu":
        descriptions.append(torch.cuda.get_device_name(device))
    packages = ("torch", "torchvision", "timm", "captum", "grad-cam", "torchcam")
    descriptions.append(", ".join([f"Python {platform.python_version()}", *filter(None, map(_version, packages))]))
    descriptions.append(f"OMP_WAIT_POLICY={os.environ.get('OMP_WAIT_POLICY', '')}")
    descriptions.append(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())} in the last 1, 5, 15 minutes")
    return f"{MACHINE}{'; '.join(descriptions)}."


def _processor() -> str:
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text(encoding="utf-8").splitlines() if cpus.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """Create a parser with the options of every benchmark; doc: the docstring of the benchmark."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    made.add_argument("--repeats", type=_positive, default=repeats, help="turns that count (default: %(default)s)")
    made.add_argument("--threads", type=_positive, default=None, help="threads of torch (default: as torch chooses)")
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    made.add_argument("--device", default=chosen, help="cpu or cuda (default: cuda where there is one)")
    return made


def settle(options: argparse.Namespace) -> None:
    """Apply the shared options, and print the machine."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    print(machine(options.device), flush=True)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, 1 or more, not {text!r}")
    return int(text)
