"""Explain one photo with every family of timm and every classifier of torchvision, and write a table of the results.

    python benchmarks/zoo.py [--only 'timm/vit*'] [--resume] [--jobs 2] [--photo PATH] [--out docs/zoo.md]

Of each timm module the classification variant with the fewest parameters (timm's miniatures for its own tests, test_*,
left out), of torchvision all; random weights of a fixed seed, a photo (by default the portrait that comes with
matplotlib) at the network's own size. The requirements on the maps, and the changes to the weights before, are in
zoo_check.py. Each network runs in a process of its own. --only and --resume keep the other rows of the table; --resume
runs only networks that are not in the table or have not passed.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import matplotlib
import torch
from zoo_check import checked

ROOT = Path(__file__).resolve().parents[1]
PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
TIMEOUT_SECONDS = 1200
TITLES = ["network", "family", "layers", "stages", "maps", "find s", "explain s", "status"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="which networks, a pattern such as 'timm/vit*' or 'torchvision/*'")
    parser.add_argument("--resume", action="store_true", help="run only those that the table lacks or calls failed")
    parser.add_argument("--jobs", type=int, default=2, help="networks at once, each with its share of the cores")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "zoo.md")
    parser.add_argument("--network", help="check this one alone and print its row as JSON")
    options = parser.parse_args()
    if options.network:
        print(json.dumps(row_of(options.network, options.photo)))
        return
    rows = read_rows(options.out) if options.resume or options.only != "*" else {}
    begun = time.perf_counter()
    with ThreadPoolExecutor(options.jobs) as pool:
        wanted = (name for name in networks(options.only) if not (options.resume and passed(rows.get(name))))
        runs = {pool.submit(run_in_process, name, options): name for name in wanted}
        for count, run in enumerate(as_completed(runs), start=1):
            row = rows[runs[run]] = run.result()
            print(f"[{count}/{len(runs)}, {time.perf_counter() - begun:.0f} s] {row[0]}: {row[-1]}", flush=True)
            write_rows(options.out, rows, options.photo)


def networks(only: str) -> Iterator[str]:
    """List the networks to check, "timm/NAME" and "torchvision/NAME"."""
    import timm
    import torchvision

    if not only.startswith("torchvision/"):
        for module in timm.list_modules():
            name = smallest(module)
            if name and fnmatch.fnmatchcase(f"timm/{name}", only):
                yield f"timm/{name}"
    for name in torchvision.models.list_models(module=torchvision.models):
        if fnmatch.fnmatchcase(f"torchvision/{name}", only):
            yield f"torchvision/{name}"


def smallest(module: str) -> str | None:
    """Find the classification variant with the fewest parameters, by building each without memory for its weights."""
    import timm

    sizes = {}
    for name in timm.list_models(module=module, exclude_filters="test_*"):
        with torch.device("meta"):
            network = timm.create_model(name)
        if network.num_classes > 0:
            sizes[name] = sum(parameter.numel() for parameter in network.parameters())
    return min(sizes, key=lambda name: (sizes[name], name)) if sizes else None


def run_in_process(name: str, options: argparse.Namespace) -> list[str]:
    """Check a network in a process of its own, so that its memory is released afterwards; a crash gives a row, too."""
    # As many threads as there are cores for it; they must not spin while they wait, because other jobs need the cores.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--network", name, "--photo", str(options.photo)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, env=environment)
        row: list[str] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return failed(name, f"took more than {TIMEOUT_SECONDS} s")
    except (IndexError, json.JSONDecodeError):
        last_line = (done.stderr.strip().splitlines() or [""])[-1]
        return failed(name, f"the process ended with {done.returncode}: {last_line}")
    return row


def failed(name: str, reason: str) -> list[str]:
    return [name, family(name), "", "", "", "", "", f"FAILED: {reason}".replace("|", "/").replace("\n", " ")[:400]]


def family(name: str) -> str:
    library, _, short = name.partition("/")
    if library == "timm":
        import timm

        return timm.model_entrypoint(short).__module__.rpartition(".")[2]
    import torchvision

    return torchvision.models.get_model_builder(short).__module__.rpartition(".")[2]


def row_of(name: str, photo: Path) -> list[str]:
    warnings.simplefilter("ignore")
    try:
        return [name, family(name), *checked(name, photo)]
    except Exception as error:  # any failure of a network is a row of the table
        frame = traceback.extract_tb(error.__traceback__)[-1]
        return failed(name, f"{type(error).__name__} ({Path(frame.filename).name}:{frame.lineno}): {error}")


def passed(row: list[str] | None) -> bool:
    return row is not None and row[-1].startswith("passes")


def read_rows(path: Path) -> dict[str, list[str]]:
    """Read a table that this program has written; a missing file gives an empty one."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    cells = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells if len(row) == len(TITLES) and row[0].startswith(("timm/", "torchvision/"))}


def write_rows(path: Path, rows: dict[str, list[str]], photo: Path) -> None:
    import timm
    import torchvision

    versions = ", ".join(f"{library.__name__} {library.__version__}" for library in (timm, torchvision, torch))
    text = [f"# The zoo: {sum(map(passed, rows.values()))} of {len(rows)} networks pass", ""]
    text += [" ".join(ABOUT.split()), "", f"Photo: `{photo.name}`; {versions}.", ""]
    text += [f"| {' | '.join(TITLES)} |", "|---" * len(TITLES) + "|"]
    text += [f"| {' | '.join(rows[name])} |" for name in sorted(rows)]
    path.write_text("\n".join(text) + "\n", encoding="utf-8")


ABOUT = """
Written by `python benchmarks/zoo.py`: the smallest classifier of every timm module (its miniatures `test_*` left out),
and every classifier of torchvision, with zero configuration, `layers="stages"`. Weights are random (fixed seed);
parameters that are all zero before training get small noise (scales of norms: one), because no gradient passes them,
and batch norms the statistics of the photo. So this table shows that maps are computed correctly, not that they are
good. Passes: every named method that applies gives finite maps that vary over the image, on the layer's own grid, the
same in a batch of two as alone, and the network is unchanged bit for bit afterwards. `cam` is computed where it is
defined (before the mean that is the input of the only linear layer), `normgrad_real` where the stage is itself a layer
with weights. Flat by construction: before a mean over the image, `gradient` and `gradient_sum` are constant (and
`normgrad`, where a norm layer has made the norms of all activations equal), and the ReLU of `grad_cam` may give only
zeros for an untrained network. Nothing but rounding: before a LayerNorm with equal scales, the gradients at one
location add up to 0, and so do gradients times activations. maps: the number of pairs of method and layer. find s,
explain s: seconds to find the layers (once), and for all maps of one image.
"""


if __name__ == "__main__":
    main()
