"""The report of several experiments: a folder with tables, pictures, figures, and the paper's conclusions tested."""

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

__all__ = ["ALIKE", "Conclusion", "Experiment", "conclusions", "write_report"]

_DPI = 110
_VERDICTS = {True: "holds", False: "does not hold", None: "not measured"}


@dataclass(frozen=True)
class Experiment:
    """One experiment of a report.

    Args:
        name: Its name.
        run: Runs it with a ledger.
        settings: What decides its figures, in JSON types.
    """

    name: str
    run: Callable[[Ledger], Result]
    settings: Mapping[str, Any] = field(default_factory=dict)


def write_report(
    experiments: Sequence[Experiment],
    folder: Path,
    *,
    settings: Mapping[str, Any],
    notify: Callable[[str], None] = lambda line: None,
) -> list[Result]:
    """Run experiments in the given order, and write their report into a folder.

    The folder gets README.md with every table and the paper's conclusions, figures/*.png, results.json, and a ledger of
    each experiment in ledgers/. The report is written again after each experiment. A report that was stopped is resumed
    by a call with the same settings, and then has the numbers of one that was not stopped.

    Args:
        experiments: The experiments, each with another name.
        folder: Created if it is missing; its parent is not.
        settings: What all experiments share (model, checksum of its weights, data, seed), in JSON types.
        notify: Called with a line of text when an experiment begins.

    Returns:
        The results, in the order of the experiments.

    Raises:
        GradlightError: There is no experiment or a name is repeated, the folder has a README.md that is not a report's
            or cannot be created, or the report was begun with other settings.
    """
    _check_names(experiments)
    _prepare_folder(folder)
    results: list[Result] = []
    for experiment in experiments:
        notify(f"{len(results) + 1} of {len(experiments)}: {experiment.name}")
        all_settings = {"experiment": experiment.name, **settings, **experiment.settings}
        result = experiment.run(Ledger(folder / "ledgers" / f"{experiment.name}.jsonl", all_settings))
        results.append(result)
        for name, draw in result.pictures.items():
            replace_file(_picture_path(folder, experiment.name, name), _png(draw()))
        _write(folder, list(zip(experiments, results, strict=False)), settings)
    return results


def _check_names(experiments: Sequence[Experiment]) -> None:
    names = [experiment.name for experiment in experiments]
    if not names or len(set(names)) < len(names):
        raise GradlightError(f"A report has one experiment or more, each once; asked: {', '.join(names) or 'none'}.")


def _prepare_folder(folder: Path) -> None:
    if (folder / "README.md").exists() and not (folder / "ledgers").is_dir():
        raise GradlightError(
            f"{format_path(folder)}: has a README.md that is not a report's and would be overwritten. Name"
            " another folder."
        )
    try:
        for path in (folder, folder / "ledgers", folder / "figures"):
            path.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{format_path(folder)}: cannot be created: {error.strerror}. Check the path.") from error


def _picture_path(folder: Path, experiment: str, name: str) -> Path:
    return folder / "figures" / (f"{name}.png" if name.startswith(experiment) else f"{experiment}_{name}.png")


def _png(drawing: Figure) -> bytes:
    stream = io.BytesIO()
    # No software version in the file: the same figures make the same bytes.
    drawing.savefig(stream, format="png", dpi=_DPI, metadata={"Software": None})
    return stream.getvalue()


def _write(folder: Path, finished: Sequence[tuple[Experiment, Result]], settings: Mapping[str, Any]) -> None:
    """Write results.json and README.md."""
    tested = conclusions([result for _, result in finished])
    document = {
        "about": dict(settings),
        "conclusions": [asdict(conclusion) for conclusion in tested],
        "experiments": {
            experiment.name: {
                "about": dict(experiment.settings),
                "figures": result.figures,
                "tables": [as_json(table) for table in result.tables],
            }
            for experiment, result in finished
        },
    }
    replace_file(folder / "results.json", json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n")
    replace_file(folder / "README.md", _format_readme(folder, finished, settings, tested).encode())


def _format_readme(
    folder: Path,
    finished: Sequence[tuple[Experiment, Result]],
    settings: Mapping[str, Any],
    tested: Sequence[Conclusion],
) -> str:
    sections = ["# The paper's experiments\n", f"{_format_settings(settings)}.\n"]
    if any(conclusion.holds is not None for conclusion in tested):
        sections += ["## Conclusions\n", markdown(_conclusions_table(tested))]
    for experiment, result in finished:
        sections.append(f"## {experiment.name.replace('_', ' ').capitalize()}\n")
        if experiment.settings:
            sections.append(f"{_format_settings(experiment.settings)}.\n")
        sections += [markdown(table) for table in result.tables]
        for name in result.pictures:
            path = _picture_path(folder, experiment.name, name).relative_to(folder).as_posix()
            sections.append(f"![{name.replace('_', ' ')}]({path})\n")
    return "\n".join(sections)


def _format_settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(
        f"{name}: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}"
        for name, value in settings.items()
    )


def _conclusions_table(tested: Sequence[Conclusion]) -> Table:
    rows = [[conclusion.claim, _VERDICTS[conclusion.holds], conclusion.figures] for conclusion in tested]
    return Table("What the paper concludes, on this data", ["claim", "on this data", "figures"], rows)


# ---------------------------------------------------------------------------------------------------------------------
# The paper's conclusions, tested

ALIKE = 0.9
"""The ρ from which two maps count as the same."""

Figures = Mapping[str, Any]
Verdict = tuple[bool | None, str]
"""Whether a claim holds (None: not measured), and the figures as text."""

_NOT_MEASURED: Verdict = (None, "not measured")


@dataclass(frozen=True)
class Conclusion:
    """A claim of the paper, tested on figures.

    Args:
        claim: The claim.
        holds: Whether it holds on this data; None if it was not measured.
        figures: The figures that decide, as text.
    """

    claim: str
    holds: bool | None
    figures: str


def conclusions(results: Sequence[Result]) -> list[Conclusion]:
    """Test each of the paper's five conclusions on the figures of some experiments.

    A claim about many methods and layers holds if it holds on average and for more than half of them.

    Args:
        results: Results of experiments; claims of experiments that are missing are not measured.

    Returns:
        The five conclusions.

    Example:
        >>> [conclusion.holds for conclusion in conclusions([])]
        [None, None, None, None, None]
    """
    figures = {result.name: result.figures for result in results}
    return [Conclusion(claim, *test(figures)) for claim, test in _CLAIMS.items()]


def _test_grad_cam(figures: Mapping[str, Figures]) -> Verdict:
    """Compare the accuracy at the last layer with that at every other layer."""
    accuracy = {layer: value for layer, value in _accuracies(figures, "grad_cam").items() if not is_combination(layer)}
    if len(accuracy) < 2:
        return _NOT_MEASURED
    *others, last = accuracy.values()
    text = ", ".join(f"{layer} {value:.1%}" for layer, value in accuracy.items())
    return last > max(others), f"pointing game of grad_cam: {text}"


def _test_combination(figures: Mapping[str, Figures]) -> Verdict:
    """Compare the best weighted combination with the best layer."""
    accuracy = _accuracies(figures, "linear_approx")
    # Equal weights are the paper's reference, not one of its weightings.
    combined = {layer: value for layer, value in accuracy.items() if is_combination(layer) and "uniform" not in layer}
    single = {layer: value for layer, value in accuracy.items() if not is_combination(layer)}
    if not combined or not single:
        return _NOT_MEASURED
    best, best_single = max(combined, key=combined.__getitem__), max(single, key=single.__getitem__)
    text = (
        f"pointing game of linear_approx: {best} {combined[best]:.1%},"
        f" best single layer {best_single} {single[best_single]:.1%}"
    )
    pairs = figures.get("pointing_game", {}).get("pairs", {}).get("all")
    if pairs:
        text += _format_standard_error(combined[best], single[best_single], pairs)
    return combined[best] > single[best_single], text


def _format_standard_error(a: float, b: float, pairs: int) -> str:
    """Format the difference of two accuracies and its standard error."""
    error = math.sqrt(sum(value * (1 - value) / pairs for value in (a, b)))
    return f"; {100 * (a - b):+.1f} points, where two standard errors of {pairs} pairs are {200 * error:.1f}"


def _accuracies(figures: Mapping[str, Figures], method: str) -> dict[str, float]:
    """Collect a method's accuracy in the pointing game at each layer and combination, shallowest first."""
    by_map = {name: subsets["all"] for name, subsets in figures.get("pointing_game", {}).get("accuracy", {}).items()}
    by_map = {**by_map, **figures.get("layer_weights", {}).get("pointing", {})}
    by_layer = {name.partition(" / ")[2]: value for name, value in by_map.items() if name.startswith(f"{method} / ")}
    return {layer: value for layer, value in by_layer.items() if value is not None}


def _test_meta(figures: Mapping[str, Figures]) -> Verdict:
    """Compare class sensitivity without and with the inner step."""
    rows = figures.get("class_sensitivity", {}).get("correlations", [])
    rates = list(dict.fromkeys(row["lr"] for row in rows if row["lr"]))
    if not rates:
        return _NOT_MEASURED
    plain, stepped = (
        {(row["method"], row["layer"]): row["mean_absolute"] for row in rows if row["lr"] == rate}
        for rate in (0, rates[0])
    )
    return _is_lowered(plain, stepped, f"mean |ρ| of the most and least probable class, lr {rates[0]:g}")


def _test_identity(figures: Mapping[str, Figures]) -> Verdict:
    """Require ρ of at least ALIKE at every layer."""
    rows = figures.get("identity_trick", {}).get("correlations", {})
    means = {layer: row["mean"] for layer, row in rows.items() if row["mean"] is not None}
    if not means:
        return _NOT_MEASURED
    text = ", ".join(f"{layer} {rho:.3f}" for layer, rho in means.items())
    return min(means.values()) >= ALIKE, f"mean ρ of real and identity: {text}"


def _test_focus(figures: Mapping[str, Figures]) -> Verdict:
    """Compare the focus on the object before and after; where objects are unknown, test ρ with the trained maps."""
    randomisation = figures.get("weight_randomisation", {})
    cascade = randomisation.get("modes", {}).get("cascading")
    if cascade is None:
        return _NOT_MEASURED
    trained, randomised = _last_values(randomisation["focus"]["plain"]), _last_values(cascade["focus"]["plain"])
    rho = mean(_last_values(cascade["rho"]["plain"]).values())
    if rho is None:
        return _NOT_MEASURED
    rho_text = f"mean ρ with the trained network's maps at the end {rho:.3f}"
    if mean(trained.values()) is None:
        return rho < 1 / 2, f"{rho_text} (focus was not measured; below 0.5 counts as lost)"
    holds, text = _is_lowered(trained, randomised, "mean focus on the object, before and after (1 is chance)")
    return holds, f"{text}; {rho_text}"


def _last_values(
    series: Mapping[str, Mapping[str, Sequence[float | None]]],
) -> dict[tuple[str, str], float | None]:
    return {(method, layer): values[-1] for method, layers in series.items() for layer, values in layers.items()}


def _is_lowered(
    before: Mapping[tuple[str, str], float | None], after: Mapping[tuple[str, str], float | None], title: str
) -> Verdict:
    """Tell whether figures have fallen, on average and for more than half of the methods and layers."""
    pairs = [(old, new) for key, old in before.items() if old is not None and (new := after.get(key)) is not None]
    if not pairs:
        return _NOT_MEASURED
    old, new = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
    lower = sum(b < a for a, b in pairs)
    text = f"{title}: {old:.3f} → {new:.3f}, lower for {lower} of {len(pairs)} methods and layers"
    return new < old and 2 * lower > len(pairs), text


_CLAIMS: dict[str, Callable[[Mapping[str, Figures]], Verdict]] = {
    "Grad-CAM degrades away from the last layer.": _test_grad_cam,
    "For linear approximation, a weighted combination of layers beats the best single layer.": _test_combination,
    "Meta-saliency lowers |ρ| between the most and the least probable class.": _test_meta,
    f"The virtual identity's maps are those of the real convolution (ρ ≥ {ALIKE}).": _test_identity,
    "Maps lose their focus as weights are randomised.": _test_focus,
}
