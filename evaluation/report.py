"""The report: all experiments one after the other, in a folder that people read and programs too.

What the paper concludes, held against the figures of one's own network and data.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..errors import GradlightError
from ..explainers.combination import is_combination
from ..files import format_path, replace_file
from .ledger import Ledger
from .metrics import mean
from .tables import Result, Table, as_json, markdown

__all__ = ["ALIKE", "Conclusion", "Experiment", "conclusions", "paper"]

ALIKE = 0.9
"""The ρ from which two maps count as the same."""

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class Conclusion:
    """A claim of the paper; holds: on this data, None where it was not measured; figures: that say so, in words."""

    claim: str
    holds: bool | None
    figures: str


def conclusions(results: Sequence[Result]) -> list[Conclusion]:
    """Say of each of the paper's five conclusions whether it holds in these results, and by which figures.

    A claim about many methods and layers holds if it does on average and for more than half of them.
    """
    figures = {result.name: result.figures for result in results}
    return [Conclusion(claim, *judge(figures)) for claim, judge in _CLAIMS.items()]


Verdict = tuple[bool | None, str]

_MISSING: Verdict = (None, "not measured")


def _grad_cam(figures: Mapping[str, Figures]) -> Verdict:
    """Hold the last layer's accuracy against every other's."""
    found = {layer: value for layer, value in _accuracies(figures, "grad_cam").items() if not is_combination(layer)}
    if len(found) < 2:
        return _MISSING
    *others, last = found.values()
    told = ", ".join(f"{layer} {value:.1%}" for layer, value in found.items())
    return last > max(others), f"pointing game of grad_cam: {told}"


def _combination(figures: Mapping[str, Figures]) -> Verdict:
    """Hold the best weighted combination against the best layer."""
    found = _accuracies(figures, "linear_approx")
    # Equal weights are no weighting: they are what the paper's are held against.
    joined = {layer: value for layer, value in found.items() if is_combination(layer) and "uniform" not in layer}
    single = {layer: value for layer, value in found.items() if not is_combination(layer)}
    if not joined or not single:
        return _MISSING
    best, alone = max(joined, key=joined.__getitem__), max(single, key=single.__getitem__)
    told = f"pointing game of linear_approx: {best} {joined[best]:.1%}, best single layer {alone} {single[alone]:.1%}"
    pairs = figures.get("pointing_game", {}).get("pairs", {}).get("all")
    return joined[best] > single[alone], told + (_chance(joined[best], single[alone], pairs) if pairs else "")


def _chance(one: float, other: float, pairs: int) -> str:
    """Say how far two accuracies are apart, and how far chance may bring them."""
    error = math.sqrt(sum(value * (1 - value) / pairs for value in (one, other)))
    return f"; {100 * (one - other):+.1f} points, where two standard errors of {pairs} pairs are {200 * error:.1f}"


def _accuracies(figures: Mapping[str, Figures], method: str) -> dict[str, float]:
    """Give a method's accuracy in the pointing game at each layer and combination, shallowest first."""
    played = {
        player: subsets["all"] for player, subsets in figures.get("pointing_game", {}).get("accuracy", {}).items()
    }
    found = {**played, **figures.get("layer_weights", {}).get("pointing", {})}
    named = {player.partition(" / ")[2]: value for player, value in found.items() if player.startswith(f"{method} / ")}
    return {layer: value for layer, value in named.items() if value is not None}


def _meta(figures: Mapping[str, Figures]) -> Verdict:
    rows = figures.get("class_sensitivity", {}).get("correlations", [])
    rates = list(dict.fromkeys(row["lr"] for row in rows if row["lr"]))
    if not rates:
        return _MISSING
    plain, stepped = (
        {(row["method"], row["layer"]): row["mean_absolute"] for row in rows if row["lr"] == rate}
        for rate in (0, rates[0])
    )
    return _lowered(plain, stepped, f"mean |ρ| of the most and least probable class, lr {rates[0]:g}")


def _identity(figures: Mapping[str, Figures]) -> Verdict:
    found = figures.get("identity_trick", {}).get("correlations", {})
    known = {layer: row["mean"] for layer, row in found.items() if row["mean"] is not None}
    if not known:
        return _MISSING
    told = ", ".join(f"{layer} {rho:.3f}" for layer, rho in known.items())
    return min(known.values()) >= ALIKE, f"mean ρ of real and identity: {told}"


def _focus(figures: Mapping[str, Figures]) -> Verdict:
    """Compare the focus on the object, or, where it is not known what is shown, what is left of the trained maps."""
    found = figures.get("weight_randomisation", {})
    cascade = found.get("modes", {}).get("cascading")
    if cascade is None:
        return _MISSING
    trained, left = _ends(found["focus"]["plain"]), _ends(cascade["focus"]["plain"])
    similar = mean(_ends(cascade["rho"]["plain"]).values())
    if similar is None:
        return _MISSING
    rest = f"mean ρ with the trained network's maps at the end {similar:.3f}"
    if mean(trained.values()) is None:
        return similar < 1 / 2, f"{rest} (focus was not measured; below 0.5 counts as lost)"
    holds, told = _lowered(trained, left, "mean focus on the object, before and after (1 is chance)")
    return holds, f"{told}; {rest}"


def _ends(found: Mapping[str, Mapping[str, Sequence[float | None]]]) -> dict[tuple[str, str], float | None]:
    return {(method, layer): values[-1] for method, layers in found.items() for layer, values in layers.items()}


def _lowered(
    before: Mapping[tuple[str, str], float | None], after: Mapping[tuple[str, str], float | None], what: str
) -> Verdict:
    """Tell whether figures have fallen, on average and for more than half of the methods and layers."""
    pairs = [(old, new) for key, old in before.items() if old is not None and (new := after.get(key)) is not None]
    if not pairs:
        return _MISSING
    old, new = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    lower = sum(b < a for a, b in pairs)
    told = f"{what}: {old:.3f} → {new:.3f}, lower for {lower} of {len(pairs)} methods and layers"
    return new < old and 2 * lower > len(pairs), told


_CLAIMS: dict[str, Callable[[Mapping[str, Figures]], Verdict]] = {
    "Grad-CAM degrades away from the last layer.": _grad_cam,
    "For linear approximation, a weighted combination of layers beats the best single layer.": _combination,
    "Meta-saliency lowers |ρ| between the most and the least probable class.": _meta,
    f"The virtual identity's maps are those of the real convolution (ρ ≥ {ALIKE}).": _identity,
    "Maps lose their focus as weights are randomised.": _focus,
}


_HOLDS = {True: "holds", False: "does not hold", None: "not measured"}
_DPI = 110


@dataclass(frozen=True)
class Experiment:
    """One experiment of a report: its name, how it runs, and the settings that decide its figures, in JSON types."""

    name: str
    run: Callable[[Ledger], Result]
    about: Mapping[str, Any] = field(default_factory=dict)


def paper(
    experiments: Sequence[Experiment],
    folder: Path,
    *,
    about: Mapping[str, Any],
    tell: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Run experiments in the given order, and write their report into a folder.

    about: what all of them share (model, checksum of its weights, data, seed), in JSON types. The folder, made if it is
    missing, gets README.md with every table and the paper's conclusions, figures/*.png, results.json, and a ledger of
    each experiment in ledgers/. It is written anew after each experiment; run again with the same settings, a report
    that was stopped goes on, and its numbers are those of one that was not. tell: is handed a line when an experiment
    begins. Raises GradlightError for a folder with other things in it, and for one begun with other settings.
    """
    _check(experiments)
    _prepare(folder)
    results: list[Result] = []
    for experiment in experiments:
        tell(f"{len(results) + 1} of {len(experiments)}: {experiment.name}")
        settings = {"experiment": experiment.name, **about, **experiment.about}
        result = experiment.run(Ledger(folder / "ledgers" / f"{experiment.name}.jsonl", settings))
        results.append(result)
        for name, draw in result.pictures.items():
            replace_file(_picture_path(folder, experiment.name, name), _png(draw()))
        _write(folder, list(zip(experiments, results, strict=False)), about)
    return results


def _check(experiments: Sequence[Experiment]) -> None:
    names = [experiment.name for experiment in experiments]
    if not names or len(set(names)) < len(names):
        raise GradlightError(f"A report has one experiment or more, each once; asked: {', '.join(names) or 'none'}.")


def _prepare(folder: Path) -> None:
    if (folder / "README.md").exists() and not (folder / "ledgers").is_dir():
        raise GradlightError(
            f"{format_path(folder)}: has a README.md that is no report's, and would lose it. Name another folder."
        )
    try:
        for place in (folder, folder / "ledgers", folder / "figures"):
            place.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be made: {error.strerror}. Check the path.") from error


def _picture_path(folder: Path, experiment: str, name: str) -> Path:
    return folder / "figures" / (f"{name}.png" if name.startswith(experiment) else f"{experiment}_{name}.png")


def _png(drawing: Figure) -> bytes:
    stream = io.BytesIO()
    # No software version in the file: the same figures make the same bytes.
    drawing.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def _write(folder: Path, done: Sequence[tuple[Experiment, Result]], about: Mapping[str, Any]) -> None:
    found = conclusions([result for _, result in done])
    told = {
        "about": dict(about),
        "conclusions": [asdict(conclusion) for conclusion in found],
        "experiments": {
            experiment.name: {
                "about": dict(experiment.about),
                "figures": result.figures,
                "tables": [as_json(table) for table in result.tables],
            }
            for experiment, result in done
        },
    }
    replace_file(folder / "results.json", json.dumps(told, indent=1, ensure_ascii=False).encode() + b"\n")
    replace_file(folder / "README.md", _readme(folder, done, about, found).encode())


def _readme(
    folder: Path, done: Sequence[tuple[Experiment, Result]], about: Mapping[str, Any], found: Sequence[Conclusion]
) -> str:
    settings = ", ".join(f"{name}: {_plain(value)}" for name, value in about.items())
    parts = ["# The paper's experiments\n", f"{settings}.\n"]
    if any(conclusion.holds is not None for conclusion in found):
        parts += ["## Conclusions\n", markdown(_verdicts(found))]
    for experiment, result in done:
        parts.append(f"## {experiment.name.replace('_', ' ').capitalize()}\n")
        if experiment.about:
            parts.append(", ".join(f"{name}: {_plain(value)}" for name, value in experiment.about.items()) + ".\n")
        parts += [markdown(table) for table in result.tables]
        for name in result.pictures:
            path = _picture_path(folder, experiment.name, name).relative_to(folder).as_posix()
            parts.append(f"![{name.replace('_', ' ')}]({path})\n")
    return "\n".join(parts)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _verdicts(found: Sequence[Conclusion]) -> Table:
    rows = [[each.claim, _HOLDS[each.holds], each.figures] for each in found]
    return Table("What the paper concludes, on this data", ["claim", "on this data", "figures"], rows)
