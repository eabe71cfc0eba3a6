"""Networks as they come in practice: the maps of the plain network, or one sentence that says why there are none."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from test_preserve import check, state
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils import checkpoint as checkpointing

import gradlight as gl

PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
METHODS = ["gradient", "grad_cam", "normgrad", "selective_normgrad", "real+norm"]
METAS = {"plain": None, "descent": gl.Meta(lr=0.05)}


class Net(nn.Module):
    """Convolutions, norms in the middle of their training, operations in place, a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.Conv2d(6, 8, 3, stride=2))
        self.head = nn.Linear(8, 5)
        nn.init.normal_(self.body[0].running_mean)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu_(self.body(self.stem(x))).mean((2, 3)))


def explained(
    network: nn.Module, pixels: Tensor = PIXELS, layers: Any = ("stem", "body.2"), meta: gl.Meta | None = None
) -> dict[tuple[str, int], Tensor]:
    """Give the maps by method and number of the layer, and see that the network is as it was."""
    before = state(network)
    maps = gl.explain(gl.classifier(network), pixels, 2, methods=METHODS, layers=list(layers), meta=meta)
    check(network, before)
    return {(method, at): maps[method, name] for method in maps.methods for at, name in enumerate(maps.layers)}


def assert_same(found: dict[Any, Tensor], wanted: dict[Any, Tensor], near: float = 1e-12) -> None:
    assert found.keys() == wanted.keys()
    for key, maps in wanted.items():
        assert bool(maps.any()), key
        assert float((found[key] - maps).abs().max()) <= near * float(maps.abs().max()), key


@pytest.fixture(params=METAS.values(), ids=METAS)
def meta(request: pytest.FixtureRequest) -> gl.Meta | None:
    found: gl.Meta | None = request.param
    return found


compiled: list[int] = []


def backend(graph: Any, examples: Any) -> Any:
    compiled.append(1)
    return graph.forward


def compiled_in_place() -> nn.Module:
    network = Net()
    network.compile(backend=backend)
    return network


def compiled_inside() -> nn.Module:
    network = Net()
    network.body = torch.compile(network.body, backend=backend)
    return network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "layers"),
    [
        (lambda: torch.compile(Net(), backend=backend), ["stem", "body.2"]),
        (compiled_in_place, ["stem", "body.2"]),
        (compiled_inside, ["stem", "body._orig_mod.2"]),
    ],
    ids=["around it", "in place", "inside"],
)
def test_compiled_networks_run_as_they_are_written(
    build: Callable[[], nn.Module], layers: list[str], meta: gl.Meta | None
):
    torch.compiler.reset()
    compiled.clear()
    network = build()
    assert_same(explained(network, layers=layers, meta=meta), explained(Net(), meta=meta))
    gl.classifier(network).predict(PIXELS)
    assert compiled == []
    network.eval().requires_grad_(False)(PIXELS)
    assert compiled, "nothing is compiled any more"


@pytest.fixture
def one_process(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_parallel_wrappers_are_taken_off(one_process: None, meta: gl.Meta | None):
    wanted = explained(Net(), meta=meta)
    for wrapped in (
        nn.DataParallel(Net()),
        nn.parallel.DistributedDataParallel(Net()),
        torch.optim.swa_utils.AveragedModel(Net()),
        torch.compile(nn.DataParallel(Net()), backend=backend),
    ):
        assert_same(explained(wrapped, meta=meta), wanted)
        assert type(gl.classifier(wrapped).network) is Net


@pytest.mark.parametrize(("dtype", "near"), [(torch.float16, 0.15), (torch.bfloat16, 0.2)])
def test_half_precision(dtype: torch.dtype, near: float, meta: gl.Meta | None):
    assert_same(explained(Net().to(dtype), PIXELS.to(dtype), meta=meta), explained(Net(), meta=meta), near)


def test_autocast_around_the_call(meta: gl.Meta | None):
    network = Net().float()
    with torch.autocast("cpu", torch.bfloat16):
        found = explained(network, PIXELS.float(), meta=meta)
        assert torch.is_autocast_cache_enabled()
    assert_same(found, explained(Net(), meta=meta), 0.2)


def test_the_step_is_taken_under_autocast_too():
    """Casts of the weights before the step would give the maps of the plain network."""
    with torch.autocast("cpu", torch.bfloat16):
        plain, moved = (explained(Net().float(), PIXELS.float(), meta=m) for m in (None, gl.Meta(lr=0.5)))
    wanted = explained(Net(), meta=gl.Meta(lr=0.5))
    for key in wanted:
        assert float((moved[key] - wanted[key]).norm()) < 0.3 * float((plain[key] - wanted[key]).norm()), key


def test_channels_last(meta: gl.Meta | None):
    network = Net().to(memory_format=torch.channels_last)
    strides = [p.stride() for p in network.parameters()]
    pixels = PIXELS.contiguous(memory_format=torch.channels_last)
    assert_same(explained(network, pixels, meta=meta), explained(Net(), meta=meta))
    assert [p.stride() for p in network.parameters()] == strides


DEVICES = [
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")),
    pytest.param("mps", marks=pytest.mark.skipif(not torch.backends.mps.is_available(), reason="no MPS device")),
]


@pytest.mark.parametrize("device", DEVICES)
def test_devices(device: str, meta: gl.Meta | None):
    network = Net().float().to(device)
    maps = explained(network, PIXELS.float(), meta=meta)
    assert {m.device.type for m in maps.values()} == {device}
    assert_same({key: m.cpu().double() for key, m in maps.items()}, explained(Net(), meta=meta), 1e-3)


@pytest.mark.skipif(torch.cuda.is_available() or torch.backends.mps.is_available(), reason="there is a device")
@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_here(device: str):
    with pytest.raises(gl.GradlightError, match=rf"cannot go to device '{device}': .* Here there are: cpu\."):
        gl.classifier(Net(), device=device)


def test_weights_without_values():
    with pytest.raises(gl.GradlightError, match="cannot go to device 'meta'"):
        gl.classifier(Net(), device="meta")
    with pytest.raises(gl.GradlightError, match=r"'stem' has its weights on the meta device.* Load them first"):
        gl.classifier(Net().to("meta"))


def test_lora(meta: gl.Meta | None):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = peft.LoraConfig(target_modules=["stem", "body.2", "head"], r=2, init_lora_weights=False)
    torch.manual_seed(1)
    network = peft.get_peft_model(Net(), config).double()
    layers = [f"base_model.model.{name}" for name in ("stem", "body.2")]
    virtual = METHODS[:-1]
    before = state(network)
    found = gl.explain(gl.classifier(network), PIXELS, 2, methods=virtual, layers=layers)
    moved = gl.explain(gl.classifier(network), PIXELS, 2, methods=virtual, layers=layers, meta=meta)
    check(network, before)
    with pytest.raises(gl.GradlightError, match=r"a Conv2d, without a weight.* Ask at .*stem\.base_layer'"):
        gl.explain(gl.classifier(network), PIXELS, 2, methods="real+norm", layers=layers[0])
    merged = copy.deepcopy(network).merge_and_unload()
    wanted = gl.explain(gl.classifier(merged), PIXELS, 2, methods=virtual, layers=["stem", "body.2"])
    for method in virtual:
        for layer, name in zip(layers, wanted.layers, strict=True):
            assert_same({0: found[method, layer]}, {0: wanted[method, name]}, 1e-9)
            assert (meta is None) == torch.equal(found[method, layer], moved[method, layer])


class Symmetric(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return (weight + weight.flip(3)) / 2


def parametrized(conv: nn.Conv2d) -> nn.Module:
    parametrize.register_parametrization(conv, "weight", Symmetric())
    return conv


NORMED: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "parametrize": parametrized,
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": nn.utils.weight_norm,
    "old spectral_norm": nn.utils.spectral_norm,
}


@pytest.fixture(params=NORMED)
def computed(request: pytest.FixtureRequest) -> Net:
    """A network whose weights are computed, in the middle of training, where that moves a spectral norm's vectors."""
    network = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        norm = NORMED[request.param]
        network.stem, network.body[2] = norm(network.stem), norm(network.body[2])
    network(PIXELS)
    return network


def test_computed_weights_are_those_of_eval_mode(computed: Net):
    held = [vars(module).get("weight") for module in computed.modules()]
    found = explained(computed)
    assert all(vars(module).get("weight") is was for module, was in zip(computed.modules(), held, strict=True))
    plain = Net()
    plain.body[0].load_state_dict(computed.body[0].state_dict())
    with torch.no_grad():
        computed.eval()(PIXELS)
        for name in ("stem", "body.2"):
            plain.get_submodule(name).weight.copy_(computed.get_submodule(name).weight)
    assert_same(found, explained(plain), 1e-9)


def test_the_step_moves_what_the_weights_are_computed_from(computed: Net):
    found = explained(computed, PIXELS[:1], meta=gl.Meta(lr=0.05))
    computed.eval()
    loss = F.cross_entropy(computed(PIXELS[:1]), torch.tensor([2]))
    gradients = torch.autograd.grad(loss, list(computed.parameters()))
    with torch.no_grad():
        for parameter, gradient in zip(computed.parameters(), gradients, strict=True):
            parameter -= 0.05 * gradient
    assert_same(found, explained(computed, PIXELS[:1]), 1e-9)


class Recomputed(nn.Module):
    """A network that keeps nothing of its middle for the backward pass."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.net, self.use_reentrant = Net(), use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.net.stem(x)
        x = checkpointing.checkpoint(self.net.body, x, use_reentrant=self.use_reentrant)
        return self.net.head(F.relu(x).mean((2, 3)))


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpointing_is_put_aside(use_reentrant: bool, meta: gl.Meta | None):
    network = Recomputed(use_reentrant).eval()
    assert_same(explained(network, layers=["net.stem", "net.body.2"], meta=meta), explained(Net(), meta=meta))
    runs: list[int] = []
    network.net.body[0].register_forward_hook(lambda *_: runs.append(1))
    network(PIXELS).sum().backward()
    assert len(runs) == 2, "checkpointing is back"
    assert checkpointing.CheckpointFunction.__module__ == "torch.utils.checkpoint"


def test_timms_checkpointing(meta: gl.Meta | None):
    torch.manual_seed(0)
    network = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=5)
    asked = {"target": 2, "methods": ["normgrad", "real+norm"], "layers": "blocks.1.mlp.fc1", "meta": meta}
    pixels = torch.randn(2, 3, 64, 64)
    plain = gl.explain(gl.classifier(network), pixels, **asked)
    network.set_grad_checkpointing()
    before = state(network)
    found = gl.explain(gl.classifier(network), pixels, **asked)
    check(network, before)
    for method in found.methods:
        assert_same({0: found[method, found.layers[0]]}, {0: plain[method, plain.layers[0]]}, 1e-6)


def test_frozen_backbones(meta: gl.Meta | None):
    network = Net()
    network.stem.requires_grad_(False)
    network.body.requires_grad_(False).eval()
    assert_same(explained(network, meta=meta), explained(Net(), meta=meta))


class Shared(nn.Module):
    """One convolution run twice, and known by two names; every activation functional and in place."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.again = self.conv
        self.head = nn.Linear(4, 5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.relu_(self.first(x)))
        x += 0.5
        x = self.again(F.relu_(x)).mul_(2).tanh_()
        return self.head(x.mean((2, 3)))


def test_shared_modules_are_layers_by_occurrence():
    """The contributions of both runs add up to the gradient of the one weight."""
    network = Shared()
    maps = explained(network, layers=["conv", "conv:1"])
    assert maps.keys() == {(method, at) for method in METHODS for at in (0, 1)}
    found = gl.explain(gl.classifier(network), PIXELS, 2, methods="real+sum", layers=["conv", "conv:1"])
    total = sum(found["real+sum", layer].sum((1, 2, 3)) for layer in found.layers)
    for image in range(2):
        (wanted,) = torch.autograd.grad(network(PIXELS[image : image + 1])[0, 2], network.conv.weight)
        assert torch.allclose(total[image], wanted.sum(), rtol=1e-9)


quantizing = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def with_stubs() -> nn.Sequential:
    from torch.ao.quantization import DeQuantStub, QuantStub

    return nn.Sequential(QuantStub(), Net().float(), DeQuantStub()).eval()


@quantizing
def test_stubs_and_observers_of_quantization(meta: gl.Meta | None):
    from torch.ao import quantization

    pixels = PIXELS.float()
    wanted = explained(Net().float().eval(), pixels, meta=meta)
    stubs = with_stubs()
    assert_same(explained(stubs, pixels, layers=["1.stem", "1.body.2"], meta=meta), wanted, 1e-5)
    stubs.qconfig = quantization.get_default_qconfig("fbgemm")
    observed = quantization.prepare(stubs)
    assert_same(explained(observed, pixels, layers=["1.stem", "1.body.2"], meta=meta), wanted, 1e-5)


@quantizing
def test_integer_arithmetic_is_refused():
    from torch.ao import quantization

    stubs = with_stubs()
    stubs.qconfig = quantization.default_qconfig
    observed = quantization.prepare(stubs)
    observed(PIXELS.float())
    with pytest.raises(gl.GradlightError, match=r"'0' is quantized \(Quantize\), and integer arithmetic"):
        gl.classifier(quantization.convert(observed))
    with pytest.raises(gl.GradlightError, match=r"'head' is quantized \(Linear\)"):
        gl.classifier(quantization.quantize_dynamic(Net().float(), {nn.Linear}))


class Compressed(nn.Module):
    """Integer weights that are floating-point numbers again before they are used, and a network that has no others."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randint(-9, 9, (6, 3, 3, 3), dtype=torch.int8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, 0.1 * self.kernel, padding=1)


def test_integer_weights():
    torch.manual_seed(0)
    compressed = Compressed()
    network, plain = Net(), Net()
    network.stem = compressed
    plain.stem.weight.data.copy_((0.1 * compressed.kernel).double())
    plain.stem.bias.data.zero_()
    asked = {"methods": METHODS[:-1], "layers": ["stem", "body.2"]}
    found, wanted = (gl.explain(gl.classifier(net.float()), PIXELS.float(), 2, **asked) for net in (network, plain))
    for method in METHODS[:-1]:
        for layer in found.layers:
            assert_same({0: found[method, layer]}, {0: wanted[method, layer]}, 1e-5)
    with pytest.raises(gl.GradlightError, match="a Compressed, without a weight"):
        gl.explain(gl.classifier(network), PIXELS.float(), 2, methods="real+norm", layers="stem")


def huggingface(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    if kind == "resnet":
        config = transformers.ResNetConfig(
            embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5
        )
        return transformers.ResNetForImageClassification(config).eval()
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, image_size=32, patch_size=8,
        num_labels=5,
    )  # fmt: skip
    return transformers.ViTForImageClassification(config).eval()


class Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(pixel_values=x).logits


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_huggingface_classifiers_as_modules(kind: str):
    network = huggingface(kind)
    pixels = PIXELS.float().repeat(1, 1, 3, 3)[..., :32, :32]
    before = state(network)
    model = gl.classifier(network, preprocess=lambda image: pixels[0])
    assert len(model.labels) == 5
    found = gl.explain(model, pixels, 2, methods=METHODS[:-1])
    check(network, before)
    plain = gl.explain(
        gl.classifier(Logits(network)), pixels, 2, methods=METHODS[:-1], layers=[f"network.{n}" for n in found.layers]
    )
    for method in found.methods:
        for layer in found.layers:
            assert_same({0: found[method, layer]}, {0: plain[method, f"network.{layer}"]}, 1e-6)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, image: Tensor, age: Tensor) -> Tensor:
        return self.net(image) * age


class AtAge(nn.Module):
    def __init__(self, network: nn.Module, age: Tensor) -> None:
        super().__init__()
        self.network, self.age = network, age

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network(pixels, self.age)


def test_networks_of_several_inputs_need_a_line():
    with pytest.raises(gl.GradlightError, match=r"its forward needs 'image', 'age'\. Give a module whose"):
        gl.classifier(TwoInputs())
    wrapped = AtAge(TwoInputs(), torch.ones(5))
    assert_same(explained(wrapped, layers=["network.net.stem", "network.net.body.2"]), explained(Net()))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_torchscript_is_refused():
    for script in (torch.jit.script(Net()), torch.jit.trace(Net().eval(), PIXELS)):
        with pytest.raises(gl.GradlightError, match="The network is TorchScript, where no hook reaches a layer"):
            gl.classifier(script)
        with pytest.raises(gl.GradlightError, match="Its module '0' is TorchScript"):
            gl.classifier(nn.Sequential(script))


def test_graph_modules(meta: gl.Meta | None):
    assert_same(explained(torch.fx.symbolic_trace(Net().eval()), meta=meta), explained(Net(), meta=meta))


@pytest.mark.slow
def test_exported_programs():
    program = torch.export.export(Net().eval(), (PIXELS,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with pytest.raises(gl.GradlightError, match=r"ExportedProgram is not .* give the network that was exported"):
        gl.classifier(program)
    asked = {"methods": METHODS[:-1], "layers": "input"}
    found, wanted = (gl.explain(gl.classifier(net), PIXELS, 2, **asked) for net in (program.module(), Net()))
    for method in found.methods:
        assert_same({0: found[method, "input"]}, {0: wanted[method, "input"]})


def test_lazy_modules_are_refused_until_they_have_run():
    network = nn.Sequential(nn.LazyConv2d(4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(5)).double()
    with pytest.raises(gl.GradlightError, match=r"Its module '0' is lazy and has no weights yet\. Run it"):
        gl.classifier(network)
    network(PIXELS)
    assert bool(gl.explain(gl.classifier(network), PIXELS, 2, layers="0")["selective_normgrad", "0"].any())
