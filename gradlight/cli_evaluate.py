"""The command that runs the experiments."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .cli_options import Checkpoint, Device, Labels, Layers, MetaStep, Model, Pretrained

__all__ = ["add_evaluate_to"]

NAMES = (
    "pointing_game, baselines, layer_weights, class_sensitivity, weight_randomisation, identity_trick, meta_analysis,"
    " deletion_insertion, word_pointing, caption_truth; or paper: all of the paper's."
)


def evaluate(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help=NAMES)],
    model: Model = "scenes",
    data: Annotated[
        str, typer.Option(help='"scenes", a VOC root, a folder of COCO photos (--annotations), or any folder.')
    ] = "scenes",
    count: Annotated[int | None, typer.Option(min=1, help="Photos; of scenes, the experiment's own number.")] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO's instances_*.json of the folder's photos.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a VOC root: train, val, test …")] = None,
    methods: Annotated[str | None, typer.Option(help="Names with commas, baselines too; the experiment's own.")] = None,
    layers: Layers = "stages",
    target: Annotated[
        str | None, typer.Option("--target", "-t", help="One for all photos; what the model says.")
    ] = None,
    meta: MetaStep = None,
    rates: Annotated[str, typer.Option("--lr", help="Rates of the inner step, with commas.")] = "0.002",
    tolerance: Annotated[float | None, typer.Option(min=0, help="Of the pointing game: 15 pixels.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of all that is random.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="A folder for the report; the same command again goes on with it.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the tables: .md, .csv, or .json with all figures.")
    ] = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    labels: Labels = None,
    device: Device = None,
) -> None:
    """Run the paper's experiments with any network: tables, figures, and a report that goes on after any stop."""
    from .evaluating import evaluate as run
    from .opening import Source
    from .setting import Options

    source = Source(model, checkpoint, pretrained, labels, device)
    options = Options(data, count, annotations, split, methods, layers, target, meta, rates, tolerance, seed)
    run(experiment, source, options, out, output)


def add_evaluate_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)
