"""Installed as `gradlight.explainers.baselines`: other people's methods on the same objective, by name.

Each is a plain function (objective, pixels [1,3,H,W], one fixed target, layer, settings) → raw map [1,h,w], called
inside `preserved`; what its numbers are, its sign, its cost and its source stand in its docstring. SmoothGrad,
integrated gradients, occlusion and LIME run in Captum. The methods that propagate something else than the gradient are
written here, exactly: they hold on to the operations of a pass, so that modules that run twice, operations in place,
functions, and skip connections of any network are treated as the papers say, and no weight or hook is touched.
"""

from __future__ import annotations

from .baseline import Baseline, at_layers, at_pixels
from .captum_methods import integrated_gradients, lime, occlusion, smoothgrad
from .deep_lift import deep_lift
from .excitation import contrastive_excitation_backprop, excitation_backprop
from .extremal import extremal_perturbation
from .lrp import lrp
from .rectifiers import deconvnet, guided_backprop
from .rise import rise

__all__ = ["BASELINES", "Baseline", "at_layers", "at_pixels"]

BASELINES: dict[str, Baseline] = {
    made.name: made
    for made in (
        Baseline("guided_backprop", guided_backprop, at_layers),
        Baseline("deconvnet", deconvnet, at_layers),
        Baseline("smoothgrad", smoothgrad, at_pixels),
        Baseline("integrated_gradients", integrated_gradients, at_pixels),
        Baseline("deep_lift", deep_lift, at_pixels),
        Baseline("lrp", lrp, at_pixels),
        Baseline("excitation_backprop", excitation_backprop, at_layers),
        Baseline("contrastive_excitation_backprop", contrastive_excitation_backprop, at_layers),
        Baseline("occlusion", occlusion, at_pixels),
        Baseline("rise", rise, at_pixels),
        Baseline("lime", lime, at_pixels),
        Baseline("extremal_perturbation", extremal_perturbation, at_pixels),
    )
}
"""Published name → baseline, with its paper's settings."""
