"""The list of images of finished maps: names, and thumbnails of those in sight."""

from __future__ import annotations

from typing import Any

from .computing import Watch
from .payload import thumbnail
from .sources import Source

__all__ = ["Gallery"]

_MOST_ROWS = 100
_MOST_THUMBS = 2000


class Gallery:
    """Rows for the page: an image's number, name, what it was asked about, and a thumbnail."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._words: list[str] = []
        self._thumbs: dict[int, str] = {}

    def listing(self, text: str, start: int, stop: int, watch: Watch) -> dict[str, Any]:
        """Give the rows start … stop (exclusive) of the images whose name or targets hold a text, in JSON types.

        Raises Stopped where the watch says so; thumbnails that were made by then are kept.
        """
        found = self._found(text, watch)
        start = min(max(start, 0), len(found))
        rows = [self._row(image, watch) for image in found[start : min(stop, start + _MOST_ROWS)]]
        return {"text": text, "total": len(found), "start": start, "rows": rows}

    def _found(self, text: str, watch: Watch) -> range | list[int]:
        everything = range(len(self._source))
        if not text:
            return everything
        for image in everything[len(self._words) :]:
            watch.step(image / len(everything))
            labels = (choice.label for choice in self._source.choices(image))
            self._words.append(" ".join([self._source.photo(image).path, *labels]).casefold())
        return [image for image in everything if text.casefold() in self._words[image]]

    def _row(self, image: int, watch: Watch) -> dict[str, Any]:
        watch.step(0.0)
        labels = [choice.label for choice in self._source.choices(image)]
        if image not in self._thumbs:
            while len(self._thumbs) >= _MOST_THUMBS:
                self._thumbs.pop(next(iter(self._thumbs)))
            self._thumbs[image] = thumbnail(self._source.photo(image))
        detail = ", ".join(labels[:3]) + (" …" if len(labels) > 3 else "")
        return {"image": image, "name": self._source.name(image), "detail": detail, "thumb": self._thumbs[image]}
