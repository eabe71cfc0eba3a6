"""The commands about whole data sets and their files: export, inspect, verify, merge, cache.

The command that runs the experiments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import (
    BatchSize,
    Checkpoint,
    Combine,
    Device,
    Encoder,
    Labels,
    Layers,
    MetaStep,
    Methods,
    Model,
    Precision,
    Pretrained,
    Target,
    Words,
)

__all__ = ["add_evaluate_to", "add_to"]

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="HDF5 files of maps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there under the output's name.")]
Copy = Annotated[bool, typer.Option("--copy", help="One file with everything in it, not an index over shards.")]


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of photos (of class folders; a VOC root), a list (.txt, .csv), or scenes:FROM-TO.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file, such as maps.h5.")],
    annotations: Annotated[
        Path | None, typer.Option(help="COCO JSON of the folder's instances (every class present) or captions.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a VOC root: train, val, test …")] = None,
    kind: Annotated[str | None, typer.Option(help="What SOURCE is, if not plain: imagefolder, voc …")] = None,
    model: Model = "scenes",
    target: Target = None,
    methods: Methods = "selective_normgrad",
    layers: Layers = "stages",
    combine: Combine = None,
    meta: MetaStep = None,
    words: Words = False,
    size: Annotated[str | None, typer.Option(help="Bring every map to this size: 224, or HEIGHTxWIDTH.")] = None,
    dtype: Annotated[str, typer.Option(help="float32, or float16 with a scale for each map.")] = "float32",
    compression: Annotated[str, typer.Option(help="gzip, lzf, none, or blosc (gradlight[blosc]).")] = "gzip",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an export that was stopped.")] = False,
    overwrite: Overwrite = False,
    copy: Copy = False,
    workers: Annotated[int, typer.Option(min=1, help="Processes, each with the model.")] = 1,
    readers: Annotated[int, typer.Option(min=0, help="Processes that read photos ahead, per worker.")] = 1,
    shard_size: Annotated[int | None, typer.Option(min=1, help="Images a shard, 200 unless maps are large.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray (gradlight[ray]).")] = "local",
    address: Annotated[str | None, typer.Option(help="Of a Ray cluster to join; else one is started here.")] = None,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs of each Ray worker.")] = 0,
    log: Annotated[str, typer.Option(help='"bar", or "json": one JSON object a line on standard error.')] = "bar",
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    labels: Labels = None,
    encoder: Encoder = None,
    device: Device = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
) -> None:
    """Explain a whole data set into one HDF5 file; after any stop, --resume goes on."""
    from ..export.run import ExportOptions
    from .explain import ExplainOptions
    from .export import ExportJob, Ways, run
    from .open_model import ModelOptions

    found = ModelOptions(model, checkpoint, pretrained, labels, device, encoder)
    asked = ExplainOptions(target, methods, layers, combine, meta, batch_size, words, precision)
    manner = ExportOptions(resume, overwrite, copy, readers, shard_size)
    job = ExportJob(source, annotations, split, kind, output, size, dtype, compression)
    raise typer.Exit(run(job, found, asked, Ways(manner, workers, engine, address, gpus, log)))


def inspect(files: Files) -> None:
    """Say what files of maps hold."""
    from .inspect import inspect_files

    raise typer.Exit(inspect_files(files))


def verify(files: Files) -> None:
    """Read files of maps whole, and say whether they are sound: structure, checksums, counts, finite maps."""
    from .inspect import verify_files

    raise typer.Exit(verify_files(files))


def merge(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    copy: Copy = False,
    overwrite: Overwrite = False,
) -> None:
    """Join files of maps: an index over them, which must lie below its folder, or with --copy one file."""
    from .export import merge_files

    merge_files(files, output, copy, overwrite)


def cache(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="info, or clear.")],
    folder: Annotated[Path | None, typer.Option(help="The cache's folder, if not the usual one.")] = None,
) -> None:
    """Say what the cache of `explain(cache=True)` holds, or empty it."""
    from .inspect import tell_of_cache

    tell_of_cache(what, folder)


def add_to(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for command in (export, inspect, verify, merge, cache):
        app.command()(command)


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
    from .evaluate import evaluate as run
    from .experiments import Options
    from .open_model import ModelOptions

    source = ModelOptions(model, checkpoint, pretrained, labels, device)
    options = Options(data, count, annotations, split, methods, layers, target, meta, rates, tolerance, seed)
    run(experiment, source, options, out, output)


def add_evaluate_to(app: typer.Typer) -> None:
    """Add the command to the command line."""
    app.command()(evaluate)
