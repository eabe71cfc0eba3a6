"""SmoothGrad and integrated gradients, by Captum: gradients averaged over many versions of the photo."""

from __future__ import annotations

from torch import Tensor

from ...models.base import Layer
from ...models.objective import Objective, Target
from .scoring import captum_for, scoring, seeded

__all__ = ["integrated_gradients", "smoothgrad"]


def smoothgrad(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    samples: int = 50,
    noise: float = 0.15,
    seed: int = 0,
    batch: int = 16,
) -> Tensor:
    """Give max_k |mean gradient_k| [1,H,W] over noisy copies of the pixels.

    samples: how many copies, each one forward and one backward pass. noise: standard deviation as a share of the
    pixels' range. Unsigned, as `gradient`. The noise is the same every time. Raises GradlightError without Captum.
    (Smilkov et al. 2017, "SmoothGrad: removing noise by adding noise": 50 samples, noise of 10 to 20 %; Captum's
    NoiseTunnel over Saliency.)
    """
    attr = captum_for("smoothgrad")
    method = attr.NoiseTunnel(attr.Saliency(scoring(objective, target)))
    spread = noise * float(pixels.max() - pixels.min())
    with seeded(seed, pixels.device):
        found: Tensor = method.attribute(
            pixels.detach().clone().requires_grad_(),
            nt_type="smoothgrad",
            nt_samples=samples,
            nt_samples_batch_size=min(batch, samples),
            stdevs=spread,
            abs=False,
        )
    return found.detach().abs().amax(1)


def integrated_gradients(
    objective: Objective,
    pixels: Tensor,
    target: Target,
    layer: Layer,
    *,
    steps: int = 50,
    reference: float = 0.0,
    rule: str = "gausslegendre",
    batch: int = 16,
) -> Tensor:
    """Give (x − x₀) times the mean gradient on the way from x₀ to x, summed over channels [1,H,W]; signed.

    The whole map sums to score(x) − score(x₀), up to the error of `steps` points (each one forward and one backward
    pass). reference: the value of every pixel of x₀; 0 is the mean colour of most preprocessings. rule: Captum's name
    of the quadrature. Raises GradlightError without Captum. (Sundararajan et al. 2017, "Axiomatic attribution for deep
    networks"; Captum's IntegratedGradients and its defaults.)
    """
    method = captum_for("integrated_gradients").IntegratedGradients(scoring(objective, target))
    found: Tensor = method.attribute(
        pixels.detach().clone().requires_grad_(),
        baselines=reference,
        n_steps=steps,
        method=rule,
        internal_batch_size=min(batch, steps),
    )
    return found.detach().sum(1)
