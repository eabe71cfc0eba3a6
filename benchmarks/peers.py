"""Other libraries for the same task: one method at many layers, each in its fastest form."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable

from timing import Job
from torch import Tensor, nn

__all__ = ["peers"]

Jobs = dict[str, Job]


def peers(network: nn.Module, pixels: Tensor, layers: list[str], *, tokens: bool) -> tuple[Jobs, list[str]]:
    """Create the jobs of the installed libraries, and a sentence for each library that is left out.

    tokens: the layers output a class token and a square of tokens [B,1+N,C]. The weights must be frozen; the pixels
    require a gradient, because these libraries need one.
    """
    jobs: Jobs = {}
    left_out: list[str] = []
    for name, package, make in _LIBRARIES:
        if importlib.util.find_spec(package) is None:
            left_out.append(f'{name} is not installed (`pip install -e ".[bench]"`), so it is left out.')
        elif tokens and make is _captum:
            left_out.append(f"{name} cannot convert tokens to a map, so it is left out.")
        else:
            jobs |= make(network, pixels, layers, _grid if tokens else None)
    return jobs, left_out


Reshape = Callable[[Tensor], Tensor] | None


def _captum(network: nn.Module, pixels: Tensor, layers: list[str], _reshape: Reshape) -> Jobs:
    from captum.attr import LayerGradCam, LayerGradientXActivation

    # Its Grad-CAM takes one layer at a time; gradient × activation, without the sum, takes a list.
    modules = [network.get_submodule(name) for name in layers]
    several, each = LayerGradientXActivation(network, modules), [LayerGradCam(network, module) for module in modules]
    listed = f"Captum, list: gradient × activation × {len(layers)} layers"
    jobs: Jobs = {listed: lambda: [layer_map.sum(1) for layer_map in several.attribute(pixels, target=0)]}
    if len(pixels) == 1:
        one_by_one = f"Captum, one by one: Grad-CAM × {len(layers)} layers"
        jobs[one_by_one] = lambda: [grad_cam.attribute(pixels, target=0) for grad_cam in each]
    return jobs


def _pytorch_grad_cam(network: nn.Module, pixels: Tensor, layers: list[str], reshape: Reshape) -> Jobs:
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    modules = [network.get_submodule(name) for name in layers]

    def run() -> object:
        with GradCAM(model=network, target_layers=modules, reshape_transform=reshape) as cam:
            return cam(pixels.clone().requires_grad_(), targets=[ClassifierOutputTarget(0)] * len(pixels))

    return {f"pytorch-grad-cam, several layers: Grad-CAM × {len(layers)} layers": run}


def _torch_cam(network: nn.Module, pixels: Tensor, layers: list[str], reshape: Reshape) -> Jobs:
    from torchcam.methods import GradCAM

    def run() -> object:
        with GradCAM(network, target_layer=list(layers), reshape_transform=reshape) as cam:
            return cam(0, network(pixels.clone().requires_grad_()))

    return {f"torch-cam, list: Grad-CAM × {len(layers)} layers": run}


_LIBRARIES: tuple[tuple[str, str, Callable[[nn.Module, Tensor, list[str], Reshape], Jobs]], ...] = (
    ("Captum", "captum", _captum),
    ("pytorch-grad-cam", "pytorch_grad_cam", _pytorch_grad_cam),
    ("torch-cam", "torchcam", _torch_cam),
)


def _grid(tokens: Tensor) -> Tensor:
    """Convert tokens [B,1+N,C] to a map [B,C,h,w], without the class token."""
    side = math.isqrt(tokens.shape[1] - 1)
    grid: Tensor = tokens[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return grid
