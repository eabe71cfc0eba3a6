"""Nothing of a file is ever executed, and whatever is wrong with one ends in one error that names it."""

from __future__ import annotations

import io
import json
import pickle
import random
import struct
import time
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from captioner_projects import Reduced, State, att2in2_state, attacks, fc_state, infos, python2, tutorial, written
from torch import nn

from gradlight.errors import GradlightError, GradlightWarning
from gradlight.models.captioner.checkpoints import read_checkpoint
from gradlight.models.captioner.format import write_folder
from gradlight.models.captioner.safe_pickle import read_pickle
from gradlight.models.captioner.state_dicts import read_modules, read_weights

KINDS = ["system", "popen", "eval", "exec", "import", "runpy", "mkdir"]

Attacked = tuple[Path, dict[str, Reduced]]


@pytest.fixture
def attacked(tmp_path: Path) -> Attacked:
    canary = tmp_path / "canary"
    return canary, attacks(canary)


def assert_refused(path: Path, canary: Path, file: str) -> None:
    """Check that reading a captioner is refused in the name of a file, and that nothing of it was run."""
    with pytest.raises(GradlightError, match=file.replace(".", r"\.")):
        read_checkpoint(path)
    assert not canary.exists()


def test_the_attacks_work_on_python_itself(attacked: Attacked) -> None:
    canary, ways = attacked
    for name in ("system", "eval", "exec", "runpy", "mkdir"):
        pickle.loads(pickle.dumps(ways[name]))
        assert canary.exists(), name
        canary.rmdir() if canary.is_dir() else canary.unlink()


INFOS_PLACES: dict[str, Callable[[dict[str, Any], Reduced], Any]] = {
    "whole": lambda record, attack: attack,
    "value": lambda record, attack: {**record, "iter": attack},
    "first": lambda record, attack: {"a": attack, **record},
    "key": lambda record, attack: {**record, attack: 1},
    "opt": lambda record, attack: {**record, "opt": attack},
    "score": lambda record, attack: {**record, "best_val_score": attack},
    "list": lambda record, attack: {**record, "split_ix": {"train": [1, (2, [attack])]}},
    "word": lambda record, attack: {**record, "vocab": {**record["vocab"], "1": attack}},
    "number": lambda record, attack: {**record, "vocab": {**record["vocab"], attack: "a"}},
    "ordered": lambda record, attack: {**record, "vocab": OrderedDict(a=attack)},
    "factory": lambda record, attack: {**record, "vocab": defaultdict(dict, a=attack)},
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", INFOS_PLACES)
def test_nothing_in_infos_is_executed(attacked: Attacked, tmp_path: Path, place: str, protocol: int) -> None:
    canary, ways = attacked
    folder = written(tmp_path / "folder", fc_state(), infos("fc"))
    for attack in ways.values():
        content = INFOS_PLACES[place](infos("fc"), attack)
        (folder / "infos_fc-best.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        assert_refused(folder, canary, "infos_fc-best.pkl")


def test_nothing_in_a_namespace_is_executed(attacked: Attacked, tmp_path: Path) -> None:
    canary, ways = attacked
    folder = written(tmp_path / "folder", fc_state(), infos("fc"))
    for attack in ways.values():
        record = infos("fc")
        record["opt"].seq_length = attack
        (folder / "infos_fc-best.pkl").write_bytes(pickle.dumps(record, protocol=2))
        assert_refused(folder, canary, "infos_fc-best.pkl")


def opcodes(canary: Path) -> dict[str, bytes]:
    """Give pickles that no pickler writes, each of which would make a folder, or change the reader itself."""
    path = str(canary).encode()
    call = b"(S'" + path + b"'\n"
    return {
        "inst": b"(S'" + path + b"'\nios\nmkdir\n.",
        "obj": b"(cos\nmkdir\nS'" + path + b"'\no.",
        "python 2 names": b"c__builtin__\n__import__\n(S'os'\ntR.",
        "a dotted name": b"\x80\x04\x8c\x0bcollections\x8c\x17OrderedDict.__init__.__x\x93" + call + b"tR.",
        "through the reconstructor": b"ccopy_reg\n_reconstructor\n(cos\nmkdir\nc__builtin__\nobject\nNtR.",
        "a class given a state": b"cargparse\nNamespace\n(dS'__setstate__'\nNsb.",
        "a class given slots": b"cargparse\nNamespace\n(N(dS'state'\nI1\nstb.",
        "a registered number": b"\x82\x01.",
        "a call of a text": b"S'os.mkdir'\n" + call + b"tR.",
        "a call of an instance": b"cargparse\nNamespace\n(tR" + call + b"tR.",
        "a new text": b"\x80\x02X\x01\x00\x00\x00a)\x81.",
        "a persistent id": b"Pos.mkdir\n.",
        "a buffer": b"\x80\x05\x97.",
    }


@pytest.mark.parametrize("name", list(opcodes(Path())))
def test_strange_opcodes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "infos_x.pkl"
    path.write_bytes(opcodes(tmp_path / "canary")[name])
    with pytest.raises(GradlightError, match=r"infos_x\.pkl"):
        read_pickle(path)
    assert not (tmp_path / "canary").exists()
    # And the reader is as it was.
    path.write_bytes(python2(infos("fc")))
    assert read_pickle(path)["opt"].state["caption_model"] == "fc"


WEIGHTS_PLACES: dict[str, Callable[[State, Reduced], Any]] = {
    "whole": lambda state, attack: attack,
    "beside": lambda state, attack: {"state_dict": state, "epoch": attack},
    "among": lambda state, attack: {**state, "more": attack},
    "instead": lambda state, attack: {**state, "logit.weight": attack},
    "key": lambda state, attack: {**state, attack: torch.ones(1)},
    "nested": lambda state, attack: {"state_dict": state, "args": [{"a": (attack,)}]},
}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("place", WEIGHTS_PLACES)
def test_nothing_beside_weights_is_executed(attacked: Attacked, tmp_path: Path, place: str, old: bool) -> None:
    canary, ways = attacked
    folder = written(tmp_path / "folder", fc_state(), infos("fc"))
    for attack in ways.values():
        content = WEIGHTS_PLACES[place](fc_state(), attack)
        torch.save(content, folder / "model-best.pth", _use_new_zipfile_serialization=not old)
        assert_refused(folder, canary, "model-best.pth")


def sections(data: bytes) -> list[bytes]:
    """Divide a file of the old format into its five pickles and the rest."""
    cuts = [0]

    class Skipping(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return None

        def find_class(self, module: str, name: str) -> Any:
            return lambda *args: None

    view = io.BytesIO(data)
    for _ in range(5):
        Skipping(view).load()
        cuts.append(view.tell())
    cuts.append(len(data))
    return [data[a:b] for a, b in pairwise(cuts)]


@pytest.mark.parametrize("section", range(5))
def test_nothing_in_any_pickle_of_the_old_format_is_executed(attacked: Attacked, tmp_path: Path, section: int) -> None:
    canary, ways = attacked
    folder = written(tmp_path / "folder", dict(fc_state()), infos("fc"))
    parts = sections((folder / "model-best.pth").read_bytes())
    for attack in ways.values():
        bad = [*parts[:section], pickle.dumps(attack, protocol=2), *parts[section + 1 :]]
        (folder / "model-best.pth").write_bytes(b"".join(bad))
        assert_refused(folder, canary, "model-best.pth")


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_in_a_whole_module_is_executed(attacked: Attacked, tmp_path: Path, kind: str, old: bool) -> None:
    canary, ways = attacked
    attack: Any = ways[kind]
    inside = nn.Linear(2, 2)
    inside._modules["deeper"] = attack
    for changes in ({"encoder": attack}, {"decoder": inside}, {"decoder_optimizer": attack}, {"bleu-4": [attack]}):
        assert_refused(tutorial(tmp_path / "folder", old, **changes), canary, "BEST_checkpoint_toy.pth.tar")


def test_a_harmful_class_of_a_library_is_an_empty_thing(tmp_path: Path) -> None:
    attack = Reduced(torch.hub.load_state_dict_from_url, "https://nowhere.invalid/x", str(tmp_path / "canary"))
    assert set(read_modules(tutorial(tmp_path, **{"bleu-4": attack}) / "BEST_checkpoint_toy.pth.tar")) == {
        "encoder",
        "decoder",
    }
    assert not (tmp_path / "canary").exists()


def test_nothing_in_the_place_of_json_or_safetensors_is_executed(attacked: Attacked, tmp_path: Path) -> None:
    canary, ways = attacked
    folder = written(tmp_path / "folder", fc_state(), infos("fc"))
    write_folder(tmp_path / "own", read_checkpoint(folder))
    soft = tutorial(tmp_path / "soft")
    for attack in ways.values():
        for path in (
            soft / "WORDMAP_toy.json",
            tmp_path / "own" / "captioner.json",
            tmp_path / "own" / "captioner.safetensors",
        ):
            good = path.read_bytes()
            path.write_bytes(pickle.dumps(attack, protocol=2))
            assert_refused(path.parent, canary, path.name)
            torch.save(attack, path)
            assert_refused(path.parent, canary, path.name)
            path.write_bytes(good)


def bombs() -> dict[str, bytes]:
    """Give pickles that would take for ever, or all memory."""
    tuples = b"N)p0\n0" + b"".join(b"g%d\ng%d\n\x86p%d\n0" % (n, n, n + 1) for n in range(64))
    return {
        "a memo with a gap": b"\x80\x02Nr\xff\xff\xff\xff0N.",
        "a long text that is not there": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 50) + b"abc",
        "a long frame that is not there": b"\x80\x04\x95" + struct.pack("<Q", 1 << 50) + b"abc",
        "nested tuples as a key": tuples + b"}g64\nNs.",
        "nested tuples in a set": tuples + b"\x8f(g64\n\x90.",
        "depth": b"(" * 200_000 + b"t" * 200_000 + b".",
        "many small things": b"\x80\x02" + b"]" * 5_100_000 + b".",
        "a number without end": b"I" + b"9" * 100_000 + b"\n.",
    }


HARMLESS = ("a memo with a gap", "nested tuples in a set", "depth")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if "many" in name else name for name in bombs()]
)
def test_bombs_end_soon(tmp_path: Path, name: str) -> None:
    path = tmp_path / "infos_x.pkl"
    path.write_bytes(bombs()[name])
    start = time.process_time()
    if name in HARMLESS:
        read_pickle(path)
    else:
        with pytest.raises(GradlightError, match=r"infos_x\.pkl"):
            read_pickle(path)
    assert time.process_time() - start < 60


def test_a_list_that_is_named_often_is_copied_once(tmp_path: Path) -> None:
    pairs = b"(lp0\n" + b"".join(b"(S'k%d'\nNla" % n for n in range(1000)) + b"0"
    content = b"(" + pairs + b"ccollections\nOrderedDict\np1\n0" + b"g1\n(g0\ntR" * 1000 + b"l."
    (tmp_path / "x.pkl").write_bytes(content)
    read = read_pickle(tmp_path / "x.pkl")
    assert len(read[0]) == 1000
    assert not any(read[1:])


def test_a_large_infos_file_is_refused(tmp_path: Path) -> None:
    with open(tmp_path / "infos_x.pkl", "wb") as stream:
        stream.write(b"\x80\x02")
        stream.truncate(65 << 20)
    with pytest.raises(GradlightError, match=r"infos_x\.pkl: 65 MB, and no vocabulary"):
        read_pickle(tmp_path / "infos_x.pkl")


def rezipped(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, change(name, data))


def test_zip_bombs_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path, fc_state(), infos("fc"), old=False) / "model-best.pth"
    assert read_weights(path)
    rezipped(path, lambda name, data: data)
    assert read_weights(path)
    rezipped(path, lambda name, data: data if "data/0" not in name else bytes(1 << 24), zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 17
    with pytest.raises(GradlightError, match=r"model-best\.pth: .*compressed, or larger than the file"):
        read_weights(path)


def test_records_that_lie_in_one_another_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data/0", bytes(10_000))
        for number in range(1, 50):
            info = zipfile.ZipInfo(f"x/data/{number}")
            info.file_size = info.compress_size = 10_000
            info.header_offset = info.CRC = 0
            archive.filelist.append(info)
            archive.NameToInfo[info.filename] = info
    with pytest.raises(GradlightError, match="larger than the file"):
        read_weights(path)


class Claimed:
    """Pickles as a tensor that claims to be of any size."""

    def __init__(self, *shape: Any) -> None:
        self.shape = shape

    def __reduce__(self) -> Any:
        storage = torch.ones(4)._typed_storage()
        return torch._utils._rebuild_tensor_v2, (storage, *self.shape, False, OrderedDict())


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((0, (1 << 40, 8), (0, 0)), "its tensors are larger than the file"),
        ((0, (1 << 40,), (1,)), "its tensors are larger than the file"),
        ((3, (2,), (1,)), "outside of its storage"),
        ((0, (2, 2), (3, 1)), "outside of its storage"),
        ((-1, (2,), (1,)), "described wrongly"),
        ((0, (2,), (-1,)), "described wrongly"),
        ((0, (-2, -2), (1, 1)), "described wrongly"),
        ((0, (2, 2), (1,)), "described wrongly"),
        ((0, ((2,),), ((1,),)), "described wrongly"),
        ((0, [2], [1]), "described wrongly"),
        ((0, (1,) * 9, (1,) * 9), "described wrongly"),
    ],
)
def test_sizes_that_cannot_be(tmp_path: Path, shape: tuple[Any, ...], message: str, old: bool) -> None:
    torch.save({"a": Claimed(*shape)}, tmp_path / "model.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(GradlightError, match=rf"model\.pth: .*{message}"):
        read_weights(tmp_path / "model.pth")


def bits(tensor: torch.Tensor) -> list[int]:
    flat = tensor.detach().flatten().clone(memory_format=torch.contiguous_format)
    return flat.view(torch.uint8).tolist()


@pytest.mark.parametrize("old", [True, False])
def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path: Path, old: bool) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    state = {
        "whole": base,
        "part": base[1:3, ::2],
        "turned": base.T,
        "scalar": torch.tensor(3),
        "none": torch.empty(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "nan": torch.tensor([float("nan"), -0.0]),
        **{str(t): torch.tensor([1, 0, 1]).to(t) for t in (torch.float16, torch.bfloat16, torch.int8, torch.bool)},
    }
    torch.save(state, tmp_path / "x.pth", _use_new_zipfile_serialization=not old)
    read, theirs = read_weights(tmp_path / "x.pth"), torch.load(tmp_path / "x.pth", weights_only=True)
    assert read.keys() == theirs.keys()
    for name, tensor in read.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.shape == theirs[name].shape
        assert bits(tensor) == bits(theirs[name])


@pytest.mark.skipif(not hasattr(torch.serialization, "set_crc32_options"), reason="this torch always writes checksums")
def test_files_without_checksums(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(fc_state(), path)
    finally:
        torch.serialization.set_crc32_options(before)
    assert torch.equal(read_weights(path)["embed.weight"], fc_state()["embed.weight"])


def test_wrong_checksums(tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    torch.save({"a": torch.full((99,), 7.0)}, path)
    content = path.read_bytes()
    value = struct.pack("<f", 7.0)
    assert value * 99 in content
    path.write_bytes(content.replace(value * 99, value * 98 + b"abcd"))
    with pytest.raises(GradlightError, match=r"model\.pth: .*the record data/0 is damaged"):
        read_weights(path)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_torchscript_program_is_not_run(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), str(tmp_path / "model.pth"))
    for read in (read_weights, read_modules):
        with pytest.raises(GradlightError, match=r"model\.pth: a TorchScript program.*was not run"):
            read(tmp_path / "model.pth")


def test_modules_in_one_another_without_end(tmp_path: Path) -> None:
    folder = tutorial(tmp_path)
    loop = nn.Linear(1, 1)
    loop._modules["again"] = loop
    wide: nn.Module = nn.Linear(1, 1)
    for _ in range(40):
        outer = nn.Module()
        outer._modules.update(a=wide, b=wide)
        wide = outer
    for bad in (loop, wide):
        tutorial(tmp_path, decoder=bad)
        with pytest.raises(GradlightError, match=r"toy\.pth\.tar: .*modules nested without end"):
            read_checkpoint(folder)


@pytest.mark.parametrize("changes", [{"encoder": None}, {"decoder": None}, {"decoder": nn.ReLU()}, {"encoder": 3}])
def test_a_tutorial_file_without_its_members(tmp_path: Path, changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(GradlightError, match=rf"toy\.pth\.tar: the weights of {name} are not in it"):
        read_checkpoint(tutorial(tmp_path, **changes))


def test_state_dicts_in_the_place_of_whole_modules(tmp_path: Path) -> None:
    modules = read_modules(tutorial(tmp_path) / "BEST_checkpoint_toy.pth.tar")
    again = read_modules(tutorial(tmp_path, **modules) / "BEST_checkpoint_toy.pth.tar")
    for name, state in modules.items():
        assert set(again[name]) == set(state)
        assert all(torch.equal(again[name][key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"\n<!DOCTYPE html><html>404</html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"hello world", "damaged or truncated"),
        (bytes(range(256)) * 9, "damaged or truncated"),
        (b"PK\x03\x04" + bytes(99), "damaged or truncated"),
        (b"PK\x05\x06" + bytes(18), "damaged or truncated"),
    ],
)
@pytest.mark.parametrize(
    "name", ["infos_fc-best.pkl", "model-best.pth", "BEST_checkpoint_toy.pth.tar", "WORDMAP_toy.json"]
)
def test_what_was_saved_in_a_files_place(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = tutorial(tmp_path) if "toy" in name else written(tmp_path, fc_state(), infos("fc"))
    (folder / name).write_bytes(content)
    with pytest.raises(GradlightError, match=name.replace(".", r"\.") + ": .*" + ("" if "WORD" in name else message)):
        read_checkpoint(folder)
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(GradlightError, match=r"a directory|no captioner is in this folder"):
        read_checkpoint(folder)


def test_numbers_of_numpy(tmp_path: Path) -> None:
    values = {"a": np.float64(0.5), "b": np.float32(0.25), "c": np.int64(-3), "d": np.int32(4), "e": np.bool_(True)}
    for protocol in (0, 2, 4):
        (tmp_path / "x.pkl").write_bytes(pickle.dumps(values, protocol=protocol))
        assert read_pickle(tmp_path / "x.pkl") == {"a": 0.5, "b": 0.25, "c": -3, "d": 4, "e": True}
    (tmp_path / "x.pkl").write_bytes(python2({"a": np.float64(0.953)}))
    assert read_pickle(tmp_path / "x.pkl") == {"a": 0.953}


def test_other_values_of_numpy_are_inert(tmp_path: Path) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"a": np.arange(3), "b": np.complex64(1), "c": 7}, protocol=2))
    assert read_pickle(tmp_path / "x.pkl")["c"] == 7


def outcome(folder: Path) -> str | None:
    """Read a captioner; give the words of the one error that there may be."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GradlightWarning)
        try:
            read_checkpoint(folder)
        except GradlightError as error:
            return str(error)
    return None


def fuzzed(folder: Path, name: str, rounds: int, seed: int) -> int:
    """Damage a file again and again; give how often it could still be read."""
    good, chance, read = (folder / name).read_bytes(), random.Random(seed), 0
    for _ in range(rounds):
        data = bytearray(good)
        if chance.random() < 0.3:
            del data[chance.randrange(len(data)) :]
        for _ in range(chance.choice([1, 1, 3, 10]) if len(data) > 9 else 0):
            # Most of the pickles lie at the beginning.
            data[chance.randrange(min(len(data), chance.choice([300, 3000, len(data)])))] = chance.randrange(256)
        (folder / name).write_bytes(data)
        message = outcome(folder)
        read += message is None
        assert message is None or (len(message) < 2000 and "\n" not in message)
    (folder / name).write_bytes(good)
    return read


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("name", ["infos_fc-best.pkl", "model-best.pth"])
def test_damage_ends_in_an_error_or_in_a_captioner(tmp_path: Path, name: str, old: bool) -> None:
    folder = written(tmp_path, att2in2_state(), infos("att2in2"), old=old)
    assert fuzzed(folder, name, 120, seed=old) < 120
    assert read_checkpoint(folder).family == "att2in2"


@pytest.mark.slow
@pytest.mark.parametrize("old", [True, False])
def test_damage_to_whole_modules(tmp_path: Path, old: bool) -> None:
    folder = tutorial(tmp_path, old)
    for name in ("BEST_checkpoint_toy.pth.tar", "WORDMAP_toy.json"):
        assert fuzzed(folder, name, 40, seed=old) < 40
    assert json.loads((folder / "WORDMAP_toy.json").read_text())["<pad>"] == 0
