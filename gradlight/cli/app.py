"""Command-line application: declares the commands and turns errors into one line and an exit status.

At import time only typer and the declarations are loaded, so that `gradlight --help` does not import torch; each
command imports the modules that it needs when it runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..errors import GradlightError
from .dataset import add_dataset_commands, add_evaluate_command
from .options import (
    BatchSize,
    Captioner,
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

__all__ = ["app", "main"]

_SUMMARY = "Saliency maps: show where in an image a network found what it predicts or says."

app = typer.Typer(
    name="gradlight",
    help=_SUMMARY,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line and exit.

    The exit status is 0 if all was done, 1 if some images failed, and 2 if nothing was done; then one line on standard
    error gives the reason. With `--debug` anywhere in the arguments the error is raised with its traceback.

    Raises:
        SystemExit: always, except with `--debug` after an error.
    """
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        status = app(arguments or ["--help"], prog_name="gradlight", standalone_mode=False)
    # A user's network, disk or memory can raise any exception; each is reported in one line.
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        sys.exit(_report_error(error))
    sys.exit(status if isinstance(status, int) else 0)


def _report_error(error: BaseException) -> int:
    """Print an error on one line and return its exit status."""
    if isinstance(error, KeyboardInterrupt):
        message = "stopped by Ctrl-C."
    elif isinstance(error, typer.TyperException):
        format_message = getattr(error, "format_message", None)
        message = format_message() if format_message else str(error)
    elif isinstance(error, GradlightError):
        message = str(error)
    else:
        message = f"{type(error).__name__}: {error} (--debug shows where)"
    print(f"gradlight: {' '.join(message.split())}", file=sys.stderr)
    return int(getattr(error, "exit_status", 2))


def _print_version(requested: bool) -> None:
    """Print the version and exit, if `--version` was given."""
    if requested:
        print(f"gradlight {__version__}")
        raise typer.Exit


@app.callback(help=_SUMMARY, epilog="--debug, anywhere, shows the traceback of an error.")
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Accept the options that stand before a command."""


@app.command()
def demo(
    photos: Annotated[list[Path] | None, typer.Argument(metavar="PHOTO", help="Photos to explain in addition.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the maps.")] = Path("out"),
    model: Annotated[str, typer.Option("--model", "-m", help="The classifier for the photos.")] = "scenes",
) -> None:
    """Explain the bundled sample scenes with the bundled networks; works offline."""
    from .demo import run_demo

    raise typer.Exit(run_demo(out, photos or [], model))


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Photos, or folders of photos.")],
    output: Annotated[
        list[Path], typer.Option("--output", "-o", help="out.png or out.h5; may be given more than once.")
    ],
    model: Model = "scenes",
    target: Target = None,
    methods: Methods = "selective_normgrad",
    layers: Layers = "stages",
    combine: Combine = None,
    meta: MetaStep = None,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    labels: Labels = None,
    encoder: Encoder = None,
    device: Device = None,
    batch_size: BatchSize = None,
    words: Words = False,
    precision: Precision = None,
) -> None:
    """Explain what a network predicts for photos, as a picture (.png) or as maps (.h5)."""
    from .explain import ExplainOptions, explain_images
    from .open_model import ModelOptions

    options = ExplainOptions(target, methods, layers, combine, meta, batch_size, words, precision)
    model_options = ModelOptions(model, checkpoint, pretrained, labels, device, encoder)
    raise typer.Exit(explain_images(images, output, model_options, options))


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Photos, or folders of photos.")],
    model: Captioner = "scenes",
    beam_size: Annotated[int, typer.Option(min=1, help="Beams of the search; 1 is greedy search.")] = 3,
    max_length: Annotated[int | None, typer.Option(min=1, help="Maximum number of words, END included.")] = None,
    suppress_unk: Annotated[bool, typer.Option("--suppress-unk", help="Never generate UNK.")] = False,
    length_penalty: Annotated[
        str | None, typer.Option(help='Length penalty of the beam search: "avg" or "wu_ALPHA".')
    ] = None,
    encoder: Encoder = None,
    pretrained: Pretrained = True,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")] = False,
) -> None:
    """Caption photos, with one sentence per photo."""
    from ..models.captioner.search import DecodingOptions
    from .caption import caption_images
    from .open_model import ModelOptions

    model_options = ModelOptions(model, None, pretrained, None, device, encoder)
    decoding = DecodingOptions(beam_size, max_length, suppress_unk, length_penalty)
    raise typer.Exit(caption_images(images, model_options, decoding, as_json))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A captioner's checkpoint: a file or a folder.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
) -> None:
    """Convert another project's captioner to safetensors and JSON, without executing anything in its files."""
    from .caption import convert_checkpoint

    convert_checkpoint(source, folder)


@app.command()
def layers(
    model: Model = "scenes",
    stages: Annotated[bool, typer.Option("--stages", help="List only the stages.")] = False,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
) -> None:
    """List the spatial layers of a network: name, channels, size."""
    from .inspect import list_layers
    from .open_model import ModelOptions

    list_layers(ModelOptions(model, checkpoint, False, labels, "cpu"), stages)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help='A glob such as "*resnet50*".')] = "*",
) -> None:
    """List the networks that --model takes."""
    from .inspect import list_models

    list_models(pattern)


@app.command()
def methods(
    long: Annotated[bool, typer.Option("--long", help="Show the formula and the reference of every method.")] = False,
) -> None:
    """List the methods: the published names, the grid of EXTRACT+AGGREGATE pairs, and the baselines."""
    from .inspect import list_methods

    list_methods(long)


@app.command()
def train(
    what: Annotated[str, typer.Argument(metavar="WHAT", help='"scenes" (the classifier of scenes) or "captioner".')],
    out: Annotated[Path | None, typer.Option(help="The file (scenes) or folder (captioner) to write.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training set.")] = None,
    seed: Annotated[int, typer.Option(help="Random seed of the initial weights and of the order of the images.")] = 0,
    captions: Annotated[
        Path | None,
        typer.Option(help="Captions of photos: COCO captions JSON or Karpathy's JSON. Default: generated scenes."),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of the photos of --captions.")] = None,
    family: Annotated[
        str | None, typer.Option("--decoder", help="Decoder family: fc, newfc, show_tell, att2in2, soft attention.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder, a ResNet: timm/NAME, torchvision/NAME or a file.")
    ] = None,
    pretrained: Annotated[bool | None, typer.Option(help="Download the encoder's weights.")] = None,
    threshold: Annotated[int | None, typer.Option(min=1, help="Words that occur less often become UNK.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Photos per step.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Number of processes that read photos.")] = None,
) -> None:
    """Train one of the bundled networks, or a captioner on photos; the same command resumes a stopped training."""
    from .caption import train_network

    options = {"seed": seed} if epochs is None else {"seed": seed, "epochs": epochs}
    photo_options = {
        "captions": captions,
        "images": images,
        "family": family,
        "encoder": encoder,
        "pretrained": pretrained,
        "threshold": threshold,
        "batch_size": batch_size,
        "workers": workers,
    }
    train_network(what, out, options, photo_options)


add_dataset_commands(app)
add_evaluate_command(app)
