"""Execute the notebooks in place, and keep what they show small: `python notebooks/execute.py [NOTEBOOK…]`.

The same code on the same machine gives the same files: no times, no paths, no widget state; a viewer is kept as its
picture.
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

__all__ = ["FOLDER", "execute", "main", "notebooks", "shrink"]

FOLDER = Path(__file__).resolve().parent

_WIDEST = 640
_COLOURS = 96
_SECONDS = 300
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks() -> list[Path]:
    """List the notebooks beside this file, in the order of their numbers."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path) -> Any:
    """Run a notebook in a folder, with this interpreter and this checkout; give it with its outputs.

    Raises nbclient's CellExecutionError for a cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    places = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    # One thread adds in one order, so the same numbers come out each time.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places)), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook,
        timeout=_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return notebook


def shrink(notebook: Any) -> Any:
    """Take out of an executed notebook what differs from run to run, and make its pictures small."""
    notebook.metadata = nbformat.from_dict({"kernelspec": _KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data, output.metadata = _shown(dict(output.data)), nbformat.from_dict({})
    return notebook


def _shown(data: dict[str, Any]) -> Any:
    """Keep the picture where there is one: beside it the text is only an object's address."""
    if "image/png" in data:
        data = {"image/png": _small(data["image/png"])}
    data.pop(_WIDGET, None)
    return nbformat.from_dict(data)


def _small(png: str) -> str:
    """Bring a picture to a page's width and few colours; one that is so already stays as it is."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as opened:
        if opened.mode == "P" and opened.width <= _WIDEST:
            return png
        picture = opened.convert("RGB")
    if picture.width > _WIDEST:
        height = round(picture.height * _WIDEST / picture.width)
        picture = picture.resize((_WIDEST, height), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    picture.quantize(_COLOURS, dither=Image.Dither.NONE).save(stream, format="PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def main(names: Sequence[str]) -> None:
    """Execute these notebooks, or all of them."""
    for path in [Path(name) for name in names] or notebooks():
        with tempfile.TemporaryDirectory() as folder:
            notebook = shrink(execute(path, Path(folder)))
        nbformat.write(notebook, path)
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main(sys.argv[1:])
