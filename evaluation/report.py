"""The report: all experiments one after the other, in a folder that people read and programs too."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..errors import GradlightError
from ..files import replace_file, shown
from .conclusions import Conclusion, conclusions
from .ledger import Ledger
from .result import Result
from .tables import Table, as_json, markdown

__all__ = ["Experiment", "paper"]

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
            f"{shown(folder)}: has a README.md that is no report's, and would lose it. Name another folder."
        )
    try:
        for place in (folder, folder / "ledgers", folder / "figures"):
            place.mkdir(exist_ok=True)
    except OSError as error:
        raise GradlightError(f"{shown(folder)}: cannot be made: {error.strerror}. Check the path.") from error


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
