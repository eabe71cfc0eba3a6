"""Execute the notebooks in place and reduce the size of their outputs: `python notebooks/execute.py [NOTEBOOK…]`.

The same code on the same machine gives the same files, because times, paths and widget states are removed; of a viewer
only its picture is kept.
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

_MAX_WIDTH = 640  # pixels of a picture
_COLOURS = 96
_TIMEOUT_SECONDS = 300
_KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
_WIDGET = "application/vnd.jupyter.widget-view+json"


def notebooks() -> list[Path]:
    """List the notebooks beside this file, in the order of their numbers."""
    return sorted(FOLDER.glob("*.ipynb"))


def execute(path: Path, folder: Path) -> Any:
    """Run a notebook in a folder, with this interpreter and this checkout.

    Args:
        path: The notebook.
        folder: The working directory.

    Returns:
        The notebook with its outputs.

    Raises:
        CellExecutionError: A cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    import_paths = [str(FOLDER.parent), os.environ.get("PYTHONPATH", "")]
    # One thread sums in a fixed order, so the numbers are the same each time.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, import_paths)), "OMP_NUM_THREADS": "1"}
    client = NotebookClient(
        notebook,
        timeout=_TIMEOUT_SECONDS,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=environment)
    return notebook


def shrink(notebook: Any) -> Any:
    """Remove from an executed notebook what differs between runs, and reduce the size of its pictures."""
    notebook.metadata = nbformat.from_dict({"kernelspec": _KERNEL, "language_info": {"name": "python"}})
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict({})
        for output in cell.get("outputs", []):
            if "data" in output:
                output.data, output.metadata = _reduce_output(dict(output.data)), nbformat.from_dict({})
    return notebook


def _reduce_output(data: dict[str, Any]) -> Any:
    """Keep only the picture of an output that has one; its text is only the address of an object."""
    if "image/png" in data:
        data = {"image/png": _reduce_picture(data["image/png"])}
    data.pop(_WIDGET, None)
    return nbformat.from_dict(data)


def _reduce_picture(png: str) -> str:
    """Reduce a picture to the width of a page and few colours; one that is reduced already is unchanged."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as opened:
        if opened.mode == "P" and opened.width <= _MAX_WIDTH:
            return png
        picture = opened.convert("RGB")
    if picture.width > _MAX_WIDTH:
        height = round(picture.height * _MAX_WIDTH / picture.width)
        picture = picture.resize((_MAX_WIDTH, height), Image.Resampling.LANCZOS)
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
