"""The table of the viewer's options: traits, page controls, docstrings and the static picture derive from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from textwrap import indent, wrap
from typing import Any, TypeVar

import traitlets

__all__ = [
    "COLOUR_TABLES",
    "DISPLAY_OPTIONS",
    "MAP_OPTIONS",
    "OPTIONS",
    "ViewerOption",
    "describe_controls",
    "document_options",
]

COLOUR_TABLES = {"inferno": "inferno", "viridis": "viridis", "magma": "magma", "cividis": "cividis", "grey": "gray"} | {
    "blue-red": "RdBu_r"
}
"""matplotlib's colour maps by their names on the page; all but the last, for signed maps, are perceptually uniform."""


@dataclass(frozen=True)
class ViewerOption:
    """One option of the viewer: its trait, its control on the page, and its line in the docstrings.

    Args:
        name: Name of the trait and of the keyword of `gradlight.view`.
        default: Value of a new viewer; its type decides the type of the trait.
        label: Caption of the control on the page.
        help: One sentence for docstrings, the trait's help, and the control's tooltip.
        values: Allowed values with their texts on the page; empty where values are not listed.
        bounds: Allowed minimum and maximum of a number (or of the numbers in a dictionary).
        selects: Whether the option decides which maps are needed.
        draws: Whether the option decides how maps are drawn, on the page and in the static picture.

    Example:
        >>> OPTIONS["opacity"].trait().validate(None, 0.5)
        0.5
        >>> list(OPTIONS["display"].values)
        ['overlay', 'map', 'contours']
    """

    name: str
    default: Any
    label: str
    help: str
    values: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, Any] = field(default_factory=dict)
    selects: bool = False
    draws: bool = False

    def trait(self) -> traitlets.TraitType[Any, Any]:
        """Make the synchronised trait of this option."""
        made: traitlets.TraitType[Any, Any]
        match self.default:
            case str() if self.values:
                made = traitlets.Enum(list(self.values), self.default, help=self.help)
            case str():
                made = traitlets.Unicode(self.default, help=self.help)
            case float():
                made = traitlets.Float(self.default, **self.bounds, help=self.help)
            case dict():
                made = traitlets.Dict(value_trait=traitlets.Float(**self.bounds), help=self.help)
            case list():
                made = traitlets.List(traitlets.Unicode(), help=self.help)
            case _:
                made = traitlets.Int(self.default, help=self.help)
        return made.tag(sync=True)

    def format_help(self) -> str:
        """Format the option as an entry of a Google docstring: name, allowed values or type, help, default."""
        kind = " | ".join(f'"{value}"' for value in self.values) or type(self.default).__name__
        default = f' Default: "{self.default}".' if self.values else f" Default: {self.default}." if self.bounds else ""
        return "\n    ".join(wrap(f"{self.name} ({kind}): {self.help}{default}", 108, break_on_hyphens=False))


def _same(*names: str) -> dict[str, str]:
    """Give values whose texts on the page are the values themselves."""
    return {name: name for name in names}


def _table() -> Iterator[ViewerOption]:
    yield ViewerOption("image", 0, "Image", "Number of the displayed image, from 0.", selects=True)
    yield ViewerOption(
        "target",
        "",
        "Target",
        "What the maps explain: a class label, or a caption in which brackets mark words.",
        selects=True,
    )
    yield ViewerOption("method", "", "Method", "Name of the method whose maps are displayed.", selects=True)
    yield ViewerOption("layer", "", "Layer", "Name of the layer whose map is displayed.")
    yield ViewerOption(
        "meta",
        "off",
        "Meta-saliency",
        "Direction of the inner SGD step that precedes the method.",
        {"off": "Off", "descent": "Descent", "ascent": "Ascent"},
        selects=True,
    )
    yield ViewerOption(
        "lr", 0.002, "Learning rate", "Learning rate of the inner step.", bounds={"min": 0}, selects=True
    )
    yield ViewerOption(
        "combine",
        "off",
        "Combination",
        "How the maps of all layers are combined into one.",
        {"off": "Off", "product": "Product", "sum": "Sum"},
    )
    yield ViewerOption(
        "weighting",
        "linear",
        "Weighting",
        "Weights of the layers in a combination: growing with depth, or equal.",
        {"linear": "Linear weights", "uniform": "Uniform weights"},
    )
    yield ViewerOption(
        "weights",
        {},
        "Weights",
        "Weights of single layers, 0 to 1, that differ from the weighting: {layer: weight}.",
        bounds={"min": 0, "max": 1},
    )
    yield ViewerOption(
        "compare",
        "off",
        "Compare",
        "What differs between the panes.",
        {"off": "nothing", "method": "methods", "layer": "layers", "target": "targets", "meta": "steps"},
        selects=True,
    )
    yield ViewerOption(
        "others", [], "Further panes", "Values of the compared option in up to three further panes.", selects=True
    )
    yield ViewerOption(
        "opacity",
        0.75,
        "Opacity",
        "Opacity of the strongest locations of an overlay, 0 to 1.",
        bounds={"min": 0, "max": 1},
        draws=True,
    )
    yield ViewerOption(
        "colours",
        "auto",
        "Colours",
        'Colour table; "auto" is blue-red for a symmetric range and inferno for any other.',
        {"auto": "automatic", **_same(*COLOUR_TABLES)},
        draws=True,
    )
    yield ViewerOption(
        "display",
        "overlay",
        "Display",
        "Map over the photo, map without the photo, or contour lines over the photo.",
        {"overlay": "Overlay", "map": "Alone", "contours": "Contours"},
        draws=True,
    )
    yield ViewerOption(
        "normalisation",
        "auto",
        "Range",
        'Range of values that the colours span; "auto" is symmetric for a method with negative values, else minmax.',
        {
            "auto": "automatic",
            "minmax": "least to largest",
            "percentile": "1st to 99th percentile",
            "symmetric": "symmetric about 0",
        },
        draws=True,
    )
    yield ViewerOption(
        "theme",
        "auto",
        "Theme",
        'Colours of the page; "auto" follows the notebook or the browser, and is light in a static picture.',
        _same("auto", "light", "dark"),
        draws=True,
    )


OPTIONS: dict[str, ViewerOption] = {option.name: option for option in _table()}
"""The viewer's options by name."""

MAP_OPTIONS = tuple(option.name for option in OPTIONS.values() if option.selects)
"""The names of the options that decide which maps are needed (all layers are computed at once)."""

DISPLAY_OPTIONS = tuple(option.name for option in OPTIONS.values() if option.draws)
"""The names of the options that decide how maps are drawn."""


def describe_controls() -> dict[str, dict[str, Any]]:
    """Describe the options for the page, in JSON types: label, help and bounds of each, and the allowed values.

    Returns:
        "controls": {name: {"label", "help", "min"?, "max"?}}; "options": {name: [[value, text], …]} of those options
        that have a list of allowed values.
    """
    return {
        "controls": {name: {"label": o.label, "help": o.help, **o.bounds} for name, o in OPTIONS.items()},
        "options": {name: [list(pair) for pair in o.values.items()] for name, o in OPTIONS.items() if o.values},
    }


Documented = TypeVar("Documented")


def document_options(documented: Documented) -> Documented:
    """Append the table of options to the docstring of a class or function."""
    if documented.__doc__ is not None:
        entries = "\n".join(option.format_help() for option in OPTIONS.values())
        documented.__doc__ += f"\n    Options:\n{indent(entries, ' ' * 8)}\n    "
    return documented
