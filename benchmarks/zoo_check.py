"""What is held of a network's maps in the sweep of the zoo: finite, not flat, in a batch as alone, all left untouched.

Parameters that are zero before training (heads, the last scale of a residual branch) stop the gradient: they get small
seeded noise, the scales of norms one; and batch norms get the statistics of the photo, without which deep networks fade
to one number.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import torch
from networks import ANYWHERE
from PIL import Image, ImageOps
from torch import Tensor, nn

import gradlight as gl
from gradlight.models.base import Layer
from gradlight.models.classifiers import Classifier

__all__ = ["checked"]

WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def checked(name: str, photo: Path) -> list[str]:
    """Explain the photo and its mirror image by a network, and raise for the first thing that is not as promised.

    Gives the cells of its row: how many layers, the stages, how many maps, seconds to find and to explain, the status.
    """
    torch.manual_seed(0)
    model = gl.classifier(name, pretrained=False, device="cpu")
    with Image.open(photo) as opened:
        upright = opened.convert("RGB")
    pictures = [upright, ImageOps.mirror(upright)]
    awaken(model.network)
    settle(model.network, model.pixels(pictures))
    before = state(model.network)
    begun = time.perf_counter()
    stages = model.stages()
    found = time.perf_counter() - begun
    begun = time.perf_counter()
    maps, alone, refused = explained(model, pictures, stages)
    took = (time.perf_counter() - begun) / (2 * len(pictures))
    require(state(model.network) == before, "the network is not as it was")
    notes = [*refused, *judged(maps, stages)]
    if different(maps, alone, stages):
        # At the kinks of an activation rounding decides; what is wrong in itself is wrong in double precision, too.
        model.network.double()
        wrong = different(*explained(model, pictures, stages)[:2], stages)
        require(not wrong, f"{', '.join(wrong)} differ in a batch from alone")
        notes.append("in a batch as alone in float64, where float32 rounds too much")
    ladder = "<br>".join(f"{layer.name} {layer.size[0]}×{layer.size[1]}" for layer in stages)
    status = "; ".join(["passes", *notes])
    return [str(len(model.layers())), ladder, str(len(maps)), f"{found:.1f}", f"{took:.1f}", status]


def awaken(network: nn.Module) -> None:
    """Give parameters that are all zero small noise, and the scales of norms that are, one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.any():
                scale = parameter.ndim == 1 and name.endswith("weight")
                noise = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + 1 if scale else noise)


def settle(network: nn.Module, pixels: Tensor) -> None:
    """Give batch norms the statistics of the pixels: with those of nothing the numbers of deep networks fade away."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        network(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def state(network: nn.Module) -> tuple[Any, ...]:
    """Give everything of a network that an explanation must leave alone: numbers, flags, gradients, hooks."""
    digest = hashlib.sha256()
    for _, tensor in sorted([*network.named_parameters(), *network.named_buffers()]):
        digest.update(tensor.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    flags = [(parameter.requires_grad, parameter.grad is None) for parameter in network.parameters()]
    hooks = [
        (m.training, len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
        for m in network.modules()
    ]
    return digest.hexdigest(), flags, hooks


Maps = dict[tuple[str, str], Tensor]


def explained(model: Classifier, pictures: list[Image.Image], stages: list[Layer]) -> tuple[Maps, Maps, list[str]]:
    """Make the maps of two images at once, and of each alone, by every method where it applies; and what is refused.

    A stage that is a layer with weights of another class than torch's may have no real contribution.
    """
    pixels, modules = model.pixels(pictures), dict(model.network.named_modules())
    weighted = [stage.name for stage in stages if isinstance(modules[stage.name.partition(":")[0]], WEIGHTED)]
    jobs: list[tuple[list[str], Any]] = [(ANYWHERE, "stages")]
    jobs += [(["cam"], pooled)] if (pooled := [s.name for s in stages if s.pooled]) else []
    jobs += [(["normgrad_real"], [name]) for name in weighted]
    found: list[Maps] = [{}, {}]
    refused = []
    for methods, layers in jobs:
        try:
            for maps, size in zip(found, (len(pixels), 1), strict=True):
                made = gl.explain(model, pixels, 0, methods=methods, layers=layers, batch_size=size)
                maps |= {key: made[key] for key in made.pairs}
        except gl.GradlightError:
            module = modules[layers[0].partition(":")[0]]
            if methods != ["normgrad_real"] or type(module) in WEIGHTED:
                raise
            refused.append(f"normgrad_real is refused at {layers[0]} ({type(module).__name__})")
    return found[0], found[1], refused


def different(maps: Maps, alone: Maps, stages: list[Layer]) -> list[str]:
    """Name the maps of a batch that are not those of its images alone, but for rounding."""
    channels = {layer.name: layer.channels for layer in stages}
    wrong = []
    for (method, layer), made in maps.items():
        near = 1e-3 * float(made.abs().max()) + 1e-6 * terms(method, layer, maps, channels[layer])
        if not torch.allclose(made, alone[method, layer], rtol=1e-3, atol=near):
            wrong.append(f"{method} at {layer}")
    return wrong


def judged(maps: Maps, stages: list[Layer]) -> list[str]:
    """Raise for a map that is not finite, not of its layer's grid, or flat; note those flat by construction."""
    require(bool(stages), "no stages")
    for (method, layer), made in maps.items():
        size = next(stage.size for stage in stages if stage.name == layer)
        require(made.shape[2:] == size, f"{method} at {layer} is {list(made.shape)}, not of the grid {size}")
        require(bool(made.isfinite().all()), f"{method} at {layer} is not finite")
    return [
        note
        for stage in stages
        for note in remarks({m: made for (m, at), made in maps.items() if at == stage.name}, stage)
    ]


def remarks(maps: dict[str, Tensor], stage: Layer) -> list[str]:
    """Note what is flat or nothing but rounding at one layer, and why; raise where there is no reason to be flat."""
    everywhere = {(method, stage.name): made for method, made in maps.items()}
    bounds = {method: terms(method, stage.name, everywhere, stage.channels) for method in maps}
    cancelled = [method for method, made in maps.items() if float(made.abs().max()) <= 1e-5 * bounds[method]]
    flat = [method for method, made in maps.items() if method not in cancelled and any(map(is_flat, made))]
    # Before an average of the image every place has one gradient, and normgrad varies only with the activation's norm,
    # which a norm before it has made one; Grad-CAM's ReLU may leave nothing.
    allowed = {"gradient", "gradient_sum", "normgrad"} if "gradient" in flat else set()
    for method in flat:
        empty = method == "grad_cam" and not all(bool(one.any()) for one in maps[method])
        require(empty or method in allowed, f"{method} at {stage.name} is constant")
    require(
        {"gradient", "selective_normgrad"} - {*flat, *cancelled} != set(), f"everything at {stage.name} is constant"
    )
    notes = [f"flat at {stage.name}: {', '.join(flat)}"] if flat else []
    return notes + ([f"nothing but rounding at {stage.name}: {', '.join(cancelled)}"] if cancelled else [])


def is_flat(one: Tensor) -> bool:
    return float(one.max() - one.min()) <= 1e-5 * float(one.abs().max())


def terms(method: str, layer: str, maps: Maps, channels: int) -> float:
    """Bound the terms that a method adds up, to which its rounding errors are relative; 0 where nothing cancels."""
    if method == "gradient_sum":
        return channels * float(maps["gradient", layer].max())
    return float(maps["normgrad", layer].max()) if method in ("linear_approx", "grad_cam") else 0.0


def require(holds: bool, what: str) -> None:
    if not holds:
        raise gl.GradlightError(what)
