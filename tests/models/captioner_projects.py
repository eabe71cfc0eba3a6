"""Files as the captioner projects write them, with random weights, and what their equations say, in plain numpy."""

from __future__ import annotations

import argparse
import builtins
import json
import os
import pickle
import runpy
import subprocess
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import ResNet
from torchvision.models.resnet import Bottleneck

WORDS = ["a", "man", "dog", "in", "the", "café", "red", "bus", "on", "UNK"]
V = len(WORDS)
E, R, A, F, D = 4, 5, 3, 7, 6

State = dict[str, Tensor]


def filled(shapes: Mapping[str, Sequence[int]], seed: int = 0) -> State:
    torch.manual_seed(seed)
    return OrderedDict((name, torch.randn(*shape)) for name, shape in shapes.items())


def linear(name: str, out: int, into: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (out, into), f"{name}.bias": (out,)}


def maxout(name: str, size: int = R) -> dict[str, tuple[int, ...]]:
    return {**linear(f"{name}.i2h", 5 * size, E), **linear(f"{name}.h2h", 5 * size, size)}


def fc_state(rows: int = V + 1, features: int = F, seed: int = 0) -> State:
    shapes = {**linear("img_embed", E, features), **maxout("core"), "embed.weight": (rows, E)}
    return filled({**shapes, **linear("logit", V + 1, R)}, seed)


def newfc_state() -> State:
    names = {"img_embed": "fc_embed", "core": "_core"}
    return {
        ".".join([names.get(n.split(".")[0], n.split(".")[0]), *n.split(".")[1:]]): t for n, t in fc_state().items()
    }


def show_tell_state(layers: int = 2, gates: int = 4) -> State:
    shapes: dict[str, tuple[int, ...]] = {**linear("img_embed", E, F), "embed.weight": (V + 1, E)}
    for k in range(layers):
        shapes[f"core.weight_ih_l{k}"] = (gates * R, R if k else E)
        shapes[f"core.weight_hh_l{k}"] = (gates * R, R)
    return filled({**shapes, **linear("logit", V + 1, R)})


def att2in2_state(rows: int = V + 1, norm: int = 0, places: int = D) -> State:
    embed = "att_embed.1" if norm else "att_embed.0"
    shapes = {
        "embed.0.weight": (rows, E),
        **linear(embed, R, places),
        **linear("logit", V + 1, R),
        **linear("ctx2att", A, R),
        **linear("core.a2c", 2 * R, R),
        **maxout("core"),
        **linear("core.attention.h2att", A, R),
        **linear("core.attention.alpha_net", 1, A),
    }
    state = filled(shapes)
    for name, size in (("att_embed.0", places), ("att_embed.4", R))[:norm]:
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.{part}"] = torch.rand(size) + 0.5
        state[f"{name}.num_batches_tracked"] = torch.tensor(7)
    return state


def joint(state: State) -> State:
    """Put a captioner into DiscCaptioning's model."""
    beside = filled({**linear("vse.img_enc.fc", 8, F), "vse.txt_enc.embed.weight": (V + 2, E)}, 3)
    return {**{f"caption_generator.{name}": tensor for name, tensor in state.items()}, **beside}


def infos(model: str, **options: Any) -> dict[str, Any]:
    opt = argparse.Namespace(caption_model=model, rnn_size=R, seq_length=16, use_att=False, start_from=None)
    vars(opt).update(vocab_size=V, input_att_dir="data/cocotalk_att", input_fc_dir="data/cocotalk_fc", **options)
    return {
        "iter": 60000,
        "epoch": 5,
        "iterators": {"train": 0},
        "best_val_score": np.float64(0.953),
        "opt": opt,
        "vocab": {str(number): word for number, word in enumerate(WORDS, 1)},
    }


def python2(value: Any) -> bytes:
    """Pickle as Python 2's cPickle does with protocol 0: byte strings, old names, and every opcode a line."""
    return _python2(value) + b"."


def _python2(value: Any) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, np.float64):
        dtype = b"cnumpy\ndtype\np8\n(S'f8'\nI0\nI1\ntRp9\n(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
        return b"cnumpy.core.multiarray\nscalar\np7\n(" + dtype + _python2(value.tobytes()) + b"tRp10\n"
    if isinstance(value, bool):
        return b"I%02d\n" % value
    if isinstance(value, int):
        return b"I%d\n" % value
    if isinstance(value, float):
        return f"F{value!r}\n".encode()
    if isinstance(value, str):
        return _python2(value.encode()) if value.isascii() else b"V" + value.encode("raw-unicode-escape") + b"\np1\n"
    if isinstance(value, bytes):
        return b"S" + repr(value)[1:].encode() + b"\np1\n"
    if isinstance(value, dict):
        return b"(dp2\n" + b"".join(_python2(k) + _python2(v) + b"s" for k, v in value.items())
    if isinstance(value, argparse.Namespace):
        made = b"ccopy_reg\n_reconstructor\np3\n(cargparse\nNamespace\np4\nc__builtin__\nobject\np5\nNtRp6\n"
        return made + _python2(vars(value)) + b"b"
    raise TypeError(type(value))


def written(folder: Path, state: Any, record: Any, name: str = "fc", old: bool = True, best: str = "-best") -> Path:
    """Write a folder of ImageCaptioning.pytorch or DiscCaptioning: old=True as Python 2 and torch 0.4 do."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(state, folder / f"model{best}.pth", _use_new_zipfile_serialization=not old)
    content = python2(record) if old else pickle.dumps(record, protocol=2)
    (folder / f"infos_{name}{best}.pkl").write_bytes(content)
    return folder


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder_att, self.decoder_att = nn.Linear(16, A), nn.Linear(R, A)
        self.full_att, self.relu, self.softmax = nn.Linear(A, 1), nn.ReLU(), nn.Softmax(dim=1)


class DecoderWithAttention(nn.Module):
    def __init__(self, words: int) -> None:
        super().__init__()
        self.attention, self.embedding = Attention(), nn.Embedding(words, E)
        self.decode_step = nn.LSTMCell(E + 16, R, bias=True)
        self.init_h, self.init_c, self.f_beta = nn.Linear(16, R), nn.Linear(16, R), nn.Linear(R, 16)
        self.fc = nn.Linear(R, words)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        small = ResNet(Bottleneck, [1, 1, 1, 1])
        small.conv1, small.bn1, small.inplanes = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), 4
        widths = (1, 2, 2, 4)
        stages = [small._make_layer(Bottleneck, width, 1, 1 if n == 0 else 2) for n, width in enumerate(widths)]
        self.resnet = nn.Sequential(small.conv1, small.bn1, small.relu, small.maxpool, *stages)
        self.adaptive_pool = nn.AdaptiveAvgPool2d((14, 14))


def tutorial(folder: Path, old: bool = True, **changes: Any) -> Path:
    """Write the tutorial's checkpoint, both modules whole, with its word map."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {word: number for number, word in enumerate([*WORDS[:-1], "<unk>", "<start>", "<end>"], 1)} | {"<pad>": 0}
    torch.manual_seed(0)
    encoder, decoder = Encoder(), DecoderWithAttention(len(words))
    optimizer = torch.optim.Adam(decoder.parameters())
    sum(p.sum() for p in decoder.parameters()).backward()
    optimizer.step()
    content = {
        "epoch": 3,
        "epochs_since_improvement": 0,
        "bleu-4": 0.2,
        "encoder": encoder,
        "decoder": decoder,
        "encoder_optimizer": None,
        "decoder_optimizer": optimizer,
        **changes,
    }
    torch.save(content, folder / "BEST_checkpoint_toy.pth.tar", _use_new_zipfile_serialization=not old)
    (folder / "WORDMAP_toy.json").write_text(json.dumps(words))
    return folder


class Reduced:
    """Pickles as a call of something."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.call, self.args = call, args

    def __reduce__(self) -> Any:
        return self.call, self.args

    def __hash__(self) -> int:
        return 1


def attacks(canary: Path) -> dict[str, Reduced]:
    """Give what would make the file `canary`, each in another way, were it ever run."""
    script = canary.with_name("script.py")
    script.write_text(f"open({str(canary)!r}, 'w').close()")
    opening = f"open({str(canary)!r}, 'w').close()"
    return {
        "system": Reduced(os.system, f"touch {canary}"),
        "popen": Reduced(subprocess.Popen, ["touch", str(canary)]),
        "eval": Reduced(eval, opening),
        "exec": Reduced(exec, opening),
        "import": Reduced(builtins.__import__, "this"),
        "runpy": Reduced(runpy.run_path, str(script)),
        "mkdir": Reduced(os.mkdir, str(canary)),
    }


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - x.max() - np.log(np.exp(x - x.max()).sum())


class Slowly:
    """The maxout captioners, word by word, from a state dict under the project's names."""

    def __init__(self, state: State) -> None:
        self.w = {name.removeprefix("caption_generator."): t.double().numpy() for name, t in state.items()}

    def line(self, name: str, x: np.ndarray) -> np.ndarray:
        return self.w[f"{name}.weight"] @ x + self.w[f"{name}.bias"]

    def cell(self, core: str, x: np.ndarray, h: np.ndarray, c: np.ndarray, more: Any = 0.0) -> tuple[Any, Any]:
        a = self.line(f"{core}.i2h", x) + self.line(f"{core}.h2h", h)
        a[3 * R :] += more
        c = sigmoid(a[R : 2 * R]) * c + sigmoid(a[:R]) * np.maximum(a[3 * R : 4 * R], a[4 * R :])
        return sigmoid(a[2 * R : 3 * R]) * np.tanh(c), c

    def fc(self, vector: np.ndarray, said: Sequence[int], image: str = "img_embed", core: str = "core") -> np.ndarray:
        h = c = np.zeros(R)
        h, c = self.cell(core, self.line(image, vector), h, c)
        rows = []
        for word in said:
            h, c = self.cell(core, self.w["embed.weight"][word], h, c)
            rows.append(log_softmax(self.line("logit", h)))
        return np.stack(rows)

    def norm(self, name: str, x: np.ndarray) -> np.ndarray:
        w = {part: self.w[f"{name}.{part}"] for part in ("weight", "bias", "running_mean", "running_var")}
        return (x - w["running_mean"]) / np.sqrt(w["running_var"] + 1e-5) * w["weight"] + w["bias"]

    def att2in2(self, places: np.ndarray, said: Sequence[int], norm: int = 0) -> np.ndarray:
        inner = "att_embed.1" if norm else "att_embed.0"
        seen = [self.norm("att_embed.0", place) if norm else place for place in places]
        seen = [np.maximum(self.line(inner, place), 0) for place in seen]
        seen = [self.norm("att_embed.4", place) if norm == 2 else place for place in seen]
        h = c = np.zeros(R)
        rows = []
        for word in said:
            asked = self.line("core.attention.h2att", h)
            energies = [
                self.line("core.attention.alpha_net", np.tanh(self.line("ctx2att", place) + asked))[0] for place in seen
            ]
            shares = np.exp(log_softmax(np.array(energies)))
            attended = sum(share * place for share, place in zip(shares, seen, strict=True))
            x = np.maximum(self.w["embed.0.weight"][word], 0)
            h, c = self.cell("core", x, h, c, self.line("core.a2c", attended))
            rows.append(log_softmax(self.line("logit", h)))
        return np.stack(rows)
