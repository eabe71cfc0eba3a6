"""Weight randomisation: do maps change as the network forgets what it has learned? (Paper, section 4.5, figure 8.)

Every module with weights is initialised anew: from the last to the first, each on top of those before it
("cascading"), or one alone ("independent"). After each step the maps are held against those of the trained network, of
the same targets, by Spearman's ρ (Adebayo et al., 2018: with and without the absolute value of the maps). Where it is
known what a sample shows, the focus tells how much of each map still lies on it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from tqdm.auto import tqdm

from ..errors import GradlightError, nearest
from ..explainers.combination import upsample
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..models.base import Explainable
from .focus import focuses
from .ledger import Ledger
from .means import Share, mean
from .pinning import Pinned, twin
from .randomisation_report import Glimpse, curves, strip, tables
from .randomising import randomise, weighted_modules
from .ranks import map_correlation
from .result import Result
from .samples import Sample

__all__ = ["MODES", "weight_randomisation"]

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
