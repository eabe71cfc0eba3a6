"""A viewer as one file: the same program, its state, and a stand-in for the notebook that it was in.

The page's program: small files of plain JavaScript, joined into the one module that a notebook keeps.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import GradlightError
from ..files import replace_file

__all__ = ["offline", "program", "save_page", "stylesheet"]

# Each stands on those before it.
_FILES: tuple[str, ...] = ("numbers", "colours", "contours", "geometry", "state", "page", "store")
_FILES += ("pane", "stage", "targets", "layers", "side", "gallery", "viewer")
_ENDING = "export default { render };"
_IMPORT = re.compile(r"^import [^;]*;\n", re.MULTILINE)
_EXPORT = re.compile(r"^export (?!default)", re.MULTILINE)
_COMMENT = re.compile(r"^\s*//.*\n", re.MULTILINE)
_INDENT = re.compile(r"^\s+", re.MULTILINE)
# Text in quotes stays. (The files hold no regular expressions, and no backquotes inside backquotes: the linter sees to
# it.) Around a sign no blank is needed, nor a break after one that cannot end a statement, nor a mark
# before a bracket, nor brackets around one parameter.
_QUOTED = r"""("(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|`(?:\\.|[^`\\])*`)"""
_BLANKS = re.compile(_QUOTED + r"|[ \t]*(=>|[{}()\[\],;:=<>*/?&|!%])[ \t]*|(?<![+-])[ \t]+([+-])[ \t]+(?![+-])")
_BREAKS = re.compile(_QUOTED + r"|(?<=[,({\[;])\n|\n(?=[)}\].?:])")
_PARAMETER = re.compile(_QUOTED + r"|(?<![\w)])\((\w+)\)(?==>)")
_MARKS = re.compile(_QUOTED + r"|;(?=})|,(?=[}\])])")


@cache
def program(ending: str = _ENDING) -> str:
    """Give the module without imports, comments and blanks: every notebook that shows a viewer holds a copy.

    ending: its last statement, where `render` is what an anywidget host calls.
    """
    joined = "".join(_text(f"{name}.js") for name in _FILES).replace(_ENDING, ending)
    for pattern in (_IMPORT, _EXPORT, _COMMENT, _INDENT):
        joined = pattern.sub("", joined)
    for pattern in (_BLANKS, _BREAKS, _PARAMETER, _MARKS):
        joined = pattern.sub(lambda found: "".join(part or "" for part in found.groups()), joined)
    return joined


@cache
def stylesheet() -> str:
    """Give the style of the viewer; every rule is inside the class `gradlight`."""
    return _text("viewer.css")


def _text(name: str) -> str:
    return (files(__package__) / "static" / name).read_text(encoding="utf-8")


_POLICY = "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

# What a notebook does for a viewer, for a page that has no kernel behind it. Nothing may be fetched from anywhere.
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
const heard = {{}};
const model = {{
  get: (name) => traits[name],
  set(name, value) {{
    traits[name] = value;
    (heard[`change:${{name}}`] ?? []).forEach((then) => then());
  }},
  on: (name, then) => (heard[name] ??= []).push(then),
  off: (name, then) => (heard[name] = (heard[name] ?? []).filter((other) => other !== then)),
  save_changes() {{}},
  send() {{}},
}};
render({{ model, el: document.getElementById("viewer") }});
</script>
</body>
</html>
"""


def save_page(path: str | Path, title: str, state: Mapping[str, Any], png: bytes) -> None:
    """Write a page that holds everything it needs, whole or not at all.

    state: the viewer's traits, in JSON types or bytes. png: shown where no program runs. Raises GradlightError for a
    place that cannot be written.
    """
    traits = {name: value for name, value in state.items() if not isinstance(value, bytes)}
    coded = {name: base64.b64encode(value).decode() for name, value in state.items() if isinstance(value, bytes)}
    text = _PAGE.format(
        title=html.escape(title),
        policy=_POLICY,
        style=stylesheet(),
        png=base64.b64encode(png).decode(),
        # No label may end the element that holds it.
        state=json.dumps({"traits": traits, "bytes": coded}).replace("<", "\\u003c"),
        program=program(ending=""),
    )
    try:
        replace_file(Path(path), text.encode())
    except OSError as error:
        raise GradlightError(f"{path}: the page cannot be written ({error}). Name a folder that is there.") from error


def offline(state: Mapping[str, Any], maps: bytes, targets: Collection[str], methods: Iterable[str]) -> dict[str, Any]:
    """Bring a viewer's traits to those of a page that can ask nobody.

    maps: what is at hand, packed. targets, methods: what is there of them, and is offered.
    """
    about, scene = state["about"], state["scene"]
    options = about["options"] | {"method": [[name, name] for name in methods]}
    silent = {"live": False, "kernel": False, "search": "", "count": 1, "options": options}
    choices = [choice for choice in scene["choices"] if choice["key"] in targets]
    changed = {"about": about | silent, "scene": scene | {"choices": choices}, "work": {}, "found": {}, "listing": {}}
    return {**state, **changed, "_maps": maps}
