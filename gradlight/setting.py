"""What an experiment runs on: the options as they were typed, and the model and the photos that they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from . import __version__
from .commands import listed, parse_meta
from .console import notice
from .errors import GradlightError
from .evaluation.layer_weights import Play
from .evaluation.ledger import Ledger
from .evaluation.metrics import TOLERANCE
from .evaluation.pointing_game import player
from .evaluation.samples import Samples, open_samples
from .evaluation.word_pointing import TOLERANCE as SHARE
from .explainers.explain import explain
from .models.base import Explainable
from .opening import Source, open_model

M = TypeVar("M")

__all__ = ["Options", "Setting"]

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

    def __init__(self, source: Source, options: Options, folder: Path | None) -> None:
        self.source, self.options, self.folder = source, options, folder
        self.layers = listed(options.layers)
        self.rates = [_rate(text) for text in listed(options.rates)]
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
        return [*listed(self.options.methods)] if self.options.methods else [each for each in own if self._allows(each)]

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

    def player(self, samples: Samples, ledger: Ledger) -> Play | None:
        """Make the pointing game that other experiments play, if it is known what the photos show."""
        if not samples.labels:
            return None
        return player(self.model, samples, ledger=ledger, name="pointing", tolerance=self.tolerance)

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
