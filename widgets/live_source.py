"""A model and one image as a map source: maps are computed on request."""

from __future__ import annotations

import re
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
from ..models.preserve import exclusive
from .map_sources import Choice, MapSource, bracketed, choices_of, class_keys, select_target
from .payload import MapKey
from .worker import CancelToken, make_cancellable, without_refused

__all__ = ["INITIAL_METHODS", "CaptionerSource", "ClassifierSource", "LiveSource", "live_source"]

INITIAL_METHODS = ("selective_normgrad", "normgrad", "linear_approx", "grad_cam", "gradient")
"""The methods that a viewer of a model computes at once, unless others are named."""


class LiveSource(MapSource):
    """A model and one image: what all kinds of models have in common.

    Args:
        model: A classifier or a captioner.
        image: One image, as for `explain`.
        methods: Methods that are computed at once; None for `INITIAL_METHODS`.
        layers: Layers, as for `explain`.

    Raises:
        GradlightError: There is not exactly one image, or a method or layer is unknown.
    """

    live = True

    def __init__(self, model: Explainable, image: Any, methods: Any, layers: Any) -> None:
        images = as_list(image)
        if len(images) != 1:
            raise GradlightError(
                f"A viewer computes for one image at a time; {len(images)} were given. Explain them all, and view"
                " the result: gradlight.view(gradlight.explain(model, images))."
            )
        pixels, photos = model.read(images)
        self.model, self.images, self._photo = model, images, photos[0]
        self.title = model.name
        size = (pixels.shape[2], pixels.shape[3])
        initial = methods_of(INITIAL_METHODS if methods is None else methods)
        layers_by_name = {
            layer.name: layer
            for method in initial
            for layer in method.places(choose_layers(model, layers, size, method))
        }
        self._layers = sorted(layers_by_name.values(), key=lambda layer: layer.depth)
        self.layers = [layer.name for layer in self._layers]
        self._initial_methods = [method.name for method in initial]
        self._methods = {**{method.name: method for method in initial}, **METHODS}
        self.methods = list(self._methods)
        self._choices: dict[str, Choice] = {}

    def __len__(self) -> int:
        return 1

    def photo(self, image: int) -> Photo:
        """Give the record of the image."""
        return self._photo

    def choices(self, image: int) -> list[Choice]:
        """List the selectable targets: the model's own predictions, and all targets that have been explained."""
        return list(self._choices.values())

    def map_sizes(self) -> list[tuple[int, int]]:
        """Give the height and width of the maps at each layer."""
        return [layer.size for layer in self._layers]

    def initial_methods(self) -> list[str]:
        """List the methods with which the viewer was made: they share one pass."""
        return self._initial_methods

    def add_method(self, method: str) -> None:
        """Offer another method; raises GradlightError where it is unknown or has maps at other layers only."""
        added = methods_of(method)[0]
        missing = [layer.name for layer in added.places(self._layers) if layer.name not in self.layers]
        if missing:
            raise GradlightError(
                f"{added.name} makes maps at {missing[0]!r}, which this viewer does not show. Open one with"
                f" methods={added.name!r}."
            )
        if added.name not in self._methods:
            self._methods[added.name] = added
            self.methods.append(added.name)

    def initial_maps(self, target: Any, meta: Meta | None) -> dict[MapKey, SaliencyMaps]:
        """Compute the maps with which a viewer opens.

        Args:
            target: One target or several, as for `explain`.
            meta: The inner step, if any.

        Returns:
            The maps of each target.
        """
        step = MapKey(0, "", *((meta.direction, meta.lr) if meta else ()))
        maps = self._explain(target, self._initial_methods, step, CancelToken())
        keys = [self._offer(explained).key for explained in maps.targets[0]]
        return {step._replace(target=key): select_target(maps, k) for k, key in enumerate(keys)}

    def maps(self, key: MapKey, methods: Sequence[str], token: CancelToken) -> SaliencyMaps:
        """Compute the maps of one target."""
        maps = self._explain(self.target_spec(key.target), methods, key, token)
        self._offer(maps.targets[0][0])
        return maps

    def _explain(self, target: Any, methods: Sequence[str], step: MapKey, token: CancelToken) -> SaliencyMaps:
        meta = None if step.meta == "off" else Meta(step.lr, step.meta)
        cancellable, refusals = make_cancellable([self._methods[name] for name in methods], len(self.layers), token)
        with exclusive(self.model.network):
            token.step(0.0)  # work that was cancelled while it waited ends here
            maps = explain(self.model, self.images, target, methods=cancellable, layers=self.layers, meta=meta)
        return without_refused(maps, refusals)

    def _offer(self, target: Target) -> Choice:
        """Offer a target from now on."""
        choice = self.make_choice(target)
        self._choices[choice.key] = choice
        return choice

    def make_choice(self, target: Target) -> Choice:
        """Make the choice of a target that has been explained."""
        return choices_of([target])[0]

    def target_spec(self, key: str) -> Any:
        """Give the target for `explain` of a key."""
        return key


class ClassifierSource(LiveSource):
    """A classifier and one image: its most probable classes can be selected, and all others can be searched."""

    model: Classifier
    search = "classes"

    def __init__(self, model: Classifier, image: Any, methods: Any, layers: Any) -> None:
        super().__init__(model, image, methods, layers)
        self._labels = model.labels
        self._keys = class_keys(self._labels)
        self._indices = {key: index for index, key in enumerate(self._keys)}
        self._ranking = model.predict(self.images, top=len(self._keys))[0]
        self._probabilities = {prediction.index: prediction.probability for prediction in self._ranking}
        self.prompt = f"Search {len(self._keys)} classes"
        for prediction in self._ranking[:5]:
            self._choices[self._keys[prediction.index]] = self._class_choice(prediction.index)

    def _class_choice(self, index: int, score: float = float("nan")) -> Choice:
        return Choice(self._keys[index], self._labels[index], "class", score, self._probabilities[index])

    def make_choice(self, target: Target) -> Choice:
        """Make the choice of a class."""
        return self._class_choice(target.index, target.score)

    def sentence(self, image: int, target: str) -> list[str]:
        """Give no words: classes form no sentence."""
        return []

    def target_spec(self, key: str) -> int:
        """Give the index of a class."""
        return self._indices[key]

    def resolve_target(self, image: int, text: str) -> str:
        """Find a class by its label, a unique beginning of its label, its index, or "top" or "min"."""
        if text in self._indices:
            return text
        meanings = classes.resolve(classes.parse(text), self._labels)[0]
        if len(meanings) > 1:
            raise GradlightError(f"{text!r} names {len(meanings)} classes; a pane shows one at a time.")
        meaning = meanings[0]
        index = meaning.index if isinstance(meaning, classes.Class) else self._ranking[meaning.position].index
        return self._keys[index]

    def search_targets(self, text: str) -> list[Choice]:
        """List the classes whose labels contain a text, the most probable first."""
        folded = text.casefold()
        return [self._class_choice(each.index) for each in self._ranking if folded in each.label.casefold()]


class CaptionerSource(LiveSource):
    """A captioner and one image: its own caption, word by word, or any other caption that is typed in."""

    model: Captioner
    search = "captions"
    prompt = "Ask about another sentence"

    def __init__(self, model: Captioner, image: Any, methods: Any, layers: Any) -> None:
        super().__init__(model, image, methods, layers)
        self._captions: dict[str, Caption] = {}
        self._phrases: dict[str, Phrase] = {}

    def sentence(self, image: int, target: str) -> list[str]:
        """Give the words of the caption to which a target belongs."""
        return target.replace("[", "").replace("]", "").split()

    def make_choice(self, target: Target) -> Choice:
        """Make the choice of a caption or of some of its words, and keep the tokens of the caption."""
        phrase = cast(CaptionTarget, target)
        words = self.model.vocabulary.decode(phrase.tokens)
        text = " ".join(words)
        self._captions.setdefault(text, Caption(text, [], list(phrase.tokens), 0.0, [], phrase.ended))
        key = text if phrase.kind == "caption" else bracketed(words, phrase.start, phrase.stop)
        if phrase.kind != "caption":
            self._phrases.setdefault(key, Phrase(phrase.tokens, phrase.start, phrase.stop, phrase.ended))
        return Choice(key, phrase.label, phrase.kind, phrase.score)

    def target_spec(self, key: str) -> Any:
        """Give a caption whose tokens are known, some of its words, or the text itself."""
        if key in self._phrases:
            return self._phrases[key]
        caption = self._captions.get(" ".join(self.sentence(0, key)))
        words = key.split()
        starts = [at for at, word in enumerate(words) if word.startswith("[")]
        stops = [at + 1 for at, word in enumerate(words) if word.endswith("]")]
        if caption is None or not (starts and stops):  # brackets inside a word are those of the tokenizer's tokens
            return key if caption is None or "[" in key else caption
        return Phrase(tuple(caption.tokens), starts[0], stops[0], caption.ended)

    def resolve_target(self, image: int, text: str) -> str:
        """Bring a caption, with or without brackets around words, to words of the captioner's vocabulary."""
        is_whole = not re.search(r"[^\s\[]\[|\][^\s\]]", text)
        if is_whole and " ".join(self.sentence(image, text)) in self._captions:
            return " ".join(text.split())
        spec = self.model.objective(text).target_specs[0][0]
        if spec.tokens is None:
            raise GradlightError(
                f'{text!r} is only a part of a caption. Write the whole caption: "a [red star] above".'
            )
        words = self.model.vocabulary.decode(spec.tokens)
        return bracketed(words, *spec.span) if spec.span else " ".join(words)


def live_source(model: Any, image: Any, methods: Any, layers: Any) -> LiveSource:
    """Make the map source of a model and an image.

    Args:
        model: A classifier or a captioner.
        image: One image, as for `explain`.
        methods: Methods that are computed at once; None for `INITIAL_METHODS`.
        layers: Layers, as for `explain`.

    Returns:
        The source.

    Raises:
        GradlightError: The model is of another kind.
    """
    if isinstance(model, Classifier):
        return ClassifierSource(model, image, methods, layers)
    if isinstance(model, Captioner):
        return CaptionerSource(model, image, methods, layers)
    raise GradlightError(
        f"{type(model).__name__} cannot be viewed: give gradlight.classifier(…), gradlight.captioner(…), maps, or the"
        f" path of a file of maps.{nearest(str(model), ['scenes']) if isinstance(model, str) else ''}"
    )
