"""Commands for data sets, their files, the cache and the experiments."""

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

__all__ = ["add_dataset_commands", "add_evaluate_command"]

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="HDF5 files of maps.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing output.")]
Copy = Annotated[bool, typer.Option("--copy", help="Write one file with all maps instead of an index over shards.")]


def export(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="A folder of photos or of class folders, a VOC root, a list (.txt, .csv), or scenes:FROM-TO.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The HDF5 file, such as maps.h5.")],
    annotations: Annotated[
        Path | None,
        typer.Option(help="COCO JSON of the folder's photos: instances (targets: all classes present) or captions."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of a VOC root: train, val, test …")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Kind of SOURCE, if it cannot be detected: imagefolder, voc …")
    ] = None,
    model: Model = "scenes",
    target: Target = None,
    methods: Methods = "selective_normgrad",
    layers: Layers = "stages",
    combine: Combine = None,
    meta: MetaStep = None,
    words: Words = False,
    size: Annotated[str | None, typer.Option(help="Resize every map to this size: 224, or HEIGHTxWIDTH.")] = None,
    dtype: Annotated[
        str, typer.Option(help="Number format of the maps: float32, or float16 with a scale per map.")
    ] = "float32",
    compression: Annotated[
        str, typer.Option(help="Compression: gzip, lzf, none, or blosc (needs gradlight[blosc]).")
    ] = "gzip",
    resume: Annotated[bool, typer.Option("--resume", help="Resume an export that was stopped.")] = False,
    overwrite: Overwrite = False,
    copy: Copy = False,
    workers: Annotated[int, typer.Option(min=1, help="Number of processes, each with its own copy of the model.")] = 1,
    readers: Annotated[int, typer.Option(min=0, help="Number of processes per worker that read photos ahead.")] = 1,
    shard_size: Annotated[
        int | None, typer.Option(min=1, help="Images per shard. Default: 200, fewer if the maps are large.")
    ] = None,
    engine: Annotated[str, typer.Option(help="Where the workers run: local, or ray (needs gradlight[ray]).")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of a running Ray cluster. Default: start one here.")
    ] = None,
    gpus: Annotated[float, typer.Option(min=0, help="Number of GPUs per Ray worker.")] = 0,
    log: Annotated[
        str, typer.Option(help='Progress: "bar", or "json" (one JSON object per line on standard error).')
    ] = "bar",
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    labels: Labels = None,
    encoder: Encoder = None,
    device: Device = None,
    batch_size: BatchSize = None,
    precision: Precision = None,
) -> None:
    """Explain a data set and write its maps to one HDF5 file; --resume continues a stopped export."""
    from ..export.run import ExportOptions
    from .explain import ExplainOptions
    from .export import DatasetOptions, ExecutionOptions, export_dataset
    from .open_model import ModelOptions

    dataset = DatasetOptions(source, annotations, split, kind, output, size, dtype, compression)
    model_options = ModelOptions(model, checkpoint, pretrained, labels, device, encoder)
    options = ExplainOptions(target, methods, layers, combine, meta, batch_size, words, precision)
    run_options = ExportOptions(resume, overwrite, copy, readers, shard_size)
    execution = ExecutionOptions(run_options, workers, engine, address, gpus, log)
    raise typer.Exit(export_dataset(dataset, model_options, options, execution))


def inspect(files: Files) -> None:
    """Print what HDF5 files of maps contain."""
    from .inspect import inspect_files

    raise typer.Exit(inspect_files(files))


def verify(files: Files) -> None:
    """Check HDF5 files of maps completely: structure, checksums, counts, and that all maps are finite."""
    from .inspect import verify_files

    raise typer.Exit(verify_files(files))


def merge(
    files: Files,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")],
    copy: Copy = False,
    overwrite: Overwrite = False,
) -> None:
    """Join files of maps: an index over files in or below its folder, or with --copy one file with all maps."""
    from .export import merge_files

    merge_files(files, output, copy, overwrite)


def cache(
    what: Annotated[str, typer.Argument(metavar="WHAT", help="info or clear.")],
    folder: Annotated[Path | None, typer.Option(help="Folder of the cache, if not the default one.")] = None,
) -> None:
    """Print the size of the cache of `explain(cache=True)`, or clear it."""
    from .inspect import manage_cache

    manage_cache(what, folder)


def add_dataset_commands(app: typer.Typer) -> None:
    """Add the commands for data sets, files and the cache to an application."""
    for command in (export, inspect, verify, merge, cache):
        app.command()(command)


# ---- evaluate

# Written out, since the experiments' own table imports torch.
_EXPERIMENT_HELP = (
    "pointing_game, baselines, layer_weights, class_sensitivity, weight_randomisation, identity_trick, meta_analysis,"
    " deletion_insertion, word_pointing, caption_truth; or paper: all experiments of the paper."
)


def evaluate(
    experiment: Annotated[str, typer.Argument(metavar="EXPERIMENT", help=_EXPERIMENT_HELP)],
    model: Model = "scenes",
    data: Annotated[
        str, typer.Option(help='"scenes", a VOC root, a folder of COCO photos (--annotations), or any folder.')
    ] = "scenes",
    count: Annotated[
        int | None, typer.Option(min=1, help="Number of photos. Default: all; for scenes, the experiment's own number.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO instances_*.json of the folder's photos.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a VOC root: train, val, test …")] = None,
    methods: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated names, also of baselines; see `gradlight methods --long`. Default: the experiment's"
            " own."
        ),
    ] = None,
    layers: Layers = "stages",
    target: Annotated[
        str | None,
        typer.Option("--target", "-t", help="One target for all photos. Default: the model's own prediction."),
    ] = None,
    meta: MetaStep = None,
    rates: Annotated[
        str, typer.Option("--lr", help="Comma-separated learning rates of the meta-saliency step.")
    ] = "0.002",
    tolerance: Annotated[
        float | None, typer.Option(min=0, help="Tolerance of the pointing game in pixels. Default: 15.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Random seed.")] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; the same command resumes a stopped run.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the tables to a file: .md, .csv, or .json with all figures."),
    ] = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    labels: Labels = None,
    device: Device = None,
) -> None:
    """Run the paper's experiments with any network; print tables, or write a report that can be resumed."""
    from .evaluate import run_experiments
    from .experiments import ExperimentOptions
    from .open_model import ModelOptions

    model_options = ModelOptions(model, checkpoint, pretrained, labels, device)
    options = ExperimentOptions(data, count, annotations, split, methods, layers, target, meta, rates, tolerance, seed)
    run_experiments(experiment, model_options, options, out, output)


def add_evaluate_command(app: typer.Typer) -> None:
    """Add the command `evaluate` to an application."""
    app.command()(evaluate)
