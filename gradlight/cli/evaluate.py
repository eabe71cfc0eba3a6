"""Command `evaluate`: run experiments; print their tables, write them to a file, or write a report into a folder."""

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
from .console import print_notice
from .experiments import EXPERIMENTS, ExperimentContext, ExperimentOptions
from .open_model import ModelOptions

__all__ = ["run_experiments"]

_CAPTION_EXPERIMENTS = ("word_pointing", "caption_truth")
_PAPER_EXPERIMENTS = [name for name in EXPERIMENTS if name not in _CAPTION_EXPERIMENTS]


def run_experiments(
    experiment: str, model_options: ModelOptions, options: ExperimentOptions, out: Path | None, output: Path | None
) -> None:
    """Run one experiment, or all of the paper's, and print the tables as Markdown.

    Args:
        experiment: the name of an experiment, or "paper".
        model_options: the options that name the model.
        options: the options of the experiments.
        out: a folder for a report (tables, pictures, figures), which continues an earlier run that was stopped;
            None is "report" for "paper", and no report for one experiment.
        output: a file for the tables (.md, .csv), or for the tables and all figures (.json).

    Raises:
        GradlightError: the experiment, an option or the output is wrong.
    """
    name = experiment.replace("-", "_")
    names = [*EXPERIMENTS, "paper"]
    if name not in names:
        raise GradlightError(f"There is no experiment {experiment!r}.{nearest(name, names)} Known: {', '.join(names)}.")
    _check_output(output)
    out = Path("report") if name == "paper" and out is None else out
    context = ExperimentContext(model_options, options, out)
    if out is None:
        results = [_experiment_runner(name, context)(Ledger(None, {}))]
    else:
        chosen = _PAPER_EXPERIMENTS if name == "paper" else [name]
        results = write_report(
            [Experiment(each, _experiment_runner(each, context), _describe_options(each, options)) for each in chosen],
            out,
            settings={"model": model_options.name} if name in _CAPTION_EXPERIMENTS else context.describe(),
            notify=print_notice,
        )
        print_notice(f"wrote {out / 'README.md'}")
    print("\n".join(markdown(table) for result in results for table in result.tables))
    if output is not None:
        _write_results(output, results)


def _experiment_runner(name: str, context: ExperimentContext) -> Callable[[Ledger], Result]:
    """Return an experiment as a function of its ledger alone."""
    function, default_count = EXPERIMENTS[name]
    return partial(function, context, default_count)


def _describe_options(name: str, options: ExperimentOptions) -> dict[str, Any]:
    """Describe what an experiment of a report depends on besides the model and the data, in JSON types."""
    values = {
        "count": options.count or EXPERIMENTS[name][1],
        "methods": options.methods,
        "layers": options.layers,
        "target": options.target,
        "meta": options.meta,
        "lr": options.rates if name in ("class_sensitivity", "meta_analysis") else None,
        "tolerance": options.tolerance if name in ("pointing_game", "baselines") else None,
    }
    return {key: value for key, value in values.items() if value is not None}


def _check_output(output: Path | None) -> None:
    """Raise GradlightError for an output of an unknown kind or in a folder that does not exist."""
    if output is None:
        return
    if output.suffix.lower() not in (".json", ".md", ".csv"):
        raise GradlightError(f"{output}: results are written as .json, .md or .csv; name one of these.")
    if not output.absolute().parent.is_dir():
        raise GradlightError(f"{output}: the folder {output.absolute().parent} does not exist. Create it first.")


def _write_results(output: Path, results: Sequence[Result]) -> None:
    """Write tables, and for JSON all figures, to a file."""
    tables = [table for result in results for table in result.tables]
    if output.suffix.lower() == ".json":
        records = [
            {"experiment": each.name, "figures": each.figures, "tables": [as_json(table) for table in each.tables]}
            for each in results
        ]
        text = json.dumps(records[0] if len(records) == 1 else records, indent=1, ensure_ascii=False) + "\n"
    else:
        text = "\n".join((csv if output.suffix.lower() == ".csv" else markdown)(table) for table in tables)
    replace_file(output, text.encode())
