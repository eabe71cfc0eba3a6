"""Experiments by name, with their default methods and numbers of scenes, and the model and photos they run on."""

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
from ..explainers.baselines.perturbation import extremal_perturbation, rise
from ..explainers.explain import explain
from ..explainers.methods import MethodLike
from ..models.base import Explainable
from .console import is_interactive, print_notice
from .explain import parse_meta, split_list
from .open_model import ModelOptions, open_captioner, open_model

__all__ = ["EXPERIMENTS", "ExperimentContext", "ExperimentFunction", "ExperimentOptions"]

AnyMethodLike = TypeVar("AnyMethodLike")

# ---- default methods

_OWN_METHODS = ("gradient", "gradient_sum", "linear_approx", "grad_cam", "normgrad", "selective_normgrad")
_FAST_BASELINES = ("guided_backprop", "deconvnet", "excitation_backprop", "contrastive_excitation_backprop")
_SLOW_BASELINES: tuple[MethodLike, ...] = (
    "smoothgrad",
    "integrated_gradients",
    "deep_lift",
    "lrp",
    "occlusion",
    # With fewer passes than the thousands in their papers.
    Baseline("lime_250", partial(lime, samples=250), at_pixels),
    Baseline("rise_500", partial(rise, masks=500), at_pixels),
    Baseline(
        "extremal_perturbation_60", partial(extremal_perturbation, steps=60, areas=(0.05, 0.1), rate=0.1), at_pixels
    ),
)
# Baselines without rules for the operations of some networks.
_RULE_BASELINES = (
    "guided_backprop",
    "deconvnet",
    "excitation_backprop",
    "contrastive_excitation_backprop",
    "deep_lift",
    "lrp",
)

# The standard deviation of the blur, relative to the shorter side. After the published blur, the flat colours of scenes
# can still be recognised.
_PUBLISHED_BLUR = 5 / 224
_SCENES_BLUR = 0.25

# ---- model and photos


@dataclass(frozen=True)
class ExperimentOptions:
    """The options of an experiment, as strings of the command line; None is the experiment's own default."""

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


class ExperimentContext:
    """The model and the photos of an experiment, opened when they are first needed.

    Args:
        model_options: the options that name the model.
        options: the options of the experiment.
        folder: the folder of the report, or None.

    Raises:
        GradlightError: a learning rate or the meta step is not a number.
    """

    def __init__(self, model_options: ModelOptions, options: ExperimentOptions, folder: Path | None) -> None:
        self.model_options, self.options, self.folder = model_options, options, folder
        self.layers = split_list(options.layers)
        self.rates = [_parse_rate(text) for text in split_list(options.rates)]
        self.meta = parse_meta(options.meta)

    @cached_property
    def model(self) -> Explainable:
        """The model that the options name."""
        return open_model(self.model_options)

    def samples(self, default_count: int) -> Samples:
        """Open the photos.

        Args:
            default_count: the number of scenes, unless the options give a number.

        Returns:
            The photos with what is known of them.
        """
        options = self.options
        count = options.count or (default_count if options.data == "scenes" else None)
        return open_samples(options.data, count, options.annotations, options.split)

    def methods(self, defaults: Sequence[AnyMethodLike]) -> list[AnyMethodLike | str]:
        """Return the methods of the options, or else those of the defaults that the network supports.

        Args:
            defaults: the experiment's own methods.

        Returns:
            The methods, as `gradlight.explain` accepts them.
        """
        if self.options.methods:
            return [*split_list(self.options.methods)]
        return [method for method in defaults if self._supports(method)]

    def _supports(self, method: object) -> bool:
        """Return whether the network supports a method; print a notice if not."""
        if method not in _RULE_BASELINES or not isinstance(method, str):
            return True
        try:
            explain(self.model, [self.samples(1)[0].image], self.options.target, methods=method, layers=self.layers)
        except GradlightError as error:
            print_notice(f"left out: {error}")
            return False
        return True

    @property
    def tolerance(self) -> float:
        """The tolerance of the pointing game in pixels: 15; on scenes the same share of the photo as 15 of 224."""
        if self.options.tolerance is not None:
            return self.options.tolerance
        return SHARE * 160 if self.options.data == "scenes" else TOLERANCE

    def pointing_measure(self, samples: Samples, ledger: Ledger) -> MeasurePointing | None:
        """Make the pointing game for other experiments; None if the objects in the photos are unknown."""
        if not samples.labels:
            return None
        return pointing_measure(self.model, samples, ledger=ledger, name="pointing", tolerance=self.tolerance)

    def describe(self) -> dict[str, Any]:
        """Describe what every experiment of a report depends on, in JSON types."""
        options = self.options
        optional = {"annotations": options.annotations and str(options.annotations), "split": options.split}
        return {
            "model": self.model.name,
            "weights_sha256": self.model.weights_sha256(),
            "data": options.data,
            **{name: value for name, value in optional.items() if value is not None},
            "seed": options.seed,
            "gradlight": __version__,
        }


def _parse_rate(text: str) -> float:
    """Parse one learning rate of the option `--lr`."""
    try:
        return float(text)
    except ValueError as error:
        raise GradlightError(
            f"--lr must be comma-separated learning rates, such as 0.002,0.01; {text!r} is not a number."
        ) from error


# ---- experiments

ExperimentFunction = Callable[[ExperimentContext, int, Ledger], Result]
"""From the context, the default number of scenes and the ledger to the result."""


def _pointing_game(
    context: ExperimentContext,
    default_count: int,
    ledger: Ledger,
    methods: Sequence[MethodLike] = _OWN_METHODS + _FAST_BASELINES,
) -> Result:
    """Run the pointing game."""
    return pointing_game(
        context.model,
        context.samples(default_count),
        context.methods(methods),
        context.layers,
        ledger=ledger,
        meta=context.meta,
        tolerance=context.tolerance,
        seed=context.options.seed,
        progress=is_interactive(),
    )


def _baselines(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Run the pointing game of one own method and of the baselines that need many passes, on fewer photos."""
    return replace(
        _pointing_game(context, default_count, ledger, ("selective_normgrad", *_SLOW_BASELINES)), name="baselines"
    )


def _layer_weights(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Measure the weights of layers for combinations."""
    samples = context.samples(default_count)
    measure_pointing = context.pointing_measure(samples, ledger)
    options = context.options
    return layer_weights(
        context.model,
        samples,
        context.methods(("linear_approx", "grad_cam", "normgrad", "selective_normgrad")),
        context.layers,
        data=options.data,
        ledger=ledger,
        measure_pointing=measure_pointing,
        seed=options.seed,
        progress=is_interactive(),
    )


def _class_sensitivity(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Compare the maps of the most and the least probable class."""
    return class_sensitivity(
        context.model,
        context.samples(default_count),
        context.methods((*_OWN_METHODS, *_FAST_BASELINES)),
        context.layers,
        ledger=ledger,
        rates=context.rates,
        progress=is_interactive(),
    )


def _weight_randomisation(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Compare maps while the weights are randomised, layer by layer."""
    return weight_randomisation(
        context.model,
        context.samples(default_count),
        context.methods((*_OWN_METHODS, "guided_backprop", "excitation_backprop")),
        context.layers,
        ledger=ledger,
        target=context.options.target,
        meta=context.meta,
        seed=context.options.seed,
        progress=is_interactive(),
    )


def _identity_trick(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Compare the virtual identity with the real convolutions."""
    samples = context.samples(default_count)
    measure_pointing = context.pointing_measure(samples, ledger)
    layers = None if context.options.layers == "stages" else context.layers
    return identity_trick(
        context.model,
        samples,
        layers,
        ledger=ledger,
        target=context.options.target,
        measure_pointing=measure_pointing,
        progress=is_interactive(),
    )


def _deletion_insertion(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Run the deletion and insertion games."""
    return deletion_insertion(
        context.model,
        context.samples(default_count),
        context.methods((*_OWN_METHODS, *_FAST_BASELINES)),
        context.layers,
        ledger=ledger,
        target=context.options.target,
        blur=_SCENES_BLUR if context.options.data == "scenes" else _PUBLISHED_BLUR,
        seed=context.options.seed,
        progress=is_interactive(),
    )


def _meta_analysis(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Follow meta-saliency over a training of the scenes classifier."""
    methods = context.methods(("normgrad", "selective_normgrad"))
    images, lr = context.options.count or default_count, context.rates[0]
    run = partial(meta_analysis, images=images, lr=lr, ledger=ledger, progress=is_interactive())
    if context.folder is not None:
        return run(context.folder / "epochs", methods, context.layers)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder) / "epochs", methods, context.layers)


def _word_pointing(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Run the pointing game of the words of captions."""
    model = open_captioner(context.model_options)
    count = context.options.count or default_count
    methods = context.methods(("selective_normgrad", "normgrad", "linear_approx", "grad_cam", "gradient"))

    def count_hits() -> list[list[Any]]:
        hits_by_map = words.word_pointing(
            model,
            HELD_OUT[:count],
            methods,
            context.layers,
            captions=words.own_captions(model),
            progress=is_interactive(),
        )
        return [[*key, hits.total, hits.exact, hits.near] for key, hits in hits_by_map.items()]

    hits = {(method, layer): words.WordHits(*counted) for method, layer, *counted in ledger.once("game", count_hits)}
    return words.word_pointing_result(hits, count)


def _caption_truth(context: ExperimentContext, default_count: int, ledger: Ledger) -> Result:
    """Check generated captions against the scenes."""
    model = open_captioner(context.model_options)
    truth = caption_truth(model, HELD_OUT[: context.options.count or default_count], progress=is_interactive())
    return caption_truth_result(truth)


EXPERIMENTS: dict[str, tuple[ExperimentFunction, int]] = {
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
"""Name → experiment, and its number of scenes unless the options give a number."""
