"""Our own format: what is written is read again, and what is not whole is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from captioner_projects import V, att2in2_state, fc_state, infos, joint, show_tell_state, tutorial, written
from torch import nn

from gradlight.errors import GradlightError
from gradlight.models.captioner.checkpoints import Checkpoint, read_checkpoint
from gradlight.models.captioner.decoder import EndRule
from gradlight.models.captioner.format import read_folder, write_folder
from gradlight.models.preprocessing import Preprocessing


def same(one: Checkpoint, other: Checkpoint) -> bool:
    """Tell whether two captioners are equal, bit for bit."""
    plain = all(
        getattr(one, name) == getattr(other, name)
        for name in ("family", "project", "plan", "pooling", "preprocessing", "facts")
    )
    kept = all(getattr(one.decoder, name) == getattr(other.decoder, name) for name in ("max_length", "end_rule"))
    words = (
        one.vocabulary.words == other.vocabulary.words
        and one.vocabulary.special_tokens == other.vocabulary.special_tokens
    )
    states = [(one.decoder.state_dict(), other.decoder.state_dict()), (one.encoder_state, other.encoder_state)]
    return plain and kept and words and all(equal(a, b) for a, b in states)


def equal(one: Any, other: Any) -> bool:
    if one is None or other is None:
        return one is other
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["fc", "att2in2", "show_tell", "disc", "soft"])
def test_what_is_written_is_read(tmp_path: Path, family: str) -> None:
    states = {
        "fc": fc_state(),
        "att2in2": att2in2_state(norm=2),
        "show_tell": show_tell_state(),
        "disc": joint(fc_state(V + 2)),
    }
    name = "fc" if family == "disc" else family
    source = tutorial(tmp_path / "a") if family == "soft" else written(tmp_path / "a", states[family], infos(name))
    found = read_checkpoint(source)
    write_folder(tmp_path / "b", found)
    assert sorted(os.listdir(tmp_path / "b")) == ["captioner.json", "captioner.safetensors"]
    for path in ("", "captioner.json", "captioner.safetensors"):
        assert same(read_checkpoint(tmp_path / "b" / path), found)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_folder(tmp_path / "own", read_checkpoint(tutorial(tmp_path / "soft")))
    return tmp_path / "own"


def test_facts_are_kept(folder: Path) -> None:
    found = read_folder(folder)
    facts = {"name": "Möwe", "epochs": 3, "scores": [0.5, None]}
    write_folder(folder, found, facts)
    assert read_folder(folder).facts == facts
    write_folder(folder, found)
    assert read_folder(folder).facts == found.facts


def test_the_record_can_be_read_by_people(folder: Path) -> None:
    record = json.loads((folder / "captioner.json").read_text(encoding="utf-8"))
    assert (record["format"], record["format_version"]) == ("gradlight-captioner", 1)
    assert (record["family"], record["finishing"], record["max_length"]) == ("soft attention", "leaves", 51)
    assert record["vocabulary"]["words"]["6"] == "café"
    assert record["encoder"]["layers"] == [1, 1, 1, 1]
    assert record["preprocessing"]["size"] == [256, 256]
    assert "café" in (folder / "captioner.json").read_text(encoding="utf-8")


def test_weights_that_share_memory_can_be_written(folder: Path) -> None:
    found = read_folder(folder)
    found.decoder.get_parameter("init_h.bias").data = found.decoder.get_parameter("init_c.bias").data
    write_folder(folder, found)
    assert same(read_folder(folder), found)


def test_a_failed_write_leaves_what_was_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, before = read_folder(folder), {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(GradlightError, match=r"own: the captioner cannot be written there: .*No space left"):
        write_folder(folder, found, {"new": 1})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_cannot_be_written(folder: Path, tmp_path: Path) -> None:
    found = read_folder(folder)
    with pytest.raises(GradlightError, match=r"cannot be written there: .*Out of range float"):
        write_folder(folder, found, {"loss": float("nan")})
    with pytest.raises(GradlightError, match=r"cannot be written there: .*not JSON serializable"):
        write_folder(folder, found, {"loss": torch.ones(1)})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GradlightError, match=r"file: the captioner cannot be written there: .*File exists"):
        write_folder(tmp_path / "file", found)
    with pytest.raises(GradlightError, match="this captioner cannot be written"):
        write_folder(folder, replace(found, plan=None))
    found.decoder.end_rule = EndRule(3.0)
    with pytest.raises(GradlightError, match=r"this captioner cannot be written: EndRule\(penalty=3.0"):
        write_folder(folder, found)


Change = Callable[[dict[str, Any]], Any]


def put(*keys: str, value: Any) -> Change:
    def change(record: dict[str, Any]) -> None:
        inner = record
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("format", value="other"), "not a record of a captioner"),
        (put("format_version", value=2), "of format 2, and this gradlight reads 1: use a newer gradlight"),
        (put("format_version", value=True), "'format_version' is missing or no int"),
        (put("format_version", value=None), "'format_version' is missing or no int"),
        (put("family", value=3), "'family' is missing or no str"),
        (put("family", value="fd"), "The family 'fd' is unknown"),
        (put("family", value="fc"), "img_embed.weight|core.h2h.weight"),
        (put("project", value=None), "'project' is missing"),
        (put("vocabulary", value=[]), "'vocabulary' is missing or no dict"),
        (put("vocabulary", "words", value=["a"]), "not a vocabulary"),
        (put("vocabulary", "words", "400", value="zebra"), "has 13 words, and captioner.json numbers others"),
        (put("vocabulary", "end", value=400), "numbers others"),
        (put("vocabulary", "bos", value=-1), "numbers others"),
        (put("max_length", value=0), "max_length=0"),
        (put("max_length", value=10**9), "max_length=1000000000"),
        (put("finishing", value="never"), "finishing='never'"),
        (put("reading", value={"grid": 0, "boxes": False}), "how features are pooled"),
        (put("reading", value=None), "'reading' is missing"),
        (put("facts", value=[]), "'facts' is missing or no dict"),
        (put("encoder", value=None), "It holds decoder, encoder, which is not what captioner.json says"),
        (put("encoder", value={}), "not a record of a ResNet"),
        (put("encoder", "widths", value=[1, 2, 2, 8]), "do not fit together"),
        (put("encoder", "widths", value=[10**6] * 4), "do not fit together"),
        (put("encoder", "pool", value="no"), "No ResNet can be built"),
        (put("preprocessing", value={}), "not a record of a preprocessing"),
        (put("preprocessing", value=3), "not a record of a preprocessing"),
        (put("preprocessing", "fit", value="original"), "not a record of a preprocessing"),
        (put("preprocessing", "size", value=[224]), "not a record of a preprocessing"),
        (put("preprocessing", "size", value=[10**9, 3]), "not a record of a preprocessing"),
        (put("preprocessing", "std", value=[0, 0, 0]), "not a record of a preprocessing"),
        (put("preprocessing", "mean", value=["a", "b", "c"]), "not a record of a preprocessing"),
        (put("preprocessing", "fill", value=[0, 0, 300]), "not a record of a preprocessing"),
        (put("preprocessing", "interpolation", value="wild"), "not a record of a preprocessing"),
        (put("preprocessing", "interpolation", value=["a"]), "not a record of a preprocessing"),
    ],
)
def test_records_that_cannot_be(folder: Path, change: Change, message: str) -> None:
    record = json.loads((folder / "captioner.json").read_text())
    change(record)
    (folder / "captioner.json").write_text(json.dumps(record))
    with pytest.raises(GradlightError, match=rf"captioner\.(json|safetensors): .*({message})"):
        read_folder(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"a": ' * 100_000, b"1" * 10_000, b"<html>"]
)
def test_records_that_are_no_json(folder: Path, content: bytes) -> None:
    (folder / "captioner.json").write_bytes(content)
    with pytest.raises(GradlightError, match=r"captioner\.json: (not a JSON file, or damaged|no JSON object)"):
        read_folder(folder)


def test_a_record_without_end(folder: Path) -> None:
    with open(folder / "captioner.json", "wb") as stream:
        stream.truncate((64 << 20) + 1)
    with pytest.raises(GradlightError, match=r"captioner\.json: too large"):
        read_folder(folder)


def test_missing_pieces(folder: Path, tmp_path: Path) -> None:
    (folder / "captioner.safetensors").rename(tmp_path / "elsewhere")
    with pytest.raises(GradlightError, match=r"captioner\.safetensors: cannot be opened: No such file"):
        read_folder(folder)
    (tmp_path / "elsewhere").rename(folder / "captioner.safetensors")
    (folder / "captioner.json").unlink()
    with pytest.raises(GradlightError, match=r"captioner\.json: cannot be opened: No such file"):
        read_checkpoint(folder / "captioner.safetensors")


def test_damaged_weights(folder: Path) -> None:
    path = folder / "captioner.safetensors"
    good = path.read_bytes()
    for content in (good[:40], good[: len(good) // 2], good[:-1], b"\xff" * 99, b""):
        path.write_bytes(content)
        with pytest.raises(GradlightError, match=r"captioner\.safetensors: .*(damaged|empty file)"):
            read_folder(folder)


@pytest.mark.parametrize("name", ["decoder.init_h.bias", "encoder.conv1.weight"])
def test_weights_that_are_missing_or_of_another_shape(folder: Path, name: str) -> None:
    path = folder / "captioner.safetensors"
    state = safetensors.torch.load_file(path)
    tensor = state.pop(name)
    for bad in (state, {**state, name: torch.ones(2)}, {**state, name: tensor, "decoder.more": tensor.clone()}):
        safetensors.torch.save_file(bad, path)
        with pytest.raises(GradlightError, match=r"captioner\.safetensors: .*(missing|do not fit together)"):
            read_folder(folder)
    safetensors.torch.save_file({**state, name: tensor}, path)
    assert read_folder(folder).family == "soft attention"


def test_a_captioner_at_the_photos_own_size(tmp_path: Path) -> None:
    found = read_checkpoint(written(tmp_path / "a", fc_state(), infos("fc")))
    assert found.preprocessing is None
    write_folder(tmp_path / "b", replace(found, preprocessing=Preprocessing(interpolation="bicubic", fit="longer")))
    again = read_folder(tmp_path / "b")
    assert again.preprocessing == Preprocessing(interpolation="bicubic", fit="longer")
    assert again.encoder_state is None
    assert isinstance(again.decoder, nn.Module)
