"""Maps as rows, one per image and target, in memory or read from a file on demand."""

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

__all__ = [
    "InMemoryRows",
    "MapRows",
    "MappedSequence",
    "RowIndices",
    "RowRanges",
    "SelectedSequence",
    "TargetsByImage",
    "as_rows",
]

S = TypeVar("S")
T = TypeVar("T")
RowIndices = slice | npt.NDArray[np.int64]
"""A range of rows, or their numbers in any order."""

# --- The maps of one method and layer


class MapRows(Protocol):
    """Maps [M,h,w] of one method and layer, one row per image and target; none is read before `tensor` is called."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, h, w)."""

    def tensor(self) -> Tensor:
        """Return all rows [M,h,w]."""

    def select(self, rows: RowIndices) -> MapRows:
        """Select rows, without reading them."""

    def to(self, device: Any) -> MapRows:
        """Move the rows to a device."""


@dataclass(frozen=True)
class InMemoryRows:
    """Rows of a tensor in memory."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, h, w)."""
        return tuple(self.values.shape)

    def tensor(self) -> Tensor:
        """Return all rows [M,h,w]."""
        return self.values

    def select(self, rows: RowIndices) -> InMemoryRows:
        """Select rows."""
        return InMemoryRows(self.values[rows])

    def to(self, device: Any) -> InMemoryRows:
        """Move the rows to a device."""
        return InMemoryRows(self.values.to(device))


def as_rows(maps: Tensor | MapRows) -> MapRows:
    """Bring maps [B,K,h,w] or [M,h,w] to rows; rows are returned as they are.

    Raises:
        GradlightError: For a tensor of another number of axes.

    Example:
        >>> import torch
        >>> as_rows(torch.zeros(2, 3, 7, 7)).shape
        (6, 7, 7)
    """
    if not isinstance(maps, Tensor):
        return maps
    if maps.ndim not in (3, 4):
        raise GradlightError(
            f"Maps must be [images, targets, h, w] or [rows, h, w]; the shape given is {list(maps.shape)}."
        )
    return InMemoryRows(maps.flatten(0, 1) if maps.ndim == 4 else maps)


# --- Sequences whose items are made on demand


class _LazySequence(Sequence[T]):
    """A sequence whose items are made on demand; equal to any sequence of equal items."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(_are_equal, self, other))

    __hash__ = None  # type: ignore[assignment]


def _are_equal(a: object, b: object) -> bool:
    return bool(a == b)


class SelectedSequence(_LazySequence[T]):
    """Items of a sequence by their numbers, in any order.

    Example:
        >>> list(SelectedSequence("abcd", [3, 0]))
        ['d', 'a']
    """

    def __init__(self, source: Sequence[T], numbers: Sequence[int]) -> None:
        self._source, self._numbers = source, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, number: int) -> T: ...
    @overload
    def __getitem__(self, number: slice) -> SelectedSequence[T]: ...
    def __getitem__(self, number: int | slice) -> T | SelectedSequence[T]:
        if isinstance(number, slice):
            return SelectedSequence(self._source, self._numbers[number])
        return self._source[int(self._numbers[number])]


class MappedSequence(_LazySequence[T], Generic[S, T]):
    """A function of each item of another sequence, called when the item is needed.

    Example:
        >>> lengths = MappedSequence(["cat", "horse"], len)
        >>> lengths[1], lengths == [3, 5]
        (5, True)
    """

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
            return [self._make(item) for item in self._source[number]]
        return self._make(self._source[number])


class TargetsByImage(_LazySequence[Sequence[Target]]):
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
            return [self[image] for image in range(len(self))[number]]
        end = int(self._ends[number])
        return list(self.flat[end - int(self.counts[number]) : end])


# --- The rows of each image


class _ImageIndexError(GradlightError, IndexError):
    """Also an IndexError, so that a loop over the images ends."""


class RowRanges:
    """The range of rows of each image: they lie one after another, in the order of the images.

    Example:
        >>> from gradlight.models.objective import Target
        >>> ranges = RowRanges([[Target("class", 3, "cat")], [Target("class", 5, "dog")] * 2])
        >>> ranges.of_image(1), ranges.target_counts
        (slice(1, 3, None), (1, 2))
    """

    def __init__(self, targets: Targets) -> None:
        # Counted without making the targets where they are read from a file.
        counts = targets.counts if isinstance(targets, TargetsByImage) else [len(row) for row in targets]
        self._counts = np.array(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)

    def __len__(self) -> int:
        return len(self._counts)

    @property
    def target_counts(self) -> tuple[int, int]:
        """The smallest and the largest number of targets of an image."""
        return (int(self._counts.min()), int(self._counts.max())) if len(self) else (0, 0)

    def image_number(self, number: Any) -> int:
        """Check the number of an image, and count a negative one from the end.

        Raises:
            GradlightError: If there is no such image; it is also an IndexError.
        """
        image = int(operator.index(number))
        if not -len(self) <= image < len(self):
            raise _ImageIndexError(f"There is no image {image}: there are {len(self)}, counted from 0.")
        return image % len(self)

    def of_image(self, image: int) -> slice:
        """Return the rows of an image."""
        end = int(self._ends[image])
        return slice(end - int(self._counts[image]), end)

    def of_images(self, images: Sequence[int]) -> RowIndices:
        """Return the rows of several images, in their order; as a slice if they are consecutive."""
        rows = np.concatenate([np.zeros(0, np.int64), *(np.r_[self.of_image(image)] for image in images)])
        rows = rows.astype(np.int64)
        consecutive = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        return slice(int(rows[0]), int(rows[-1]) + 1) if consecutive else rows
