"""Where a viewer's maps come from: the interface of a map source, finished maps as one, and the selectable targets."""

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

__all__ = [
    "Choice",
    "FinishedMaps",
    "MapSource",
    "bracketed",
    "choices_of",
    "class_keys",
    "select_names",
    "select_target",
    "sentence_of",
]


class MapSource(ABC):
    """Images, the selectable targets for each, and the maps that explain them.

    Attributes:
        title: Heading of the page.
        live: Whether maps can be computed.
        search: What can be searched for or typed in: "classes", "captions", or "" for neither.
        prompt: The text in the empty search field.
        methods: Names of the methods that can be chosen.
        layers: Names of the layers, from shallow to deep.
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
        """List the selectable targets for an image."""

    @abstractmethod
    def sentence(self, image: int, target: str) -> list[str]:
        """Give the words of the caption to which a target of an image belongs; none for classes."""

    @abstractmethod
    def resolve_target(self, image: int, text: str) -> str:
        """Find the key of a target.

        Args:
            image: Number of the image.
            text: The key, or what a person calls the target.

        Returns:
            The key.

        Raises:
            GradlightError: The text names no target, or more than one.
        """

    @abstractmethod
    def map_sizes(self) -> list[tuple[int, int]]:
        """Give the height and width of the maps at each layer."""

    @abstractmethod
    def maps(self, key: MapKey, methods: Sequence[str], token: CancelToken) -> SaliencyMaps:
        """Compute or read the maps of one image and one target.

        Args:
            key: Image, target and inner step.
            methods: Names of the methods; each is evaluated at all layers.
            token: Stepped before each map.

        Returns:
            Maps of one image and one target.

        Raises:
            Cancelled: The token was stopped.
        """

    def initial_methods(self) -> list[str]:
        """List the methods that are computed at once for a new target."""
        return self.methods

    def add_method(self, method: str) -> None:
        """Offer another method.

        Args:
            method: Its name.

        Raises:
            GradlightError: The source has no maps by this method, and cannot compute them.
        """
        select_names(method, self.methods, "method")

    def search_targets(self, text: str) -> list[Choice]:
        """List the targets whose names contain a text."""
        return []

    def describe_layers(self) -> list[dict[str, Any]]:
        """Describe the layers in JSON types: name, size, and whether it is a combination."""
        return [
            {"name": name, "size": list(size), "combined": is_combination(name)}
            for name, size in zip(self.layers, self.map_sizes(), strict=True)
        ]

    def image_name(self, image: int) -> str:
        """Give the name of an image's file."""
        path = self.photo(image).path
        return os.path.basename(path) or f"image {image + 1}"


class FinishedMaps(MapSource):
    """Finished maps: nothing is computed, and of a file only the displayed maps are read.

    Args:
        maps: The maps, in memory or in a file.
        title: Heading of the page.
        methods: Names of the methods to display; None or "all" for all.
        layers: Names of the layers to display; None or "all" for all.

    Raises:
        GradlightError: There are no maps, or none by one of the methods or at one of the layers.
    """

    def __init__(self, maps: SaliencyMaps, title: str, methods: Any = None, layers: Any = None) -> None:
        if len(maps) == 0:
            raise GradlightError("The viewer has nothing to show: the maps are of no image.")
        self.source, self.title = maps, title
        self.methods = select_names(methods, maps.methods, "method")
        self.layers = select_names(layers, maps.layers, "layer")
        # One reader at a time: all threads share the handle of the file.
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self.source)

    def photo(self, image: int) -> Photo:
        """Give the record of an image."""
        with self._lock:
            return self.source.images[image]

    def choices(self, image: int) -> list[Choice]:
        """List the targets of an image that have maps."""
        with self._lock:
            return choices_of(self.source.targets[image])

    def sentence(self, image: int, target: str) -> list[str]:
        """Give the words of an image's caption, where its targets are the caption and its words."""
        with self._lock:
            return sentence_of(self.source.targets[image])

    def resolve_target(self, image: int, text: str) -> str:
        """Find a target of an image by its key or its name."""
        choices = self.choices(image)
        keys = [choice.key for choice in choices if text == choice.key]
        keys += [choice.key for choice in choices if text.casefold() == choice.label.casefold()]
        if not keys:
            labels = [choice.label for choice in choices]
            raise GradlightError(
                f"There are no maps of {text!r} for {self.image_name(image)}.{nearest(text, labels)} Its targets:"
                f" {', '.join(labels[:8]) or 'none'}."
            )
        return keys[0]

    def map_sizes(self) -> list[tuple[int, int]]:
        """Give the height and width of the maps at each layer."""
        return [_map_size(self.source.size, self.source.layer_info[layer]) for layer in self.layers]

    def maps(self, key: MapKey, methods: Sequence[str], token: CancelToken) -> SaliencyMaps:
        """Read the maps of one image and one target."""
        row = next(k for k, choice in enumerate(self.choices(key.image)) if choice.key == key.target)
        pairs = [(m, layer) for m, layer in self.source.pairs if m in methods and layer in self.layers]
        rows = {}
        for number, (method, layer) in enumerate(pairs):
            token.step(number / len(pairs))
            with self._lock:
                rows[method, layer] = self.source.rows(method, layer, image=key.image)[row : row + 1]
        maps, photo = self.source, self.photo(key.image)
        with self._lock:
            target = maps.targets[key.image][row]
        layer_info = {layer: maps.layer_info[layer] for layer in self.layers}
        return SaliencyMaps(rows, layer_info, [photo], [[target]], maps.size, maps.origin)


def select_target(maps: SaliencyMaps, target: int) -> SaliencyMaps:
    """Select one target of maps of one image.

    Args:
        maps: Maps of one image.
        target: Number of the target.

    Returns:
        Maps of the image and this target alone.
    """
    rows = {pair: maps.rows(*pair, image=0)[target : target + 1] for pair in maps.pairs}
    return SaliencyMaps(rows, maps.layer_info, [maps.images[0]], [[maps.targets[0][target]]], maps.size, maps.origin)


def select_names(selection: Any, available: Sequence[str], kind: str) -> list[str]:
    """Select available names, in their order.

    Args:
        selection: A name or several; None and "all" select all.
        available: The names to select from.
        kind: What they name, for the error: "method" or "layer".

    Returns:
        At least one name.

    Raises:
        GradlightError: A name is unknown (the error has the nearest names), or the selection is empty.

    Example:
        >>> select_names(["b", "a"], ["a", "b", "c"], "layer")
        ['a', 'b']
    """
    if selection is None or selection == "all":
        return list(available)
    several = not isinstance(selection, str) and isinstance(selection, Iterable)
    names = [str(name) for name in (selection if several else [selection])]
    for name in names:
        if name not in available:
            raise GradlightError(
                f"These maps have no {kind} {name!r}.{nearest(name, available)} They have: {', '.join(available)}."
            )
    if not names:
        raise GradlightError(f"The selection names no {kind}. Select from: {', '.join(available)}.")
    return [name for name in available if name in names]


def _map_size(pixels: tuple[int, int], layer: MapLayer) -> tuple[int, int]:
    top, left, bottom, right = layer.extent or (0.0, 0.0, *pixels)
    return round((bottom - top) / layer.stride[0]), round((right - left) / layer.stride[1])


# --- Selectable targets: classes, or a caption and its words


@dataclass(frozen=True)
class Choice:
    """A selectable target.

    Args:
        key: Unique among the targets of the image.
        label: Name of the target.
        kind: "class", "caption" or "word".
        score: Score of the objective; not a number where it has not been computed.
        probability: Probability of a class, where it is known.
    """

    key: str
    label: str
    kind: str
    score: float
    probability: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the choice in JSON types; a score that is not finite is null."""
        return {**asdict(self), "score": self.score if math.isfinite(self.score) else None}


def bracketed(words: Sequence[str], start: int, stop: int) -> str:
    """Write a caption with brackets around some of its words.

    Args:
        words: The words of the caption.
        start: The first word in brackets.
        stop: The word after the last one in brackets.

    Returns:
        The caption; without brackets where they would enclose all of several words.

    Example:
        >>> bracketed(["a", "red", "star", "above"], 1, 3)
        'a [red star] above'
    """
    if stop - start == len(words) > 1:
        return " ".join(words)
    return " ".join(("[" if i == start else "") + w + ("]" if i == stop - 1 else "") for i, w in enumerate(words))


def sentence_of(targets: Iterable[Target]) -> list[str]:
    """Find the words of the one caption to which all targets belong.

    Args:
        targets: Targets of one image: a caption, words of it, or classes.

    Returns:
        The words of the caption; none for classes, and where the targets belong to no common caption or where words
        without their caption leave gaps.

    Example:
        >>> from gradlight.models.objective import Target
        >>> sentence_of([Target("word", 0, "red"), Target("word", 1, "star")])
        ['red', 'star']
    """
    target_list = list(targets)
    captions = {target.label for target in target_list if target.kind == "caption"}
    words_by_start = {target.index: target.label.split() for target in target_list if target.kind == "word"}
    if len(captions) > 1 or len(captions) + len(words_by_start) == 0:
        return []
    sentence = captions.pop().split() if captions else _join_words(words_by_start)
    fits = all(sentence[start : start + len(words)] == words for start, words in words_by_start.items())
    return sentence if fits else []


def _join_words(words_by_start: dict[int, list[str]]) -> list[str]:
    """Join words that follow one another without a gap, from the first on."""
    sentence: list[str] = []
    for start, words in sorted(words_by_start.items()):
        if start == len(sentence):
            sentence += words
    return sentence


def choices_of(targets: Iterable[Target]) -> list[Choice]:
    """Give the choices of finished maps.

    Args:
        targets: The targets of one image.

    Returns:
        A choice for each target, in their order; the key of a second target of the same name ends in its number.

    Example:
        >>> from gradlight.models.objective import Target
        >>> [choice.key for choice in choices_of([Target("class", 1, "crane"), Target("class", 2, "crane")])]
        ['crane', 'crane #1']
    """
    target_list = list(targets)
    sentence = sentence_of(target_list)
    choices: dict[str, Choice] = {}
    for number, target in enumerate(target_list):
        key = _target_key(target, sentence)
        key = key if key not in choices else f"{key} #{number}"
        choices[key] = Choice(key, target.label, target.kind, target.score)
    return list(choices.values())


def _target_key(target: Target, sentence: list[str]) -> str:
    if target.kind != "word" or not sentence:
        return target.label
    return bracketed(sentence, target.index, target.index + len(target.label.split()))


def class_keys(labels: Sequence[str]) -> list[str]:
    """Give a unique key to each class.

    Args:
        labels: The label of each class.

    Returns:
        Its label, or its index where several classes share the label.

    Example:
        >>> class_keys(["crane", "dog", "crane"])
        ['0', 'dog', '2']
    """
    counts: dict[str, int] = {}
    for label in labels:
        counts[label] = counts.get(label, 0) + 1
    return [label if counts[label] == 1 else str(index) for index, label in enumerate(labels)]
