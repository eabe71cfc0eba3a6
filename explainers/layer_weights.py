"""Measure how much each layer tells about its images: the spread of its features, and the accuracy of a linear probe.

Both use the spatial means of a layer's activations, x̄ of C channels per image (paper, section 4.2).
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
from .layer_selection import LayerName

__all__ = ["accuracy", "average_precision", "averaged_features", "spread"]

_FOLDS = 5
_VALIDATION_FOLD, _TEST_FOLD = 3, 4
_PENALTIES = (10.0, 1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_MAX_ITERATIONS = 200

# --- Features


def averaged_features(model: Explainable, pixels: Tensor, layers: Sequence[Layer]) -> dict[str, Tensor]:
    """Run a network and average its activations over space; the network stays as it was.

    Args:
        model: The model.
        pixels: [B,3,H,W].
        layers: The layers.

    Returns:
        x̄ by the layer's name, [B,C] in float64.

    Raises:
        GradlightError: For a layer that does not run.
    """
    features: dict[str, Tensor] = {}
    with ExitStack() as cleanup:
        cleanup.enter_context(preserved(model.network))
        cleanup.enter_context(torch.no_grad())
        runs = Counter[str]()
        for layer in layers:
            if layer.name == "input":
                features[layer.name] = _spatial_mean(pixels)
                continue
            module = model.trunk.get_submodule(LayerName.parse(layer.name).module)
            hook = partial(_feature_hook, layer=layer, features=features, runs=runs)
            cleanup.callback(module.register_forward_hook(hook).remove)
        model.trunk(pixels.detach().clone())
    missing = [layer.name for layer in layers if layer.name not in features]
    if missing:
        raise GradlightError(f"{', '.join(map(repr, missing))} did not run. `model.layers()` lists the layers that do.")
    return {layer.name: features[layer.name] for layer in layers}


def _feature_hook(
    module: nn.Module,
    args: tuple[Any, ...],
    output: Any,
    *,
    layer: Layer,
    features: dict[str, Tensor],
    runs: Counter[str],
) -> None:
    # Averaged at once, before anything overwrites the output in place.
    if runs[layer.name] == LayerName.parse(layer.name).run:
        features[layer.name] = _spatial_mean(layer.layout(output))
    runs[layer.name] += 1


def _spatial_mean(maps: Tensor) -> Tensor:
    return maps.detach().double().mean((2, 3)).cpu()


# --- Measures


def spread(features: Tensor) -> float:
    """Compute the mean absolute deviation of features from their mean over the images, averaged over channels.

    The paper takes the deviation from the mean of |x̄|, which is the same for features that are never negative.

    Args:
        features: [N,C].

    Returns:
        The spread, 0 or more.

    Raises:
        GradlightError: For fewer than two images.

    Example:
        >>> spread(torch.tensor([[0.0, 1.0], [2.0, 1.0]]))
        0.5
    """
    if len(features) < 2:
        raise GradlightError(f"The spread of features is measured over at least two images, not {len(features)}.")
    return float((features - features.mean(0)).abs().mean())


def accuracy(features: Tensor, labels: Tensor, seed: int = 0) -> float:
    """Train a linear probe on features, and measure its accuracy on held-out images.

    Three fifths of the images train it, on one fifth its L2 penalty is chosen, one fifth is held out; each single class
    is split in proportion. Features are standardised, the loss is the (binary) cross-entropy, its minimum is found by
    L-BFGS.

    Args:
        features: [N,C].
        labels: Class numbers [N], or [N,K] of which classes an image shows.
        seed: Of the split.

    Returns:
        For class numbers, the share of images whose class is the most probable one; otherwise the mean over the classes
        of `average_precision`, without classes of which no held-out image is. 0…1.

    Raises:
        GradlightError: For too few images or classes.

    Example:
        >>> labels = torch.arange(40) % 2
        >>> accuracy(torch.stack([labels.double(), torch.zeros(40)], 1), labels)
        1.0
    """
    _check_enough(features, labels)
    folds = _assign_folds(labels, seed)
    training, validation, test = folds < _VALIDATION_FOLD, folds == _VALIDATION_FOLD, folds == _TEST_FOLD
    not_test = training | validation
    with torch.inference_mode(False), torch.enable_grad():
        penalty = _choose_penalty(_standardised(features, training), labels, training, validation)
        scaled = _standardised(features, not_test)
        probe = _fit(scaled[not_test], labels[not_test], penalty, _zero_probe(scaled, labels))
    return _score(_logits(scaled[test], probe), labels[test])


def average_precision(scores: Tensor, present: Tensor) -> float:
    """Average, over the present items, the precision at the threshold that just includes each; ties are included.

    Args:
        scores: [N].
        present: Booleans [N].

    Returns:
        The average precision, 0…1; NaN if none is present.

    Example:
        >>> average_precision(torch.tensor([3.0, 2.0]), torch.tensor([False, True]))
        0.5
    """
    thresholds = scores[present]
    included = scores >= thresholds.unsqueeze(1)
    return float((included[:, present].sum(1) / included.sum(1)).double().mean())


# --- The linear probe

Probe = tuple[Tensor, Tensor]
"""Weights [C,K] and biases [K]."""


def _check_enough(features: Tensor, labels: Tensor) -> None:
    classes = labels.unique().numel() if labels.ndim == 1 else int(labels.any(0).sum())
    if len(features) != len(labels) or len(features) < 2 * _FOLDS or classes < 2:
        raise GradlightError(
            f"A linear probe needs at least {2 * _FOLDS} images with labels, of at least 2 classes; there are"
            f" {len(features)} images with {len(labels)} labels, of {classes} classes. Use more images."
        )


def _assign_folds(labels: Tensor, seed: int) -> Tensor:
    """Give each of N images a fold 0, 1, 2 …, with each single class spread evenly."""
    order = torch.randperm(len(labels), generator=torch.Generator("cpu").manual_seed(seed), device="cpu")
    if labels.ndim == 1:
        order = order[labels[order].argsort(stable=True)]
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(labels), device="cpu") % _FOLDS)


def _standardised(features: Tensor, subset: Tensor) -> Tensor:
    """Bring every channel to mean 0 and deviation 1 over a subset of the images."""
    deviation, mean = torch.std_mean(features[subset].double(), 0, correction=0)
    return (features.double() - mean) / torch.where(deviation > 0, deviation, 1.0)


def _zero_probe(features: Tensor, labels: Tensor) -> Probe:
    classes = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
    return features.new_zeros(features.shape[1], classes), features.new_zeros(classes)


def _choose_penalty(features: Tensor, labels: Tensor, training: Tensor, validation: Tensor) -> float:
    """Choose the penalty with the least loss on the validation images; each search starts where the last one ended."""
    probe, losses = _zero_probe(features, labels), {}
    for penalty in _PENALTIES:
        probe = _fit(features[training], labels[training], penalty, probe)
        losses[penalty] = float(_loss(_logits(features[validation], probe), labels[validation]))
    return min(losses, key=lambda penalty: losses[penalty])


def _fit(features: Tensor, labels: Tensor, penalty: float, start: Probe) -> Probe:
    weights, biases = (tensor.clone().requires_grad_() for tensor in start)
    optimiser = torch.optim.LBFGS(
        [weights, biases], max_iter=_MAX_ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = _loss(_logits(features, (weights, biases)), labels) + penalty / 2 * weights.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    return weights.detach(), biases.detach()


def _logits(features: Tensor, probe: Probe) -> Tensor:
    return features @ probe[0] + probe[1]


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy, or the sum over the classes of the binary one; the mean over the images."""
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").sum(1).mean()


def _score(logits: Tensor, labels: Tensor) -> float:
    if labels.ndim == 1:
        return float((logits.argmax(1) == labels).double().mean())
    by_class = [(scores, present > 0) for scores, present in zip(logits.T, labels.T, strict=True) if present.any()]
    if not by_class:
        raise GradlightError(f"None of the {len(labels)} held-out images shows any of the classes. Use more images.")
    return sum(average_precision(scores, present) for scores, present in by_class) / len(by_class)
