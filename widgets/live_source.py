"""A model and one image: maps are computed when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from ..errors import GradlightError, nearest
from ..explainers.explain import explain
from ..explainers.layer_selection import choose_layers
from ..explainers.maps import SaliencyMaps
from ..explainers.meta import Meta
from ..explainers.methods import METHODS, methods_of
from ..models import class_objective as classes
from ..models.base import Explainable, Photo, as_list
from ..models.captioner.captioner import Captioner
from ..models.captioner.targets import Caption, CaptionTarget, Phrase
from ..models.classifiers import Classifier
from ..models.objective import Target
from .map_sources import Choice, MapSource, bracketed, choices_of, class_keys, single
from .payload import MapKey
from .worker import CancelToken, allowed, watched

__all__ = ["METHODS_SHOWN", "CaptionedImage", "ClassifiedImage", "LiveSource", "live"]

METHODS_SHOWN = ("selective_normgrad", "normgrad", "linear_approx", "grad_cam", "gradient")

# Explaining puts hooks on a network for a moment, so two viewers of one network must not do it at once.
_ONE_AT_A_TIME = threading.Lock()


class LiveSource(MapSource):
    """A model and one image: what every kind of model has in common."""

    live = True

    def __init__(self, model: Explainable, image: Any, methods: Any, layers: Any) -> None:
        images = as_list(image)
        if len(images) != 1:
            raise GradlightError(
                f"A viewer computes for one image at a time; {len(images)} were given. Explain them all, and look at"
                " the result: gradlight.view(gradlight.explain(model, images))."
            )
        pixels, photos = model.read(images)
        self.model, self.images, self._photo = model, images, photos[0]
        self.title = model.name
        size = (pixels.shape[2], pixels.shape[3])
        given = methods_of(METHODS_SHOWN if methods is None else methods)
        asked = choose_layers(model, layers, size)
        places = {layer.name: layer for method in given for layer in method.places(asked)}
        self._layers = sorted(places.values(), key=lambda layer: layer.depth)
        self.layers = [layer.name for layer in self._layers]
        self.given = [method.name for method in given]
        self._methods = {**{method.name: method for method in given}, **METHODS}
        self.methods = list(self._methods)
        self._choices: dict[str, Choice] = {}

    def __len__(self) -> int:
        return 1

    def photo(self, image: int) -> Photo:
        """Give the record of the image."""
        return self._photo

    def choices(self, image: int) -> list[Choice]:
        """List the targets that are offered: what the model says, and all that has been asked."""
        return list(self._choices.values())

    def sizes(self) -> list[tuple[int, int]]:
        """Give the height and width of the maps at each layer."""
        return [layer.size for layer in self._layers]

    def opens_with(self) -> list[str]:
        """List the methods that the viewer was made with: they share one pass."""
        return self.given

    def admit(self, method: str) -> None:
        """Offer another method; raises GradlightError for one that does not exist."""
        found = methods_of(method)[0]
        missing = [layer.name for layer in found.places(self._layers) if layer.name not in self.layers]
        if missing:
            raise GradlightError(
                f"{found.name} makes maps at {missing[0]!r}, which this viewer does not show. Open one with"
                f" methods={found.name!r}."
            )
        if found.name not in self._methods:
            self._methods[found.name] = found
            self.methods.append(found.name)

    def first(self, target: Any, meta: Meta | None) -> dict[MapKey, SaliencyMaps]:
        """Compute the maps of the targets that a viewer opens with, one set for each."""
        step = MapKey(0, "", *((meta.direction, meta.lr) if meta else ()))
        maps = self._explained(target, self.given, step, CancelToken())
        rows = [(self._noted(found).key, k) for k, found in enumerate(maps.targets[0])]
        return {step._replace(target=key): single(maps, k) for key, k in rows}

    def maps(self, part: MapKey, methods: Sequence[str], watch: CancelToken) -> SaliencyMaps:
        """Compute the maps of one target."""
        maps = self._explained(self.asked(part.target), methods, part, watch)
        self._noted(maps.targets[0][0])
        return maps

    def _explained(self, target: Any, methods: Sequence[str], part: MapKey, watch: CancelToken) -> SaliencyMaps:
        meta = None if part.meta == "off" else Meta(part.lr, part.meta)
        told, refusals = watched([self._methods[name] for name in methods], len(self.layers), watch)
        with _ONE_AT_A_TIME:
            watch.step(0.0)
            maps = explain(self.model, self.images, target, methods=told, layers=self.layers, meta=meta)
        return allowed(maps, refusals)

    def _noted(self, target: Target) -> Choice:
        """Offer a target from now on."""
        choice = self.choice(target)
        self._choices[choice.key] = choice
        return choice

    def choice(self, target: Target) -> Choice:
        """Make the choice of a target that has been explained."""
        return choices_of([target])[0]

    def asked(self, key: str) -> Any:
        """Give what `explain` is asked for a key."""
        return key


class ClassifiedImage(LiveSource):
    """A classifier and one image: its most probable classes are offered, and all others can be searched."""

    model: Classifier
    search = "classes"

    def __init__(self, model: Classifier, image: Any, methods: Any, layers: Any) -> None:
        super().__init__(model, image, methods, layers)
        self._labels = model.labels
        self._keys = class_keys(self._labels)
        self._indices = {key: index for index, key in enumerate(self._keys)}
        with _ONE_AT_A_TIME:
            self._ranking = model.predict(self.images, top=len(self._keys))[0]
        self._probabilities = {each.index: each.probability for each in self._ranking}
        self.prompt = f"Search {len(self._keys)} classes"
        for each in self._ranking[:5]:
            self._choices[self._keys[each.index]] = self._of(each.index)

    def _of(self, index: int, score: float = float("nan")) -> Choice:
        return Choice(self._keys[index], self._labels[index], "class", score, self._probabilities[index])

    def choice(self, target: Target) -> Choice:
        """Make the choice of a class."""
        return self._of(target.index, target.score)

    def sentence(self, image: int, target: str) -> list[str]:
        """Classes form no sentence."""
        return []

    def asked(self, key: str) -> int:
        """Give the index of a class."""
        return self._indices[key]

    def key(self, image: int, asked: str) -> str:
        """Find a class by its label, a unique beginning of it, its index, or "top" or "min"."""
        if asked in self._indices:
            return asked
        meanings = classes.resolve(classes.parse(asked), self._labels)[0]
        if len(meanings) > 1:
            raise GradlightError(f"{asked!r} asks for {len(meanings)} classes; a pane shows one at a time.")
        meaning = meanings[0]
        index = meaning.index if isinstance(meaning, classes.Class) else self._ranking[meaning.position].index
        return self._keys[index]

    def find(self, text: str) -> list[Choice]:
        """Find classes with a text in their labels, the most probable first."""
        wanted = text.casefold()
        return [self._of(each.index) for each in self._ranking if wanted in each.label.casefold()]


class CaptionedImage(LiveSource):
    """A captioner and one image: its own caption, word by word, or any other that is typed in."""

    model: Captioner
    search = "captions"
    prompt = "Ask about another sentence"

    def __init__(self, model: Captioner, image: Any, methods: Any, layers: Any) -> None:
        super().__init__(model, image, methods, layers)
        self._captions: dict[str, Caption] = {}

    def sentence(self, image: int, target: str) -> list[str]:
        """Give the words of the caption that a target is of."""
        return target.replace("[", "").replace("]", "").split()

    def choice(self, target: Target) -> Choice:
        """Make the choice of a caption or of some of its words, and remember the caption that they are of."""
        part = cast(CaptionTarget, target)
        words = self.model.vocabulary.decode(part.tokens)
        text = " ".join(words)
        self._captions.setdefault(text, Caption(text, [], list(part.tokens), 0.0, [], part.ended))
        key = text if part.kind == "caption" else bracketed(words, part.start, part.stop)
        return Choice(key, part.label, part.kind, part.score)

    def asked(self, key: str) -> Any:
        """Give a caption that is known by its tokens, its words, or the text itself."""
        words = self.sentence(0, key)
        caption = self._captions.get(" ".join(words))
        if caption is None or "[" not in key:
            return caption or key
        start = next(i for i, word in enumerate(key.split()) if word.startswith("["))
        stop = next(i for i, word in enumerate(key.split()) if word.endswith("]")) + 1
        return Phrase(tuple(caption.tokens), start, stop, caption.ended)

    def key(self, image: int, asked: str) -> str:
        """Bring a sentence, with brackets around some words or without, to the words that the captioner knows."""
        if " ".join(self.sentence(image, asked)) in self._captions:
            return " ".join(asked.split())
        found = self.model.objective(asked).target_specs[0][0]
        if found.tokens is None:
            raise GradlightError(f'{asked!r} is only a part of a caption. Write the whole of it: "a [red star] above".')
        words = self.model.vocabulary.decode(found.tokens)
        return bracketed(words, *found.span) if found.span else " ".join(words)


def live(model: Any, image: Any, methods: Any, layers: Any) -> LiveSource:
    """Make the source of a model and an image; raises GradlightError for another kind of model."""
    if isinstance(model, Classifier):
        return ClassifiedImage(model, image, methods, layers)
    if isinstance(model, Captioner):
        return CaptionedImage(model, image, methods, layers)
    raise GradlightError(
        f"{type(model).__name__} cannot be viewed: give gradlight.classifier(…), gradlight.captioner(…), maps, or the"
        f" path of a file of maps.{nearest(str(model), ['scenes']) if isinstance(model, str) else ''}"
    )
