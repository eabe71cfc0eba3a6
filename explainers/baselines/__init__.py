"""Installed as `gradlight.explainers.baselines`: published attribution methods on the same objective, by name.

Each is a plain function (objective, pixels [1,3,H,W], one fixed target, layer, settings) → raw map [1,h,w], called
inside `preserved`; its docstring states its sign, its cost and its source. SmoothGrad, integrated gradients, occlusion
and LIME run in Captum. The methods that propagate something other than the gradient are implemented here, exactly: they
replace the backward pass of single operations, so that modules that run twice, operations in place, plain functions and
skip connections are treated as the papers define, and no weight or hook is touched.

Example:
    >>> from torch import nn, rand
    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    >>> maps = gl.explain(gl.classifier(network), rand(2, 3, 8, 8), 1, methods=["lrp", "guided_backprop"], layers="0")
    >>> list(maps["lrp", "input"].shape), list(maps["guided_backprop", "0"].shape)
    ([2, 1, 8, 8], [2, 1, 6, 6])
"""

from __future__ import annotations

from .baseline import Baseline, at_layers, at_pixels
from .captum_methods import integrated_gradients, lime, occlusion, smoothgrad
from .deep_lift import deep_lift
from .excitation import contrastive_excitation_backprop, excitation_backprop
from .lrp import lrp
from .perturbation import extremal_perturbation, rise
from .rectifiers import deconvnet, guided_backprop

__all__ = ["BASELINES", "Baseline", "at_layers", "at_pixels"]

BASELINES: dict[str, Baseline] = {
    baseline.name: baseline
    for baseline in (
        Baseline(
            "guided_backprop",
            guided_backprop,
            at_layers,
            "max over channels of |g|, with each ReLU passing back g·[g>0]·[x>0]",
            'Springenberg et al. 2015, "Striving for simplicity: the all convolutional net", arXiv:1412.6806',
        ),
        Baseline(
            "deconvnet",
            deconvnet,
            at_layers,
            "max over channels of |g|, with each ReLU passing back g·[g>0]",
            'Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", arXiv:1311.2901',
        ),
        Baseline(
            "smoothgrad",
            smoothgrad,
            at_pixels,
            "max over channels of |mean over noise n of ∇score(x + n)|",
            'Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise", arXiv:1706.03825',
        ),
        Baseline(
            "integrated_gradients",
            integrated_gradients,
            at_pixels,
            "sum over channels of (x − x₀)·∫₀¹ ∇score(x₀ + t(x − x₀)) dt",
            'Sundararajan et al. 2017, "Axiomatic attribution for deep networks", arXiv:1703.01365',
        ),
        Baseline(
            "deep_lift",
            deep_lift,
            at_pixels,
            "sum over channels of (x − x₀)·m, with m multiplied by Δoutput/Δinput at each non-linearity",
            "Shrikumar et al. 2017,"
            ' "Learning important features through propagating activation differences", arXiv:1704.02685',
        ),
        Baseline(
            "lrp",
            lrp,
            at_pixels,
            "sum over channels of R, R_i = Σ_j R_j·z_ij/Σ_i z_ij; z = (x·w)₊ in convolutions, x·w in linear layers",
            'Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise relevance'
            ' propagation", PLoS ONE 10(7)',
        ),
        Baseline(
            "excitation_backprop",
            excitation_backprop,
            at_layers,
            "sum over channels of p, with p_i = Σ_j p_j·x_i·w⁺_ij/Σ_i x_i·w⁺_ij",
            'Zhang et al. 2016, "Top-down neural attention by excitation backprop", arXiv:1608.00507',
        ),
        Baseline(
            "contrastive_excitation_backprop",
            contrastive_excitation_backprop,
            at_layers,
            "(sum over channels of p − p̄)₊, with p̄ from the last layer's weights negated",
            'Zhang et al. 2016, "Top-down neural attention by excitation backprop", section 3.3, arXiv:1608.00507',
        ),
        Baseline(
            "occlusion",
            occlusion,
            at_pixels,
            "mean, over the squares that hide a pixel, of score(x) − score(x with the square hidden)",
            'Zeiler and Fergus 2014, "Visualizing and understanding convolutional networks", arXiv:1311.2901',
        ),
        Baseline(
            "rise",
            rise,
            at_pixels,
            "Σ score(x·M)·M / Σ M over random masks M",
            "Petsiuk et al. 2018,"
            ' "RISE: randomized input sampling for explanation of black-box models", arXiv:1806.07421',
        ),
        Baseline(
            "lime",
            lime,
            at_pixels,
            "weights w of the ridge regression score(x with the cells z shown) ≈ w·z + b over random z",
            'Ribeiro et al. 2016, "Why should I trust you?: explaining the predictions of any classifier",'
            " arXiv:1602.04938",
        ),
        Baseline(
            "extremal_perturbation",
            extremal_perturbation,
            at_pixels,
            "sum over areas a of the smooth mask M of area a with the highest score(x shown in M, blurred elsewhere)",
            "Fong et al. 2019,"
            ' "Understanding deep networks via extremal perturbations and smooth masks", arXiv:1910.08485',
        ),
    )
}
"""Published name → baseline, with its paper's settings."""
