"""Checks of a network's maps in the zoo: finite, not flat, the same in a batch as alone, and the network unchanged.

Parameters that are zero before training (heads, the last scale of a residual branch) stop the gradient: they are set to
small seeded noise, or one for the scales of norms. Batch norms get the statistics of the photo, without which the
activations of deep networks vanish.
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
from gradlight.explainers.layer_selection import LayerName
from gradlight.models.base import Layer
from gradlight.models.classifiers import Classifier

__all__ = ["checked"]

WEIGHTED = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.LayerNorm, nn.GroupNorm)


def checked(name: str, photo: Path) -> list[str]:
    """Explain the photo and its mirror image with a network; raises GradlightError for the first check that fails.

    Returns the cells of its row: number of layers, stages, number of maps, seconds to find and to explain, status.
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
    find_seconds = time.perf_counter() - begun
    begun = time.perf_counter()
    maps, alone, refused = explained(model, pictures, stages)
    explain_seconds = (time.perf_counter() - begun) / (2 * len(pictures))
    require(state(model.network) == before, "the network is not as it was")
    notes = [*refused, *judged(maps, stages)]
    if different(maps, alone, stages):
        # At the kinks of an activation rounding decides; a real fault shows in double precision, too.
        model.network.double()
        wrong = different(*explained(model, pictures, stages)[:2], stages)
        require(not wrong, f"{', '.join(wrong)} differ in a batch from alone")
        notes.append("in a batch as alone in float64, where float32 rounds too much")
    ladder = "<br>".join(f"{layer.name} {layer.size[0]}×{layer.size[1]}" for layer in stages)
    status = "; ".join(["passes", *notes])
    return [str(len(model.layers())), ladder, str(len(maps)), f"{find_seconds:.1f}", f"{explain_seconds:.1f}", status]


def awaken(network: nn.Module) -> None:
    """Set parameters that are all zero to small noise, and zero scales of norms to one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if not parameter.any():
                scale = parameter.ndim == 1 and name.endswith("weight")
                noise = 0.02 * torch.randn(parameter.shape, generator=generator)
                parameter.copy_(noise + 1 if scale else noise)


def settle(network: nn.Module, pixels: Tensor) -> None:
    """Set the statistics of batch norms to those of the pixels; without them activations of deep networks vanish."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    with torch.no_grad():
        network(pixels)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum


def state(network: nn.Module) -> tuple[Any, ...]:
    """Give all of a network that an explanation must not change: numbers, flags, gradients, hooks."""
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
    """Compute the maps of two images at once, and of each alone, by every method that applies; and what is refused.

    A stage that is a layer with weights of another class than torch's may have no real contribution.
    """
    pixels, modules = model.pixels(pictures), dict(model.network.named_modules())
    weighted = [stage.name for stage in stages if isinstance(modules[LayerName.parse(stage.name).module], WEIGHTED)]
    jobs: list[tuple[list[str], Any]] = [(ANYWHERE, "stages")]
    jobs += [(["cam"], pooled)] if (pooled := [s.name for s in stages if s.pooled]) else []
    jobs += [(["normgrad_real"], [name]) for name in weighted]
    batched_and_alone: list[Maps] = [{}, {}]
    refused = []
    for methods, layers in jobs:
        try:
            for maps, size in zip(batched_and_alone, (len(pixels), 1), strict=True):
                made = gl.explain(model, pixels, 0, methods=methods, layers=layers, batch_size=size)
                maps |= {key: made[key] for key in made.pairs}
        except gl.GradlightError:
            module = modules[LayerName.parse(layers[0]).module]
            if methods != ["normgrad_real"] or type(module) in WEIGHTED:
                raise
            refused.append(f"normgrad_real is refused at {layers[0]} ({type(module).__name__})")
    return batched_and_alone[0], batched_and_alone[1], refused


def different(maps: Maps, alone: Maps, stages: list[Layer]) -> list[str]:
    """Name the maps of a batch that differ from those of its images alone by more than rounding."""
    channels = {layer.name: layer.channels for layer in stages}
    wrong = []
    for (method, layer), made in maps.items():
        near = 1e-3 * float(made.abs().max()) + 1e-6 * terms(method, layer, maps, channels[layer])
        if not torch.allclose(made, alone[method, layer], rtol=1e-3, atol=near):
            wrong.append(f"{method} at {layer}")
    return wrong


def judged(maps: Maps, stages: list[Layer]) -> list[str]:
    """Raise for a map that is not finite, has a wrong grid, or is flat; note maps that are flat by construction."""
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
    """Note the maps that are flat or only rounding errors at one layer; raise where a map must not be flat."""
    layer_maps = {(method, stage.name): made for method, made in maps.items()}
    bounds = {method: terms(method, stage.name, layer_maps, stage.channels) for method in maps}
    cancelled = [method for method, made in maps.items() if float(made.abs().max()) <= 1e-5 * bounds[method]]
    flat = [method for method, made in maps.items() if method not in cancelled and any(map(is_flat, made))]
    # Before an average over the image all locations have the same gradient, and normgrad varies only with the norm of
    # the activation, which a norm layer before it may have made constant; Grad-CAM's ReLU may give zeros only.
    allowed = {"gradient", "gradient_sum", "normgrad"} if "gradient" in flat else set()
    for method in flat:
        empty = method == "grad_cam" and not all(bool(image_map.any()) for image_map in maps[method])
        require(empty or method in allowed, f"{method} at {stage.name} is constant")
    require(
        {"gradient", "selective_normgrad"} - {*flat, *cancelled} != set(), f"everything at {stage.name} is constant"
    )
    notes = [f"flat at {stage.name}: {', '.join(flat)}"] if flat else []
    return notes + ([f"nothing but rounding at {stage.name}: {', '.join(cancelled)}"] if cancelled else [])


def is_flat(image_map: Tensor) -> bool:
    return float(image_map.max() - image_map.min()) <= 1e-5 * float(image_map.abs().max())


def terms(method: str, layer: str, maps: Maps, channels: int) -> float:
    """Bound the terms of a method's sum, to which its rounding errors are relative; 0 where nothing cancels."""
    if method == "gradient_sum":
        return channels * float(maps["gradient", layer].max())
    return float(maps["normgrad", layer].max()) if method in ("linear_approx", "grad_cam") else 0.0


def require(condition: bool, message: str) -> None:
    if not condition:
        raise gl.GradlightError(message)
