"""The controller of a viewer: it answers the page's requests with maps, images, search hits and files.

One request, from the page to pixels:

    viewer.target = "star"           a trait changes, on the page or in Python
    Controller.update                are its maps in the cache? then send them
    Worker.submit(_compute)          else compute them in the background; a newer request cancels this one
    MapCache.put, send_maps          the page draws them
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import GradlightError
from ..explainers.combination import is_combination, layer_weights
from ..explainers.maps import SaliencyMaps
from .map_sources import MapSource
from .options import DISPLAY_OPTIONS, MAP_OPTIONS
from .payload import MapKey, pack, photo_bytes, thumbnail
from .picture import PaneMaps, draw
from .worker import CancelToken, Worker

if TYPE_CHECKING:
    from .viewer import Viewer

__all__ = ["Controller", "ImageListing", "MapCache"]

_MAX_CACHED = 32
_MAX_ROWS = 100
_MAX_THUMBNAILS = 2000
_MAX_HITS = 7
_REPORT_SECONDS = 0.1


class Controller:
    """Connects a viewer with its map source.

    Args:
        viewer: The viewer, whose traits the page shares.
        source: Where maps come from.
        initial_maps: The maps with which the viewer opens.
    """

    def __init__(self, viewer: Viewer, source: MapSource, initial_maps: Mapping[MapKey, SaliencyMaps]) -> None:
        self.viewer, self.source = viewer, source
        self._cache = MapCache()
        for key, maps in initial_maps.items():
            self._cache.put(key, maps)
        self._images = ImageListing(source)
        self._worker = Worker(self._report_progress, self._report_error)
        self._listing_worker = Worker(lambda _: None, self._report_error)
        self._serials = count(1)
        self._sent: set[tuple[MapKey, str]] = set()
        # The values of MAP_OPTIONS when all maps were last complete: what a cancelled request goes back to.
        self._complete_options: dict[str, Any] = {}
        # What is being computed: methods by key, or the number of an image that has yet to be opened.
        self._pending: dict[MapKey, list[str]] | int | None = None
        self._activity, self._reported_at = "", 0.0
        self._thread = threading.local()

    # Images

    def open_image(self, image: int, target: str = "") -> None:
        """Show an image: its photo and its targets.

        Args:
            image: Number of the image.
            target: Key of the target; "" keeps the displayed target where the image has it, else takes the first.
        """
        keys = [choice.key for choice in self.source.choices(image)]
        target = target or (self.viewer.target if self.viewer.target in keys else next(iter(keys), ""))
        others = [key for key in keys if key != target][: len(self.viewer.others)]
        compared = {"others": others, "compare": "target" if others else "off"}
        photo = self.source.photo(image)
        with self._no_updates():
            self.viewer.change(
                scene=self._describe_image(image, target),
                image=image,
                target=target,
                _photo=photo_bytes(photo),
                **(compared if self.viewer.compare == "target" else {}),
            )

    def _describe_image(self, image: int, target: str) -> dict[str, Any]:
        photo = self.source.photo(image)
        return {
            "image": image,
            "name": self.source.image_name(image),
            "width": photo.width,
            "height": photo.height,
            "box": list(photo.view.box),
            "sentence": self.source.sentence(image, target),
            "choices": [choice.to_json() for choice in self.source.choices(image)],
        }

    def list_images(self, text: str, start: int, stop: int) -> None:
        """Answer with rows of the list of images, in the background.

        Args:
            text: Searched in names and targets; "" lists all images.
            start: The first row.
            stop: The row after the last.
        """

        def work(token: CancelToken) -> None:
            listing = self._images.rows(str(text), int(start), int(stop), token)
            self.viewer.change(listing={**listing, "serial": next(self._serials)})

        self._listing_worker.submit(work)

    # Maps

    def update(self, _: Any = None) -> None:
        """Send the maps that the panes need, or begin to compute them; called when one of MAP_OPTIONS changes."""
        if getattr(self._thread, "no_updates", False):
            return
        viewer = self.viewer
        is_open = viewer.scene["image"] == viewer.image
        required = self._required_maps() if is_open else viewer.image
        if is_open and not any(self._cache.missing(key, methods) for key, methods in self._required_maps().items()):
            self._pending = None
            self._worker.cancel()
            self.send_maps(resend=False)
        elif required != self._pending:
            self._pending = required
            self._worker.submit(self._compute)

    def _required_maps(self) -> dict[MapKey, list[str]]:
        """List the methods that the panes need, by key."""
        required: dict[MapKey, list[str]] = {}
        if self.source.choices(self.viewer.image):
            for pane in self.viewer.panes():
                required.setdefault(pane.map_key(self.viewer.image, self.viewer.lr), []).append(pane.method)
        return required

    def _compute(self, token: CancelToken) -> None:
        """Open the image if it is new, compute or read the missing maps, and send them; in the background."""
        viewer = self.viewer
        if viewer.scene["image"] != viewer.image:
            self.open_image(viewer.image)
        for key, methods in self._required_maps().items():
            if missing := self._cache.missing(key, methods):
                self._activity = f"Computing {', '.join(missing)} for “{key.target}” …" if self.source.live else ""
                self._cache.put(key, self.source.maps(key, self._methods_to_compute(key, missing), token))
        token.step(1.0)
        self._pending = None
        self.send_maps(resend=False)

    def _methods_to_compute(self, key: MapKey, missing: Sequence[str]) -> list[str]:
        """Add to the missing methods, for a new key, those with which the viewer opened: all share one pass."""
        if self._cache.get(key) is not None:
            return list(missing)
        return list(dict.fromkeys([*self.source.initial_methods(), *missing]))

    def send_maps(self, resend: bool = True) -> None:
        """Send those maps that the panes need and the cache has.

        Args:
            resend: Whether to send again what was sent before: a display that was opened later lacks it.
        """
        required = {key: self._cache.get(key) for key in self._required_maps()}
        delivery = {
            key: maps
            for key, maps in required.items()
            if maps is not None and (resend or any((key, method) not in self._sent for method in maps.methods))
        }
        viewer = self.viewer
        changes: dict[str, Any] = {"_maps": pack(delivery, next(self._serials))} if delivery else {}
        self._sent |= {(key, method) for key, maps in delivery.items() for method in maps.methods}
        if viewer.work.get("state") == "busy" and self._pending is None:
            changes["work"] = {}
        scene = self._describe_image(viewer.image, viewer.target)
        if scene != viewer.scene and viewer.scene["image"] == viewer.image:
            changes["scene"] = scene
        viewer.change(**changes)
        if self._pending is None:
            self._complete_options = {name: getattr(viewer, name) for name in MAP_OPTIONS}

    def maps(self, key: MapKey) -> SaliencyMaps:
        """Give the maps of a key; raises GradlightError while they are being computed."""
        maps = self._cache.get(key)
        if maps is None:
            raise GradlightError("The displayed maps are still being computed; viewer.wait() waits for them.")
        return maps

    def resolve_target(self, text: str) -> str:
        """Find the key of a target of the displayed image."""
        return self.source.resolve_target(self.viewer.image, text) if text else ""

    def add_method(self, method: str) -> str:
        """Offer a method on the page, if it is a new one."""
        self.source.add_method(method)
        methods = [[name, name] for name in self.source.methods]
        about = self.viewer.about
        if about["options"]["method"] != methods:
            self.viewer.about = about | {"options": about["options"] | {"method": methods}}
        return method

    def search_targets(self, text: str) -> None:
        """Answer a search for classes."""
        hits = self.source.search_targets(str(text))
        more = len(hits) - _MAX_HITS
        note = f"{more} more" if more > 0 else "" if hits else "No class has this in its name."
        self.viewer.change(found={"text": text, "hits": [hit.to_json() for hit in hits[:_MAX_HITS]], "note": note})

    # Pictures and files

    def draw_picture(self) -> bytes:
        """Draw the displayed panes as a PNG."""
        viewer = self.viewer
        panes: list[PaneMaps] = []
        for pane in viewer.panes():
            maps = self._cache.get(pane.map_key(viewer.image, viewer.lr))
            panes.append((pane, maps if maps is not None and pane.method in maps.methods else None))
        labels = {choice["key"]: choice["label"] for choice in viewer.scene["choices"]}
        options = {name: getattr(viewer, name) for name in ("lr", *DISPLAY_OPTIONS)}
        return draw(self.source.photo(viewer.image), panes, labels, self._layer_weights(), options)

    def _layer_weights(self) -> dict[str, float]:
        layers = [layer for layer in self.source.layers if not is_combination(layer)]
        weights = layer_weights(self.viewer.weighting, layers)
        # Relative to the deepest layer, as the bars on the page.
        relative = {layer: weight / weights[-1] for layer, weight in zip(layers, weights, strict=True)}
        return {**relative, **self.viewer.weights}

    def pack_image(self) -> tuple[bytes, set[str], list[str]]:
        """Pack the cached maps of the displayed image; with their targets and methods."""
        cached = self._cache.of_image(self.viewer.image)
        methods = [name for name in self.source.methods if any(name in maps.methods for maps in cached.values())]
        return pack(cached, next(self._serials)), {key.target for key in cached}, methods

    def save(self, kind: str) -> None:
        """Write the maps ("h5") or the page ("html") into the current folder, under a name that no file has."""
        stem = Path(self.viewer.scene["name"]).stem or "gradlight"
        names = (Path(f"{stem}{suffix}.{kind}") for suffix in ("", *(f"-{n}" for n in range(2, 1000))))
        path = next(name for name in names if not name.exists())
        if kind == "h5":
            self.viewer.maps.save(path)
        else:
            self.viewer.save_html(path)
        self.viewer.change(work={"state": "done", "text": f"Saved as {path.absolute()}"})

    # Progress

    def wait(self, timeout: float | None) -> bool:
        """Wait until nothing is being computed; tell whether that is so within timeout (seconds)."""
        return self._worker.wait(timeout)

    def cancel(self) -> None:
        """Cancel the computation, and restore what was displayed before."""
        self._worker.cancel()
        if self._pending is not None:
            self._restore({"state": "done", "text": "Cancelled."})

    def close(self) -> None:
        """Cancel all work."""
        self._worker.cancel()
        self._listing_worker.cancel()

    def _restore(self, work: Mapping[str, Any]) -> None:
        """Go back to the options of the last complete maps."""
        self._pending = None
        with self._no_updates():
            self.viewer.change(work=dict(work), **self._complete_options)

    @contextmanager
    def _no_updates(self) -> Iterator[None]:
        """Change traits without `update`; no other thread changes any meanwhile."""
        with self.viewer.lock:
            self._thread.no_updates = True
            try:
                yield
            finally:
                self._thread.no_updates = False

    def _report_progress(self, progress: float) -> None:
        now = time.monotonic()
        if self._activity and (now - self._reported_at > _REPORT_SECONDS or progress == 0.0):
            self._reported_at = now
            self.viewer.change(work={"state": "busy", "text": self._activity, "part": progress})

    def _report_error(self, error: Exception) -> None:
        text = str(error) if isinstance(error, GradlightError) else f"{type(error).__name__}: {error}"
        self._restore({"state": "failed", "text": text})


class MapCache:
    """The maps that a viewer has computed or read; the least recently used are dropped first."""

    def __init__(self) -> None:
        self._maps: dict[MapKey, SaliencyMaps] = {}

    def put(self, key: MapKey, maps: SaliencyMaps) -> None:
        """Add maps by further methods to those of a key."""
        cached = self._maps.pop(key, None)
        self._maps[key] = maps if cached is None else cached.joined(maps)
        while len(self._maps) > _MAX_CACHED:
            self._maps.pop(next(iter(self._maps)))

    def get(self, key: MapKey) -> SaliencyMaps | None:
        """Give the maps of a key, by all methods that have been computed."""
        maps = self._maps.pop(key, None)
        if maps is not None:
            self._maps[key] = maps
        return maps

    def missing(self, key: MapKey, methods: Iterable[str]) -> list[str]:
        """List those of these methods by which the key has no maps."""
        maps = self.get(key)
        return [method for method in methods if maps is None or method not in maps.methods]

    def of_image(self, image: int) -> dict[MapKey, SaliencyMaps]:
        """Give all maps of an image."""
        return {key: maps for key, maps in self._maps.items() if key.image == image}


class ImageListing:
    """The searchable list of a source's images: number, name, targets and thumbnail of each.

    Args:
        source: The source of the images.
    """

    def __init__(self, source: MapSource) -> None:
        self._source = source
        self._search_texts: list[str] = []
        self._thumbnails: dict[int, str] = {}

    def rows(self, text: str, start: int, stop: int, token: CancelToken) -> dict[str, Any]:
        """Give rows of the images whose name or targets contain a text.

        Args:
            text: The text; "" matches all images.
            start: The first row.
            stop: The row after the last; at most 100 rows are given.
            token: Stepped before each image.

        Returns:
            "text", "total" (number of matching images), "start" and "rows", in JSON types.

        Raises:
            Cancelled: The token was stopped; the thumbnails made before are kept.
        """
        images = self._matching(text, token)
        start = min(max(start, 0), len(images))
        rows = [self._row(image, token) for image in images[start : min(stop, start + _MAX_ROWS)]]
        return {"text": text, "total": len(images), "start": start, "rows": rows}

    def _matching(self, text: str, token: CancelToken) -> range | list[int]:
        images = range(len(self._source))
        if not text:
            return images
        for image in images[len(self._search_texts) :]:
            token.step(image / len(images))
            labels = (choice.label for choice in self._source.choices(image))
            self._search_texts.append(" ".join([self._source.photo(image).path, *labels]).casefold())
        return [image for image in images if text.casefold() in self._search_texts[image]]

    def _row(self, image: int, token: CancelToken) -> dict[str, Any]:
        token.step(0.0)
        labels = [choice.label for choice in self._source.choices(image)]
        if image not in self._thumbnails:
            while len(self._thumbnails) >= _MAX_THUMBNAILS:
                self._thumbnails.pop(next(iter(self._thumbnails)))
            self._thumbnails[image] = thumbnail(self._source.photo(image))
        detail = ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")
        name = self._source.image_name(image)
        return {"image": image, "name": name, "detail": detail, "thumb": self._thumbnails[image]}
