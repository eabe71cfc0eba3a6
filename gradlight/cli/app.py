"""The command line. Only the files of the commands and typer are imported for `--help`; torch comes with the work."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .. import __version__
from ..errors import GradlightError
from .dataset import add_evaluate_to, add_to
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

app = typer.Typer(
    name="gradlight",
    help="See where in an image a network found what it says.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Run the command line; exit 0: all done, 1: some images failed, 2: nothing was done and one line says why."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        status = app(arguments or ["--help"], prog_name="gradlight", standalone_mode=False)
    # Whatever a user's network, disk or memory may do is told in one line too.
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        sys.exit(_report(error))
    sys.exit(status if isinstance(status, int) else 0)


def _report(error: BaseException) -> int:
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


def _version(asked: bool) -> None:
    if asked:
        print(f"gradlight {__version__}")
        raise typer.Exit


@app.callback(epilog="--debug, anywhere, shows the traceback of an error.")
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False) -> None:
    """See where in an image a network found what it says."""


@app.command()
def demo(
    photos: Annotated[list[Path] | None, typer.Argument(metavar="PHOTO", help="Photos to explain too.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures and the maps.")] = Path("out"),
    model: Annotated[str, typer.Option("--model", "-m", help="The network for the photos.")] = "scenes",
) -> None:
    """Explain the bundled sample scenes with the bundled classifier; no network needed."""
    from .demo import run

    raise typer.Exit(run(out, photos or [], model))


@app.command()
def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Photos, or folders of photos.")],
    output: Annotated[list[Path], typer.Option("--output", "-o", help="out.png or out.h5; may be given again.")],
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
    """Explain what a network says of photos, as a picture (.png) or as maps (.h5)."""
    from .explain import ExplainOptions, explain_images
    from .open_model import ModelOptions

    asked = ExplainOptions(target, methods, layers, combine, meta, batch_size, words, precision)
    source = ModelOptions(model, checkpoint, pretrained, labels, device, encoder)
    raise typer.Exit(explain_images(images, output, source, asked))


@app.command()
def caption(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Photos, or folders of photos.")],
    model: Captioner = "scenes",
    beam_size: Annotated[int, typer.Option(min=1, help="1 is greedy search.")] = 3,
    max_length: Annotated[int | None, typer.Option(min=1, help="The most words, END included.")] = None,
    suppress_unk: Annotated[bool, typer.Option("--suppress-unk", help="Never say UNK.")] = False,
    length_penalty: Annotated[str | None, typer.Option(help='"avg" or "wu_ALPHA".')] = None,
    encoder: Encoder = None,
    pretrained: Pretrained = True,
    device: Device = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Say what is in photos, in a sentence each."""
    from ..models.captioner.search import DecodingOptions
    from .caption import caption_images
    from .open_model import ModelOptions

    source = ModelOptions(model, None, pretrained, None, device, encoder)
    saying = DecodingOptions(beam_size, max_length, suppress_unk, length_penalty)
    raise typer.Exit(caption_images(images, source, saying, as_json))


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A captioner's checkpoint: its file or its folder.")],
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.")],
) -> None:
    """Write another project's captioner as safetensors and JSON; nothing in its files is ever executed."""
    from .caption import convert

    convert(source, folder)


@app.command()
def layers(
    model: Model = "scenes",
    stages: Annotated[bool, typer.Option("--stages", help="Only the stages.")] = False,
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
def methods() -> None:
    """List the methods: the published names, and the grid that they are cells of."""
    from .inspect import list_methods

    list_methods()


@app.command()
def train(
    what: Annotated[str, typer.Argument(metavar="WHAT", help='"scenes": a classifier of scenes; "captioner".')],
    out: Annotated[Path | None, typer.Option(help="The file (scenes) or folder (captioner) to write.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training set.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the images.")] = 0,
    captions: Annotated[Path | None, typer.Option(help="COCO captions JSON, or Karpathy's; else scenes.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder of its photos.")] = None,
    family: Annotated[
        str | None, typer.Option("--decoder", help="fc, newfc, show_tell, att2in2, soft attention.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(help="timm/NAME, torchvision/NAME or a file: a ResNet.")] = None,
    pretrained: Annotated[bool | None, typer.Option(help="Download the encoder's weights.")] = None,
    threshold: Annotated[int | None, typer.Option(min=1, help="Words that occur less often are UNK.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Photos per step.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes that read photos.")] = None,
) -> None:
    """Train a network: the bundled ones anew, or a captioner on your photos; goes on after a stop."""
    from .caption import train_network

    options = {"seed": seed} if epochs is None else {"seed": seed, "epochs": epochs}
    photos = {
        "captions": captions,
        "images": images,
        "family": family,
        "encoder": encoder,
        "pretrained": pretrained,
        "threshold": threshold,
        "batch_size": batch_size,
        "workers": workers,
    }
    train_network(what, out, options, photos)


add_to(app)
add_evaluate_to(app)
