from __future__ import annotations

import io
import os
import pickle
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from gradlight.errors import GradlightError
from gradlight.models.checkpoints import load_checkpoint, read_state


def network(classes: int = 4, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, classes)
    )


def saved(content: Any, path: Path, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def nest(*keys: str) -> Callable[[dict[str, Any]], Any]:
    def wrap(state: dict[str, Any]) -> Any:
        content: Any = state
        for key in keys:
            content = {key: content, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
        return content

    return wrap


def prefix(text: str) -> Callable[[dict[str, Any]], Any]:
    return lambda state: {text + name: value for name, value in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        nest("state_dict"),
        nest("model"),
        nest("model_state_dict"),
        nest("state_dict_ema"),
        nest("state_dict", "model"),
        prefix("module."),
        prefix("_orig_mod."),
        prefix("model."),
        prefix("model.module."),
        prefix("_orig_mod.module."),
        lambda state: {"state_dict": prefix("model.")(state)},
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_the_usual_wrappings_are_taken_off(wrap: Callable[[Any], Any], zipped: bool, tmp_path: Path) -> None:
    source, target = network(), network(seed=1)
    path = saved(wrap(source.state_dict()), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    assert not equal(source, target)
    load_checkpoint(target, path)
    assert equal(source, target)


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
def test_safetensors_under_any_name(name: str, tmp_path: Path) -> None:
    source, target = network(), network(seed=1)
    safetensors.torch.save_file(source.state_dict(), tmp_path / name)
    load_checkpoint(target, str(tmp_path / name))
    assert equal(source, target)


def test_old_batch_normalisation_has_no_count(tmp_path: Path) -> None:
    source, target = network(), network(seed=1)
    state = {name: value for name, value in source.state_dict().items() if "num_batches" not in name}
    load_checkpoint(target, saved(state, tmp_path / "w.pth"))
    assert equal(source, target)


def test_a_prefix_of_the_networks_own_stays(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"model": network()}), nn.ModuleDict({"model": network(seed=1)})
    load_checkpoint(target, saved(source.state_dict(), tmp_path / "w.pth"))
    assert equal(source, target)


def test_ignored_beginnings(tmp_path: Path) -> None:
    source, target = network(), network(seed=1)
    path = saved({**source.state_dict(), "aux1.weight": torch.ones(2)}, tmp_path / "w.pth")
    with pytest.raises(GradlightError, match=r"1 not in the network: aux1.weight \[2\]"):
        load_checkpoint(target, path)
    load_checkpoint(target, path, ignore=["aux1."])
    assert equal(source, target)


def test_nothing_is_loaded_where_it_does_not_fit(tmp_path: Path) -> None:
    state = dict(network().state_dict())
    del state["0.bias"]
    state["extra"] = torch.zeros(2, 3)
    state["1.weight"] = torch.zeros(6)
    target, untouched = network(seed=1), network(seed=1)
    with pytest.raises(GradlightError, match="does not fit") as caught:
        load_checkpoint(target, saved(state, tmp_path / "w.pth"))
    message = str(caught.value)
    assert "1 missing from the file: 0.bias [5]" in message
    assert "1 not in the network: extra [2, 3]" in message
    assert "1 of another shape: 1.weight [6] in the file, [5] in the network" in message
    assert "this architecture" in message
    assert equal(target, untouched)


def test_long_lists_are_cut_at_eight(tmp_path: Path) -> None:
    path = saved({f"layer{i}": torch.zeros(1) for i in range(11)}, tmp_path / "w.pth")
    with pytest.raises(GradlightError, match=r"11 not in the network: .*layer7 .*, and 3 more"):
        load_checkpoint(network(), path)


def test_another_head_asks_for_labels(tmp_path: Path) -> None:
    path = saved(network(classes=37).state_dict(), tmp_path / "w.pth")
    with pytest.raises(GradlightError, match=r"Only the head differs: give labels= .* 37 classes"):
        load_checkpoint(network(), path)


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_is_never_executed(protocol: int, plain: bool, tmp_path: Path) -> None:
    content = {"state_dict": network().state_dict(), "more": Canary(tmp_path / "canary")}
    path = tmp_path / "w.pth"
    if plain:
        path.write_bytes(pickle.dumps(content, protocol=protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol)
    with pytest.raises(GradlightError, match=r"holds more than tensors.*not opened"):
        load_checkpoint(network(), path)
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("content", [{"args": types.SimpleNamespace(lr=1), "state_dict": {}}, nn.Linear(1, 1)])
def test_whole_objects_are_refused_with_the_way_out(content: Any, tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="keep only the weights"):
        read_state(saved(content, tmp_path / "w.pth"))


def damaged() -> dict[str, bytes]:
    new, old = io.BytesIO(), io.BytesIO()
    torch.save(network().state_dict(), new)
    torch.save(network().state_dict(), old, _use_new_zipfile_serialization=False)
    tensors = safetensors.torch.save(network().state_dict())
    return {
        "half.pth": new.getvalue()[: len(new.getvalue()) // 2],
        "old.pth": old.getvalue()[: len(old.getvalue()) // 2],
        "start.pth": old.getvalue()[:40],
        "half.safetensors": tensors[: len(tensors) // 2],
        "start.safetensors": tensors[:40],
        "noise.pth": bytes(range(255, 0, -1)) * 9,
        "noise.safetensors": bytes(range(255, 0, -1)) * 9,
        "text.pth": b"hello world",
    }


@pytest.mark.parametrize("name", sorted(damaged()))
def test_damaged_files_are_called_so(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(damaged()[name])
    with pytest.raises(GradlightError, match=rf"{name}: .*damaged or truncated"):
        read_state(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty file"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    ],
)
def test_what_was_saved_in_its_place_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(GradlightError, match=rf"w\.pth: .*{words}"):
        read_state(tmp_path / "w.pth")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"x")
    with pytest.raises(GradlightError, match=r"wieghts\.pth.*Did you mean 'weights\.pth'"):
        read_state(tmp_path / "wieghts.pth")
    with pytest.raises(GradlightError, match="no-folder"):
        read_state(tmp_path / "no-folder" / "w.pth")
    with pytest.raises(GradlightError, match="a directory"):
        read_state(tmp_path)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3), {"state_dict": {}}])
def test_a_file_without_a_state_dict(content: Any, tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="holds no state dict"):
        read_state(saved(content, tmp_path / "w.pth"))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "w.pt"))
    with pytest.raises(GradlightError, match="TorchScript program"):
        read_state(tmp_path / "w.pt")
