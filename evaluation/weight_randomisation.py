"""Weight randomisation: do maps change as the network forgets what it has learned? (Paper, section 4.5, figure 8.)

Every module with weights is initialised anew: from the last to the first, each on top of those before it
("cascading"), or one alone ("independent"). After each step the maps are held against those of the trained network, of
the same targets, by Spearman's ρ (Adebayo et al., 2018: with and without the absolute value of the maps). Where it is
known what a sample shows, the focus tells how much of each map still lies on it.

How weight randomisation is told: a row for each method and layer, curves, and the strip of maps of figure 8.

Give trained modules random weights again, one at a time, in an order that the network's own run tells.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from tqdm.auto import tqdm

from ..errors import GradlightError, nearest
from ..explainers.combination import are_flat, upsample
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.plotting import draw_map, draw_photo, picture_of
from ..models.base import Explainable
from ..models.objective import Objective, Targets
from ..models.preserve import preserved, trainable
from .ledger import Ledger
from .metrics import Share, focuses, map_correlation, mean
from .pinning import Pinned, twin
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["MODES", "Glimpse", "curves", "randomise", "strip", "tables", "weight_randomisation", "weighted_modules"]

_PANEL = 1.5


@dataclass(frozen=True)
class Glimpse:
    """The maps of one photo at one step, by variant."""

    title: str
    maps: dict[str, SaliencyMaps]


def tables(figures: dict[str, Any]) -> list[Table]:
    """Tell every mode in a table, and the focus where there is any."""
    telling = {"cascading": _cascading, "independent": _independent}
    made = [telling[mode](found, figures["images"]) for mode, found in figures["modes"].items()]
    known = any(rows[0] is not None for _, rows in _rows(figures["focus"]))
    return [*made, _focus(figures)] if known and "cascading" in figures["modes"] else made


def _rows(found: dict[str, Any]) -> Iterator[tuple[list[str], list[Share]]]:
    """Give the name of each row, and its figures after each step."""
    for variant, methods in found.items():
        for method, layers in methods.items():
            for layer, values in layers.items():
                yield [method, layer, variant], values


def _turns(steps: Sequence[str]) -> dict[str, int]:
    """Choose the steps of a cascade that a table tells."""
    last = len(steps) - 1
    return {"first module": 0, "1/4": round(last / 4), "1/2": round(last / 2), "3/4": round(3 * last / 4), "all": last}


def _cascading(found: dict[str, Any], images: int) -> Table:
    shown = _turns(found["steps"])
    rows = [
        [*name, *(rho[at] for at in shown.values()), rho_abs[-1]]
        for (name, rho), (_, rho_abs) in zip(_rows(found["rho"]), _rows(found["rho_abs"]), strict=True)
    ]
    columns = ["method", "layer", "step", *shown, "all, absolute maps"]
    return Table("Cascading randomisation: ρ with the trained network's map", columns, rows, _notes(found, images))


def _focus(figures: dict[str, Any]) -> Table:
    found = figures["modes"]["cascading"]
    shown = _turns(found["steps"])
    rows = [
        [*name, trained[0], *(values[at] for at in shown.values())]
        for (name, trained), (_, values) in zip(_rows(figures["focus"]), _rows(found["focus"]), strict=True)
    ]
    note = "The share of the map on the target's object, over the object's share of the photo; 1 is chance."
    return Table("Cascading randomisation: focus", ["method", "layer", "step", "trained", *shown], rows, [note])


def _independent(found: dict[str, Any], images: int) -> Table:
    rows: list[list[Cell]] = []
    for (name, rho), (_, rho_abs) in zip(_rows(found["rho"]), _rows(found["rho_abs"]), strict=True):
        known = [(value, step) for value, step in zip(rho, found["steps"], strict=True) if value is not None]
        least, module = min(known, default=(None, None))
        rows.append([*name, mean(rho), mean(rho_abs), least, module])
    columns = ["method", "layer", "step", "mean over modules", "absolute maps", "least", "of module"]
    return Table("Independent randomisation: ρ with the trained network's map", columns, rows, _notes(found, images))


def _notes(found: dict[str, Any], images: int) -> list[str]:
    turns = found["steps"]
    text = f"{len(turns)} modules, from {turns[0]} to {turns[-1]}; mean over {images} images."
    left = f" {found['left_out']} ρ of flat maps are left out." if found["left_out"] else ""
    return [text + left]


def curves(figures: dict[str, Any], mode: str) -> Figure:
    """Draw ρ after each step: a panel for each layer, a line for each method, dashed with the meta step."""
    found, layers = figures["modes"][mode], figures["layers"]
    drawing = Figure(figsize=(3.4 * len(layers) + 1.6, 3.4), layout="constrained")
    panels = drawing.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    for panel, layer in zip(panels, layers, strict=True):
        for variant, methods in found["rho"].items():
            for colour, (method, rho) in enumerate(methods.items()):
                if layer in rho:
                    values = np.array([np.nan if value is None else value for value in rho[layer]])
                    label = method if variant == "plain" else f"{method}, {variant}"
                    panel.plot(values, "-" if variant == "plain" else "--", color=f"C{colour}", label=label)
        panel.set_title(layer, fontsize=9)
        panel.set_xlabel(f"modules, from {found['steps'][0]}", fontsize=8)
        panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    panels[0].set_ylabel("Spearman's ρ")
    panels[0].set_ylim(-1.05, 1.05)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, fontsize=8, loc="outside right upper")
    return drawing


def strip(glimpses: Sequence[Glimpse]) -> Figure:
    """Draw the maps of one photo step by step: a row for each method and variant (paper, figures 8 and 13).

    Each method at its deepest layer, but above those where its map of the trained network is the same everywhere.
    """
    first = glimpses[0].maps["plain"]
    rows = [(method, _place(first, method), variant) for variant in glimpses[0].maps for method in first.methods]
    drawing = Figure(figsize=(_PANEL * (len(glimpses) + 1), (_PANEL + 0.3) * len(rows)), layout="constrained")
    panels = drawing.subplots(len(rows), len(glimpses) + 1, squeeze=False)
    photo = first.images[0]
    picture = picture_of(photo)
    for line, (method, layer, variant) in zip(panels, rows, strict=True):
        draw_photo(line[0], photo, picture)
        where = layer if variant == "plain" else f"{layer}, {variant}"
        line[0].set_title(f"{method}\n{where}", fontsize=7)
        for panel, glimpse in zip(line[1:], glimpses, strict=True):
            values = glimpse.maps[variant].upsampled(method, layer)[0, 0].double().cpu().numpy()
            draw_photo(panel, photo, picture)
            draw_map(panel, photo, values, bool((values < 0).any()), 0.65)
            panel.set_title(glimpse.title, fontsize=7)
    return drawing


def _place(maps: SaliencyMaps, method: str) -> str:
    """Find the deepest layer at which a method's map of one photo is not the same everywhere."""
    deepest_first = [layer for name, layer in maps.pairs if name == method][::-1]
    return next((layer for layer in deepest_first if not are_flat(maps[method, layer]).any()), deepest_first[0])


def weighted_modules(objective: Objective, pixels: Tensor, targets: Targets) -> list[str]:
    """Name the modules with weights that a score of pixels [1,3,H,W] depends on, in the order in which they run.

    A module counts by its own parameters or running statistics, not by those of the modules inside it; "" is the
    network itself. One that never runs as a module comes just before the one around it.
    """
    network = objective.network
    ran: dict[str, int] = {}
    with ExitStack() as undo:
        undo.enter_context(preserved(network))
        for name, module in network.named_modules():
            undo.callback(module.register_forward_hook(partial(_note, ran, name)).remove)
        parameters = undo.enter_context(trainable(network))
        score = objective.scores(objective.outputs(pixels.detach().clone()), targets).sum()
        gradients = torch.autograd.grad(score, parameters, allow_unused=True)
    used = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    found = [name for name, module in network.named_modules() if _matters(module, used, name in ran)]
    return sorted(found, key=lambda name: _module_at(ran, name))


def randomise(module: nn.Module, name: str, seed: int) -> None:
    """Initialise a module's own weights anew: as its kind does it, running statistics included.

    A parameter whose module knows no initialisation of its own is drawn from a normal distribution with the mean and
    the deviation that it has. name and seed: decide the random numbers, wherever else the module's turn may be; nobody
    else's random numbers are touched.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big"))
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            return
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.copy_(torch.randn_like(parameter) * parameter.std(correction=0) + parameter.mean())


def _note(ran: dict[str, int], name: str, module: nn.Module, args: Any, output: Any) -> None:
    ran.setdefault(name, len(ran))


def _matters(module: nn.Module, used: set[int], ran: bool) -> bool:
    if any(id(parameter) in used for parameter in module.parameters(recurse=False)):
        return True
    return ran and isinstance(module, _NormBase) and module.running_mean is not None


def _module_at(ran: dict[str, int], name: str) -> float:
    if name in ran:
        return ran[name]
    # The whole network may be run by its parts alone, as a captioner's is; then what has no run comes last.
    return _module_at(ran, name.rpartition(".")[0]) - 0.5 if name else float(len(ran))


MODES = ("cascading", "independent")

_KINDS = ("rho", "rho_abs", "focus")
_TOGETHER = 8
_GLIMPSES = 9


@dataclass(frozen=True)
class _Asked:
    """What is asked of every network; variants: the meta step, if any, by name."""

    samples: Sequence[Sample]
    methods: Sequence[str]
    layers: str | Sequence[str]
    variants: dict[str, Meta | None]

    def maps(self, model: Explainable, start: int, stop: int, target: Any) -> dict[str, SaliencyMaps]:
        """Explain some samples in each variant."""
        images = [sample.image for sample in self.samples[start:stop]]
        return {
            name: explain(model, images, target, methods=self.methods, layers=self.layers, meta=meta)
            for name, meta in self.variants.items()
        }


def weight_randomisation(
    model: Explainable,
    samples: Sequence[Sample],
    methods: Sequence[str],
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    target: Any = None,
    meta: Meta | None = None,
    modes: Sequence[str] = MODES,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Randomise a network's modules and measure what is left of its maps; the model itself is never touched.

    target: one for all samples; None: what the trained network says of each. meta: explain with this inner step too.
    figures["modes"][mode]: "steps", the modules in the order of their turns, then "rho", "rho_abs" and "focus": "plain"
    or "meta" → method → layer → after each step the mean over the samples; "left_out": how many ρ there were none of
    (flat maps). figures["focus"]: of the trained network, in the same way. Raises GradlightError for no sample and for
    an unknown mode.
    """
    _check(samples, modes)
    asked = _Asked(samples, methods, layers, {"plain": None} if meta is None else {"plain": None, "meta": meta})
    trained = cache(lambda start: asked.maps(model, start, start + _TOGETHER, target))
    first = trained(0)["plain"]
    fixed = Pinned(model).objective(first.targets[:1])
    steps = weighted_modules(fixed, model.pixels([samples[0].image]), first.targets[:1])[::-1]
    starts = range(0, len(samples), _TOGETHER)
    whole = [ledger.once(f"trained {start}", partial(_left, asked, None, start, trained)) for start in starts]
    found: dict[str, Any] = {}
    for mode in modes:
        after: list[list[Any]] = []
        with tqdm(total=len(steps) * len(samples), unit="image", desc=mode, disable=not progress) as bar:
            for name, changed in _changes(model, steps, mode, seed):
                after.append([])
                for start in starts:
                    key = f"{mode} {len(after)} {name} {start}"
                    after[-1].append(ledger.once(key, partial(_left, asked, changed, start, trained)))
                    bar.update(min(_TOGETHER, len(samples) - start))
        found[mode] = {"steps": [name or "(the network)" for name in steps], **_means(after)}
    figures = {
        "images": len(samples),
        "seed": seed,
        "meta": None if meta is None else meta.describe(),
        "layers": first.layers,
        "focus": _means([whole])["focus"],
        "modes": found,
    }
    pictures: dict[str, Callable[[], Figure]] = {f"{mode}_curves": partial(curves, figures, mode) for mode in modes}
    pictures["strip"] = lambda: strip(list(_glimpses(model, asked, steps, seed, target)))
    return Result("weight_randomisation", figures, tables(figures), pictures)


def _check(samples: Sequence[Sample], modes: Sequence[str]) -> None:
    if not samples:
        raise GradlightError("There is no sample to explain: give at least one.")
    for mode in modes:
        if mode not in MODES:
            raise GradlightError(
                f"Weights are randomised {' or '.join(map(repr, MODES))}, not {mode!r}.{nearest(str(mode), MODES)}"
            )


def _changes(model: Explainable, steps: Sequence[str], mode: str, seed: int) -> Iterator[tuple[str, Explainable]]:
    """Give the network after each step: always the same copy, so each is used before the next is asked for."""
    changed = twin(model)
    for name in steps:
        module = changed.network.get_submodule(name)
        before = copy.deepcopy(module.state_dict()) if mode == "independent" else None
        randomise(module, name, seed)
        yield name, Pinned(changed)
        if before is not None:
            module.load_state_dict(before)


def _left(
    asked: _Asked, changed: Explainable | None, start: int, trained: Callable[[int], dict[str, SaliencyMaps]]
) -> dict[str, Any]:
    """Measure what is left of the trained network's maps (None: all): variant → method → layer → kind → [sample]."""
    before = trained(start)
    after = before if changed is None else asked.maps(changed, start, start + _TOGETHER, before["plain"].targets)
    samples = asked.samples[start : start + _TOGETHER]
    return {variant: _compared(maps, after[variant], samples) for variant, maps in before.items()}


def _compared(before: SaliencyMaps, after: SaliencyMaps, samples: Sequence[Sample]) -> dict[str, Any]:
    found: dict[str, Any] = {method: {} for method in before.methods}
    for method, layer in before.pairs:
        a, b = before[method, layer], after[method, layer]
        rho = map_correlation(a, b, before.size)
        a, b = (upsample(maps.double(), before.size).abs() for maps in (a, b))
        found[method][layer] = {
            "rho": rho.flatten().tolist(),
            "rho_abs": torch.where(rho.isnan(), torch.nan, map_correlation(a, b, before.size)).flatten().tolist(),
            "focus": focuses(after, method, layer, samples),
        }
    return found


def _means(after: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Average over the samples; after: for each step, what each batch gave."""
    found: dict[str, Any] = {kind: {} for kind in _KINDS}
    missing = 0
    for variant, methods in after[0][0].items():
        for kind in _KINDS:
            found[kind][variant] = {method: {layer: [] for layer in places} for method, places in methods.items()}
        for method, layer in ((method, layer) for method, places in methods.items() for layer in places):
            for parts in after:
                for kind in _KINDS:
                    values: list[Share] = [each for part in parts for each in part[variant][method][layer][kind]]
                    missing += values.count(None) if kind == "rho" else 0
                    found[kind][variant][method][layer].append(mean(values))
    return {**found, "left_out": missing}


def _glimpses(model: Explainable, asked: _Asked, steps: Sequence[str], seed: int, target: Any) -> Iterator[Glimpse]:
    """Give the maps of the first sample, of the trained network and of some steps of the cascade."""
    trained = asked.maps(model, 0, 1, target)
    yield Glimpse("trained", trained)
    shown = set(np.linspace(0, len(steps) - 1, min(_GLIMPSES, len(steps))).round().astype(int).tolist())
    for number, (name, changed) in enumerate(_changes(model, steps, "cascading", seed)):
        if number in shown:
            yield Glimpse(f"to {name}", asked.maps(changed, 0, 1, trained["plain"].targets))
