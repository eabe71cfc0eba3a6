"""The command line. Only this file and typer are imported for `--help`; torch comes when there is work to do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from . import __version__
from .errors import GradlightError

__all__ = ["app", "main"]

app = typer.Typer(
    name="gradlight",
    help="See where in an image a network found what it says.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

Model = Annotated[str, typer.Option("--model", "-m", help='"scenes" (bundled), "timm/NAME" or "torchvision/NAME".')]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: safetensors, or a PyTorch state dict.")]
Pretrained = Annotated[bool, typer.Option(help="Download the library's weights (without --checkpoint).")]
Labels = Annotated[Path | None, typer.Option(help="Class names: a text file, one a line, or a JSON list.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda or cuda:1; a GPU where there is one.")]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", "-t", help='Class name or index, "top", "top5", "min"; may be given again.'),
]
Methods = Annotated[str, typer.Option(help="Names or EXTRACT+AGGREGATE pairs, with commas; see `gradlight methods`.")]
Layers = Annotated[str, typer.Option(help='"stages", "all", "input", names or globs, with commas.')]
Combine = Annotated[str | None, typer.Option(help="Combine the layers: HOW:WEIGHTS, such as product:linear.")]
MetaStep = Annotated[str | None, typer.Option("--meta", help="Meta-saliency: LR, descent:LR or ascent:LR.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per pass, 8 unless given.")]


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
    return 2


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
    device: Device = None,
    batch_size: BatchSize = None,
) -> None:
    """Explain what a network says of photos, as a picture (.png) or as maps (.h5)."""
    from .commands import Asked, explain_images

    asked = Asked(target, methods, layers, combine, meta, batch_size)
    source = (model, checkpoint, pretrained, labels, device)
    raise typer.Exit(explain_images(images, output, source, asked))


@app.command()
def layers(
    model: Model = "scenes",
    stages: Annotated[bool, typer.Option("--stages", help="Only the stages.")] = False,
    checkpoint: Checkpoint = None,
    labels: Labels = None,
) -> None:
    """List the spatial layers of a network: name, channels, size."""
    from .listings import list_layers

    list_layers((model, checkpoint, False, labels, "cpu"), stages)


@app.command()
def models(
    pattern: Annotated[str, typer.Argument(metavar="PATTERN", help='A glob such as "*resnet50*".')] = "*",
) -> None:
    """List the networks that --model takes."""
    from .listings import list_models

    list_models(pattern)


@app.command()
def methods() -> None:
    """List the methods: the published names, and the grid that they are cells of."""
    from .listings import list_methods

    list_methods()


@app.command()
def inspect(files: Annotated[list[Path], typer.Argument(metavar="FILE", help="HDF5 files of maps.")]) -> None:
    """Say what files of maps hold."""
    from .listings import inspect_files

    raise typer.Exit(inspect_files(files))


@app.command()
def train(
    what: Annotated[str, typer.Argument(metavar="WHAT", help='"scenes": the bundled classifier of generated scenes.')],
    out: Annotated[Path, typer.Option(help="Where to write the weights.")] = Path("scenes.safetensors"),
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the training scenes.")] = None,
    seed: Annotated[int, typer.Option(help="Of the first weights and the order of the scenes.")] = 0,
) -> None:
    """Train a bundled network anew."""
    from .commands import train_network

    train_network(what, out, epochs, seed)
