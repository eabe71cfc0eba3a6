"""Whole captioners read from the files of three projects, against what the projects' own code computed."""

from __future__ import annotations

import json
import shutil
import warnings
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioner_projects import WORDS, E, R, V, fc_state, infos, joint, python2, tutorial, written
from PIL import Image
from torch import Tensor

from gradlight.errors import GradlightError, GradlightWarning
from gradlight.models.captioner.checkpoints import read_checkpoint
from gradlight.models.captioner.decoder import KEPT, REMOVED, REPLACED
from gradlight.models.captioner.encoder import RESNET101, FeaturePooling, ResNetPlan, build_resnet
from gradlight.models.captioner.search import beam_search, generate
from gradlight.models.captioner.state_dicts import read_weights
from gradlight.models.preprocessing import OriginalSize, Preprocessing

TRAINED = ["fc_py2", "show_tell_py2", "newfc_py3", "att2in2_py3", "disc_fc_py2", "disc_att2in2_py2"]
ATTENDS = ("att2in2_py3", "disc_att2in2_py2")


class Oracle:
    """A project's folder, read by us, with the numbers of the project."""

    def __init__(self, shared: Path, name: str) -> None:
        self.folder = shared / "oracles" / "captioning" / name
        if not self.folder.is_dir():
            pytest.skip(f"{name} is not among the captioners here")
        self.expected = np.load(self.folder / "expected.npz")
        self.described = json.loads((self.folder / "expected.json").read_text())
        self.found = read_checkpoint(self.folder)
        tutorial = name == "sgrvinod_py3"
        features = np.load(self.folder / "inputs.npz" if tutorial else self.folder.parent / "features.npz")
        if tutorial:
            self.inputs = {"att": torch.from_numpy(features["encoder_out"]).flatten(1, 2)}
        elif name in ATTENDS:
            self.inputs = {"att": torch.from_numpy(features["att_feats"])}
            self.mask = torch.from_numpy(features["att_masks"])
        else:
            self.inputs = {"fc": torch.from_numpy(features["fc_feats"])}
        self.tokens = torch.from_numpy(self.expected["captions"])
        self.lengths = self.expected["caption_lengths"].tolist()

    def features(self, masked: bool = False) -> dict[str, Tensor]:
        return {**self.inputs, "mask": self.mask} if masked else dict(self.inputs)


@pytest.fixture(scope="module", params=[*TRAINED, "sgrvinod_py3"])
def oracle(shared: Path, request: pytest.FixtureRequest) -> Oracle:
    return Oracle(shared, request.param)


def close(ours: Tensor, theirs: np.ndarray, share: float = 5e-6) -> bool:
    """Compare with a project's float32. Log-probabilities are negative, so no sum of them is small beside its terms."""
    return torch.allclose(ours.detach(), torch.from_numpy(theirs), rtol=0, atol=share * float(np.abs(theirs).max()))


def test_log_probs_totals_and_gradients_are_the_projects_own(oracle: Oracle) -> None:
    end = oracle.found.vocabulary.special_tokens.end
    for prefix in ("", "masked_") if "masked_total_logprob" in oracle.expected else ("",):
        for number, length in enumerate(oracle.lengths):
            features = oracle.features(bool(prefix))
            (name,) = oracle.inputs
            features[name] = features[name].clone().requires_grad_()
            said = oracle.tokens[number, :length].expand(3, -1)
            rows = oracle.found.decoder.log_probs(features, said)
            assert close(rows, oracle.expected[f"{prefix}full_logprobs"][number, :, : length + 1])
            asked = torch.cat([said, torch.full((3, 1), end)], 1)
            steps = rows.gather(2, asked[..., None])[..., 0]
            assert close(steps, oracle.expected[f"{prefix}target_logprobs"][number, :, : length + 1])
            assert close(steps.sum(1), oracle.expected[f"{prefix}total_logprob"][number])
            assert close(steps[:, :-1].sum(1), oracle.expected[f"{prefix}total_logprob_without_end"][number])
            (gradient,) = torch.autograd.grad(steps.sum(), features[name])
            theirs = oracle.expected[f"{prefix}grad_total"][number]
            assert close(gradient.flatten(), theirs.reshape(-1), 5e-5)  # the gradients of the steps cancel in part


def decodes(oracle: Oracle) -> list[dict[str, Any]]:
    wanted = [d for d in oracle.described["decodes"] if d["method"] in ("greedy", "beam")]
    return [d for d in wanted if not d.get("decoding_constraint") and d.get("temperature", 1) == 1]


def test_greedy_and_beam_search_say_what_the_project_says(oracle: Oracle) -> None:
    specials = oracle.found.vocabulary.special_tokens
    checked = decodes(oracle)
    assert checked
    for decode in checked:
        features = {
            name: rows[decode["image"]][None] for name, rows in oracle.features(decode.get("masked", False)).items()
        }
        penalty = {"avg_0": "avg"}.get(decode.get("length_penalty", ""), decode.get("length_penalty") or None)
        suppressed = bool(decode.get("unk_suppressed") or decode.get("suppress_UNK"))
        (found,) = beam_search(
            oracle.found.decoder,
            features,
            decode.get("beam_size", 1),
            oracle.found.decoder.max_length,
            suppress_unk=suppressed,
            penalty=penalty,
        )
        best = decode["beams"][0] if "beams" in decode else decode
        tokens = [token for token in best["tokens"] if token not in (specials.end, specials.bos)]
        assert list(found.tokens) == tokens, decode
        if "score" in best:
            assert found.rank == pytest.approx(best["score"], rel=1e-5), decode
        if best.get("words") and specials.bos == 0:
            assert " ".join(oracle.found.vocabulary.decode(found.tokens)) == best["words"]


EXPECTED: dict[str, tuple[Any, ...]] = {
    "fc_py2": ("fc", "ImageCaptioning.pytorch", 16, (0, 0, 60), REPLACED, 14, None),
    "show_tell_py2": ("show_tell", "ImageCaptioning.pytorch", 16, (0, 0, 60), REPLACED, 14, None),
    "newfc_py3": ("newfc", "ImageCaptioning.pytorch", 20, (0, 0, 60), REPLACED, 14, None),
    "att2in2_py3": ("att2in2", "ImageCaptioning.pytorch", 20, (0, 0, 60), REPLACED, 14, None),
    "disc_fc_py2": ("fc", "DiscCaptioning", 16, (61, 0, 60), KEPT, 14, None),
    "disc_att2in2_py2": ("att2in2", "DiscCaptioning", 16, (61, 0, 60), KEPT, 14, None),
    "sgrvinod_py3": ("soft attention", "soft attention tutorial", 51, (58, 59, 57), REMOVED, 14, (256, 256)),
}


def test_what_a_folder_tells(oracle: Oracle) -> None:
    family, project, limit, specials, end_rule, grid, size = EXPECTED[oracle.folder.name]
    found, decoder = oracle.found, oracle.found.decoder
    assert (found.family, found.project, decoder.max_length, decoder.end_rule) == (family, project, limit, end_rule)
    assert (decoder.special_tokens.bos, decoder.special_tokens.end, decoder.special_tokens.unk) == specials
    assert found.vocabulary.special_tokens == decoder.special_tokens
    assert found.pooling == FeaturePooling(grid)
    assert (found.preprocessing and found.preprocessing.size) == size
    assert "café" in found.vocabulary.words.values()
    assert not decoder.training


def test_a_file_saved_on_a_gpu_holds_the_same(shared: Path) -> None:
    folder = shared / "oracles" / "captioning" / "fc_py2"
    one, other = (read_checkpoint(folder / name) for name in ("model-best.pth", "model-best.saved_on_gpu.pth"))
    assert one.facts["files"] == ["model-best.pth", "infos_fc-best.pkl"]
    assert other.facts["files"][0] == "model-best.saved_on_gpu.pth"
    assert same(one.decoder.state_dict(), other.decoder.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("middle", ["", ".torch2"])
def test_whole_modules_hold_the_plain_state_dicts(shared: Path, middle: str) -> None:
    folder = shared / "oracles" / "captioning" / "sgrvinod_py3"
    found = read_checkpoint(folder / f"BEST_checkpoint_coco_5_cap_per_img_5_min_word_freq{middle}.pth.tar")
    decoder, encoder = (read_weights(folder / f"{part}_state_dict.pth") for part in ("decoder", "encoder"))
    names = {"attention.": "", "decode_step.": "core.", "embedding.": "embed.", "fc.": "logit."}
    ours = found.decoder.state_dict()
    for name, tensor in decoder.items():
        old = next((old for old in names if name.startswith(old)), "")
        assert torch.equal(ours[names.get(old, "") + name.removeprefix(old)], tensor)
    assert len(ours) == len(decoder)
    stages = {"0": "conv1", "1": "bn1", "4": "layer1", "5": "layer2", "6": "layer3", "7": "layer4"}
    assert found.encoder_state is not None
    for name, tensor in encoder.items():
        _, number, rest = name.split(".", 2)
        assert torch.equal(found.encoder_state[f"{stages[number]}.{rest}"], tensor)


def features_of(found: Any, photo: Image.Image) -> dict[str, Tensor]:
    assert found.plan is not None
    assert found.encoder_state is not None
    encoder = build_resnet(found.plan).eval()
    encoder.load_state_dict(found.encoder_state)
    assert found.preprocessing is not None
    pixels, _ = found.preprocessing(photo)
    with torch.no_grad():
        return found.pooling(encoder(pixels[None]))


def test_the_tutorials_features_from_its_pictures(shared: Path) -> None:
    folder = shared / "oracles" / "captioning" / "sgrvinod_py3"
    found, inputs = read_checkpoint(folder), np.load(folder / "inputs.npz")
    for number in range(3):
        with Image.open(folder / f"image{number}.png") as photo:
            places = features_of(found, photo.convert("RGB"))["att"]
        assert close(places[0], inputs["encoder_out"][number].reshape(196, -1))


def formula(key: str, shape: tuple[int, ...]) -> Tensor:
    """Give the weights of the oracle's ResNet-101, tensor by tensor."""
    chance = np.random.RandomState(zlib.crc32(key.encode("ascii")) & 0xFFFFFFFF)
    normal = chance.standard_normal(shape)
    if len(shape) == 4:
        values = normal * np.sqrt(2.0 / (shape[1] * shape[2] * shape[3]))
    elif key.endswith("running_var"):
        values = 0.8 + 0.4 * chance.uniform(size=shape)
    elif key.endswith(("running_mean", "bias")):
        values = 0.1 * normal
    elif ".bn3." in key:
        values = 0.2 + 0.02 * normal
    else:
        values = 0.5 + 0.05 * normal if ".downsample.1." in key else 1.0 + 0.1 * normal
    return torch.from_numpy(values.astype("float32"))


@pytest.mark.slow
def test_a_caption_from_a_picture_through_the_projects_own_encoder(shared: Path, tmp_path: Path) -> None:
    source = shared / "oracles" / "captioning"
    for name in ("infos_fc-best.pkl", "model-best.pth"):
        shutil.copy(source / "fc_py2" / name, tmp_path / name)
    shapes = {n: tuple(t.shape) for n, t in build_resnet(RESNET101).state_dict().items() if "num_batches" not in n}
    torch.save({name: formula(name, shape) for name, shape in shapes.items()}, tmp_path / "resnet101.pth")
    found, expected = read_checkpoint(tmp_path), np.load(source / "resnet101_features" / "expected.npz")
    found = replace(found, preprocessing=OriginalSize())
    with Image.open(source / "resnet101_features" / "picture.png") as photo:
        features = features_of(found, photo.convert("RGB"))
    scale = np.abs(expected["fc"]).max()
    assert np.abs(features["fc"][0].numpy() - expected["fc"]).max() < 1e-5 * scale
    places = features["att"][0, :, ::64].reshape(14, 14, 32).numpy()
    assert np.abs(places - expected["att_every_64th_channel"]).max() < 1e-5 * np.abs(places).max()
    ((tokens, log_prob),) = generate(found.decoder, features)
    assert [*tokens, 0] == expected["caption"].tolist()
    assert log_prob == pytest.approx(float(expected["total_logprob"]), rel=1e-5)


CHANNELS = 16


def resnet_state(prefix: str = "") -> dict[str, Tensor]:
    network = build_resnet(ResNetPlan(layers=(1, 1, 1, 1), widths=(1, 2, 2, 4), stem=3))
    return {prefix + name: tensor for name, tensor in network.state_dict().items() if "num_batches" not in name}


def in_a_row() -> dict[str, Tensor]:
    numbers = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    return {f"{numbers[n.split('.')[0]]}.{n.split('.', 1)[1]}": tensor for n, tensor in resnet_state().items()}


def test_a_finetuned_encoder_beside_the_decoder(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(features=CHANNELS), infos("fc"))
    torch.save(in_a_row(), folder / "model-cnn-best.pth")
    torch.save({**resnet_state(), "fc.weight": torch.ones(2, 2)}, folder / "resnet101.pth")
    found = read_checkpoint(folder)
    assert found.facts["files"][-1] == "model-cnn-best.pth"
    assert found.plan == ResNetPlan(layers=(1, 1, 1, 1), widths=(1, 2, 2, 4), stem=3, pool="ceil")
    assert found.pooling == FeaturePooling(None)
    assert found.preprocessing == Preprocessing((224, 224), (256, 256), "squash")
    assert features_of(found, Image.new("RGB", (50, 70)))["att"].shape == (1, 49, CHANNELS)


def test_the_encoder_that_features_were_extracted_with(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(features=CHANNELS), infos("fc"))
    state = resnet_state()
    torch.save({**state, "fc.weight": torch.ones(2, 2), "fc.bias": torch.ones(2)}, folder / "resnet101.pth")
    found = read_checkpoint(folder)
    assert found.plan is not None
    assert found.plan.pool == "ceil"
    assert found.pooling == FeaturePooling(14)
    assert found.preprocessing is None
    assert found.encoder_state is not None
    assert all(torch.equal(found.encoder_state[name], tensor) for name, tensor in state.items())


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(features=CHANNELS + 1), infos("fc"))
    torch.save(resnet_state(), folder / "resnet101.pth")
    with pytest.raises(
        GradlightError, match=r"resnet101\.pth: The encoder gives 16 channels, and the decoder reads 17"
    ):
        read_checkpoint(folder)


def test_any_file_of_a_captioner_leads_to_it(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(), infos("fc"))
    for name in ("", "model-best.pth", "infos_fc-best.pkl"):
        assert read_checkpoint(folder / name).facts["files"] == ["model-best.pth", "infos_fc-best.pkl"]
    folder = tutorial(tmp_path / "soft")
    for name in ("", "BEST_checkpoint_toy.pth.tar", "WORDMAP_toy.json"):
        assert read_checkpoint(str(folder / name)).facts["files"] == ["BEST_checkpoint_toy.pth.tar", "WORDMAP_toy.json"]


def test_the_best_state_is_preferred_and_the_rest_is_not_opened(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(seed=1), infos("fc"))
    written(tmp_path, fc_state(seed=2), {**infos("fc"), "iter": 70000}, best="")
    written(tmp_path, fc_state(seed=3), {**infos("fc"), "iter": 30}, best="-30")
    for name in (
        "histories_fc.pkl",
        "histories_fc-best.pkl",
        "optimizer.pth",
        "optimizer-best.pth",
        "model_vse-best.pth",
    ):
        (folder / name).write_bytes(b"never opened")
    assert read_checkpoint(folder).facts == {
        "files": ["model-best.pth", "infos_fc-best.pkl"],
        "iter": 60000,
        "epoch": 5,
        "best_val_score": 0.953,
    }
    for given, model, words in (
        ("model.pth", "model.pth", "infos_fc.pkl"),
        ("infos_fc.pkl", "model.pth", "infos_fc.pkl"),
        ("model-30.pth", "model-30.pth", "infos_fc-30.pkl"),
        ("infos_fc-30.pkl", "model-30.pth", "infos_fc-30.pkl"),
    ):
        assert read_checkpoint(folder / given).facts["files"] == [model, words]
    for name in ("model-best.pth", "infos_fc-best.pkl"):
        (folder / name).unlink()
    assert read_checkpoint(folder).facts["files"] == ["model.pth", "infos_fc.pkl"]
    (folder / "model.pth").unlink()
    assert read_checkpoint(folder).facts["files"] == ["model-30.pth", "infos_fc-30.pkl"]


def test_the_words_of_any_state_serve_another(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(), infos("fc"))
    (folder / "infos_fc-best.pkl").rename(folder / "infos_fc-2018.pkl")
    assert read_checkpoint(folder).facts["files"] == ["model-best.pth", "infos_fc-2018.pkl"]


def test_names_that_leave_it_open(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(), infos("fc"))
    shutil.copy(folder / "infos_fc-best.pkl", folder / "infos_other-best.pkl")
    for given in (folder, folder / "model-best.pth"):
        with pytest.raises(GradlightError, match=r"is ambiguous: infos_fc-best\.pkl, infos_other-best\.pkl"):
            read_checkpoint(given)
    assert read_checkpoint(folder / "infos_other-best.pkl").facts["files"][1] == "infos_other-best.pkl"
    folder = tutorial(tmp_path / "soft")
    shutil.copy(folder / "WORDMAP_toy.json", folder / "WORDMAP_a.json")
    assert read_checkpoint(folder).facts["files"][1] == "WORDMAP_toy.json"
    (folder / "WORDMAP_toy.json").rename(folder / "WORDMAP_b.json")
    with pytest.raises(GradlightError, match=r"is ambiguous: WORDMAP_a\.json, WORDMAP_b\.json"):
        read_checkpoint(folder)


@pytest.mark.parametrize(
    ("names", "given", "message"),
    [
        ((), "", "no captioner is in this folder.*infos_<id>.pkl.*It is empty"),
        (("notes.txt",), "", "It holds notes.txt"),
        (("notes.txt",), "notes.txt", "no file of a captioner's checkpoint"),
        (("model.pth",), "model.pth", "the vocabulary is missing; no infos_<id>.pkl"),
        (("infos_x.pkl",), "", "no model.pth or model-best.pth is beside"),
        (("infos_x.pkl",), "infos_x.pkl", "no model.pth or model-best.pth is beside"),
        (("optimizer.pth", "infos_x.pkl"), "optimizer.pth", "no file of a captioner's checkpoint"),
        (("histories_x.pkl",), "histories_x.pkl", "no file of a captioner's checkpoint"),
        (("model-cnn.pth", "infos_x.pkl"), "model-cnn.pth", "the encoder of a captioner alone"),
        (("BEST_checkpoint_x.pth.tar",), "", r"no WORDMAP_x\.json is beside"),
        (("WORDMAP_x.json",), "WORDMAP_x.json", "no checkpoint"),
        (("last.ckpt",), "last.ckpt", "Lightning checkpoint.*_vocab.*not opened.*model.pth"),
        (("model.pth",), "modle.pth", r"No such file.*Did you mean 'model\.pth'"),
    ],
)
def test_missing_files_are_named(tmp_path: Path, names: tuple[str, ...], given: str, message: str) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(GradlightError, match=message):
        read_checkpoint(tmp_path / given)


def test_what_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(GradlightError, match="the path of a file was expected, got int"):
        read_checkpoint(3)  # type: ignore[arg-type]
    with pytest.raises(GradlightError, match=r"no-folder.*No such file"):
        read_checkpoint(tmp_path / "no-folder" / "model.pth")


def test_pickles_in_tensors_of_lightning_are_refused(tmp_path: Path) -> None:
    hidden = {"_vocab": torch.zeros(9, dtype=torch.uint8), "_opt": torch.zeros(9, dtype=torch.uint8)}
    folder = written(tmp_path, {"state_dict": {**fc_state(), **hidden}}, infos("fc"))
    with pytest.raises(GradlightError, match=r"model-best\.pth: It holds pickles inside tensors"):
        read_checkpoint(folder)


def test_words_and_weights_of_different_trainings(tmp_path: Path) -> None:
    record = infos("fc")
    record["vocab"][str(V + 1)] = "one too many"
    with pytest.raises(GradlightError, match=r"infos_fc-best\.pkl: It has 11 words and the weights 10"):
        read_checkpoint(written(tmp_path / "a", fc_state(), record))
    record = {**infos("fc"), "vocab": {"one": "word"}}
    with pytest.raises(GradlightError, match=r"infos_fc-best\.pkl: Its vocab is no dict from numbers to words"):
        read_checkpoint(written(tmp_path / "b", fc_state(), record))
    with pytest.raises(GradlightError, match=r"no infos_<id>\.pkl of a training"):
        read_checkpoint(written(tmp_path / "c", fc_state(), {"opt": 3}))
    folder = tutorial(tmp_path / "soft")
    words = json.loads((folder / "WORDMAP_toy.json").read_text())
    for changed, message in (
        ({**words, "zebra": 13}, "It numbers 14 words and the weights have 13"),
        ({w: n for w, n in words.items() if w != "<start>"}, "no word map: <start> is missing"),
        ({**words, "a": True}, "a number for every word"),
        ({**words, "a": 2}, "not of the same training"),
    ):
        (folder / "WORDMAP_toy.json").write_text(json.dumps(changed))
        with pytest.raises(GradlightError, match=rf"WORDMAP_toy\.json: .*{message}"):
            read_checkpoint(folder)


def test_the_options_are_compared_with_the_weights(tmp_path: Path) -> None:
    with pytest.warns(GradlightWarning, match="caption_model='att2in2', but the weights are those of fc"):
        found = read_checkpoint(written(tmp_path / "a", fc_state(), infos("att2in2")))
    assert found.family == "fc"
    record = infos("fc")
    record["opt"].input_fc_dir = "data/cocobu_fc/"
    with pytest.warns(GradlightWarning, match=r"regions that a detector found \(cocobu_fc\)"):
        read_checkpoint(written(tmp_path / "b", fc_state(), record))
    record["opt"].input_fc_dir = "/home/buck/boxes/cocotalk_fc"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_checkpoint(written(tmp_path / "c", fc_state(), record))


@pytest.mark.parametrize("unknown", [None, 4, V])
def test_the_number_of_the_unknown_word(tmp_path: Path, unknown: int | None) -> None:
    record = infos("fc")
    record["vocab"][str(V)] = "last"
    if unknown is not None:
        record["vocab"][str(unknown)] = "Unk"
    assert read_checkpoint(written(tmp_path, fc_state(), record)).vocabulary.special_tokens.unk == unknown


def test_bytes_of_python_2_become_their_words(tmp_path: Path) -> None:
    folder = written(tmp_path, fc_state(), infos("fc"))
    record = infos("fc")
    record["vocab"] = {number: word.encode() for number, word in record["vocab"].items()}
    (folder / "infos_fc-best.pkl").write_bytes(python2(record))
    assert list(read_checkpoint(folder).vocabulary.words.values()) == WORDS


def test_the_tutorial_without_the_library_that_wrote_it(tmp_path: Path) -> None:
    one, other = (read_checkpoint(tutorial(tmp_path / str(old), old)) for old in (True, False))
    assert one.family == "soft attention"
    assert same(one.decoder.state_dict(), other.decoder.state_dict())
    assert one.encoder_state is not None
    assert other.encoder_state is not None
    assert same(one.encoder_state, other.encoder_state)
    assert one.decoder.get_parameter("core.weight_ih").shape == (4 * R, E + CHANNELS)
    assert one.vocabulary.special_tokens.unk == V
    assert (one.vocabulary.special_tokens.bos, one.vocabulary.special_tokens.end) == (V + 1, V + 2)
    assert "<start>" not in one.vocabulary
    features = features_of(one, Image.new("RGB", (60, 40)))
    assert features["att"].shape == (1, 196, CHANNELS)
    (tokens, log_prob), *_ = generate(one.decoder, features, 3)
    assert len(tokens) <= 51
    assert log_prob < 0


def test_a_joint_model_is_discaptioning(tmp_path: Path) -> None:
    found = read_checkpoint(written(tmp_path, joint(fc_state(rows=V + 2)), infos("fc", max_length=20)))
    assert (found.project, found.family) == ("DiscCaptioning", "fc")
    assert (found.decoder.special_tokens.bos, found.decoder.special_tokens.end) == (V + 1, 0)
    assert found.decoder.end_rule == KEPT
    assert found.decoder.max_length == 16
