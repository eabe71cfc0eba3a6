"""Installed as `gradlight.explainers.per_sample`: the meta step of a whole batch, exact for each image.

`per_sample_meta_step` is the only entry; docs/per_sample.md explains how it works and what it refuses.

    gradients      the entry: probe the network once, collect the gradients, take the step
    probe          find the batch axis of every call that uses a weight, and check the result
    step           one batched pass that gives every image's own gradient
    function_mode  intercept the calls that use a weight, and replace the weight by each image's own
    rules          batched forms of the common layers; convolutions has those of convolutions
    weights        a parameter with one gradient, and then one value, per image
"""

from __future__ import annotations

from .gradients import per_sample_meta_step
from .weights import NotCoveredError

__all__ = ["NotCoveredError", "per_sample_meta_step"]
