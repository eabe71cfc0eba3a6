"""The options that several commands have, with their help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BatchSize",
    "Captioner",
    "Checkpoint",
    "Combine",
    "Device",
    "Encoder",
    "Labels",
    "Layers",
    "MetaStep",
    "Methods",
    "Model",
    "Precision",
    "Pretrained",
    "Target",
    "Words",
]

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", help='"scenes", "timm/NAME", "torchvision/NAME"; "captioner/scenes", or a captioner\'s path.'
    ),
]
Captioner = Annotated[str, typer.Option("--model", "-m", help='"scenes" (bundled), or the path of a captioner.')]
Encoder = Annotated[
    str | None, typer.Option(help="A captioner's eye, where its files hold none: a ResNet, or its file.")
]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: safetensors, or a PyTorch state dict.")]
Pretrained = Annotated[bool, typer.Option(help="Download the library's weights (without --checkpoint).")]
Labels = Annotated[Path | None, typer.Option(help="Class names: a text file, one a line, or a JSON list.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda or cuda:1; a GPU where there is one.")]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target", "-t", help='Class name or index, "top", "min"; a caption, "a [word] of it"; more than one.'
    ),
]
Methods = Annotated[str, typer.Option(help="Names or EXTRACT+AGGREGATE pairs, with commas; see `gradlight methods`.")]
Layers = Annotated[str, typer.Option(help='"stages", "all", "input", names or globs, with commas.')]
Combine = Annotated[str | None, typer.Option(help="Combine the layers: HOW:WEIGHTS, such as product:linear.")]
MetaStep = Annotated[str | None, typer.Option("--meta", help="Meta-saliency: LR, descent:LR or ascent:LR.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per pass, 8 unless given.")]
Precision = Annotated[str | None, typer.Option(help="Of the network's passes: bf16, about twice as fast, or float32.")]
Words = Annotated[bool, typer.Option("--words", help="One map for each word of the caption.")]
