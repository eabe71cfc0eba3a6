"""Options that several commands share, with their help texts."""

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

# ---- the model
Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        help='"scenes", "timm/NAME", "torchvision/NAME", "transformers/NAME"; "captioner/scenes", or a captioner\'s'
        " path.",
    ),
]
Captioner = Annotated[
    str, typer.Option("--model", "-m", help='"scenes" (bundled), or the path of a captioner\'s checkpoint.')
]
Encoder = Annotated[
    str | None,
    typer.Option(help="The encoder of a captioner whose checkpoint contains none: a ResNet's name, or its file."),
]
Checkpoint = Annotated[Path | None, typer.Option(help="Weights: a safetensors file, or a PyTorch state dict.")]
Pretrained = Annotated[bool, typer.Option(help="Download the library's weights (unless --checkpoint is given).")]
Labels = Annotated[Path | None, typer.Option(help="Class names: a text file with one name per line, or a JSON list.")]
Device = Annotated[str | None, typer.Option(help="Such as cpu, cuda or cuda:1. Default: a GPU if there is one.")]

# ---- the maps
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help='Class name or index, "top" or "min"; a caption, or "a [word] of it". May be given more than once.',
    ),
]
Methods = Annotated[
    str,
    typer.Option(
        help="Comma-separated names or EXTRACT+AGGREGATE pairs; for formulas and references see `gradlight methods"
        " --long`."
    ),
]
Layers = Annotated[str, typer.Option(help='"stages", "all", "input", or comma-separated names or globs.')]
Combine = Annotated[str | None, typer.Option(help="Combine the layers: HOW:WEIGHTS, such as product:linear.")]
MetaStep = Annotated[str | None, typer.Option("--meta", help="Meta-saliency step: LR, descent:LR or ascent:LR.")]
Words = Annotated[bool, typer.Option("--words", help="Make one map for each word of the caption.")]

# ---- the computation
BatchSize = Annotated[int | None, typer.Option(min=1, help="Images per pass. Default: 8.")]
Precision = Annotated[
    str | None,
    typer.Option(help="Precision of the network's passes: float32, or bf16 (about twice as fast)."),
]
