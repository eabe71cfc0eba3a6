"""The viewer: thin traits that the page and Python share, and what each of them asks of the other."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from ..errors import GradlightError, nearest
from ..explainers.maps import SaliencyMaps
from .controller import Controller
from .map_sources import MapSource
from .page import offline, program, save_page, stylesheet
from .payload import COMPARED, TABLES, MapKey, Pane, colour_tables, panes_of
from .picture import draw

__all__ = ["OPTIONS", "Viewer"]

OPTIONS: dict[str, dict[str, str]] = {
    "display": {"overlay": "Overlay", "map": "Alone", "contours": "Contours"},
    "normalisation": {
        "auto": "automatic",
        "minmax": "least to largest",
        "percentile": "1st to 99th percentile",
        "symmetric": "symmetric about 0",
    },
    "colours": {"auto": "automatic", **{name: name for name in TABLES}},
    "combine": {"off": "Off", "product": "Product", "sum": "Sum"},
    "weighting": {"linear": "Linear weights", "uniform": "Uniform weights"},
    "meta": {"off": "Off", "descent": "Descent", "ascent": "Ascent"},
    "compare": dict(zip(COMPARED, ("nothing", "methods", "layers", "targets", "steps"), strict=True)),
}
"""The values of the traits that have only a few, and how the page calls them."""


def _one_of(name: str) -> traitlets.Enum[Any]:
    return traitlets.Enum(list(OPTIONS[name]), next(iter(OPTIONS[name]))).tag(sync=True)


class Viewer(anywidget.AnyWidget):
    """Maps to look at: a widget like any other, made by `gradlight.view`.

    image: the number of the image. target: what is asked about, a label or a caption, in which brackets mark words.
    method, layer. meta ("off", "descent", "ascent") and lr: the inner step. combine ("off", "product", "sum"): all
    layers in one; weighting ("linear", "uniform") and weights ({layer: 0…1}, where one differs). compare ("off",
    "method", "layer", "target", "meta") and others: what up to three more panes show. opacity, colours, display,
    normalisation, theme ("auto", "light", "dark"): how. All can be set, observed and linked.

    Maps that are not at hand are computed in the background; `wait` waits for them.
    """

    _esm = program()
    _css = stylesheet()

    image = traitlets.Int(0).tag(sync=True)
    target = traitlets.Unicode("").tag(sync=True)
    method = traitlets.Unicode("").tag(sync=True)
    layer = traitlets.Unicode("").tag(sync=True)
    meta = _one_of("meta")
    lr = traitlets.Float(0.002, min=0).tag(sync=True)
    combine = _one_of("combine")
    weighting = _one_of("weighting")
    weights = traitlets.Dict(value_trait=traitlets.Float(min=0, max=1)).tag(sync=True)
    compare = _one_of("compare")
    others = traitlets.List(traitlets.Unicode()).tag(sync=True)
    opacity = traitlets.Float(0.75, min=0, max=1).tag(sync=True)
    colours = _one_of("colours")
    display = _one_of("display")
    normalisation = _one_of("normalisation")
    theme = traitlets.Enum(["auto", "light", "dark"], "auto").tag(sync=True)

    # What only Python sets: what there is, the image's targets and its photo, maps, progress, answers.
    about = traitlets.Dict().tag(sync=True)
    scene = traitlets.Dict().tag(sync=True)
    work = traitlets.Dict().tag(sync=True)
    found = traitlets.Dict().tag(sync=True)
    listing = traitlets.Dict().tag(sync=True)
    _photo = traitlets.Bytes(b"").tag(sync=True)
    _maps = traitlets.Bytes(b"").tag(sync=True)
    _tables = traitlets.Bytes(b"").tag(sync=True)

    exported = traitlets.Bytes(b"", help="the PNG that was last saved in the page")

    def __init__(
        self, source: MapSource, opened: Mapping[MapKey, SaliencyMaps], part: MapKey, look: Mapping[str, Any]
    ) -> None:
        self._gate = threading.RLock()
        self._server = Controller(self, source, opened)
        about: dict[str, Any] = {
            "title": source.title,
            "live": source.live,
            "kernel": True,
            "count": len(source),
            "search": source.search,
            "prompt": source.prompt,
            "traits": [name for name in Viewer.class_own_traits(sync=True) if not name.startswith("_")],
            "tables": list(TABLES),
            "layers": source.about(),
            "options": {name: [list(pair) for pair in values.items()] for name, values in OPTIONS.items()},
        }
        step = {} if part.meta == "off" else {"meta": part.meta, "lr": part.lr}
        super().__init__(
            about=about | {"options": about["options"] | {"method": [[name, name] for name in source.methods]}},
            method=source.methods[0],
            layer=source.layers[-1],
            _tables=colour_tables(),
            **step,
        )
        self._server.open(part.image, part.target)
        for name, value in look.items():
            setattr(self, name, value)
        self.on_msg(self._hear)
        self.observe(self._server.provide, ["image", "target", "method", "meta", "lr", "compare", "others"])
        self._server.provide()

    @property
    def maps(self) -> SaliencyMaps:
        """The maps of the image and target on show, by every method that has been asked for: raw, as `explain`'s.

        Raises GradlightError while they are still being computed.
        """
        return self._server.maps(self.panes()[0].part(self.image, self.lr))

    def panes(self) -> list[Pane]:
        """List what is on show, pane by pane: target, method, layer, meta, combine."""
        first = Pane(self.target, self.method, self.layer, self.meta, self.combine)
        return panes_of(first, self.compare, self.others)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everything that was asked for is computed; tell whether it is within timeout (seconds)."""
        return self._server.wait(timeout)

    def cancel(self) -> None:
        """Call off what is being computed, and show what was there before."""
        self._server.cancel()

    def picture(self) -> bytes:
        """Draw what is on show as a PNG, as saved notebooks keep it."""
        return draw(*self._server.shown(self.panes()), self.opacity)

    def save_html(self, path: str | Path) -> None:
        """Write a page that needs neither Python nor a network: everything of the image on show that is at hand.

        Raises GradlightError for a place that cannot be written.
        """
        state = {name: getattr(self, name) for name in Viewer.class_own_traits(sync=True)}
        title = f"{self.about['title']} · {self.scene['name']}"
        save_page(path, title, offline(state, *self._server.packed()), self.picture())

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take changes of the page; never between two changes of the background's."""
        with self._gate:
            super().set_state(sync_data)

    def change(self, **traits: Any) -> None:
        """Change several traits at once, from any thread."""
        with self._gate, self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)

    def close(self) -> None:
        """Close every display of the viewer, and stop what it is doing."""
        self._server.close()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Show the widget, and beside it a picture for wherever it cannot run."""
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle or {}, {})
        return data | {"image/png": base64.b64encode(self.picture()).decode()}, metadata

    @traitlets.validate("image")
    def _check_image(self, proposal: Any) -> int:
        count: int = self.about.get("count", 1)
        if not -count <= proposal["value"] < count:
            raise GradlightError(f"There is no image {proposal['value']}: there are {count}, counted from 0.")
        return int(proposal["value"]) % count

    @traitlets.validate("target")
    def _check_target(self, proposal: Any) -> str:
        return self._server.key(str(proposal["value"]))

    @traitlets.validate("method")
    def _check_method(self, proposal: Any) -> str:
        return self._server.admit(str(proposal["value"]))

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> str:
        name, layers = str(proposal["value"]), [layer["name"] for layer in self.about["layers"]]
        if name not in layers:
            raise GradlightError(f"There are no maps at layer {name!r}.{nearest(name, layers)}")
        return name

    def _hear(self, _: Any, message: Any, __: Any) -> None:
        """Answer the page; an error becomes a sentence there."""
        answers: dict[str, Callable[..., None]] = {
            "want": self._server.deliver,
            "find": self._server.find,
            "list": self._server.list_images,
            "cancel": self._server.cancel,
            "target": lambda text: self.change(target=text),
            "save": lambda **kind: self._server.save(kind["as"]),
            "picture": self._take_picture,
        }
        asked = dict(message) if isinstance(message, dict) else {}
        answer = answers.get(asked.pop("do", ""))
        if answer is not None:
            try:
                answer(**asked)
            except GradlightError as error:
                self.change(work={"state": "failed", "text": str(error)})

    def _take_picture(self, png: str) -> None:
        try:
            self.exported = base64.b64decode(png, validate=True)
        except binascii.Error as error:
            raise GradlightError("The page sent no picture.") from error
