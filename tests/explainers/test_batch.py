"""A batch that does not fit in memory is explained in smaller parts, and says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import gradlight as gl


class Narrow(nn.Module):
    """A network whose memory holds so many images and no more."""

    def __init__(self, holds: int, message: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.holds, self.message, self.seen = holds, message, list[int]()

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        if len(pixels) > self.holds:
            raise RuntimeError(self.message)
        return torch.relu(self.conv(pixels)).mean((2, 3))


PIXELS = torch.randn(11, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SHORT = "[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."


@pytest.mark.parametrize("message", [SHORT, "CUDA out of memory. Tried to allocate 2.00 GiB"])
def test_batches_shrink_until_they_fit_and_stay_small(message: str) -> None:
    torch.manual_seed(0)
    network = Narrow(3, message).double()
    with pytest.warns(gl.GradlightWarning) as warned:
        maps = gl.explain(gl.classifier(network), PIXELS, batch_size=8, layers="conv")
    assert [str(each.message).partition(";")[0] for each in warned] == [
        "Memory does not suffice for 8 images at once",
        "Memory does not suffice for 4 images at once",
    ]
    # The first batch of two is noise, of which the network's answer is learnt.
    assert [count for count in network.seen if count > 1] == [2, 8, 4, 2, 2, 2, 2, 2]
    network.holds = 100
    whole = gl.explain(gl.classifier(network), PIXELS, layers="conv")
    wanted = whole["selective_normgrad", "conv"]
    torch.testing.assert_close(maps["selective_normgrad", "conv"], wanted, rtol=0, atol=1e-12 * float(wanted.max()))
    assert [row[0].index for row in maps.targets] == [row[0].index for row in whole.targets]


def test_one_image_that_does_not_fit_is_an_error() -> None:
    network = Narrow(1, SHORT)
    model = gl.classifier(network, labels=list("abcd"))
    model.layers((8, 8))
    network.holds = 0
    with pytest.raises(gl.GradlightError, match="does not suffice for one image with 1 layers"):
        gl.explain(model, PIXELS[:1], layers="conv")


def test_other_errors_of_the_network_are_its_own() -> None:
    network = Narrow(1, "a bug of the network")
    with pytest.raises(RuntimeError, match="a bug of the network"):
        gl.explain(gl.classifier(network), PIXELS, layers="conv")
