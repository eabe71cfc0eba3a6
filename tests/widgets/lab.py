"""JupyterLab with a kernel that imports this checkout, and a notebook in it that a browser drives."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Lab", "Notebook", "start"]

CHECKOUT = Path(__file__).parents[2]
_KERNEL = "checkout"
_STATUS = "jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status"
_SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    # Saved only when a test says so.
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}
_OPTIONS = ("--no-browser", "--allow-root", "--ip=127.0.0.1", "--ServerApp.port_retries=0", "--IdentityProvider.token=")
_OPTIONS += ("--LabApp.expose_app_in_browser=True", "--LabApp.news_url=None", "--LabApp.open_browser=False")


class Lab(NamedTuple):
    """A running JupyterLab: its address, the folder it shows, its process."""

    url: str
    folder: Path
    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        """End it, and its kernels with it."""
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)

    def write(self, name: str, *cells: str) -> None:
        """Write a notebook of cells of code that have not been run."""
        blank = {"cell_type": "code", "metadata": {}, "outputs": [], "execution_count": None}
        kernel = {"name": _KERNEL, "display_name": _KERNEL, "language": "python"}
        made = {
            "cells": [{**blank, "id": f"cell{number}", "source": source} for number, source in enumerate(cells)],
            "metadata": {"kernelspec": kernel},
            "nbformat": 4,
            "nbformat_minor": 5,
        }
        self.put(name, made)

    def put(self, name: str, notebook: dict[str, Any]) -> None:
        """Put a notebook into the folder."""
        (self.folder / name).write_text(json.dumps(notebook), encoding="utf-8")

    def read(self, name: str) -> dict[str, Any]:
        """Read a notebook as it lies in the folder."""
        found: dict[str, Any] = json.loads((self.folder / name).read_text(encoding="utf-8"))
        return found


class Notebook:
    """A notebook that is open in a page."""

    def __init__(self, page: Any, lab: Lab, name: str) -> None:
        self.page = page
        page.goto(f"{lab.url}/lab/tree/{name}?reset")
        self.until(f"window.jupyterapp && {_STATUS} === 'idle'", 60)
        self.viewer = page.locator(".gradlight")

    def run(self, seconds: float = 60) -> None:
        """Run all cells, and wait until the viewer has drawn what it shows."""
        self.command("notebook:run-all-cells")
        self.settled(seconds)

    def command(self, name: str, **arguments: Any) -> None:
        """Do what a menu's entry does, without waiting for its end."""
        self.page.evaluate("([name, args]) => { jupyterapp.commands.execute(name, args); }", [name, arguments])

    def until(self, condition: str, seconds: float = 20) -> None:
        """Wait until a condition, as JavaScript, holds on the page."""
        self.page.wait_for_function(f"() => Boolean({condition})", timeout=1000 * seconds)

    def settled(self, seconds: float = 20) -> None:
        """Wait until nothing is missing from what the viewer shows."""
        self.until("document.querySelector('.gradlight')?.dataset.missing === '0'", seconds)

    def shows(self, *parts: str, seconds: float = 20) -> None:
        """Wait until the viewer shows this target, method, layer, step and image, and has drawn it."""
        wanted = json.dumps(" | ".join(parts))
        self.until(f"document.querySelector('.gradlight').dataset.shown === {wanted}", seconds)
        self.settled(seconds)

    def pixels(self) -> str:
        """Give what the first pane shows."""
        found: str = self.page.evaluate("() => document.querySelector('.gradlight canvas').toDataURL()")
        return found

    def cells(self) -> tuple[int, int]:
        """Give how many cells there are, and which is the active one."""
        count, active = self.page.evaluate(
            "() => { const { content } = jupyterapp.shell.currentWidget; return [content.widgets.length,"
            " content.activeCellIndex]; }"
        )
        return count, active

    def python(self, code: str) -> str:
        """Evaluate an expression in the kernel."""
        told: str = self.page.evaluate(
            """async (code) => {
              const { kernel } = jupyterapp.shell.currentWidget.sessionContext.session;
              const asked = kernel.requestExecute({ code: "", user_expressions: { x: code }, store_history: false });
              const { x } = (await asked.done).content.user_expressions;
              return x.data?.["text/plain"] ?? `${x.ename}: ${x.evalue}`;
            }""",
            code,
        )
        return told

    def save(self) -> None:
        """Save it, and wait until it lies in the folder."""
        self.page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")

    def close(self) -> None:
        """End its kernel, and close its page."""
        self.page.evaluate("() => jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.close()


def start(folder: Path) -> Lab:
    """Start JupyterLab on a free port, with nothing of the user's own settings."""
    own, shown = folder / "own", folder / "notebooks"
    kernel = own / "DATA" / "kernels" / _KERNEL
    for made in (shown, kernel):
        made.mkdir(parents=True)
    launch = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": launch, "display_name": _KERNEL, "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    (own / "overrides.json").write_text(json.dumps(_SETTINGS), encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = [f"--port={port}", f"--ServerApp.root_dir={shown}", f"--LabApp.app_settings_dir={own}"]
    command = [sys.executable, "-m", "jupyterlab", *_OPTIONS, *places]
    with open(own / "log", "wb") as log:
        process = subprocess.Popen(command, env=_environment(own), stdout=log, stderr=subprocess.STDOUT)
    lab = Lab(f"http://127.0.0.1:{port}", shown, process)
    _wait(lab, own / "log")
    return lab


def _environment(own: Path) -> dict[str, str]:
    paths = [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]
    places = {f"JUPYTER_{kind}_DIR": str(own / kind) for kind in ("CONFIG", "DATA", "RUNTIME")}
    alone = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "IPYTHONDIR": str(own / "ipython")}
    return {**os.environ, **places, **alone, "JUPYTER_PREFER_ENV_PATH": "1"}


def _wait(lab: Lab, log: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"{lab.url}/api"):
                return
        except OSError:
            if lab.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"JupyterLab did not start: {log.read_text(encoding='utf-8')}") from None
            time.sleep(0.1)
