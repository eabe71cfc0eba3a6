"""One image alone has the gradients that it has in a batch, also where tokens become a grid before a batch norm."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradlight as gl


class FromTokens(nn.Module):
    """A convolution with a norm, and then tokens: the gradient comes back as tokens laid out as a grid."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(3, 8, 3, padding=1), norm, nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.norm(self.conv(pixels)).flatten(2).transpose(1, 2)
        logits: Tensor = self.head((tokens.tanh() * tokens).mean(1))
        return logits


@pytest.mark.parametrize("norm", [nn.BatchNorm2d(8), nn.InstanceNorm2d(8, affine=True)])
def test_an_image_alone_has_the_maps_that_it_has_in_a_batch(norm: nn.Module) -> None:
    torch.manual_seed(0)
    network = FromTokens(norm).double().eval()
    pixels = torch.randn(2, 3, 7, 7, dtype=torch.float64)
    model = gl.classifier(network)
    together = gl.explain(model, pixels, 0, methods=["gradient", "normgrad"], layers="conv", batch_size=2)
    alone = gl.explain(model, pixels, 0, methods=["gradient", "normgrad"], layers="conv", batch_size=1)
    for pair in together.pairs:
        assert torch.allclose(alone[pair], together[pair], rtol=1e-10), pair
    leaf = pixels[:1].clone().requires_grad_()
    before = [len(module._forward_hooks) for module in network.modules()]
    gl.explain(model, leaf.detach(), 0, layers="conv", meta=gl.Meta())
    assert [len(module._forward_hooks) for module in network.modules()] == before
