"""The published methods as data: each is a pair (extract, aggregate), and any other pair is a method too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ..errors import GradlightError, nearest
from ..models.base import Layer
from .aggregation import AGGREGATES, positive_total, total
from .baselines import BASELINES, Baseline
from .capture import Tap
from .contributions import Contribution
from .extraction import EXTRACTS, Extract, averaged_scaling, class_weights

__all__ = ["METHODS", "AnyMethod", "Method", "MethodLike", "method", "methods_of"]

Aggregate = Callable[[Contribution], Tensor]


@dataclass(frozen=True)
class Method:
    """A way to make maps: how to extract a contribution from a tap, and how to aggregate it.

    extract: bias, scaling, conv1x1, conv3x3, conv3x3_depthwise, real, real_bias, or a function Tap → Contribution.
    aggregate: sum, max, maxabs, norm, filter_norm, or a function Contribution → [B,h,w].
    name: the key of its maps; "EXTRACT+AGGREGATE" unless given. Raises GradlightError for an unknown cell.
    """

    extract: str | Extract
    aggregate: str | Aggregate
    name: str = ""

    def __post_init__(self) -> None:
        for value, known, what in ((self.extract, EXTRACTS, "extract"), (self.aggregate, AGGREGATES, "aggregate")):
            if not callable(value) and value not in known:
                raise GradlightError(
                    f"No {what} is called {value!r}.{nearest(str(value), known)} Known: {', '.join(known)}."
                )
        if not self.name:
            parts = (part if isinstance(part, str) else part.__name__ for part in (self.extract, self.aggregate))
            object.__setattr__(self, "name", "+".join(parts))
        if "/" in self.name:
            raise GradlightError(f"A method's name is a folder in its file; {self.name!r} must not hold '/'.")

    def places(self, asked: Sequence[Layer]) -> Sequence[Layer]:
        """Make a map at each layer that is asked for."""
        return asked

    def __call__(self, tap: Tap) -> Tensor:
        """Make the map [B,h,w] of a tap."""
        extract = EXTRACTS[self.extract] if isinstance(self.extract, str) else self.extract
        aggregate = AGGREGATES[self.aggregate] if isinstance(self.aggregate, str) else self.aggregate
        return aggregate(extract(tap))


AnyMethod = Method | Baseline
"""What makes maps of a tap, or in another way of its own."""

MethodLike = str | Method | Baseline

METHODS: dict[str, Method] = {
    made.name: made
    for made in (
        Method("bias", "maxabs", "gradient"),
        Method("bias", "sum", "gradient_sum"),
        Method("scaling", "sum", "linear_approx"),
        Method(averaged_scaling, positive_total, "grad_cam"),
        Method(class_weights, total, "cam"),
        Method("conv1x1", "norm", "normgrad"),
        Method("scaling", "filter_norm", "selective_normgrad"),
        Method("real", "norm", "normgrad_real"),
    )
}
"""Published name → method.

gradient: max_k |g_k|, the unsigned one of Simonyan et al. and table 2 row 1 (other libraries show |g| per channel).
gradient_sum: Σ g. linear_approx: Σ g·x (row 2). selective_normgrad: ‖(g ⊙ x)₊‖ (row 3). normgrad: ‖g‖‖x‖ (row 4).
normgrad_real: the same with a layer's own weight and input (row 5). grad_cam: (Σ_k ḡ_k x_k)₊ with ḡ the spatial mean
of g, ReLU last (Captum leaves the ReLU out). cam: Σ_k w_k x_k, without a ReLU, as Zhou et al. define it.
"""


def method(asked: MethodLike) -> AnyMethod:
    """Find a method or a baseline by its name, or make one of "EXTRACT+AGGREGATE"; a Method or Baseline is itself.

    Raises GradlightError with the nearest names.
    """
    if isinstance(asked, Method | Baseline):
        return asked
    if asked in METHODS:
        return METHODS[asked]
    if asked in BASELINES:
        return BASELINES[asked]
    extract, plus, aggregate = str(asked).partition("+")
    if plus:
        return Method(extract.strip(), aggregate.strip())
    raise GradlightError(
        f"No method is called {asked!r}.{nearest(str(asked), [*METHODS, *BASELINES])} Known: {', '.join(METHODS)}; the"
        f" baselines {', '.join(BASELINES)}; or any pair such as 'conv3x3+norm'."
    )


def methods_of(asked: MethodLike | Iterable[MethodLike]) -> list[AnyMethod]:
    """Make a list of one method or several, each once. Raises GradlightError for none or an unknown one."""
    if not isinstance(asked, Iterable | Method | Baseline):
        raise GradlightError(f"{asked!r} is no method, nor a list of them. Known: {', '.join(METHODS)}.")
    several = [asked] if isinstance(asked, str | Method | Baseline) else list(asked)
    if not several:
        raise GradlightError(f"No method was asked for. Known: {', '.join(METHODS)}.")
    return list({found.name: found for found in map(method, several)}.values())
