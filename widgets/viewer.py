"""The viewer's widget: traits that the page and Python share, and the messages that the page sends."""

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
from .options import COLOUR_TABLES, MAP_OPTIONS, OPTIONS, describe_controls, document_options
from .page import offline_state, program_source, save_page, stylesheet_source
from .payload import MapKey, Pane, colour_tables, panes_of

__all__ = ["Viewer"]


def _trait(name: str) -> Any:
    """Make the trait of an option; its values are of the type of the option's default."""
    return OPTIONS[name].trait()


@document_options
class Viewer(anywidget.AnyWidget):
    """A viewer of saliency maps: a Jupyter widget, made by `gradlight.view`.

    Each option below is a trait: it can be set, observed and linked. Maps that are not cached are computed in the
    background; `wait` waits for them.

    Args:
        source: Where maps come from.
        initial_maps: The maps with which the viewer opens.
        key: The image, target and inner step with which it opens.
        options: Values of further options.

    Raises:
        GradlightError: An option names an image, target, method or layer that is unknown.

    Example:
        >>> import torch
        >>> viewer = gl.view(gl.classifier("scenes"), torch.rand(1, 3, 160, 160), layers="layer4")
        >>> viewer.display = "contours"
        >>> viewer.maps.layers
        ['layer4']
        >>> viewer.picture()[1:4]
        b'PNG'
    """

    _esm = program_source()
    _css = stylesheet_source()

    image = _trait("image")
    target = _trait("target")
    method = _trait("method")
    layer = _trait("layer")
    meta = _trait("meta")
    lr = _trait("lr")
    combine = _trait("combine")
    weighting = _trait("weighting")
    weights = _trait("weights")
    compare = _trait("compare")
    others = _trait("others")
    opacity = _trait("opacity")
    colours = _trait("colours")
    display = _trait("display")
    normalisation = _trait("normalisation")
    theme = _trait("theme")

    # Set by Python alone.
    about = traitlets.Dict(help="the source: title, layers, controls and their allowed values").tag(sync=True)
    scene = traitlets.Dict(help="the displayed image: name, size, targets").tag(sync=True)
    work = traitlets.Dict(help="the computation: its state, progress and error").tag(sync=True)
    found = traitlets.Dict(help="the hits of a search for classes").tag(sync=True)
    listing = traitlets.Dict(help="rows of the list of images").tag(sync=True)
    _photo = traitlets.Bytes(b"").tag(sync=True)
    _maps = traitlets.Bytes(b"").tag(sync=True)
    _tables = traitlets.Bytes(b"").tag(sync=True)

    exported = traitlets.Bytes(b"", help="the PNG that was last saved on the page")

    def __init__(
        self,
        source: MapSource,
        initial_maps: Mapping[MapKey, SaliencyMaps],
        key: MapKey,
        options: Mapping[str, Any],
    ) -> None:
        self.lock = threading.RLock()
        self._controller = Controller(self, source, initial_maps)
        controls = describe_controls()
        controls["options"]["method"] = [[name, name] for name in source.methods]
        step = {} if key.meta == "off" else {"meta": key.meta, "lr": key.lr}
        super().__init__(
            about={
                "title": source.title,
                "live": source.live,
                "kernel": True,
                "count": len(source),
                "search": source.search,
                "prompt": source.prompt,
                "traits": [name for name in Viewer.class_own_traits(sync=True) if not name.startswith("_")],
                "tables": list(COLOUR_TABLES),
                "layers": source.describe_layers(),
                **controls,
            },
            method=source.methods[0],
            layer=source.layers[-1],
            _tables=colour_tables(),
            **step,
        )
        self._controller.open_image(key.image, key.target)
        for name, value in options.items():
            setattr(self, name, value)
        self.on_msg(self._receive)
        self.observe(self._controller.update, list(MAP_OPTIONS))
        self._controller.update()

    @property
    def maps(self) -> SaliencyMaps:
        """The maps of the displayed image and target, by all methods that have been computed: raw, as `explain`'s.

        Raises:
            GradlightError: They are still being computed.
        """
        return self._controller.maps(self.panes()[0].map_key(self.image, self.lr))

    def panes(self) -> list[Pane]:
        """List the displayed panes.

        Returns:
            Target, method, layer, inner step and combination of each pane.
        """
        first = Pane(self.target, self.method, self.layer, self.meta, self.combine)
        return panes_of(first, self.compare, self.others)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until all displayed maps are computed.

        Args:
            timeout: Seconds to wait at most; None waits without a limit.

        Returns:
            Whether they are computed.
        """
        return self._controller.wait(timeout)

    def cancel(self) -> None:
        """Cancel the computation, and restore what was displayed before."""
        self._controller.cancel()

    def picture(self) -> bytes:
        """Draw the displayed panes, with their colours, display, range and theme.

        Returns:
            A PNG, which saved notebooks keep.
        """
        return self._controller.draw_picture()

    def save_html(self, path: str | Path) -> None:
        """Write the viewer as a page that needs neither Python nor a network.

        Args:
            path: The file; it holds all maps of the displayed image that have been computed.

        Raises:
            GradlightError: The file cannot be written.
        """
        state = {name: getattr(self, name) for name in Viewer.class_own_traits(sync=True)}
        title = f"{self.about['title']} · {self.scene['name']}"
        save_page(path, title, offline_state(state, *self._controller.pack_image()), self.picture())

    def change(self, **traits: Any) -> None:
        """Change several traits at once, from any thread.

        Args:
            **traits: New values by name.
        """
        with self.lock, self.hold_sync():
            for name, value in traits.items():
                setattr(self, name, value)

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """Take changes of the page; never between two changes made in the background."""
        with self.lock:
            super().set_state(sync_data)

    def close(self) -> None:
        """Close all displays of the viewer, and cancel its work."""
        self._controller.close()
        super().close()

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        """Show the widget, and a picture wherever it cannot run."""
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
        return self._controller.resolve_target(str(proposal["value"]))

    @traitlets.validate("method")
    def _check_method(self, proposal: Any) -> str:
        return self._controller.add_method(str(proposal["value"]))

    @traitlets.validate("layer")
    def _check_layer(self, proposal: Any) -> str:
        name, layers = str(proposal["value"]), [layer["name"] for layer in self.about["layers"]]
        if name not in layers:
            raise GradlightError(f"There are no maps at layer {name!r}.{nearest(name, layers)}")
        return name

    def _receive(self, _: Any, message: Any, __: Any) -> None:
        """Act on a message of the page; an error becomes a sentence there."""
        actions: dict[str, Callable[..., None]] = {
            "want": self._controller.send_maps,
            "find": self._controller.search_targets,
            "list": self._controller.list_images,
            "cancel": self._controller.cancel,
            "target": lambda text: self.change(target=text),
            "save": lambda **arguments: self._controller.save(arguments["as"]),
            "picture": self._receive_picture,
        }
        arguments = dict(message) if isinstance(message, dict) else {}
        action = actions.get(arguments.pop("do", ""))
        if action is not None:
            try:
                action(**arguments)
            except GradlightError as error:
                self.change(work={"state": "failed", "text": str(error)})

    def _receive_picture(self, png: str) -> None:
        try:
            self.exported = base64.b64decode(png, validate=True)
        except binascii.Error as error:
            raise GradlightError("The page sent no picture.") from error
