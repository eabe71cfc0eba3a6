"""The pointing game: does a class's map have its largest value on an object of that class?

Zhang et al. (2016) as TorchRay plays it (Fong et al., 2019) and the paper's tables were made: a fully convolutional
classifier sees the whole photo, the scores of its grid send back a spatial softmax, the map is laid over the original
photo, and its first largest place must lie nearer than 15 pixels to the ground truth. Accuracy is the mean over the
classes; once for all pairs of photo and class, once for the difficult ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor
from tqdm.auto import tqdm

from ..errors import GradlightError, nearest
from ..explainers.explain import explain
from ..explainers.layer_selection import choose_layers
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.methods import AnyMethod, MethodLike, methods_of
from ..models.base import Explainable, View
from .combined import with_combinations
from .ledger import Ledger
from .pointing_report import Answer, told
from .pointing_rule import TOLERANCE, hits, laid, largest, smoothed
from .result import Result
from .samples import Sample, Samples, Truth
from .whole_photo import WholePhotos, whole_photos

__all__ = ["Joined", "class_indices", "player", "pointing_game", "points"]

Joined = Callable[[SaliencyMaps], SaliencyMaps]
Play = Callable[[Sequence[str], Sequence[str], Joined], dict[tuple[str, str], float]]


def pointing_game(
    model: Explainable,
    samples: Samples,
    methods: MethodLike | Sequence[MethodLike],
    layers: str | Sequence[str] = "stages",
    *,
    ledger: Ledger,
    meta: Meta | None = None,
    classes: Sequence[str] | None = None,
    joined: Joined = with_combinations,
    name: str = "pointing_game",
    tolerance: float = TOLERANCE,
    seed: int = 0,
    progress: bool = False,
) -> Result:
    """Play with a classifier: every method at every layer, the layers in each combination, the centre and chance.

    samples: photos whose objects are known. classes: of the data set, those to ask for; all unless given, and the
    network must have them by the same names. joined: puts combinations of layers beside the maps of a photo; name: of
    the game in the ledger, another one for each `joined`. tolerance: in pixels of the photo. seed: of the random
    points. Raises GradlightError for a model without classes, for classes that it does not have, for photos of which
    nothing is known, and where an annotation is not of its photo.
    """
    playing = whole_photos(model)
    indices = class_indices(_asked(samples, classes), playing.labels)
    names = [layer.name for layer in choose_layers(playing, layers, playing.size)]
    chosen = tuple(methods_of(methods))
    job = _Job(playing, chosen, tuple(names), meta, indices, joined, tolerance, seed)
    answers: list[Answer] = []
    for number, sample in enumerate(tqdm(samples, unit="photo", disable=not progress)):
        found = ledger.once(f"{name} {job.key} {sample.key}", partial(job.play, sample, number))
        answers += [Answer(**answer) for answer in found]
    if not answers:
        raise GradlightError(f"On {len(samples)} photos there is no object to point at: none of {', '.join(indices)}.")
    return told(answers, list(indices), playing.name, [*samples.notes, *playing.notes])


def player(
    model: Explainable,
    samples: Samples,
    *,
    ledger: Ledger,
    name: str,
    classes: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
) -> Play:
    """Make the game that other experiments play: methods, layers, joined → accuracy, 0…1, by (method, layer).

    name: of their games in the ledger. The other arguments are those of `pointing_game`.
    """

    def play(methods: Sequence[str], layers: Sequence[str], joined: Joined) -> dict[tuple[str, str], float]:
        result = pointing_game(
            model,
            samples,
            methods,
            layers,
            ledger=ledger,
            classes=classes,
            joined=joined,
            name=name,
            tolerance=tolerance,
        )
        split = {each.partition(" / ")[::2]: row["all"] for each, row in result.figures["accuracy"].items()}
        return {(method, layer): share for (method, layer), share in split.items() if layer}

    return play


def class_indices(labels: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    """Find the classes of a data set among a network's by name, without regard to case and to "_" for a blank.

    Raises GradlightError that names the classes which the network does not have, or has twice.
    """
    exact = {label: index for index, label in enumerate(known) if known.count(label) == 1}
    folded: dict[str, list[int]] = {}
    for index, label in enumerate(known):
        folded.setdefault(_fold(label), []).append(index)
    found: dict[str, int] = {}
    for label in labels:
        same = [exact[label]] if label in exact else folded.get(_fold(label), [])
        if len(same) == 1:
            found[label] = same[0]
    missing = [label for label in labels if label not in found]
    if missing:
        first = nearest(missing[0], known)
        raise GradlightError(
            f"{len(missing)} of the {len(labels)} classes of the data set are not among the {len(known)} of the"
            f" network: {', '.join(missing)}.{first} Give labels= with the data set's names to the model, or classes="
            " those to ask for."
        )
    return found


def _fold(label: str) -> str:
    return " ".join(label.replace("_", " ").casefold().split())


def _asked(samples: Samples, classes: Sequence[str] | None) -> Sequence[str]:
    if not samples.labels:
        raise GradlightError(
            "Nothing is known of the objects on these photos, so there is nothing to point at: the pointing game takes"
            ' "scenes", a VOC root, or COCO\'s photos with annotations.'
        )
    wrong = [label for label in classes or () if label not in samples.labels]
    if wrong:
        raise GradlightError(f"The data set has no class {wrong[0]!r}.{nearest(wrong[0], samples.labels)}")
    return samples.labels if classes is None else list(dict.fromkeys(classes))


@dataclass(frozen=True)
class _Job:
    """What is done with every photo."""

    model: WholePhotos
    methods: tuple[AnyMethod, ...]
    layers: tuple[str, ...]
    meta: Meta | None
    indices: dict[str, int]
    joined: Joined
    tolerance: float
    seed: int

    @property
    def key(self) -> str:
        """Name the unit of work that one photo is, apart from the photo."""
        step = None if self.meta is None else self.meta.describe()
        methods = [method.name for method in self.methods]
        about = [methods, self.layers, step, list(self.indices), self.tolerance, self.seed]
        return json.dumps(about)

    def play(self, sample: Sample, number: int) -> list[dict[str, Any]]:
        """Ask for every class on a photo, the number-th: an answer for each, with every player's hit or miss."""
        truths = [truth for truth in sample.truths if truth.label in self.indices and not truth.difficult]
        if not truths:
            return []
        targets = [[self.indices[truth.label] for truth in truths]]
        maps = explain(
            self.model, [sample.image], targets, methods=self.methods, layers=self.layers, meta=self.meta, batch_size=1
        )
        _check(sample, maps)
        places = points(self.joined(maps)) | self._without_maps(sample, truths, number)
        return [
            {
                "label": truth.label,
                "subset": truth.subset,
                "hits": {name: hits(truth.mask, at[k][0], at[k][1], self.tolerance) for name, at in places.items()},
            }
            for k, truth in enumerate(truths)
        ]

    def _without_maps(self, sample: Sample, truths: Sequence[Truth], number: int) -> dict[str, list[list[float]]]:
        """Point at the centre, and anywhere; the same place for a photo, whatever was played before."""
        random = np.random.default_rng([self.seed, number])
        anywhere = random.integers(0, [sample.height, sample.width], (len(truths), 2))
        return {"centre": [[sample.height / 2, sample.width / 2]] * len(truths), "random": anywhere.tolist()}


def points(maps: SaliencyMaps) -> dict[str, list[list[float]]]:
    """Tell where the maps of one photo point: (row, column) of the photo for each target, by "METHOD / LAYER"."""
    view = maps.images[0].view
    return {f"{method} / {layer}": _point(maps.rows(method, layer).cpu(), layer, view) for method, layer in maps.pairs}


def _point(rows: Tensor, layer: str, view: View) -> list[list[float]]:
    over = laid(rows, view)
    found: list[list[float]] = largest(smoothed(over) if layer == "input" else over).tolist()
    return found


def _check(sample: Sample, maps: SaliencyMaps) -> None:
    photo = maps.images[0]
    if (photo.width, photo.height) != (sample.width, sample.height):
        raise GradlightError(
            f"{sample.key}: the photo has {photo.width} x {photo.height} pixels, its annotation is of"
            f" {sample.width} x {sample.height}. Check that the annotations belong to the photos."
        )
