"""A weight in as many versions as there are images: the gradient of each image's own loss, and the step along it.

The gradient of a weight matrix is a sum of outer products over the places where the matrix was used. As long as those
are few they are kept as factors: their product with an input then costs less than the matrix that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Derived", "NotCoveredError", "Version", "Weight", "few", "shaped"]


Patches = Callable[[Tensor], Tensor]


class NotCoveredError(Exception):
    """A network does something with its weights that has no batched form; the images must go one by one."""


class Version(Protocol):
    """A tensor of the network that differs by image; `tensor` stands for it in the network's own code."""

    tensor: Tensor
    origin: Hashable

    def versions(self) -> Tensor:
        """Give every image's own value [B,*shape]."""

    def each(self) -> tuple[Tensor, ...]:
        """Give the B values apart."""


class Derived:
    """What a network makes of weights alone: slices, tables that are looked up, standardised weights."""

    def __init__(self, values: tuple[Tensor, ...], origin: Hashable) -> None:
        self.tensor, self.values, self.origin = values[0].detach(), values, origin

    def versions(self) -> Tensor:
        """Give every image's own value [B,*shape]."""
        return torch.stack(self.values)

    def each(self) -> tuple[Tensor, ...]:
        """Give the B values apart."""
        return self.values


class Weight:
    """A parameter that collects the gradients of B images' losses, and then gives the parameter after their steps.

    Before the step `versions` is a leaf, from which autograd takes the gradient of every use that has no rule of its
    own. After it one of four is left: product, the step as factors left [B,P,O] and right [B,P,K]; field, the same with
    the field [B,C,h,w] that the right factors are patches of; rows, the step of the rows index [B,P] of a table as
    values [B,P,E]; or moved, the weights themselves [B,*shape].
    """

    def __init__(self, parameter: Tensor, count: int, origin: Hashable) -> None:
        self.tensor, self.count, self.origin = parameter, count, origin
        self.leaf: Tensor | None = None
        self.moved: Tensor | None = None
        self.product: tuple[Tensor, Tensor] | None = None
        self.field: tuple[Tensor, Tensor] | None = None
        self.rows: tuple[Tensor, Tensor] | None = None
        self._products: list[tuple[Tensor, Tensor]] = []
        self._fields: list[tuple[Tensor, Tensor, Patches]] = []
        self._rows: list[tuple[Tensor, Tensor]] = []
        self._sum: Tensor | None = None
        self._apart: list[Tensor] = []
        self._settled = False
        self._each: tuple[Tensor, ...] | None = None

    def versions(self) -> Tensor:
        """Give every image's own value [B,*shape]."""
        if self._settled:
            return self._base() if self.moved is None else self.moved
        if self.leaf is None:
            self.leaf = self._base().clone().requires_grad_()
        return self.leaf

    def each(self) -> tuple[Tensor, ...]:
        """Give the B values apart."""
        if self._each is None:
            self._each = self.versions().unbind()
        return self._each

    def add(self, gradient: Tensor) -> None:
        """Add a gradient [B,*shape]."""
        gradient = gradient.to(self.tensor.dtype)
        self._sum = gradient if self._sum is None else self._sum + gradient

    def add_apart(self, gradients: list[Tensor]) -> None:
        """Add B gradients that do not lie in one tensor; as long as there are no others they are not put into one."""
        if self._apart:
            self.add(torch.stack(gradients))
        else:
            self._apart = gradients

    def add_product(self, left: Tensor, right: Tensor) -> None:
        """Add the gradient leftᵀ·right of a weight matrix [O,K]."""
        if few(left.shape[1], *self._matrix()):
            self._products.append((left, right.to(left.dtype)))
        else:
            self.add(self._multiplied(left, right.to(left.dtype)))

    def add_field(self, left: Tensor, field: Tensor, patches: Patches) -> None:
        """Add the gradient leftᵀ·patches(field) of a kernel, whose patches are [B,P,K]."""
        self._fields.append((left, field, patches))

    def add_rows(self, index: Tensor, values: Tensor) -> None:
        """Add the gradient of a table's rows."""
        self._rows.append((index, values))

    def gradient(self, image: int) -> Tensor | None:
        """Give one image's own gradient before the step, None if there is none."""
        alone = slice(image, image + 1)
        parts = [self._multiplied(left[alone], right[alone]) for left, right in self._products]
        parts += [self._multiplied(left[alone], patches(field[alone])) for left, field, patches in self._fields]
        parts += [self._scattered(index[alone], values[alone]) for index, values in self._rows]
        parts += [] if self._sum is None else [self._sum[alone]]
        parts += [gradient.unsqueeze(0) for gradient in self._apart[alone]]
        return torch.cat(parts).sum(0) if parts else None

    def settle(self, rate: float) -> None:
        """Take the step: from now on the versions are the weight + rate · each image's own gradient."""
        base, places = self.tensor.detach(), sum(left.shape[1] for left, _ in self._products)
        kinds = (
            bool(self._products) + len(self._fields) + bool(self._rows) + bool(self._apart) + (self._sum is not None)
        )
        if self.leaf is not None or kinds > 1 or (places and not few(places, *self._matrix())):
            self._gather()
        # Not in place: autograd hands the same memory to whatever has the same gradient.
        if self._sum is not None:
            self.moved = torch.add(base, self._sum, alpha=rate)
        elif self._apart:
            self.moved = base.new_empty(self.count, *base.shape)
            for image, gradient in enumerate(self._apart):
                torch.add(base, gradient, alpha=rate, out=self.moved[image])
        self.product = _joined(self._products, rate, 1) if self._products else None
        self.field = (self._fields[0][0] * rate, self._fields[0][1]) if self._fields else None
        self.rows = _joined(self._rows, 1, rate) if self._rows else None
        self._settled, self.leaf, self._each, self._sum = True, None, None, None
        self._products, self._fields, self._rows, self._apart = [], [], [], []

    def _gather(self) -> None:
        """Bring what was collected in different forms into one."""
        for left, right in self._products:
            self.add(self._multiplied(left, right))
        for left, field, patches in self._fields:
            self.add(self._multiplied(left, patches(field)))
        for index, values in self._rows:
            self.add(self._scattered(index, values))
        if self._apart:
            self.add(torch.stack(self._apart))
        self._products, self._fields, self._rows, self._apart = [], [], [], []

    def _base(self) -> Tensor:
        return self.tensor.detach().expand(self.count, *self.tensor.shape)

    def _matrix(self) -> tuple[int, int]:
        return self.tensor.shape[0], self.tensor[0].numel()

    def _multiplied(self, left: Tensor, right: Tensor) -> Tensor:
        return torch.bmm(left.mT, right).view(len(left), *self.tensor.shape)

    def _scattered(self, index: Tensor, values: Tensor) -> Tensor:
        whole = values.new_zeros(len(values), *self.tensor.shape)
        return whole.scatter_add_(1, index.unsqueeze(2).expand_as(values), values)


def few(places: int, rows: int, columns: int) -> bool:
    """Tell whether factors of that many places are cheaper than the matrix that they stand for.

    Per place of an input the factors cost places · (rows + columns) multiplications, and again on the way back; the
    matrix costs no more than the weights do, once it is made, at rows · columns for each place of the factors.
    """
    return 3 * places * (rows + columns) <= rows * columns


def _joined(pairs: list[tuple[Tensor, Tensor]], one: float, other: float) -> tuple[Tensor, Tensor]:
    """Put pairs together along their places, each side times a factor."""
    left, right = (torch.cat(side, 1) for side in zip(*pairs, strict=True))
    return left if one == 1 else left * one, right if other == 1 else right * other


def shaped(fresh: Tensor, shape: Iterable[int]) -> Tensor:
    """Give a fresh tensor another shape, without autograd's knowing a view of it.

    A network may overwrite the result of a layer, and through a view this costs several copies on the way back.
    """
    result: Tensor = torch.ops.aten._unsafe_view(fresh, list(shape))
    return result
