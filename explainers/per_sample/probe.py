"""Look at a network once, to know where the batch lies in every call that takes a weight, and check that it is so.

The network runs on one image and on two; what doubles is the batch, and the first image's part must be what it was
alone. Then the gradients and the loss after a step are compared with those of the first image alone: a network that
uses its weights where it cannot be seen is found out here.
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
from .function_mode import BatchLayout, BatchLayouts, asks, key_of, leaves, named, overwrites
from .step import collected, running, weights_of
from .weights import Derived, NotCoveredError, Version, Weight

__all__ = ["learn"]

Gradients = tuple[Tensor | None, ...]

_SAME = 1e-2
"""How far rounding may take a quantity; what is wrong in kind differs by its whole size."""


@dataclass(frozen=True)
class _Print:
    """What is remembered of a tensor: its shape, a sum that knows the order of its entries, and their size."""

    shape: tuple[int, ...]
    ordered: float
    size: float

    @classmethod
    def of(cls, tensor: Tensor) -> _Print:
        values = tensor.detach().double().flatten()
        signs = torch.arange(len(values), device=values.device, dtype=values.dtype).cos_()
        return cls(tuple(tensor.shape), float(values @ signs), float(values.abs().sum()))

    def is_of(self, tensor: Tensor) -> bool:
        other = _Print.of(tensor)
        return not abs(self.ordered - other.ordered) > _SAME * self.size + 1e-12


class _ProbeMode(TorchFunctionMode):
    """Follow what becomes of the weights and of the images in one run; `meet` is told of every call with weights.

    Anything that is made of weights, and of no image, counts as a weight.
    """

    def __init__(self, weights: list[nn.Parameter], pixels: Tensor) -> None:
        super().__init__()
        self._weights, self._images = {id(weight) for weight in weights}, {id(pixels)}
        # As long as they live no other tensor gets their number.
        self._alive: list[Tensor] = []

    @abstractmethod
    def meet(self, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Any:
        """Make a call, and take note of it."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if asks(func):
            return func(*args, **kwargs)
        given = [id(tensor) for tensor in leaves((args, kwargs))]
        weights, images = not self._weights.isdisjoint(given), not self._images.isdisjoint(given)
        answer = self.meet((func, args, kwargs)) if weights else func(*args, **kwargs)
        made = list(leaves(answer)) + (list(leaves(args[:1])) if overwrites(func) else [])
        self._alive += made
        if images:
            self._images.update(map(id, made))
        elif weights:
            self._weights.update(map(id, made))
        return answer


class _Alone(_ProbeMode):
    """Remember the calls of a run on one image."""

    def __init__(self, weights: list[nn.Parameter], pixels: Tensor) -> None:
        super().__init__(weights, pixels)
        self.calls: list[tuple[str, list[_Print], list[_Print]]] = []

    def meet(self, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Any:
        """Make a call, and remember what was given and returned."""
        func, args, kwargs = call
        given = [_Print.of(tensor) for tensor in leaves((args, kwargs))]
        answer = func(*args, **kwargs)
        self.calls.append((named(func), given, [_Print.of(tensor) for tensor in leaves(answer)]))
        return answer


class _Together(_ProbeMode):
    """Compare a run on two images with that on the first alone, call by call."""

    def __init__(self, weights: list[nn.Parameter], pixels: Tensor, alone: _Alone) -> None:
        super().__init__(weights, pixels)
        self.known: dict[int, Version] = {id(weight): Weight(weight, 2, at) for at, weight in enumerate(weights)}
        self.layouts: BatchLayouts = {}
        self._calls = iter(alone.calls)

    def meet(self, call: tuple[Any, tuple[Any, ...], dict[str, Any]]) -> Any:
        """Make a call, and find the batch in what is given and returned."""
        func, args, kwargs = call
        name, given, returned = next(self._calls, ("", [], []))
        if name != named(func):
            raise NotCoveredError(f"the network calls {named(func)} for two images and {name or 'nothing'} for one")
        tensors, key = list(leaves((args, kwargs))), key_of(func, (args, kwargs), self.known)
        before = tuple(_axis(name, *pair) for pair in _pairs(name, given, tensors))
        answer = func(*args, **kwargs)
        answers = list(leaves(answer))
        if any(id(tensor) in self.known for tensor in tensors):
            after = tuple(_axis(name, *pair) for pair in _pairs(name, returned, answers))
            self._keep(key, BatchLayout(before, after), answers)
        return answer

    def _keep(self, key: Any, layout: BatchLayout, answers: list[Tensor]) -> None:
        if self.layouts.setdefault(key, layout) != layout:
            raise NotCoveredError(f"the batch lies elsewhere each time that {key[0]} is called")
        for number, (tensor, axis) in enumerate(zip(answers, layout.returned, strict=True)):
            if axis is None:
                self.known[id(tensor)] = Derived((tensor,), (key[0], key[1], number))


def _pairs(name: str, alone: list[_Print], together: list[Tensor]) -> list[tuple[_Print, Tensor]]:
    if len(alone) != len(together):
        raise NotCoveredError(f"{name} takes another number of tensors for two images than for one")
    return list(zip(alone, together, strict=True))


def _axis(name: str, alone: _Print, together: Tensor) -> int | None:
    """Find the axis that holds the batch, image by image; None if the tensor is the same for any batch."""
    shape = tuple(together.shape)
    odd = [axis for axis, size in enumerate(shape[: len(alone.shape)]) if size != alone.shape[axis]]
    axis = odd[0] if odd else None
    fits = len(shape) == len(alone.shape) and len(odd) <= 1 and (axis is None or shape[axis] == 2 * alone.shape[axis])
    if not fits or not alone.is_of(together if axis is None else together.narrow(axis, 0, alone.shape[axis])):
        raise NotCoveredError(f"{name} mixes the images of a batch, {list(alone.shape)} to {list(shape)}")
    return axis


def learn(objective: Objective, pixels: Tensor, targets: Targets) -> BatchLayouts:
    """Find the layouts of a network's calls on pixels [B,3,H,W] with one fixed target each, inside `preserved`.

    Raises NotCoveredError if the network cannot be followed, whatever the reason is.
    """
    image = pixels[:1].detach()
    other = image.flip(-1) + torch.linspace(0.5, 1, image.shape[-1], device=image.device, dtype=image.dtype)
    pair, row = torch.cat([image, other]), [targets[0][:1]]
    weights = weights_of(objective)
    try:
        # What is compared must not drown in rounding; the calls are the same in any precision.
        with torch.autocast(pixels.device.type, enabled=False):
            return _learnt(objective, weights, image, pair, row)
    except NotCoveredError:
        raise
    except Exception as error:
        raise NotCoveredError(f"{type(error).__name__}: {error}") from error


def _learnt(
    objective: Objective, weights: list[nn.Parameter], image: Tensor, pair: Tensor, row: Targets
) -> BatchLayouts:
    alone = _Alone(weights, image)
    with trainable(objective.network) as parameters:
        with alone:
            loss = _losses(objective, image, row).sum()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    together = _Together(weights, pair, alone)
    with torch.no_grad(), together:
        _losses(objective, pair, [*row, *row])
    _check(objective, pair, row, together.layouts, gradients, loss.detach())
    return together.layouts


def _losses(objective: Objective, pixels: Tensor, targets: Targets) -> Tensor:
    outputs = objective.outputs(pixels.clone())
    objective.scores(outputs, targets)
    return objective.losses(outputs, targets)


def _check(
    objective: Objective, pair: Tensor, row: Targets, layouts: BatchLayouts, gradients: Gradients, loss: Tensor
) -> None:
    """Compare the first image of two with itself alone: its gradients, and its loss after a step along them."""
    found = collected(objective, pair, [*row, *row], layouts).weights
    largest = max((float(gradient.norm()) for gradient in gradients if gradient is not None), default=0.0)
    for weight, wanted in zip(found, gradients, strict=True):
        _compare(weight.gradient(0), torch.zeros_like(weight.tensor) if wanted is None else wanted, largest)
    power = sum(float(gradient.double().square().sum()) for gradient in gradients if gradient is not None)
    step = Meta(0.01 * max(abs(float(loss)), 1e-3) / power if power > 0 else 0.0)
    for weight in found:
        weight.settle(step.rate)
    with torch.no_grad(), running(found, layouts, 2, settled=True):
        stepped = _losses(objective, pair, [*row, *row])[0]
    with meta_step(objective, pair[:1], row[0][0], step), torch.no_grad():
        wanted_loss = _losses(objective, pair[:1], row)[0]
    eps = torch.finfo(loss.dtype).eps
    if abs(float(stepped - wanted_loss)) > 0.05 * abs(float(wanted_loss - loss)) + 100 * eps * (1 + abs(float(loss))):
        raise NotCoveredError("the loss after a step differs from that of the image alone")


def _compare(found: Tensor | None, wanted: Tensor, largest: float) -> None:
    """Compare a weight's gradients; what is nothing but rounding beside the largest gradient of all may differ."""
    spare = 1000 * torch.finfo(wanted.dtype).eps * largest
    if (found is None and bool(wanted.any())) or (
        found is not None and not float((found - wanted).norm()) <= _SAME * float(wanted.norm()) + spare
    ):
        raise NotCoveredError("a weight's gradient differs from that of the image alone")
