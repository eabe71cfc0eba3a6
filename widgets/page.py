"""The viewer's page: its JavaScript program and style, and the program with its state as one HTML file."""

from __future__ import annotations

import base64
import html
import json
import os
import tempfile
import threading
import time
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import GradlightError
from ..files import replace_file

__all__ = ["offline_state", "program", "program_source", "save_page", "stylesheet", "stylesheet_source"]

_STATIC = Path(__file__).parent / "static"
# Each module uses only modules before it.
_MODULES: tuple[str, ...] = ("numbers", "colours", "contours", "geometry", "state", "page", "store")
_MODULES += ("pane", "stage", "targets", "layers", "side", "gallery", "viewer")
_EXPORT = "export default { render };\n"
_REJOIN_SECONDS = 0.5


# --- Program and style


@cache
def program(export: bool = True) -> str:
    """Join the JavaScript modules into one, which needs no import.

    Args:
        export: Whether to export `render`, as anywidget expects; without, `render` is a function of the script.

    Returns:
        The text of the module.

    Example:
        >>> "import " in program()
        False
    """
    text = _join_modules()
    return text if export else text.removesuffix(_EXPORT)


@cache
def stylesheet() -> str:
    """Read the style; each rule applies inside the class `gradlight` only."""
    return (_STATIC / "viewer.css").read_text(encoding="utf-8")


def program_source() -> str | Path:
    """Give the program for anywidget: its text, or a path that anywidget watches when ANYWIDGET_HMR=1."""
    if not _hot_reload():
        return program()
    path = Path(tempfile.mkdtemp(prefix="gradlight-")) / "viewer.js"
    path.write_text(_join_modules(), encoding="utf-8")
    threading.Thread(target=_keep_joined, args=(path,), name="gradlight-hot-reload", daemon=True).start()
    return path


def stylesheet_source() -> str | Path:
    """Give the style for anywidget: its text, or its path when ANYWIDGET_HMR=1."""
    return _STATIC / "viewer.css" if _hot_reload() else stylesheet()


def _hot_reload() -> bool:
    """Tell whether anywidget's hot reload is on."""
    return os.environ.get("ANYWIDGET_HMR") == "1"


def _keep_joined(path: Path) -> None:
    """Write the joined program anew after each edit of a module."""
    written = path.read_text(encoding="utf-8")
    while True:
        time.sleep(_REJOIN_SECONDS)
        joined = _join_modules()
        if joined != written:
            path.write_text(joined, encoding="utf-8")
            written = joined


def _join_modules() -> str:
    """Concatenate the modules without their imports and named exports; each of those fits on one line."""
    lines: list[str] = []
    for name in _MODULES:
        with open(_STATIC / f"{name}.js", encoding="utf-8") as module:
            lines += [line for line in module if not line.startswith("import ")]
    return "".join(line if line == _EXPORT else line.removeprefix("export ") for line in lines)


# --- The page as one file

_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

# The script stands in for the notebook's widget manager; there is no kernel, and the policy forbids all requests.
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ margin: 0 auto; padding: 16px; max-width: 1280px; background: light-dark(#eef0f3, #0d0f12); }}
{style}
</style>
</head>
<body>
<main id="viewer"></main>
<noscript><img alt="{title}" src="data:image/png;base64,{png}"></noscript>
<script type="application/json" id="state">{state}</script>
<script type="module">
{program}
const {{ traits, bytes }} = JSON.parse(document.getElementById("state").textContent);
for (const name in bytes) {{
  traits[name] = new DataView(Uint8Array.from(atob(bytes[name]), (c) => c.charCodeAt(0)).buffer);
}}
const listeners = {{}};
const model = {{
  get: (name) => traits[name],
  set(name, value) {{
    traits[name] = value;
    (listeners[`change:${{name}}`] ?? []).forEach((listener) => listener());
  }},
  on: (name, listener) => (listeners[name] ??= []).push(listener),
  off: (name, listener) => (listeners[name] = (listeners[name] ?? []).filter((other) => other !== listener)),
  save_changes() {{}},
  send() {{}},
}};
render({{ model, el: document.getElementById("viewer") }});
</script>
</body>
</html>
"""


def save_page(path: str | Path, title: str, state: Mapping[str, Any], png: bytes) -> None:
    """Write a page that holds all that it needs; the file is complete or unchanged.

    Args:
        path: The HTML file.
        title: Title of the page.
        state: Values of the viewer's traits, in JSON types or bytes.
        png: A picture for readers that run no program.

    Raises:
        GradlightError: The file cannot be written.
    """
    traits = {name: value for name, value in state.items() if not isinstance(value, bytes)}
    encoded = {name: base64.b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    text = _PAGE.format(
        title=html.escape(title),
        policy=_POLICY,
        style=stylesheet(),
        png=base64.b64encode(png).decode(),
        # A label must not end the element that holds it.
        state=json.dumps({"traits": traits, "bytes": encoded}).replace("<", "\\u003c"),
        program=program(export=False),
    )
    try:
        replace_file(Path(path), text.encode())
    except OSError as error:
        raise GradlightError(f"{path}: the page cannot be written ({error}). Name a folder that exists.") from error


def offline_state(
    state: Mapping[str, Any], maps: bytes, targets: Collection[str], methods: Iterable[str]
) -> dict[str, Any]:
    """Change a viewer's traits into those of a page without a kernel.

    Args:
        state: Values of the viewer's traits.
        maps: All maps of the displayed image, packed.
        targets: Keys of their targets.
        methods: Names of their methods.

    Returns:
        The traits of the page, which offers these targets and methods only.
    """
    source, scene = state["about"], state["scene"]
    options = source["options"] | {"method": [[name, name] for name in methods]}
    silent = {"live": False, "kernel": False, "search": "", "count": 1, "options": options}
    choices = [choice for choice in scene["choices"] if choice["key"] in targets]
    changed = {"about": source | silent, "scene": scene | {"choices": choices}, "work": {}, "found": {}, "listing": {}}
    return {**state, **changed, "_maps": maps}
