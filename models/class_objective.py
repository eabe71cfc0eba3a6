"""The objective of a classifier: its logits, and the loss that it was trained with.

What a person asks a classifier about: indices, names, "top", "top5", "min", for all images or for each.

Find the logits in whatever a network returns.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import GradlightError, nearest
from .objective import Objective, Target, Targets

__all__ = [
    "Class",
    "ClassLabels",
    "ClassObjective",
    "Output",
    "Rank",
    "TargetSpec",
    "find_logits",
    "parse",
    "resolve",
    "rows_for",
]


@dataclass(frozen=True)
class Class:
    """A class by its index."""

    index: int


@dataclass(frozen=True)
class Rank:
    """The class at a position of the network's own ranking: 0 is the most likely, -1 the least."""

    position: int


TargetSpec = int | str
"""One target as a person wrote it: an index, a label or a keyword."""

_LISTED = 8


def parse(target: Any) -> list[list[TargetSpec]]:
    """Bring a target to rows: one row per image, or one for all; every row holds one entry per target.

    None is "top". One value is for all images. A list has one entry for each image, or exactly one for all; an
    entry that is itself a list holds several targets of its image. Integer tensors and arrays are read as lists.
    Raises GradlightError for anything else; names and ranges are looked at by `resolve`.
    """
    if isinstance(target, (Tensor, np.ndarray)):
        target = target.tolist()
    if not isinstance(target, (list, tuple)):
        return [_atoms(target)]
    if not target:
        raise GradlightError('The list of targets is empty. Give one per image, or one for all: "top" or a label.')
    return [_entry(entry) for entry in target]


def rows_for(rows: Sequence[Any], count: int) -> None:
    """Refuse rows that are neither one for all nor one for each of `count` images."""
    if len(rows) not in (1, count):
        raise GradlightError(
            f"There are {len(rows)} targets for {count} images. A list holds one entry for each image, or exactly one"
            ' for all. To ask several targets of every image, nest it: [["cat", "dog"]].'
        )


def resolve(rows: Sequence[Sequence[TargetSpec]], labels: Sequence[str]) -> list[list[Class | Rank]]:
    """Find what each asked target means among the labels; raises GradlightError for what is unknown or ambiguous.

    The keywords "top", "top5" (any number) and "min" win over labels of the same name, which can be asked by index.
    """
    known: dict[TargetSpec, list[Class | Rank]] = {}
    for asked in (asked for row in rows for asked in row):
        if asked not in known:
            known[asked] = _meanings(asked, labels)
    return [[meaning for asked in row for meaning in known[asked]] for row in rows]


def _entry(entry: Any) -> list[TargetSpec]:
    if isinstance(entry, (Tensor, np.ndarray)):
        entry = entry.tolist()
    if not isinstance(entry, (list, tuple)):
        return _atoms(entry)
    if not entry:
        raise GradlightError("One image's list of targets is empty. Give at least one for each image.")
    return [asked for part in entry for asked in _atoms(part)]


def _atoms(value: Any) -> list[TargetSpec]:
    """Check one target; a list only to refuse deeper nesting with the same sentence."""
    if value is None:
        return ["top"]
    if isinstance(value, str) and value.strip():
        return [value]
    if not isinstance(value, (bool, np.bool_, str)):
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
            return _atoms(value.tolist())
        try:
            return [operator.index(value)]
        except TypeError:
            pass
    raise GradlightError(
        f'{value!r} is not a target. Ask for a class by its index or label, or for "top", "top5" or "min"; for several'
        ' targets of every image: [["cat", "dog"]].'
    )


def _meanings(asked: TargetSpec, labels: Sequence[str]) -> list[Class | Rank]:
    if isinstance(asked, int):
        return [Class(_in_range(asked, labels))]
    if asked == "min":
        return [Rank(-1)]
    keyword = re.fullmatch(r"top([1-9][0-9]*)?", asked)
    if keyword is None:
        return [Class(_find(asked, labels))]
    count = int(keyword[1] or 1)
    if count > len(labels):
        raise GradlightError(f"{asked!r} asks for {count} classes; the network has {len(labels)}.")
    return [Rank(position) for position in range(count)]


def _in_range(index: int, labels: Sequence[str]) -> int:
    if not 0 <= index < len(labels):
        raise GradlightError(
            f"There is no class {index}: the network has {len(labels)} classes, from 0 to {len(labels) - 1}."
            + (' For the least likely class, ask for "min".' if index < 0 else "")
        )
    return index


def _find(asked: str, labels: Sequence[str]) -> int:
    """Find a label: exact, then without case, then as one of its synonyms, then by its beginning."""
    wanted = asked.strip().casefold()
    folded = [label.casefold() for label in labels]
    stages = (
        [index for index, label in enumerate(labels) if label == asked],
        [index for index, label in enumerate(folded) if label == wanted],
        # ImageNet's labels in timm are lists of synonyms: "tiger cat" is one of them, and only the start of others.
        [index for index, label in enumerate(folded) if wanted in re.split(r"\s*,\s*", label)],
        [int(asked)] if re.fullmatch(r"\s*-?[0-9]+\s*", asked) else [],
    )
    found = next((stage for stage in stages if stage), [])
    if len(found) == 1:
        return _in_range(found[0], labels)
    # A beginning counts where no other label has it as a word: "cat" is neither the catamaran nor one of the cats.
    word = re.compile(rf"(^|\W){re.escape(wanted)}(\W|$)|^{re.escape(wanted)}")
    found = found or [index for index, label in enumerate(folded) if word.search(label)]
    if len(found) == 1 and folded[found[0]].startswith(wanted):
        return found[0]
    if not found:
        raise GradlightError(f"No class is called {asked!r}.{nearest(asked, labels)}")
    listed = ", ".join(f"{index} ({labels[index]})" for index in found[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise GradlightError(f"{asked!r} could mean {listed}{more}. Ask for one by its index or its whole label.")


Output = str | int | None
"""A key, position or attribute of the network's answer that holds the logits; None: look for them."""

_NAMES = ("logits", "out", "output")


def find_logits(answer: Any, output: Output = None) -> Tensor:
    """Find the logits [B,C] in a network's answer, and compute in float32 at least from there on.

    They are the tensor itself; in a tuple or list the first one of shape [B,C]; in a mapping "logits", "out" or
    "output", or else the only tensor of that shape; of any other object the attribute `logits`. `output` names them
    instead. Raises GradlightError, saying what was found, where there are none.
    """
    logits: Tensor | None = _search(answer) if output is None else _named(answer, output)
    if logits is None or not _fits(logits):
        asked = f" at output={output!r}" if output is not None else ""
        hint = (
            "output= names a key, a position or an attribute that holds them."
            if output is None
            else "Name another key, position or attribute."
        )
        raise GradlightError(f"No logits [B,C] were found{asked}: the network gave {_shown(answer)}. {hint}")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _search(answer: Any) -> Any:
    if isinstance(answer, Tensor):
        return answer
    if isinstance(answer, Mapping):
        named = [answer[name] for name in _NAMES if _fits(answer.get(name))]
        fitting = [value for value in answer.values() if _fits(value)]
        return named[0] if named else fitting[0] if len(fitting) == 1 else None
    if _fits(held := getattr(answer, "logits", None)):
        return held
    if isinstance(answer, (tuple, list)):
        return next((value for value in answer if _fits(value)), None)
    return None


def _named(answer: Any, output: str | int) -> Any:
    if isinstance(output, str) and not isinstance(answer, Mapping):
        return getattr(answer, output, None)
    try:
        return answer[output]
    except (IndexError, KeyError, TypeError):
        return None


def _fits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point() and value.shape[1] > 0


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        inside = ", ".join(f"{key!r}: {_shown(part)}" for key, part in value.items())
    elif isinstance(value, (tuple, list)):
        inside = ", ".join(_shown(part) for part in value)
    else:
        return type(value).__name__
    return f"{type(value).__name__}({inside})"


class ClassLabels:
    """The names of a network's classes, which may not be known before it has run once."""

    def __init__(self, names: Sequence[str] | None) -> None:
        self.names = None if names is None else list(names)

    def settle(self, count: int) -> list[str]:
        """Give the names of `count` classes: class_0, class_1 … where none were given; another count is an error."""
        if self.names is None:
            self.names = [f"class_{index}" for index in range(count)]
        if len(self.names) != count:
            raise GradlightError(
                f"The network answers with {count} numbers per image, but there are {len(self.names)} labels. Give"
                " labels= one name for each of its outputs, in their order."
            )
        return self.names


class ClassObjective(Objective):
    """Score classes by their logits.

    rows: what is asked of each image, or one row for all, as `targets.parse` gives it. multi_label: each class has
    a yes of its own (sigmoid), so its loss is the binary cross-entropy towards 1 and not the cross-entropy. output:
    where the logits are in the network's answer.
    """

    def __init__(
        self,
        network: nn.Module,
        labels: ClassLabels,
        rows: Sequence[Sequence[TargetSpec]],
        *,
        multi_label: bool = False,
        output: Output = None,
    ) -> None:
        super().__init__(network)
        self.labels = labels
        self.asked = [list(row) for row in rows]
        self.multi_label = multi_label
        self.output = output
        if labels.names is not None:
            resolve(self.asked, labels.names)

    def outputs(self, pixels: Tensor) -> Tensor:
        """Run the network once and give its logits [B,C], float32 at least."""
        logits = find_logits(self.network(pixels), self.output)
        if logits.shape[0] != pixels.shape[0]:
            raise GradlightError(
                f"The network gave {logits.shape[0]} rows of logits for {pixels.shape[0]} images. A network is"
                " explained image by image, so it must answer with one row for each."
            )
        self.labels.settle(logits.shape[1])
        return logits

    def choose(self, outputs: Tensor) -> list[list[Target]]:
        """Fix the classes of every image, with their present logits as scores; equal logits rank by index."""
        labels = self.labels.settle(outputs.shape[1])
        rows = resolve(self.asked, labels)
        rows_for(rows, outputs.shape[0])
        logits = outputs.detach().cpu()
        order = logits.argsort(dim=1, descending=True, stable=True)
        chosen = []
        for image, ranking in enumerate(order.tolist()):
            indices = [_index(meaning, ranking) for meaning in rows[image % len(rows)]]
            scores = logits[image, indices].tolist()
            chosen.append([Target("class", i, labels[i], score) for i, score in zip(indices, scores, strict=True)])
        return chosen

    def scores(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Give the raw logits [B,K] of the targets."""
        return outputs.gather(1, _indices(targets, outputs))

    def losses(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Give the cross-entropy [B,K] of the targets, or their binary cross-entropy for a multi-label network."""
        if self.multi_label:
            return functional.softplus(-self.scores(outputs, targets))
        return -functional.log_softmax(outputs, 1).gather(1, _indices(targets, outputs))

    def rows(self, start: int, stop: int, total: int) -> ClassObjective:
        """Give the objective of images start…stop of a list of `total`; a count that does not fit is an error."""
        rows_for(self.asked, total)
        rows = self.asked if len(self.asked) == 1 else self.asked[start:stop]
        return ClassObjective(self.network, self.labels, rows, multi_label=self.multi_label, output=self.output)

    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types."""
        return {"kind": "class", "targets": self.asked, "multi_label": self.multi_label, "output": self.output}


def _index(meaning: Class | Rank, ranking: Sequence[int]) -> int:
    return meaning.index if isinstance(meaning, Class) else ranking[meaning.position]


def _indices(targets: Targets, outputs: Tensor) -> Tensor:
    rows = [[target.index for target in row] for row in targets]
    return torch.tensor(rows, dtype=torch.long, device=outputs.device)
