"""Where an activation lies: a patch that moves over the pixels moves each layer's change to the same place."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import gradlight as gl
from gradlight.data.hdf5.validation import find_problems
from gradlight.explainers.combination import upsample
from gradlight.models.classifiers import Classifier
from gradlight.widgets.payload import _map_tensors

SIDE = 64
SPOT = 8


class Shaped(nn.Module):
    """A small network after a change of its pixels, with a head on the mean of its grid."""

    def __init__(self, change: Callable[[Tensor], Tensor], *body: nn.Module) -> None:
        super().__init__()
        self.change, self.body, self.head = change, nn.Sequential(*body), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.body(self.change(pixels)).mean((2, 3)))


def patches(side: int) -> nn.Module:
    return nn.Conv2d(3, 8, side, side)


def padded() -> list[nn.Module]:
    return [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)]


def to_multiple(of: int) -> Callable[[Tensor], Tensor]:
    return lambda x: functional.pad(x, (0, -x.shape[3] % of, 0, -x.shape[2] % of))


class Tokens(nn.Module):
    """Patches as tokens behind a class token, as a transformer has them; a mixer of tokens, and a shift."""

    def __init__(self, *, shift: int = 0) -> None:
        super().__init__()
        self.patch, self.token, self.shift = patches(8), nn.Parameter(torch.randn(1, 1, 8)), shift
        self.block, self.head = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        grid = self.patch(pixels)
        if self.shift:  # windows of a shifted grid, one after another
            grid = grid.roll((-self.shift, -self.shift), (2, 3))
            grid = grid.unflatten(2, (-1, 4)).unflatten(4, (-1, 4)).permute(0, 1, 2, 4, 3, 5)
        tokens = torch.cat([self.token.expand(len(pixels), -1, -1), grid.flatten(2).transpose(1, 2)], 1)
        return self.head(self.block(tokens).mean(1))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Shaped(lambda x: x, *padded()),
    "crop": lambda: Shaped(lambda x: x[..., 16:48, 16:48], patches(4), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)),
    "crop of a corner": lambda: Shaped(lambda x: x[..., 24:, 24:], patches(4)),
    "crop inside the network": lambda: Shaped(lambda x: x, patches(4), nn.ZeroPad2d(-4)),
    "pad on one side": lambda: Shaped(lambda x: functional.pad(x, (0, 64, 32, 0)), patches(8)),
    "stride that does not divide": lambda: Shaped(lambda x: x, nn.Conv2d(3, 8, 10, 18)),
    "valid convolutions": lambda: Shaped(lambda x: x, nn.Conv2d(3, 8, 7), nn.Conv2d(8, 8, 7), nn.Conv2d(8, 8, 7)),
    "multiple": lambda: Shaped(to_multiple(48), patches(16)),
    "mirrored": lambda: Shaped(lambda x: x.flip(3), *padded()),
    "resized": lambda: Shaped(lambda x: functional.interpolate(x, size=(48, 40), mode="bilinear"), patches(8)),
    "sampled": lambda: Shaped(lambda x: functional.grid_sample(x, _middle(x), align_corners=False), patches(4)),
    "written into zeros": lambda: Shaped(_framed, patches(8)),
    "reflected": lambda: Shaped(lambda x: functional.pad(x, (0, 32, 0, 32), mode="reflect"), patches(8)),
    "circular": lambda: Shaped(lambda x: x, nn.Conv2d(3, 8, 3, 1, 1, padding_mode="circular"), nn.Conv2d(8, 8, 4, 4)),
    "tokens": Tokens,
    "windows": lambda: Tokens(shift=2),
    "upsampled": lambda: Shaped(lambda x: x, *padded(), nn.Upsample(scale_factor=2), nn.Conv2d(8, 8, 3, 1, 1)),
}


def _framed(pixels: Tensor) -> Tensor:
    canvas = pixels.new_zeros(len(pixels), 3, 96, 96)
    canvas[:, :, 16:80, 24:88] = pixels
    return canvas


def _middle(pixels: Tensor) -> Tensor:
    """Give the grid that reads the middle half of the pixels."""
    theta = torch.tensor([[[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]]]).expand(len(pixels), -1, -1)
    return functional.affine_grid(theta, [len(pixels), 3, SIDE // 2, SIDE // 2], align_corners=False)


def activations(network: nn.Module, names: Sequence[str], pixels: Tensor) -> dict[str, Tensor]:
    """Run the network with hooks of its own, and give what the modules return."""
    seen: dict[str, Tensor] = {}
    hooks = [
        network.get_submodule(name).register_forward_hook(lambda m, i, o, name=name: seen.update({name: o.detach()}))
        for name in names
    ]
    with torch.no_grad():
        network(pixels)
    for hook in hooks:
        hook.remove()
    return seen


def centre(values: Tensor) -> tuple[float, float]:
    """Give the centre of mass [row, column] of a map."""
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in values.shape)
    weight = values.double() / values.double().sum()
    return float((weight.sum(1) * rows).sum()), float((weight.sum(0) * columns).sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_a_patch_changes_the_activation_where_it_lies(name: str) -> None:
    torch.manual_seed(0)
    network = NETWORKS[name]().eval()
    for parameter in network.parameters():  # so that nothing of the patch cancels
        parameter.data.abs_()
    layers = [layer for layer in gl.classifier(network).layers((SIDE, SIDE)) if layer.name != "input"]
    assert layers, "it has spatial layers"
    names, grey = [layer.name for layer in layers], torch.zeros(1, 3, SIDE, SIDE)
    before = activations(network, names, grey)
    visible = 0
    for top, left in ((24, 24), (20, 36), (36, 28), (4, 4), (52, 52)):
        spot = grey.clone()
        spot[..., top : top + SPOT, left : left + SPOT] = 1.0
        after = activations(network, names, spot)
        for layer in layers:
            change = layer.layout((after[layer.name] - before[layer.name]).abs()).sum(1, keepdim=True)
            laid = upsample(change, (SIDE, SIDE), layer.extent)[0, 0]
            if not laid.any() or (min(top, left) < 16 or max(top, left) > 40):
                continue  # not seen, or on an edge of what is seen
            visible += 1
            row, column = centre(laid)
            assert abs(row - (top + SPOT / 2 - 0.5)) <= max(layer.stride[0], 1), (layer, top, left, row)
            assert abs(column - (left + SPOT / 2 - 0.5)) <= max(layer.stride[1], 1), (layer, top, left, column)
    assert visible


@pytest.mark.parametrize(
    ("name", "layer", "extent", "stride"),
    [
        ("plain", "body.2", None, (4.0, 4.0)),
        ("crop", "body.2", (16, 16, 48, 48), (4.0, 4.0)),
        ("crop inside the network", "body.1", (16, 16, 48, 48), (4.0, 4.0)),
        ("pad on one side", "body.0", (-32, 0, 64, 128), (8.0, 8.0)),
        ("written into zeros", "body.0", (-16, -24, 80, 72), (8.0, 8.0)),
        ("reflected", "body.0", (0, 0, 96, 96), (8.0, 8.0)),
        ("multiple", "body.0", (0, 0, 96, 96), (16.0, 16.0)),
        ("tokens", "block", None, (8.0, 8.0)),
        ("windows", "block", None, (8.0, 8.0)),
    ],
)
def test_the_extent_is_that_of_the_grid(
    name: str, layer: str, extent: tuple[float, ...] | None, stride: tuple[float, float]
) -> None:
    model = gl.classifier(NETWORKS[name]().eval())
    found = next(each for each in model.layers((SIDE, SIDE)) if each.name == layer)
    assert found.extent == (None if extent is None else pytest.approx(extent))
    assert found.stride == pytest.approx(stride)


def test_a_map_behind_a_crop_is_laid_where_it_belongs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = gl.classifier(NETWORKS["crop"]().eval())
    pixels = torch.full((1, 3, SIDE, SIDE), 0.01)
    pixels[..., 32:40, 28:36] = 3.0
    maps = gl.explain(model, pixels, 0, methods="normgrad", layers=["body.2", "body.0"])
    laid = maps.upsampled("normgrad", "body.2")
    row, column = divmod(int(laid[0, 0].argmax()), SIDE)
    assert 28 <= row < 44
    assert 24 <= column < 40
    assert not laid[..., :16, :].any()
    assert not laid[..., 48:, :].any(), "the network does not see the border"
    inside = functional.interpolate(maps["normgrad", "body.2"], size=(32, 32), mode="bilinear", align_corners=False)
    torch.testing.assert_close(laid[..., 16:48, 16:48], inside)
    doubled = maps.upsampled("normgrad", "body.2", (2 * SIDE, 2 * SIDE))
    assert not doubled[..., :32, :].any()
    assert doubled[..., 33:95, 33:95].any()
    torch.testing.assert_close(maps.resized((SIDE, SIDE)).upsampled("normgrad", "body.2"), laid)
    assert not maps.combine("uniform", how="sum").upsampled("normgrad", "sum(uniform)")[..., :16, :].any()
    sent = {maps.layers[number]: values for _, number, values in _map_tensors(maps)}
    torch.testing.assert_close(sent["body.2"], laid[0, 0], msg="the viewer's page has no extents")
    maps.save(tmp_path / "maps.h5")
    with gl.load(tmp_path / "maps.h5") as stored:
        assert stored.layer_info == maps.layer_info
        torch.testing.assert_close(stored.upsampled("normgrad", "body.2"), laid)
    with h5py.File(tmp_path / "maps.h5", "r+") as file:
        assert find_problems(file) == []
        for edges in ([1.0, 2.0], [9.0, 0.0, 1.0, 1.0], [0.0, 0.0, float("nan"), 1.0]):
            file["maps/normgrad/body.2"].attrs["extent"] = edges
            assert "'extent'" in " ".join(find_problems(file))


# --- no location, or another one at every call


class Frequencies(nn.Module):
    """A convolution of frequencies, alone or beside one of locations."""

    def __init__(self, *, beside: bool) -> None:
        super().__init__()
        self.first, self.plane, self.beside = nn.Conv2d(3, 8, 3, 1, 1), nn.Conv2d(16, 16, 1), beside
        self.back, self.last, self.head = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 2, 1), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        first = self.first(pixels).relu()
        plane = torch.fft.rfft2(first, norm="ortho")
        real, imaginary = self.plane(torch.cat([plane.real, plane.imag], 1)).relu().chunk(2, 1)
        back = self.back(torch.fft.irfft2(torch.complex(real, imaginary), s=first.shape[2:], norm="ortho"))
        return self.head(self.last(back + first if self.beside else back).relu().mean((2, 3)))


class Reordered(nn.Module):
    """Tokens in an order that is given by a rule."""

    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patch, self.rule, self.block, self.head = patches(16), rule, nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.patch(pixels).flatten(2).transpose(1, 2)
        return self.head(self.block(self.rule(tokens)).relu().mean(1))


def by_chance(tokens: Tensor) -> Tensor:
    return tokens[:, torch.randperm(tokens.shape[1])]


def by_norm(tokens: Tensor) -> Tensor:
    order = tokens.norm(dim=2).argsort(1)
    return tokens.gather(1, order.unsqueeze(2).expand_as(tokens))


def rolled_by_chance(tokens: Tensor) -> Tensor:
    return tokens.roll(int(torch.randint(1, 16, ())), 1)


def sorted_values(tokens: Tensor) -> Tensor:
    return tokens.sort(1).values


def strongest(tokens: Tensor) -> Tensor:
    kept = tokens.norm(dim=2).topk(4).indices
    return tokens.gather(1, kept.unsqueeze(2).expand(-1, -1, tokens.shape[2]))


def reversed_order(tokens: Tensor) -> Tensor:
    return tokens[:, torch.arange(tokens.shape[1] - 1, -1, -1)]


def shuffled_and_back(tokens: Tensor) -> Tensor:
    order = torch.randperm(tokens.shape[1])
    return tokens[:, order][:, order.argsort()]


@pytest.mark.parametrize("rule", [by_chance, by_norm, rolled_by_chance, sorted_values, strongest])
def test_an_order_that_depends_on_chance_or_the_image_is_no_layer(rule: Any) -> None:
    torch.manual_seed(0)
    model = gl.classifier(Reordered(rule).eval())
    state = torch.get_rng_state()
    assert [layer.name for layer in model.layers((SIDE, SIDE))] == ["input", "patch"]
    if rule in (by_norm, sorted_values, strongest):
        assert torch.equal(state, torch.get_rng_state()), "the second run draws no numbers of the caller's"
    assert [layer.name for layer in model.stages((SIDE, SIDE))] == ["patch"]
    assert "is not spatial" in model.left_out((SIDE, SIDE))["block"]
    with pytest.raises(gl.GradlightError, match="nearest spatial layer before it is 'patch'"):
        gl.explain(model, torch.rand(1, 3, SIDE, SIDE), 0, layers="block")


@pytest.mark.parametrize("rule", [reversed_order, shuffled_and_back])
def test_a_fixed_order_is_followed(rule: Any) -> None:
    torch.manual_seed(0)
    network = Reordered(rule).eval()
    layer = next(each for each in gl.classifier(network).layers((SIDE, SIDE)) if each.name == "block")
    spot = torch.zeros(1, 3, SIDE, SIDE)
    spot[..., 16:32, 48:64] = 1.0
    before = activations(network, ["block"], torch.zeros_like(spot))["block"]
    change = layer.layout((activations(network, ["block"], spot)["block"] - before).abs()).sum(1)[0]
    assert change.nonzero().tolist() == [[1, 3]]


def test_the_frequency_plane_is_no_layer() -> None:
    model = gl.classifier(Frequencies(beside=False).eval())
    assert [layer.name for layer in model.layers((SIDE, SIDE))] == ["input", "first"]
    left_out = model.left_out((SIDE, SIDE))
    assert all("a Fourier transform mixes all locations" in left_out[name] for name in ("plane", "back", "last"))
    beside = gl.classifier(Frequencies(beside=True).eval())
    assert [layer.name for layer in beside.layers((SIDE, SIDE))] == ["input", "first", "last"]


def random_crop(pixels: Tensor) -> Tensor:
    top = int(torch.randint(0, 16, ()))
    return pixels[:, :, top : top + 32]


def python_crop(pixels: Tensor) -> Tensor:
    top = random.randrange(16)
    return pixels[:, :, top : top + 32]


def crop_at_the_brightest(pixels: Tensor) -> Tensor:
    top = min(int(pixels.mean((0, 1, 3)).argmax()), 32)
    return pixels[:, :, top : top + 32]


@pytest.mark.parametrize("crop", [random_crop, python_crop, crop_at_the_brightest])
def test_a_crop_that_depends_on_chance_or_the_image_leaves_no_layer(crop: Any) -> None:
    torch.manual_seed(0)
    random.seed(0)
    model = gl.classifier(Shaped(crop, patches(4)).eval())
    state = random.getstate() if crop is not python_crop else None
    assert [layer.name for layer in model.layers((SIDE, SIDE))] == ["input"]
    assert "differs from run to run" in model.left_out((SIDE, SIDE))["body.0"]
    assert state is None or state == random.getstate()


def test_rows_that_lie_unevenly_are_left_out() -> None:
    network = Shaped(lambda x: torch.cat([x[:, :, :8], x[:, :, 48:]], 2), patches(4)).eval()
    model = gl.classifier(network)
    assert [layer.name for layer in model.layers((SIDE, SIDE))] == ["input"]
    assert "lie unevenly in the image" in model.left_out((SIDE, SIDE))["body.0"]


# --- the tensor that is scored


class TwoHeads(nn.Module):
    """A classifier with a decoder of masks beside it; `form` gives its outputs their shape."""

    def __init__(self, form: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.form, self.encoder = form, nn.Sequential(*padded())
        self.decoder, self.mask, self.head = nn.Conv2d(8, 8, 3, 1, 1), nn.Conv2d(8, 1, 1), nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Any:
        grid = self.encoder(pixels)
        return self.form(self.head(grid.mean((2, 3))), self.mask(self.decoder(grid).relu()))


FORMS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "tuple": lambda logits, mask: (logits, mask),
    "mask first": lambda logits, mask: (mask, logits),
    "mapping": lambda logits, mask: {"class": logits, "mask": mask},
    "nested": lambda logits, mask: {"logits": logits, "aux": [mask, (mask * 2,)]},
}


@pytest.mark.parametrize("form", FORMS)
def test_layers_are_judged_by_the_logits(form: str) -> None:
    model = gl.classifier(TwoHeads(FORMS[form]).eval())
    names = [layer.name for layer in model.layers((SIDE, SIDE))]
    assert names == ["input", "encoder.0", "encoder.1", "encoder.2", "encoder"]
    assert all("does not reach the score" in model.left_out((SIDE, SIDE))[name] for name in ("decoder", "mask"))
    maps = gl.explain(model, torch.rand(1, 3, SIDE, SIDE), layers="all")
    assert list(maps.layers) == names
    default = gl.explain(model, torch.rand(1, 3, SIDE, SIDE))
    assert all(float(default[method, layer].abs().max()) > 0 for method, layer in default.pairs)


def test_the_output_that_is_named_is_judged() -> None:
    network = TwoHeads(lambda logits, mask: {"class": logits, "filled": mask.flatten(1)}).eval()
    by_name = {
        name: Classifier(network, gl.classifier(network, output="class").preprocess, name="two", output=name)
        for name in ("class", "filled")
    }
    assert "decoder" not in [layer.name for layer in by_name["class"].layers((SIDE, SIDE))]
    assert "decoder" in [layer.name for layer in by_name["filled"].layers((SIDE, SIDE))]


def test_unread_tokens_are_judged_by_the_logits() -> None:
    class Distilled(nn.Module):
        """The class token makes the logits; the last tokens of the image are only given out."""

        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.last, self.head = Tokens(), nn.Linear(8, 8), nn.Linear(8, 5)
            self.first = nn.Linear(8, 8)
            self.mix = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            grid = self.tokens.patch(pixels).flatten(2).transpose(1, 2)
            tokens = torch.cat([self.tokens.token.expand(len(pixels), -1, -1), grid], 1)
            tokens = self.first(tokens)
            tokens = self.last(tokens + self.mix(tokens, tokens, tokens, need_weights=False)[0])
            return self.head(tokens[:, 0]), tokens[:, 1:]

    model = gl.classifier(Distilled().eval())
    assert [layer.name for layer in model.layers((SIDE, SIDE))] == ["input", "tokens.patch", "first"]
    assert "is not read where it is spatial" in model.left_out((SIDE, SIDE))["last"]
