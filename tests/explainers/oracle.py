"""Numbers that other people's code gave, and the networks and photos that they were made with."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor

import gradlight as gl
from gradlight.explainers.capture import Tap
from gradlight.explainers.contributions import Contribution, Dense
from gradlight.explainers.extraction import averaged_scaling
from gradlight.models.classifiers import Classifier


def positive_gradient(tap: Tap) -> Contribution:
    """Scaling with the gradient's positive part: LayerCAM's, as an extract of somebody's own."""
    return Dense(tap.gradient.clamp(min=0) * tap.activation)


METHODS: dict[str, gl.Method | str] = {
    "gradient": "gradient",
    "gradient_sum": "gradient_sum",
    "bias_norm": "bias+norm",
    "linear_approx": "linear_approx",
    "scaling_norm": "scaling+norm",
    "scaling_max": "scaling+max",
    "grad_cam": "grad_cam",
    "grad_cam_norelu": gl.Method(averaged_scaling, "sum", "grad_cam_norelu"),
    "norm_grad": "normgrad",
    "norm_grad_selective": "selective_normgrad",
    "norm_grad_conv3x3": "conv3x3+norm",
    "layercam": gl.Method(positive_gradient, "sum", "layercam"),
}
"""What the oracle calls a method → what it is called here."""


class Oracle:
    """The folder of outside truth about classifiers; what is made from it is made once in a test run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = json.loads((folder / "index.json").read_text())
        self.cases: dict[str, dict[str, Any]] = {case["id"]: case for case in index["cases"]}
        self.networks: dict[str, dict[str, Any]] = index["nets"]
        spec = importlib.util.spec_from_file_location("oracle_fill", folder / "fill.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._fill = module.fill
        # Not all of them: VGG11 alone takes a gigabyte in float64.
        self.model = lru_cache(maxsize=2)(self._model)
        self.maps = cache(self._maps)
        self.both_photos = cache(self._both_photos)
        self.read = cache(self._read)

    def _model(self, name: str, dtype: torch.dtype) -> Classifier:
        """Build a network with torchvision's own in-place operations and fill it."""
        with torch.device("meta"):
            network = torchvision.models.get_model(name, num_classes=20)
        return gl.classifier(self._fill(network.to_empty(device="cpu")).to(dtype).eval())

    def pixels(self, photos: Sequence[str], dtype: torch.dtype) -> Tensor:
        """Stack photos "A" and "B", [B,3,112,112]."""
        arrays = [np.load(self.folder / "photos" / f"{photo}_x.npy") for photo in photos]
        return torch.from_numpy(np.concatenate(arrays)).to(dtype)

    def asked(self, case: str, dtype: torch.dtype = torch.float64) -> tuple[Classifier, Tensor, Any]:
        """Give the model, the pixels and the target of a case."""
        about = self.cases[case]
        return self.model(about["net"], dtype), self.pixels([about["photo"]], dtype), about["target"]

    def _maps(self, case: str, dtype: torch.dtype) -> gl.SaliencyMaps:
        """Explain one case with all methods at all its layers, through the public road."""
        about = self.cases[case]
        return gl.explain(*self.asked(case, dtype), methods=METHODS.values(), layers=about["layers"])

    def _both_photos(self) -> gl.SaliencyMaps:
        """Explain photo A's class and photo B's, each with all methods, in one batch."""
        about = [self.cases[case] for case in ("resnet18_A_t18", "resnet18_B_t5")]
        pixels = self.pixels([case["photo"] for case in about], torch.float64)
        targets = [case["target"] for case in about]
        model = self.model("resnet18", torch.float64)
        return gl.explain(model, pixels, targets, methods=METHODS.values(), layers=about[0]["layers"])

    def _read(self, path: str) -> dict[str, Tensor]:
        """Read an archive of arrays, in float64."""
        with np.load(self.folder / path) as archive:
            return {key: torch.from_numpy(archive[key]).double() for key in archive.files}

    def json(self, path: str) -> dict[str, Any]:
        """Read a JSON file."""
        found: dict[str, Any] = json.loads((self.folder / path).read_text())
        return found


def error_max(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a part of the map's largest value (of 1 where the map is zero)."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted).abs().max()) / (float(wanted.abs().max()) or 1.0)


def error_l2(found: Tensor, wanted: Tensor) -> float:
    """L2 norm of the difference, as a part of the map's (of 1 where the map is zero)."""
    assert found.shape == wanted.shape
    return float((found.double() - wanted).norm()) / (float(wanted.norm()) or 1.0)
