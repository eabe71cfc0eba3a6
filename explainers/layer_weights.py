"""How much each layer tells of its images: the spread of its features, and how well a linear probe does on them.

Both look at the spatial means of a layer's features, x̄ of C channels for each image (paper, section 4.2).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import GradlightError
from ..models.base import Explainable, Layer
from ..models.preserve import preserved

__all__ = ["accuracy", "average_precision", "averaged_features", "spread"]

_FOLDS = 5
_VALIDATION, _HELD_OUT = 3, 4
_PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_STEPS = 200


def averaged_features(model: Explainable, pixels: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Run a network on pixels [B,3,H,W] and give x̄ at each layer, [B,C] in float64; the network stays as it was.

    Raises GradlightError for a layer that does not run.
    """
    found: dict[str, Tensor] = {}
    with ExitStack() as undo:
        undo.enter_context(preserved(model.network))
        undo.enter_context(torch.no_grad())
        runs = Counter[str]()
        for layer in layers:
            if layer.name == "input":
                found[layer.name] = _mean(pixels)
                continue
            module = model.trunk.get_submodule(layer.name.partition(":")[0])
            hook = partial(_note, layer=layer, found=found, runs=runs)
            undo.callback(module.register_forward_hook(hook).remove)
        model.trunk(pixels.detach().clone())
    silent = [layer.name for layer in layers if layer.name not in found]
    if silent:
        raise GradlightError(f"{', '.join(map(repr, silent))} did not run. `model.layers()` lists the layers that do.")
    return {layer.name: found[layer.name] for layer in layers}


def spread(features: Tensor) -> float:
    """Give the mean absolute deviation of features [N,C] from their mean over the images, averaged over channels.

    The paper takes the deviation from the mean of |x̄|, which is the same for features that are never negative.
    Raises GradlightError for fewer than two images.
    """
    if len(features) < 2:
        raise GradlightError(f"The spread of features is one over several images; {len(features)} were given.")
    return float((features - features.mean(0)).abs().mean())


def accuracy(features: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Train a linear probe on features [N,C] and tell how well it does on images that it has not seen, 0…1.

    labels: [N] class numbers, then it is the share of images whose class is the most probable one; or [N,K] of which
    class an image shows, then the mean over the classes of `average_precision` (classes of which none is among the
    held-out images are left out). Three fifths of the images train it, on one fifth its L2 penalty is chosen, one fifth
    is held out; seed: of this split, which has each single class in proportion. Features are standardised, the
    loss is the (binary) cross-entropy, its minimum is found by L-BFGS. Raises GradlightError for too few images or
    classes.
    """
    _check(features, labels)
    parts = _parts(labels, seed)
    training, validation, held_out = parts < _VALIDATION, parts == _VALIDATION, parts == _HELD_OUT
    known = training | validation
    with torch.inference_mode(False), torch.enable_grad():
        penalty = _penalty(_standardised(features, training), labels, training, validation)
        scaled = _standardised(features, known)
        probe = _fitted(scaled[known], labels[known], penalty, _zero(scaled, labels))
    return _score(_logits(scaled[held_out], probe), labels[held_out])


def average_precision(scores: Tensor, present: Tensor) -> float:
    """Average, over the present ones of [N], the precision at the threshold that just lets each one in.

    Equal scores are let in together. NaN where nothing is present.
    """
    found = scores[present]
    let_in = scores >= found.unsqueeze(1)
    return float((let_in[:, present].sum(1) / let_in.sum(1)).double().mean())


Probe = tuple[Tensor, Tensor]
"""Weights [C,K] and biases [K]."""


def _note(
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
    *,
    layer: Layer,
    found: dict[str, Tensor],
    runs: Counter[str],
) -> None:
    # At once, before anything overwrites it in place.
    if runs[layer.name] == int(layer.name.partition(":")[2] or 0):
        found[layer.name] = _mean(layer.layout(output))
    runs[layer.name] += 1


def _mean(maps: Tensor) -> Tensor:
    return maps.detach().double().mean((2, 3)).cpu()


def _check(features: Tensor, labels: Tensor) -> None:
    classes = labels.unique().numel() if labels.ndim == 1 else int(labels.any(0).sum())
    if len(features) != len(labels) or len(features) < 2 * _FOLDS or classes < 2:
        raise GradlightError(
            f"A linear probe needs at least {2 * _FOLDS} images with labels, of at least 2 classes; there are"
            f" {len(features)} images with {len(labels)} labels, of {classes} classes. Take more images."
        )


def _parts(labels: Tensor, seed: int) -> Tensor:
    """Deal images [N] out to as many parts as there are folds, 0, 1, 2 …, each single class evenly."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    if labels.ndim == 1:
        order = order[labels[order].argsort(stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(labels)) % _FOLDS)


def _standardised(features: Tensor, of: Tensor) -> Tensor:
    """Bring every channel to mean 0 and deviation 1 over some of the images."""
    deviation, mean = torch.std_mean(features[of].double(), 0, correction=0)
    return (features.double() - mean) / torch.where(deviation > 0, deviation, 1.0)


def _zero(features: Tensor, labels: Tensor) -> Probe:
    classes = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    return features.new_zeros(features.shape[1], classes), features.new_zeros(classes)


def _penalty(features: Tensor, labels: Tensor, training: Tensor, validation: Tensor) -> float:
    """Choose the penalty with the least loss on the validation images; each search begins where the last one ended."""
    probe, losses = _zero(features, labels), {}
    for penalty in _PENALTIES:
        probe = _fitted(features[training], labels[training], penalty, probe)
        losses[penalty] = float(_loss(_logits(features[validation], probe), labels[validation]))
    return min(losses, key=lambda penalty: losses[penalty])


def _fitted(features: Tensor, labels: Tensor, penalty: float, start: Probe) -> Probe:
    weights, biases = (part.clone().requires_grad_() for part in start)
    search = torch.optim.LBFGS([weights, biases], max_iter=_STEPS, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = _loss(_logits(features, (weights, biases)), labels) + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    search.step(closure)
    return weights.detach(), biases.detach()


def _logits(features: Tensor, probe: Probe) -> Tensor:
    return features @ probe[0] + probe[1]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Give the cross-entropy, or the sum over the classes of the binary one; the mean over the images."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1).mean()


def _score(logits: Tensor, labels: Tensor) -> float:
    if labels.ndim == 1:
        return float((logits.argmax(1) == labels).double().mean())
    shown = [(scores, present > 0) for scores, present in zip(logits.T, labels.T, strict=True) if present.any()]
    if not shown:
        raise GradlightError(f"None of the {len(labels)} held-out images shows any of the classes. Take more images.")
    return sum(average_precision(*each) for each in shown) / len(shown)
