"""The experiments by name, each with its own methods and number of scenes, as `evaluate` runs them.

What an experiment runs on: the options as they were typed, and the model and the photos that they name.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

from .. import __version__
from ..data.scenes.generator import HELD_OUT
from ..errors import GradlightError
from ..evaluation import word_pointing as words
from ..evaluation.caption_truth import caption_truth, caption_truth_result
from ..evaluation.class_sensitivity import class_sensitivity
from ..evaluation.deletion_insertion import deletion_insertion
from ..evaluation.identity_trick import identity_trick
from ..evaluation.layer_weights import layer_weights
from ..evaluation.ledger import Ledger
from ..evaluation.meta_analysis import meta_analysis
from ..evaluation.metrics import TOLERANCE
from ..evaluation.pointing_game import MeasurePointing, pointing_game, pointing_measure
from ..evaluation.samples import Samples, open_samples
from ..evaluation.tables import Result
from ..evaluation.weight_randomisation import weight_randomisation
from ..evaluation.word_pointing import TOLERANCE as SHARE
from ..explainers.baselines import Baseline, at_pixels
from ..explainers.baselines.captum_methods import lime
from ..explainers.baselines.extremal import extremal_perturbation
from ..explainers.baselines.rise import rise
from ..explainers.explain import explain
from ..explainers.methods import MethodLike
from ..models.base import Explainable
from .console import interactive, notice
from .explain import parse_meta, split_list
from .open_model import ModelOptions, open_captioner, open_model

__all__ = ["EXPERIMENTS", "Options", "Run", "Setting"]

M = TypeVar("M")


# They have no rules for the operations of every network.
_CHOOSY = (
    "guided_backprop",
    "deconvnet",
    "excitation_backprop",
    "contrastive_excitation_backprop",
    "deep_lift",
    "lrp",
)


@dataclass(frozen=True)
class Options:
    """The options of an experiment, as they were typed; None is the experiment's own default."""

    data: str = "scenes"
    count: int | None = None
    annotations: Path | None = None
    split: str | None = None
    methods: str | None = None
    layers: str = "stages"
    target: str | None = None
    meta: str | None = None
    rates: str = "0.002"
    tolerance: float | None = None
    seed: int = 0


class Setting:
    """The model and the photos of an experiment, opened when they are first needed."""

    def __init__(self, source: ModelOptions, options: Options, folder: Path | None) -> None:
        self.source, self.options, self.folder = source, options, folder
        self.layers = split_list(options.layers)
        self.rates = [_rate(text) for text in split_list(options.rates)]
        self.meta = parse_meta(options.meta)

    @cached_property
    def model(self) -> Explainable:
        """The model that the source names."""
        return open_model(self.source)

    def samples(self, count: int) -> Samples:
        """Open the photos; count: of scenes, unless the options say another."""
        options = self.options
        few = options.count or (count if options.data == "scenes" else None)
        return open_samples(options.data, few, options.annotations, options.split)

    def methods(self, own: Sequence[M]) -> list[M | str]:
        """Give the methods of the options, or else the experiment's own, as far as the network allows them."""
        return (
            [*split_list(self.options.methods)]
            if self.options.methods
            else [each for each in own if self._allows(each)]
        )

    def _allows(self, method: object) -> bool:
        if method not in _CHOOSY or not isinstance(method, str):
            return True
        try:
            explain(self.model, [self.samples(1)[0].image], self.options.target, methods=method, layers=self.layers)
        except GradlightError as error:
            notice(f"left out: {error}")
            return False
        return True

    @property
    def tolerance(self) -> float:
        """The pointing game's, in pixels: 15, and on scenes as large a share of the photo as that is of 224."""
        if self.options.tolerance is not None:
            return self.options.tolerance
        return SHARE * 160 if self.options.data == "scenes" else TOLERANCE

    def player(self, samples: Samples, ledger: Ledger) -> MeasurePointing | None:
        """Make the pointing game that other experiments play, if it is known what the photos show."""
        if not samples.labels:
            return None
        return pointing_measure(self.model, samples, ledger=ledger, name="pointing", tolerance=self.tolerance)

    def about(self) -> dict[str, Any]:
        """Describe what every experiment of a report depends on, in JSON types."""
        options = self.options
        given = {"annotations": options.annotations and str(options.annotations), "split": options.split}
        return {
            "model": self.model.name,
            "weights_sha256": self.model.weights_sha256(),
            "data": options.data,
            **{name: value for name, value in given.items() if value is not None},
            "seed": options.seed,
            "gradlight": __version__,
        }


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise GradlightError(f"--lr takes rates with commas between, such as 0.002,0.01; {text!r} is none.") from error


_OURS = ("gradient", "gradient_sum", "linear_approx", "grad_cam", "normgrad", "selective_normgrad")
_QUICK = ("guided_backprop", "deconvnet", "excitation_backprop", "contrastive_excitation_backprop")
# Of the shorter side. The flat colours of scenes outlive the published blur.
_BLUR = {False: 5 / 224, True: 0.25}
_SLOW: tuple[MethodLike, ...] = (
    "smoothgrad",
    "integrated_gradients",
    "deep_lift",
    "lrp",
    "occlusion",
    # With fewer passes than their papers' thousands.
    Baseline("lime_250", partial(lime, samples=250), at_pixels),
    Baseline("rise_500", partial(rise, masks=500), at_pixels),
    Baseline(
        "extremal_perturbation_60", partial(extremal_perturbation, steps=60, areas=(0.05, 0.1), rate=0.1), at_pixels
    ),
)

Run = Callable[[Setting, int, Ledger], Result]


def _pointing_game(
    setting: Setting, count: int, ledger: Ledger, methods: Sequence[MethodLike] = _OURS + _QUICK
) -> Result:
    return pointing_game(
        setting.model,
        setting.samples(count),
        setting.methods(methods),
        setting.layers,
        ledger=ledger,
        meta=setting.meta,
        tolerance=setting.tolerance,
        seed=setting.options.seed,
        progress=interactive(),
    )


def _baselines(setting: Setting, count: int, ledger: Ledger) -> Result:
    """The pointing game of the methods that take many passes, and of one of ours, on fewer photos."""
    return replace(_pointing_game(setting, count, ledger, ("selective_normgrad", *_SLOW)), name="baselines")


def _layer_weights(setting: Setting, count: int, ledger: Ledger) -> Result:
    samples = setting.samples(count)
    play = setting.player(samples, ledger)
    options = setting.options
    return layer_weights(
        setting.model,
        samples,
        setting.methods(("linear_approx", "grad_cam", "normgrad", "selective_normgrad")),
        setting.layers,
        data=options.data,
        ledger=ledger,
        measure_pointing=play,
        seed=options.seed,
        progress=interactive(),
    )


def _class_sensitivity(setting: Setting, count: int, ledger: Ledger) -> Result:
    return class_sensitivity(
        setting.model,
        setting.samples(count),
        setting.methods((*_OURS, *_QUICK)),
        setting.layers,
        ledger=ledger,
        rates=setting.rates,
        progress=interactive(),
    )


def _weight_randomisation(setting: Setting, count: int, ledger: Ledger) -> Result:
    return weight_randomisation(
        setting.model,
        setting.samples(count),
        setting.methods((*_OURS, "guided_backprop", "excitation_backprop")),
        setting.layers,
        ledger=ledger,
        target=setting.options.target,
        meta=setting.meta,
        seed=setting.options.seed,
        progress=interactive(),
    )


def _identity_trick(setting: Setting, count: int, ledger: Ledger) -> Result:
    samples = setting.samples(count)
    play = setting.player(samples, ledger)
    layers = None if setting.options.layers == "stages" else setting.layers
    return identity_trick(
        setting.model,
        samples,
        layers,
        ledger=ledger,
        target=setting.options.target,
        measure_pointing=play,
        progress=interactive(),
    )


def _deletion_insertion(setting: Setting, count: int, ledger: Ledger) -> Result:
    return deletion_insertion(
        setting.model,
        setting.samples(count),
        setting.methods((*_OURS, *_QUICK)),
        setting.layers,
        ledger=ledger,
        target=setting.options.target,
        blur=_BLUR[setting.options.data == "scenes"],
        seed=setting.options.seed,
        progress=interactive(),
    )


def _meta_analysis(setting: Setting, count: int, ledger: Ledger) -> Result:
    methods = setting.methods(("normgrad", "selective_normgrad"))
    images, lr = setting.options.count or count, setting.rates[0]
    run = partial(meta_analysis, images=images, lr=lr, ledger=ledger, progress=interactive())
    if setting.folder is not None:
        return run(setting.folder / "epochs", methods, setting.layers)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder) / "epochs", methods, setting.layers)


def _word_pointing(setting: Setting, count: int, ledger: Ledger) -> Result:
    model = open_captioner(setting.source)
    number = setting.options.count or count
    methods = setting.methods(("selective_normgrad", "normgrad", "linear_approx", "grad_cam", "gradient"))

    def play() -> list[list[Any]]:
        found = words.word_pointing(
            model,
            HELD_OUT[:number],
            methods,
            setting.layers,
            captions=words.own_captions(model),
            progress=interactive(),
        )
        return [[*key, hits.total, hits.exact, hits.near] for key, hits in found.items()]

    hits = {(method, layer): words.WordHits(*counted) for method, layer, *counted in ledger.once("game", play)}
    return words.word_pointing_result(hits, number)


def _caption_truth(setting: Setting, count: int, ledger: Ledger) -> Result:
    model = open_captioner(setting.source)
    truth = caption_truth(model, HELD_OUT[: setting.options.count or count], progress=interactive())
    return caption_truth_result(truth)


EXPERIMENTS: dict[str, tuple[Run, int]] = {
    "pointing_game": (_pointing_game, 200),
    "baselines": (_baselines, 8),
    "layer_weights": (_layer_weights, 200),
    "class_sensitivity": (_class_sensitivity, 100),
    "weight_randomisation": (_weight_randomisation, 20),
    "identity_trick": (_identity_trick, 100),
    "meta_analysis": (_meta_analysis, 32),
    "deletion_insertion": (_deletion_insertion, 12),
    "word_pointing": (_word_pointing, 1000),
    "caption_truth": (_caption_truth, 1000),
}
"""Name → experiment, and how many scenes it takes unless a count is given."""
