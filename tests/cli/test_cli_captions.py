"""The command line of captioners: what it prints, what it writes, how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import gradlight as gl

SAMPLES = Path(__file__).resolve().parents[2] / "data" / "bundled"
SCENE = SAMPLES / "scene_2.png"


def test_caption_says_a_sentence_of_each_photo_and_tells_of_bad_ones(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    status, shown, told = run("caption", SCENE, bad, SAMPLES / "scene_1.png")
    captions = gl.captioner("scenes").caption([SCENE, SAMPLES / "scene_1.png"])
    assert status == 1
    assert "bad.png" in told
    assert [line.partition(": ")[2].partition(" (")[0] for line in shown.splitlines()] == [c.text for c in captions]


def test_caption_as_json(run) -> None:  # type: ignore[no-untyped-def]
    status, shown, _ = run("caption", SCENE, "--json", "--beam-size", 1)
    record = json.loads(shown)
    (caption,) = gl.captioner("scenes").caption(SCENE, beam_size=1)
    assert status == 0
    assert record["caption"] == " ".join(record["words"]) == caption.text
    assert record["word_log_probs"] == pytest.approx(caption.word_log_probs)
    assert record["log_prob"] == pytest.approx(caption.log_prob)


def test_words_are_explained_photo_by_photo(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out.h5"
    status, shown, told = run(
        "explain", SCENE, SAMPLES / "scene_1.png", "--words", "--layers", "layer3.0,layer4",
        "--combine", "product:linear", "-o", out, "-o", tmp_path / "out.png",
    )  # fmt: skip
    assert (status, told) == (0, "")
    assert len(shown.splitlines()) == 4
    model = gl.captioner("scenes")
    for path, photo in ((out, SCENE), (tmp_path / "out-2.h5", SAMPLES / "scene_1.png")):
        maps = gl.load(path)
        assert [target.label for target in maps.targets[0]] == model.caption(photo)[0].words
        assert maps.layers == ["layer3.0", "layer4", "product(linear)"]
    assert (tmp_path / "out-2.png").stat().st_size > 10_000


def test_a_sentence_and_a_phrase_of_it(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    out = tmp_path / "out.h5"
    texts = ("-t", "a [white heart] and an orange star", "-t", "a white heart")
    status, _, told = run("explain", SCENE, "-m", "captioner/scenes", *texts, "-o", out)
    assert (status, told) == (0, "")
    assert [(t.kind, t.label) for t in gl.load(out).targets[0]] == [
        ("word", "white heart"),
        ("caption", "a white heart"),
    ]
    status, shown, told = run(
        "explain", SCENE, "-m", "captioner/scenes", "-t", "a white elephant", "-o", tmp_path / "no.h5"
    )
    assert (status, shown) == (2, "")
    assert "'elephant'" in told


def test_layers_of_a_captioner_are_its_encoders(run) -> None:  # type: ignore[no-untyped-def]
    status, shown, _ = run("layers", "-m", "captioner/scenes", "--stages")
    assert status == 0
    assert [line.split()[1] for line in shown.splitlines()[1:]] == ["layer1", "layer2", "layer3", "layer4"]


def test_convert_writes_what_captioner_reads(run, tmp_path: Path, shared: Path) -> None:  # type: ignore[no-untyped-def]
    status, shown, told = run("convert", shared / "oracles" / "captioning" / "fc_py2", tmp_path / "fc")
    assert (status, told) == (0, "")
    assert "ImageCaptioning.pytorch, fc, 60 words, without an encoder" in shown
    model = gl.captioner(tmp_path / "fc", encoder="torchvision/resnet101", pretrained=False)
    assert model.describe()["project"] == "ImageCaptioning.pytorch"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", SCENE, "-m", "nowhere"], "nowhere"),
        (["caption", SCENE, "--length-penalty", "long"], "length_penalty='long' is unknown"),
        (["explain", SCENE, "-m", "captioner/scenes", "--labels", "x.txt", "-o", "o.h5"], "are for classifiers"),
        (["explain", SCENE, "--encoder", "timm/resnet18", "-o", "o.h5"], "--encoder is for captioners"),
        (
            ["explain", SCENE, "-m", "captioner/scenes", "--layers", "decoder.core", "-o", "o.h5"],
            "is not spatial",
        ),
        (["convert", "nowhere", "out"], "nowhere"),
        (["evaluate", "word_pointin"], "Did you mean 'word_pointing'"),
        (["train", "captioner", "--captions", "c.json"], "go together"),
    ],
)
def test_what_cannot_be_done_is_one_line(run, arguments: list[object], message: str) -> None:  # type: ignore[no-untyped-def]
    status, shown, told = run(*arguments)
    assert (status, shown) == (2, "")
    assert message in told
    assert len(told.splitlines()) == 1


def test_experiments_print_their_tables(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    status, shown, _ = run("evaluate", "caption-truth", "--count", 20, "-o", tmp_path / "truth.json")
    assert status == 0
    assert "| scenes | true | BLEU-1 |" in shown
    assert json.loads((tmp_path / "truth.json").read_text())["figures"]["true"] >= 0.85
    status, shown, _ = run(
        "evaluate", "word_pointing", "--count", 6, "--methods", "normgrad", "-o", tmp_path / "hits.json"
    )
    hits = json.loads((tmp_path / "hits.json").read_text())["figures"]["hits"]
    assert status == 0
    assert "| product(linear) |" in shown
    assert hits["normgrad / layer4"]["near"] >= hits["normgrad / layer4"]["exact"]
    assert set(hits) >= {"baseline / centre", "baseline / random"}
