"""Where a viewer's maps come from: what it may ask of finished maps and of a model alike.

What can be asked about an image, as the page offers it: classes, or a sentence and its words.
"""

from __future__ import annotations

import math
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import GradlightError, nearest
from ..explainers.combination import is_combination
from ..explainers.maps import MapLayer, SaliencyMaps
from ..models.base import Photo
from ..models.objective import Target
from .payload import MapKey
from .worker import CancelToken

__all__ = ["Browsed", "Choice", "MapSource", "bracketed", "choices_of", "chosen", "class_keys", "sentence_of", "single"]


@dataclass(frozen=True)
class Choice:
    """One target: its key (unlike all others of the image), its name, what it is, its score, its probability if any."""

    key: str
    label: str
    kind: str
    score: float
    probability: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the choice in JSON types; a score that is no number is null."""
        return {**asdict(self), "score": self.score if math.isfinite(self.score) else None}


def bracketed(words: Sequence[str], start: int, stop: int) -> str:
    """Write a sentence with brackets around some of its words: "a [red star] above"; all of several need none."""
    if stop - start == len(words) > 1:
        return " ".join(words)
    return " ".join(("[" if i == start else "") + w + ("]" if i == stop - 1 else "") for i, w in enumerate(words))


def sentence_of(targets: Iterable[Target]) -> list[str]:
    """Find the words of the one sentence that all targets are of: its caption, or its words one after another.

    None are found for classes, and where the targets do not tell.
    """
    listed = list(targets)
    captions = {target.label for target in listed if target.kind == "caption"}
    words = {target.index: target.label.split() for target in listed if target.kind == "word"}
    if len(captions) > 1 or len(captions) + len(words) == 0:
        return []
    said = captions.pop().split() if captions else _joined(words)
    fits = all(said[start : start + len(part)] == part for start, part in words.items())
    return said if fits else []


def _joined(words: dict[int, list[str]]) -> list[str]:
    """Put words together that stand one after another from the first on."""
    said: list[str] = []
    for start, part in sorted(words.items()):
        if start == len(said):
            said += part
    return said


def choices_of(targets: Iterable[Target]) -> list[Choice]:
    """Give the choices of finished maps, in their order; a second target of the same name is told by its number."""
    listed = list(targets)
    sentence = sentence_of(listed)
    found: dict[str, Choice] = {}
    for number, target in enumerate(listed):
        key = _key(target, sentence)
        key = key if key not in found else f"{key} #{number}"
        found[key] = Choice(key, target.label, target.kind, target.score)
    return list(found.values())


def _key(target: Target, sentence: list[str]) -> str:
    if target.kind != "word" or not sentence:
        return target.label
    return bracketed(sentence, target.index, target.index + len(target.label.split()))


def class_keys(labels: Sequence[str]) -> list[str]:
    """Give the key of each class: its label, or its index where several have the same."""
    seen: dict[str, int] = {}
    for label in labels:
        seen[label] = seen.get(label, 0) + 1
    return [label if seen[label] == 1 else str(index) for index, label in enumerate(labels)]


class MapSource(ABC):
    """Images, what can be asked about them, and the maps that answer.

    title: what the page is headed with. live: whether anything can be computed. search: what can be searched for or
    typed in ("classes", "captions", or "" for neither), and the prompt that says so.
    """

    title: str
    live = False
    search = ""
    prompt = ""
    methods: list[str]
    layers: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """Count the images."""

    @abstractmethod
    def photo(self, image: int) -> Photo:
        """Give the record of an image."""

    @abstractmethod
    def choices(self, image: int) -> list[Choice]:
        """List the targets that are offered for an image."""

    @abstractmethod
    def sentence(self, image: int, target: str) -> list[str]:
        """Give the words of the caption that a target of an image is of; none for classes."""

    @abstractmethod
    def key(self, image: int, asked: str) -> str:
        """Find the key of a target by what a person calls it; raises GradlightError for one that is not to be had."""

    @abstractmethod
    def sizes(self) -> list[tuple[int, int]]:
        """Give the height and width of the maps at each layer."""

    @abstractmethod
    def maps(self, part: MapKey, methods: Sequence[str], watch: CancelToken) -> SaliencyMaps:
        """Make or read the maps of one image and one target, by these methods at all layers."""

    def opens_with(self) -> list[str]:
        """List the methods that are made at once when a target is asked about."""
        return self.methods

    def admit(self, method: str) -> None:
        """Offer a method that was not among those at first; raises GradlightError where that cannot be."""
        chosen(method, self.methods, "method")

    def find(self, text: str) -> list[Choice]:
        """Find targets by a part of their names."""
        return []

    def about(self) -> list[dict[str, Any]]:
        """Describe the layers in JSON types."""
        return [
            {"name": name, "size": list(size), "combined": is_combination(name)}
            for name, size in zip(self.layers, self.sizes(), strict=True)
        ]

    def name(self, image: int) -> str:
        """Give the name of an image's file."""
        path = self.photo(image).path
        return os.path.basename(path) or f"image {image + 1}"


class Browsed(MapSource):
    """Finished maps: nothing is computed, and of a file only what is on show is read."""

    def __init__(self, maps: SaliencyMaps, title: str, methods: Any = None, layers: Any = None) -> None:
        if len(maps) == 0:
            raise GradlightError("There is nothing to show: these are maps of no image.")
        self.source, self.title = maps, title
        self.methods = chosen(methods, maps.methods, "method")
        self.layers = chosen(layers, maps.layers, "layer")
        # One reader at a time: the file's handle is shared by all threads.
        self._gate = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def photo(self, image: int) -> Photo:
        """Give the record of an image."""
        with self._gate:
            return self.source.images[image]

    def choices(self, image: int) -> list[Choice]:
        """List the targets of an image that there are maps of."""
        with self._gate:
            return choices_of(self.source.targets[image])

    def sentence(self, image: int, target: str) -> list[str]:
        """Give the words of an image's caption, where its targets are that and its words."""
        with self._gate:
            return sentence_of(self.source.targets[image])

    def key(self, image: int, asked: str) -> str:
        """Find a target of an image by its key or its name."""
        choices = self.choices(image)
        found = [choice.key for choice in choices if asked == choice.key]
        found += [choice.key for choice in choices if asked.casefold() == choice.label.casefold()]
        if not found:
            labels = [choice.label for choice in choices]
            raise GradlightError(
                f"There are no maps of {asked!r} for {self.name(image)}.{nearest(asked, labels)} Its targets:"
                f" {', '.join(labels[:8]) or 'none'}."
            )
        return found[0]

    def sizes(self) -> list[tuple[int, int]]:
        """Give the height and width of the maps at each layer."""
        return [_size(self.source.size, self.source.about[layer]) for layer in self.layers]

    def maps(self, part: MapKey, methods: Sequence[str], watch: CancelToken) -> SaliencyMaps:
        """Read the maps of one image and one target."""
        row = next(k for k, choice in enumerate(self.choices(part.image)) if choice.key == part.target)
        pairs = [(m, layer) for m, layer in self.source.pairs if m in methods and layer in self.layers]
        found = {}
        for number, (method, layer) in enumerate(pairs):
            watch.step(number / len(pairs))
            with self._gate:
                found[method, layer] = self.source.rows(method, layer, image=part.image)[row : row + 1]
        maps, photo = self.source, self.photo(part.image)
        with self._gate:
            target = maps.targets[part.image][row]
        about = {layer: maps.about[layer] for layer in self.layers}
        return SaliencyMaps(found, about, [photo], [[target]], maps.size, maps.origin)


def single(maps: SaliencyMaps, row: int) -> SaliencyMaps:
    """Take one target of maps of one image."""
    found = {key: maps.rows(*key, image=0)[row : row + 1] for key in maps.pairs}
    return SaliencyMaps(found, maps.about, [maps.images[0]], [[maps.targets[0][row]]], maps.size, maps.origin)


def chosen(asked: Any, known: Sequence[str], what: str) -> list[str]:
    """Choose some of the known names, in their order; None and "all" are all of them.

    Raises GradlightError with the nearest names for one that is not there.
    """
    if asked is None or asked == "all":
        return list(known)
    names = [str(name) for name in ([asked] if isinstance(asked, str) or not isinstance(asked, Iterable) else asked)]
    for name in names:
        if name not in known:
            raise GradlightError(
                f"These maps have no {what} {name!r}.{nearest(name, known)} They have: {', '.join(known)}."
            )
    if not names:
        raise GradlightError(f"No {what} was asked for. There are: {', '.join(known)}.")
    return [name for name in known if name in names]


def _size(pixels: tuple[int, int], layer: MapLayer) -> tuple[int, int]:
    return round(pixels[0] / layer.stride[0]), round(pixels[1] / layer.stride[1])
