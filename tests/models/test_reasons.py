"""What used to be refused for a wrong reason: it works, or the reason is true and its advice works."""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn

import gradlight as gl

PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


class Norm(nn.Module):
    """A block with an argument before the tensor that is given by keyword, and one more behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, hidden_states: Tensor, scale: float = 1.0, mask: Tensor | None = None) -> Tensor:
        out = self.conv(input=hidden_states) * scale
        return out if mask is None else out * mask


class Called(nn.Module):
    """A network whose modules are called by position or by keyword."""

    def __init__(self, keyword: bool) -> None:
        super().__init__()
        self.keyword = keyword
        self.a, self.bn, self.block = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), Norm()
        self.scale, self.head = nn.GroupNorm(2, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(1, 1, 1, 1)
        if not self.keyword:
            x = self.block(self.bn(self.a(x).relu()), 2.0, mask)
            return self.head(self.scale(x).relu().mean((2, 3)))
        x = self.block(mask=mask, scale=2.0, hidden_states=self.bn(input=self.a(input=x).relu()))
        return self.head(input=self.scale(input=x).relu().mean((2, 3)))


@pytest.mark.parametrize("layer", ["a", "bn", "block.conv", "scale"])
def test_modules_called_by_keyword_have_real_maps(layer: str) -> None:
    torch.manual_seed(0)
    networks = [Called(False).eval(), Called(True).eval()]
    networks[1].load_state_dict(networks[0].state_dict())
    made = [gl.explain(gl.classifier(net), PIXELS, 1, methods="normgrad_real", layers=layer) for net in networks]
    assert torch.equal(*[maps["normgrad_real", layer] for maps in made])
    assert float(made[0]["normgrad_real", layer].max()) > 0
    stages = [[stage.name for stage in gl.classifier(net).stages((64, 64))] for net in networks]
    assert stages[0] == stages[1]


def test_cam_finds_a_head_that_is_called_by_keyword() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 1, 1)).eval()

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.head = network, nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(input=self.features(x).mean((2, 3)))

    model = gl.classifier(Pooled().eval())
    weights = model.network.head.weight[1].view(1, 8, 1, 1)
    expected = (weights * network(PIXELS)).sum(1).detach()
    torch.testing.assert_close(gl.explain(model, PIXELS, 1, methods="cam")["cam", "features"][:, 0], expected)


def retain(module: nn.Module, args: Any, output: Tensor) -> None:
    output.retain_grad()


def register(module: nn.Module, args: Any, output: Tensor) -> None:
    output.register_hook(lambda gradient: gradient)


def differentiate(module: nn.Module, args: Any, output: Tensor) -> None:
    torch.autograd.grad(output.sum(), args[0], retain_graph=True, allow_unused=True)


@pytest.mark.parametrize("hook", [retain, register])
@pytest.mark.parametrize("kind", ["normgrad_real", "selective_normgrad", "occlusion", "cam", "meta"])
def test_a_hook_that_needs_a_gradient_before_the_first_tap(hook: Callable[..., None], kind: str) -> None:
    torch.manual_seed(0)
    network = torchvision.models.resnet18(weights=None, num_classes=5).eval()
    options: dict[str, Any] = {"methods": "normgrad" if kind == "meta" else kind}
    options["meta"] = gl.Meta(lr=0.01) if kind == "meta" else None
    expected = gl.explain(gl.classifier(network), PIXELS[:1], **options)
    answers = gl.classifier(network).predict(PIXELS)
    handle = network.conv1.register_forward_hook(hook)
    model = gl.classifier(network)
    assert model.predict(PIXELS) == answers
    maps = gl.explain(model, PIXELS[:1], **options)
    handle.remove()
    for pair in expected.pairs:
        torch.testing.assert_close(maps[pair], expected[pair], rtol=1e-5, atol=1e-6 * float(expected[pair].max()))


def test_other_errors_of_a_network_are_raised_as_they_are() -> None:
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(8 * 3600, 5))
    model = gl.classifier(network.eval())
    model.layers((64, 64))
    network[1].register_forward_hook(differentiate)
    network[0].register_forward_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("my own")))
    with pytest.raises(RuntimeError, match="my own"):
        gl.explain(model, PIXELS)


# --- another default device


def small(channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(channels, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 5),
    ).eval()


METHODS = [
    ["normgrad", "normgrad_real", "grad_cam", "conv3x3+max", "cam"],
    "rise",
    "occlusion",
    "extremal_perturbation",
    "guided_backprop",
    "excitation_backprop",
    "lrp",
    "integrated_gradients",
    "smoothgrad",
    "lime",
]


@pytest.mark.parametrize("methods", METHODS)
@pytest.mark.parametrize("meta", [None, gl.Meta(lr=0.01)])
def test_another_default_device_changes_no_map(methods: Any, meta: gl.Meta | None) -> None:
    network = small()
    pixels = PIXELS[:, :, :32, :32] if methods in ("rise", "extremal_perturbation", "lime", "occlusion") else PIXELS
    expected = gl.explain(gl.classifier(network), pixels[:1], ["top2"], methods=methods, meta=meta)
    torch.set_default_device("meta")
    try:
        maps = gl.explain(gl.classifier(network), pixels[:1], ["top2"], methods=methods, meta=meta)
        same = {pair: torch.equal(maps[pair], expected[pair]) for pair in expected.pairs}
        if "grad_cam" in methods:
            maps.combine()
    finally:
        torch.set_default_device(None)
    assert all(same.values()), same


def test_another_default_device_changes_no_answer_and_no_file(tmp_path: Any) -> None:
    scenes, words = gl.classifier("scenes", device="cpu"), gl.captioner("scenes")
    photo = "scenes:7"

    def answers(path: Any) -> list[Any]:
        text = words.caption(photo)[0].text
        maps = gl.explain(words, [photo, "scenes:8"], text, words=True, layers="layer4")
        maps.save(path)
        with gl.load(path) as read:
            numbers = read["selective_normgrad", "layer4"].tolist()
        own = gl.explain(gl.classifier("scenes", device="cpu"), photo, methods="normgrad", cache=path.parent / "c")
        upsampled = own.upsampled("normgrad", "layer4").tolist()
        return [scenes.predict([photo]), text, numbers, upsampled, maps.images[0].view.box]

    expected = answers(tmp_path / "a.h5")
    torch.set_default_device("meta")
    try:
        got = answers(tmp_path / "b.h5")
    finally:
        torch.set_default_device(None)
    assert got == expected


# --- weights that are distributed over processes


def test_sharded_weights_are_explained_as_whole_ones_are(tmp_path: Any) -> None:
    distributed = pytest.importorskip("torch.distributed")
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    if not hasattr(fsdp, "fully_shard") or not distributed.is_gloo_available():
        pytest.skip("this torch has no FSDP2 on the CPU")
    whole, sharded = small(), small()
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        fsdp.fully_shard(sharded, mesh=distributed.device_mesh.init_device_mesh("cpu", (1,)))
        models = [gl.classifier(whole), gl.classifier(sharded)]
        assert models[0].weights_sha256() == models[1].weights_sha256()
        for methods in (["normgrad", "normgrad_real"], "occlusion"):
            maps = [gl.explain(model, PIXELS, 1, methods=methods) for model in models]
            for pair in maps[0].pairs:
                torch.testing.assert_close(maps[1][pair], maps[0][pair])
        for images in (PIXELS, PIXELS[:1]):
            with pytest.raises(gl.GradlightError, match=r"meta= needs whole weights, and '0.weight' is distributed"):
                gl.explain(models[1], images, 1, meta=gl.Meta())
    finally:
        distributed.destroy_process_group()


# --- features without a gradient, and networks without a spatial module


class Frozen(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "data":
            features = self.body(x).data
        elif self.how == "ignored":
            features = self.body(x).argmax(1, keepdim=True).expand(-1, 8, -1, -1).to(x.dtype)
        else:
            with torch.set_grad_enabled(self.how == "requires_grad"):
                features = self.body(x)
        return self.head(features.mean((2, 3)))


@pytest.mark.parametrize("how", ["data", "ignored", "set_grad_enabled"])
@pytest.mark.parametrize("layers", ["stages", "body.2"])
def test_features_without_a_gradient_are_told_and_the_advice_works(how: str, layers: str) -> None:
    torch.manual_seed(0)
    model = gl.classifier(Frozen(how).eval())
    with pytest.raises(
        gl.GradlightError, match=r"set requires_grad=False instead.* methods='occlusion', layers='input'"
    ):
        gl.explain(model, PIXELS[:1], 1, layers=layers)
    assert gl.explain(model, PIXELS[:1], 1, methods="occlusion", layers="input").layers == ["input"]
    frozen = Frozen("requires_grad").eval().requires_grad_(False)
    assert gl.explain(gl.classifier(frozen), PIXELS[:1], 1).layers


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(8, 3, 3, 3)), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(nn.functional.conv2d(x, self.weight).relu().mean((2, 3)))


NOT_SPATIAL = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 8), nn.ReLU(), nn.Linear(8, 5)),
    "functional": Functional,
    "pooled first": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5)),
}


@pytest.mark.parametrize("name", NOT_SPATIAL)
def test_a_network_without_a_spatial_module_is_explained_at_the_pixels(name: str) -> None:
    model = gl.classifier(NOT_SPATIAL[name]().eval())
    with pytest.raises(gl.GradlightError, match="Explain the pixels themselves with layers='input'"):
        gl.explain(model, PIXELS, 1)
    assert gl.explain(model, PIXELS, 1, layers="input")["selective_normgrad", "input"].shape == (2, 1, 64, 64)


# --- images as data sets hand them over


class Named(os.PathLike[str]):
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_streams_bytes_paths_and_rows_are_images(tmp_path: Path) -> None:
    picture = Image.effect_noise((80, 64), 60).convert("RGB")
    path = tmp_path / "a.png"
    picture.save(path)
    content = path.read_bytes()
    model = gl.classifier(small())
    expected = model.pixels(path)
    stream = io.BytesIO(content)
    stream.seek(7)
    kinds = [stream, content, bytearray(content), os.fsencode(path), Named(path), *os.scandir(tmp_path)]
    rows = [{"image": picture, "label": 1}, {"image": {"bytes": content, "path": None}}, {"path": str(path)}]
    with open(path, "rb") as file:
        for image in [*kinds, *rows, file, [file, {"img": picture}]]:
            pixels = model.pixels(image)
            assert torch.equal(pixels, expected.expand_as(pixels)), image
    assert stream.tell() == 7
    assert torch.equal(model.pixels({"pixel_values": expected}), expected)
    assert gl.explain(model, [stream, rows[0]], 1).images[0].width == 80


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (io.BytesIO(b"\0no picture"), "an image in memory: "),
        (io.StringIO("text"), "must be binary"),
        ({"text": 1}, "this one has the keys 'text'"),
        ([(Image.new("RGB", (8, 8)), 1)], "Take the image out of each row"),
    ],
)
def test_what_holds_no_image_is_told(image: Any, message: str) -> None:
    with pytest.raises(gl.GradlightError, match=message):
        gl.classifier(small()).pixels(image)


# --- files that are open elsewhere


@pytest.mark.parametrize("options", [{"locking": True}, {"locking": False}])
def test_a_file_that_is_open_elsewhere_is_not_called_damaged(tmp_path: Path, options: dict[str, Any]) -> None:
    maps = gl.explain(gl.classifier(small()), PIXELS, 1, layers="2")
    path = tmp_path / "m.h5"
    maps.save(path)
    with h5py.File(path, "r+", **options):
        with pytest.raises(gl.GradlightError, match="open for writing elsewhere"):
            gl.load(path)
        with pytest.raises(gl.GradlightError, match="open for writing elsewhere"):
            maps.save(path)
    gl.load(path).close()


def test_another_program_that_writes_is_named_and_a_foreign_file_is_replaced_on_demand(tmp_path: Path) -> None:
    maps = gl.explain(gl.classifier(small()), PIXELS, 1, layers="2")
    path, foreign = tmp_path / "m.h5", tmp_path / "notes.txt"
    maps.save(path)
    code = f"import h5py; f = h5py.File({str(path)!r}, 'r+', locking=True); print('open', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline()
        with pytest.raises(gl.GradlightError, match=r"open for writing elsewhere.*Close it there"):
            gl.load(path)
        other.communicate(b"\n")
    gl.load(path).close()
    foreign.write_text("mine")
    with pytest.raises(gl.GradlightError, match="pass overwrite=True"):
        maps.save(foreign)
    maps.save(foreign, overwrite=True)
    with gl.load(foreign) as read:
        assert torch.equal(read["selective_normgrad", "2"], maps["selective_normgrad", "2"])


# --- checkpoints as training loops write them


class Settings:
    """A class of the user's own: a file that holds it is not opened."""


STATE = small().state_dict()
FORMS: dict[str, Any] = {
    "numpy": {"state_dict": STATE, "best": np.float64(0.9), "epoch": np.int32(3), "seen": np.bool_(True)},
    "namespace": {"state_dict": STATE, "hyper_parameters": argparse.Namespace(lr=0.1, out=Path("/x"))},
    "net": {f"net.{name}": value for name, value in STATE.items()},
    "backbone in a wrapper": {f"module.backbone.{name}": value for name, value in STATE.items()},
}


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_training_loops_are_read(form: str, tmp_path: Path) -> None:
    torch.save(FORMS[form], tmp_path / "a.pth")
    network = small()
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    gl.classifier(network, checkpoint=tmp_path / "a.pth")
    assert all(torch.equal(value, STATE[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("extra", ["criterion.weight", "ema_decay", "loss_fn.pos_weight"])
def test_a_tensor_beside_the_network_is_told_and_left_out(extra: str, tmp_path: Path) -> None:
    torch.save({**{f"model.{name}": value for name, value in STATE.items()}, extra: torch.ones(5)}, tmp_path / "a.pth")
    network = small()
    with pytest.warns(gl.GradlightWarning, match=f"no part of the network: '{extra}'"):
        gl.classifier(network, checkpoint=tmp_path / "a.pth")
    assert torch.equal(network[0].weight, STATE["0.weight"])


@pytest.mark.parametrize("prefix", ["", "model.", "net."])
def test_a_file_of_a_larger_network_is_refused(prefix: str, tmp_path: Path) -> None:
    torch.save(
        {f"{prefix}{name}": value for name, value in {**STATE, "9.weight": torch.ones(2)}.items()}, tmp_path / "a"
    )
    with pytest.raises(gl.GradlightError, match=r"1 not in the network: 9\.weight"):
        gl.classifier(small(), checkpoint=tmp_path / "a")


def test_a_class_of_ones_own_is_never_made(tmp_path: Path) -> None:
    torch.save({"state_dict": STATE, "settings": Settings()}, tmp_path / "a.pth")
    with pytest.raises(gl.GradlightError, match="holds more than tensors"):
        gl.classifier(small(), checkpoint=tmp_path / "a.pth")
