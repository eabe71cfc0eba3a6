"""Give trained modules random weights again, one at a time, in an order that the network's own run tells."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from ..models.objective import Objective, Targets
from ..models.preserve import preserved, trainable

__all__ = ["randomise", "weighted_modules"]


def weighted_modules(objective: Objective, pixels: Tensor, targets: Targets) -> list[str]:
    """Name the modules with weights that a score of pixels [1,3,H,W] depends on, in the order in which they run.

    A module counts by its own parameters or running statistics, not by those of the modules inside it; "" is the
    network itself. One that never runs as a module comes just before the one around it.
    """
    network = objective.network
    ran: dict[str, int] = {}
    with ExitStack() as undo:
        undo.enter_context(preserved(network))
        for name, module in network.named_modules():
            undo.callback(module.register_forward_hook(partial(_note, ran, name)).remove)
        parameters = undo.enter_context(trainable(network))
        score = objective.scores(objective.outputs(pixels.detach().clone()), targets).sum()
        gradients = torch.autograd.grad(score, parameters, allow_unused=True)
    used = {id(p) for p, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
    found = [name for name, module in network.named_modules() if _matters(module, used, name in ran)]
    return sorted(found, key=lambda name: _module_at(ran, name))


def randomise(module: nn.Module, name: str, seed: int) -> None:
    """Initialise a module's own weights anew: as its kind does it, running statistics included.

    A parameter whose module knows no initialisation of its own is drawn from a normal distribution with the mean and
    the deviation that it has. name and seed: decide the random numbers, wherever else the module's turn may be; nobody
    else's random numbers are touched.
    """
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.no_grad():
        torch.manual_seed(int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:7], "big"))
        reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
        if callable(reset):
            reset()
            return
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.copy_(torch.randn_like(parameter) * parameter.std(correction=0) + parameter.mean())


def _note(ran: dict[str, int], name: str, module: nn.Module, args: Any, output: Any) -> None:
    ran.setdefault(name, len(ran))


def _matters(module: nn.Module, used: set[int], ran: bool) -> bool:
    if any(id(parameter) in used for parameter in module.parameters(recurse=False)):
        return True
    return ran and isinstance(module, _NormBase) and module.running_mean is not None


def _module_at(ran: dict[str, int], name: str) -> float:
    if name in ran:
        return ran[name]
    # The whole network may be run by its parts alone, as a captioner's is; then what has no run comes last.
    return _module_at(ran, name.rpartition(".")[0]) - 0.5 if name else float(len(ran))
