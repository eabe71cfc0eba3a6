"""Weight randomisation: do maps change when the network's weights become random (paper, section 4.5, figure 8)?

Every module with weights is initialised again: from the last to the first, each on top of those before it
("cascading"), or one alone ("independent"). After each step the maps are compared with those of the trained network,
for the same targets, by Spearman's ρ (Adebayo et al., 2018: with and without the absolute value of the maps). Where the
objects of a sample are known, the focus measures how much of each map still lies on them.
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
from .fixed_targets import FixedTargetModel, copy_model
from .ledger import Ledger
from .metrics import OptionalFloat, focus_of_samples, map_correlation, mean
from .samples import Sample
from .tables import Cell, Result, Table

__all__ = ["MODES", "StepMaps", "draw_strip", "randomise", "weight_randomisation", "weighted_modules"]

MODES = ("cascading", "independent")

_KINDS = ("rho", "rho_abs", "focus")
_BATCH = 8  # samples that are explained together
_STRIP_STEPS = 9


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
    """Randomise a network's modules and compare its maps with those of the trained network; the model is not changed.

    Args:
        model: The model.
        samples: The photos.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        ledger: Keeps the figures of each step and batch.
        target: One for all samples; None for the trained network's own answer for each.
        meta: Explain with this inner step too.
        modes: Modes of MODES.
        seed: Of the random weights.
        progress: Show a progress bar.

    Returns:
        figures["modes"][mode]: "steps", the modules in the order in which they are randomised, then "rho", "rho_abs"
        and "focus": "plain" or "meta" → method → layer → after each step the mean over the samples; "left_out": the
        number of undefined ρ (flat maps). figures["focus"]: of the trained network, in the same form.

    Raises:
        GradlightError: There is no sample, or a mode is unknown.
    """
    _check_arguments(samples, modes)
    variants: dict[str, Meta | None] = {"plain": None} if meta is None else {"plain": None, "meta": meta}
    explainer = _VariantExplainer(samples, methods, layers, variants)
    trained = cache(lambda start: explainer.maps(model, start, start + _BATCH, target))
    first = trained(0)["plain"]
    objective = FixedTargetModel(model).objective(first.targets[:1])
    steps = weighted_modules(objective, model.pixels([samples[0].image]), first.targets[:1])[::-1]
    starts = range(0, len(samples), _BATCH)
    trained_figures = [
        ledger.once(f"trained {start}", partial(_compare_batch, explainer, None, start, trained)) for start in starts
    ]
    mode_figures: dict[str, Any] = {}
    for mode in modes:
        step_figures: list[list[Any]] = []
        with tqdm(total=len(steps) * len(samples), unit="image", desc=mode, disable=not progress) as bar:
            for name, changed in _randomised_models(model, steps, mode, seed):
                step_figures.append([])
                for start in starts:
                    key = f"{mode} {len(step_figures)} {name} {start}"
                    compare = partial(_compare_batch, explainer, changed, start, trained)
                    step_figures[-1].append(ledger.once(key, compare))
                    bar.update(min(_BATCH, len(samples) - start))
        mode_figures[mode] = {"steps": [name or "(the network)" for name in steps], **_means(step_figures)}
    figures = {
        "images": len(samples),
        "seed": seed,
        "meta": None if meta is None else meta.describe(),
        "layers": first.layers,
        "focus": _means([trained_figures])["focus"],
        "modes": mode_figures,
    }
    pictures: dict[str, Callable[[], Figure]] = {
        f"{mode}_curves": partial(_draw_curves, figures, mode) for mode in modes
    }
    pictures["strip"] = lambda: draw_strip(list(_strip_maps(model, explainer, steps, seed, target)))
    return Result("weight_randomisation", figures, _tables(figures), pictures)


def _check_arguments(samples: Sequence[Sample], modes: Sequence[str]) -> None:
    if not samples:
        raise GradlightError("There is no sample to explain: give at least one.")
    for mode in modes:
        if mode not in MODES:
            raise GradlightError(
                f"Weights are randomised {' or '.join(map(repr, MODES))}, not {mode!r}.{nearest(str(mode), MODES)}"
            )


@dataclass(frozen=True)
class _VariantExplainer:
    """Explains the samples in each variant: without an inner step, and with one; variants: meta step by name."""

    samples: Sequence[Sample]
    methods: Sequence[str]
    layers: str | Sequence[str]
    variants: dict[str, Meta | None]

    def maps(self, model: Explainable, start: int, stop: int, target: Any) -> dict[str, SaliencyMaps]:
        """Explain the samples from start to stop in each variant."""
        images = [sample.image for sample in self.samples[start:stop]]
        return {
            name: explain(model, images, target, methods=self.methods, layers=self.layers, meta=meta)
            for name, meta in self.variants.items()
        }


def _compare_batch(
    explainer: _VariantExplainer,
    changed: Explainable | None,
    start: int,
    trained: Callable[[int], dict[str, SaliencyMaps]],
) -> dict[str, Any]:
    """Compare a batch with the trained network's maps (changed=None: with themselves).

    Returns variant → method → layer → kind → [sample].
    """
    before = trained(start)
    after = before if changed is None else explainer.maps(changed, start, start + _BATCH, before["plain"].targets)
    samples = explainer.samples[start : start + _BATCH]
    return {variant: _compare_maps(maps, after[variant], samples) for variant, maps in before.items()}


def _compare_maps(before: SaliencyMaps, after: SaliencyMaps, samples: Sequence[Sample]) -> dict[str, Any]:
    figures: dict[str, Any] = {method: {} for method in before.methods}
    for method, layer in before.pairs:
        a, b = before[method, layer], after[method, layer]
        rho = map_correlation(a, b, before.size)
        a, b = (upsample(maps.double(), before.size).abs() for maps in (a, b))
        figures[method][layer] = {
            "rho": rho.flatten().tolist(),
            "rho_abs": torch.where(rho.isnan(), torch.nan, map_correlation(a, b, before.size)).flatten().tolist(),
            "focus": focus_of_samples(after, method, layer, samples),
        }
    return figures


def _means(step_figures: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Average over the samples; step_figures: for each step, the figures of each batch."""
    means: dict[str, Any] = {kind: {} for kind in _KINDS}
    undefined = 0
    for variant, methods in step_figures[0][0].items():
        for kind in _KINDS:
            means[kind][variant] = {method: {layer: [] for layer in layers} for method, layers in methods.items()}
        for method, layer in ((method, layer) for method, layers in methods.items() for layer in layers):
            for batches in step_figures:
                for kind in _KINDS:
                    values: list[OptionalFloat] = [
                        value for batch in batches for value in batch[variant][method][layer][kind]
                    ]
                    undefined += values.count(None) if kind == "rho" else 0
                    means[kind][variant][method][layer].append(mean(values))
    return {**means, "left_out": undefined}


# ---------------------------------------------------------------------------------------------------------------------
# Random weights, module by module


def weighted_modules(objective: Objective, pixels: Tensor, targets: Targets) -> list[str]:
    """Find the modules with weights that a score depends on.

    A module counts by its own parameters or running statistics, not by those of the modules inside it.

    Args:
        objective: Gives the score.
        pixels: [1,3,H,W].
        targets: The targets of the image.

    Returns:
        Module names in the order in which the modules run; "" is the network itself. A module that never runs as a
        module comes just before the one around it.
    """
    network = objective.network
    run_order: dict[str, int] = {}
    with ExitStack() as stack:
        stack.enter_context(preserved(network))
        for name, module in network.named_modules():
            stack.callback(module.register_forward_hook(partial(_record_run, run_order, name)).remove)
        parameters = stack.enter_context(trainable(network))
        score = objective.scores(objective.outputs(pixels.detach().clone()), targets).sum()
        gradients = torch.autograd.grad(score, parameters, allow_unused=True)
    used = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    names = [name for name, module in network.named_modules() if _has_used_weights(module, used, name in run_order)]
    return sorted(names, key=lambda name: _position(run_order, name))


def randomise(module: nn.Module, name: str, seed: int) -> None:
    """Initialise a module's own weights again, as its kind does it, running statistics included.

    A parameter whose module has no initialisation of its own is drawn from a normal distribution with the mean and the
    deviation that it has. The global random state does not change.

    Args:
        module: The module; changed in place.
        name: Its name; with the seed it decides the random numbers, independent of the module's turn.
        seed: The seed.

    Example:
        >>> layers = [torch.nn.Linear(2, 2) for _ in range(2)]
        >>> for layer in layers:
        ...     randomise(layer, "fc", seed=0)
        >>> torch.equal(layers[0].weight, layers[1].weight)
        True
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


def _record_run(run_order: dict[str, int], name: str, module: nn.Module, args: Any, output: Any) -> None:
    run_order.setdefault(name, len(run_order))


def _has_used_weights(module: nn.Module, used: set[int], runs: bool) -> bool:
    """Tell whether the score depends on a module's own parameters (by id) or running statistics."""
    if any(id(parameter) in used for parameter in module.parameters(recurse=False)):
        return True
    return runs and isinstance(module, _NormBase) and module.running_mean is not None


def _position(run_order: dict[str, int], name: str) -> float:
    """Give a module's position in the order of runs; that of the module around it less 0.5 if it never runs."""
    if name in run_order:
        return run_order[name]
    # A captioner's network is run by its parts alone and never as a whole; then a module without a run comes last.
    return _position(run_order, name.rpartition(".")[0]) - 0.5 if name else float(len(run_order))


def _randomised_models(
    model: Explainable, steps: Sequence[str], mode: str, seed: int
) -> Iterator[tuple[str, Explainable]]:
    """Give the model after each step; it is always the same copy, so use it before the next step."""
    changed = copy_model(model)
    for name in steps:
        module = changed.network.get_submodule(name)
        before = copy.deepcopy(module.state_dict()) if mode == "independent" else None
        randomise(module, name, seed)
        yield name, FixedTargetModel(changed)
        if before is not None:
            module.load_state_dict(before)


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def _tables(figures: dict[str, Any]) -> list[Table]:
    """Make a table for each mode, and one of the focus if it was measured."""
    makers = {"cascading": _cascading_table, "independent": _independent_table}
    tables = [makers[mode](mode_figures, figures["images"]) for mode, mode_figures in figures["modes"].items()]
    has_focus = any(values[0] is not None for _, values in _series(figures["focus"]))
    return [*tables, _focus_table(figures)] if has_focus and "cascading" in figures["modes"] else tables


def _series(figures: dict[str, Any]) -> Iterator[tuple[list[str], list[OptionalFloat]]]:
    """Give (method, layer, variant) and the figures after each step."""
    for variant, methods in figures.items():
        for method, layers in methods.items():
            for layer, values in layers.items():
                yield [method, layer, variant], values


def _shown_steps(steps: Sequence[str]) -> dict[str, int]:
    """Choose the steps of a cascade that a table shows: heading → step."""
    last = len(steps) - 1
    return {"first module": 0, "1/4": round(last / 4), "1/2": round(last / 2), "3/4": round(3 * last / 4), "all": last}


def _cascading_table(figures: dict[str, Any], images: int) -> Table:
    shown = _shown_steps(figures["steps"])
    rows = [
        [*name, *(rho[step] for step in shown.values()), rho_abs[-1]]
        for (name, rho), (_, rho_abs) in zip(_series(figures["rho"]), _series(figures["rho_abs"]), strict=True)
    ]
    columns = ["method", "layer", "step", *shown, "all, absolute maps"]
    title = "Cascading randomisation: ρ with the trained network's map"
    return Table(title, columns, rows, _notes(figures, images))


def _independent_table(figures: dict[str, Any], images: int) -> Table:
    rows: list[list[Cell]] = []
    for (name, rho), (_, rho_abs) in zip(_series(figures["rho"]), _series(figures["rho_abs"]), strict=True):
        defined = [(value, step) for value, step in zip(rho, figures["steps"], strict=True) if value is not None]
        least, module = min(defined, default=(None, None))
        rows.append([*name, mean(rho), mean(rho_abs), least, module])
    columns = ["method", "layer", "step", "mean over modules", "absolute maps", "least", "of module"]
    title = "Independent randomisation: ρ with the trained network's map"
    return Table(title, columns, rows, _notes(figures, images))


def _focus_table(figures: dict[str, Any]) -> Table:
    cascade = figures["modes"]["cascading"]
    shown = _shown_steps(cascade["steps"])
    rows = [
        [*name, trained[0], *(values[step] for step in shown.values())]
        for (name, trained), (_, values) in zip(_series(figures["focus"]), _series(cascade["focus"]), strict=True)
    ]
    note = "The share of the map on the target's object, over the object's share of the photo; 1 is chance."
    return Table("Cascading randomisation: focus", ["method", "layer", "step", "trained", *shown], rows, [note])


def _notes(figures: dict[str, Any], images: int) -> list[str]:
    steps = figures["steps"]
    note = f"{len(steps)} modules, from {steps[0]} to {steps[-1]}; mean over {images} images."
    left_out = f" {figures['left_out']} ρ of flat maps are left out." if figures["left_out"] else ""
    return [note + left_out]


# ---------------------------------------------------------------------------------------------------------------------
# Pictures

_PANEL_INCHES = 1.5


@dataclass(frozen=True)
class StepMaps:
    """The maps of one photo after one step.

    Args:
        title: The step.
        maps: Variant → maps.
    """

    title: str
    maps: dict[str, SaliencyMaps]


def _draw_curves(figures: dict[str, Any], mode: str) -> Figure:
    """Draw ρ after each step: a panel for each layer, a line for each method, dashed with the meta step."""
    mode_figures, layers = figures["modes"][mode], figures["layers"]
    drawing = Figure(figsize=(3.4 * len(layers) + 1.6, 3.4), layout="constrained")
    panels = drawing.subplots(1, len(layers), squeeze=False, sharey=True)[0]
    for panel, layer in zip(panels, layers, strict=True):
        for variant, methods in mode_figures["rho"].items():
            for colour, (method, rho) in enumerate(methods.items()):
                if layer in rho:
                    values = np.array([np.nan if value is None else value for value in rho[layer]])
                    label = method if variant == "plain" else f"{method}, {variant}"
                    panel.plot(values, "-" if variant == "plain" else "--", color=f"C{colour}", label=label)
        panel.set_title(layer, fontsize=9)
        panel.set_xlabel(f"modules, from {mode_figures['steps'][0]}", fontsize=8)
        panel.axhline(0, color="0.8", linewidth=0.8, zorder=0)
    panels[0].set_ylabel("Spearman's ρ")
    panels[0].set_ylim(-1.05, 1.05)
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, fontsize=8, loc="outside right upper")
    return drawing


def draw_strip(step_maps: Sequence[StepMaps]) -> Figure:
    """Draw the maps of one photo step by step: a row for each method and variant (paper, figures 8 and 13).

    Each method is drawn at its deepest layer where its map of the trained network is not constant.

    Args:
        step_maps: The maps, those of the trained network first.

    Returns:
        The drawing.
    """
    first = step_maps[0].maps["plain"]
    rows = [(method, _strip_layer(first, method), variant) for variant in step_maps[0].maps for method in first.methods]
    figsize = (_PANEL_INCHES * (len(step_maps) + 1), (_PANEL_INCHES + 0.3) * len(rows))
    drawing = Figure(figsize=figsize, layout="constrained")
    panels = drawing.subplots(len(rows), len(step_maps) + 1, squeeze=False)
    photo = first.images[0]
    picture = picture_of(photo)
    for row, (method, layer, variant) in zip(panels, rows, strict=True):
        draw_photo(row[0], photo, picture)
        layer_title = layer if variant == "plain" else f"{layer}, {variant}"
        row[0].set_title(f"{method}\n{layer_title}", fontsize=7)
        for panel, step in zip(row[1:], step_maps, strict=True):
            values = step.maps[variant].upsampled(method, layer)[0, 0].double().cpu().numpy()
            draw_photo(panel, photo, picture)
            draw_map(panel, photo, values, bool((values < 0).any()), 0.65)
            panel.set_title(step.title, fontsize=7)
    return drawing


def _strip_layer(maps: SaliencyMaps, method: str) -> str:
    """Find the deepest layer at which a method's map of one photo is not constant."""
    deepest_first = [layer for name, layer in maps.pairs if name == method][::-1]
    return next((layer for layer in deepest_first if not are_flat(maps[method, layer]).any()), deepest_first[0])


def _strip_maps(
    model: Explainable, explainer: _VariantExplainer, steps: Sequence[str], seed: int, target: Any
) -> Iterator[StepMaps]:
    """Explain the first sample with the trained network, and after some steps of the cascade."""
    trained = explainer.maps(model, 0, 1, target)
    yield StepMaps("trained", trained)
    shown = set(np.linspace(0, len(steps) - 1, min(_STRIP_STEPS, len(steps))).round().astype(int).tolist())
    for number, (name, changed) in enumerate(_randomised_models(model, steps, "cascading", seed)):
        if number in shown:
            yield StepMaps(f"to {name}", explainer.maps(changed, 0, 1, trained["plain"].targets))
