"""The experiments by name, each with its own methods and number of scenes, as `evaluate` runs them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from .console import interactive
from .data.scenes.generator import HELD_OUT
from .evaluation import word_pointing as words
from .evaluation.caption_truth import caption_truth
from .evaluation.caption_truth import told as captions_told
from .evaluation.class_sensitivity import class_sensitivity
from .evaluation.deletion_insertion import deletion_insertion
from .evaluation.identity_trick import identity_trick
from .evaluation.layer_weights import layer_weights
from .evaluation.ledger import Ledger
from .evaluation.meta_analysis import meta_analysis
from .evaluation.pointing_game import pointing_game
from .evaluation.tables import Result
from .evaluation.weight_randomisation import weight_randomisation
from .explainers.baselines import Baseline, at_pixels
from .explainers.baselines.captum_methods import lime
from .explainers.baselines.extremal import extremal_perturbation
from .explainers.baselines.rise import rise
from .explainers.methods import MethodLike
from .opening import open_captioner
from .setting import Setting

__all__ = ["EXPERIMENTS", "Run"]

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
        play=play,
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
        play=play,
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
            speaker=words.own_captions(model),
            progress=interactive(),
        )
        return [[*key, hits.asked, hits.exact, hits.near] for key, hits in found.items()]

    hits = {(method, layer): words.Hits(*counted) for method, layer, *counted in ledger.once("game", play)}
    return words.told(hits, number)


def _caption_truth(setting: Setting, count: int, ledger: Ledger) -> Result:
    model = open_captioner(setting.source)
    return captions_told(caption_truth(model, HELD_OUT[: setting.options.count or count], progress=interactive()))


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
