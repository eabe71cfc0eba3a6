"""Probe a network once: find the batch axis of every call that takes a weight, and check the batched gradients.

The network runs on one image and on two. An axis that doubles is the batch, and the first half along it must equal the
run on one image. Then the gradients, and the loss after a step, are compared with those of the first image alone: this
reveals a network that uses its weights where no torch function can be intercepted.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ...models.objective import Objective, Targets
from ...models.preserve import trainable
from ..meta import Meta, meta_step
from .function_mode import (
    BatchLayout,
    BatchLayouts,
    call_key,
    function_name,
    is_in_place,
    is_metadata_query,
    tensors_in,
)
from .step import collect_gradients, float_parameters, per_sample_mode
from .weights import DerivedTensor, NotCoveredError, PerSampleTensor, PerSampleWeight

__all__ = ["probe_layouts"]

Gradients = tuple[Tensor | None, ...]
FunctionCall = tuple[Any, tuple[Any, ...], dict[str, Any]]
"""A torch function, its positional and its keyword arguments."""

_TOLERANCE = 1e-2
"""Relative difference that rounding may make; an error in kind differs by the size of the quantity itself."""


def probe_layouts(objective: Objective, pixels: Tensor, targets: Targets) -> BatchLayouts:
    """Find the batch axes of a network's calls, inside `preserved`.

    Args:
        objective: The objective on the network.
        pixels: [B,3,H,W]; the first image is used.
        targets: Fixed targets; the first of the first image is used.

    Returns:
        The layouts by `call_key`.

    Raises:
        NotCoveredError: If the network cannot be intercepted, for whatever reason.
    """
    image = pixels[:1].detach()
    second = image.flip(-1) + torch.linspace(0.5, 1, image.shape[-1], device=image.device, dtype=image.dtype)
    pair, target_row = torch.cat([image, second]), [targets[0][:1]]
    try:
        # Without autocast, so that rounding does not hide what is compared; the calls are the same in any precision.
        with torch.autocast(pixels.device.type, enabled=False):
            return _checked_layouts(objective, image, pair, target_row)
    except NotCoveredError:
        raise
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise  # torch's modes raise another error where Ctrl-C interrupts them
        raise NotCoveredError(f"{type(error).__name__}: {error}") from error


def _checked_layouts(objective: Objective, image: Tensor, pair: Tensor, target_row: Targets) -> BatchLayouts:
    parameters = float_parameters(objective)
    single = _SingleImageRun(parameters, image)
    with trainable(objective.network) as trained:
        with single:
            loss = _losses(objective, image, target_row).sum()
        gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    double = _TwoImageRun(parameters, pair, single)
    with torch.no_grad(), double:
        _losses(objective, pair, [*target_row, *target_row])
    _check_gradients(objective, pair, target_row, double.layouts, gradients, loss.detach())
    return double.layouts


def _losses(objective: Objective, pixels: Tensor, targets: Targets) -> Tensor:
    """Run the network, its scores included: they may take weights that the losses do not."""
    outputs = objective.outputs(pixels.clone())
    objective.scores(outputs, targets)
    return objective.losses(outputs, targets)


# --- Comparing a run on two images with a run on one


@dataclass(frozen=True)
class _TensorDigest:
    """What is kept of a tensor: its shape, a sum that depends on the order of its entries, and their magnitude."""

    shape: tuple[int, ...]
    ordered_sum: float
    magnitude: float

    @classmethod
    def of(cls, tensor: Tensor) -> _TensorDigest:
        values = tensor.detach().double().flatten()
        signs = torch.arange(len(values), device=values.device, dtype=values.dtype).cos_()
        return cls(tuple(tensor.shape), float(values @ signs), float(values.abs().sum()))

    def matches(self, tensor: Tensor) -> bool:
        digest = _TensorDigest.of(tensor)
        return not abs(self.ordered_sum - digest.ordered_sum) > _TOLERANCE * self.magnitude + 1e-12


class _ProbeMode(TorchFunctionMode):
    """Follow the tensors that are made of weights and those made of images; `meet` gets every call with weights.

    A tensor made of weights, and of no image, counts as a weight.
    """

    def __init__(self, parameters: list[nn.Parameter], pixels: Tensor) -> None:
        super().__init__()
        self._weight_ids, self._image_ids = {id(parameter) for parameter in parameters}, {id(pixels)}
        # While these tensors are alive, no new tensor gets their id.
        self._alive: list[Tensor] = []

    @abstractmethod
    def meet(self, call: FunctionCall) -> Any:
        """Make a call and record it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if is_metadata_query(func):
            return func(*args, **kwargs)
        ids = [id(tensor) for tensor in tensors_in((args, kwargs))]
        has_weights, has_images = not self._weight_ids.isdisjoint(ids), not self._image_ids.isdisjoint(ids)
        result = self.meet((func, args, kwargs)) if has_weights else func(*args, **kwargs)
        made = tensors_in(result) + (tensors_in(args[:1]) if is_in_place(func) else [])
        self._alive += made
        if has_images:
            self._image_ids.update(map(id, made))
        elif has_weights:
            self._weight_ids.update(map(id, made))
        return result


class _SingleImageRun(_ProbeMode):
    """Record the calls of a run on one image."""

    def __init__(self, parameters: list[nn.Parameter], pixels: Tensor) -> None:
        super().__init__(parameters, pixels)
        self.calls: list[tuple[str, list[_TensorDigest], list[_TensorDigest]]] = []

    def meet(self, call: FunctionCall) -> Any:
        """Make a call, and keep digests of its arguments and results."""
        func, args, kwargs = call
        # Before the call, which may overwrite its arguments.
        inputs = [_TensorDigest.of(tensor) for tensor in tensors_in((args, kwargs))]
        result = func(*args, **kwargs)
        self.calls.append((function_name(func), inputs, [_TensorDigest.of(tensor) for tensor in tensors_in(result)]))
        return result


class _TwoImageRun(_ProbeMode):
    """Compare a run on two images with the run on the first alone, call by call."""

    def __init__(self, parameters: list[nn.Parameter], pixels: Tensor, single: _SingleImageRun) -> None:
        super().__init__(parameters, pixels)
        self.versions: dict[int, PerSampleTensor] = {
            id(parameter): PerSampleWeight(parameter, 2, number) for number, parameter in enumerate(parameters)
        }
        self.layouts: BatchLayouts = {}
        self._single_calls = iter(single.calls)

    def meet(self, call: FunctionCall) -> Any:
        """Make a call, and find the batch axes of its arguments and results."""
        func, args, kwargs = call
        name, inputs, outputs = next(self._single_calls, ("", [], []))
        if name != function_name(func):
            raise NotCoveredError(
                f"the network calls {function_name(func)} for two images and {name or 'nothing'} for one"
            )
        tensors = tensors_in((args, kwargs))
        key = call_key(func, tensors, self.versions)
        input_axes = _batch_axes(name, inputs, tensors)
        result = func(*args, **kwargs)
        results = tensors_in(result)
        if any(id(tensor) in self.versions for tensor in tensors):
            self._record_layout(key, BatchLayout(input_axes, _batch_axes(name, outputs, results)), results)
        return result

    def _record_layout(self, key: Any, layout: BatchLayout, results: list[Tensor]) -> None:
        if self.layouts.setdefault(key, layout) != layout:
            raise NotCoveredError(f"the batch axis differs between the calls of {key[0]}")
        for number, (tensor, axis) in enumerate(zip(results, layout.outputs, strict=True)):
            if axis is None:
                self.versions[id(tensor)] = DerivedTensor((tensor,), (key[0], key[1], number))


def _batch_axes(name: str, single: list[_TensorDigest], double: list[Tensor]) -> tuple[int | None, ...]:
    """Find the batch axis of each tensor of a call."""
    if len(single) != len(double):
        raise NotCoveredError(f"{name} takes another number of tensors for two images than for one")
    return tuple(_batch_axis(name, digest, tensor) for digest, tensor in zip(single, double, strict=True))


def _batch_axis(name: str, single: _TensorDigest, double: Tensor) -> int | None:
    """Find the axis that holds the batch, image by image; None if the tensor is the same for any batch."""
    shape = tuple(double.shape)
    changed = [axis for axis, size in enumerate(shape[: len(single.shape)]) if size != single.shape[axis]]
    axis = changed[0] if changed else None
    fits = (
        len(shape) == len(single.shape)
        and len(changed) <= 1
        and (axis is None or shape[axis] == 2 * single.shape[axis])
    )
    if not fits or not single.matches(double if axis is None else double.narrow(axis, 0, single.shape[axis])):
        raise NotCoveredError(f"{name} mixes the images of a batch, {list(single.shape)} to {list(shape)}")
    return axis


# --- Comparing batched gradients with those of one image


def _check_gradients(
    objective: Objective,
    pair: Tensor,
    target_row: Targets,
    layouts: BatchLayouts,
    gradients: Gradients,
    loss: Tensor,
) -> None:
    """Compare the first image of two with itself alone: its gradients, and its loss after a step along them."""
    weights = collect_gradients(objective, pair, [*target_row, *target_row], layouts).weights
    largest = max((float(gradient.norm()) for gradient in gradients if gradient is not None), default=0.0)
    for weight, expected in zip(weights, gradients, strict=True):
        expected_tensor = torch.zeros_like(weight.tensor) if expected is None else expected
        _check_gradient(weight.gradient(0), expected_tensor, largest)
    power = sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None)
    step = Meta(0.01 * max(abs(float(loss)), 1e-3) / power if power > 0 else 0.0)
    for weight in weights:
        weight.take_step(step.rate)
    with torch.no_grad(), per_sample_mode(weights, layouts, 2, stepped=True):
        stepped_loss = _losses(objective, pair, [*target_row, *target_row])[0]
    with meta_step(objective, pair[:1], target_row[0][0], step), torch.no_grad():
        expected_loss = _losses(objective, pair[:1], target_row)[0]
    rounding = 100 * torch.finfo(loss.dtype).eps * (1 + abs(float(loss)))
    if abs(float(stepped_loss - expected_loss)) > 0.05 * abs(float(expected_loss - loss)) + rounding:
        raise NotCoveredError("the loss after a step differs from that of the image alone")


def _check_gradient(gradient: Tensor | None, expected: Tensor, largest: float) -> None:
    """Compare a weight's gradients, up to a difference that is rounding beside the largest gradient of all."""
    spare = 1000 * torch.finfo(expected.dtype).eps * largest
    if (gradient is None and bool(expected.any())) or (
        gradient is not None and not float((gradient - expected).norm()) <= _TOLERANCE * float(expected.norm()) + spare
    ):
        raise NotCoveredError("a weight's gradient differs from that of the image alone")
