"""The objective of a classifier: its logits, and the loss that it was trained with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import GradlightError
from .logits import Output, find_logits
from .objective import Objective, Target, Targets
from .targets import Asked, Class, Rank, resolve, rows_for

__all__ = ["ClassLabels", "ClassObjective"]


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
        rows: Sequence[Sequence[Asked]],
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
