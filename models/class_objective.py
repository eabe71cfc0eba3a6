"""The objective of a classifier: the target specs of a caller, the network's logits, their scores and losses."""

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
from .answer import AnswerForm, examine_answer
from .objective import Objective, Target, Targets, run

__all__ = [
    "Class",
    "ClassLabels",
    "ClassObjective",
    "Output",
    "Rank",
    "TargetSpec",
    "check_row_count",
    "find_logits",
    "parse",
    "resolve",
]

TargetSpec = int | str
"""One target as a caller wrote it: an index, a label or a keyword."""

Output = str | int | None
"""A key, position or attribute of the network's output that holds the logits; None: search for them."""

_MAX_LISTED = 8
_LOGITS_KEYS = ("logits", "out", "output")


class ClassLabels:
    """The names of a network's classes, and what else is unknown until it has run once.

    Args:
        names: The names; None if they are unknown.
        likely: Names that are taken in place of class_0, class_1 … if their number is right.

    Its `form` says what the network answers with, `independent` whether each class has a sigmoid of its own.
    """

    def __init__(self, names: Sequence[str] | None, likely: Sequence[str] | None = None) -> None:
        self.names = None if names is None else list(names)
        self.likely = list(likely or [])
        self.form: AnswerForm | None = None
        self.independent = False

    def settle(self, count: int) -> list[str]:
        """Give the names once the number of classes is known: class_0, class_1 … where none were given.

        Args:
            count: The number of logits.

        Returns:
            As many names.

        Raises:
            GradlightError: If another number of names was given.

        Example:
            >>> ClassLabels(None).settle(2)
            ['class_0', 'class_1']
        """
        if self.names is None:
            self.names = self.likely if len(self.likely) == count else [f"class_{index}" for index in range(count)]
        if len(self.names) != count:
            raise GradlightError(
                f"The network answers with {count} numbers per image, but there are {len(self.names)} labels. Give"
                " labels= one name for each of its outputs, in their order."
            )
        return self.names


class ClassObjective(Objective):
    """Score classes by their logits.

    Args:
        network: The network; its output holds logits [B,C].
        labels: The names of its classes.
        rows: The target specs of each image, or one row for all, as `parse` gives them.
        multi_label: Whether each class has a sigmoid of its own; the loss is then the binary cross-entropy towards 1,
            else the cross-entropy. One logit, and a network that ends in a sigmoid, always have it.
        output: Where the logits are in the network's output.

    Raises:
        GradlightError: If a target is unknown.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from gradlight.models.class_objective import ClassLabels, ClassObjective, parse
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> objective = ClassObjective(network, ClassLabels(["cat", "dog"]), parse("dog"))
        >>> objective(torch.zeros(5, 3, 2, 2)).shape
        torch.Size([5, 1])
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
        self.target_specs = [list(row) for row in rows]
        self.multi_label = multi_label
        self.output = output
        if labels.names is not None:
            resolve(self.target_specs, labels.names)

    def outputs(self, pixels: Tensor) -> Tensor:
        """Run the network and give its logits [B,C], float32 at least; [-z, z] for one logit z with two names."""
        logits = (self.labels.form or AnswerForm()).logits(self._answer, pixels)
        if logits.shape[0] != pixels.shape[0]:
            raise GradlightError(
                f"The network gave {logits.shape[0]} rows of logits for {pixels.shape[0]} images. A network is"
                " explained image by image, so it must answer with one row for each."
            )
        if logits.shape[1] == 1 and self.labels.names is not None and len(self.labels.names) == 2:
            logits = torch.cat([-logits, logits], 1)
        self.labels.settle(logits.shape[1])
        return logits

    def prepare(self, pixels: Tensor) -> bool:
        """Examine the network's answer once, and tell whether images must run alone."""
        if self.labels.form is None:
            form, width = examine_answer(self.network, self._answer, pixels)
            self.labels.form, self.labels.independent = form, form.kind == "sigmoid" or width == 1
        return self.labels.form.mixes_images

    def _answer(self, pixels: Tensor) -> Tensor:
        return find_logits(run(self.network, pixels), self.output, len(pixels))

    def choose(self, outputs: Tensor) -> list[list[Target]]:
        """Fix the classes of every image, with their present logits as scores; equal logits rank by index."""
        labels = self.labels.settle(outputs.shape[1])
        rows = resolve(self.target_specs, labels)
        check_row_count(rows, outputs.shape[0])
        logits = outputs.detach().cpu()
        order = logits.argsort(dim=1, descending=True, stable=True)
        targets = []
        for image, ranking in enumerate(order.tolist()):
            indices = [_index(meaning, ranking) for meaning in rows[image % len(rows)]]
            scores = logits[image, indices].tolist()
            targets.append([Target("class", i, labels[i], score) for i, score in zip(indices, scores, strict=True)])
        return targets

    def scores(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Give the raw logits [B,K] of the targets."""
        return outputs.gather(1, _indices(targets, outputs))

    def losses(self, outputs: Tensor, targets: Targets) -> Tensor:
        """Give the cross-entropy [B,K] of the targets, or their binary cross-entropy for a multi-label network."""
        if self.multi_label or self.labels.independent:
            return functional.softplus(-self.scores(outputs, targets))
        return -functional.log_softmax(outputs, 1).gather(1, _indices(targets, outputs))

    def rows(self, start: int, stop: int, total: int) -> ClassObjective:
        """Give the objective of images start … stop - 1 of `total`; another count of targets is a GradlightError."""
        check_row_count(self.target_specs, total)
        rows = self.target_specs if len(self.target_specs) == 1 else self.target_specs[start:stop]
        return ClassObjective(self.network, self.labels, rows, multi_label=self.multi_label, output=self.output)

    def describe(self) -> dict[str, Any]:
        """Describe the objective in JSON types."""
        return {
            "kind": "class",
            "targets": self.target_specs,
            "multi_label": self.multi_label,
            "output": self.output,
        }


# --- target specs: from what a caller wrote to classes ---


@dataclass(frozen=True)
class Class:
    """A class by the index of its logit."""

    index: int


@dataclass(frozen=True)
class Rank:
    """The class at a position of the network's own ranking: 0 is the most likely, -1 the least."""

    position: int


def parse(target: Any) -> list[list[TargetSpec]]:
    """Bring a target to rows: one row per image, or one for all; every row holds one entry per target.

    Args:
        target: None is "top". One value is for all images. A list has one entry for each image, or exactly one for
            all; an entry that is itself a list holds several targets of its image. Integer tensors and arrays are read
            as lists.

    Returns:
        The rows. Names and ranges are not checked here, but by `resolve`.

    Raises:
        GradlightError: If the value is none of these.

    Example:
        >>> from gradlight.models.class_objective import parse
        >>> parse("dog"), parse(["dog", 3]), parse([["dog", 3]])
        ([['dog']], [['dog'], [3]], [['dog', 3]])
    """
    if isinstance(target, (Tensor, np.ndarray)):
        target = target.tolist()
    if not isinstance(target, (list, tuple)):
        return [_parse_value(target)]
    if not target:
        raise GradlightError('The list of targets is empty. Give one per image, or one for all: "top" or a label.')
    return [_parse_entry(entry) for entry in target]


def check_row_count(rows: Sequence[Any], count: int) -> None:
    """Check that rows of targets are one for all images or one for each.

    Args:
        rows: The rows.
        count: The number of images.

    Raises:
        GradlightError: If there is another number of rows.
    """
    if len(rows) not in (1, count):
        raise GradlightError(
            f"There are {len(rows)} targets for {count} images. A list holds one entry for each image, or exactly one"
            ' for all. To ask several targets of every image, nest it: [["cat", "dog"]].'
        )


def resolve(rows: Sequence[Sequence[TargetSpec]], labels: Sequence[str]) -> list[list[Class | Rank]]:
    """Find what each target spec means among the labels.

    The keywords "top", "top5" (any number) and "min" win over labels of the same name, which have an index instead.

    Args:
        rows: Rows of target specs, as `parse` gives them.
        labels: The names of the classes.

    Returns:
        Rows of classes and ranks; "top5" becomes five ranks.

    Raises:
        GradlightError: If a spec is unknown or ambiguous.

    Example:
        >>> from gradlight.models.class_objective import resolve
        >>> resolve([["dog", "min"]], ["cat", "dog"])
        [[Class(index=1), Rank(position=-1)]]
    """
    meanings: dict[TargetSpec, list[Class | Rank]] = {}
    for spec in (spec for row in rows for spec in row):
        if spec not in meanings:
            meanings[spec] = _meanings(spec, labels)
    return [[meaning for spec in row for meaning in meanings[spec]] for row in rows]


def _parse_entry(entry: Any) -> list[TargetSpec]:
    if isinstance(entry, (Tensor, np.ndarray)):
        entry = entry.tolist()
    if not isinstance(entry, (list, tuple)):
        return _parse_value(entry)
    if not entry:
        raise GradlightError("One image's list of targets is empty. Give at least one for each image.")
    return [spec for value in entry for spec in _parse_value(value)]


def _parse_value(value: Any) -> list[TargetSpec]:
    """Check one target; a list gets here only from deeper nesting, and is refused with the same sentence."""
    if value is None:
        return ["top"]
    if isinstance(value, str) and value.strip():
        return [value]
    if not isinstance(value, (bool, np.bool_, str)):
        if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 0:
            return _parse_value(value.tolist())
        try:
            return [operator.index(value)]
        except TypeError:
            pass
    raise GradlightError(
        f'{value!r} is not a target. Ask for a class by its index or label, or for "top", "top5" or "min"; for several'
        ' targets of every image: [["cat", "dog"]].'
    )


def _meanings(spec: TargetSpec, labels: Sequence[str]) -> list[Class | Rank]:
    if isinstance(spec, int):
        return [Class(_check_range(spec, labels))]
    if spec == "min":
        return [Rank(-1)]
    keyword = re.fullmatch(r"top([1-9][0-9]*)?", spec)
    if keyword is None:
        return [Class(_find_label(spec, labels))]
    count = int(keyword[1] or 1)
    if count > len(labels):
        raise GradlightError(f"{spec!r} asks for {count} classes; the network has {len(labels)}.")
    return [Rank(position) for position in range(count)]


def _check_range(index: int, labels: Sequence[str]) -> int:
    """Give the index back if there is such a class."""
    if not 0 <= index < len(labels):
        raise GradlightError(
            f"There is no class {index}: the network has {len(labels)} classes, from 0 to {len(labels) - 1}."
            + (' For the least likely class, ask for "min".' if index < 0 else "")
        )
    return index


def _find_label(spec: str, labels: Sequence[str]) -> int:
    """Find a label: exact, then without case, then as one of its synonyms, then by its beginning."""
    wanted = spec.strip().casefold()
    folded = [label.casefold() for label in labels]
    attempts = (
        [index for index, label in enumerate(labels) if label == spec],
        [index for index, label in enumerate(folded) if label == wanted],
        # ImageNet's labels in timm are lists of synonyms: "tiger cat" is one of them, and only the start of others.
        [index for index, label in enumerate(folded) if wanted in re.split(r"\s*,\s*", label)],
        [int(spec)] if re.fullmatch(r"\s*-?[0-9]+\s*", spec) else [],
    )
    candidates = next((attempt for attempt in attempts if attempt), [])
    if len(candidates) == 1:
        return _check_range(candidates[0], labels)
    # A beginning counts where no other label has it as a word: "cat" is neither the catamaran nor one of the cats.
    word = re.compile(rf"(^|\W){re.escape(wanted)}(\W|$)|^{re.escape(wanted)}")
    candidates = candidates or [index for index, label in enumerate(folded) if word.search(label)]
    if len(candidates) == 1 and folded[candidates[0]].startswith(wanted):
        return candidates[0]
    if not candidates:
        raise GradlightError(f"No class is called {spec!r}.{nearest(spec, labels)}")
    listed = ", ".join(f"{index} ({labels[index]})" for index in candidates[:_MAX_LISTED])
    more = f" and {len(candidates) - _MAX_LISTED} more" if len(candidates) > _MAX_LISTED else ""
    raise GradlightError(f"{spec!r} could mean {listed}{more}. Ask for one by its index or its whole label.")


def _index(meaning: Class | Rank, ranking: Sequence[int]) -> int:
    return meaning.index if isinstance(meaning, Class) else ranking[meaning.position]


def _indices(targets: Targets, outputs: Tensor) -> Tensor:
    rows = [[target.index for target in row] for row in targets]
    return torch.tensor(rows, dtype=torch.long, device=outputs.device)


# --- logits: where they are in a network's output ---


def find_logits(answer: Any, output: Output = None, rows: int | None = None) -> Tensor:
    """Find the logits in a network's output; from there on everything is computed in float32 at least.

    They are the tensor itself; in a tuple or list the first tensor [B,C], if all have that width; in a mapping
    "logits", "out" or "output", or else the only tensor of that shape; of any other object the attribute `logits`.

    Args:
        answer: What the network returned.
        output: The key, position or attribute that holds them, instead of a search.
        rows: B, if it is known.

    Returns:
        Logits [B,C].

    Raises:
        GradlightError: If there are none; the message describes what the network returned.

    Example:
        >>> from gradlight.models.class_objective import find_logits
        >>> import torch
        >>> find_logits({"features": torch.zeros(2, 8, 7, 7), "out": torch.zeros(2, 5)}).shape
        torch.Size([2, 5])
    """
    logits: Tensor | None = _search(answer, rows) if output is None else _look_up(answer, output)
    if logits is None or not _is_logits(logits):
        where = f" at output={output!r}" if output is not None else ""
        hint = f"output= names {'a' if output is None else 'another'} key, position or attribute that holds them."
        raise GradlightError(f"No logits [B,C] were found{where}: the network gave {_format_value(answer)}. {hint}")
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _search(answer: Any, rows: int | None) -> Any:
    if isinstance(answer, Tensor):
        return answer.reshape(rows, 1) if rows == answer.numel() and answer.ndim < 2 else answer
    if isinstance(answer, Mapping):
        named = [answer[name] for name in _LOGITS_KEYS if _is_logits(answer.get(name))]
        fitting = {name: value for name, value in answer.items() if _is_logits(value)}
        return named[0] if named else _choose(answer, fitting, rows, first=False)
    if _is_logits(attribute := getattr(answer, "logits", None)):
        return attribute
    if isinstance(answer, (tuple, list)):
        fitting = {place: value for place, value in enumerate(answer) if _is_logits(value)}
        return _choose(answer, fitting, rows, first=True)
    return None


def _choose(answer: Any, fitting: Mapping[Any, Tensor], rows: int | None, *, first: bool) -> Tensor | None:
    """Choose among tensors that could be logits: the only one, or the first; GradlightError if they differ in width."""
    fitting = {place: value for place, value in fitting.items() if value.shape[0] == rows} or fitting
    if len({value.shape[1] for value in fitting.values()}) > 1:
        listed = " or ".join(f"output={place!r} ({value.shape[1]} numbers)" for place, value in fitting.items())
        raise GradlightError(
            f"Several parts of the network's output could be the logits: it gave {_format_value(answer)}. Say which"
            f" are: {listed}."
        )
    return next(iter(fitting.values()), None) if first or len(fitting) == 1 else None


def _look_up(answer: Any, output: str | int) -> Any:
    if isinstance(output, str) and not isinstance(answer, Mapping):
        return getattr(answer, output, None)
    try:
        return answer[output]
    except (IndexError, KeyError, TypeError):
        return None


def _is_logits(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 2 and value.is_floating_point() and value.shape[1] > 0


def _format_value(value: Any) -> str:
    """Describe a network's output by its types and shapes, for an error."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        entries = ", ".join(f"{key!r}: {_format_value(entry)}" for key, entry in value.items())
    elif isinstance(value, (tuple, list)):
        entries = ", ".join(_format_value(entry) for entry in value)
    else:
        return type(value).__name__
    return f"{type(value).__name__}({entries})"
