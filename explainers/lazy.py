"""Maps as rows, one for each target of each image, held in memory or still on a disk."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ..errors import GradlightError
from ..models.objective import Target, Targets

__all__ = ["Held", "Indices", "Made", "Picked", "Rows", "Stretches", "TargetRows", "as_rows"]

S = TypeVar("S")
T = TypeVar("T")
Indices = slice | npt.NDArray[np.int64]
"""Which rows: a stretch of them, or their numbers in any order."""


class Rows(Protocol):
    """Maps [M,h,w] of one method and layer, a row for each target; none is read before it is asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Give (M, h, w)."""

    def tensor(self) -> Tensor:
        """Give all rows [M,h,w]."""

    def part(self, rows: Indices) -> Rows:
        """Choose some of the rows."""

    def to(self, device: Any) -> Rows:
        """Bring the rows to a device."""


@dataclass(frozen=True)
class Held:
    """Rows in memory."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Give (M, h, w)."""
        return tuple(self.values.shape)

    def tensor(self) -> Tensor:
        """Give all rows [M,h,w]."""
        return self.values

    def part(self, rows: Indices) -> Held:
        """Choose some of the rows."""
        return Held(self.values[rows])

    def to(self, device: Any) -> Held:
        """Bring the rows to a device."""
        return Held(self.values.to(device))


def as_rows(maps: Tensor | Rows) -> Rows:
    """Bring maps [B,K,h,w] or [M,h,w] to rows; what is rows already stays as it is."""
    if not isinstance(maps, Tensor):
        return maps
    if maps.ndim not in (3, 4):
        raise GradlightError(f"Maps are [images, targets, h, w] or [rows, h, w]; these are {list(maps.shape)}.")
    return Held(maps.flatten(0, 1) if maps.ndim == 4 else maps)


class _Lazy(Sequence[T]):
    """A sequence whose items are made when they are asked for; equal to any sequence of equal items."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_same, self, other))

    __hash__ = None  # type: ignore[assignment]


def _same(a: object, b: object) -> bool:
    return bool(a == b)


class Picked(_Lazy[T]):
    """Some items of a sequence, in an order of their own."""

    def __init__(self, source: Sequence[T], numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> Picked[T]: ...
    def __getitem__(self, number: int | slice) -> T | Picked[T]:
        if isinstance(number, slice):
            return Picked(self._source, self._numbers[number])
        return self._source[int(self._numbers[number])]


class Made(_Lazy[T], Generic[S, T]):
    """Items made of those of another sequence."""

    def __init__(self, source: Sequence[S], make: Callable[[S], T]) -> None:
        self._source, self._make = source, make

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> list[T]: ...
    def __getitem__(self, number: int | slice) -> T | list[T]:
        if isinstance(number, slice):
            return [self._make(row) for row in self._source[number]]
        return self._make(self._source[number])


class TargetRows(_Lazy[Sequence[Target]]):
    """The targets of each image, cut from the list of all: `counts[i]` of them for image i."""

    def __init__(self, flat: Sequence[Target], counts: npt.NDArray[np.int64]) -> None:
        self.flat, self.counts = flat, counts
        self._ends = np.cumsum(counts)

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, number: int) -> list[Target]: ...
    @overload
    def __getitem__(self, number: slice) -> list[list[Target]]: ...
    def __getitem__(self, number: int | slice) -> list[Target] | list[list[Target]]:
        if isinstance(number, slice):
            return [self[each] for each in range(len(self))[number]]
        end = int(self._ends[number])
        return list(self.flat[end - int(self.counts[number]) : end])


class _NoSuchImageError(GradlightError, IndexError):
    """Also an IndexError, so that a loop over the images ends."""


class Stretches:
    """Which rows are whose: those of an image lie together, in the order of the images."""

    def __init__(self, targets: Targets) -> None:
        # Counted without making the targets where they still lie on a disk.
        counted = targets.counts if isinstance(targets, TargetRows) else [len(row) for row in targets]
        self._counts = np.array(counted, dtype=np.int64)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def span(self) -> tuple[int, int]:
        """The least and the largest number of targets of an image."""
        return (int(self._counts.min()), int(self._counts.max())) if len(self) else (0, 0)

    def image(self, number: Any) -> int:
        """Check the number of an image; negative ones count from the end."""
        image = int(operator.index(number))
        if not -len(self) <= image < len(self):
            raise _NoSuchImageError(f"There is no image {image}: there are {len(self)}, counted from 0.")
        return image % len(self)

    def of(self, image: int) -> slice:
        """Give the rows of an image."""
        end = int(self._ends[image])
        return slice(end - int(self._counts[image]), end)

    def of_all(self, images: Sequence[int]) -> Indices:
        """Give the rows of several images, in the order of these."""
        chosen = np.concatenate([np.zeros(0, np.int64), *(np.r_[self.of(image)] for image in images)]).astype(np.int64)
        together = len(chosen) > 0 and bool((np.diff(chosen) == 1).all())
        return slice(int(chosen[0]), int(chosen[-1]) + 1) if together else chosen
