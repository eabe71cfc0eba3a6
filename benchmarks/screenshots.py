"""Pictures of the viewer for the documents: a classifier, a caption's words, four panes, as a browser shows them.

python benchmarks/screenshots.py [--out docs]
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from browsing import SCENES, browser
from PIL import Image

import gradlight as gl

WIDTH = 1040
MOST_BYTES = 300_000
COMBINED = ["layer3.0", "layer4.0", "layer4"]
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    out = parser.parse_args().out
    torch.manual_seed(0)
    with browser() as running:
        for name, (make, scheme, sharpness) in PICTURES.items():
            picture = small(look(running, make(), scheme, sharpness))
            if len(picture) > MOST_BYTES:
                sys.exit(f"{name}.png would have {len(picture)} bytes; the documents take {MOST_BYTES}.")
            (out / f"{name}.png").write_bytes(picture)
            print(f"{out / name}.png: {len(picture) / 1000:.0f} kB")


def classifier() -> gl.Viewer:
    model = gl.classifier("scenes")
    layers = [layer.name for layer in model.layers() if layer.name in ("input", "conv1", *BLOCKS)]
    return gl.view(model, SCENES / "scene_6.png", "star", layers=layers, layer="layer4.0")


def words() -> gl.Viewer:
    model, photo = gl.captioner("scenes"), SCENES / "scene_2.png"
    layers = [layer.name for layer in model.layers() if layer.name in BLOCKS]
    said = " ".join(model.caption(photo)[0].words)
    asked = said.replace("orange star", "[orange star]")
    return gl.view(model, photo, asked, layers=layers, layer="layer4.0")


def compared() -> gl.Viewer:
    model, others = gl.classifier("scenes"), ["ring", "red", "cross"]
    return gl.view(
        model, SCENES / "scene_6.png", "star", layers=COMBINED, combine="product", compare="target", others=others
    )


# What is shown, the theme, and the pixels of the picture for each of the page.
PICTURES: dict[str, tuple[Callable[[], gl.Viewer], str, float]] = {
    "viewer": (classifier, "light", 1.5),
    "viewer-words": (words, "dark", 1.25),
    "viewer-compare": (compared, "light", 1),
}


def look(running: Any, viewer: gl.Viewer, scheme: str, sharpness: float) -> bytes:
    """Photograph a viewer on an empty page."""
    from bare_page import BarePage

    size = {"width": WIDTH + 16, "height": 900}
    page = running.new_page(viewport=size, device_scale_factor=sharpness, color_scheme=scheme)
    shown = BarePage(page, viewer)
    shown.settled()
    taken: bytes = page.locator(".gradlight").screenshot()
    page.close()
    viewer.close()
    return taken


def small(picture: bytes) -> bytes:
    """Write a picture with few colours: a third of the bytes, and no difference to the eye."""
    stream = io.BytesIO()
    found = Image.open(io.BytesIO(picture)).convert("RGB")
    # Only towards given colours does Pillow spread what is lost, and a map's colours stay smooth.
    colours = found.quantize(256, Image.Quantize.MAXCOVERAGE)
    found.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(stream, "PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    main()
