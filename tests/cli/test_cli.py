"""The command line: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

import gradlight as gl
from gradlight.cli.app import main
from gradlight.data import images
from gradlight.explainers.baselines import BASELINES
from gradlight.explainers.methods import METHODS

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)).save(path)
    return path


def test_help_answers_without_torch() -> None:
    code = "import sys, gradlight.cli.app as c; sys.argv = ['gradlight', '--help']\n"
    code += "try: c.main()\nfinally: print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True).stdout
    for name in (
        "demo",
        "explain",
        "caption",
        "convert",
        "layers",
        "models",
        "methods",
        "inspect",
        "evaluate",
        "train",
    ):
        assert f"  {name} " in shown
    assert shown.endswith("False\n")


@pytest.mark.parametrize(
    "command", ["demo", "explain", "caption", "convert", "layers", "models", "inspect", "evaluate", "train"]
)
def test_every_command_has_help(run, command: str) -> None:  # type: ignore[no-untyped-def]
    status, shown, _ = run(command, "--help")
    assert status == 0
    assert f"gradlight {command}" in shown


def test_alone_it_shows_its_help(run) -> None:  # type: ignore[no-untyped-def]
    status, shown, told = run()
    assert (status, told) == (0, "")
    assert "\n  explain " in shown


def test_version(run) -> None:  # type: ignore[no-untyped-def]
    assert run("--version")[:2] == (0, f"gradlight {gl.__version__}\n")


def test_explain_writes_maps_and_a_picture(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out, picture = tmp_path / "out.h5", tmp_path / "out.png"
    status, shown, told = run(
        "explain", photo, "-t", "star", "-t", "red", "--methods", "normgrad,linear_approx", "--layers", "stages",
        "--combine", "product:linear", "-o", out, "-o", picture,
    )  # fmt: skip
    assert (status, told) == (0, "")
    assert shown == f"wrote {out}\nwrote {picture}\n"
    with h5py.File(out) as file:
        assert file.attrs["format"] == "gradlight-maps"
        assert sorted(file["maps/normgrad"]) == ["layer1", "layer2", "layer3", "layer4", "product(linear)"]
        assert file["maps/linear_approx/layer4"].shape == (2, 10, 10)
        assert [label.decode() for label in file["targets/label"]] == ["star", "red"]
    assert picture.read_bytes().startswith(PNG)


def test_the_command_and_the_library_give_the_same_maps(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("explain", photo, "-t", "3", "--layers", "layer2,input", "--meta", "ascent:0.01", "-o", tmp_path / "out.h5")
    stored = gl.load(tmp_path / "out.h5")
    maps = gl.explain(gl.classifier("scenes"), photo, 3, layers=["layer2", "input"], meta=gl.Meta(0.01, "ascent"))
    assert stored.pairs == maps.pairs
    for key in maps.pairs:
        torch.testing.assert_close(stored[key], maps[key], rtol=0, atol=1e-5 * float(maps[key].abs().max()))


def test_a_checkpoint_and_a_label_of_its_own_library(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    weights = torchvision.models.resnet18().state_dict()
    torch.save(weights, tmp_path / "weights.pth")
    save_file(weights, tmp_path / "weights.safetensors")
    for name in ("weights.pth", "weights.safetensors"):
        status, _, told = run(
            "explain", photo, "-m", "torchvision/resnet18", "--checkpoint", tmp_path / name, "-t", "golden retriever",
            "-o", tmp_path / f"{name}.h5",
        )  # fmt: skip
        assert (status, told) == (0, "")
        assert gl.load(tmp_path / f"{name}.h5").targets[0][0].index == 207


def test_one_bad_photo_does_not_end_the_work(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(photo.read_bytes()[:300])
    status, _, told = run("explain", bad, photo, "-o", tmp_path / "out.h5")
    assert status == 1
    assert "bad.jpg" in told
    assert len(told.splitlines()) == 1
    with h5py.File(tmp_path / "out.h5") as file:
        assert [Path(path.decode()).name for path in file["failures/path"]] == ["bad.jpg"]
        assert len(file["images/path"]) == 1


@pytest.mark.parametrize("outputs", [["out.h5"], ["out.png", "out.h5"]])
def test_each_photo_is_decoded_once(  # type: ignore[no-untyped-def]
    run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outputs: list[str]
) -> None:
    photos = [tmp_path / name for name in ("bad.jpg", "turned.jpg", "plain.jpg")]
    photos[0].write_bytes(photo.read_bytes()[:300])
    photos[2].write_bytes(photo.read_bytes())
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(photo) as picture:
        picture.save(photos[1], exif=exif)
    decode, decoded = images.load, []

    def load(path: str) -> Image.Image:
        decoded.append(Path(path))
        return decode(path)

    monkeypatch.setattr(images, "load", load)
    arguments = [argument for name in outputs for argument in ("-o", tmp_path / name)]
    assert run("explain", *photos, "-t", "star", "--batch-size", 1, *arguments)[0] == 1
    assert decoded == photos
    monkeypatch.undo()
    stored, maps = gl.load(tmp_path / "out.h5"), gl.explain(gl.classifier("scenes"), photos[1:], "star", batch_size=1)
    assert list(stored.images) == list(maps.images)
    assert stored.images[0].view.orientation == 6
    for key in maps.pairs:
        assert torch.equal(stored[key], maps[key])


@pytest.mark.parametrize("capacity", [0, 160 * 160 * 3 * 4, 2 * 160 * 160 * 3 * 4])
def test_photos_beyond_the_memory_for_them_are_decoded_again(  # type: ignore[no-untyped-def]
    run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capacity: int
) -> None:
    monkeypatch.setattr("gradlight.cli.open_model._MAX_BYTES_HELD", capacity)
    other = tmp_path / "other.jpg"
    other.write_bytes(photo.read_bytes())
    assert run("explain", photo, other, "-t", "star", "-o", tmp_path / "out.h5", "-o", tmp_path / "out.png")[0] == 0
    assert [image.path for image in gl.load(tmp_path / "out.h5").images] == [str(photo), str(other)]
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)


def test_a_folder_of_photos(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "deep/B.JPG"):
        (tmp_path / name).write_bytes(photo.read_bytes())
    assert run("explain", tmp_path, "-o", tmp_path / "out.h5")[0] == 0
    assert [Path(image.path).name for image in gl.load(tmp_path / "out.h5").images] == ["a.jpg", "B.JPG"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "no-such.jpg", "-o", "out.h5"], "no-such.jpg"),
        (["explain", "PHOTO", "-o", "out.jpg"], "written as a picture"),
        (["explain", "PHOTO", "-o", "no/such/folder/out.h5"], "does not exist. Create it first"),
        (["explain", "PHOTO"], "--output"),
        (["explain", "PHOTO", "-o", "out.h5", "-t", "strar"], "'star'"),
        (["explain", "PHOTO", "-o", "out.h5", "--methods", "normgard"], "Did you mean 'normgrad'"),
        (["explain", "PHOTO", "-o", "out.h5", "--layers", "layer9"], "No layer is called 'layer9'"),
        (["explain", "PHOTO", "-o", "out.h5", "--combine", "mean:linear"], "by 'product' or 'sum', not 'mean'"),
        (["explain", "PHOTO", "-o", "out.h5", "--combine", "sum:lineer"], "Did you mean 'linear'"),
        (["explain", "PHOTO", "-o", "out.h5", "--meta", "quick"], "--meta must be LR"),
        (["explain", "PHOTO", "-o", "out.h5", "--meta", "up:0.1"], "'descent' or 'ascent'"),
        (["explain", "PHOTO", "-o", "out.h5", "-m", "resnet50"], "torchvision/resnet50"),
        (["explain", "PHOTO", "-o", "out.h5", "--batch-size", "0"], "--batch-size"),
        (["layers", "-m", "timm/resnet5000"], "resnet50"),
        (["models", "*resnet5x0*"], "No network matches"),
        (["train", "sceens"], "Did you mean 'scenes'"),
        (["inspect", "no-such.h5"], "no-such.h5"),
        (["explian"], "explian"),
    ],
)
def test_when_nothing_was_done_one_line_says_why(  # type: ignore[no-untyped-def]
    run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, shown, told = run(*(photo if argument == "PHOTO" else argument for argument in arguments))
    assert status == 2
    assert message in told
    assert len(told.splitlines()) == 1
    assert "Traceback" not in shown + told
    assert list(tmp_path.iterdir()) == []


def test_another_programs_file_is_refused_before_the_work(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    with h5py.File(tmp_path / "theirs.h5", "w") as file:
        file["data"] = [1, 2, 3]
    before = (tmp_path / "theirs.h5").read_bytes()
    status, _, told = run("explain", photo, "-m", "no/such/model", "-o", tmp_path / "theirs.h5")
    assert status == 2
    assert "not a gradlight file" in told
    assert (tmp_path / "theirs.h5").read_bytes() == before


def test_what_nobody_foresaw_is_one_line_too(run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    status, _, told = run("explain", photo, "-o", tmp_path / "out.png")
    assert (status, told.count("\n")) == (2, 1)
    assert "out.png: the picture cannot be written: No space left" in told
    monkeypatch.setattr("gradlight.cli.explain.explain", full)
    status, _, told = run("explain", photo, "-o", tmp_path / "out.png")
    assert (status, told.count("\n")) == (2, 1)
    assert "OSError" in told
    assert "--debug shows where" in told


def test_many_methods_and_layers_go_on_pages(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """Every panel is drawn on one page: those of one image where a page cannot hold all of its methods."""
    arguments = ["--layers", "all", "--methods", ",".join(["normgrad", "gradient", "bias+sum"]), "-t", "top5"]
    status, shown, _ = run("explain", photo, *arguments, "-o", tmp_path / "out.png")
    assert status == 0
    assert shown.count("wrote ") == len(list(tmp_path.glob("out*.png"))) > 1


def test_debug_shows_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["gradlight", "inspect", "no-such.h5", "--debug"])
    with pytest.raises(gl.GradlightError, match=r"no-such\.h5"):
        main()


def test_layers_models_and_methods_are_listed(run) -> None:  # type: ignore[no-untyped-def]
    status, shown, _ = run("layers", "--stages")
    assert status == 0
    assert [line.split()[1] for line in shown.splitlines()[1:]] == ["layer1", "layer2", "layer3", "layer4"]
    assert "timm/resnet50\n" in run("models", "*resnet50")[1]
    assert run("models")[1].splitlines()[0] == "scenes"
    shown = run("methods")[1]
    assert "selective_normgrad" in shown
    assert "conv3x3_depthwise" in shown
    assert "--long" in run("explain", "--help")[1]


def test_methods_with_formulas_and_references(run) -> None:  # type: ignore[no-untyped-def]
    status, shown, told = run("methods", "--long")
    lines = shown.splitlines()
    assert (status, told) == (0, "")
    assert lines[0].split() == ["method", "formula", "reference"]
    methods = {**METHODS, **BASELINES}
    assert [line.split()[0] for line in lines[1:]] == list(methods)
    for line, method in zip(lines[1:], methods.values(), strict=True):
        assert method.formula
        assert method.formula in line
        assert method.reference
        assert method.reference in line


def test_inspect_says_what_a_file_holds(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    run("explain", photo, "-o", tmp_path / "out.h5")
    status, shown, _ = run("inspect", tmp_path / "out.h5")
    assert status == 0
    assert "1 images, 1 targets, 0 failures" in shown
    assert "selective_normgrad" in shown
    status, shown, told = run("inspect", tmp_path / "out.h5", photo)
    assert status == 1
    assert "photo.jpg" in told


def test_labels_from_a_file(run, photo: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "names.json").write_text(json.dumps(["cat", "dog", "eel"]))
    (tmp_path / "names.txt").write_text("cat\ndog\neel\n")
    for name in ("names.json", "names.txt"):
        status, _, told = run(
            "explain", photo, "-m", "torchvision/resnet18", "--no-pretrained", "--labels", tmp_path / name, "-t", "eel",
            "-o", tmp_path / "out.h5",
        )  # fmt: skip
        assert (status, told) == (0, "")
        assert gl.load(tmp_path / "out.h5").targets[0][0].index == 2


@pytest.mark.slow
def test_the_whole_command_on_real_photos(shared: Path, tmp_path: Path) -> None:
    """ResNet50 from a state dict on disk, a named class, two methods, the product of the stages: maps and picture."""
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet50().state_dict(), tmp_path / "weights.pth")
    photos = sorted((shared / "photos").glob("*.jpg"))[:4]
    command = [sys.executable, "-m", "gradlight", "explain", *photos, "--model", "torchvision/resnet50"]
    command += ["--checkpoint", tmp_path / "weights.pth", "--target", "golden retriever"]
    command += ["--methods", "normgrad,linear_approx", "--layers", "stages", "--combine", "product:linear"]
    for name in ("out.h5", "out.png"):
        done = subprocess.run(
            [*command, "-o", tmp_path / name], capture_output=True, text=True, timeout=600, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
    maps = gl.load(tmp_path / "out.h5")
    assert maps.layers == ["layer1", "layer2", "layer3", "layer4", "product(linear)"]
    assert maps["normgrad", "product(linear)"].shape == (4, 1, 224, 224)
    assert {target.label for row in maps.targets for target in row} == {"golden retriever"}
    assert (tmp_path / "out.png").read_bytes().startswith(PNG)
