"""The word pointing game: does the map of a word fall on the object that the word is about?

Scenes know the visible pixels of every object, so the truth is exact. For each colour and each shape in a true caption
of a scene (the captioner's own, or the first that the grammar gives), the place where the word's map is largest is held
against that object's mask: on it, or within the tolerance of the pointing game (15 pixels where the shorter side is
224; Zhang et al., 2016).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from ..data.scenes import generator as scenes
from ..data.scenes.grammar import objects_of
from ..errors import GradlightError
from ..explainers.explain import explain
from ..explainers.maps import SaliencyMaps
from ..models.base import Explainable
from ..models.captioner import Captioner
from .metrics import COMBINATIONS, distance, largest, with_combinations
from .samples import Mask
from .tables import Cell, Result, Table

__all__ = [
    "COMBINATIONS",
    "TOLERANCE",
    "Hits",
    "Question",
    "distance",
    "first_captions",
    "own_captions",
    "questions",
    "told",
    "word_pointing",
]

TOLERANCE = 15 / 224
"""Of the shorter side of the image."""

_TOGETHER = 16
Speaker = Callable[[Sequence[scenes.Scene]], Sequence[Sequence[str]]]
"""Give the words of a caption of each scene."""


@dataclass(frozen=True)
class Question:
    """A scene with a true caption: its colours and shapes between brackets, one at a time, and their objects' masks."""

    scene: scenes.Scene
    texts: tuple[str, ...]
    masks: tuple[Mask, ...]


@dataclass
class Hits:
    """How often a map's largest place was on the object, and how often within the tolerance of it."""

    asked: int = 0
    exact: int = 0
    near: int = 0

    def add(self, distance: float, tolerance: float) -> None:
        """Count one word."""
        self.asked += 1
        self.exact += distance == 0
        self.near += distance <= tolerance


def first_captions(drawn: Sequence[scenes.Scene]) -> list[list[str]]:
    """Give the words of the first caption of each scene that the grammar gives."""
    return [scene.captions[0].split() for scene in drawn]


def own_captions(model: Captioner) -> Speaker:
    """Let a captioner say the captions; those that are not true ask for nothing."""
    return lambda drawn: [caption.words for caption in model.caption([scene.image for scene in drawn])]


def questions(seeds: Sequence[int], size: int, speaker: Speaker = first_captions) -> Iterator[Question]:
    """Draw the scenes of some seeds and ask for every colour and every shape of their true captions."""
    for start in range(0, len(seeds), _TOGETHER):
        drawn = [scenes.draw(seed, size) for seed in seeds[start : start + _TOGETHER]]
        for scene, words in zip(drawn, speaker(drawn), strict=True):
            things = objects_of(scene, words)
            texts = [" ".join([*words[:at], f"[{words[at]}]", *words[at + 1 :]]) for at in things]
            if texts:
                yield Question(scene, tuple(texts), tuple(thing.mask for thing in things.values()))


def word_pointing(
    model: Explainable,
    seeds: Sequence[int],
    methods: Sequence[str],
    layers: str | Sequence[str] = "stages",
    size: int = 160,
    speaker: Speaker = first_captions,
    progress: bool = False,
) -> dict[tuple[str, str], Hits]:
    """Play the word pointing game with a captioner: (method, layer or combination) -> hits, the baselines included.

    Every layer plays alone, and all of them in each of COMBINATIONS; "centre" and "random" play with no map. size: of
    the scenes, in pixels. speaker: who says the captions. Raises GradlightError for no seeds, and where no caption is
    true.
    """
    if not seeds:
        raise GradlightError("There is no scene to play with: give at least one seed.")
    found: dict[tuple[str, str], Hits] = defaultdict(Hits)
    random = np.random.default_rng(0)
    with tqdm(total=len(seeds), unit="scene", disable=not progress) as bar:
        for group in _groups(questions(seeds, size, speaker)):
            maps = explain(
                model,
                [question.scene.image for question in group],
                [list(question.texts) for question in group],
                methods=methods,
                layers=layers,
                batch_size=_TOGETHER,
            )
            _count(found, with_combinations(maps), group)
            _count_points(found, group, lambda: (size // 2, size // 2), "centre")
            _count_points(found, group, lambda: tuple(random.integers(0, size, 2)), "random")
            bar.update(len(group))
    if not found:
        raise GradlightError(f"None of the captions of {len(seeds)} scenes is true, so there is no word to point at.")
    return dict(found)


def told(found: Mapping[tuple[str, str], Hits], scenes: int) -> Result:
    """Tell the hits of a game as shares, 0…1, and as a table of layers and methods; scenes: how many were played with.

    near: within the tolerance; exact: on the object. The best is in bold.
    """
    shares = {key: {"near": hits.near / hits.asked, "exact": hits.exact / hits.asked} for key, hits in found.items()}
    played = [key for key in shares if key[0] != "baseline"]
    methods, layers = (list(dict.fromkeys(key[side] for key in played)) for side in (0, 1))
    best = max(played, key=lambda key: (shares[key]["near"], shares[key]["exact"]))
    rows: list[list[Cell]] = [
        [layer, *(_cell(shares.get((method, layer)), (method, layer) == best) for method in methods)]
        for layer in layers
    ]
    words = max(hits.asked for hits in found.values())
    points = ", ".join(f"{name}: {_cell(row)}" for (kind, name), row in shares.items() if kind == "baseline")
    note = f"{words} words of its true captions of {scenes} scenes. With no map: {points}."
    table = Table("Word pointing", ["within 15 px (on the object)", *methods], rows, [note])
    figures = {"words": words, "hits": {" / ".join(key): row for key, row in shares.items()}}
    return Result("word_pointing", figures, [table])


def _cell(share: Mapping[str, float] | None, best: bool = False) -> str | None:
    if share is None:
        return None
    near = f"{share['near']:.1%}"
    return f"{f'**{near}**' if best else near} ({share['exact']:.1%})"


def _groups(asked: Iterator[Question]) -> Iterator[list[Question]]:
    """Put scenes with as many words together, so that their maps form one batch."""
    waiting: dict[int, list[Question]] = defaultdict(list)
    for question in asked:
        group = waiting[len(question.texts)]
        group.append(question)
        if len(group) == _TOGETHER:
            yield waiting.pop(len(question.texts))
    yield from waiting.values()


def _count(found: dict[tuple[str, str], Hits], maps: SaliencyMaps, group: Sequence[Question]) -> None:
    for method, layer in maps.pairs:
        places = largest(maps.upsampled(method, layer))
        for question, row, photo in zip(group, places, maps.images, strict=True):
            row = (photo.view.to_photo(row.flip(1) + 0.5).flip(1)).floor().tolist()
            for mask, place in zip(question.masks, row, strict=True):
                _add(found[method, layer], mask, place)


def _count_points(
    found: dict[tuple[str, str], Hits], group: Sequence[Question], place: Callable[[], Sequence[float]], name: str
) -> None:
    for mask in (mask for question in group for mask in question.masks):
        _add(found["baseline", name], mask, place())


def _add(hits: Hits, mask: Mask, place: Sequence[float]) -> None:
    hits.add(distance(mask, place[0], place[1]), TOLERANCE * min(mask.shape))
