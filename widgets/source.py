"""The page's program: small files of plain JavaScript, joined into the one module that a notebook keeps."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files

__all__ = ["program", "stylesheet"]

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
