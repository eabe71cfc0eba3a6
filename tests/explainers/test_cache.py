"""`explain(cache=…)`: what was found before comes back bit for bit, and only if nothing at all has changed."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import gradlight as gl
from gradlight.errors import GradlightError, GradlightWarning
from gradlight.explainers.aggregation import total
from gradlight.explainers.batch import BatchRunner
from gradlight.explainers.cache_store import Cache
from gradlight.explainers.maps import SaliencyMaps
from gradlight.explainers.methods import METHODS
from gradlight.models.classifiers import Classifier

ROOT = Path(__file__).resolve().parents[2]
METHODS_ASKED = ["gradient", "linear_approx", "grad_cam", "selective_normgrad", "normgrad"]


class Network(nn.Module):
    def __init__(self, act: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.norm, self.act, self.head = nn.BatchNorm2d(8), act or nn.ReLU(), nn.Linear(8, 7)
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.scale = 1.0

    def forward(self, pixels: Tensor) -> Tensor:
        found = self.act(self.norm(self.second(self.act(self.first(pixels)))))
        return self.head(found.mean((2, 3))) * self.scale + self.shift


def network(**options: Any) -> Network:
    torch.manual_seed(1)
    return Network(**options)


def model(**options: Any) -> Classifier:
    return gl.classifier(network(), **options)


PIXELS = torch.rand(5, 3, 16, 20, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many images went through the network each time that maps were made."""
    noted: list[int] = []
    run = BatchRunner.run

    def noting(self: BatchRunner, objective: Any, pixels: Tensor) -> Any:
        noted.append(len(pixels))
        return run(self, objective, pixels)

    monkeypatch.setattr(BatchRunner, "run", noting)
    return noted


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    values = np.random.default_rng(2).integers(0, 255, (50, 40, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "photo.jpg")
    return tmp_path / "photo.jpg"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def assert_same(found: SaliencyMaps, expected: SaliencyMaps) -> None:
    assert found.pairs == expected.pairs
    for method, layer in expected.pairs:
        rows, wanted = found.rows(method, layer), expected.rows(method, layer)
        assert (rows.dtype, rows.device) == (wanted.dtype, wanted.device)
        assert torch.equal(rows, wanted)
    assert list(found.targets) == list(expected.targets)
    assert list(found.images) == list(expected.images)
    assert (found.layer_info, found.size) == (expected.layer_info, expected.size)
    assert told(found) == told(expected)


def told(maps: SaliencyMaps) -> dict[str, Any]:
    """Give the origin, without the number of classes: a network that has never run does not know it."""
    origin = dataclasses.asdict(maps.origin)
    origin["model"].pop("num_classes", None)
    return origin


FORMS: dict[str, Callable[[Path], Any]] = {
    "a path": lambda path: path,
    "a path as text": str,
    "a picture": lambda path: Image.open(path).convert("RGB"),
    "an array": lambda path: np.asarray(Image.open(path)),
    "pixels": lambda _: PIXELS,
    "several": lambda path: [path, Image.open(path).rotate(90), np.asarray(Image.open(path))[::-1]],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["float", "double", "half"])
def test_a_hit_is_the_very_same(form: str, kind: str, photo: Path, folder: Path, runs: list[int]) -> None:
    if kind == "half" and form != "a path":
        pytest.skip("half precision once")
    made = gl.classifier(getattr(network(), kind)())
    options = {"methods": METHODS_ASKED, "layers": ["input", "first", "act"], "cache": folder}
    images = FORMS[form](photo)
    images = images.to(made.network.head.weight.dtype) if isinstance(images, Tensor) else images
    first = gl.explain(made, images, [["top", 3]], **options)
    assert sum(runs) == len(first)
    again = gl.explain(made, images, [["top", 3]], **options)
    assert_same(again, first)
    other = gl.classifier(getattr(network(), kind)())
    assert_same(gl.explain(other, images, [["top", 3]], **options), first)
    assert sum(runs) == len(first)


def test_without_a_cache_nothing_is_kept(photo: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cache, "__init__", None)
    for cache in (None, False):
        gl.explain(model(), photo, cache=cache)
    assert runs == [1, 1]
    monkeypatch.undo()
    with pytest.raises(GradlightError, match="cache=5 is no cache"):
        gl.explain(model(), photo, cache=5)


def test_the_users_own_cache(photo: Path, tmp_path: Path, runs: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradlight.explainers.cache_store.user_cache_path", lambda name, **_: tmp_path / "own" / name)
    for _ in range(2):
        gl.explain(model(), photo, cache=True)
    assert runs == [1]
    assert Cache(tmp_path / "own" / "gradlight" / "maps").info().entries == 1


def test_less_is_found_and_more_is_made_beside_what_there_is(folder: Path, runs: list[int]) -> None:
    first = gl.explain(model(), PIXELS, methods=METHODS_ASKED[:3], layers=["first", "act"], cache=folder)
    part = gl.explain(model(), PIXELS[3], methods=METHODS_ASKED[1], layers="act", cache=folder)
    assert runs == [5]
    assert torch.equal(part[METHODS_ASKED[1], "act"], first[METHODS_ASKED[1], "act"][3:4])
    more = gl.explain(model(), PIXELS, methods=METHODS_ASKED[2:], layers=["input", "act"], batch_size=2, cache=folder)
    assert runs == [5, 2, 2, 1]
    assert torch.equal(more["grad_cam", "act"], first["grad_cam", "act"])
    assert more.targets == first.targets
    again = gl.explain(model(), PIXELS, methods=METHODS_ASKED, layers="act", cache=folder)
    assert runs == [5, 2, 2, 1]
    assert torch.equal(again["gradient", "act"], first["gradient", "act"])
    assert torch.equal(again["normgrad", "act"], more["normgrad", "act"])


def test_of_a_batch_only_what_is_missing_is_made(folder: Path, runs: list[int]) -> None:
    targets = [[1], ["top"], [2], [3], [4]]
    gl.explain(model(), PIXELS[[0, 3]], [[1], [3]], cache=folder)
    whole = gl.explain(model(), PIXELS, targets, cache=folder)
    assert runs == [2, 2, 1]
    plain = gl.explain(model(), PIXELS, targets)
    assert [row[0].index for row in whole.targets] == [row[0].index for row in plain.targets]
    for key in plain.pairs:
        torch.testing.assert_close(whole[key], plain[key], rtol=0, atol=1e-5 * float(plain[key].abs().max()))
    assert_same(gl.explain(model(), PIXELS, targets, cache=folder, batch_size=3), whole)
    assert runs == [2, 2, 1, 5]


def stepped(net: Network) -> None:
    net(PIXELS).sum().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()


def in_inference(net: Network) -> None:
    with torch.inference_mode():
        net.head.weight[1, 0] += 1


NETWORKS: dict[str, Callable[[Network], Any]] = {
    "an optimizer's step": stepped,
    "a write through .data": lambda net: net.second.weight.data[1, 2, 0, 1].add_(0.01),
    "a write through NumPy": lambda net: net.first.weight.detach().numpy().fill(0.1),
    "a write under inference_mode": in_inference,
    "running statistics": lambda net: net.norm.running_mean.add_(0.1),
    "a buffer that is not saved": lambda net: net.shift.add_(0.1),
    "a number": lambda net: setattr(net, "scale", 2.0),
    "an activation": lambda net: setattr(net, "act", nn.GELU()),
    "a stride": lambda net: setattr(net.first, "stride", 2),
    "a hook": lambda net: net.first.register_forward_hook(lambda _m, _i, out: out * 2),
    "precision": lambda net: net.double(),
}


@pytest.mark.parametrize("fresh", [False, True], ids=["the same network", "a network made again"])
@pytest.mark.parametrize("change", NETWORKS)
def test_a_network_that_changed_is_explained_anew(change: str, fresh: bool, folder: Path, runs: list[int]) -> None:
    made = model()
    before = gl.explain(made, PIXELS, 1, cache=folder)
    made = model() if fresh else made
    NETWORKS[change](made.network)
    pixels = PIXELS.to(made.network.head.weight.dtype)
    found = gl.explain(made, pixels, 1, cache=folder)
    assert runs == [5, 5]
    assert_same(found, gl.explain(made, pixels, 1))
    assert [row[0].score for row in found.targets] != [row[0].score for row in before.targets]


SETTINGS: dict[str, dict[str, Any]] = {
    "another target": {"target": 2},
    "two targets": {"target": [[1, 2]]},
    "the top": {"target": None},
    "another method": {"methods": "normgrad"},
    "another layer": {"layers": "input"},
    "a meta step": {"meta": gl.Meta(0.01)},
    "pixels": {"images": PIXELS.flip(3)},
    "a single pixel": {"images": PIXELS + torch.eye(20)[:16] * 1e-6},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_another_question_is_answered_anew(setting: str, folder: Path, runs: list[int]) -> None:
    asked = {"images": PIXELS, "target": 1, "layers": "act"}
    gl.explain(model(), **asked, cache=folder)
    found = gl.explain(model(), **{**asked, **SETTINGS[setting]}, cache=folder)
    assert runs == [5, 5]
    assert_same(found, gl.explain(model(), **{**asked, **SETTINGS[setting]}))


def test_meta_steps_are_told_apart(folder: Path, runs: list[int]) -> None:
    steps = [gl.Meta(0.01), gl.Meta(0.02), gl.Meta(0.01, "ascent"), None]
    found = [gl.explain(model(), PIXELS, 1, meta=meta, cache=folder) for meta in steps]
    assert len(runs) == 4
    for meta, maps in zip(steps, found, strict=True):
        assert_same(gl.explain(model(), PIXELS, 1, meta=meta, cache=folder), maps)
    assert len(runs) == 4


@pytest.mark.parametrize("options", [{"multi_label": True}, {"labels": list("abcdefg")}, {"output": 0}])
def test_what_the_logits_mean_matters(options: dict[str, Any], folder: Path, runs: list[int]) -> None:
    class Pair(Network):
        def forward(self, pixels: Tensor) -> Any:
            return (super().forward(pixels), super().forward(pixels))

    torch.manual_seed(1)
    net = Pair()
    gl.explain(gl.classifier(net), PIXELS, 1, layers="act", cache=folder)
    found = gl.explain(gl.classifier(net, **options), PIXELS, 1, layers="act", cache=folder)
    assert runs == [5, 5]
    assert found.targets[0][0].label == ("b" if "labels" in options else "class_1")


def test_a_method_is_not_known_by_its_name_alone(folder: Path, runs: list[int]) -> None:
    own = gl.Method("bias", "sum", "normgrad")
    gl.explain(model(), PIXELS, 1, methods=METHODS["normgrad"], cache=folder)
    found = gl.explain(model(), PIXELS, 1, methods=own, cache=folder)
    assert runs == [5, 5]
    assert torch.equal(found["normgrad", "act"], gl.explain(model(), PIXELS, 1, methods="bias+sum")["bias+sum", "act"])
    factors = [2.0, 3.0]
    for factor in [*factors, *factors]:
        twice = gl.Method("bias", lambda found, by=factor: total(found) * by, "mine")
        gl.explain(model(), PIXELS, 1, methods=twice, cache=folder)
    assert runs == [5] * 5  # one of them without a cache


def test_a_photo_that_was_read_is_not_decoded_again(photo: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, read = model(), Classifier.read
    decoded: list[int] = []

    def reading(self: Classifier, images: Any) -> Any:
        decoded.append(len(images))
        return read(self, images)

    monkeypatch.setattr(Classifier, "read", reading)
    first = gl.explain(made, [photo], cache=folder)
    copy = photo.with_name("copy.jpg")
    copy.write_bytes(photo.read_bytes())
    again = gl.explain(made, [copy, photo], cache=folder)
    assert decoded == [1]
    assert [image.path for image in again.images] == [str(copy), str(photo)]
    assert again.images[1] == first.images[0]
    gl.explain(made, photo, cache=folder, layers="input")
    assert decoded == [1, 1]
    Image.new("RGB", (30, 60), "red").save(photo)
    changed = gl.explain(made, photo, cache=folder)
    assert decoded == [1, 1, 1]
    assert (changed.images[0].width, changed.images[0].height) == (30, 60)
    with pytest.raises(GradlightError, match=r"gone\.jpg"):
        gl.explain(made, photo.with_name("gone.jpg"), cache=folder)


def test_somebodys_own_preprocessing_is_run_every_time(photo: Path, folder: Path, runs: list[int]) -> None:
    seen: list[int] = []

    def steps(picture: Image.Image) -> Tensor:
        seen.append(1)
        return torch.from_numpy(np.asarray(picture.resize((16, 16)), dtype=np.float32)).movedim(-1, 0) / 255

    made = model(preprocess=steps)
    gl.explain(made, photo, cache=folder)
    before = len(seen)
    gl.explain(made, photo, cache=folder)
    assert len(seen) > before
    assert runs == [1]


@pytest.fixture(scope="module")
def captioner() -> Any:
    return gl.captioner("scenes")


SCENES = [np.full((160, 160, 3), level, np.uint8) for level in (40, 200)]


@pytest.mark.parametrize(
    "asked",
    [{}, {"words": True}, {"target": "a red star"}, {"target": "a [red star]"}, {"target": "a star", "words": True}],
)
def test_captions_and_their_words(asked: dict[str, Any], captioner: Any, folder: Path, runs: list[int]) -> None:
    for image in SCENES:
        first = gl.explain(captioner, image, **asked, cache=folder)
        before = len(runs)
        assert_same(gl.explain(captioner, image, **asked, cache=folder), first)
        assert len(runs) == before
        plain = gl.explain(captioner, image, **asked)
        assert [target.label for target in first.targets[0]] == [target.label for target in plain.targets[0]]
    other = {**asked, "target": "a blue star"}
    gl.explain(captioner, SCENES[0], **other, cache=folder)
    assert len(runs) == 5


def test_images_with_different_numbers_of_words(captioner: Any, folder: Path, runs: list[int]) -> None:
    targets = ["a red star", "a blue square above a star"]
    first = gl.explain(captioner, SCENES, targets, words=True, cache=folder)
    again = gl.explain(captioner, SCENES, targets, words=True, cache=folder)
    assert len(runs) == 1
    assert_same(again, first)
    assert [len(row) for row in again.targets] == [3, 6]


def test_a_damaged_entry_is_made_again(folder: Path, runs: list[int]) -> None:
    first = gl.explain(model(), PIXELS, 1, cache=folder)
    for number, path in enumerate(sorted(folder.glob("??/*.h5"))[:3]):
        content = path.read_bytes()
        path.write_bytes([content[:-1], b"", content[:600] + b"?" + content[601:]][number])
    with pytest.warns(GradlightWarning, match="damaged and was removed") as told:
        again = gl.explain(model(), PIXELS, 1, cache=folder)
    assert len(told) == 3
    assert sum(runs) == 5 + 3
    for key in first.pairs:
        torch.testing.assert_close(again[key], first[key], rtol=0, atol=1e-5 * float(first[key].abs().max()))
    assert_same(gl.explain(model(), PIXELS, 1, cache=folder), again)


def test_an_entry_that_lies_about_its_targets_is_made_again(folder: Path, runs: list[int]) -> None:
    first = gl.explain(model(), PIXELS[0], 1, cache=folder)
    (path,) = folder.glob("??/*.h5")
    cache, key = Cache(folder), path.parent.name + path.stem
    entry = cache.get(key)
    assert entry is not None
    for targets in ([], [[1, 2]], [["class", 1.5, "a", 0.0]], [["class", 1, "a", 0.0]] * 2, "no list", None):
        cache.put(key, entry.arrays, {"targets": targets})
        with pytest.warns(GradlightWarning, match="damaged and was removed"):
            assert_same(gl.explain(model(), PIXELS[0], 1, cache=folder), first)
    assert runs == [1] * 7


def test_a_folder_that_cannot_be_written_is_told_once(tmp_path: Path, runs: list[int]) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.warns(GradlightWarning, match="cannot be written") as told:
        found = gl.explain(model(), PIXELS, 1, batch_size=1, cache=tmp_path / "file")
    assert len(told) == 1
    assert len(runs) == 5
    assert_same(found, gl.explain(model(), PIXELS, 1, batch_size=1))


def test_a_network_that_cannot_be_described_goes_without(folder: Path, runs: list[int]) -> None:
    made = model()
    made.network.everything = [object() for _ in range(300_000)]
    for _ in range(2):
        with pytest.warns(GradlightWarning, match="The cache is not used: There is too much to describe"):
            gl.explain(made, PIXELS, 1, cache=folder)
    assert runs == [5, 5]


def test_a_cache_with_a_bound_of_its_own(folder: Path) -> None:
    cache = Cache(folder, max_bytes=40_000)
    for start in range(5):
        gl.explain(model(), PIXELS + start, 1, layers=["first", "act"], cache=cache)
        assert cache.info().bytes <= 40_000
    assert cache.info().entries > 0


def test_a_hit_leaves_the_network_as_it_was(folder: Path) -> None:
    made = model()
    made.network.train()
    gl.explain(made, PIXELS, 1, cache=folder)
    versions = [tensor._version for tensor in made.network.state_dict().values()]
    gl.explain(made, PIXELS, 1, cache=folder)
    assert [tensor._version for tensor in made.network.state_dict().values()] == versions
    assert all(module.training for module in made.network.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in made.network.parameters())


def test_autocast_is_another_arithmetic(folder: Path, runs: list[int]) -> None:
    gl.explain(model(), PIXELS, 1, cache=folder)
    with torch.autocast("cpu", torch.bfloat16):
        gl.explain(model(), PIXELS, 1, cache=folder)
    assert runs == [5, 5]


SCRIPT = """if True:
    import sys, hashlib, torch, numpy as np
    import gradlight as gl
    from gradlight.explainers.batch import BatchRunner
    runs, run = [], BatchRunner.run
    BatchRunner.run = lambda self, objective, pixels: runs.append(len(pixels)) or run(self, objective, pixels)
    images = [np.full((160, 160, 3), level, np.uint8) for level in (40, 200)]
    digest = hashlib.sha256()
    for model in (gl.classifier("scenes"), gl.captioner("scenes")):
        maps = gl.explain(model, images, methods=["normgrad", "conv3x3+max"], cache=sys.argv[1])
        for key in maps.pairs:
            digest.update(maps.rows(*key).numpy().tobytes())
        digest.update(repr([list(row) for row in maps.targets]).encode())
    print(len(runs), digest.hexdigest())
"""


@pytest.mark.slow
def test_another_process_finds_what_the_first_has_made(folder: Path) -> None:
    said = []
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", SCRIPT, folder], capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.split())
    assert [int(one[0]) for one in said] == [2, 0]
    assert said[0][1] == said[1][1]
