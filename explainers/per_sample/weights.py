"""A parameter with one gradient per image, and after the step one value per image.

The gradient of a weight matrix is a sum of outer products over the locations where the matrix was used. While these
are few, the two factors are kept: their product with an input then costs less than one with the matrix they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import torch
from torch import Tensor

__all__ = [
    "DerivedTensor",
    "NotCoveredError",
    "PerSampleTensor",
    "PerSampleWeight",
    "factors_are_cheaper",
    "reshape_without_view",
]


PatchFunction = Callable[[Tensor], Tensor]
"""From a field [B,C,h,w] to its patches [B,P,K], as a convolution's kernel covers them."""


class NotCoveredError(Exception):
    """A network uses its weights in a way that has no batched form: its images must be explained one by one."""


class PerSampleTensor(Protocol):
    """A tensor of the network that differs by image; `tensor` stands for it in the network's own code."""

    tensor: Tensor
    origin: Hashable

    def stacked(self) -> Tensor:
        """Return every image's own value [B,*shape]."""

    def unbound(self) -> tuple[Tensor, ...]:
        """Return the B values one by one."""


class DerivedTensor:
    """A tensor that a network computes from weights alone: a slice, a standardised weight, a table lookup."""

    def __init__(self, values: tuple[Tensor, ...], origin: Hashable) -> None:
        self.tensor, self.values, self.origin = values[0].detach(), values, origin

    def stacked(self) -> Tensor:
        """Return every image's own value [B,*shape]."""
        return torch.stack(self.values)

    def unbound(self) -> tuple[Tensor, ...]:
        """Return the B values one by one."""
        return self.values


class PerSampleWeight:
    """A parameter that collects the gradients of B images' losses, and then holds its value after each image's step.

    Before the step `stacked` is a leaf of the graph, from which autograd takes the gradient of every use without a rule
    of its own. After the step at most one of four forms is set:

        stepped       the values themselves [B,*shape]
        step_factors  the step of a matrix as factors: left [B,P,O] and right [B,P,K]
        step_field    the same, with the field [B,C,h,w] whose patches are the right factors
        step_rows     the step of a table's rows: their index [B,P] and values [B,P,E]

    Args:
        parameter: The network's own tensor, which is never written to.
        count: Number of images B.
        origin: Identifies the parameter across runs.
    """

    def __init__(self, parameter: Tensor, count: int, origin: Hashable) -> None:
        self.tensor, self.count, self.origin = parameter, count, origin
        self.leaf: Tensor | None = None
        self.stepped: Tensor | None = None
        self.step_factors: tuple[Tensor, Tensor] | None = None
        self.step_field: tuple[Tensor, Tensor] | None = None
        self.step_rows: tuple[Tensor, Tensor] | None = None
        self._factors: list[tuple[Tensor, Tensor]] = []
        self._fields: list[tuple[Tensor, Tensor, PatchFunction]] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._sum: Tensor | None = None
        self._separate: list[Tensor] = []
        self._step_taken = False
        self._unbound: tuple[Tensor, ...] | None = None

    def stacked(self) -> Tensor:
        """Return every image's own value [B,*shape]."""
        if self._step_taken:
            return self._expanded() if self.stepped is None else self.stepped
        if self.leaf is None:
            self.leaf = self._expanded().clone().requires_grad_()
        return self.leaf

    def unbound(self) -> tuple[Tensor, ...]:
        """Return the B values one by one."""
        if self._unbound is None:
            self._unbound = self.stacked().unbind()
        return self._unbound

    # --- Collecting the gradients

    def add(self, gradient: Tensor) -> None:
        """Add a gradient [B,*shape]."""
        gradient = gradient.to(self.tensor.dtype)
        self._sum = gradient if self._sum is None else self._sum + gradient

    def add_separate(self, gradients: list[Tensor]) -> None:
        """Add B gradients that are separate tensors; they are stacked only if there are others to add them to."""
        if self._separate:
            self.add(torch.stack(gradients))
        else:
            self._separate = gradients

    def add_factors(self, left: Tensor, right: Tensor) -> None:
        """Add the gradient leftᵀ·right of a weight matrix [O,K]."""
        if factors_are_cheaper(left.shape[1], *self._matrix_shape()):
            self._factors.append((left, right.to(left.dtype)))
        else:
            self.add(self._multiplied(left, right.to(left.dtype)))

    def add_field(self, left: Tensor, field: Tensor, patches: PatchFunction) -> None:
        """Add the gradient leftᵀ·patches(field) of a kernel, whose patches are [B,P,K]."""
        self._fields.append((left, field, patches))

    def add_rows(self, index: Tensor, values: Tensor) -> None:
        """Add the gradient of a table's rows: index [B,P], values [B,P,E]."""
        self._rows.append((index, values))

    def gradient(self, image: int) -> Tensor | None:
        """Return one image's own gradient before the step, None if there is none."""
        only = slice(image, image + 1)
        terms = [self._multiplied(left[only], right[only]) for left, right in self._factors]
        terms += [self._multiplied(left[only], patches(field[only])) for left, field, patches in self._fields]
        terms += [self._scattered(index[only], values[only]) for index, values in self._rows]
        terms += [] if self._sum is None else [self._sum[only]]
        terms += [gradient.unsqueeze(0) for gradient in self._separate[only]]
        return torch.cat(terms).sum(0) if terms else None

    # --- Taking the step

    def take_step(self, rate: float) -> None:
        """Take the step: from now on the values are the parameter + rate · each image's own gradient."""
        base, locations = self.tensor.detach(), sum(left.shape[1] for left, _ in self._factors)
        forms = (
            bool(self._factors) + len(self._fields) + bool(self._rows) + bool(self._separate) + (self._sum is not None)
        )
        factors_are_dear = locations and not factors_are_cheaper(locations, *self._matrix_shape())
        if self.leaf is not None or forms > 1 or factors_are_dear:
            self._add_all_forms()
        # Not in place: autograd gives the same memory to every tensor with the same gradient.
        if self._sum is not None:
            self.stepped = torch.add(base, self._sum, alpha=rate)
        elif self._separate:
            self.stepped = base.new_empty(self.count, *base.shape)
            for image, gradient in enumerate(self._separate):
                torch.add(base, gradient, alpha=rate, out=self.stepped[image])
        self.step_factors = _concatenated(self._factors, rate, 1) if self._factors else None
        self.step_field = (self._fields[0][0] * rate, self._fields[0][1]) if self._fields else None
        self.step_rows = _concatenated(self._rows, 1, rate) if self._rows else None
        self._step_taken, self.leaf, self._unbound, self._sum = True, None, None, None
        self._factors, self._fields, self._rows, self._separate = [], [], [], []

    def _add_all_forms(self) -> None:
        """Add up the gradients that were collected in different forms."""
        for left, right in self._factors:
            self.add(self._multiplied(left, right))
        for left, field, patches in self._fields:
            self.add(self._multiplied(left, patches(field)))
        for index, values in self._rows:
            self.add(self._scattered(index, values))
        if self._separate:
            self.add(torch.stack(self._separate))
        self._factors, self._fields, self._rows, self._separate = [], [], [], []

    def _expanded(self) -> Tensor:
        return self.tensor.detach().expand(self.count, *self.tensor.shape)

    def _matrix_shape(self) -> tuple[int, int]:
        return self.tensor.shape[0], self.tensor[0].numel()

    def _multiplied(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left.mT, right).view(len(left), *self.tensor.shape)

    def _scattered(self, index: Tensor, values: Tensor) -> Tensor:
        table = values.new_zeros(len(values), *self.tensor.shape)
        return table.scatter_add_(1, index.unsqueeze(2).expand_as(values), values)


def factors_are_cheaper(locations: int, rows: int, columns: int) -> bool:
    """Decide whether factors of that many locations are cheaper than the matrix [rows,columns] they stand for.

    Per location of an input the factors cost locations · (rows + columns) multiplications, and as many in the backward
    pass. The matrix, once it is made at rows · columns per location of the factors, costs no more than the weight does.

    Example:
        >>> factors_are_cheaper(49, 2048, 512), factors_are_cheaper(784, 256, 64)
        (True, False)
    """
    return 3 * locations * (rows + columns) <= rows * columns


def _concatenated(pairs: list[tuple[Tensor, Tensor]], left_scale: float, right_scale: float) -> tuple[Tensor, Tensor]:
    """Concatenate pairs along their locations, and scale each side."""
    left, right = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
    return left if left_scale == 1 else left * left_scale, right if right_scale == 1 else right * right_scale


def reshape_without_view(result: Tensor, shape: Iterable[int]) -> Tensor:
    """Give a newly computed tensor another shape, without a view that autograd knows of.

    A network may overwrite the result of a layer in place, and through a view this costs several copies in the backward
    pass.
    """
    reshaped: Tensor = torch.ops.aten._unsafe_view(result, list(shape))
    return reshaped
