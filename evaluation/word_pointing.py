"""The word pointing game: does the map of a word fall on the object that the word describes?

Scenes know the visible pixels of every object, so the ground truth is exact. For each colour and each shape in a true
caption of a scene (the captioner's own, or the first that the grammar gives), the location of the largest value of the
word's map is compared with that object's mask: on it, or within the tolerance of the pointing game (15 pixels where the
shorter side is 224; Zhang et al., 2016).
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
from .metrics import argmax_location, distance, with_combinations
from .samples import Mask
from .tables import Cell, Result, Table

__all__ = [
    "TOLERANCE",
    "CaptionScenes",
    "WordHits",
    "WordQuestion",
    "first_captions",
    "own_captions",
    "word_pointing",
    "word_pointing_result",
    "word_questions",
]

TOLERANCE = 15 / 224
"""As a fraction of the shorter side of the image."""

_BATCH = 16

CaptionScenes = Callable[[Sequence[scenes.Scene]], Sequence[Sequence[str]]]
"""Gives the words of a caption of each scene."""


def first_captions(scene_list: Sequence[scenes.Scene]) -> list[list[str]]:
    """Give the words of the first caption of each scene that the grammar gives.

    Args:
        scene_list: The scenes.

    Returns:
        The words of each caption.
    """
    return [scene.captions[0].split() for scene in scene_list]


def own_captions(model: Captioner) -> CaptionScenes:
    """Make the function that captions scenes with a captioner; captions that are not true have no questions.

    Args:
        model: The captioner.

    Returns:
        A function of scenes.
    """
    return lambda scene_list: [caption.words for caption in model.caption([scene.image for scene in scene_list])]


@dataclass(frozen=True)
class WordQuestion:
    """The words of a scene's true caption that describe an object.

    Args:
        scene: The scene.
        texts: The caption with one colour or shape between brackets, for each of them.
        masks: The masks of their objects.
    """

    scene: scenes.Scene
    texts: tuple[str, ...]
    masks: tuple[Mask, ...]


def word_questions(seeds: Sequence[int], size: int, captions: CaptionScenes = first_captions) -> Iterator[WordQuestion]:
    """Draw scenes, and find every colour and every shape of their true captions.

    Args:
        seeds: Seeds of the scenes.
        size: Side of the scenes, in pixels.
        captions: Gives the captions.

    Yields:
        The words of each scene that has a true caption.

    Example:
        >>> question = next(word_questions([0], size=160))
        >>> len(question.texts) == len(question.masks)
        True
    """
    for start in range(0, len(seeds), _BATCH):
        batch = [scenes.draw(seed, size) for seed in seeds[start : start + _BATCH]]
        for scene, words in zip(batch, captions(batch), strict=True):
            objects = objects_of(scene, words)
            texts = [" ".join([*words[:at], f"[{words[at]}]", *words[at + 1 :]]) for at in objects]
            if texts:
                yield WordQuestion(scene, tuple(texts), tuple(each.mask for each in objects.values()))


@dataclass
class WordHits:
    """How many words' maps have their largest value on the object, and how many within the tolerance.

    Args:
        total: Words.
        exact: On the object.
        near: Within the tolerance.

    Example:
        >>> hits = WordHits()
        >>> hits.add(distance=3.0, tolerance=5.0)
        >>> hits
        WordHits(total=1, exact=0, near=1)
    """

    total: int = 0
    exact: int = 0
    near: int = 0

    def add(self, distance: float, tolerance: float) -> None:
        """Count one word."""
        self.total += 1
        self.exact += distance == 0
        self.near += distance <= tolerance


HitsByMap = dict[tuple[str, str], WordHits]
"""(method, layer or combination) → hits; the method is "baseline" for "centre" and "random"."""


def word_pointing(
    model: Explainable,
    seeds: Sequence[int],
    methods: Sequence[str],
    layers: str | Sequence[str] = "stages",
    size: int = 160,
    captions: CaptionScenes = first_captions,
    progress: bool = False,
) -> HitsByMap:
    """Play the word pointing game with a captioner.

    Each layer plays alone, and all of them in each of `metrics.COMBINATIONS`; "centre" and "random" play without maps.

    Args:
        model: The captioner.
        seeds: Seeds of the scenes.
        methods: Methods, as `explain` takes them.
        layers: Layers, as `explain` takes them.
        size: Side of the scenes, in pixels.
        captions: Gives the captions.
        progress: Show a progress bar.

    Returns:
        (method, layer or combination) → hits; ("baseline", "centre" or "random") for those without a map.

    Raises:
        GradlightError: There are no seeds, or no caption is true.
    """
    if not seeds:
        raise GradlightError("There is no scene to play with: give at least one seed.")
    hits: HitsByMap = defaultdict(WordHits)
    generator = np.random.default_rng(0)
    with tqdm(total=len(seeds), unit="scene", disable=not progress) as bar:
        for batch in _batches(word_questions(seeds, size, captions)):
            maps = explain(
                model,
                [question.scene.image for question in batch],
                [list(question.texts) for question in batch],
                methods=methods,
                layers=layers,
                batch_size=_BATCH,
            )
            _count_maps(hits, with_combinations(maps), batch)
            _count_points(hits["baseline", "centre"], batch, lambda: (size // 2, size // 2))
            _count_points(hits["baseline", "random"], batch, lambda: tuple(generator.integers(0, size, 2)))
            bar.update(len(batch))
    if not hits:
        raise GradlightError(f"None of the captions of {len(seeds)} scenes is true, so there is no word to point at.")
    return dict(hits)


def _batches(questions: Iterator[WordQuestion]) -> Iterator[list[WordQuestion]]:
    """Batch scenes with the same number of words, so that every image of a batch has as many targets."""
    waiting: dict[int, list[WordQuestion]] = defaultdict(list)
    for question in questions:
        batch = waiting[len(question.texts)]
        batch.append(question)
        if len(batch) == _BATCH:
            yield waiting.pop(len(question.texts))
    yield from waiting.values()


def _count_maps(hits: HitsByMap, maps: SaliencyMaps, batch: Sequence[WordQuestion]) -> None:
    for method, layer in maps.pairs:
        locations = argmax_location(maps.upsampled(method, layer))
        for question, row, photo in zip(batch, locations, maps.images, strict=True):
            photo_locations = (photo.view.to_photo(row.flip(1) + 0.5).flip(1)).floor().tolist()
            for mask, location in zip(question.masks, photo_locations, strict=True):
                _count(hits[method, layer], mask, location)


def _count_points(hits: WordHits, batch: Sequence[WordQuestion], point: Callable[[], Sequence[float]]) -> None:
    for mask in (mask for question in batch for mask in question.masks):
        _count(hits, mask, point())


def _count(hits: WordHits, mask: Mask, location: Sequence[float]) -> None:
    hits.add(distance(mask, location[0], location[1]), TOLERANCE * min(mask.shape))


# ---------------------------------------------------------------------------------------------------------------------
# The result


def word_pointing_result(hits: Mapping[tuple[str, str], WordHits], scene_count: int) -> Result:
    """Make the result of a game: the hits as shares, 0…1, and as a table of layers and methods, the best in bold.

    Args:
        hits: The hits of `word_pointing`.
        scene_count: The number of scenes.

    Returns:
        figures["hits"]: "METHOD / LAYER" → "near", the share within the tolerance, and "exact", that on the object.
    """
    shares = {key: {"near": each.near / each.total, "exact": each.exact / each.total} for key, each in hits.items()}
    pairs = [key for key in shares if key[0] != "baseline"]
    methods, layers = (list(dict.fromkeys(pair[side] for pair in pairs)) for side in (0, 1))
    best = max(pairs, key=lambda pair: (shares[pair]["near"], shares[pair]["exact"]))
    rows: list[list[Cell]] = [
        [layer, *(_format_share(shares.get((method, layer)), (method, layer) == best) for method in methods)]
        for layer in layers
    ]
    words = max(each.total for each in hits.values())
    points = ", ".join(f"{name}: {_format_share(row)}" for (kind, name), row in shares.items() if kind == "baseline")
    note = f"{words} words of its true captions of {scene_count} scenes. With no map: {points}."
    table = Table("Word pointing", ["within 15 px (on the object)", *methods], rows, [note])
    figures = {"words": words, "hits": {" / ".join(key): row for key, row in shares.items()}}
    return Result("word_pointing", figures, [table])


def _format_share(share: Mapping[str, float] | None, best: bool = False) -> str | None:
    if share is None:
        return None
    near = f"{share['near']:.1%}"
    return f"{f'**{near}**' if best else near} ({share['exact']:.1%})"
