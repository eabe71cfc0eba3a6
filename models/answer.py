"""What a network answers with: logits or probabilities, by chance or not, of one image alone or of the whole batch.

It is examined once, by a few passes over noise; `AnswerForm.logits` then gives the logits whatever the network ends in.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.overrides import TorchFunctionMode

from ..errors import GradlightError, GradlightWarning
from .preserve import preserved

__all__ = ["AnswerForm", "examine_answer"]


@dataclass(frozen=True)
class AnswerForm:
    """What a network answers with.

    Args:
        kind: "logits"; or "softmax", "log_softmax" or "sigmoid" of logits.
        seen: Whether the call that makes probabilities of the logits was seen, so that the logits can be taken from it.
        mixes_images: Whether the answer for an image depends on the others of its batch.
        random: Whether the answer for an image differs from run to run.

    Example:
        >>> AnswerForm("softmax").logits(lambda pixels: pixels.flatten(1).softmax(1), torch.zeros(1, 1, 1, 2))
        tensor([[-0.6931, -0.6931]])
    """

    kind: str = "logits"
    seen: bool = False
    mixes_images: bool = False
    random: bool = False

    def logits(self, answer: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Run a network and give its logits.

        Args:
            answer: Runs the network, and gives its logits or probabilities [B,C].
            pixels: [B,3,H,W].

        Returns:
            The logits [B,C]; where the call that makes probabilities of them was not seen, the logarithms of these.
        """
        if self.mixes_images and len(pixels) > 1:
            return torch.cat([self.logits(answer, image) for image in pixels.split(1)])
        if self.kind == "logits":
            return answer(pixels)
        with _EndCalls() as calls:
            probabilities = answer(pixels)
        logits = calls.before(probabilities) if self.seen else None
        return _log_probabilities(self.kind, probabilities) if logits is None else logits


class _EndCalls(TorchFunctionMode):
    """Keep the inputs of all calls that make probabilities [B,C] of logits, with the name of the function."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[tuple[str, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of torch."""
        result = func(*args, **(kwargs or {}))
        kind = _END_FUNCTIONS.get(getattr(func, "__name__", ""))
        if kind is not None and isinstance(result, Tensor) and result.ndim > 1 and result[0].numel() == result.shape[1]:
            logits = args[0] if args else (kwargs or {}).get("input")
            if isinstance(logits, Tensor):
                self.inputs.append((kind, logits.flatten(1)))
        return result

    def before(self, probabilities: Tensor) -> Tensor | None:
        """Give the last logits of the shape of probabilities, float32 at least; None if there are none."""
        fitting = [logits for _, logits in self.inputs if logits.shape == probabilities.shape]
        return fitting[-1].to(torch.promote_types(fitting[-1].dtype, probabilities.dtype)) if fitting else None

    def kind(self, probabilities: Tensor, tolerance: float) -> str:
        """Name the function that made probabilities, or their logarithms, of the last logits; "" for another one."""
        kinds = [kind for kind, logits in self.inputs if logits.shape == probabilities.shape]
        logits = self.before(probabilities)
        if logits is None:
            return ""
        forms = {
            "sigmoid": [("sigmoid", logits.sigmoid())],
            "softmax": [("softmax", logits.softmax(1)), ("log_softmax", logits.log_softmax(1))],
        }
        made = forms[kinds[-1].removeprefix("log_")]
        # Through logarithms: a softmax that is followed by log and a guard against log(0) is a log_softmax.
        return next((kind for kind, each in made if _close(each.exp(), probabilities.exp(), tolerance)), "")


_END_FUNCTIONS = {
    name: kind
    for kind, names in {
        "softmax": ("softmax", "special_softmax"),
        "log_softmax": ("log_softmax", "special_log_softmax"),
        "sigmoid": ("sigmoid", "sigmoid_", "special_expit"),
    }.items()
    for name in names
}


def examine_answer(network: nn.Module, answer: Callable[[Tensor], Tensor], pixels: Tensor) -> tuple[AnswerForm, int]:
    """Run a network on noise, alone and in a batch, and find out what it answers with; warn where that is unusual.

    Args:
        network: The network; it is left as it was, as are torch's random numbers.
        answer: Runs it, and gives its logits or probabilities [B,C].
        pixels: [B,3,H,W]; the noise is of their size, dtype and device.

    Returns:
        The form of the answer, and how many numbers it has.

    Raises:
        GradlightError: If there are no logits.
    """
    size, one = pixels.shape[1:], torch.Generator().manual_seed(0)
    # Two images as unlike as possible, so that statistics of both are far from those of each.
    noise = torch.randn(2, *size, generator=one, device="cpu")
    noise = torch.stack([noise[0], 4 * noise[1] + 1]).to(pixels)
    devices = [pixels.device] if pixels.device.type == "cuda" else []
    with preserved(network), torch.no_grad(), torch.random.fork_rng(devices), _EndCalls() as calls:
        alone, again = (answer(noise[:1].clone()) for _ in range(2))
        calls.inputs.clear()
        try:
            both = answer(noise.clone())
        except (RuntimeError, ValueError, TypeError, AssertionError, GradlightError):
            # A network for one image, or whose memory suffices for no more.
            calls.inputs.clear()
            both = answer(noise[:1].clone())
    if not all(bool(each.isfinite().all()) for each in (alone, again, both)):
        return AnswerForm(), both.shape[1]
    eps = _precision(pixels)
    random = not _close(alone, again, min(1000 * eps, 0.05))
    mixes = _uses_batch_statistics(network) if random else len(both) == 2 and _differs(both, alone, eps)
    tolerance = min(1000 * eps, max(1e-4, 8 * eps))
    kind = calls.kind(both, tolerance)
    form = AnswerForm(kind or _kind_by_values(both, tolerance), bool(kind), mixes, random)
    _warn_of(form)
    return form, both.shape[1]


def _precision(pixels: Tensor) -> float:
    """Give the relative rounding error of the network's arithmetic; a GPU may compute float32 with 10 bits."""
    device = pixels.device.type
    dtypes = [pixels.dtype, *([torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else [])]
    return max(*(torch.finfo(dtype).eps for dtype in dtypes), 0.0 if device == "cpu" else 1e-3)


def _uses_batch_statistics(network: nn.Module) -> bool:
    norms = [module for module in network.modules() if isinstance(module, _NormBase)]
    return any(norm.running_mean is None and not isinstance(norm, _PER_IMAGE_NORMS) for norm in norms)


_PER_IMAGE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)


def _close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Tell whether two tensors are equal but for rounding."""
    return first.shape == second.shape and bool((first - second).abs().max() <= tolerance * first.abs().max())


def _differs(both: Tensor, alone: Tensor, eps: float) -> bool:
    """Tell whether the first of two rows is another than alone: by more than rounding, and not just by a hair."""
    change, spread = (both[:1] - alone).abs().max(), (both[0] - both[1]).abs().max()
    return not _close(both[:1], alone, min(1000 * eps, 0.05)) and bool(change > 4 * eps**0.5 * spread)


def _kind_by_values(answer: Tensor, tolerance: float) -> str:
    """Tell by their sum whether numbers are probabilities or the logarithms of such."""
    for kind, probabilities in (("softmax", answer), ("log_softmax", answer.exp())):
        inside = bool(((probabilities >= 0) & (probabilities <= 1 + tolerance)).all())
        if answer.shape[1] > 1 and inside and _close(torch.ones_like(answer[:, 0]), probabilities.sum(1), tolerance):
            return kind
    return "logits"


def _log_probabilities(kind: str, answer: Tensor) -> Tensor:
    """Bring probabilities back to logits that give the same."""
    if kind == "log_softmax":
        return answer
    tiny = torch.finfo(answer.dtype).tiny
    if kind == "softmax":
        return answer.clamp(min=tiny).log()
    return answer.logit(torch.finfo(answer.dtype).eps)


def _warn_of(form: AnswerForm) -> None:
    """Warn, once for each model, of what a user would not expect."""
    messages = []
    if form.mixes_images:
        messages.append(
            "The network's answer for an image depends on the other images of its batch, as with a batch norm without"
            " running statistics. Every image is therefore run alone."
        )
    if form.random:
        messages.append(
            "The network answers by chance: two runs on the same pixels differ, in eval mode too, as with"
            " functional.dropout without training=self.training. Its maps change from call to call."
        )
    if form.kind != "logits" and not form.seen:
        what = "the logarithms of probabilities" if form.kind == "log_softmax" else "probabilities"
        messages.append(
            f"The network answers with {what}, and the logits before them were not found: the scores that are"
            " explained are log-probabilities. To explain the logits, give a network that returns them, or name them"
            " with output=."
        )
    for message in messages:
        warnings.warn(message, GradlightWarning, stacklevel=5)
