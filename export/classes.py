"""The classes of a data set among the labels of a model: by their names, never by a mere resemblance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Matched", "match"]

_LISTED = 12

# PASCAL VOC's names (host.robots.ox.ac.uk/pascal/VOC/voc2007) and COCO's (cocodataset.org) of the same things.
_SAME = (
    {"aeroplane", "airplane"},
    {"diningtable", "dining table"},
    {"motorbike", "motorcycle"},
    {"pottedplant", "potted plant"},
    {"sofa", "couch"},
    {"tvmonitor", "tv"},
)


@dataclass(frozen=True)
class Matched:
    """The index of the label of each class that the model has; each that it has not, with what it could be, or ""."""

    indices: dict[str, int]
    missing: dict[str, str]

    @property
    def note(self) -> str:
        """Say which classes the model does not have; "" if it has all."""
        if not self.missing:
            return ""
        listed = ", ".join(f"{name!r}{why}" for name, why in list(self.missing.items())[:_LISTED])
        more = f" and {len(self.missing) - _LISTED} more" if len(self.missing) > _LISTED else ""
        count = len(self.indices) + len(self.missing)
        return f"The model does not have {len(self.missing)} of the {count} classes: {listed}{more}."


def match(names: Sequence[str], labels: Sequence[str]) -> Matched:
    """Find the label of each class, in the order of `names`.

    A label is the class's if it is the same; else the same without regard to case and to "_" for a blank; else if one
    of its parts between commas is, as in ImageNet's "dining table, board". A name of VOC or COCO also goes by that of
    the other. Where several labels fit equally well the class counts as missing.
    """
    exact, folded, parts = _Index(), _Index(), _Index()
    for index, label in enumerate(labels):
        exact.add(label, index)
        folded.add(_fold(label), index)
        for part in label.split(","):
            parts.add(_fold(part), index)
    indices: dict[str, int] = {}
    missing: dict[str, str] = {}
    for name in names:
        spellings = _spellings(_fold(name))
        stages = [exact.find([name]), *(index.find([key]) for key in spellings for index in (folded, parts))]
        found = next((stage for stage in stages if stage), [])
        if len(found) == 1:
            indices[name] = found[0]
        else:
            missing[name] = f" (could be {' or '.join(f'{i} ({labels[i]})' for i in found[:3])})" if found else ""
    return Matched(indices, missing)


class _Index:
    """Labels by key, each key with all labels that have it."""

    def __init__(self) -> None:
        self._indices: dict[str, list[int]] = {}

    def add(self, key: str, index: int) -> None:
        known = self._indices.setdefault(key, [])
        if index not in known:
            known.append(index)

    def find(self, keys: Sequence[str]) -> list[int]:
        return [index for key in keys if key for index in self._indices.get(key, [])]


def _fold(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _spellings(folded: str) -> list[str]:
    """Give a class's own name first, then the one that the other data set has for it."""
    return [folded, *(other for same in _SAME if folded in same for other in sorted(same - {folded}))]
