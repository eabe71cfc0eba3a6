"""Explain one photo by every family of timm and every classifier of torchvision, and write down what came of it.

    python benchmarks/zoo.py [--only 'timm/vit*'] [--resume] [--jobs 2] [--photo PATH] [--out docs/zoo.md]

Of each timm module the classification variant with the fewest parameters (timm's miniatures for its own tests, test_*,
left out), of torchvision all; random weights of a fixed seed, a photo (the portrait that comes with matplotlib, unless
told otherwise) at the network's own size. Parameters that are
zero before training (heads, the last scale of a residual branch) stop the gradient: they get small seeded noise, the
scales of norms one; and batch norms get the statistics of the photo, without which deep networks fade to one number.
Each network runs in a process of its own. --only and --resume keep the table's other rows; --resume runs only what is
not there or has not passed.
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
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
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

import gradlight as gl
from gradlight.explainers.methods import METHODS
from gradlight.models.base import Layer
from gradlight.models.classifiers import Classifier

ROOT = Path(__file__).resolve().parents[1]
PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
SELECTIVE = ("cam", "normgrad_real")
ANYWHERE = [name for name in METHODS if name not in SELECTIVE]
WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)
LONGEST = 1200
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
        runs = {pool.submit(apart, name, options): name for name in wanted}
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


def apart(name: str, options: argparse.Namespace) -> list[str]:
    """Check a network in a process of its own, so that its memory is gone afterwards; a crash is a row, too."""
    # As many threads as there are cores for it, none of which spins while it waits: others work here, too.
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // options.jobs)))
    surroundings = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, __file__, "--network", name, "--photo", str(options.photo)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST, env=surroundings)
        row: list[str] = json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return failed(name, f"took more than {LONGEST} s")
    except (IndexError, json.JSONDecodeError):
        said = (done.stderr.strip().splitlines() or [""])[-1]
        return failed(name, f"the process ended with {done.returncode}: {said}")
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
        return checked(name, photo)
    except Exception as error:  # whatever a network does is a row of the table
        place = traceback.extract_tb(error.__traceback__)[-1]
        return failed(name, f"{type(error).__name__} ({Path(place.filename).name}:{place.lineno}): {error}")


def checked(name: str, photo: Path) -> list[str]:
    """Explain the photo and its mirror image by a network, and raise for the first thing that is not as promised."""
    torch.manual_seed(0)
    model = gl.classifier(name, pretrained=False, device="cpu")
    with Image.open(photo) as opened:
        upright = opened.convert("RGB")
    pictures = [upright, ImageOps.mirror(upright)]
    awaken(model.network)
    settle(model.network, model.pixels(pictures))
    before = state(model.network)
    begun = time.perf_counter()
    stages = model.stages()
    found = time.perf_counter() - begun
    begun = time.perf_counter()
    maps, alone, refused = explained(model, pictures, stages)
    took = (time.perf_counter() - begun) / (2 * len(pictures))
    require(state(model.network) == before, "the network is not as it was")
    notes = [*refused, *judged(maps, stages)]
    if different(maps, alone, stages):
        # At the kinks of an activation rounding decides; what is wrong in itself is wrong in double precision, too.
        model.network.double()
        wrong = different(*explained(model, pictures, stages)[:2], stages)
        require(not wrong, f"{', '.join(wrong)} differ in a batch from alone")
        notes.append("in a batch as alone in float64, where float32 rounds too much")
    ladder = "<br>".join(f"{layer.name} {layer.size[0]}×{layer.size[1]}" for layer in stages)
    status = "; ".join(["passes", *notes])
    return [name, family(name), str(len(model.layers())), ladder, str(len(maps)), f"{found:.1f}", f"{took:.1f}", status]


def awaken(network: nn.Module) -> None:
    """Give parameters that are all zero small noise, and the scales of norms that are, one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.any():
                scale = parameter.ndim == 1 and name.endswith("weight")
                noise = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + 1 if scale else noise)


def settle(network: nn.Module, pixels: Tensor) -> None:
    """Give batch norms the statistics of the pixels: with those of nothing the numbers of deep networks fade away."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        network(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def state(network: nn.Module) -> tuple[Any, ...]:
    """Give everything of a network that an explanation must leave alone: numbers, flags, gradients, hooks."""
    digest = hashlib.sha256()
    for _, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in network.parameters()]
    hooks = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in network.modules()
    ]
    return digest.hexdigest(), flags, hooks


Maps = dict[tuple[str, str], Tensor]


def explained(model: Classifier, pictures: list[Image.Image], stages: list[Layer]) -> tuple[Maps, Maps, list[str]]:
    """Make the maps of two images at once, and of each alone, by every method where it applies; and what is refused.

    A stage that is a layer with weights of another class than torch's may have no real contribution.
    """
    pixels, modules = model.pixels(pictures), dict(model.network.named_modules())
    weighted = [stage.name for stage in stages if isinstance(modules[stage.name.partition(":")[0]], WEIGHTED)]
    jobs: list[tuple[list[str], Any]] = [(ANYWHERE, "stages")]
    jobs += [(["cam"], pooled)] if (pooled := [s.name for s in stages if s.pooled]) else []
    jobs += [(["normgrad_real"], [name]) for name in weighted]
    found: list[Maps] = [{}, {}]
    refused = []
    for methods, layers in jobs:
        try:
            for maps, size in zip(found, (len(pixels), 1), strict=True):
                made = gl.explain(model, pixels, 0, methods=methods, layers=layers, batch_size=size)
                maps |= {key: made[key] for key in made.pairs}
        except gl.GradlightError:
            module = modules[layers[0].partition(":")[0]]
            if methods != ["normgrad_real"] or type(module) in WEIGHTED:
                raise
            refused.append(f"normgrad_real is refused at {layers[0]} ({type(module).__name__})")
    return found[0], found[1], refused


def different(maps: Maps, alone: Maps, stages: list[Layer]) -> list[str]:
    """Name the maps of a batch that are not those of its images alone, but for rounding."""
    channels = {layer.name: layer.channels for layer in stages}
    wrong = []
    for (method, layer), made in maps.items():
        near = 1e-3 * float(made.abs().max()) + 1e-6 * terms(method, layer, maps, channels[layer])
        if not torch.allclose(made, alone[method, layer], rtol=1e-3, atol=near):
            wrong.append(f"{method} at {layer}")
    return wrong


def judged(maps: Maps, stages: list[Layer]) -> list[str]:
    """Raise for a map that is not finite, not of its layer's grid, or flat; note those flat by construction."""
    require(bool(stages), "no stages")
    for (method, layer), made in maps.items():
        size = next(stage.size for stage in stages if stage.name == layer)
        require(made.shape[2:] == size, f"{method} at {layer} is {list(made.shape)}, not of the grid {size}")
        require(bool(made.isfinite().all()), f"{method} at {layer} is not finite")
    return [
        note
        for stage in stages
        for note in remarks({m: made for (m, at), made in maps.items() if at == stage.name}, stage)
    ]


def remarks(maps: dict[str, Tensor], stage: Layer) -> list[str]:
    """Note what is flat or nothing but rounding at one layer, and why; raise where there is no reason to be flat."""
    everywhere = {(method, stage.name): made for method, made in maps.items()}
    bounds = {method: terms(method, stage.name, everywhere, stage.channels) for method in maps}
    cancelled = [method for method, made in maps.items() if float(made.abs().max()) <= 1e-5 * bounds[method]]
    flat = [method for method, made in maps.items() if method not in cancelled and any(map(is_flat, made))]
    # Before an average of the image every place has one gradient, and normgrad varies only with the activation's norm,
    # which a norm before it has made one; Grad-CAM's ReLU may leave nothing.
    allowed = {"gradient", "gradient_sum", "normgrad"} if "gradient" in flat else set()
    for method in flat:
        empty = method == "grad_cam" and not all(bool(one.any()) for one in maps[method])
        require(empty or method in allowed, f"{method} at {stage.name} is constant")
    require(
        {"gradient", "selective_normgrad"} - {*flat, *cancelled} != set(), f"everything at {stage.name} is constant"
    )
    notes = [f"flat at {stage.name}: {', '.join(flat)}"] if flat else []
    return notes + ([f"nothing but rounding at {stage.name}: {', '.join(cancelled)}"] if cancelled else [])


def is_flat(one: Tensor) -> bool:
    return float(one.max() - one.min()) <= 1e-5 * float(one.abs().max())


def terms(method: str, layer: str, maps: Maps, channels: int) -> float:
    """Bound the terms that a method adds up, to which its rounding errors are relative; 0 where nothing cancels."""
    if method == "gradient_sum":
        return channels * float(maps["gradient", layer].max())
    return float(maps["normgrad", layer].max()) if method in ("linear_approx", "grad_cam") else 0.0


def require(holds: bool, what: str) -> None:
    if not holds:
        raise gl.GradlightError(what)


def passed(row: list[str] | None) -> bool:
    return row is not None and row[-1].startswith("passes")


def read_rows(path: Path) -> dict[str, list[str]]:
    """Read a table that this program has written; none is an empty one."""
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
and batch norms the statistics of the photo. So this table tells that maps are computed rightly, not that they are good.
Passes: every named method that applies gives finite maps that vary
over the image, on the layer's own grid, the same in a batch of two as alone, and the network is afterwards bit for bit
as it was. `cam` is asked where it is defined (before the mean that one linear layer reads), `normgrad_real` where the
stage is itself a layer with weights. Flat by construction: before a mean over the image `gradient` and `gradient_sum`
are one number everywhere (and `normgrad`, where a norm has made all activations equally long), and the ReLU of
`grad_cam` may leave nothing of an untrained network. Nothing but rounding: before a LayerNorm of equal scales the
gradients of one place add up to 0, and so do gradients times activations. maps: how many pairs of method and layer.
find s, explain s: seconds to find the layers (once), and for all maps of one image.
"""


if __name__ == "__main__":
    main()
