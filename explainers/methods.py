"""The published methods as data: each is a pair (extract, aggregate), and any other pair is a method too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from ..errors import GradlightError, nearest
from ..models.base import Layer
from ..models.objective import Objective, Target
from .aggregation import AGGREGATES, positive_total, total
from .baselines import BASELINES
from .capture import Tap, record
from .contributions import Contribution, Dense
from .extraction import EXTRACTS, averaged_scaling, class_weights
from .layer_selection import own_weight_layers

__all__ = ["METHODS", "AnyMethod", "Method", "MethodLike", "method", "methods_of"]


@runtime_checkable
class AnyMethod(Protocol):
    """What makes maps: a `Method`, a `Baseline`, or any object with these three members.

    One that can also be called with a tap, as a `Method` can, shares the passes of a batch with all others that can.
    """

    @property
    def name(self) -> str:
        """The key of its maps."""

    @property
    def places(self) -> Callable[[Sequence[Layer]], Sequence[Layer]]:
        """From the layers that are asked for to those at which it makes maps."""

    @property
    def attribute(self) -> Callable[[Objective, Tensor, Target, Layer], Tensor]:
        """From objective, pixels [1,3,H,W], a fixed target and a layer to the map [1,h,w], inside `preserved`."""


MethodLike = str | AnyMethod
"""A published name, "EXTRACT+AGGREGATE", or a method itself."""

Extraction = Callable[[Tap], Contribution | Tensor]
Aggregation = Callable[[Contribution], Tensor]


@dataclass(frozen=True)
class Method:
    """A method: how to extract a contribution from a tap, and how to aggregate it to one number per location.

    Args:
        extract: "bias", "scaling", "conv1x1", "conv3x3", "conv3x3_depthwise", "real", "real_bias"; or a function from
            a `Tap` to a `Contribution` or to a tensor [B,C,h,w], the vector that each location contributes.
        aggregate: "sum", "max", "maxabs", "norm", "filter_norm"; or a function from a `Contribution`, whose statistics
            are [B,G,h,w], to a map [B,h,w].
        name: Key of the maps; "EXTRACT+AGGREGATE" by default.
        formula: The map at one location, in plain text.
        reference: Where the method is published.

    Raises:
        GradlightError: The name of `extract` or `aggregate` is unknown; or, when the method is called, one of its
            functions returns something of another type or shape.

    Example:
        >>> gl.Method("conv3x3", "norm").name
        'conv3x3+norm'
        >>> layer_cam = gl.Method(lambda tap: tap.gradient.clamp(min=0) * tap.activation, "sum", "layer_cam")
        >>> gl.explain(gl.classifier("scenes"), "scenes:1", "star", methods=layer_cam, layers="layer4")
        SaliencyMaps(1 image × 1 target; methods: layer_cam; layers: layer4)
    """

    extract: str | Extraction
    aggregate: str | Aggregation
    name: str = ""
    formula: str = field(default="", compare=False, repr=False, kw_only=True)
    reference: str = field(default="", compare=False, repr=False, kw_only=True)

    def __post_init__(self) -> None:
        for value, table, what in ((self.extract, EXTRACTS, "extract"), (self.aggregate, AGGREGATES, "aggregate")):
            if not callable(value) and value not in table:
                raise GradlightError(
                    f"No {what} is called {value!r}.{nearest(str(value), table)} Known: {', '.join(table)}."
                )
        if not self.name:
            object.__setattr__(self, "name", f"{_name_of(self.extract)}+{_name_of(self.aggregate)}")
        if "/" in self.name:
            raise GradlightError(f"A method's name is a folder in its file; {self.name!r} must not hold '/'.")

    def places(self, layers: Sequence[Layer]) -> Sequence[Layer]:
        """Return the layers at which maps are made: all that are asked for."""
        return layers

    def at_stages(self, trunk: nn.Module, layers: Sequence[Layer], stages: Sequence[Layer]) -> Sequence[Layer]:
        """Return the layers at which the method is defined, for layers="stages".

        Args:
            trunk: The part of the network whose modules the layers are.
            layers: All layers of the network.
            stages: The stages among them.

        Returns:
            For "real" and "real_bias" the last layer of each stage with such a weight of its own; for "cam" the layer
            that the network averages over space; for all others the stages.
        """
        if self.extract in ("real", "real_bias"):
            parameter = "weight" if self.extract == "real" else "bias"
            return own_weight_layers(trunk, layers, stages, parameter)
        if self.extract is class_weights:
            pooled = [layer for layer in stages if layer.pooled] or [layer for layer in layers if layer.pooled]
            return pooled[-1:] or stages
        return stages

    def attribute(self, objective: Objective, pixels: Tensor, target: Target, layer: Layer) -> Tensor:
        """Make the map [1,h,w] of one image [1,3,H,W] and one fixed target at a layer, inside `preserved`."""
        return self(record(objective, pixels, [layer], [[target]]).taps(0)[layer.name])

    def __call__(self, tap: Tap) -> Tensor:
        """Make the map [B,h,w] of a tap."""
        extract = EXTRACTS[self.extract] if isinstance(self.extract, str) else self.extract
        aggregate = AGGREGATES[self.aggregate] if isinstance(self.aggregate, str) else self.aggregate
        contribution = extract(tap)
        if not isinstance(contribution, Contribution):
            contribution = Dense(self._checked("extract", contribution, tap, "[images, channels, height, width]"))
        return self._checked("aggregate", aggregate(contribution), tap, "[images, height, width]")

    def _checked(self, step: str, value: Any, tap: Tap, axes: str) -> Tensor:
        """Return what a function of the method has returned, if it is a tensor on the grid of the tap."""
        images, _, height, width = tap.gradient.shape
        what = f"a {type(value).__name__}"
        if isinstance(value, Tensor):
            has_axes = value.ndim == axes.count(",") + 1 and value.is_floating_point()
            if has_axes and (value.shape[0], *value.shape[-2:]) == (images, height, width):
                return value
            what = f"a tensor of shape {list(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
        either = "a Contribution or " if step == "extract" else ""
        raise GradlightError(
            f"The {step} function of the method {self.name!r} returned {what} at layer {tap.layer.name!r}. It must"
            f" return {either}a floating-point tensor {axes}, here with {images} images, height {height} and width"
            f" {width}."
        )


def _name_of(function: str | Callable[..., Any]) -> str:
    return function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)


_PAPER = "Rebuffi et al. 2020"

METHODS: dict[str, Method] = {
    made.name: made
    for made in (
        Method(
            "bias",
            "maxabs",
            "gradient",
            formula="max_k |g_k|",
            reference=f"Simonyan et al. 2014, section 3; {_PAPER}, table 2, row 1",
        ),
        Method(
            "bias",
            "sum",
            "gradient_sum",
            formula="Σ_k g_k",
            reference=f"{_PAPER}, section 3.1: the bias layer of table 1, summed",
        ),
        Method(
            "scaling",
            "sum",
            "linear_approx",
            formula="Σ_k g_k·x_k",
            reference=f"Kindermans et al. 2016; {_PAPER}, table 2, row 2",
        ),
        Method(
            averaged_scaling,
            positive_total,
            "grad_cam",
            formula="(Σ_k ḡ_k·x_k)₊, ḡ_k the mean of g_k over all locations",
            reference=f"Selvaraju et al. 2017, equations 1 and 2; {_PAPER}, section 3.1.3",
        ),
        Method(
            class_weights,
            total,
            "cam",
            formula="Σ_k w_k·x_k, w the weights of the class in the last linear layer",
            reference="Zhou et al. 2016, equation 2 (without a ReLU)",
        ),
        Method(
            "conv1x1",
            "norm",
            "normgrad",
            formula="‖g‖·‖x‖",
            reference=f"{_PAPER}, section 3.1 and table 2, row 4",
        ),
        Method(
            "scaling",
            "filter_norm",
            "selective_normgrad",
            formula="‖(g ⊙ x)₊‖",
            reference=f"{_PAPER}, section 3.1.3 and table 2, row 3",
        ),
        Method(
            "real",
            "norm",
            "normgrad_real",
            formula="‖g‖·‖x_N×N‖ for an N×N convolution, x its own input",
            reference=f"{_PAPER}, section 3.1.1, table 1, and table 2, row 5",
        ),
    )
}
"""Published name → method. At each location g is the gradient and x the activation, both vectors over channels k.

gradient is the unsigned one of Simonyan et al. (other libraries show |g| per channel); grad_cam takes its ReLU last
(Captum leaves the ReLU out).
"""


def method(name: MethodLike) -> AnyMethod:
    """Find a method or a baseline by its name.

    Args:
        name: A published name; "EXTRACT+AGGREGATE", which makes a `Method`; or a method, which is returned.

    Returns:
        The method.

    Raises:
        GradlightError: The name is unknown; the nearest names are given.

    Example:
        >>> method("normgrad").formula
        '‖g‖·‖x‖'
        >>> method("conv3x3 + max") == gl.Method("conv3x3", "max")
        True
    """
    if isinstance(name, AnyMethod):
        return name
    if name in METHODS:
        return METHODS[name]
    if name in BASELINES:
        return BASELINES[name]
    extract, plus, aggregate = str(name).partition("+")
    if plus:
        return Method(extract.strip(), aggregate.strip())
    raise GradlightError(
        f"No method is called {name!r}.{nearest(str(name), [*METHODS, *BASELINES])} Known: {', '.join(METHODS)}; the"
        f" baselines {', '.join(BASELINES)}; or any pair such as 'conv3x3+norm'."
    )


def methods_of(methods: MethodLike | Iterable[MethodLike]) -> list[AnyMethod]:
    """List methods, each once.

    Args:
        methods: One method or several, as `method` takes them.

    Returns:
        The methods, in the order in which they were given.

    Raises:
        GradlightError: A name is unknown, or there is no method.

    Example:
        >>> [each.name for each in methods_of(["normgrad", "bias+sum", "normgrad"])]
        ['normgrad', 'bias+sum']
    """
    if isinstance(methods, str | AnyMethod):
        methods = [methods]
    if not isinstance(methods, Iterable):
        raise GradlightError(f"{methods!r} is no method, nor a list of them. Known: {', '.join(METHODS)}.")
    chosen = [method(each) for each in methods]
    if not chosen:
        raise GradlightError(f"No method was asked for. Known: {', '.join(METHODS)}.")
    return list({each.name: each for each in chosen}.values())
