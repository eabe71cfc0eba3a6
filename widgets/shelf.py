"""The maps that a viewer has at hand, so that nothing is computed or read twice."""

from __future__ import annotations

from collections.abc import Iterable

from ..explainers.maps import SaliencyMaps
from .payload import Part

__all__ = ["Shelf"]

_MOST = 32


class Shelf:
    """Maps by part; those that lay untouched for longest go first."""

    def __init__(self) -> None:
        self._parts: dict[Part, SaliencyMaps] = {}

    def put(self, part: Part, maps: SaliencyMaps) -> None:
        """Add maps of other methods to a part's."""
        known = self._parts.pop(part, None)
        self._parts[part] = maps if known is None else known.joined(maps)
        while len(self._parts) > _MOST:
            self._parts.pop(next(iter(self._parts)))

    def get(self, part: Part) -> SaliencyMaps | None:
        """Give what there is of a part."""
        maps = self._parts.pop(part, None)
        if maps is not None:
            self._parts[part] = maps
        return maps

    def missing(self, part: Part, methods: Iterable[str]) -> list[str]:
        """Tell by which of these methods there are no maps of a part."""
        maps = self.get(part)
        return [method for method in methods if maps is None or method not in maps.methods]

    def of_image(self, image: int) -> dict[Part, SaliencyMaps]:
        """Give everything of an image."""
        return {part: maps for part, maps in self._parts.items() if part.image == image}
