"""Layers of unlike families: in whatever order a network lays its grid, a map's place is the place in the image.

Truth from outside: what a network computes of each patch alone changes only where the pixels of that patch change.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models.deit import VisionTransformerDistilled
from timm.models.hiera import Hiera
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import gradlight as gl
from gradlight.models.layers.discovery import Discovery, Layer, discover

HEIGHT, WIDTH, PATCH, ROWS, COLUMNS, WINDOW = 32, 48, 4, 8, 12, 4


def found_in(network: nn.Module, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Layer]:
    found = discover(network.eval(), torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0)))
    return {layer.name: layer for layer in found.layers}


def names(layers: list[Layer]) -> list[str]:
    return [layer.name for layer in layers]


def output_of(network: nn.Module, name: str, pixels: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = network.get_submodule(name).register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        network(pixels)
    handle.remove()
    return seen[0]


def changed_at(network: nn.Module, layer: Layer, top: int, left: int, side: int, size: tuple[int, int]) -> Tensor:
    """Tell at which locations [h,w] of a layer's map anything changes with a square of the second image's pixels."""
    pixels = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(1))
    other = pixels.clone()
    other[1, :, top : top + side, left : left + side] += 1
    maps = [layer.layout(output_of(network.eval(), layer.name, images)) for images in (pixels, other)]
    assert maps[0].shape == (2, layer.channels, *layer.size)
    away = (maps[0] - maps[1]).abs().amax(1)
    assert not away[0].any(), "the first image is as it was"
    return away[1] > 0


class Patches(nn.Module):
    """Patches, then `arrange` their grid [B,h,w,C] in memory, then two linear layers on the last dimension."""

    def __init__(self, arrange: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, PATCH, PATCH)
        self.arrange = arrange
        self.mlp = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mlp(self.arrange(self.patches(x).permute(0, 2, 3, 1)))
        return self.head(x.flatten(1, -2).mean(1))


def windows(x: Tensor) -> Tensor:
    """Give [B·windows, WINDOW², C], as windowed attention has it."""
    b, h, w, c = x.shape
    x = x.view(b, h // WINDOW, WINDOW, w // WINDOW, WINDOW, c).transpose(2, 3)
    return x.reshape(-1, WINDOW * WINDOW, c)


def whole(x: Tensor) -> Tensor:
    """Undo `windows`."""
    x = x.view(-1, ROWS // WINDOW, COLUMNS // WINDOW, WINDOW, WINDOW, x.shape[-1]).transpose(2, 3)
    return x.reshape(-1, ROWS, COLUMNS, x.shape[-1])


def units(x: Tensor) -> Tensor:
    """Give tokens unit after unit of 2 × 2, as masked training orders them."""
    b, h, w, c = x.shape
    return x.view(b, h // 2, 2, w // 2, 2, c).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w, c)


def with_tokens(x: Tensor, before: int, after: int = 0) -> Tensor:
    learnt = torch.zeros(len(x), before + after, x.shape[-1])
    return torch.cat([learnt[:, :before], x.flatten(1, 2), learnt[:, before:]], 1)


ARRANGEMENTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels last": lambda x: x,
    "tokens": lambda x: x.flatten(1, 2),
    "one class token": lambda x: with_tokens(x, 1),
    "a class token, a distillation token and eleven registers": lambda x: with_tokens(x, 13),
    "registers behind the image": lambda x: with_tokens(x, 1, 4),
    "shifted windows, back again": lambda x: whole(windows(x.roll((-2, -2), (1, 2)))).roll((2, 2), (1, 2)),
    "mask units": units,
    "column by column": lambda x: x.transpose(1, 2).flatten(1, 2),
    "padded below and to the right": lambda x: F.pad(x, (0, 0, 0, 2, 0, 3)),
    "unfolded and folded": lambda x: F.fold(
        F.unfold(x.movedim(3, 1), 2, stride=2), (ROWS, COLUMNS), 2, stride=2
    ).movedim(1, 3),
    "space to depth and back": lambda x: F.pixel_shuffle(F.pixel_unshuffle(x.movedim(3, 1), 2), 2).movedim(1, 3),
}


@pytest.mark.parametrize("name", ARRANGEMENTS)
def test_a_place_of_the_map_is_the_place_in_the_image(name: str):
    torch.manual_seed(0)
    network = Patches(ARRANGEMENTS[name])
    layers = found_in(network)
    for layer in ("mlp.0", "mlp.2", "mlp"):
        assert layers[layer].size == (ROWS, COLUMNS)
        assert layers[layer].stride == (PATCH, PATCH)
        changed = changed_at(network, layers[layer], 5 * PATCH, 9 * PATCH, PATCH, (HEIGHT, WIDTH))
        assert changed.nonzero().tolist() == [[5, 9]]


def test_windows_are_no_layer_until_the_grid_is_whole():
    network = Patches(windows)
    assert set(found_in(network)) == {"input", "patches"}
    with pytest.raises(gl.GradlightError, match=r"'mlp.0' is not spatial: \[6, 16, 8\] is no grid.* is 'patches'"):
        gl.explain(gl.classifier(network), torch.randn(1, 3, HEIGHT, WIDTH), 0, layers="mlp.0")


class Mixer(nn.Module):
    """One block of an MLP-Mixer: over the tokens, which lie last then, and over the channels."""

    def __init__(self) -> None:
        super().__init__()
        count = ROWS * COLUMNS
        self.patches = nn.Conv2d(3, 6, PATCH, PATCH)
        self.turned = nn.Identity()
        self.narrow, self.wide = nn.Linear(count, 5), nn.Linear(5, count)
        self.mixed, self.mlp, self.head = nn.GELU(), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = x + self.wide(self.narrow(self.turned(x * 2)))
        return self.head(self.mlp(self.mixed(x).mT).mean(1))


def test_tokens_that_are_mixed_are_no_places_and_those_they_are_added_to_are():
    layers = found_in(Mixer())
    assert set(layers) == {"input", "patches", "turned", "mixed", "mlp"}
    assert {layer.size for layer in layers.values()} == {(HEIGHT, WIDTH), (ROWS, COLUMNS)}
    assert (layers["turned"].channels, layers["mlp"].channels) == (6, 6)
    raw = torch.randn(2, 6, ROWS * COLUMNS)
    assert torch.equal(layers["turned"].layout(raw)[1, :, 3, 7], raw[1, :, 3 * COLUMNS + 7])


class Attention(nn.Module):
    """Attention written out, over the places or over the channels, without a residual path around it."""

    def __init__(self, over: str) -> None:
        super().__init__()
        self.over = over
        self.patches, self.qkv = nn.Conv2d(3, 6, PATCH, PATCH), nn.Linear(6, 18)
        self.matrix, self.out, self.head = nn.Softmax(-1), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.patches(x).flatten(2).mT).chunk(3, -1)
        if self.over == "places":
            x = self.matrix(q @ k.mT) @ v
        elif self.over == "channels":
            x = (self.matrix(q.mT @ k) @ v.mT).mT
        else:
            x = q @ self.matrix(k.mT @ v)
        return self.head(self.out(x).mean(1))


@pytest.mark.parametrize("over", ["places", "channels", "kernel"])
def test_attention_lies_where_its_queries_or_its_values_do(over: str):
    layers = found_in(Attention(over))
    assert (layers["out"].channels, layers["out"].size) == (6, (ROWS, COLUMNS))
    assert "matrix" not in layers or over == "places"
    raw = torch.randn(1, ROWS * COLUMNS, 6)
    assert torch.equal(layers["out"].layout(raw)[0, :, 3, 7], raw[0, 3 * COLUMNS + 7])


def vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": (HEIGHT, WIDTH), "patch_size": 8, "embed_dim": 12, "depth": 8, "num_heads": 2}
    return VisionTransformer(**{**sizes, "num_classes": 5, **options})


def ladder(network: nn.Module) -> Discovery:
    return discover(network.eval(), torch.randn(1, 3, HEIGHT, WIDTH))


@pytest.mark.parametrize(
    ("options", "start", "last"),
    [
        ({}, 1, "blocks.6"),
        ({"reg_tokens": 5}, 6, "blocks.6"),
        ({"class_token": False, "global_pool": "avg"}, 0, "blocks"),
        ({"class_token": False, "global_pool": "avg", "fc_norm": False}, 0, "norm"),
        ({"global_pool": "avg"}, 1, "blocks"),
        ({"class_token": False, "global_pool": "map"}, 0, "attn_pool.kv"),
    ],
)
def test_a_ladder_of_quarters(options: dict[str, object], start: int, last: str):
    """The last is the deepest whose places the score reads: under a class token not what the last block makes."""
    network = vit(**options)
    stages = ladder(network).stages
    read = 7 if last == "blocks.6" else 8
    assert names(stages) == [f"blocks.{-(-read * quarter // 4) - 1}" for quarter in (1, 2, 3)] + [last]
    for stage in stages:
        assert (stage.size, stage.layout.start) == ((4, 6), start)
    changed = changed_at(network, found_in(network)["blocks.0.norm1"], 8, 32, 8, (HEIGHT, WIDTH))
    assert changed.nonzero().tolist() == [[1, 4]]


def test_a_distillation_token():
    torch.manual_seed(0)
    network = VisionTransformerDistilled(
        img_size=(HEIGHT, WIDTH), patch_size=8, embed_dim=12, depth=4, num_heads=2, num_classes=5
    )
    nn.init.normal_(network.head.weight)
    nn.init.normal_(network.head_dist.weight)
    found = ladder(network)
    assert names(found.stages) == ["blocks.2"]
    assert found.stages[0].layout.start == 2


def test_a_layer_whose_gradient_is_zero_names_the_one_to_use():
    model, pixels = gl.classifier(vit()), torch.randn(1, 3, HEIGHT, WIDTH)
    for unread in ("blocks.7", "norm", "blocks"):
        with pytest.raises(gl.GradlightError, match=f"'{unread}' is not read.*exactly zero.*deepest.*'blocks.6'"):
            gl.explain(model, pixels, 0, layers=unread)
    maps = gl.explain(model, pixels, 0, layers="blocks.6")
    assert maps["selective_normgrad", "blocks.6"].std() > 0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("head", r"'head' is not spatial: \[1, 5\] is no grid of locations in the image"),
        (
            "blocks.0.drop_path1",
            "'blocks.0.drop_path1' is that of 'blocks.0.attn.proj', passed on unchanged.*is 'blocks.0.attn'",
        ),
        ("unused", "'unused' did not run by this name"),
        ("made_of_weights", "'made_of_weights' has no gradient"),
        ("blocks.0:1", "'blocks.0' runs 1 times, so the last is 'blocks.0'"),
    ],
)
def test_why_a_module_is_no_layer(asked: str, message: str):
    network = vit()
    network.unused = nn.Conv2d(3, 3, 1)
    network.made_of_weights = nn.Conv2d(3, 3, 1)

    def run_it(module: nn.Module, args: object) -> None:
        network.made_of_weights(torch.ones(1, 3, 4, 6))

    network.register_forward_pre_hook(run_it)
    with pytest.raises(gl.GradlightError, match=message):
        gl.explain(gl.classifier(network), torch.randn(1, 3, HEIGHT, WIDTH), 0, layers=asked)


def test_windows_and_merged_patches():
    torch.manual_seed(0)
    network = SwinTransformer(
        img_size=(HEIGHT, WIDTH),
        patch_size=2,
        embed_dim=8,
        depths=(2, 2),
        num_heads=(2, 2),
        window_size=4,
        num_classes=5,
    )
    found = ladder(network)
    assert [(stage.name, stage.size) for stage in found.stages] == [("layers.0", (16, 24)), ("norm", (8, 12))]
    inside = [name for name in names(found.layers) if ".attn." in name]
    assert not inside, "the windows of attention are not the grid"
    layers = {layer.name: layer for layer in found.layers}
    merged = changed_at(network, layers["layers.0.blocks.0"], 8, 16, 8, (HEIGHT, WIDTH))
    assert merged.nonzero().amin(0).tolist() == [4, 8], "the first block looks no further than its windows"
    assert merged.nonzero().amax(0).tolist() == [7, 11]


def test_mask_units_that_grow():
    """Hiera keeps its tokens unit after unit, and pools the query of each: never row by row until the end."""
    torch.manual_seed(0)
    network = Hiera(
        img_size=(64, 96), embed_dim=8, num_heads=1, stages=(1, 1, 2), q_pool=2, mask_unit_size=(4, 4), num_classes=5,
        mask_unit_attn=(True, True, False), sep_pos_embed=False,
    )  # fmt: skip
    found = discover(network.eval(), torch.randn(1, 3, 64, 96))
    assert [stage.size for stage in found.stages] == [(16, 24), (8, 12), (4, 6)]
    first = next(layer for layer in found.layers if layer.name == "blocks.0")
    assert first.layout.order is not None
    changed = changed_at(network, first, 36, 52, 4, (64, 96))
    assert changed.nonzero().amin(0).tolist() == [8, 12], "its unit of 4 × 4 places"
    assert changed.nonzero().amax(0).tolist() == [11, 15]


class TwoResolutions(nn.Sequential):
    """All stages in one container, which takes the first resolution in and gives the second one out."""

    def __init__(self) -> None:
        def stage(width: int, stride: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(4, width, 3, stride, 1), nn.Conv2d(width, 4, 1), nn.Conv2d(4, 4, 1))

        super().__init__()
        self.stem, self.stages = nn.Conv2d(3, 4, 2, 2), nn.Sequential(stage(6, 1), stage(6, 2))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


def test_a_container_of_two_stages_is_no_seam():
    assert names(discover(TwoResolutions(), torch.randn(1, 3, 32, 32)).stages) == ["stages.0", "stages"]


class Cells(nn.Module):
    """Cells that read the last two, as of searched networks: everything passes a resolution, but no place of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.cells = nn.ModuleList(nn.Sequential(nn.Conv2d(8, 4, 3, padding=1), nn.ReLU()) for _ in range(6))
        self.last, self.head = nn.ReLU(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        before = x = self.stem(x)
        for number, cell in enumerate(self.cells):
            if number == 3:
                before, x = F.avg_pool2d(before, 2), F.avg_pool2d(x, 2)
            before, x = x, cell(torch.cat([before, x], 1))
        return self.head(self.last(x).mean((2, 3)))


def test_cells_that_read_the_last_two_have_stages():
    assert names(discover(Cells(), torch.randn(1, 3, 32, 32)).stages) == ["cells.2", "last"]


class Pairs(nn.Module):
    """Blocks that hand on two tensors, so that no output of theirs is a place everything passes."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.mlp = nn.LayerNorm(6), nn.Linear(6, 6)

        def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            x, y = pair
            normed = self.norm(x)
            return x + self.mlp(normed) * normed, y

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.blocks = nn.Conv2d(3, 6, PATCH, PATCH), nn.Sequential(*(Pairs.Block() for _ in range(8)))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.blocks((self.patches(x).flatten(2).mT, x))
        return self.head(x.mean(1))


def test_blocks_of_two_tensors_have_a_ladder():
    found = ladder(Pairs())
    assert names(found.stages) == [f"blocks.{number}.norm" for number in (1, 3, 5, 7)]
    with pytest.raises(gl.GradlightError, match=r"'blocks.3' is a tuple, not one tensor.* is 'blocks.3.mlp'"):
        gl.explain(gl.classifier(Pairs()), torch.randn(1, 3, HEIGHT, WIDTH), 0, layers="blocks.3")


def test_sizes_that_are_no_multiple_of_the_patch():
    network = vit(dynamic_img_size=True, dynamic_img_pad=True)
    stages = discover(network.eval(), torch.randn(1, 3, 45, 29)).stages
    assert {stage.size for stage in stages} == {(6, 4)}
    assert {stage.stride for stage in stages} == {(7.5, 7.25)}


@pytest.mark.parametrize("size", [(64, 96), (71, 50)])
def test_strided_stages_of_a_tall_or_a_wide_image(size: tuple[int, int]):
    """Every layer's grid is the stage's own, and a changed square of pixels is seen where it lies."""
    torch.manual_seed(0)
    network = timm.create_model("test_convnext", pretrained=False).eval()
    for number, stage in enumerate(discover(network, torch.randn(1, 3, *size)).stages):
        changed = changed_at(network, stage, 32, 24, 4, size)
        assert changed[32 // 4 // 2**number, 24 // 4 // 2**number]


RESIZING: dict[str, tuple[nn.Module, tuple[int, int]]] = {
    "upsampling": (nn.Upsample(scale_factor=2), (16, 24)),
    "transposed convolution": (nn.ConvTranspose2d(6, 6, 2, 2), (16, 24)),
    "pixel shuffle": (nn.Sequential(nn.Conv2d(6, 24, 1), nn.PixelShuffle(2)), (16, 24)),
    "adaptive pooling": (nn.AdaptiveAvgPool2d((4, 6)), (4, 6)),
    "largest of a window": (nn.MaxPool2d(2, ceil_mode=True), (4, 6)),
    "dilated convolution": (nn.Conv2d(6, 6, 3, padding=2, dilation=2), (8, 12)),
    "padding of its own": (nn.Sequential(nn.ReflectionPad2d(1), nn.Conv2d(6, 6, 3, stride=2)), (4, 6)),
    "gated units": (nn.GLU(1), (8, 12)),
}


@pytest.mark.parametrize("name", RESIZING)
def test_grids_that_change_their_size(name: str):
    """The tokens of the new grid, column by column, are laid out as the image all the same."""

    class Resized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.resized = nn.Conv2d(3, 6, PATCH, PATCH), RESIZING[name][0]
            self.last = nn.Tanh()

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.resized(self.patches(x)).transpose(2, 3).flatten(2).mT).mean(1)

    torch.manual_seed(0)
    network = Resized()
    layer = found_in(network)["last"]
    assert layer.size == RESIZING[name][1]
    changed = changed_at(network, layer, 16, 32, PATCH, (HEIGHT, WIDTH))
    rows, columns = (int(at / stride) for at, stride in zip((17, 33), layer.stride, strict=True))
    assert changed[rows, columns]
    assert changed.sum() <= 9


class Recurrent(nn.Module):
    """Rows read by a recurrent layer, then attention as torch itself computes it, behind a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.rows = nn.Conv2d(3, 6, PATCH, PATCH), nn.LSTM(6, 4, batch_first=True, bidirectional=True)
        self.back, self.attended, self.head = nn.Linear(8, 6), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        x = self.back(self.rows(x.reshape(b * h, w, c))[0].reshape(b, h, w, 8))
        x = torch.cat([torch.zeros(b, 1, c), x.flatten(1, 2)], 1)
        return self.head(self.attended(F.scaled_dot_product_attention(x, x, x)).mean(1))


def test_recurrent_rows_and_attention():
    layers = found_in(Recurrent())
    assert layers["back"].size == layers["attended"].size == (ROWS, COLUMNS)
    raw = torch.randn(2, 1 + ROWS * COLUMNS, 6)
    assert torch.equal(layers["attended"].layout(raw)[1, :, 3, 7], raw[1, 1 + 3 * COLUMNS + 7])
    with pytest.raises(gl.GradlightError, match="A grid of 8 × 12 was expected among 97 tokens, but there are 96"):
        layers["attended"].layout(raw[:, 1:])
