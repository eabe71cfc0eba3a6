"""Training captioners: on photos with captions, on generated scenes, and the trainer that both share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import gradlight as gl
from gradlight.data.scenes.generator import COLOURS, HELD_OUT, Scene, draw
from gradlight.data.scenes.grammar import is_true
from gradlight.errors import GradlightError, GradlightWarning
from gradlight.models.captioner import coco_training, trainer
from gradlight.models.captioner.checkpoints import build_encoder
from gradlight.models.captioner.decoder import SpecialTokens
from gradlight.models.captioner.encoder import CaptionNetwork, ResNetPlan, build_resnet
from gradlight.models.captioner.rnn_decoders import FC
from gradlight.models.captioner.trainer import Progress, TrainingSettings, fit, mean_loss, prepare
from gradlight.models.scenes import captioner as scenes

STEPS = 3
TINY: dict[str, Any] = {"embed": 16, "size": 16, "attention": 16, "workers": 0, "rate": 2e-2}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums in one order, so that equal trainings are equal bit for bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the weights of a tiny ResNet."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("encoder") / "tiny.pth"
    torch.save(build_resnet(ResNetPlan("basic", (1, 1, 1, 1), (8, 8, 8, 8), 8)).state_dict(), path)
    return path


def write_photos(folder: Path, splits: list[str]) -> Path:
    """Write photos of one colour each, with two captions that name it; the captions file lies beside them."""
    images, annotations = [], []
    for number, split in enumerate(splits):
        colour = list(COLOURS)[number % 3]
        Image.new("RGB", (48, 40), COLOURS[colour]).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "split": split})
        annotations += [{"image_id": number, "caption": f"{start} {colour} wall."} for start in ("A", "The")]
    path = folder / "captions.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def network_of(seed: int = 0) -> CaptionNetwork:
    torch.manual_seed(seed)
    resnet = build_resnet(ResNetPlan("basic", (1,), (8,), 8))
    return CaptionNetwork(resnet, FC(SpecialTokens(0, 0), features=8, embed=8, size=8, rows=5, columns=5))


def batches(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Give noise, each epoch its own, whose brightness is the word to say."""
    random = torch.Generator().manual_seed(epoch)
    for _ in range(STEPS):
        words = torch.randint(1, 5, (6, 1), generator=random)
        yield torch.rand(6, 3, 32, 32, generator=random) + words[..., None, None], words


def weights(network: CaptionNetwork) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# The trainer


def stopped_after(epochs: int) -> Any:
    """Give the batches of a training that somebody stops in the middle of an epoch."""

    def until(epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        for number, batch in enumerate(batches(epoch)):
            if epoch == epochs and number == 1:
                raise KeyboardInterrupt
            yield batch

    return until


@pytest.mark.parametrize("encoder_rate", [0.0, 1e-3])
def test_a_stopped_training_goes_on_as_if_it_had_not_been(tmp_path: Path, encoder_rate: float) -> None:
    asked = TrainingSettings(epochs=4, encoder_rate=encoder_rate)
    whole = network_of()
    done = fit(whole, batches, STEPS, batches, asked, tmp_path / "whole.pt")
    with pytest.raises(KeyboardInterrupt):
        fit(network_of(), stopped_after(2), STEPS, batches, asked, tmp_path / "parts.pt")
    again = network_of(seed=7)
    assert fit(again, batches, STEPS, batches, asked, tmp_path / "parts.pt").losses == done.losses
    assert len(done.losses) == 4
    assert same(weights(whole), weights(again))


def test_a_training_that_is_over_only_gives_its_best_weights(tmp_path: Path) -> None:
    first, second = network_of(), network_of(seed=7)
    done = fit(first, batches, STEPS, batches, TrainingSettings(epochs=2), tmp_path / "t.pt")
    assert fit(second, stopped_after(0), STEPS, batches, TrainingSettings(epochs=2), tmp_path / "t.pt") == done
    assert same(weights(first), weights(second))


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    keep = tmp_path / "t.pt"
    fit(network_of(), batches, STEPS, batches, TrainingSettings(epochs=1), keep)
    with pytest.raises(GradlightError, match=r"begun with other settings \(rate was 0\.002 and is 0\.1\)"):
        fit(network_of(), batches, STEPS, batches, TrainingSettings(epochs=1, rate=0.1), keep)
    with pytest.raises(GradlightError, match=r"steps was 3 and is 2"):
        fit(network_of(), batches, STEPS - 1, batches, TrainingSettings(epochs=1), keep)
    other = CaptionNetwork(
        network_of().encoder, FC(SpecialTokens(0, 0), features=8, embed=8, size=8, rows=6, columns=6)
    )
    with pytest.raises(GradlightError, match="the state of another network's training"):
        fit(other, batches, STEPS, batches, TrainingSettings(epochs=1), keep)


def test_it_stops_early_with_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch is said to be the best; two that bring nothing end the training."""
    seen: list[dict[str, Tensor]] = []
    told = [3.0, 1.0, 2.0, 1.5, 0.5]

    def loss(network: CaptionNetwork, _: Any) -> float:
        seen.append(weights(network))
        return told[len(seen) - 1]

    monkeypatch.setattr(trainer, "mean_loss", loss)
    network = network_of()
    done = fit(network, batches, STEPS, batches, TrainingSettings(epochs=5, patience=2), tmp_path / "t.pt")
    assert done.losses == told[:4]
    assert done.best == 1
    assert same(weights(network), seen[1])
    assert not same(seen[1], seen[3])


def test_a_frozen_encoder_stays_as_it_was(tmp_path: Path) -> None:
    network = network_of()
    before = weights(network)
    fit(network, batches, STEPS, batches, TrainingSettings(epochs=2, encoder_rate=0), tmp_path / "t.pt")
    changed = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("decoder.") for name in changed)


def test_another_encoder_learns(tmp_path: Path) -> None:
    network = network_of()
    before = weights(network)
    fit(network, batches, STEPS, batches, TrainingSettings(epochs=1), tmp_path / "t.pt")
    after = network.state_dict()
    assert not torch.equal(after["encoder.conv1.weight"], before["encoder.conv1.weight"])
    assert int(after["encoder.bn1.num_batches_tracked"]) == STEPS


def test_the_loss_is_the_mean_over_words_and_ends() -> None:
    network = network_of().eval()
    pixels, tokens = torch.rand(2, 3, 32, 32), torch.tensor([[1, 2], [3, -1]])
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            features = {name: tensor.float() for name, tensor in network.features(pixels).items()}
        rows = network.decoder.log_probs(features, tokens)
    said = rows[0, 0, 1] + rows[0, 1, 2] + rows[0, 2, 0] + rows[1, 0, 3] + rows[1, 1, 0]
    assert mean_loss(network, iter([(pixels, tokens)])) == pytest.approx(-float(said) / 5, rel=1e-5)


@pytest.mark.parametrize("steps", [1, 5])
def test_any_number_of_steps_can_be_trained(tmp_path: Path, steps: int) -> None:
    """Ten steps in all once divided by zero."""
    few = [batch for epoch in range(2) for batch in batches(epoch)][:steps]
    done = fit(network_of(), lambda _: iter(few), steps, batches, TrainingSettings(epochs=2), tmp_path / "t.pt")
    assert len(done.losses) == 2


def test_a_loss_that_is_no_number_ends_the_training(tmp_path: Path) -> None:
    broken = [(torch.full((1, 3, 32, 32), torch.nan), torch.tensor([[1]]))]
    with pytest.raises(GradlightError, match=r"The loss of epoch 1 is nan.*lower rate"):
        fit(
            network_of(),
            lambda _: iter(broken),
            1,
            lambda _: iter(broken),
            TrainingSettings(epochs=3),
            tmp_path / "t.pt",
        )
    assert not (tmp_path / "t.pt").exists()


def test_preparing_a_folder_leaves_nothing_in_it(tmp_path: Path) -> None:
    assert prepare(tmp_path / "new" / "folder") == tmp_path / "new" / "folder" / "training.pt"
    assert list((tmp_path / "new" / "folder").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(GradlightError, match="nothing can be written there"):
        prepare(tmp_path / "file")


def test_progress_counts_patience_from_the_best() -> None:
    assert not Progress([]).over(TrainingSettings(epochs=1))
    assert not Progress([1.0, 2.0, 3.0]).over(TrainingSettings(epochs=9, patience=3))
    assert Progress([1.0, 2.0, 3.0, 4.0]).over(TrainingSettings(epochs=9, patience=3))
    assert Progress([2.0, 1.0]).over(TrainingSettings(epochs=2))


# Photos


@pytest.mark.parametrize("family", ["fc", "newfc", "show_tell", "att2in2", "soft attention"])
def test_photos_are_learnt_written_and_read_back(tmp_path: Path, encoder: Path, family: str) -> None:
    captions = write_photos(tmp_path, ["train"] * 9 + ["val"] * 3 + ["test"])
    folder = tmp_path / "out"
    report = coco_training.train(
        folder, captions, tmp_path, family=family, encoder=encoder, threshold=1, epochs=20, batch_size=3, **TINY
    )
    assert min(report.losses) < 0.7 * report.losses[0]
    assert report.epochs == len(report.losses) <= 20
    assert (report.photos, report.held_out, report.captions) == (9, 3, 18)
    assert report.words == len({"a", "the", "wall", *list(COLOURS)[:3], "UNK"})
    assert report.bleu["BLEU-1"] > 0.3
    assert "9 photos with 18 captions, 7 words" in str(report)
    assert {path.name for path in folder.iterdir()} == {"captioner.json", "captioner.safetensors"}
    model = gl.captioner(folder, device="cpu")
    assert (model.vocabulary.special_tokens, model.network.decoder.max_length) == (SpecialTokens(0, 0, 7), 17)
    said = model.caption(tmp_path / "0.png")[0]
    assert 1 <= len(said.words) <= 17
    assert "wall" in said.words
    maps = gl.explain(model, tmp_path / "0.png", methods="selective_normgrad", layers="stages", words=True)
    assert len(maps.layers) == 4
    for layer in maps.layers:
        found = maps["selective_normgrad", layer]
        assert found.shape[:2] == (1, len(said.words))
        assert float(found.max()) > 0


def test_real_captions_are_learnt(shared: Path, tmp_path: Path, encoder: Path) -> None:
    source = shared / "coco_captions"
    report = coco_training.train(
        tmp_path, source / "captions.json", source / "images", family="fc", encoder=encoder, epochs=4, **TINY
    )
    assert (report.photos, report.held_out, report.captions, report.left_out) == (16, 16, 80, {})
    assert report.losses[-1] < 0.95 * report.losses[0]
    assert len(gl.captioner(tmp_path, device="cpu").vocabulary) == report.words


def test_a_stopped_training_of_photos_goes_on(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = write_photos(tmp_path, [""] * 8)
    asked = {"family": "fc", "encoder": encoder, "threshold": 1, "epochs": 3, "batch_size": 2, **TINY}
    whole = coco_training.train(tmp_path / "whole", captions, tmp_path, **asked)

    given = coco_training.CaptionDataset.training_batches

    def stopped(dataset: Any, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        if epoch == 1:
            raise KeyboardInterrupt
        return given(dataset, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(coco_training.CaptionDataset, "training_batches", stopped)
        with pytest.raises(KeyboardInterrupt):
            coco_training.train(tmp_path / "parts", captions, tmp_path, **asked)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["training.pt"]
    with pytest.raises(GradlightError, match=r"other settings.*batch_size was 2 and is 3"):
        coco_training.train(tmp_path / "parts", captions, tmp_path, **{**asked, "batch_size": 3})
    assert coco_training.train(tmp_path / "parts", captions, tmp_path, **asked) == whole
    files = [(tmp_path / name / "captioner.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_a_broken_photo_is_left_out_and_told(tmp_path: Path, encoder: Path) -> None:
    captions = write_photos(tmp_path, ["train"] * 4 + ["val"] * 2)
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:60])
    (tmp_path / "5.png").write_bytes(b"<html>")
    (tmp_path / "2.png").unlink()
    asked = {"family": "fc", "encoder": encoder, "threshold": 1, "epochs": 1, "batch_size": 1, **TINY}
    with pytest.warns(GradlightWarning, match=r"photos not found: 1; photos that cannot be read: 2\. Such as: .*png"):
        report = coco_training.train(tmp_path / "out", captions, tmp_path, **asked)
    assert report.left_out == {"photos not found": 1, "photos that cannot be read": 2}
    assert "photos that cannot be read: 2." in str(report)
    assert gl.captioner(tmp_path / "out", device="cpu").caption(tmp_path / "0.png")


def test_where_no_photo_can_be_read_it_says_so(tmp_path: Path, encoder: Path) -> None:
    captions = write_photos(tmp_path, ["train", "val"])
    (tmp_path / "0.png").write_bytes(b"")
    with pytest.raises(GradlightError, match=r"None of the 1 training photos can be read, such as: .*empty file"):
        coco_training.train(tmp_path / "out", captions, tmp_path, encoder=encoder, threshold=1, **TINY)


@pytest.mark.parametrize(
    ("splits", "training", "held"),
    [
        (["train", "train", "val", "test"], 2, 1),
        ([""] * 20, 18, 2),
        (["", ""], 1, 1),
        (["train"] * 10, 9, 1),
        (["val", ""], 1, 1),
        (["train", ""], 1, 1),
    ],
)
def test_splits(splits: list[str], training: int, held: int) -> None:
    given = [coco_training.CaptionedPhoto(Path(str(n)), ("a wall",), split) for n, split in enumerate(splits)]
    found = coco_training.split_photos(given, 0.1, seed=3)
    assert (len(found[0]), len(found[1])) == (training, held)
    assert found == coco_training.split_photos(given, 0.1, seed=3)
    assert {photo.path for part in found for photo in part} == {p.path for p in given if p.split != "test"}
    assert all(photo.split != "train" for photo in found[1]) or "val" not in splits


def test_too_few_photos_are_refused() -> None:
    for splits in (["val", "val"], ["test"], [""]):
        with pytest.raises(GradlightError, match="at least one of each"):
            coco_training.split_photos(
                [coco_training.CaptionedPhoto(Path("x"), ("a wall",), s) for s in splits], 0.1, 0
            )


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"family": "att2in"}, "No decoder is called 'att2in'. Did you mean 'att2in2'"),
        ({"epochs": 0, "size": 0}, "epochs=0, size=0: each of these must be 1 or more"),
        ({"encoder_rate": -1.0}, r"encoder_rate=-1\.0 make no training"),
        ({"held_out": 1.0}, r"held_out=1\.0 is no share"),
        ({"encoder": "timm/seresnet18"}, r"seresnet18 is no plain ResNet \(.*Unexpected key"),
        ({"encoder": "timm/resnetblur18"}, r"no plain ResNet \(the same weights give other maps"),
        ({"encoder": "torchvision/alexnet"}, "AlexNet is no ResNet"),
    ],
)
def test_what_cannot_be_trained_is_refused_first(
    tmp_path: Path, encoder: Path, wrong: dict[str, Any], match: str
) -> None:
    captions = write_photos(tmp_path, [""] * 3)
    asked = {"encoder": encoder, "pretrained": False, "threshold": 1, **TINY, **wrong}
    with pytest.raises(GradlightError, match=match):
        coco_training.train(tmp_path / "out", captions, tmp_path, **asked)


def test_an_encoder_of_a_library_is_rebuilt_bit_for_bit() -> None:
    torch.manual_seed(0)
    for name in ("torchvision/resnet18", "timm/resnet18"):
        resnet, plan = build_encoder(name, pretrained=False)
        assert plan == ResNetPlan("basic", (2, 2, 2, 2), (64, 128, 256, 512), 64, "padded")
        assert not resnet.training
        assert float(resnet.state_dict()["bn1.running_mean"].abs().max()) == 0


def test_an_epoch_has_one_caption_of_each_photo_in_an_order_of_its_own(tmp_path: Path) -> None:
    write_photos(tmp_path, [""] * 7)
    paths = [tmp_path / f"{number}.png" for number in range(7)]
    given = [coco_training.CaptionedPhoto(path, (f"a{n}", f"b{n}"), "") for n, path in enumerate(paths)]
    words = coco_training.vocabulary_with_unk(given, 1)
    dataset = coco_training.CaptionDataset(
        given[:5], given[5:], words, coco_training.CaptionTask(batch_size=2), workers=0
    )
    epochs = [
        [words[int(token)] for _, tokens in dataset.training_batches(epoch) for token in tokens] for epoch in (0, 0, 1)
    ]
    assert sorted(text[1:] for text in epochs[0]) == ["0", "1", "2", "3", "4"]
    assert epochs[0] == epochs[1] != epochs[2]
    state = torch.get_rng_state()
    assert [words[int(token)] for _, tokens in dataset.validation_batches(0) for token in tokens] == ["a5", "a6"]
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.slow
def test_workers_change_nothing(tmp_path: Path) -> None:
    write_photos(tmp_path, [""] * 4)
    given = [coco_training.CaptionedPhoto(tmp_path / f"{n}.png", ("a wall", "the wall"), "") for n in range(4)]
    task = coco_training.CaptionTask(batch_size=2)
    alone, helped = (
        coco_training.CaptionDataset(given[:3], given[3:], coco_training.vocabulary_with_unk(given, 1), task, n)
        for n in (0, 2)
    )
    for epoch in (0, 1):
        pairs = zip(alone.training_batches(epoch), helped.training_batches(epoch), strict=True)
        assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))
        pairs = zip(alone.validation_batches(epoch), helped.validation_batches(epoch), strict=True)
        assert all(torch.equal(a, b) for one, other in pairs for a, b in zip(one, other, strict=True))


# Scenes


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 9_999_999))
def test_the_main_caption_is_true(seed: int) -> None:
    scene = draw(seed)
    assert is_true(scene, scenes.main_caption(scene).split())


def mirrored(scene: Scene, across: bool, down: bool) -> Scene:
    """Mirror a scene's picture and its objects."""
    size, axes = scene.image.width, [axis for axis, flipped in ((1, across), (0, down)) if flipped]
    things = [
        replace(
            thing,
            mask=np.flip(thing.mask, axes),
            centre=(
                size - thing.centre[0] if across else thing.centre[0],
                size - thing.centre[1] if down else thing.centre[1],
            ),
        )
        for thing in scene.objects
    ]
    return Scene(scene.seed, Image.fromarray(np.ascontiguousarray(np.flip(scene.array, axes))), tuple(things))


def test_mirrored_captions_are_true_of_the_mirrored_picture() -> None:
    words, seen = scenes.vocabulary(), set()
    drawn = [draw(seed) for seed in range(12)]
    for attempt in range(12):
        torch.manual_seed(attempt)
        for scene in drawn:
            picture = torch.from_numpy(scene.array.copy()).permute(2, 0, 1)[None]
            for text in [scenes.main_caption(scene), *scene.captions]:
                tokens = torch.tensor([words.encode(text.split())])
                flipped, said = scenes._mirror(picture, tokens)
                ways = [(x, y) for x in (False, True) for y in (False, True)]
                way = next(w for w in ways if np.array_equal(mirrored(scene, *w).array, flipped[0].permute(1, 2, 0)))
                seen.add(way)
                assert is_true(mirrored(scene, *way), words.decode(said[0].tolist())), (text, way)
        if len(seen) == 4:
            break
    assert len(seen) == 4


@pytest.mark.slow
def test_scenes_are_trained_end_to_end(tmp_path: Path) -> None:
    done = scenes.train(tmp_path, epochs=1, count=64)
    assert len(done.losses) == 1
    assert done.losses[0] < 5
    assert {path.name for path in tmp_path.iterdir()} == {"captioner.json", "captioner.safetensors"}
    model = gl.captioner(tmp_path, device="cpu")
    said = model.caption(draw(HELD_OUT[0]).image)[0]
    assert all(word in scenes.vocabulary() for word in said.words)


def test_scenes_refuse_numbers_that_are_no_training(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="at least 1 epoch and 64 scenes; got 0 and 64"):
        scenes.train(tmp_path, epochs=0, count=64)
