"""Screenshots of the viewer for the documentation: a classifier, the words of a caption, four panes.

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
MAX_BYTES = 300_000
COMBINED = ["layer3.0", "layer4.0", "layer4"]
BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "docs")
    out = parser.parse_args().out
    torch.manual_seed(0)
    with browser() as running:
        for name, (make, scheme, sharpness) in PICTURES.items():
            picture = reduce_colours(take_screenshot(running, make(), scheme, sharpness))
            if len(picture) > MAX_BYTES:
                sys.exit(f"{name}.png would have {len(picture)} bytes; the documents take {MAX_BYTES}.")
            (out / f"{name}.png").write_bytes(picture)
            print(f"{out / name}.png: {len(picture) / 1000:.0f} kB")


def classifier() -> gl.Viewer:
    model = gl.classifier("scenes")
    layers = [layer.name for layer in model.layers() if layer.name in ("input", "conv1", *BLOCKS)]
    return gl.view(model, SCENES / "scene_6.png", "star", layers=layers, layer="layer4.0")


def words() -> gl.Viewer:
    model, photo = gl.captioner("scenes"), SCENES / "scene_2.png"
    layers = [layer.name for layer in model.layers() if layer.name in BLOCKS]
    caption = " ".join(model.caption(photo)[0].words)
    target = caption.replace("orange star", "[orange star]")
    return gl.view(model, photo, target, layers=layers, layer="layer4.0")


def compared() -> gl.Viewer:
    model, others = gl.classifier("scenes"), ["ring", "red", "cross"]
    return gl.view(
        model, SCENES / "scene_6.png", "star", layers=COMBINED, combine="product", compare="target", others=others
    )


# Name → the viewer, the theme, and the pixels of the picture per pixel of the page.
PICTURES: dict[str, tuple[Callable[[], gl.Viewer], str, float]] = {
    "viewer": (classifier, "light", 1.5),
    "viewer-words": (words, "dark", 1.25),
    "viewer-compare": (compared, "light", 1),
}


def take_screenshot(running: Any, viewer: gl.Viewer, scheme: str, sharpness: float) -> bytes:
    """Take a screenshot of a viewer on an empty page."""
    from bare_page import BarePage

    size = {"width": WIDTH + 16, "height": 900}
    page = running.new_page(viewport=size, device_scale_factor=sharpness, color_scheme=scheme)
    shown = BarePage(page, viewer)
    shown.settled()
    taken: bytes = page.locator(".gradlight").screenshot()
    page.close()
    viewer.close()
    return taken


def reduce_colours(picture: bytes) -> bytes:
    """Encode a picture with few colours: a third of the bytes, without a visible difference."""
    stream = io.BytesIO()
    image = Image.open(io.BytesIO(picture)).convert("RGB")
    # Pillow dithers only towards a given palette, and with dithering the colours of a map stay smooth.
    colours = image.quantize(256, Image.Quantize.MAXCOVERAGE)
    image.quantize(palette=colours, dither=Image.Dither.FLOYDSTEINBERG).save(stream, "PNG", optimize=True)
    return stream.getvalue()


if __name__ == "__main__":
    main()
