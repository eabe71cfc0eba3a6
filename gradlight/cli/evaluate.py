"""What `evaluate` does: an experiment, its tables on standard output or in a file, or a folder that it goes on with."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import GradlightError, nearest
from ..evaluation.ledger import Ledger
from ..evaluation.report import Experiment, write_report
from ..evaluation.tables import Result, as_json, csv, markdown
from ..files import replace_file
from .console import notice
from .experiments import EXPERIMENTS, Options, Setting
from .open_model import ModelOptions

__all__ = ["evaluate"]

_SAYING = ("word_pointing", "caption_truth")
_PAPER = [name for name in EXPERIMENTS if name not in _SAYING]


def evaluate(experiment: str, source: ModelOptions, options: Options, out: Path | None, output: Path | None) -> None:
    """Run an experiment, or "paper", all of them, and print its tables as Markdown.

    out: a folder that gets a report (tables, pictures, figures) and goes on where an earlier run of it was stopped.
    output: a file of the tables (.md, .csv) or of the figures too (.json).
    """
    name = experiment.replace("-", "_")
    known = [*EXPERIMENTS, "paper"]
    if name not in known:
        raise GradlightError(f"There is no experiment {experiment!r}.{nearest(name, known)} Known: {', '.join(known)}.")
    _check_output(output)
    out = Path("report") if name == "paper" and out is None else out
    setting = Setting(source, options, out)
    if out is None:
        results = [_run(name, setting)(Ledger(None, {}))]
    else:
        asked = _PAPER if name == "paper" else [name]
        about = {} if name in _SAYING else setting.about()
        results = write_report(
            [Experiment(each, _run(each, setting), _settings(each, options)) for each in asked],
            out,
            settings=about or {"model": source.name},
            notify=notice,
        )
        notice(f"wrote {out / 'README.md'}")
    print("\n".join(markdown(table) for result in results for table in result.tables))
    if output is not None:
        _write(output, results)


def _run(name: str, setting: Setting) -> Callable[[Ledger], Result]:
    run, count = EXPERIMENTS[name]
    return partial(run, setting, count)


def _settings(name: str, options: Options) -> dict[str, Any]:
    """Describe what an experiment of a report depends on besides the model and the data, in JSON types."""
    asked = {
        "count": options.count or EXPERIMENTS[name][1],
        "methods": options.methods,
        "layers": options.layers,
        "target": options.target,
        "meta": options.meta,
        "lr": options.rates if name in ("class_sensitivity", "meta_analysis") else None,
        "tolerance": options.tolerance if name in ("pointing_game", "baselines") else None,
    }
    return {key: value for key, value in asked.items() if value is not None}


def _check_output(output: Path | None) -> None:
    if output is None:
        return
    if output.suffix.lower() not in (".json", ".md", ".csv"):
        raise GradlightError(f"{output}: results are written as .json, .md or .csv; name one of these.")
    if not output.absolute().parent.is_dir():
        raise GradlightError(f"{output}: the folder {output.absolute().parent} does not exist. Create it first.")


def _write(output: Path, results: Sequence[Result]) -> None:
    tables = [table for result in results for table in result.tables]
    if output.suffix.lower() == ".json":
        found = [
            {"experiment": each.name, "figures": each.figures, "tables": [as_json(table) for table in each.tables]}
            for each in results
        ]
        text = json.dumps(found[0] if len(found) == 1 else found, indent=1, ensure_ascii=False) + "\n"
    else:
        text = "\n".join((csv if output.suffix.lower() == ".csv" else markdown)(table) for table in tables)
    replace_file(output, text.encode())
