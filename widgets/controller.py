"""The viewer's errands: maps for what is on show, the next image, searches, files.

The maps that a viewer has at hand, so that nothing is computed or read twice.

The list of images of finished maps: names, and thumbnails of those in sight.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GradlightError
from ..explainers.combination import is_combination, layer_weights
from ..explainers.maps import SaliencyMaps
from ..models.base import Photo
from .map_sources import MapSource
from .payload import MapKey, Pane, pack, photo_bytes, thumbnail
from .picture import Shown
from .worker import CancelToken, Worker

if TYPE_CHECKING:
    from .viewer import Viewer

__all__ = ["Controller", "Gallery", "Shelf"]

_MOST = 32


class Shelf:
    """Maps by part; those that lay untouched for longest go first."""

    def __init__(self) -> None:
        self._parts: dict[MapKey, SaliencyMaps] = {}

    def put(self, part: MapKey, maps: SaliencyMaps) -> None:
        """Add maps of other methods to a part's."""
        known = self._parts.pop(part, None)
        self._parts[part] = maps if known is None else known.joined(maps)
        while len(self._parts) > _MOST:
            self._parts.pop(next(iter(self._parts)))

    def get(self, part: MapKey) -> SaliencyMaps | None:
        """Give what there is of a part."""
        maps = self._parts.pop(part, None)
        if maps is not None:
            self._parts[part] = maps
        return maps

    def missing(self, part: MapKey, methods: Iterable[str]) -> list[str]:
        """Tell by which of these methods there are no maps of a part."""
        maps = self.get(part)
        return [method for method in methods if maps is None or method not in maps.methods]

    def of_image(self, image: int) -> dict[MapKey, SaliencyMaps]:
        """Give everything of an image."""
        return {part: maps for part, maps in self._parts.items() if part.image == image}


_MOST_ROWS = 100
_MOST_THUMBS = 2000


class Gallery:
    """Rows for the page: an image's number, name, what it was asked about, and a thumbnail."""

    def __init__(self, source: MapSource) -> None:
        self._source = source
        self._words: list[str] = []
        self._thumbs: dict[int, str] = {}

    def listing(self, text: str, start: int, stop: int, watch: CancelToken) -> dict[str, Any]:
        """Give the rows start … stop (exclusive) of the images whose name or targets hold a text, in JSON types.

        Raises Stopped where the watch says so; thumbnails that were made by then are kept.
        """
        found = self._found(text, watch)
        start = min(max(start, 0), len(found))
        rows = [self._row(image, watch) for image in found[start : min(stop, start + _MOST_ROWS)]]
        return {"text": text, "total": len(found), "start": start, "rows": rows}

    def _found(self, text: str, watch: CancelToken) -> range | list[int]:
        everything = range(len(self._source))
        if not text:
            return everything
        for image in everything[len(self._words) :]:
            watch.step(image / len(everything))
            labels = (choice.label for choice in self._source.choices(image))
            self._words.append(" ".join([self._source.photo(image).path, *labels]).casefold())
        return [image for image in everything if text.casefold() in self._words[image]]

    def _row(self, image: int, watch: CancelToken) -> dict[str, Any]:
        watch.step(0.0)
        labels = [choice.label for choice in self._source.choices(image)]
        if image not in self._thumbs:
            while len(self._thumbs) >= _MOST_THUMBS:
                self._thumbs.pop(next(iter(self._thumbs)))
            self._thumbs[image] = thumbnail(self._source.photo(image))
        detail = ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")
        return {"image": image, "name": self._source.name(image), "detail": detail, "thumb": self._thumbs[image]}


_HITS = 7
_TELL_EVERY = 0.1
_SHOWN = ("image", "target", "method", "meta", "lr", "compare", "others")


class Controller:
    """Serves one viewer from one source; opened: the maps that are at hand from the start."""

    def __init__(self, viewer: Viewer, source: MapSource, opened: Mapping[MapKey, SaliencyMaps]) -> None:
        self.viewer, self.source = viewer, source
        self._shelf = Shelf()
        for part, maps in opened.items():
            self._shelf.put(part, maps)
        self._gallery = Gallery(source)
        self._worker = Worker(self._tell, self._fail)
        self._lister = Worker(lambda _: None, self._fail)
        self._serials = count(1)
        self._sent: set[tuple[MapKey, str]] = set()
        self._good: dict[str, Any] = {}
        self._wanted: Any = None
        self._doing, self._told = "", 0.0
        self._quiet = threading.local()

    def open(self, image: int, target: str = "") -> None:
        """Show an image: its photo, its targets, and of these the asked one, else the one on show, else the first."""
        choices = self.source.choices(image)
        keys = [choice.key for choice in choices]
        asked = target or (self.viewer.target if self.viewer.target in keys else next(iter(keys), ""))
        others = [key for key in keys if key != asked][: len(self.viewer.others)]
        compared = {"others": others, "compare": "target" if others else "off"}
        photo = self.source.photo(image)
        with self.viewer._gate:
            self._quiet.on = True
            self.viewer.change(
                scene=self._scene(image, asked),
                image=image,
                target=asked,
                _photo=photo_bytes(photo),
                **(compared if self.viewer.compare == "target" else {}),
            )
            self._quiet.on = False

    def _scene(self, image: int, target: str) -> dict[str, Any]:
        photo = self.source.photo(image)
        return {
            "image": image,
            "name": self.source.name(image),
            "width": photo.width,
            "height": photo.height,
            "box": list(photo.view.box),
            "sentence": self.source.sentence(image, target),
            "choices": [choice.to_json() for choice in self.source.choices(image)],
        }

    def needed(self) -> dict[MapKey, list[str]]:
        """List what is on show: methods by part."""
        found: dict[MapKey, list[str]] = {}
        if self.source.choices(self.viewer.image):
            for pane in self.viewer.panes():
                found.setdefault(pane.part(self.viewer.image, self.viewer.lr), []).append(pane.method)
        return found

    def provide(self, _: Any = None) -> None:
        """See to it that the page has the maps of what is on show: send them, or begin to compute them."""
        if getattr(self._quiet, "on", False):
            return
        viewer = self.viewer
        opened = viewer.scene["image"] == viewer.image
        wanted = self.needed() if opened else viewer.image
        if opened and not any(self._shelf.missing(part, methods) for part, methods in self.needed().items()):
            self._wanted = None
            self._worker.cancel()
            self.deliver(again=False)
        elif wanted != self._wanted:
            self._wanted = wanted
            self._worker.ask(self._make)

    def _make(self, watch: CancelToken) -> None:
        """Compute or read what is on show, open its image if need be, and send it; in the background."""
        viewer = self.viewer
        if viewer.scene["image"] != viewer.image:
            self.open(viewer.image)
        for part, methods in self.needed().items():
            if missing := self._shelf.missing(part, methods):
                self._doing = f"Computing {', '.join(missing)} for “{part.target}” …" if self.source.live else ""
                every = self._all_methods(part, missing)
                self._shelf.put(part, self.source.maps(part, every, watch))
        watch.step(1.0)
        self._wanted = None
        self.deliver(again=False)

    def _all_methods(self, part: MapKey, missing: Sequence[str]) -> list[str]:
        """Give the methods to make at once: of a new part all that are at hand elsewhere, as they share one pass."""
        if self._shelf.get(part) is not None:
            return list(missing)
        given = self.source.opens_with()
        return list(dict.fromkeys([*given, *missing]))

    def deliver(self, again: bool = True) -> None:
        """Send the maps of what is on show, as far as they are at hand; again: also those that were sent before.

        A display that was opened later has not got them.
        """
        parts = {}
        for part in self.needed():
            maps = self._shelf.get(part)
            if maps is not None and (again or any((part, method) not in self._sent for method in maps.methods)):
                parts[part] = maps
        viewer = self.viewer
        changes: dict[str, Any] = {"_maps": pack(parts, next(self._serials))} if parts else {}
        self._sent |= {(part, method) for part, maps in parts.items() for method in maps.methods}
        if viewer.work.get("state") == "busy" and self._wanted is None:
            changes["work"] = {}
        scene = self._scene(viewer.image, viewer.target)
        if scene != viewer.scene and viewer.scene["image"] == viewer.image:
            changes["scene"] = scene
        viewer.change(**changes)
        if self._wanted is None:
            self._good = {name: getattr(viewer, name) for name in _SHOWN}

    def maps(self, part: MapKey) -> SaliencyMaps:
        """Give the maps of a part that is at hand."""
        maps = self._shelf.get(part)
        if maps is None:
            raise GradlightError("The maps on show are still being computed; viewer.wait() waits for them.")
        return maps

    def shown(self, panes: Iterable[Pane]) -> tuple[Photo, list[Shown], dict[str, str], dict[str, float]]:
        """Give what a picture of panes is drawn from."""
        viewer = self.viewer
        found: list[Shown] = [(pane, self._shelf.get(pane.part(viewer.image, viewer.lr))) for pane in panes]
        found = [(pane, maps if maps is not None and pane.method in maps.methods else None) for pane, maps in found]
        labels = {choice["key"]: choice["label"] for choice in viewer.scene["choices"]}
        return self.source.photo(viewer.image), found, labels, self._weights()

    def _weights(self) -> dict[str, float]:
        layers = [layer for layer in self.source.layers if not is_combination(layer)]
        shares = layer_weights(self.viewer.weighting, layers)
        # Relative to the deepest: what the page's bars show.
        return {layer: share / shares[-1] for layer, share in zip(layers, shares, strict=True)} | self.viewer.weights

    def key(self, target: str) -> str:
        """Find the key of a target of the image on show."""
        return self.source.key(self.viewer.image, target) if target else ""

    def admit(self, method: str) -> str:
        """Offer a method, if it is a new one."""
        self.source.admit(method)
        known = [[name, name] for name in self.source.methods]
        about = self.viewer.about
        if about["options"]["method"] != known:
            self.viewer.about = about | {"options": about["options"] | {"method": known}}
        return method

    def find(self, text: str) -> None:
        """Answer a search for classes."""
        found = self.source.find(str(text))
        more = len(found) - _HITS
        note = f"{more} more" if more > 0 else "" if found else "No class has this in its name."
        self.viewer.change(found={"text": text, "hits": [hit.to_json() for hit in found[:_HITS]], "note": note})

    def list_images(self, text: str, start: int, stop: int) -> None:
        """Answer with rows of the list of images, in the background."""

        def work(watch: CancelToken) -> None:
            listing = self._gallery.listing(str(text), int(start), int(stop), watch)
            self.viewer.change(listing={**listing, "serial": next(self._serials)})

        self._lister.ask(work)

    def save(self, kind: str) -> None:
        """Write the maps ("h5") or the page ("html") beside the notebook, under a name that is free."""
        stem = Path(self.viewer.scene["name"]).stem or "gradlight"
        names = (Path(f"{stem}{number}.{kind}") for number in ("", *(f"-{n}" for n in range(2, 1000))))
        path = next(name for name in names if not name.exists())
        if kind == "h5":
            self.viewer.maps.save(path)
        else:
            self.viewer.save_html(path)
        self.viewer.change(work={"state": "done", "text": f"Saved as {path.absolute()}"})

    def cancel(self) -> None:
        """Call off what is going on, and show again what was there before."""
        self._worker.cancel()
        if self._wanted is not None:
            self._back({"state": "done", "text": "Cancelled."})

    def _back(self, work: Mapping[str, Any]) -> None:
        self._wanted = None
        with self.viewer._gate:
            self._quiet.on = True
            self.viewer.change(work=dict(work), **self._good)
            self._quiet.on = False

    def _tell(self, part: float) -> None:
        now = time.monotonic()
        if self._doing and (now - self._told > _TELL_EVERY or part == 0.0):
            self._told = now
            self.viewer.change(work={"state": "busy", "text": self._doing, "part": part})

    def _fail(self, error: Exception) -> None:
        text = str(error) if isinstance(error, GradlightError) else f"{type(error).__name__}: {error}"
        self._back({"state": "failed", "text": text})

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is being computed."""
        return self._worker.wait(timeout)

    def close(self) -> None:
        """Stop everything."""
        self._worker.cancel()
        self._lister.cancel()

    def packed(self) -> tuple[bytes, set[str], list[str]]:
        """Give everything of the image on show that is at hand: packed; its targets and methods."""
        parts = self._shelf.of_image(self.viewer.image)
        methods = [name for name in self.source.methods if any(name in maps.methods for maps in parts.values())]
        return pack(parts, next(self._serials)), {part.target for part in parts}, methods
