"""What can be asked about an image, as the page offers it: classes, or a sentence and its words."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..models.objective import Target

__all__ = ["Choice", "bracketed", "choices_of", "class_keys", "sentence_of"]


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
